"""Exact linear algebra over the rationals: what a system of homogeneous equations leaves free.

A vector or equation is a sparse mapping from column to a whole number or `Fraction`; columns are
any hashable values.  Numbers that are whole are of type int, with which Python is fast.

    >>> balance = {"scale": 1, "head": 1}          # scale + head = 0
    >>> null_space([balance], ["scale", "head", "bias"])
    [{'head': 1, 'scale': -1}, {'bias': 1}]
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.optimize

Number = Fraction | int
Vector = Mapping[Any, Number]

_LIKING = 1e-3
_SNAP = 10**4  # a ray's entries are ratios of small integers


def product(a: Number, b: Number) -> Number:
    """The product a * b, an int if it is whole."""
    number = a * b
    return number.numerator if number.denominator == 1 else number


def ratio(a: Number, b: Number) -> Number:
    """The quotient a / b, an int if it is whole."""
    if b in (1, -1):
        return a * b
    return product(Fraction(1, b), a)


def add(a: Vector, b: Vector, factor: Number = 1) -> dict:
    """The sum a + factor * b, without zeros."""
    total = dict(a)
    for column, value in b.items():
        total[column] = total.get(column, 0) + factor * value
        if not total[column]:
            del total[column]
    return total


def inner(a: Vector, b: Vector) -> Number:
    """The inner product of two sparse vectors."""
    small, large = sorted((a, b), key=len)
    return sum((v * large[column] for column, v in small.items() if column in large), 0)


class Echelon:
    """Vectors in reduced echelon form: by pivot column, each with entry 1 at its own pivot only."""

    def __init__(self, vectors: Iterable[Vector] = ()):
        self.rows: dict[Hashable, dict] = {}
        self._users: dict[Hashable, set] = {}  # column -> pivots of the rows that may hold it
        for vector in vectors:
            self.insert(vector)

    def eliminated(self, vector: Vector) -> dict:
        """What is left of a vector; nothing, if it lies in the span."""
        rest = dict(vector)
        for pivot in [column for column in vector if column in self.rows]:
            rest = add(rest, self.rows[pivot], -rest[pivot])
        return rest

    def insert(self, vector: Vector) -> bool:
        """Add a vector to the span; whether it was new."""
        row = self.eliminated(vector)
        if not row:
            return False
        pivot, first = next(iter(row.items()))
        if first != 1:
            row = {column: ratio(value, first) for column, value in row.items()}
        for other in self._users.pop(pivot, ()):
            if factor := self.rows[other].get(pivot):
                self.rows[other] = add(self.rows[other], row, -factor)
                for column in row:
                    self._users.setdefault(column, set()).add(other)
        self.rows[pivot] = row
        for column in row:
            self._users.setdefault(column, set()).add(pivot)
        return True


def null_space(rows: Iterable[Vector], columns: Sequence[Hashable]) -> list[dict]:
    """A basis of all vectors that meet the equations; each is as sparse as the echelon form."""
    echelon = Echelon(rows).rows
    basis: dict[Hashable, dict] = {
        column: {column: 1} for column in columns if column not in echelon
    }
    for pivot, row in echelon.items():
        for column, value in row.items():
            if column != pivot:
                basis[column][pivot] = -value
    return list(basis.values())


def integral(vector: Vector) -> dict[Any, int]:
    """The smallest positive multiple with whole entries."""
    denominator = math.lcm(*(v.denominator for v in vector.values()))
    whole = {column: int(v * denominator) for column, v in vector.items()}
    divisor = math.gcd(*whole.values())
    return {column: v // divisor for column, v in whole.items()}


def components(rows: Iterable[Vector]) -> list[list[Vector]]:
    """The equations, in sets that share no column."""
    parent: dict[Hashable, Hashable] = {}

    def root(column: Hashable) -> Hashable:
        while parent.setdefault(column, column) != column:
            parent[column] = column = parent[parent[column]]
        return column

    rows = [row for row in rows if row]
    for row in rows:
        first, *others = map(root, row)
        for other in others:
            parent[root(other)] = root(first)
    found: dict[Hashable, list] = {}
    for row in rows:
        found.setdefault(root(next(iter(row))), []).append(row)
    return list(found.values())


def complement(vectors: Sequence[Vector], known: Sequence[Vector]) -> list[Vector]:
    """Those of the vectors that add to the span of the known, as sparse as these allow."""
    span = Echelon(known)
    holders: dict[Hashable, list[Vector]] = {}
    for vector in known:
        _index(holders, vector)
    found = []
    for vector in sorted(vectors, key=len):
        if not span.insert(vector):
            continue
        near = {id(other): other for column in vector for other in holders.get(column, ())}
        for other, sign in itertools.product(near.values(), (1, -1)):
            if len(shorter := add(vector, other, sign)) < len(vector):
                vector = shorter
        found.append(vector)
        _index(holders, vector)
    return found


def _index(holders: dict[Hashable, list[Vector]], vector: Vector) -> None:
    for column in vector:
        holders.setdefault(column, []).append(vector)


def rays(rows: Sequence[Vector], liking: Callable[[Any], float] = lambda _: 0.0) -> list[dict]:
    """Non-negative solutions of minimal support, no two of which share a column.

    Greedy, as the columns are liked: all solutions of minimal support may be exponentially many.
    Of those of equal sum the most liked one is taken; `liking` a column is a number from 0 to 1.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    free = perhaps_positive(rows, columns)
    found = []
    while free:
        through = max(free, key=liking)
        ray = _ray(rows, free, through, liking)
        if ray is None:
            del free[through]
            continue
        found.append(ray)
        free = perhaps_positive(rows, {c: None for c in free if c not in ray})
    return found


