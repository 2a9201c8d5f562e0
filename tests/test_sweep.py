"""The sweep on a three-line quadratic: it knows nothing of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import sweep

GRID = {"rule": ["plain", "double"], "rate": [0.1, 0.5, 1.9], "start": [1, 2]}


class Quadratic:
    """w <- w - k rate w; traces w per coordinate, one more coordinate for the rule "double"."""

    def __init__(self, rule="plain", stride=1):
        self.k = {"plain": 1.0, "double": 2.0}[rule]
        self.stride = stride
        self.names = ("x", "y") if rule == "plain" else ("y", "z", "x")
        self.dims = {"loss": (), "w": ("coordinate",)}
        self.coords = {"coordinate": self.names}
        self.inits = 0

    def init(self, point):
        self.inits += 1
        return {
            "w": jnp.full(len(self.names), point["start"].astype(jnp.float32)),
            "rate": point["rate"],
        }

    def advance(self, state, records):
        def step(state, _):
            def once(_, w):
                return w - self.k * state["rate"] * w

            record = {"loss": jnp.sum(state["w"] ** 2), "w": state["w"]}
            return {**state, "w": jax.lax.fori_loop(0, self.stride, once, state["w"])}, record

        return jax.lax.scan(step, state, length=records)

    def finish(self, state):
        return {"final": state["w"][0], "grown": state["w"][0] > 1}


def by_hand(rule, rate, start, t):
    return start * (1 - {"plain": 1, "double": 2}[rule] * rate) ** t


@pytest.mark.parametrize("executor", sweep.EXECUTORS)
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7])
def test_every_point_of_the_grid_is_run(executor, devices, chunk):
    ds = sweep.run(
        Quadratic, GRID, steps=7, chunk=chunk, executor=executor, devices=jax.devices()[:devices]
    )
    assert dict(ds.sizes) == {"rule": 2, "rate": 3, "start": 2, "step": 7, "coordinate": 3}
    assert ds["loss"].dims == ("rule", "rate", "start", "step")
    assert ds["final"].dims == ("rule", "rate", "start")
    for rule in GRID["rule"]:
        for rate in GRID["rate"]:
            for start in GRID["start"]:
                one = ds.sel(rule=rule, rate=rate, start=start)
                w = by_hand(rule, rate, start, np.arange(8.0))
                np.testing.assert_allclose(one["final"], w[-1], rtol=1e-4)
                np.testing.assert_allclose(one["w"].sel(coordinate="x"), w[:-1], rtol=1e-4)
                coordinates = 2 if rule == "plain" else 3
                np.testing.assert_allclose(one["loss"], coordinates * w[:-1] ** 2, rtol=1e-4)
                assert bool(one["grown"]) == (w[-1] > 1)


def test_entries_that_a_combination_lacks_are_nan():
    ds = sweep.run(Quadratic, GRID, steps=3)
    assert list(ds["coordinate"].values) == ["x", "y", "z"]
    assert ds["w"].sel(rule="plain", coordinate="z").isnull().all()
    assert ds["w"].sel(rule="double").notnull().all()
    assert ds["grown"].dtype == bool


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_runs_that_do_not_divide_by_the_devices(n):
    ds = sweep.run(Quadratic, {"rate": np.linspace(0.1, 0.5, n), "start": [1]}, steps=2)
    np.testing.assert_allclose(
        ds["final"].squeeze(), (1 - np.linspace(0.1, 0.5, n)) ** 2, rtol=1e-5
    )


def test_one_compilation_per_static_combination():
    made = {}

    def make(rule):
        made[rule] = Quadratic(rule)
        return made[rule]

    sweep.run(
        make,
        {"rule": ["plain", "double"], "rate": np.linspace(0.1, 1, 9), "start": [1, 2]},
        steps=4,
    )
    assert {rule: run.inits for rule, run in made.items()} == {"plain": 1, "double": 1}


def test_no_compilation_per_chunk():
    class Counted(Quadratic):
        advances = 0

        def advance(self, state, records):
            Counted.advances += 1
            return super().advance(state, records)

    sweep.run(Counted, {"rate": [0.1], "start": [1]}, steps=100, chunk=5)
    assert Counted.advances == 1


@pytest.mark.parametrize("executor", sweep.EXECUTORS)
def test_the_same_sweep_twice_is_bitwise_equal(executor):
    one, two = (sweep.run(Quadratic, GRID, steps=20, executor=executor) for _ in range(2))
    assert one.identical(two)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("executor", sweep.EXECUTORS)
def test_the_executor_is_the_one_that_was_asked_for(executor, devices, monkeypatch):
    """Map takes one run after the other, vmap all of a device's share; on as many as were asked."""
    shares, meshes = [], []

    class Seen(Quadratic):
        def init(self, point):
            state = super().init(point)
            shares.append(jax.typeof(state["rate"]).shape)
            return state

    def lax_map(f, xs):
        shares.append("one by one")
        return jax.lax.scan(lambda _, x: (None, f(x)), None, xs)[1]

    place = sweep._Placement.__call__
    monkeypatch.setattr(jax.lax, "map", lax_map)
    monkeypatch.setattr(
        sweep._Placement,
        "__call__",
        lambda self, f: meshes.append(self.mesh.size) or place(self, f),
    )
    grid = {"rate": [0.1, 0.2, 0.3, 0.4], "start": [1]}
    sweep.run(Seen, grid, steps=2, executor=executor, devices=jax.devices()[:devices])
    assert ("one by one" in shares) == (executor == "map")
    assert set(meshes) == {devices}


