"""Parts of exponents entry by entry, where a program takes single indices of a factor of an axis.

So an interleaved query, key and value, (heads, 3, features) in one axis, are told apart.  Along
such a position an unknown part is replaced by its entries, of which the last is minus the sum of
the others.
"""

from collections.abc import Iterable, Iterator, Sequence

from bnrate.certify import linear
from bnrate.certify.facts import Position
from bnrate.certify.fields import Unknown
from bnrate.certify.ledger import Constraint

Factor = tuple[int, tuple[int, ...], Position]  # a position of a leaf's block


def by_entry(
    constraints: Sequence[Constraint], unknowns: Iterable[Unknown]
) -> tuple[tuple[Constraint, ...], tuple[Unknown, ...]]:
    """The equations and unknowns, with entries of those parts of which the equations take any."""
    sizes = {(u.leaf, u.block, p): n for u in unknowns for p, n in zip(u.at, u.sizes, strict=True)}
    told = _told_apart([c.row for c in constraints])
    if not told:
        return tuple(constraints), tuple(unknowns)
    found = [c._replace(row=row) for c in constraints for row in _rows(c.row, told, sizes)]
    columns = [v for u in unknowns for v in _entries(u, told)]
    return tuple(found), tuple(columns)


def _told_apart(rows: Sequence[linear.Vector]) -> set[Factor]:
    """The positions of which single indices are taken, and those that rows tie to them."""
    told = {(u.leaf, u.block, p) for row in rows for u in row for p, _ in u.taken}
    before = -1
    while before != len(told):
        before = len(told)
        for row in rows:
            for k in range(len(next(iter(row), Unknown(0, ())).at)):
                seats = {(u.leaf, u.block, u.at[k]) for u in row}
                if not seats.isdisjoint(told):
                    told |= seats
    return told


def _rows(
    row: linear.Vector, told: set[Factor], sizes: dict[Factor, int]
) -> Iterator[linear.Vector]:
    """One equation for each index of the positions that are told apart, without last entries."""
    for k, position in enumerate(next(iter(row), Unknown(0, ())).at):
        u = next(iter(row))
        if (u.leaf, u.block, position) in told:
            for index in range(u.sizes[k]):
                entries = {v.entry(k, index): m for v, m in row.items()}
                yield from _rows(entries, told, sizes)
            return
    total: dict = {}
    for u, m in row.items():
        total = linear.add(total, _without_last(u, sizes), m)
    if total or not row:
        yield total


def _without_last(u: Unknown, sizes: dict[Factor, int]) -> linear.Vector:
    """An entry as a sum of entries none of which is the last."""
    for i, (position, index) in enumerate(u.taken):
        last = sizes[u.leaf, u.block, position] - 1
        if index == last:
            total: dict = {}
            for other in range(last):
                taken = (*u.taken[:i], (position, other), *u.taken[i + 1 :])
                total = linear.add(total, _without_last(u._replace(taken=taken), sizes), -1)
            return total
    return {u: 1}


def _entries(u: Unknown, told: set[Factor]) -> Iterator[Unknown]:
    """The unknowns that stand for one, without last entries."""
    for k, position in enumerate(u.at):
        if (u.leaf, u.block, position) in told:
            for index in range(u.sizes[k] - 1):
                yield from _entries(u.entry(k, index), told)
            return
    yield u
