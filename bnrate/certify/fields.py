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

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

from bnrate.certify import linear
from bnrate.certify.facts import Placement, Position


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
    """A number that vanishes wherever its obligations (a mask of constraints) are met."""

    name: Hashable
    obligations: int


Atom = Unknown | Token
_STOPPED = "stopped"
Field = Mapping[tuple[Atom, Placement], linear.Number]

ZERO: Field = {}


def add(a: Field, b: Field, factor: linear.Number = 1) -> Field:
    """The sum a + factor * b."""
    return linear.add(a, b, factor)


def scaled(field: Field, factor: linear.Number) -> Field:
    """The field times a number."""
    return {placed: factor * k for placed, k in field.items()} if factor else ZERO


def moved(field: Field, where: Callable[[Position], Placement]) -> Field:
    """The field after a change of axes; one position may become several."""
    total: dict = {}
    for (atom, placement), k in field.items():
        placed = atom, tuple(new for old in placement for new in where(old))
        total = linear.add(total, {placed: k})
    return total


def on(field: Field, positions: Iterable[Position]) -> Field:
    """Those of its atoms that vary along any of the positions."""
    positions = set(positions)
    return {placed: k for placed, k in field.items() if positions.intersection(placed[1])}


def off(field: Field, part: Field) -> Field:
    """The field without some of its atoms."""
    return {placed: k for placed, k in field.items() if placed not in part}


def stopped(part: Mapping[Atom, linear.Number]) -> tuple[str, frozenset[tuple[Atom, int]]]:
    """The name of the token for what some atoms do to the value, and not to the gradient."""
    return _STOPPED, frozenset(linear.integral(part).items())


def of_value(field: Field) -> Field:
    """The field as it is to the value: what is stopped, is so to the gradient only."""
    if not any(map(_is_stopped, field)):
        return field
    total: Field = {}
    for (atom, placement), k in field.items():
        if _is_stopped((atom, placement)):
            part = {(inner, placement): n for inner, n in atom.name[1]}
            total = linear.add(total, of_value(part), k)
        else:
            total = linear.add(total, {(atom, placement): k})
    return total


def _is_stopped(placed: tuple[Atom, Placement]) -> bool:
    name = placed[0].name if isinstance(placed[0], Token) else None
    return isinstance(name, tuple) and name[0] == _STOPPED
