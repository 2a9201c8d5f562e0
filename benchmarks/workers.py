"""A way of training in a process of its own, told from outside when to go on.

Ways that take turns so are timed under the same weather, and none of them meets another's threads.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnrate import sweep
from bnrate.sweep import caching

# A sweep is told that it will last so many times longer, or `auto` would find it too short to
# measure what is fastest.
LONGER = 100
PACKAGES = ("jax", "jaxlib", "flax", "bnrate", "torch", "hyperoptax")


class Case(NamedTuple):
    """Which of `problems.SHAPES`, how many runs, examples in a batch, and steps in a turn."""

    problem: str
    runs: int
    batch: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """From `problem:runs:batch:steps`."""
        name, *numbers = text.split(":")
        return cls(name, *map(int, numbers))


class Job(NamedTuple):
    """What a process does.

    Attributes:
      way: one of `ways`.
      case: what is trained.
      devices: that JAX sees; 0 for one for each core if the way is a sweep, and one if not.
      cache: a folder for compiled programs and what `auto` has measured; "" starts without.
      dot: whether the product of two matrices is timed before each turn.
      options: more arguments of the way.
    """

    way: str
    case: Case
    devices: int = 0
    cache: str = ""
    dot: bool = False
    options: Mapping[str, Any] = {}


class Turn(NamedTuple):
    """What it took to go on by a number of steps.

    Attributes:
      run_steps: runs times steps.
      seconds: on the wall.
      cpu: seconds of all cores.
      peak: memory of the process so far above that with the data, MiB.
      dot: GFLOP/s of the product of two matrices just before.
      compiling: seconds by what JAX reports: tracing, lowering, compiling, reading the cache.
    """

    run_steps: int
    seconds: float
    cpu: float
    peak: float
    dot: float
    compiling: dict[str, float]

    @property
    def speed(self) -> float:
        """Run-steps per second."""
        return self.run_steps / self.seconds


class Worker:
    """A process with a job; each method returns the future of what it does there."""

    def __init__(self, job: Job):
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _set_up, (job,))

    def losses(self, steps: int = 2, case: Case | None = None) -> "Future[np.ndarray]":
        """Train for as many steps (another case, if given); each run's loss at the last one.

        The second loss depends on a gradient and an update.  In a deep network the third depends
        also on which ReLUs rounding has turned on or off, so it is no good to compare ways with.
        """
        return self._pool.submit(_losses, steps, case)

    def begin(self, turns: int) -> "Future[None]":
        """Be ready to train for so many turns."""
        return self._pool.submit(_begin, turns)

    def turn(self) -> "Future[Turn]":
        """Take one; the first compiles."""
        return self._pool.submit(_turn)

    def ways(self) -> "Future[list[Any]]":
        """What `auto` has measured to be the fastest, if it has."""
        return self._pool.submit(_ways)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenProcessPool):  # its end is told where it was awaited
            self._pool.submit(_end)
        self._pool.shutdown()


def in_turns(
    teams: Mapping[Any, Sequence[Worker]], repeats: int
) -> tuple[dict[Any, Turn], dict[Any, list[Turn]]]:
    """The first turn of each team, which compiles, and the next ones; one works, all others wait.

    The workers of a team work at the same time, and the slowest counts.
    """

    def turn(team: Sequence[Worker]) -> Turn:
        futures = [worker.turn() for worker in team]
        return max((future.result() for future in futures), key=lambda turn: turn.seconds)

    first, turns = {}, {name: [] for name in teams}
    for name, team in teams.items():
        for worker in team:
            worker.begin(1 + repeats).result()
        first[name] = turn(team)
    for _ in range(repeats):
        for name, team in teams.items():
            turns[name].append(turn(team))
    return first, turns


def assert_agree(losses: np.ndarray, wanted: np.ndarray, who: str) -> None:
    """Assert that two ways have trained the same runs."""
    np.testing.assert_allclose(losses, wanted, rtol=3e-4, err_msg=who)


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--cases", nargs="+", help="problem:runs:batch:steps of a turn")
    flags.add_argument("--repeats", type=int, default=5, help="turns, of which the median is told")
    flags.set_defaults(**defaults)
    return flags


def report(benchmark: str, lines: Iterable[dict[str, Any]]) -> None:
    """Print lines as they come, each with the machine and the versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for line in lines:
        rest = {"cpus": os.cpu_count(), "versions": versions}
        print(json.dumps({"benchmark": benchmark, **line, **rest}), flush=True)


# What one process knows of its job.
_here: dict[str, Any] = {}


def _set_up(job: Job) -> None:
    cores = os.cpu_count() or 1
    devices = job.devices or (cores if job.way.startswith("sweep") else 1)
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", None)  # whatever the user's environment says
    _here["folder"] = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = job.cache or _here["folder"].name
    if job.cache:
        sweep.cache_compilations()
    _here["job"], _here["compiling"] = job, defaultdict(float)
    jax.monitoring.register_event_duration_secs_listener(_note)


def _way(case: Case) -> Any:
    import problems  # noqa: PLC0415 (JAX is configured by now)
    import ways  # noqa: PLC0415

    job = _here["job"]
    problem = problems.problem(case.problem, case.batch)
    way = functools.partial(ways.find(job.way), problem, problems.rates(case.runs))
    return functools.partial(way, **job.options)


def _losses(steps: int, case: Case | None = None) -> np.ndarray:
    # The last loss is there only if each step records.
    every = {"stride": 1} if _here["job"].way.startswith("sweep") else {}
    training = _way(case or _here["job"].case)(**every, steps=steps, chunk=steps)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def _begin(turns: int) -> None:
    job = _here["job"]
    turns *= LONGER if job.way.startswith("sweep") else 1
    _here["training"] = _way(job.case)(steps=turns * job.case.steps, chunk=job.case.steps)
    with contextlib.suppress(OSError):  # where this is forbidden, the highest ever counts
        Path("/proc/self/clear_refs").write_text("5")
    _here["data"] = _resident("VmRSS")


def _end() -> None:
    if "training" in _here:
        _here.pop("training").close()


def _ways() -> list[Any]:
    return list(caching.ways().values())


def _turn() -> Turn:
    job, compiling = _here["job"], _here["compiling"]
    dot = _dot() if job.dot else 0.0
    compiling.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    next(_here["training"])
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _resident("VmHWM") - _here["data"]
    return Turn(job.case.runs * job.case.steps, seconds, cpu, peak, dot, dict(compiling))


def _dot(n: int = 2048, times: int = 8) -> float:
    a = jnp.ones((n, n), jnp.float32)
    jax.block_until_ready(a @ a)
    start = time.perf_counter()
    jax.block_until_ready([a @ a for _ in range(times)])
    return times * 2 * n**3 / (time.perf_counter() - start) / 1e9


def _note(event: str, duration_secs: float, **_: Any) -> None:
    _here["compiling"][event.rsplit("/", 1)[1]] += duration_secs


def _resident(which: str) -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[which].split()[0]) / 1024
