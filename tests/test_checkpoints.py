"""Checkpoints: bitwise back, of any dtype and sharding; if killed, damaged, full: none is wrong."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate.results import checkpoints

POSITION = {"chunk": 3, "runs": [1, 2], "name": "é", "rate": 0.1}
DTYPES = [
    "bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "complex64",
]  # fmt: skip
SHAPES = [(), (1,), (0,), (3, 0, 2), (4, 3)]


def mesh():
    return jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


def bits(leaf):
    """Kind, dtype, shape and bytes."""
    kind = np.ndarray if isinstance(leaf, np.ndarray) else jax.Array
    dtype = leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return kind, dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_same(restored, state):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert bits(one) == bits(other)
        if isinstance(one, jax.Array):
            assert one.sharding == other.sharding
            assert one.committed == other.committed


def assert_comes_back(folder, state):
    checkpoints.save(folder, POSITION, state)
    position, restored, skipped = checkpoints.restore(folder, state)
    assert (position, skipped) == (POSITION, ())
    assert_same(restored, state)


class Pair(NamedTuple):
    first: Any
    second: Any


def weights():
    return {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}


def trees():
    key = jax.random.key(7)
    rows, same = (jax.NamedSharding(mesh(), jax.P(*axes)) for axes in (("d",), ()))
    nan = np.array([0x7FC00001, 0xFF800001, 0x80000000], np.uint32).view(np.float32)
    second = jax.local_devices()[1]
    return {
        "dtypes": {n: jnp.arange(6).astype(n) for n in DTYPES},
        "shapes": [jnp.ones(shape) for shape in SHAPES],
        "numpy": [np.ones(shape, np.float64) for shape in SHAPES],
        "numpy of ml_dtypes": [np.arange(4).astype(n) for n in ("bfloat16", "float8_e5m2", "int4")],
        "numpy in another order": [np.arange(6.0).reshape(2, 3).T, np.arange(9.0)[::-2]],
        "NaNs and zeros with a sign": [jnp.asarray(nan), nan, jnp.full((4,), -0.0)],
        "keys": [jax.random.key(1, impl=i) for i in ("threefry2x32", "rbg", "unsafe_rbg")],
        "arrays of keys": [jax.random.split(key, (2, 3)), jax.random.split(key, (0,))],
        "sharded keys": jax.device_put(jax.random.split(key, 4), rows),
        "sharded": [jax.device_put(jnp.arange(8.0), s) for s in (rows, same)],
        "sharded, no size": jax.device_put(jnp.zeros((0, 3)), same),
        "another device": jax.device_put(jnp.arange(8.0), second),
        "optax": optax.adamw(0.1).init(weights()),
        "containers": Pair([None, ()], flax.core.freeze({"a": {"b": (jnp.ones(2),)}, "c": {}})),
        "a leaf alone": jnp.ones(3),
        "no leaf": (None, optax.EmptyState()),
    }


@pytest.mark.parametrize("name", trees())
def test_state_comes_back_bitwise(tmp_path, name):
    assert_comes_back(tmp_path, trees()[name])


@pytest.mark.usefixtures("float64")
def test_double_precision_comes_back_bitwise(tmp_path):
    assert_comes_back(tmp_path, [jnp.arange(3.0), jnp.arange(3), jnp.ones(2, jnp.complex128)])


def test_double_precision_is_not_halved(tmp_path):
    with jax.enable_x64(True):
        checkpoints.save(tmp_path, {}, {"a": jnp.arange(3.0)})
        like = jax.eval_shape(lambda: {"a": jnp.arange(3.0)})
    with pytest.raises(ValueError, match=r"leaf \['a'\] is float64"):
        checkpoints.restore(tmp_path, like)


def test_like_may_be_abstract_and_moves_the_state(tmp_path):
    state = {"key": jax.random.split(jax.random.key(1), 2), "w": jnp.arange(4.0)}
    checkpoints.save(tmp_path, {}, state)
    rows = jax.NamedSharding(mesh(), jax.P("d"))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), state)
    assert_same(checkpoints.restore(tmp_path, like).state, jax.device_put(state, rows))
    assert_same(checkpoints.restore(tmp_path, jax.eval_shape(lambda: state)).state, state)


def test_restored_arrays_can_be_donated_and_numpy_written(tmp_path):
    state = {"j": jnp.arange(64.0), "n": np.arange(64.0)}
    checkpoints.save(tmp_path, {}, state)
    restored = checkpoints.restore(tmp_path, state).state
    jax.jit(lambda x: x + 1, donate_argnums=0)(restored["j"])
    restored["n"][:] = 0
    assert_same(checkpoints.restore(tmp_path, state).state, state)


def test_nothing_saved(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert checkpoints.latest(folder) is None
        assert checkpoints.restore(folder, weights()) is None
        checkpoints.clear(folder)
    assert list(tmp_path.iterdir()) == []


def test_last_two_are_kept_and_all_are_cleared(tmp_path):
    for chunk in range(4):
        checkpoints.save(tmp_path, {"chunk": chunk}, jnp.full((3,), chunk))
        assert checkpoints.latest(tmp_path) == {"chunk": chunk}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000003", "checkpoint-00000004",
    ]  # fmt: skip
    (tmp_path / ".writing-dead").mkdir()
    (tmp_path / "notes").touch()
    checkpoints.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    assert checkpoints.latest(tmp_path) is None


def test_stock_orbax_reads_it(tmp_path):
    import orbax.checkpoint as ocp

    checkpoints.save(tmp_path, {}, jnp.arange(3, dtype=jnp.uint8))
    read = ocp.PyTreeCheckpointHandler().restore(tmp_path / "checkpoint-00000001" / "state")
    assert read["bytes"].tolist() == [0, 1, 2, 0]


def test_inside_an_event_loop(tmp_path):
    async def notebook():
        assert_comes_back(tmp_path, weights())

    asyncio.run(notebook())


MISFITS = [
    ({"w": jnp.ones(3)}, r"lacks the leaf \['w'\]"),
    ({}, r"has a leaf \['a'\] too many"),
    ({"a": {"b": jnp.ones(3)}}, r"lacks the leaf \['a'\]\['b'\]"),
    ({"a": jnp.ones(4)}, r"leaf \['a'\] is float32 of shape \(3,\) in it, not .* \(4,\)"),
    ({"a": jnp.ones(3, jnp.int32)}, r"leaf \['a'\] is float32 .*, not int32 of shape"),
    ({"a": jax.random.key(0)}, r"leaf \['a'\] is float32 .*, not key<fry> of shape"),
]


@pytest.mark.parametrize(("like", "said"), MISFITS)
def test_state_that_does_not_fit(tmp_path, like, said):
    checkpoints.save(tmp_path, {}, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=said + ".*same configuration"):
        checkpoints.restore(tmp_path, like)


def test_keys_of_another_implementation_do_not_fit(tmp_path):
    checkpoints.save(tmp_path, {}, jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match=r"the state itself.* is key<rbg>"):
        checkpoints.restore(tmp_path, jax.random.key(0, impl="unsafe_rbg"))


REFUSED = [
    ({}, {"a": 1.0}, r"leaf \['a'\] is 1.0, not an array"),
    ({}, {"a": "text"}, r"leaf \['a'\] is 'text', not an array"),
    ({}, {"a": np.array([{}])}, r"leaf \['a'\] is .*only arrays of numbers"),
    ({}, {"a": jax.ShapeDtypeStruct((), np.float32)}, r"leaf \['a'\] is .*only arrays of numbers"),
    ({"a": {1, 2}}, {}, "is not JSON"),
    ({"a": float("nan")}, {}, "is not JSON"),
]


@pytest.mark.parametrize(("position", "state", "said"), REFUSED)
def test_what_cannot_be_saved(tmp_path, position, state, said):
    with pytest.raises(ValueError, match=said):
        checkpoints.save(tmp_path / "folder", position, state)
    assert not (tmp_path / "folder").exists()


# Damage.


def two_saved(folder):
    for chunk in (1, 2):
        checkpoints.save(folder, {"chunk": chunk}, jnp.full((5,), chunk))
    last = folder / "checkpoint-00000002"
    return last, sorted(path for path in last.rglob("*") if path.is_file())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add(path):
    (path.parent / "stranger").touch()


DAMAGES = {
    "flip": flip,
    "truncate": lambda path: os.truncate(path, path.stat().st_size - 1),
    "lengthen": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: os.truncate(path, 0),
    "delete": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "add": add,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_the_one_before_taken(tmp_path, damage):
    last, files = two_saved(tmp_path / "whole")
    assert len(files) >= 4
    like = jnp.zeros(5, jnp.int32)
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        DAMAGES[damage](folder / last.name / file.relative_to(last))
        assert checkpoints.latest(folder) == {"chunk": 1}
        position, state, skipped = checkpoints.restore(folder, like)
        assert position == {"chunk": 1}
        assert state.tolist() == [1] * 5
        assert [last.name in said and "damaged" in said for said in skipped] == [True]


def test_every_byte_of_the_manifest_counts(tmp_path):
    last, _ = two_saved(tmp_path)
    manifest = last / "manifest"
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 7):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert checkpoints.latest(tmp_path) == {"chunk": 1}
    manifest.write_bytes(whole)
    assert checkpoints.latest(tmp_path) == {"chunk": 2}


def test_all_damaged_is_no_new_start(tmp_path):
    two_saved(tmp_path)
    for file in tmp_path.glob("*/manifest"):
        file.unlink()
    for ask in (checkpoints.latest, lambda folder: checkpoints.restore(folder, jnp.ones(5))):
        with pytest.raises(ValueError, match=r"00002' is damaged.*00001' is damaged.*start anew"):
            ask(tmp_path)
    checkpoints.save(tmp_path, {"chunk": 3}, jnp.ones(5))
    assert checkpoints.latest(tmp_path) == {"chunk": 3}


# Writing that fails, processes that die.


@pytest.mark.parametrize("call", ["fsync", "rename", "_write_state", "_digest"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_failed_writing_leaves_all_as_before(tmp_path, monkeypatch, call, number):
    last, _ = two_saved(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    place = {"fsync": checkpoints.os, "rename": type(last)}.get(call, checkpoints)
    monkeypatch.setattr(place, call, refuse)
    said = f"cannot write a checkpoint to '{tmp_path}': {os.strerror(number)}; free some space"
    with pytest.raises(ValueError, match=said):
        checkpoints.save(tmp_path, {"chunk": 3}, jnp.ones(5))
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before
    assert checkpoints.latest(tmp_path) == {"chunk": 2}


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write a checkpoint to .*File exists"):
        checkpoints.save(tmp_path / "file", {}, jnp.ones(5))


def run(program, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, **options
    )


FULL = """
import resource, sys
import numpy as np
from bnrate.results import checkpoints
checkpoints.save(sys.argv[1], {"chunk": 1}, np.ones(1000))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoints.save(sys.argv[1], {"chunk": 2}, np.ones(10_000))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits")
def test_disk_that_takes_no_more(tmp_path):
    with run(FULL, tmp_path, text=True) as process:
        said = process.stdout.read()
    assert process.returncode == 0
    assert said.startswith(f"cannot write a checkpoint to '{tmp_path}': ")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert checkpoints.restore(tmp_path, np.ones(1000)).position == {"chunk": 1}


