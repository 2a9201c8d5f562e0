"""Each benchmark at a size of seconds; the ways of training agree, and a wrong one is caught."""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
DISTINCT = ("loop", "vmap", "sweep-map", "hyperoptax-all", "torch-channels-last", "torch-vmap")
CASE = ("--cases", "tiny:2:8:2", "--repeats", "1")


@pytest.fixture
def benchmarks(monkeypatch):
    """The modules of the folder, which are scripts; strictness is for the package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import overhead
    import problems
    import recording
    import speed
    import table
    import ways
    import workers

    modules = (overhead, problems, recording, speed, table, ways, workers)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield {module.__name__: module for module in modules}


def lines(script, *arguments):
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def installed(way):
    package = way.split("-")[0]
    return package not in ("torch", "hyperoptax") or importlib.util.find_spec(package) is not None


def trained(benchmarks, way, steps, rates):
    problem = benchmarks["problems"].problem("tiny", 8)
    training = benchmarks["ways"].find(way)(problem, rates, steps, steps)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def test_operations_of_the_mlp(benchmarks):
    assert benchmarks["problems"].problem("mlp", 128).flops == 60_686_336


def test_vgg_is_that_of_the_package(benchmarks):
    from bnrate import models

    ours = benchmarks["problems"].Network(benchmarks["problems"].SHAPES["vgg8"])
    theirs = models.VGG(10, 8, models.BatchNorm)
    x = jax.numpy.zeros((4, 32, 32, 3))
    shapes = [
        jax.eval_shape(lambda net=net: net.init(jax.random.key(0), x, train=True))
        for net in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_ways_agree(benchmarks):
    rates = benchmarks["problems"].rates(3)
    losses = {way: trained(benchmarks, way, 3, rates) for way in DISTINCT if installed(way)}
    for way, values in losses.items():
        benchmarks["workers"].assert_agree(values, losses["loop"], way)
    wrong = trained(benchmarks, "loop", 3, 1.1 * rates)
    with pytest.raises(AssertionError, match="the wrong one"):
        benchmarks["workers"].assert_agree(wrong, losses["loop"], "the wrong one")


@pytest.mark.slow
def test_a_way_whose_package_is_missing_is_skipped(benchmarks):
    class Missing:
        def losses(self):
            return self

        def result(self):
            raise ModuleNotFoundError("No module named 'torch'")

    class There(Missing):
        def result(self):
            return np.zeros(2)

    workers = {"sweep-auto": There(), "torch": Missing()}
    assert benchmarks["speed"].agreed(workers) == {"torch": "No module named 'torch'"}


@pytest.mark.slow
def test_speed():
    found = lines("speed", *CASE, "--ways", "loop")
    assert [line["way"] for line in found] == ["sweep-auto", "loop"]
    assert all(line["run_steps_per_s"] > 0 and line["of_dot"] > 0 for line in found)


def test_what_is_recorded_if_asked(benchmarks):
    problem = benchmarks["problems"].problem("tiny", 8)
    groups = {"layer0/kernel", "layer1/kernel", "norm0/bias+norm0/scale"}
    assert set(problem.run(1, measured=True).coords["group"]) == groups
    assert problem.run(1).coords["group"] == ()


class Timed:
    """A worker that takes 2 seconds a turn, and 2.3 if it records."""

    def __init__(self, job):
        self.measured = job.options["measured"]

    def done(self, value=None):
        return types.SimpleNamespace(result=lambda: value)

    def losses(self):
        return self.done(np.ones(2))

    def begin(self, turns):
        return self.done()

    def turn(self):
        return self.done(types.SimpleNamespace(seconds=2.3 if self.measured else 2.0))

    def close(self):
        pass


def test_the_cost_of_recording(benchmarks, monkeypatch):
    recording, case = benchmarks["recording"], benchmarks["workers"].Case("tiny", 2, 8, 10)
    monkeypatch.setattr(recording, "Worker", Timed)
    (every,) = recording.measured(case, 1, repeats=3)
    (tenth,) = recording.measured(case, 10, repeats=3)
    assert (every["cost"], tenth["cost"], tenth["met"]) == (0.15, 0.15, False)
    monkeypatch.setattr(Timed, "losses", lambda self: self.done(np.ones(2) + self.measured))
    with pytest.raises(AssertionError, match="what is recorded"):
        next(recording.measured(case, 1, repeats=3))


@pytest.mark.slow
def test_recording():
    found = lines("recording", *CASE, "--strides", "1", "2")
    assert [line["stride"] for line in found] == [1, 2]


def test_the_cost_of_a_rule(benchmarks, monkeypatch):
    """Of 2 seconds for plain SGD and 2.3 with a rule, and of a loss that is not finite."""
    overhead, case = benchmarks["overhead"], benchmarks["workers"].Case("tiny", 1, 8, 10)
    monkeypatch.setattr(overhead, "program", lambda case, rule: lambda: (1.0, rule))
    monkeypatch.setattr(
        overhead, "in_turns", lambda programs, n: {p: [2.0 + 0.3 * (p != "sgd")] for p in programs}
    )
    sgd, projected, adam = overhead.measured(case, ["projected", "adam"], 1)
    assert (sgd["cost"], projected["cost"], projected["met"]) == (0.0, 0.15, False)
    assert "met" not in adam
    assert adam["step"] == pytest.approx(0.23)
    monkeypatch.setattr(overhead, "program", lambda case, rule: lambda: (np.nan, rule))
    with pytest.raises(AssertionError, match="nan"):
        next(overhead.measured(case, ["adam"], 1))


@pytest.mark.slow
def test_overhead():
    arguments = ("--cases", "tiny:1:8:2", "--repeats", "1", "--rules", "projected", "auto")
    assert [line["rule"] for line in lines("overhead", *arguments)] == ["sgd", "projected", "auto"]


@pytest.mark.slow
def test_memory():
    compiler, loop = lines("memory", *CASE, "--ways", "loop")
    assert compiler["way"] == "compiler"
    assert loop["peak_mib"] > 0


@pytest.mark.slow
def test_compiling():
    cold, warm = lines("compiling", *CASE, "--ways", "sweep-map")
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    assert warm["compile_seconds"] < cold["compile_seconds"]


@pytest.mark.slow
def test_scaling():
    found = lines("scaling", *CASE, "--along", "processes", "--numbers", "2")
    assert [(line["along"], line["number"]) for line in found] == [("processes", 2)]
    assert all(line["ms_per_run_step"] > 0 for line in found)


def test_tables(benchmarks):
    told = [
        {"benchmark": "speed", "problem": "mlp", "way": "loop", "faster": 2.5, "met": True},
        {"benchmark": "speed", "problem": "mlp", "way": "torch", "skipped": "missing"},
        {"benchmark": "memory", "problem": "mlp", "way": "loop", "cpus": 2},
    ]
    text = benchmarks["table"].tables(told)
    assert "## speed, mlp" in text
    assert "| way | faster | met | skipped |" in text
    assert "| loop | 2.5 | yes |  |" in text
    assert text.endswith("cpus 2")
