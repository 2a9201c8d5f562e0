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


def table(certificate: "Certificate") -> Iterator[str]:
    """The lines of the table, at most 100 columns wide."""
    groups = certificate.groups
    how = "exactly" if certificate.strict else "up to epsilon"
    yield f"Scale-invariant, proven {how}: {_count(len(groups), 'group')}"
    yield from _rows((" + ".join(m.path for m in g.members), _unit(g)) for g in groups)
    if certificate.no_effect:
        yield f"Without effect on the loss: {_leaves(certificate.no_effect)}"
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


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Two columns; of rows that differ in the numbers of their layers only the first is shown."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for left, right in rows:
        # The digits of paths and of the module at the end, not those of axes and lines.
        shape = re.sub(r"\d+", "#", left), re.sub(r"\d+(?=[^\[]*\]$)", "#", right)
        alike.setdefault(shape, []).append((left, right))
    shown = [
        (left if len(same) == 1 else f"{left}, and {len(same) - 1} more alike", right)
        for same in alike.values() for left, right in same[:1]
    ]  # fmt: skip
    widest = _WIDEST if any(right for _, right in shown) else _COLUMNS - 4
    width = min(widest, max((len(left) for left, _ in shown), default=1) or 1)
    for left, right in shown:
        cells = _wrapped(left, width), _wrapped(right, max(1, _COLUMNS - width - 4))
        for a, b in itertools.zip_longest(*cells, fillvalue=""):
            yield f"  {a:<{width}}  {b}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _leaves(paths: tuple[str, ...]) -> str:
    return "1 leaf" if len(paths) == 1 else f"{len(paths)} leaves"


def _unit(group: gr.Group) -> str:
    axes = dict.fromkeys(" x ".join(map(str, m.axes)) for m in group.members if m.axes)
    return f"each index along axis {', '.join(axes)}" if axes else "as a whole"


def _product(rescaling: Mapping[str, int]) -> str:
    return "  ".join(path if k == 1 else f"{path}^{k}" for path, k in rescaling.items())


def _first(breaks: "tuple[Break, ...]") -> str:
    hard = [b for b in breaks if b.kind != "eps"] or list(breaks)
    return f"{hard[0].what} {hard[0].site}" if hard else "only by a power other than 1"
