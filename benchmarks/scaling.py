"""How the speed of a sweep grows with runs, devices and processes; a JSON line for each.

python benchmarks/scaling.py --along devices --cases mlp:64:128:20

`runs`: cost of one step of one run, for more and more runs; `devices`: host devices in one process;
`processes`: shards of one sweep, each with one device and the same folder for results.  All train
for two steps first, and their losses must agree.
"""

import tempfile
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
from workers import Case, Job, Worker, assert_agree, in_turns, parser, report

CASES = ("mlp:64:128:20", "convnet:64:32:1")
NUMBERS = {"runs": (1, 4, 16, 64, 256, 1024), "devices": (1, 2, 4), "processes": (1, 2)}
FLAT = 1.15  # dearest step of a run over the cheapest, from so many runs on
FLAT_FROM = 64


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES)
    flags.add_argument("--along", nargs="+", choices=NUMBERS, default=tuple(NUMBERS))
    flags.add_argument("--numbers", type=int, nargs="+", help="of runs, devices or processes")
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        for along in options.along:
            numbers = options.numbers or NUMBERS[along]
            report("scaling", measured(case, along, numbers, options.repeats))


def measured(
    case: Case, along: str, numbers: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """A line for each number."""
    with tempfile.TemporaryDirectory() as folder:
        teams = {n: [Worker(job) for job in jobs(case, along, n, folder)] for n in numbers}
        try:
            agreed(teams)
            _, turns = in_turns(teams, repeats)
        finally:
            for worker in (worker for team in teams.values() for worker in team):
                worker.close()
    cost = {n: median(1e3 / turn.speed for turn in turns[n]) for n in numbers}
    for n in numbers:
        gain = median(
            turn.speed / one.speed for turn, one in zip(turns[n], turns[numbers[0]], strict=True)
        )
        line = jobs(case, along, n, folder)[0].case._asdict() | {"along": along, "number": n}
        yield line | {"ms_per_run_step": round(cost[n], 4), "gain": round(gain, 3)}
    many = [cost[n] for n in numbers if n >= FLAT_FROM]
    if along == "runs" and many:
        ratio = round(max(many) / min(many), 3)
        line = case._asdict() | {"along": along, "number": f"{FLAT_FROM} and more"}
        yield line | {"dearest_over_cheapest": ratio, "wanted": FLAT, "met": ratio <= FLAT}


def jobs(case: Case, along: str, n: int, folder: str) -> list[Job]:
    """Of the processes that train together."""
    match along:
        case "runs":
            # Few runs take more steps, so that a turn lasts long enough to be timed.
            steps = case.steps * max(1, case.runs // n)
            return [Job("sweep-auto", case._replace(runs=n, steps=steps))]
        case "devices":
            return [Job("sweep-auto", case, devices=n)]
        case _:
            shared = {"out": f"{folder}/{n}"}
            return [
                Job("sweep-auto", case, devices=1, options={**shared, "shard": (i, n)})
                for i in range(n)
            ]


def agreed(teams: dict[int, list[Worker]]) -> None:
    """Assert that runs have the same losses however they are spread; a shard has its own only."""
    futures = {n: [worker.losses() for worker in team] for n, team in teams.items()}
    losses = {n: np.nanmax([one.result() for one in team], axis=0) for n, team in futures.items()}
    first = next(iter(losses.values()))
    for n, values in losses.items():
        if values.shape == first.shape:
            assert_agree(values, first, f"{n} at work")


if __name__ == "__main__":
    main()
