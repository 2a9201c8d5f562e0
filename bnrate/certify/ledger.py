"""The constraints that a proof has met, and the finer structure that it asks for.

A set of constraints is a bit mask, so that every intermediate value can carry its own: what the
loss does not depend on (dead code, auxiliary outputs, terms that cancel) then costs nothing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields, linear
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Placement, Position
from bnrate.certify.fields import Atom, Cut, Field, Folded, Line, Token, Unknown
from bnrate.certify.names import Names
from bnrate.certify.source import Site, site

# "eps": fails only by an epsilon or on a degenerate set; "hard": otherwise; "leaf": no equation,
# the mark of a leaf's block on all that depends on it.
NOWHERE = Site()
# A range of a factor's indices; or the sizes that it was split into, and one of them.
Step = tuple[Literal["cut"], tuple[int, int]] | tuple[Literal["fold"], tuple[int, ...], int]
_FLOAT64 = np.dtype("float64")
Kind = Literal["hard", "eps", "leaf"]


class Constraint(NamedTuple):
    """The equation `row` = 0 in the unknown exponents, and what in the program demands it."""

    row: linear.Vector
    kind: Kind
    what: str
    primitive: str
    site: Site
    value: float | None = None  # of an epsilon
    block: tuple | None = None  # of a "leaf": (leaf, block)
    gradient: bool = False  # demanded by the gradient only


class Split(NamedTuple):
    """A wish: one factor of one segment of a leaf's axis, cut at points or split into a product.

    Or what a factor becomes `inside`: after it was cut or folded like that, step by step.
    """

    leaf: int
    axis: int
    segment: int
    factor: int
    points: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    inside: tuple[Step, ...] = ()


@dataclasses.dataclass
class Ledger:
    """What one reading of the program writes down, and where in the program it is."""

    gradient: bool = True  # certify <grad, d w> = 0 besides L(c^d w) = L(w)
    constraints: list[Constraint] = dataclasses.field(default_factory=list)
    splits: dict[Split, None] = dataclasses.field(default_factory=dict)
    primitive: str = ""
    depth: int = 0  # of nested scans and mesh axes
    steps: tuple[Position, ...] = ()  # the positions of their steps
    mesh: dict[str, Position] = dataclasses.field(default_factory=dict)  # its axes by name
    shards: dict[Position, int] = dataclasses.field(default_factory=dict)  # how many along each
    names: Names = dataclasses.field(default_factory=Names)
    free: set[int] = dataclasses.field(default_factory=set)  # names of independent numbers
    real: bool = True  # no complex number is about
    double: bool = False  # some number about is of 64 bits
    narrow: bool = False  # some number of the program has few bits of exponent
    for_gradient: bool = False  # what is demanded now, is demanded by the gradient only
    foreign: bool = False  # inside of a function of JAX
    equation: Equation | None = None  # the innermost that is not
    sites: dict[int, Site] = dataclasses.field(default_factory=dict)
    _known: dict[Hashable, int] = dataclasses.field(default_factory=dict)
    excusable: int = 0  # all constraints that an epsilon may excuse
    _twins: dict[int, int] = dataclasses.field(default_factory=dict)
    _zero: dict[Unknown, int] = dataclasses.field(default_factory=dict)

    def enter(self, eqn: Equation) -> None:
        """Note which operation is being read, and in what numbers."""
        dtypes = {getattr(v.aval, "dtype", None) for v in (*eqn.invars, *eqn.outvars)}
        self.primitive = eqn.primitive.name
        self.real = not any(getattr(dtype, "kind", "") == "c" for dtype in dtypes)
        self.double = _FLOAT64 in dtypes
        self.narrow |= any(map(_is_narrow, dtypes))
        if not self.foreign:
            self.equation = eqn

    def rounded(self, number: float) -> float:
        """A number as the literals of the operation are rounded."""
        return number if self.double else float(np.float32(number))

    @property
    def site(self) -> Site:
        """The place of the equation, which lives as long as the program that is read."""
        if self.equation is None:
            return NOWHERE
        if id(self.equation) not in self.sites:
            self.sites[id(self.equation)] = site(self.equation)
        return self.sites[id(self.equation)]

    def token(
        self, obligations: int, positions: Iterable[Position], finite: bool = False
    ) -> tuple[Token, Placement]:
        """A new token that varies along these positions, and from step to step of a scan."""
        token = Token(self.names.fresh(), obligations, finite)
        return token, tuple(sorted({*positions, *self.steps}))

    @contextlib.contextmanager
    def of_gradient(self) -> Iterator[None]:
        """While this lasts, demands are noted as those of the gradient alone."""
        before, self.for_gradient = self.for_gradient, True
        try:
            yield
        finally:
            self.for_gradient = before

    def tokens(self, field: Field, what: str, name: Callable[[Line, Placement], Hashable]) -> Field:
        """A field of tokens: one for all atoms of a placement, which vanishes if their sum does."""
        parts: dict[Placement, dict[Atom, linear.Number]] = {}
        for (atom, placement), k in field.items():
            parts.setdefault(placement, {})[atom] = k
        found = {}
        for placement, part in parts.items():
            met = self.vanish({(atom, placement): k for atom, k in part.items()}, what)
            line, k = fields.line(part)
            finite = all(map(fields.is_finite, part))
            found[Token(name(line, placement), met, finite), placement] = k
        return found

    def mark(self, leaf: int, block: tuple[int, ...]) -> int:
        """The mark of a leaf's block."""
        return self._enter(Constraint({}, "leaf", "", "", NOWHERE, block=(leaf, block)))

    def vanish(self, field: Field, what: str) -> int:
        """The mask of constraints under which all atoms of a field vanish."""
        to_value = fields.of_value(field)
        mask = self._demand(to_value, what, self.for_gradient)
        return mask if to_value is field else mask | self._demand(field, what, True)

    def _demand(self, field: Field, what: str, gradient: bool) -> int:
        rows, mask = _rows(field)
        for row in rows:
            demand = Constraint(row, "hard", what, self.primitive, self.site, gradient=gradient)
            mask |= self._enter(demand)
        return mask

    def epsilon(self, field: Field, value: float, what: str) -> tuple[int, int]:
        """The constraints under which a field vanishes: those that an epsilon excuses, and hard."""
        # Nothing excuses what a leaf does that may have no effect.
        marked: Field = {
            (atom, placement): k for (atom, placement), k in field.items()
            if isinstance(atom, Token) and self.marked(atom.obligations)
        }  # fmt: skip
        sure = self.vanish(marked, what)
        rows, mask = _rows(fields.off(field, marked))
        rows = [*rows, *(self.constraints[bit].row for bit in self.bits(mask))]
        eps = hard = 0
        for row in filter(None, rows):
            known = Constraint(row, "eps", what, self.primitive, self.site, value)
            one, other = self._enter(known), self._enter(known._replace(kind="hard"))
            self._twins[one] = other
            eps, hard = eps | one, hard | other
        self.excusable |= eps
        return eps | sure, hard | sure

    def hardened(self, eps: int) -> int:
        """The same constraints without an excuse."""
        mask = 0
        for bit in self.bits(eps):
            mask |= self._twins[1 << bit]
        return mask

    def marked(self, mask: int) -> bool:
        """Whether the mask holds the mark of a leaf."""
        return any(self.constraints[bit].kind == "leaf" for bit in self.bits(mask))

    def bits(self, mask: int) -> list[int]:
        """The numbers of the constraints in a mask, in program order."""
        found = []
        while mask:
            lowest = mask & -mask
            found.append(lowest.bit_length() - 1)
            mask ^= lowest
        return found

    def tidy(self, field: Field, mask: int) -> Field:
        """The field without the atoms that a value's own constraints make vanish."""
        return {
            (atom, placement): k
            for (atom, placement), k in field.items()
            if not (
                not atom.obligations & ~mask
                if isinstance(atom, Token)
                else self._zero.get(atom, 0) & mask
            )
        }

    def refine(self, field: Field, position: Position, **how: tuple[int, ...]) -> None:
        """Ask that the leaves behind a factor be cut or split in the same way."""
        for atom, placement in field:
            if position in placement:
                for (unknown, k), inside in _origins(atom, placement.index(position)):
                    axis, factor = unknown.at[k]
                    segment = unknown.block[axis]
                    wish = Split(unknown.leaf, axis, segment, factor, **how, inside=inside)
                    self.splits[wish] = None

    def _enter(self, constraint: Constraint) -> int:
        known = key(constraint)
        if known not in self._known:
            self._known[known] = len(self.constraints)
            self.constraints.append(constraint)
            if constraint.kind == "hard" and len(constraint.row) == 1:
                (unknown,) = constraint.row
                bit = 1 << self._known[known]
                self._zero[unknown] = self._zero.get(unknown, 0) | bit
        return 1 << self._known[known]