FOREVER = """
import sys
import numpy as np
from bnrate.results import checkpoints
n = (checkpoints.latest(sys.argv[1]) or {"n": 0})["n"]
while True:
    n += 1
    checkpoints.save(sys.argv[1], {"n": n}, [np.full(50_000, n), np.full(3, -n)])
    print(n, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_at_any_instant(tmp_path):
    random, reached = np.random.default_rng(0), 0
    like = [np.zeros(50_000, int), np.zeros(3, int)]
    for _ in range(5):
        with run(FOREVER, tmp_path, text=True) as process:
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split()]
        reached = max(said, default=reached + 1)
        position, (first, second), skipped = checkpoints.restore(tmp_path, like)
        assert skipped == ()
        # What was reported is there; the next one may be, if it was killed before its report.
        assert position["n"] in (reached, reached + 1)
        assert np.all(first == position["n"])
        assert np.all(second == -position["n"])
        reached = position["n"]
    checkpoints.save(tmp_path, {"n": 0}, like)
    assert len(list(tmp_path.iterdir())) == 2


STEPS = ["mkdir", "_write_state", "_digest", "_sync", "rename", "rmtree"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_dead_just_before_or_after_each_step(tmp_path, step, after):
    two_saved(tmp_path)
    with run(DYING, tmp_path, step, int(after)) as process:
        process.communicate()
    assert process.returncode == 9
    position, state, skipped = checkpoints.restore(tmp_path, jnp.zeros(5, jnp.int32))
    assert state.tolist() == [position["chunk"]] * 5
    there = step == "rmtree" or (step == "rename" and after)
    assert (position["chunk"], skipped) == (3 if there else 2, ())


DYING = """
import os, shutil, sys
from pathlib import Path
import numpy as np
from bnrate.results import checkpoints
step, after = sys.argv[2], int(sys.argv[3])
places = {"mkdir": Path, "rename": Path, "rmtree": shutil}
place = places.get(step, checkpoints)
call = getattr(place, step)

