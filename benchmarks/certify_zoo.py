"""The structural witness against the numeric one on every model of the zoo; prints one JSON line.

python benchmarks/certify_zoo.py
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main():
    from witnesses import compare  # noqa: PLC0415 (found through the path above)
    from zoo import ZOO  # noqa: PLC0415
    from zoo_frameworks import FRAMEWORKS  # noqa: PLC0415

    start, short, total = time.perf_counter(), {}, [0, 0, 0, 0]
    entries = {name: entry for name, entry in (ZOO | FRAMEWORKS).items() if not entry.fixed_eps}
    for name, entry in entries.items():
        result = compare(entry)
        if result.found < result.numeric:
            short[name] = [result.found, result.numeric]
        total = [a + b for a, b in zip(total, result[:4], strict=True)]
    directions, violations, found, numeric = total
    record = {
        "models": len(entries),
        "directions": directions,
        "violations": violations,
        "found": found,
        "numeric": numeric,
        "short": short,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(record, default=int))
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
