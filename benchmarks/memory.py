"""How much memory a sweep needs above its data; a JSON line for each case and way.

python benchmarks/memory.py --cases convnet:64:32:1 --ways sweep-auto loop

`peak_mib` is the highest resident memory of a process in its first turn, which compiles, and the
next ones, minus what it had before: the data, and all that a sweep of a tiny network leaves behind
(packages, the compiler, threads).  `warm_peak_mib` is that of a second process, which finds the
compiled programs on disk.  `compiler_mib` is what one run at a
time and all together need on one device, by the compiler's account.
"""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from problems import problem, rates
from workers import Case, Job, Worker, in_turns, parser, report

from bnrate.sweep import programs, runs

CASES = ("convnet:64:32:1", "convnet:64:128:1", "mlp:64:128:20", "vgg8:64:32:1")
TINY = Case("tiny", 4, 8, 1)
WAYS = ("sweep-auto", "sweep-map", "loop", "torch")
# MiB at most, of `peak_mib`.
WANTED = {("convnet", "sweep-auto"): 300, ("convnet", "sweep-map"): 300}


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES, repeats=1)
    flags.add_argument("--ways", nargs="+", default=WAYS)
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        report("memory", measured(case, options.ways, options.repeats))


def measured(case: Case, ways: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    """A line for each way, and one of the compiler."""
    account = {f"compiler_mib_{width}": needed(case, width) for width in (1, case.runs)}
    yield case._asdict() | {"way": "compiler"} | account
    for way in ways:
        line = case._asdict() | {"way": way}
        try:
            with tempfile.TemporaryDirectory() as cache:
                cold, warm = (peak(Job(way, case, cache=cache), repeats) for _ in range(2))
        except ModuleNotFoundError as error:
            yield line | {"skipped": str(error)}
            continue
        line |= {"peak_mib": round(cold), "warm_peak_mib": round(warm)}
        wanted = WANTED.get((case.problem, way))
        yield line | ({} if wanted is None else {"wanted": wanted, "met": cold <= wanted})


def peak(job: Job, repeats: int) -> float:
    """Of a new process."""
    worker = Worker(job)
    try:
        worker.losses(1, TINY).result()
        _, turns = in_turns({job.way: [worker]}, repeats)
        return max(turn.peak for turn in turns[job.way])
    finally:
        worker.close()


def needed(case: Case, width: int) -> float:
    """MiB of all runs on one device, so many at a time; nothing is computed."""
    points = {"rate": rates(case.runs), "seed": np.zeros(case.runs, np.int32)}
    traced = runs.trace(problem(case.problem, case.batch).run(stride=1), points)
    place = programs.layout(case.runs, width, jax.devices()[:1])
    advance = programs.compiled_advance(traced, place, programs.Way(width), case.steps)
    return round(programs.needed_bytes(advance) / 2**20)


if __name__ == "__main__":
    main()
