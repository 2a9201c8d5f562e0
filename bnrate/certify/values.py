"""Abstract values: what the certifier knows of each array of the program, and its axes.

An axis is cut into segments (what a concatenation joined), and a segment is a row-major product
of factors (what a reshape merged: groups and channels, heads and features).  A `Block` is one
choice of a segment per axis; each has a statement of its own (see `fields`).  How axes are moved
and cut is in `axes`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields
from bnrate.certify.facts import (
    NOTHING,
    Facts,
    Moves,
    Position,
    Refs,
    Zeros,
    carried,
)
from bnrate.certify.fields import Field
from bnrate.certify.ledger import Ledger

_LARGEST_EXACT = 2**53  # of whole numbers as floats
_HUGE = 1e30  # masks are filled with the lowest number of the dtype, in place of -inf

Axis = tuple[int, ...]  # the lengths of segments, or of a segment's factors


class Block(NamedTuple):
    """The statement about one block (see `fields` for scale and shift) and facts about its numbers.

    The statement holds under the constraints of the mask `cons`.  `varies` are the positions along
    which the value may vary.  Rules make new blocks, which know no facts but those they are given.
    """

    axes: tuple[Axis, ...]
    scale: Field
    shift: Field
    cons: int
    varies: frozenset[Position]
    facts: Facts = NOTHING

    @property
    def positions(self) -> list[Position]:
        """All positions of its own axes, in order."""
        return [(a, j) for a, factors in enumerate(self.axes) for j in range(len(factors))]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths of its factors, in the order of its positions."""
        return tuple(n for factors in self.axes for n in factors)

    @property
    def soft(self) -> int:
        """The constraints that the statement needs once all that is pending is excused."""
        return self.facts.soft if self.facts.pending else self.cons

    @property
    def over(self) -> Refs:
        """Refs that are zero wherever the block is."""
        symbol = self.facts.symbol
        return self.facts.over | {symbol[1]} if symbol else self.facts.over

    @property
    def factors(self) -> Refs:
        """Refs where whose being zero makes the block zero."""
        symbol = self.facts.symbol
        return self.facts.factors | {symbol[1]} if symbol else self.facts.factors

    @property
    def zeros(self) -> Zeros:
        """Where the block is zero."""
        symbol = self.facts.symbol
        return Zeros(self.over, self.varies, symbol and symbol[1], self.facts.nonzero)

    def along(self, axes: Iterable[int]) -> list[Position]:
        """All positions of the given axes."""
        return [(a, j) for a in axes for j in range(len(self.axes[a]))]

    def knowing(self, **facts: Any) -> "Block":
        """The block with more facts."""
        return self._replace(facts=self.facts._replace(**facts))

    def only_knowing(self, facts: Facts = NOTHING) -> "Block":
        """The block with these facts and no others."""
        return self._replace(facts=facts)

    def mixed(self, along: Iterable[Position] = ()) -> "Block":
        """The block where entries, and what is pending of them, may differ along positions too."""
        varies = self.varies.union(along)
        return self._replace(varies=varies, facts=self.facts.blurred(varies))

    def demanding(self, mask: int, **statement: Any) -> "Block":
        """The same value under more constraints, which may leave a shorter statement."""
        facts = self.facts
        if facts.pending:
            facts = facts._replace(soft=facts.soft | mask)
        if facts.guard:
            facts = facts._replace(guard=facts.guard._replace(soft=facts.guard.soft | mask))
        return self._replace(cons=self.cons | mask, facts=facts, **statement)


@dataclasses.dataclass(frozen=True)
class Value:
    """An array: the segments of each axis, and the block for each choice of segments."""

    cuts: tuple[Axis, ...]
    blocks: Mapping[tuple[int, ...], Block]

    @functools.cached_property
    def shape(self) -> Axis:
        """The shape of the array."""
        return tuple(map(sum, self.cuts))

    @property
    def only(self) -> Block | None:
        """The block of a value that is not cut."""
        return self.blocks[(0,) * len(self.cuts)] if len(self.blocks) == 1 else None

    @property
    def literal(self) -> float | None:
        """The one number that the whole array holds, if it is known."""
        return self.only.facts.literal if self.only else None

    def each(self, rule: Callable[[Block], Block]) -> "Value":
        """The value with a rule applied to every block."""
        return Value(self.cuts, {index: rule(block) for index, block in self.blocks.items()})


def whole(length: int) -> Axis:
    """The factors of an axis of which nothing is known (an axis of length 1 has none)."""
    return () if length == 1 else (length,)


def plain(shape: Sequence[int], facts: Facts = NOTHING) -> Value:
    """A value in one block that neither varies nor scales."""
    block = Block(tuple(map(whole, shape)), {}, {}, 0, frozenset(), facts)
    return Value(tuple((n,) for n in shape), {(0,) * len(shape): block})


def data(shape: Sequence[int], cons: int = 0, facts: Facts = NOTHING) -> Value:
    """An array that does not depend on the parameters' scales."""
    return plain(shape, facts).each(lambda b: b._replace(cons=cons, varies=frozenset(b.positions)))


