"""How long a sweep takes to start, for the first time and again; a JSON line for each.

python benchmarks/compiling.py --cases mlp:64:128:20 --ways sweep-auto

`start_seconds` is what the first turn took more than the next ones (their median): tracing,
compiling or reading from disk, and measuring which way is the fastest.  `compile_seconds` is the
compiler's part, or that of reading what it made.  Imports are not counted.
"""

import tempfile
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from workers import Case, Job, Worker, in_turns, parser, report

CASES = ("mlp:64:128:20", "convnet:64:32:1", "vgg8:16:32:2")
WAYS = ("sweep-auto", "sweep-map", "sweep-vmap-8")
WANTED = 1.0  # second of compile_seconds at most, the second time


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES, repeats=3)
    flags.add_argument("--ways", nargs="+", default=WAYS)
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        for way in options.ways:
            report("compiling", measured(case, way, options.repeats))


def measured(case: Case, way: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A line for the first process and one for the second, with the same folder."""
    with tempfile.TemporaryDirectory() as cache:
        for start in ("cold", "warm"):
            worker = Worker(Job(way, case, cache=cache))
            try:
                first, turns = in_turns({way: [worker]}, repeats)
            finally:
                worker.close()
            steady = median(turn.seconds for turn in turns[way])
            compiling = first[way].compiling["backend_compile_duration"]
            line = case._asdict() | {"way": way, "start": start}
            line |= {"start_seconds": round(first[way].seconds - steady, 2)}
            line |= {"compile_seconds": round(compiling, 2)}
            met = {"wanted": WANTED, "met": compiling <= WANTED} if start == "warm" else {}
            yield line | met


if __name__ == "__main__":
    main()