def test_executors_agree():
    one, two = (sweep.run(Quadratic, GRID, steps=20, executor=e) for e in sweep.EXECUTORS)
    np.testing.assert_allclose(one["w"], two["w"], rtol=1e-5)
    assert one.attrs == {"executor": "map", "devices": 2, "chunk": 2}


def test_stride_sets_the_step_coordinate():
    ds = sweep.run(lambda: Quadratic(stride=5), {"rate": [0.1], "start": [1]}, steps=20, chunk=10)
    assert list(ds["step"].values) == [0, 5, 10, 15]
    w = ds["w"].sel(coordinate="x").squeeze()
    np.testing.assert_allclose(w, 0.9 ** np.arange(0, 20, 5), rtol=1e-5)


def test_progress_reaches_the_end_in_steps():
    seen = []
    sweep.run(Quadratic, GRID, steps=10, chunk=4, progress=lambda *at: seen.append(at))
    assert seen == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]


def test_a_run_that_diverges_leaves_the_others_alone():
    rates = [0.1, 1e30, 0.5]
    ds = sweep.run(Quadratic, {"rate": rates, "start": [1]}, steps=8, executor="vmap")
    assert not np.isfinite(ds["final"].sel(rate=1e30)).any()
    np.testing.assert_allclose(ds["final"].isel(rate=[0, 2]).squeeze(), [0.9**8, 0.5**8], rtol=1e-5)


BAD = {
    "empty axis": ({"rate": []}, {}, r"axis 'rate' must be a list"),
    "nested axis": ({"rate": [[0.1]]}, {}, r"axis 'rate' must be a list"),
    "repeat": ({"rate": [0.1, 0.1]}, {}, "axis 'rate' repeats a value"),
    "objects": ({"rate": [None]}, {}, "axis 'rate' must be a list of numbers or of strings"),
    "mixed": ({"rule": ["plain", 0.1]}, {}, "axis 'rule' must be a list of numbers or of strings"),
    "same in float32": ({"rate": [0.1, 0.1 + 1e-12]}, {}, r"repeats a value \(as float32\)"),
    "too long for int32": ({"start": [0, 2**32]}, {}, "values that int32 cannot hold"),
    "nan": ({"rate": [float("nan")]}, {}, "values that float32 cannot hold"),
    "no numbers": ({"rule": ["plain"]}, {}, "the grid needs an axis of numbers, it has rule"),
    "taken": ({"rate": [0.1], "step": [1]}, {}, "the name 'step' is taken"),
    "executor": (GRID, {"executor": "pmap"}, "unknown executor 'pmap'; choose one of map, vmap"),
    "steps": (GRID, {"steps": 0}, "steps must be a positive multiple of the stride 1, got 0"),
    "chunk": (GRID, {"chunk": -1}, "chunk must be a positive multiple of the stride 1, got -1"),
}


@pytest.mark.parametrize(("grid", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(grid, options, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(Quadratic, grid, **{"steps": 4, **options})


def test_make_must_make():
    # in these tests the types are checked first
    with pytest.raises((ValueError, TypeError), match="make"):
        sweep.run(Quadratic(), GRID, steps=2)


def test_steps_must_fit_the_stride():
    with pytest.raises(ValueError, match="multiple of the stride 3, got 4"):
        sweep.run(lambda: Quadratic(stride=3), {"rate": [0.1], "start": [1]}, steps=4)