def constant(array: Any) -> Value:
    """A constant of the program; one number, or one number throughout, is known as such."""
    if jnp.issubdtype(getattr(array, "dtype", float), jax.dtypes.extended):
        return data(array.shape)  # keys of a random number generator
    array = np.asarray(array)
    real = array.dtype == bool or not jnp.issubdtype(array.dtype, jnp.complexfloating)
    if real and array.size == 1:
        number = as_dtype(float(array.item()), array.dtype)
        return data(array.shape) if number is None else literal(array.shape, number)
    if not is_floating(array.dtype):
        return data(array.shape)
    facts = Facts(nonnegative=bool((array >= 0).all()), nonzero=bool((array != 0).all()))
    return data(array.shape, facts=facts)


def literal(shape: Sequence[int], number: float) -> Value:
    """An array that holds one known number."""
    return plain(shape, facts_of(number))


def facts_of(number: float) -> Facts:
    """All that is to be known of a number."""
    return Facts(number, is_wild(number), nonnegative=number >= 0, nonzero=number != 0)


@functools.cache
def is_integer(dtype: Any) -> bool:
    """Whether numbers of this dtype are whole."""
    return jnp.issubdtype(dtype, jnp.integer)


@functools.cache
def is_floating(dtype: Any) -> bool:
    """Whether numbers of this dtype are real, and rounded."""
    return jnp.issubdtype(dtype, jnp.floating)


def as_dtype(number: float, dtype: Any) -> float | None:
    """The number as a dtype holds it; None for a whole number that it does not hold exactly."""
    if not is_integer(dtype):
        return float(np.asarray(number).astype(dtype))
    bounds = jnp.iinfo(dtype)
    whole = abs(number) < _LARGEST_EXACT and number == int(number)
    return float(number) if whole and bounds.min <= number <= bounds.max else None


def is_boundless(number: float | None) -> bool:
    """Whether a number is, or stands for, an infinity (or nan): no shift moves it."""
    return number is not None and not abs(number) < _HUGE


def is_wild(number: float) -> bool:
    """Whether every positive scaling leaves the number alone."""
    return number == 0 or not math.isfinite(number)


def place_of(ledger: Ledger, block: Block) -> tuple[Position, ...]:
    """The positions of a block's own name: those of shards that differ, and those of its axes."""
    if not ledger.shards:
        return tuple(block.positions)
    return (*sorted(p for p in ledger.shards if p in block.varies), *block.positions)


def length(ledger: Ledger, block: Block, position: Position) -> int:
    """How many indices there are along a position, of a block or of shards."""
    return ledger.shards.get(position) or block.axes[position[0]][position[1]]


# --- what may be demanded of a block


def settle(ledger: Ledger, block: Block, what: str) -> Block:
    """The block with no shift: whatever would make it vanish is demanded."""
    return block.demanding(ledger.vanish(block.shift, what), shift={}) if block.shift else block


def fixed(ledger: Ledger, block: Block, what: str) -> Block:
    """The block with neither scale nor shift: it must be invariant."""
    block = settle(ledger, block, what)
    return block.demanding(ledger.vanish(block.scale, what), scale={}) if block.scale else block


def told(ledger: Ledger, block: Block, what: str) -> Block:
    """The block of which something is told that a positive factor or a shift leaves alone.

    It must be finite for that; and where numbers have few bits, nothing may scale.
    """
    if ledger.narrow:
        return fixed(ledger, block, f"{what} among numbers of few bits")
    scale, shift = fields.perhaps_infinite(block.scale), fields.perhaps_infinite(block.shift)
    if not (scale or shift):
        return block
    what = f"{what} of a value that is shifted by what may be infinite"
    return block.demanding(
        ledger.vanish(scale, what) | ledger.vanish(shift, what),
        scale=fields.off(block.scale, scale), shift=fields.off(block.shift, shift),
    )  # fmt: skip


def still(ledger: Ledger, block: Block, positions: Iterable[Position], what: str) -> Block:
    """The block with scale and shift constant along some positions."""
    positions = list(positions)
    scale, shift = fields.on(block.scale, positions), fields.on(block.shift, positions)
    if not (scale or shift):
        return block
    return block.demanding(
        ledger.vanish(scale, what) | ledger.vanish(shift, what),
        scale=fields.off(block.scale, scale), shift=fields.off(block.shift, shift),
    )  # fmt: skip


def moved(block: Block, axes: tuple[Axis, ...], moves: Moves) -> Block:
    """The block with positions moved, each to places of its own."""
    if all(to == (position,) for position, to in moves.items()):
        return block if axes == block.axes else block._replace(axes=axes)
    return Block(
        axes,
        fields.moved(block.scale, moves) if block.scale else block.scale,
        fields.moved(block.shift, moves) if block.shift else block.shift,
        block.cons,
        frozenset(carried(block.varies, moves)),
        block.facts.moved(moves),
    )


def unnamed(block: Block) -> Block:
    """The block as a choice of its entries: nothing is known of which is which."""
    return block.only_knowing(block.facts.unnamed())


def replaced(items: tuple, at: int, new: Any) -> tuple:
    """The tuple with another entry at one place."""
    return (*items[:at], new, *items[at + 1 :])
