"""What else is known of a block's numbers, besides how they scale.

Facts fail closed: a new value has none but those that its rule states.  They are about the numbers
themselves, so they outlive constraints that are put on the same value, and nothing else.

Two relations between values carry what zeros mean.  A `Ref` is a named value as a block's indices
see it: each of the name's positions lies at one of the block's, or (a number) stands for all of
so many indices.
`over` of a block holds refs that are zero wherever the block is zero (the centred entries of a
variance); `factors` are refs where whose being zero makes the block zero.  A quotient of a value by
a norm of it needs no excuse for the norm's zeros: there the value is zero too.
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

# A factor of an axis: the axis, and the factor's number in its row-major product.  Axes below zero
# are those of enclosing scans: a value inside a scan varies along them from step to step.
Position = tuple[int, int]
Placement = tuple[Position, ...]
Moves = Mapping[Position, Placement]  # where positions go; those that are not named stay


class Ref(NamedTuple):
    """A named value, placed: where each of its positions is, or how many indices it has at all."""

    name: int
    at: tuple[Position | int, ...]


Refs = frozenset[Ref]
NO_REFS: Refs = frozenset()


class Zeros(NamedTuple):
    """Where some value v is zero.

    There the refs `over` are zero too.  v varies along `varies`; it is `of`, if it has a name.
    `null`: this is a null set of parameters.
    """

    over: Refs
    varies: frozenset[Position]
    of: Ref | None
    null: bool

    def moved(self, moves: Moves) -> "Zeros":
        """The same after a one-to-one change of positions."""
        varies = frozenset(carried(self.varies, moves))
        return Zeros(
            _all_moved(self.over, moves), varies, self.of and _moved(self.of, moves), self.null
        )


class Pending(NamedTuple):
    """Constraints that are not needed if the next users of a value can do without them.

    Off the `zeros` the block's statement holds without the constraints `hard`, once the literals of
    the constraints `eps` are 0.  If the block is multiplied by what is zero at all zeros, it holds
    everywhere once those of `met` are.
    """

    eps: int
    met: int
    hard: int
    zeros: tuple[Zeros, ...]


class Guard(NamedTuple):
    """Of a condition: it is `usually` this off the `zeros`, and the opposite there.

    That needs the constraints `soft`, and `eps` or `hard`.
    """

    usually: bool
    soft: int
    eps: int
    hard: int
    zeros: tuple[Zeros, ...]


class Facts(NamedTuple):
    """Known of each entry of a block.

    `literal`: the one number that all entries are.  `wild`: they are 0, inf or nan, which every
    positive scaling leaves alone.  `symbol` = (k, ref): they are k times the named value's.
    `nonnegative`, `nonzero` (off a null set of parameters).  `guard`: of conditions.
    `pending`: the constraints that may still be excused; without them the statement needs `soft`.
    """

    literal: float | None = None
    wild: bool = False
    symbol: tuple[Fraction | int, Ref] | None = None
    nonnegative: bool = False
    nonzero: bool = False
    over: Refs = NO_REFS
    factors: Refs = NO_REFS
    guard: Guard | None = None
    pending: tuple[Pending, ...] = ()
    soft: int = 0

    def of_entries(self) -> "Facts":
        """What is true of any choice of the entries, in any order."""
        return Facts(self.literal, self.wild, None, self.nonnegative, self.nonzero)

    def rounded(self) -> "Facts":
        """What is true once small numbers have become 0."""
        return self._of_zeros(lambda zeros: zeros._replace(null=False))._replace(nonzero=False)

    def blurred(self, varies: frozenset[Position]) -> "Facts":
        """The facts where what is pending may be different along more positions."""
        return self._of_zeros(lambda zeros: zeros._replace(varies=zeros.varies | varies))

    def unnamed(self) -> "Facts":
        """What is true of any choice of the entries, in any order, and what is pending."""
        pending = self._of_zeros(lambda zeros: zeros._replace(over=NO_REFS, of=None)).pending
        return self.of_entries()._replace(pending=pending, soft=self.soft)

    def _of_zeros(self, change: Callable[[Zeros], Zeros]) -> "Facts":
        if not self.pending:
            return self
        return self._replace(
            pending=tuple(p._replace(zeros=tuple(map(change, p.zeros))) for p in self.pending)
        )

    def positions(self) -> set[Position]:
        """All positions that the facts are about."""
        zeros = [z for p in self.pending for z in p.zeros]
        zeros += self.guard.zeros if self.guard else ()
        refs = [*self.over, *self.factors, *([self.symbol[1]] if self.symbol else ())]
        for z in zeros:
            refs += [*z.over, *([z.of] if z.of else ())]
        named = {p for ref in refs for p in ref.at if not isinstance(p, int)}
        return named.union(*(z.varies for z in zeros))

    def moved(self, moves: Moves) -> "Facts":
        """The facts after a one-to-one change of positions."""
        if self == NOTHING:
            return self

        def placed(known: Any) -> Any:
            return known._replace(zeros=tuple(zeros.moved(moves) for zeros in known.zeros))

        return self._replace(
            symbol=self.symbol and (self.symbol[0], _moved(self.symbol[1], moves)),
            guard=self.guard and placed(self.guard), pending=tuple(map(placed, self.pending)),
            over=_all_moved(self.over, moves), factors=_all_moved(self.factors, moves),
        )  # fmt: skip


NOTHING = Facts()


def carried(positions: Iterable[Any], moves: Moves) -> tuple[Any, ...]:
    """Where positions (or, of a ref, numbers of indices) are after moves."""
    found: list[Any] = []
    for p in positions:
        if p in moves:
            found += moves[p]
        else:
            found.append(p)
    return tuple(found)


def _moved(ref: Ref, moves: Moves) -> Ref:
    return Ref(ref.name, carried(ref.at, moves))


def _all_moved(refs: Refs, moves: Moves) -> Refs:
    return frozenset([_moved(ref, moves) for ref in refs]) if refs else refs


def over_all(refs: Iterable[Ref], gone: Mapping[Position, int]) -> Refs:
    """The refs at all indices of some positions, which have these lengths."""
    return frozenset(
        Ref(r.name, tuple(p if isinstance(p, int) else gone.get(p, p) for p in r.at)) for r in refs
    )


def meet(over: Refs, factors: Refs, lengths: Mapping[Position, int]) -> bool:
    """Whether a value with these factors is zero wherever one that has these `over` is.

    Positions have lengths: a name's axis may have been split otherwise elsewhere.
    """

    def length(p: Position | int) -> int:
        return p if isinstance(p, int) else lengths.get(p, -1)

    return any(
        o.name == f.name
        and len(o.at) == len(f.at)
        and all(
            length(p) == length(q) and (isinstance(p, int) or p == q)
            for p, q in zip(o.at, f.at, strict=True)
        )
        for o in over for f in factors
    )  # fmt: skip
