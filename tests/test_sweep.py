"""The sweep on a three-line quadratic: it knows nothing of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import sweep
from bnrate.sweep import execution, grids, programs, runs, tuning

GRID = {"rule": ["plain", "double"], "rate": [0.1, 0.5, 1.9], "start": [1, 2]}


class Quadratic:
    """w <- w - k rate w; traces w per coordinate, one more coordinate for the rule "double"."""

    def __init__(self, rule="plain", stride=1):
        self.k = {"plain": 1.0, "double": 2.0}[rule]
        self.stride = stride
        self.names = ("x", "y") if rule == "plain" else ("y", "z", "x")
        self.dims = {"loss": (), "w": ("coordinate",)}
        self.coords = {"coordinate": self.names}

    def init(self, point):
        return {
            "w": jnp.full(len(self.names), point["start"].astype(jnp.float32)),
            "rate": point["rate"],
        }

    def advance(self, state):
        def once(_, w):
            return w - self.k * state["rate"] * w

        record = {"loss": jnp.sum(state["w"] ** 2), "w": state["w"]}
        return {**state, "w": jax.lax.fori_loop(0, self.stride, once, state["w"])}, record

    def alive(self, state):
        return jnp.all(jnp.isfinite(state["w"]))

    def finish(self, state):
        return {"final": state["w"][0], "grown": state["w"][0] > 1}


def by_hand(rule, rate, start, t):
    return start * (1 - {"plain": 1, "double": 2}[rule] * rate) ** t


WAYS = {
    "map": {"executor": "map"},
    "two at a time": {"executor": "map", "width": 2},
    "vmap": {"executor": "vmap"},
    "auto": {"executor": "auto"},
}


def work_of(grid, devices):
    """What there is to execute of the plain quadratic."""
    points = grids.read(grid).points
    return tuning.Work(runs.trace(Quadratic(), points), points, jax.devices()[:devices], 10, 100)


each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@each_way
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7])
def test_every_point_of_the_grid_is_run(way, devices, chunk):
    ds = sweep.run(Quadratic, GRID, steps=7, chunk=chunk, devices=jax.devices()[:devices], **way)
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


@pytest.fixture
def compilations(monkeypatch):
    """The programs that are compiled, by what they do."""
    seen = []
    compiled = programs.compiled_advance
    monkeypatch.setattr(
        programs, "compiled_advance", lambda *args: seen.append(args[2]) or compiled(*args)
    )
    return seen


@pytest.mark.parametrize("way", [WAYS["map"], WAYS["vmap"]], ids=["map", "vmap"])
def test_one_compilation_per_static_combination(way, compilations):
    grid = {"rule": ["plain", "double"], "rate": np.linspace(0.1, 1, 9), "start": [1, 2]}
    sweep.run(Quadratic, grid, steps=40, chunk=7, **way)
    assert len(compilations) == 2


def test_no_trace_per_rate_or_chunk():
    class Counted(Quadratic):
        advances = 0

        def advance(self, state):
            Counted.advances += 1
            return super().advance(state)

    counts = []
    for rates, chunk in (([0.1], 100), (np.linspace(0.1, 1, 9), 3)):
        Counted.advances = 0
        grid = {"rate": rates, "start": [1]}
        sweep.run(Counted, grid, steps=100, chunk=chunk, executor="map")
        counts.append(Counted.advances)
    assert counts[0] == counts[1]


@each_way
def test_the_same_sweep_twice_is_bitwise_equal(way):
    one, two = (sweep.run(Quadratic, GRID, steps=20, **way) for _ in range(2))
    assert one.identical(two)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_runs_are_taken_as_asked_for(width, devices):
    """So many at a time, on as many devices; in a batch of one there is no axis for the batch."""
    grid = {"rate": [0.1, 0.2, 0.3, 0.4], "start": [1]}
    work = work_of(grid, devices)
    width = min(width, work.share)
    chosen = tuning.compiled(work, programs.Way(width))
    assert chosen.place.mesh.size == devices
    assert (f"= f32[{width},2]{{1,0}} multiply" in chosen.advance.as_text()) == (width > 1)


def test_executors_agree():
    executed = [sweep.run(Quadratic, GRID, steps=20, **way) for way in WAYS.values()]
    for one in executed[1:]:
        np.testing.assert_allclose(one["w"], executed[0]["w"], rtol=1e-5)
    asked = {"executor": "map", "width": 2, "devices": 2, "chunk": 2}
    assert asked.items() <= executed[1].attrs.items()
    assert executed[1].attrs["executed"] == ["2 at a time: as asked for"]
    assert "one at a time" in executed[3].attrs["executed"][0]


def test_stride_sets_the_step_coordinate():
    ds = sweep.run(lambda: Quadratic(stride=5), {"rate": [0.1], "start": [1]}, steps=20, chunk=10)
    assert list(ds["step"].values) == [0, 5, 10, 15]
    w = ds["w"].sel(coordinate="x").squeeze()
    np.testing.assert_allclose(w, 0.9 ** np.arange(0, 20, 5), rtol=1e-5)


def test_callbacks_are_told_of_every_chunk():
    seen = []

    class Listener:
        def on_start(self, progress):
            seen.append(("start", progress.done))

        def on_chunk(self, progress):
            records = slice(progress.steps[0], progress.steps[-1] + 1)
            seen.append((progress.combination["rule"], progress.done, progress.total))
            traces.append((progress.combination["rule"], records, progress.trace["loss"]))
            assert progress.eta >= 0
            assert progress.points["rate"].tolist() == list(np.repeat(GRID["rate"], 2))

        def on_end(self, ds):
            seen.append(("end", ds))

    traces = []
    ds = sweep.run(Quadratic, GRID, steps=10, chunk=4, callbacks=[Listener()])
    plain = [("plain", 4, 20), ("plain", 8, 20), ("plain", 10, 20)]
    double = [("double", 14, 20), ("double", 18, 20), ("double", 20, 20)]
    assert seen[:-1] == [("start", 0), *plain, *double]
    assert seen[-1][1] is ds
    for rule, records, loss in traces:
        np.testing.assert_array_equal(
            ds["loss"].sel(rule=rule).values.reshape(6, 10)[:, records], loss
        )


HALF = {"rate": [1e30, 0.1, 1e29, 0.5, 1e28, 1e27, 0.2, 1e26], "start": [1]}


@each_way
@pytest.mark.parametrize("devices", [1, 2])
def test_diverged_runs_leave_the_others_alone(way, devices):
    ds = sweep.run(Quadratic, HALF, steps=12, chunk=3, devices=jax.devices()[:devices], **way)
    ds = ds.squeeze("start")
    fine = np.array(HALF["rate"]) < 1
    np.testing.assert_array_equal(ds["status"] == "finished", fine)
    np.testing.assert_array_equal(ds["status"] == "diverged", ~fine)
    w = (1 - ds["rate"].values[fine, None]) ** np.arange(12)
    np.testing.assert_allclose(ds["w"].sel(coordinate="x")[fine], w, rtol=1e-4)
    # what a run records after it has diverged is blank, whoever shares its batch
    lost = ds["loss"].values[~fine]
    assert np.isfinite(lost[:, 0]).all()
    assert np.isnan(lost[:, 3:]).all()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_diverged_runs_cost_nothing(width, monkeypatch, compilations):
    """After the first chunk the 3 runs of 8 that go on are all that is computed."""
    taken = []
    compacted = execution._compacted

    def seen(run, place, state, rows, going):
        state, rows, going = compacted(run, place, state, rows, going)
        last = int(np.flatnonzero(going).max())
        taken.append((place.width, last // place.width + 1))
        return state, rows, going

    monkeypatch.setattr(execution, "_compacted", seen)
    one = jax.devices()[:1]
    sweep.run(Quadratic, HALF, steps=9, chunk=3, devices=one, executor="map", width=width)
    assert taken[0] == (width, 8 // width)
    narrow, batches = taken[1]
    assert narrow * batches in (3, 4)
    assert taken[2] == taken[1]
    assert len(compilations) == (1 if width < 8 else 2)


@pytest.mark.parametrize("way", [WAYS["map"], WAYS["two at a time"], WAYS["vmap"]])
def test_no_runs_end_depends_on_its_neighbours(way):
    """A run that has diverged, or was stopped, keeps its state, whoever shares its batch."""

    class Counted(Quadratic):
        def init(self, point):
            return {**super().init(point), "steps": 0, "key": jax.random.key(1)}

        def finish(self, state):
            return {"steps": state["steps"]}

        def advance(self, state):
            after, record = super().advance(state)
            return {**after, "steps": state["steps"] + 1}, record

    def stop(steps, trace):
        return np.arange(8) == 1

    ds = sweep.run(Counted, HALF, steps=12, chunk=3, stop=stop, **way).squeeze()
    assert ds["steps"].values.tolist() == [2, 3, 2, 12, 2, 2, 12, 2]
    assert ds["status"].values.tolist()[:2] == ["diverged", "stopped"]


def test_stopped_runs_are_recorded_and_not_computed():
    def stop(steps, trace):
        assert trace["loss"].shape == (3, len(steps))
        return trace["loss"][:, -1] > 0.5

    grid = {"rate": [0.01, 0.9, 0.5], "start": [1]}
    ds = sweep.run(Quadratic, grid, steps=8, chunk=2, stop=stop).squeeze("start")
    assert ds["status"].values.tolist() == ["stopped", "finished", "finished"]
    assert ds["stopped_at"].values.tolist() == [2, -1, -1]
    assert ds["loss"].notnull().sum("step").values.tolist() == [2, 8, 8]
    ds = sweep.run(Quadratic, grid, steps=8, chunk=2)
    assert "stopped_at" not in ds
    assert set(ds["status"].values.ravel()) == {"finished"}


def test_hopeless_runs_are_those_far_behind_the_best():
    stop = sweep.Hopeless(factor=4.0, after=10, window=2)
    loss = np.array([[9.0, 1.0, 1.0], [0.0, 5.0, 5.0], [0.0, 3.0, 3.0], [1.0, 1.0, np.nan]])
    early, late = np.arange(3), 10 * np.arange(3)
    assert stop(early, {"loss": loss}).tolist() == [False] * 4
    assert stop(late, {"loss": loss}).tolist() == [False, True, False, False]
    assert not stop(late, {"loss": np.full((2, 3), np.nan)}).any()
    with pytest.raises(ValueError, match="no scalar 'loss' is recorded; there are w"):
        stop(late, {"w": loss, "v": loss[..., None]})
    bad = [({"factor": 1.0}, "above 1, got 1"), ({"after": -1}, "after must be at least 0, got -1"),
           ({"window": 0}, "window must be at least 1, got 0")]  # fmt: skip
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            sweep.Hopeless(**{"factor": 2.0, "after": 0, **change})


def test_which_rule_stops_is_part_of_the_identity():
    def attrs(stop):
        return sweep.run(Quadratic, GRID, steps=2, stop=stop).attrs["identity"]

    rules = [
        None,
        *(sweep.Hopeless(factor=f, after=0) for f in (2.0, 3.0)),
        lambda s, t: t["loss"][:, 0] < 0,
    ]
    assert len({attrs(stop) for stop in rules}) == 4


def test_what_stop_returns_is_checked():
    with pytest.raises(ValueError, match="`stop` must return a boolean for each of the 3 runs"):
        sweep.run(Quadratic, {**GRID, "start": [1]}, steps=2, stop=lambda steps, trace: np.zeros(3))


def test_zipped_axes_share_a_dimension():
    trials = {"rate": [0.1, 0.5, 0.1], "start": [1, 1, 2]}
    ds = sweep.run(Quadratic, {"trial": trials, "rule": ["plain"]}, steps=3)
    assert ds["final"].dims == ("trial", "rule")
    assert ds["rate"].dims == ds["start"].dims == ("trial",)
    np.testing.assert_allclose(ds["final"].squeeze(), [0.9**3, 0.5**3, 2 * 0.9**3], rtol=1e-5)


def test_labels_and_attributes_are_kept():
    ds = sweep.run(
        Quadratic,
        GRID,
        steps=2,
        config={"data": "mine"},
        labels={"title": ("rule", ["Plain", "Double"]), "half": ("start", np.int64([0, 1]))},
        attrs={"experiment": "test"},
    )
    assert ds["title"].sel(rule="double") == "Double"
    assert ds.attrs["experiment"] == "test"
    assert ds.attrs["config"] == '{"data": "mine"}'
    assert ds["half"].dtype == int
    with pytest.raises(ValueError, match=r"`attrs` cannot be written as JSON: .*, of type set"):
        sweep.run(Quadratic, GRID, steps=2, attrs={"a": {1}})
    assert {"jax", "device", "git", "command"} <= set(ds.attrs)


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
    "executor": (
        GRID,
        {"executor": "pmap"},
        "unknown executor 'pmap'; choose one of auto, map, vmap",
    ),
    "steps": (GRID, {"steps": 0}, "steps must be a positive multiple of the stride 1, got 0"),
    "scalar": ({"rate": [0.1], "seed": 0}, {}, "axis 'seed' must be a list of numbers or of"),
    "resume": (
        GRID,
        {"resume": "anyways"},
        "resume must be True, False or 'anyway', got 'anyways'",
    ),
    "stop": (GRID, {"stop": sweep.Hopeless}, "stop must be a function of steps and records"),
    "labels": (GRID, {"labels": {"a": ("rule", [1])}}, "do not make a Dataset"),
    "chunk": (GRID, {"chunk": -1}, "chunk must be a positive multiple of the stride 1, got -1"),
    "width": (GRID, {"executor": "map", "width": 0}, "width must be at least 1 run, got 0"),
    "measured": (GRID, {"width": 2}, "the width is measured with executor 'auto'"),
    "devices": ({"rate": [0.1], "start": [1]}, {"devices": 2}, "1 runs need 1 to 1 devices, got 2"),
    "shard": (GRID, {"shard": (2, 2), "out": "x"}, "shard i/n must have 0 <= i < n, got 2/2"),
    "shards": (GRID, {"shard": (0, 7), "out": "x"}, "6 runs cannot be split into 7 parts"),
    "no folder": (GRID, {"shard": (0, 2)}, "through a folder: give `out`"),
    "callback": (GRID, {"callbacks": [print]}, "a callback must have on_start"),
}


@pytest.mark.parametrize(("grid", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(grid, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "devices" in options:
        options = {"devices": jax.devices()[: options["devices"]]}
    with pytest.raises(ValueError, match=message):
        sweep.run(Quadratic, grid, **{"steps": 4, **options})


def broken(**methods):
    """A class of runs with some methods replaced."""
    return type("Broken", (Quadratic,), methods)


COUNTER = iter(range(1000))
BROKEN = {
    "record": (broken(advance=lambda self, s: (s, s["w"])), "`advance` must return a dict"),
    "keys": (broken(finish=lambda self, s: {"a": jax.random.key(0)}), "numeric arrays; 'a' is"),
    "shapes": (
        broken(advance=lambda self, s: ({**s, "w": s["w"][:1]}, {})),
        r"state\['w'\] was float32\[2\] and became float32\[1\]",
    ),
    "structure": (broken(advance=lambda self, s: ({}, {})), "keep the structure of the state"),
    "alive": (broken(alive=lambda self, s: s["w"] > 0), "`alive` must return one boolean"),
    "impure": (
        broken(advance=lambda self, s: ({**s, "w": s["w"] * next(COUNTER)}, {})),
        "`advance` is not pure: traced twice it gives two programs",
    ),
    "impure data": (
        broken(
            finish=lambda self, s: {"a": s["w"] @ np.random.default_rng().random(2, np.float32)}
        ),
        "`finish` is not pure",
    ),
    "complex": (
        broken(finish=lambda self, s: {"a": jax.lax.complex(s["w"], s["w"])}),
        "'a' of `finish` is complex",
    ),
    "slash": (
        broken(finish=lambda self, s: {"a/b": s["w"]}),
        r"by names without /\*\?\[\], got 'a/b'",
    ),
    "an axis": (broken(finish=lambda self, s: {"rate": s["rate"]}), "do not make a Dataset"),
    "step": (broken(finish=lambda self, s: {"step": s["rate"]}), "do not make a Dataset"),
    "stride": (lambda: Quadratic(stride=0), "the runs' stride must be at least 1 step, got 0"),
    "dims": (broken(dims_={"w": ("a", "b")}), "'w' has shape"),
    "entries": (broken(coords_={"coordinate": ("x",)}), "'w' has 2 entries along 'coordinate'"),
    "twice": (broken(finish=lambda self, s: {"loss": s["rate"]}), "gives 'loss' twice"),
    "taken": (broken(finish=lambda self, s: {"status": s["rate"]}), "gives 'status' twice"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_a_run_that_is_none_is_refused_before_any_work(make, message):
    def made():
        one = make()
        for name in ("dims", "coords"):
            vars(one).update({name: getattr(one, f"{name}_")} if hasattr(one, f"{name}_") else {})
        return one

    with pytest.raises(ValueError, match=message):
        sweep.run(made, {"rate": [0.1], "start": [1]}, steps=2)


def test_the_identity_holds_the_data_however_deep_and_what_ends_a_run():
    def run(data, limit):
        @jax.jit
        def shifted(w):
            return w + jnp.asarray(data)

        def advance(self, state):
            return {**state, "w": jax.jit(lambda w: shifted(w) * 1)(state["w"])}, {}

        return broken(advance=advance, alive=lambda self, s: s["w"][0] < limit)()

    def fingerprint(*args):
        return runs.trace(run(*args), grids.read(GRID | {"rule": ["plain"]}).points).fingerprint

    one, two = np.float32([1, 2]), np.float32([1, 3])
    assert fingerprint(one, 5.0) == fingerprint(one.copy(), 5.0)
    assert len({fingerprint(one, 5.0), fingerprint(two, 5.0), fingerprint(one, 6.0)}) == 3


def test_too_little_memory_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr(programs, "free_bytes", lambda device: 100)
    for way in WAYS.values():
        with pytest.raises(ValueError, match=r"GiB on each device, and 0\.00 GiB are free"):
            sweep.run(Quadratic, GRID, steps=2, **way)


def test_vmap_takes_as_many_as_fit(monkeypatch, compilations):
    one = jax.devices()[:1]
    sweep.run(Quadratic, HALF, steps=100, executor="vmap", devices=one)
    assert [way.width for way in compilations[:1]] == [8]
    work = work_of(HALF, 1)
    all_eight = programs.needed_bytes(tuning.compiled(work, programs.Way(8)).advance)
    monkeypatch.setattr(programs, "free_bytes", lambda device: all_eight - 1)
    assert tuning.widest(work).way.width < 8


def test_make_must_make():
    # in these tests the types are checked first
    with pytest.raises((ValueError, TypeError), match="make"):
        sweep.run(Quadratic(), GRID, steps=2)


def test_steps_must_fit_the_stride():
    with pytest.raises(ValueError, match="multiple of the stride 3, got 4"):
        sweep.run(lambda: Quadratic(stride=3), {"rate": [0.1], "start": [1]}, steps=4)
