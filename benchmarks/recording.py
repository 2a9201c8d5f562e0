"""What it costs to record what happens on the spheres; a JSON line for each case and stride.

python benchmarks/recording.py --cases mlp:64:128:20 --strides 1 10

All measures of `bnrate.measure`, of each group that `certify` finds, against the loss alone;
`cost` is the part that a step takes longer, the median over rounds in which both take turns.  The
strides must divide the steps of a turn.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from workers import Case, Job, Worker, assert_agree, in_turns, parser, report

CASES = ("mlp:64:128:20", "convnet:4:32:10", "vgg8:16:32:10")
STRIDES = (1, 10)  # an experiment takes 10 unless told
WANTED = {10: 0.1}  # of the cost, at most


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES)
    flags.add_argument("--strides", nargs="+", type=int, default=STRIDES)
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        for stride in options.strides:
            report("recording", measured(case, stride, options.repeats))


def measured(case: Case, stride: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A line."""
    workers = {
        measured: Worker(Job("sweep-map", case, options={"stride": stride, "measured": measured}))
        for measured in (False, True)
    }
    try:
        plain, recorded = (worker.losses().result() for worker in workers.values())
        assert_agree(recorded, plain, "what is recorded")
        _, turns = in_turns({name: [worker] for name, worker in workers.items()}, repeats)
    finally:
        for worker in workers.values():
            worker.close()
    pairs = zip(turns[True], turns[False], strict=True)
    cost = round(median(recorded.seconds / plain.seconds - 1 for recorded, plain in pairs), 3)
    line = case._asdict() | {"repeats": repeats, "stride": stride, "cost": cost}
    wanted = WANTED.get(stride)
    yield line | ({} if wanted is None else {"wanted": wanted, "met": cost <= wanted})


if __name__ == "__main__":
    main()