@functools.cache
def _is_narrow(dtype: Any) -> bool:
    """Whether a dtype is of floats that overflow or vanish where those of float32 do not."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).nexp < 8


def key(constraint: Constraint) -> Hashable:
    """What tells two constraints apart."""
    return constraint._replace(row=frozenset(constraint.row.items()))


def _rows(field: Field) -> tuple[Iterable[dict], int]:
    """One equation for each placement (parts of different placements are independent)."""
    rows: dict[Placement, dict[Unknown, linear.Number]] = {}
    mask = 0
    for (atom, placement), k in field.items():
        if isinstance(atom, Token):
            mask |= atom.obligations
        else:
            rows.setdefault(placement, {})[atom] = k
    return rows.values(), mask


def _origins(atom: Atom, k: int) -> Iterator[tuple[tuple[Unknown, int], tuple[Step, ...]]]:
    """The unknowns of which an atom is made, with their position that its k-th is inside of."""
    if isinstance(atom, Unknown):
        yield (atom, k), ()
        return
    step: tuple[Step, ...] = ()
    match atom.name:
        case Cut(line, at, span, _):
            k += k >= at and span[1] - span[0] == 1
            step = (("cut", span),) if k == at else ()
        case Folded(line, at, sizes):
            inner = k - at
            if 0 <= inner < len(sizes):
                step, k = (("fold", sizes, inner),), at
            elif inner > 0:
                k -= len(sizes) - 1
        case _:
            return
    for part, _ in line:
        for origin, steps in _origins(part, k):
            yield origin, (*steps, *step)