def die(*args, **kwargs):
    if after:
        call(*args, **kwargs)
    os._exit(9)

setattr(place, step, die)
checkpoints.save(sys.argv[1], {"chunk": 3}, np.full(5, 3, np.int32))
"""


def test_writers_in_two_processes_take_turns(tmp_path):
    with run(TURNS, tmp_path, 1) as one, run(TURNS, tmp_path, 2) as other:
        pass
    assert (one.returncode, other.returncode) == (0, 0)
    restored = checkpoints.restore(tmp_path, np.zeros(9, int))
    assert restored.position["saved"] == 10
    assert np.all(restored.state == restored.position["writer"])


TURNS = """
import sys, time
import numpy as np
from bnrate.results import checkpoints, locking
folder, me = sys.argv[1], int(sys.argv[2])
mine = 0
while mine < 5:
    try:
        with locking.locked(folder):
            saved = (checkpoints.latest(folder) or {"saved": 0})["saved"]
            checkpoints.save(folder, {"saved": saved + 1, "writer": me}, np.full(9, me))
        mine += 1
    except ValueError as error:
        assert "being written" in str(error), error
        time.sleep(0.01)
"""

JOB = """
import sys
import jax
import jax.numpy as jnp
from bnrate.results import checkpoints
folder, address, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, me)
assert jax.process_count() == 2
state = jax.device_put(jnp.full(3, me), jax.local_devices()[0])
for n in range(1 + 2 * me):  # not as often as the other one
    checkpoints.save(f"{folder}/{me}", {"n": n}, state)
back = checkpoints.restore(f"{folder}/{me}", state)
assert back.position == {"n": 2 * me} and back.state.tolist() == [me] * 3
everywhere = jax.NamedSharding(jax.make_mesh((2,), ("d",)), jax.P("d"))
wide = jax.make_array_from_callback((2,), everywhere, lambda index: jnp.ones(2)[index])
try:
    checkpoints.save(f"{folder}/{me}", {}, {"w": wide})
except ValueError as error:
    assert "leaf ['w'] lies on devices of other processes" in str(error), error
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_each_process_of_a_job_saves_its_own(tmp_path):
    import socket

    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with (
        run(JOB, tmp_path, address, 0, env=environment) as one,
        run(JOB, tmp_path, address, 1, env=environment) as other,
    ):
        pass
    assert (one.returncode, other.returncode) == (0, 0)


def test_importing_is_light():
    program = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("alone", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps([name for name in ("jax", "orbax", "tensorstore") if name in sys.modules]))
"""
    with run(program, checkpoints.__file__) as process:
        assert json.loads(process.stdout.read()) == []