def perhaps_positive(rows: Sequence[Vector], columns: Mapping) -> dict:
    """The columns without those that are 0 in every non-negative solution, by signs alone."""
    free = dict.fromkeys(columns)
    while True:
        left = [{c: v for c, v in row.items() if c in free} for row in rows]
        zero = {c for row in left for c in row if len({v > 0 for v in row.values()}) == 1}
        if not zero:
            return free
        free = {c: None for c in free if c not in zero}


def _ray(
    rows: Sequence[Vector], columns: Mapping, through: Hashable, liking: Callable[[Any], float]
) -> dict | None:
    """A non-negative solution of minimal support that holds the column `through`, or None.

    If the solutions are not the multiples of one, the linear program "least sum, entry 1 at
    `through`" is solved in floats at a vertex, which has minimal support; the vertex is snapped to
    rationals and verified exactly.
    """
    place = {column: i for i, column in enumerate(columns)}
    rows = [row for row in ({c: v for c, v in r.items() if c in place} for r in rows) if row]
    if not rows:
        return {through: 1}
    solutions = null_space(rows, list(columns))
    if len(solutions) == 1:
        (only,) = solutions
        if through not in only:
            return None
        vector = {c: ratio(only[c], only[through]) for c in columns if c in only}
        return vector if min(vector.values()) > 0 else None
    matrix = np.zeros((len(rows) + 1, len(columns)))
    for i, row in enumerate(rows):
        for column, value in row.items():
            matrix[i, place[column]] = float(value)
    matrix[-1, place[through]] = 1
    cost = np.array([1 - _LIKING * liking(column) for column in columns])
    solution = scipy.optimize.linprog(
        cost, A_eq=matrix, b_eq=np.eye(len(matrix))[-1], method="highs-ds"
    )
    if solution.x is None:
        return None
    snapped = {c: Fraction(solution.x[i]).limit_denominator(_SNAP) for c, i in place.items()}
    vector = {column: value for column, value in snapped.items() if value}
    exact = all(inner(row, vector) == 0 for row in rows) and min(vector.values()) > 0
    return vector if exact else None
