"""A Markdown table for each benchmark, from the JSON lines that the others print.

python benchmarks/table.py speed.jsonl memory.jsonl > tables.md
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HIDDEN = ("benchmark", "cpus", "versions")
# A table of its own for each of these.
APART = ("benchmark", "problem", "along")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="of JSON lines; by default the input")
    files = parser.parse_args(arguments).files
    texts = [file.read_text() for file in files] or [sys.stdin.read()]
    print(tables(json.loads(line) for text in texts for line in text.splitlines() if line))


def tables(lines: Iterable[dict[str, Any]]) -> str:
    """All tables, each below its title, and the versions."""
    parts, machines = {}, {}
    for line in lines:
        title = ", ".join(str(line[name]) for name in APART if name in line)
        parts.setdefault(title, []).append({k: v for k, v in line.items() if k not in HIDDEN})
        machine = {"cpus": line.get("cpus"), **line.get("versions", {})}
        machines[", ".join(f"{name} {value}" for name, value in machine.items())] = None
    told = [f"## {title}\n\n{table(rows)}" for title, rows in parts.items()]
    return "\n\n".join([*told, *machines])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of values by name; a name that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in APART))
    body = [[_cell(row.get(name)) for name in names] for row in rows]
    lines = [names, ["---"] * len(names), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return str(value) if isinstance(value, int | float | str) else json.dumps(value)


if __name__ == "__main__":
    main()
