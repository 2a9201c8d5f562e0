"""A sweep of a few lines for tests of resuming: some runs diverge, one has noise of its own."""

import contextlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np

GRID = {"rate": [0.1, 3e18, 0.5, 1e18, 1.5], "seed": [0, 1]}
STEPS, CHUNK = 14, 6  # 7 records of 2 steps, 3 a chunk: the last chunk is short
ONE_BY_ONE = {"executor": "map", "steps": STEPS, "chunk": CHUNK}
TOGETHER = {"executor": "vmap", "width": 2, "steps": STEPS, "chunk": CHUNK}
CHUNKS = 3


class Decay:
    """w <- w (1 - rate) + noise; large rates diverge."""

    stride, dims, coords = 2, {"w": ("coordinate",)}, {"coordinate": ("x", "y")}
    slower = 1.0

    def __init__(self, rule="plain"):
        self.noise = {"plain": 0.0, "noisy": 0.1}[rule]

    def init(self, point):
        key = jax.random.key(point["seed"])
        return {"w": jax.random.normal(key, 2), "rate": point["rate"], "key": key}

    def advance(self, state):
        key, own = jax.random.split(state["key"])
        noise = self.noise * jax.random.normal(own, 2)
        w = state["w"] * (1 - self.slower * state["rate"]) + noise
        return {**state, "w": w, "key": key}, {"w": state["w"], "loss": jnp.sum(state["w"] ** 2)}

    def alive(self, state):
        return jnp.isfinite(state["w"]).all()

    def finish(self, state):
        return {"final": state["w"][0]}


def bits(ds):
    """All values of a Dataset, NaN included, as bytes."""
    return {
        name: (v.dims, v.shape, v.values.tolist() if v.dtype.kind in "UT" else v.values.tobytes())
        for name, v in ds.variables.items()
    }


def assert_same(one, other):
    """Bit for bit, and in what the attributes say of the sweep."""
    assert bits(one) == bits(other)
    assert one.attrs["identity"] == other.attrs["identity"]
    assert np.isnan(one["loss"]).any()  # some runs diverged, so the test is a test


class Chunks:
    """A callback that counts them."""

    def __init__(self):
        self.told = 0

    def on_chunk(self, progress):
        self.told += 1


_CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}
_watching = []


def _hook(event, args):
    if _watching and event in _CHANGES:
        _watching[-1](event, args)


@contextlib.contextmanager
def before_changes(folder, do):
    """Do something at every instant before something in a folder changes; it may raise an error.

    Args:
      folder: may not be there yet.
      do: is called with the name of an audit event, with a path as its first argument.
    """
    busy = []

    def change(event, args):
        if busy or str(folder) not in str(args[0]):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            return
        busy.append(True)
        try:
            do(event)
        finally:
            busy.clear()

    if not getattr(sys, "_decay_hook", False):  # an audit hook stays for ever
        sys.addaudithook(_hook)
        sys._decay_hook = True
    _watching.append(change)
    try:
        yield
    finally:
        _watching.remove(change)


def snapshot(folder, place):
    """Copy a folder: what a process that is killed at this instant leaves."""
    if folder.exists():
        with contextlib.suppress(shutil.Error):  # another thread is writing there
            shutil.copytree(folder, place)
