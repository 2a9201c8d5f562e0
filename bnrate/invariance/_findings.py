"""What `lint` says: findings, and their table."""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Literal

from bnrate.invariance._formatting import table

Severity = Literal["error", "unknown", "note"]

_WIDTH = 72


@dataclasses.dataclass(frozen=True)
class Finding:
    """One remark: the leaf's path, a severity, and a sentence of which it is the subject.

    `str` gives the whole sentence.
    """

    path: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"'{self.path}' {self.message}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """All findings, in the tree's order; iterable, and empty if there is nothing to say."""

    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that contradict the groups, or that numbers refute."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def unknown(self) -> tuple[Finding, ...]:
        """Those that could not be decided."""
        return tuple(finding for finding in self.findings if finding.severity == "unknown")

    def __str__(self) -> str:
        """A table in which leaves with the same finding share a row."""
        if not self.findings:
            return "no findings"
        shared: dict[tuple[Severity, str], list[str]] = {}
        for finding in self.findings:
            shared.setdefault((finding.severity, finding.message), []).append(finding.path)
        rows = [("path", "severity", "finding")]
        for (severity, message), paths in shared.items():
            more = [f"(and {len(paths) - 1} more)"] if len(paths) > 1 else []
            lines, names = textwrap.wrap(message, _WIDTH, break_on_hyphens=False), [paths[0], *more]
            for i in range(max(len(lines), len(names))):
                cells = [cell[i] if i < len(cell) else "" for cell in (names, [severity], lines)]
                rows.append((cells[0], cells[1], cells[2]))
        return table(rows)
