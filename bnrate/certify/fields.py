"""What a rescaling of the parameters does to a value, written as sums of *atoms*.

Scale the parameters, leaf by leaf and index by index, by c^exponent.  Of an intermediate value y
the certifier keeps a statement

    y'[i] = exp(sum of the atoms of `scale` at i) * y[i] + sum of the atoms of `shift` at i .

An atom is a number that depends on the index only through a few *positions* of y's axes, its
placement.  There are two kinds.  An `Unknown` is log c times one unknown exponent of a parameter:
one number (the exponent of a whole block of a leaf) or one number per index of an axis, with
zero sum.  A `Token` is the difference that a constraint which has not been imposed would have
made vanish: a bias that has not been scaled like the value it is added to.  Tokens cancel like
symbols (x - mean(x)), and then their constraints are never needed.

`exp` turns shift into scale and `log` turns scale into shift; so degrees of homogeneity, additive
biases and the unknown factor of a softmax are one idea.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from bnrate.certify import linear
from bnrate.certify.facts import Moves, Placement, Position, carried


class Unknown(NamedTuple):
    """The exponent of one block of a leaf; or, at some of its positions, a part that varies.

    The part has zero sum along each of the positions; `sizes` are their lengths.  `taken`: of a
    part that varies along more positions, the entries at these indices of them.
    """

    leaf: int
    block: tuple[int, ...]
    at: Placement = ()
    sizes: tuple[int, ...] = ()
    taken: tuple[tuple[Position, int], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is the exponent of a whole block."""
        return not (self.at or self.taken)

    def entry(self, k: int, index: int) -> "Unknown":
        """The entries at one index of the k-th position."""
        return self._replace(
            at=(*self.at[:k], *self.at[k + 1 :]),
            sizes=(*self.sizes[:k], *self.sizes[k + 1 :]),
            taken=tuple(sorted((*self.taken, (self.at[k], index)))),
        )


class Token(NamedTuple):
    """A number that vanishes wherever its obligations (a mask of constraints) are met.

    `finite`: it is neither infinite nor nan, which the difference that an operand makes may be.
    """

    name: Hashable
    obligations: int
    finite: bool = False


Atom = Unknown | Token
Line = frozenset[tuple[Atom, int]]  # whole multiples of atoms
Field = Mapping[tuple[Atom, Placement], linear.Number]

ZERO: Field = {}


class Stopped(NamedTuple):
    """Names a token for what some atoms do to the value, while they do nothing to the gradient."""

    of: Line


class Cut(NamedTuple):
    """Names a token for atoms on a range of indices of one of their positions.

    `at` counts the position among theirs, which have these `sizes`.  A range of one index leaves
    no position.
    """

    of: Line
    at: int
    span: tuple[int, int]
    sizes: tuple[int, ...]


class Folded(NamedTuple):
    """Names a token for atoms one of whose positions has become several, of these sizes."""

    of: Line
    at: int
    sizes: tuple[int, ...]


def add(a: Field, b: Field, factor: linear.Number = 1) -> Field:
    """The sum a + factor * b."""
    return linear.add(a, b, factor)


def scaled(field: Field, factor: linear.Number) -> Field:
    """The field times a number."""
    if factor in (0, 1):
        return field if factor else ZERO
    return {placed: linear.product(factor, k) for placed, k in field.items()}


def moved(field: Field, moves: Moves) -> Field:
    """The field after a change of axes; one position may become several."""
    total: dict = {}
    for (atom, placement), k in field.items():
        placed = atom, carried(placement, moves)
        total[placed] = total.get(placed, 0) + k
    return total if len(total) == len(field) else {p: k for p, k in total.items() if k}


def on(field: Field, positions: Iterable[Position]) -> Field:
    """Those of its atoms that vary along any of the positions."""
    positions = set(positions)
    return {placed: k for placed, k in field.items() if positions.intersection(placed[1])}


def off(field: Field, part: Field) -> Field:
    """The field without some of its atoms."""
    return {placed: k for placed, k in field.items() if placed not in part}


def perhaps_infinite(field: Field) -> Field:
    """Those of its atoms that are not known to be finite."""
    return {placed: k for placed, k in field.items() if not is_finite(placed[0])}


def is_finite(atom: Atom) -> bool:
    """Whether an atom is a finite number, as an exponent is."""
    return isinstance(atom, Unknown) or atom.finite


def line(part: Mapping[Atom, linear.Number]) -> tuple[Line, linear.Number]:
    """Some atoms as a multiple of whole numbers of them."""
    whole = linear.integral(part)
    first = next(iter(part))
    return frozenset(whole.items()), linear.ratio(part[first], whole[first])


def of_value(field: Field) -> Field:
    """The field as it is to the value: what is stopped, is so to the gradient only."""
    parts = {placed: stopped for placed in field if (stopped := _stopped_by(placed[0]))}
    if not parts:
        return field
    total: Field = {placed: k for placed, k in field.items() if placed not in parts}
    for placed, part in parts.items():
        inner = of_value({(atom, placed[1]): n for atom, n in part})
        total = linear.add(total, inner, field[placed])
    return total


def _stopped_by(atom: Atom) -> Line | None:
    """What a token stands for to the value, if it is one of a stopped gradient."""
    if isinstance(atom, Token) and isinstance(atom.name, Stopped):
        return atom.name.of
    return None
