"""How fast many runs are trained, by `bnrate.sweep` and by other ways; a JSON line for each way.

python benchmarks/speed.py --cases mlp:64:128:20 --ways sweep-auto loop torch --repeats 5

Each way has a process of its own.  First all train for two steps, and their losses must agree.
Then they take turns, one chunk of steps each.  `faster` says how many times as fast `sweep-auto`
is, and `of_dot` compares with the product of two matrices in its process; both are medians over
the rounds.  Only the multiply-adds of layers count as operations.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from problems import SHAPES, problem
from workers import Case, Job, Turn, Worker, assert_agree, in_turns, parser, report

CASES = (
    *("mlp:64:128:20", "convnet:4:32:10", "convnet:16:32:3", "convnet:64:32:1"),
    *("convnet:4:128:3", "convnet:16:128:1", "convnet:64:128:1", "vgg8:16:32:3", "vgg16:8:32:3"),
)
SWEEPS = ("sweep-auto", "sweep-map", "sweep-vmap", "sweep-vmap-8")
TORCH = ("torch", "torch-channels-last", "torch-vmap")
WAYS = (*SWEEPS, "loop", "scan", "vmap", *TORCH, "hyperoptax-1", "hyperoptax-all")
# With convolutions these take minutes, or all memory, beyond so many examples in all runs.
NAIVE, NAIVE_EXAMPLES = ("scan", "vmap", "hyperoptax-1", "hyperoptax-all"), 4 * 32
TOGETHER, TOGETHER_EXAMPLES = ("sweep-vmap", "torch-vmap"), 16 * 32
# What is wanted of `faster`, and of `of_dot` for the sweep.
FIXED = dict.fromkeys(SWEEPS[1:], 0.9)
WANTED = {
    "mlp": {"sweep-auto": 0.65, "loop": 2.4, "torch": 2.5, "torch-vmap": 2.0, **FIXED},
    "convnet": {"loop": 1.9, "vmap": 30.0, "torch-channels-last": 1.0, **FIXED},
}


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES)
    flags.add_argument("--ways", nargs="+", default=WAYS, help=f"sweep-auto and some of {WAYS}")
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        report("speed", measured(case, options.ways, options.repeats))


def measured(case: Case, ways: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    """A line for each way, also for those that cannot be timed."""
    workers, skipped = {}, {}
    for way in dict.fromkeys(("sweep-auto", *ways)):
        tried = case._replace(steps=steps(way, case))
        if tried.steps:
            workers[way] = Worker(Job(way, tried, dot=way == "sweep-auto"))
        else:
            skipped[way] = "takes minutes, or all memory, or is the same as another"
    try:
        for way, reason in agreed(workers).items():
            skipped[way] = reason
            workers.pop(way).close()
        _, turns = in_turns({way: [workers[way]] for way in workers}, repeats)
        chosen = workers["sweep-auto"].ways().result()
    finally:
        for worker in workers.values():
            worker.close()
    named = case._asdict() | {"repeats": repeats}
    for way in turns:
        line = named | {"way": way} | compared(case, way, turns)
        yield line | ({"chosen": chosen} if way == "sweep-auto" else {})
    for way, reason in skipped.items():
        yield named | {"way": way, "skipped": reason}


def steps(way: str, case: Case) -> int:
    """Of a turn; 0 if the way is not to be tried."""
    examples = case.runs * case.batch
    if not SHAPES[case.problem].features:
        return case.steps * (way != "torch-channels-last")
    if way in NAIVE:  # not one, which would be no loop
        return 2 * (examples <= NAIVE_EXAMPLES)
    return case.steps * (way not in TOGETHER or examples <= TOGETHER_EXAMPLES)


def agreed(workers: dict[str, Worker]) -> dict[str, str]:
    """Assert that all ways have the same losses; the reasons of those that cannot be tried."""
    losses, missing = {}, {}
    for way, future in {way: worker.losses() for way, worker in workers.items()}.items():
        try:
            losses[way] = future.result()
        except ModuleNotFoundError as error:
            missing[way] = str(error)
    for way, values in losses.items():
        assert_agree(values, losses["sweep-auto"], way)
    return missing


def compared(case: Case, way: str, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Medians of the turns of a way, and of its comparison with others round by round."""
    own, auto = turns[way], turns["sweep-auto"]
    speeds = [turn.speed for turn in own]
    gflop = problem(case.problem, case.batch).flops / 1e9
    pairs = list(zip(own, auto, strict=True))
    numbers = {
        "run_steps_per_s": round(median(speeds), 2),
        "spread": round((max(speeds) - min(speeds)) / median(speeds), 2),
        "cpu_ms": round(median(1e3 * turn.cpu / turn.run_steps for turn in own), 3),
        "gflops": round(median(speeds) * gflop, 1),
        "of_dot": round(median(turn.speed * gflop / other.dot for turn, other in pairs), 3),
        "faster": round(median(other.speed / turn.speed for turn, other in pairs), 3),
    }
    wanted = WANTED.get(case.problem, {}).get(way)
    if wanted is None:
        return numbers
    reached = numbers["of_dot" if way == "sweep-auto" else "faster"]
    return numbers | {"wanted": wanted, "met": reached >= wanted}


if __name__ == "__main__":
    main()
