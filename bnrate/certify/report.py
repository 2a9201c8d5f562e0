"""The certificate as a table for people: what is proven, and the first reason for what is not."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from bnrate import groups as gr

if TYPE_CHECKING:
    from bnrate.certify.certificate import Break, Certificate

_COLUMNS = 100
_WIDEST = 48  # left column
_FEW = 4  # members of a group on one line


def table(certificate: "Certificate") -> Iterator[str]:
    """The lines of the table, at most 100 columns wide."""
    groups = certificate.groups
    how = "exactly" if certificate.strict else "up to epsilon"
    yield f"Scale-invariant, proven {how}: {_count(len(groups), 'group')}"
    small = [g for g in groups if len(g.members) <= _FEW]
    yield from _rows((" + ".join(m.name for m in g.members), _unit(g)) for g in small)
    for group in groups:
        if len(group.members) > _FEW:
            yield f"  {len(group.members)} leaves together, {_unit(group)}:"
            yield from _rows(((member.name, "") for member in group.members), indent=4)
    if certificate.no_effect:
        yield f"Without effect on the loss: {_idle(certificate.no_effect)}"
        yield from _rows((path, "") for path in certificate.no_effect)
    if certificate.rescalings:
        yield f"Scaled against each other: {_count(len(certificate.rescalings), 'rescaling')}"
        yield from _rows((_product(r), "") for r in certificate.rescalings)
    if certificate.rest:
        yield f"Not scale-invariant: {_leaves(certificate.rest)}, each with the first reason"
        yield from _rows((path, _first(certificate.why(path))) for path in certificate.rest)
    if certificate.eps_sites:
        yield f"Epsilons, taken for {'what they are' if certificate.strict else '0'}"
        yield from _rows((f"{e.value:.3g}", str(e.site)) for e in certificate.eps_sites)


def _rows(rows: Iterable[tuple[str, str]], indent: int = 2) -> Iterator[str]:
    """Two columns; of rows that differ in the numbers of their layers only the first is shown."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for left, right in rows:
        # The digits of paths and of the module at the end, not those of parts, axes and lines.
        shape = re.sub(r"\d+(?![^\[]*\])", "#", left), re.sub(r"\d+(?=[^\[]*\]$)", "#", right)
        alike.setdefault(shape, []).append((left, right))
    shown = [
        (left if len(same) == 1 else f"{left}, and {len(same) - 1} more alike", right)
        for same in alike.values() for left, right in same[:1]
    ]  # fmt: skip
    widest = _WIDEST if any(right for _, right in shown) else _COLUMNS - indent
    width = min(widest, max((len(left) for left, _ in shown), default=1) or 1)
    for left, right in shown:
        # A cell that goes on is set in, so that it does not look like the next one.
        first, *more = _wrapped(left, width)
        cells = [first, *(f"  {line}" for line in more)]
        others = _wrapped(right, max(1, _COLUMNS - width - indent - 2))
        for a, b in itertools.zip_longest(cells, others, fillvalue=""):
            yield f"{'':{indent}}{a:<{width}}  {b}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a cell; paths are broken behind a "/" if they must be.

    All lines but the first are two columns narrower, since they may be set in.
    """
    if len(text) <= width:
        return [text]
    pieces = re.findall(r"[^ /]*[ /]?", text)
    lines = [""]
    for piece in pieces:
        limit = width - 2 if len(lines) > 1 else width
        if lines[-1] and len(lines[-1] + piece.rstrip()) > limit:
            lines.append("")
        lines[-1] += piece
    return [part for line in lines for part in textwrap.wrap(line.rstrip(), width)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _leaves(paths: tuple[str, ...]) -> str:
    return "1 leaf" if len(paths) == 1 else f"{len(paths)} leaves"


def _idle(names: tuple[str, ...]) -> str:
    """How many leaves, and how many parts of others."""
    leaves = tuple(name for name in names if not name.endswith("]"))
    parts = len(names) - len(leaves)
    some = "1 part of a leaf" if parts == 1 else f"{parts} parts of leaves"
    return ", ".join([_leaves(leaves)] * bool(leaves) + [some] * bool(parts))


def _unit(group: gr.Group) -> str:
    """What a unit of the group is."""
    found = dict.fromkeys((m.axes, m.shape) for m in group.members if m.axes)
    return (
        "each index along " + ", ".join(itertools.starmap(_axes, found)) if found else "as a whole"
    )


def _axes(axes: tuple[int, ...], shape: tuple[int, ...] | None) -> str:
    which = f"axis {axes[0]}" if len(axes) == 1 else f"axes {' and '.join(map(str, axes))}"
    return which if shape is None else f"{which} of shape {shape}"


def _product(rescaling: Mapping[str, int]) -> str:
    return "  ".join(path if k == 1 else f"{path}^{k}" for path, k in rescaling.items())


def _first(breaks: "tuple[Break, ...]") -> str:
    hard = [b for b in breaks if b.kind != "eps"] or list(breaks)
    return f"{hard[0].what} {hard[0].site}" if hard else "only by a power other than 1"
