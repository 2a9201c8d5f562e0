"""Random programs against the certifier, as many as wished; prints one JSON line.

python benchmarks/certify_fuzz.py --programs 2000 --first 0 --eps ignore
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--eps", choices=("strict", "ignore"), default="strict")
    options = parser.parse_args()
    from programs.attack import attack  # noqa: PLC0415 (found through the path above)

    from bnrate.certify import certify  # noqa: PLC0415

    start = time.perf_counter()
    summary = attack(range(options.first, options.first + options.programs), certify, options.eps)
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps(summary.counts() | {"seconds": seconds}))
    for violation in summary.violations:
        print(violation.seed, violation.kind, violation.detail, file=sys.stderr)
    return int(bool(summary.violations))


if __name__ == "__main__":
    sys.exit(main())
