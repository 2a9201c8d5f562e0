"""Abstract values: what the certifier knows of each array of the program, and its axes.

An axis is cut into segments (what a concatenation joined), and a segment is a row-major product
of factors (what a reshape merged: groups and channels, heads and features).  A `Block` is one
choice of a segment per axis; each has a statement of its own (see `fields`).  Values are only ever
cut and split further; where a statement varies along a factor that must be, the leaf behind it
is asked to be refined for the next reading, and for now the variation is forbidden.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields
from bnrate.certify.facts import NO_REFS, NOTHING, Facts, Placement, Position, Refs, Zeros
from bnrate.certify.fields import Field, Token
from bnrate.certify.ledger import Ledger

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
    if array.dtype.kind in "bifu" and array.size == 1:
        return literal(array.shape, float(array.item()))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return data(array.shape)
    facts = Facts(nonnegative=bool((array >= 0).all()), nonzero=bool((array != 0).all()))
    return data(array.shape, facts=facts)


def literal(shape: Sequence[int], number: float) -> Value:
    """An array that holds one known number."""
    return plain(shape, facts_of(number))


def facts_of(number: float) -> Facts:
    """All that is to be known of a number."""
    return Facts(number, is_wild(number), nonnegative=number >= 0, nonzero=number != 0)


def is_boundless(number: float | None) -> bool:
    """Whether a number is, or stands for, an infinity (or nan): no shift moves it."""
    return number is not None and not abs(number) < _HUGE


def is_wild(number: float) -> bool:
    """Whether every positive scaling leaves the number alone."""
    return number == 0 or not math.isfinite(number)


# --- what may be demanded of a block


def settle(ledger: Ledger, block: Block, what: str) -> Block:
    """The block with no shift: whatever would make it vanish is demanded."""
    return block.demanding(ledger.vanish(block.shift, what), shift={}) if block.shift else block


def fixed(ledger: Ledger, block: Block, what: str) -> Block:
    """The block with neither scale nor shift: it must be invariant."""
    block = settle(ledger, block, what)
    return block.demanding(ledger.vanish(block.scale, what), scale={}) if block.scale else block


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


# --- axes


def relabel(value: Value, shape: Sequence[int], to: Mapping[int, int]) -> Value:
    """The value with axis a moved to axis to[a]; other axes of `shape` are broadcast.

    Axes that are left out of `to` must have length 1.
    """
    to = {int(old): int(new) for old, new in to.items()}  # equations may hold NumPy's integers
    origin = {new: old for old, new in to.items() if value.shape[old] == shape[new]}
    cuts = tuple(value.cuts[origin[a]] if a in origin else (n,) for a, n in enumerate(shape))

    def rule(block: Block) -> Block:
        axes = tuple(
            block.axes[origin[a]] if a in origin else whole(n) for a, n in enumerate(shape)
        )
        return moved(block, axes, {p: ((to[p[0]], p[1]),) for p in block.positions})

    return Value(
        cuts,
        {
            tuple(index[origin[a]] if a in origin else 0 for a in range(len(shape))): rule(block)
            for index, block in value.blocks.items()
        },
    )


def cut(ledger: Ledger, value: Value, axis: int, points: Iterable[int]) -> Value:
    """The value with more segments along an axis: cut at these points as well."""
    starts = [0, *itertools.accumulate(value.cuts[axis])]
    wanted = sorted({*points, *starts})
    if wanted == starts:
        return value
    blocks = {}
    for index, block in value.blocks.items():
        low, high = starts[index[axis]], starts[index[axis] + 1]
        inside = [p - low for p in wanted if low <= p <= high]
        first = wanted.index(low)
        for i, part in enumerate(_parts(ledger, block, axis, inside)):
            blocks[(*index[:axis], first + i, *index[axis + 1 :])] = part
    lengths = tuple(b - a for a, b in itertools.pairwise(wanted))
    return Value((*value.cuts[:axis], lengths, *value.cuts[axis + 1 :]), blocks)


def _parts(ledger: Ledger, block: Block, axis: int, points: list[int]) -> list[Block]:
    """A block cut along an axis at points (which begin with 0 and end with its length)."""
    if len(points) == 2:
        return [block]
    touched = block.along([axis])
    factors, first = block.axes[axis], (axis, 0)
    stride = math.prod(factors[1:])
    outer = all(p % stride == 0 for p in points)
    if fields.on(block.scale, touched) or fields.on(block.shift, touched):
        if outer:
            inner = tuple(p // stride for p in points[1:-1])
            for field in (block.scale, block.shift):
                ledger.refine(fields.on(field, [first]), first, points=inner)
        else:
            block = still(ledger, block, touched, "a slice across a per-index scaling")
    parts = []
    for low, high in itertools.pairwise(points):
        lengths = ((high - low) // stride, *factors[1:]) if outer else (high - low,)
        kept = [j for j, n in enumerate(lengths) if n != 1]
        axes = replaced(block.axes, axis, tuple(n for n in lengths if n != 1))

        def where(position: Position, kept: list[int] = kept) -> Placement:
            if position[0] != axis:
                return (position,)
            return ((axis, kept.index(position[1])),) if position[1] in kept else ()

        part = unnamed(block)
        if not (outer and high - low == stride):
            part = _unknowns_still(ledger, part, [first], "a slice of a per-index scaling")
        part = part._replace(
            scale=_restricted(part, part.scale, first, (low, high)),
            shift=_restricted(part, part.shift, first, (low, high)),
        )
        parts.append(moved(part, axes, {p: where(p) for p in block.positions}))
    return parts


def _restricted(block: Block, field: Field, position: Position, span: tuple[int, int]) -> Field:
    """A field on a range of indices of a position; on one index, what varies there has an entry.

    The restriction of a token to a range of its index is another token.
    """
    found = {}
    for (atom, placement), k in field.items():
        if position in placement:
            at = placement.index(position)
            if isinstance(atom, Token):
                sizes = tuple(block.axes[a][j] if a >= 0 else 0 for a, j in placement)
                atom = atom._replace(name=("part", atom, at, span, sizes))
            else:
                atom = atom.entry(at, span[0] // (span[1] - span[0]))
                placement = (*placement[:at], *placement[at + 1 :])
        found[atom, placement] = k
    return found


def refactor(ledger: Ledger, block: Block, axis: int, finer: Axis) -> Block:
    """The block with the factors of an axis replaced by a refinement of them."""
    if block.axes[axis] == finer:
        return block
    spread, rest = {}, list(enumerate(finer))
    for j, length in enumerate(block.axes[axis]):
        taken: list[tuple[int, int]] = []
        while math.prod(n for _, n in taken) < length:
            taken.append(rest.pop(0))
        spread[axis, j] = tuple((axis, i) for i, _ in taken)
        if len(taken) > 1:
            for field in (block.scale, block.shift):
                ledger.refine(field, (axis, j), sizes=tuple(n for _, n in taken))
            block = _unknowns_still(ledger, block, [(axis, j)], "a reshape of a per-index scaling")
    return moved(block, replaced(block.axes, axis, finer), spread)


def _unknowns_still(
    ledger: Ledger, block: Block, positions: Iterable[Position], what: str
) -> Block:
    """Like `still`, but tokens may go on to vary."""
    positions = list(positions)

    def unknown(field: Field) -> Field:
        touched = fields.on(field, positions)
        return {placed: k for placed, k in touched.items() if not isinstance(placed[0], Token)}

    scale, shift = unknown(block.scale), unknown(block.shift)
    if not (scale or shift):
        return block
    return block.demanding(
        ledger.vanish(scale, what) | ledger.vanish(shift, what),
        scale=fields.off(block.scale, scale), shift=fields.off(block.shift, shift),
    )  # fmt: skip


def common(a: Axis, b: Axis) -> Axis | None:
    """The coarsest factors that refine both, or None if there are none."""
    starts = sorted({*_prefixes(a), *_prefixes(b)})
    chain = list(itertools.pairwise(starts))
    return None if any(high % low for low, high in chain) else tuple(h // lo for lo, h in chain)


def _prefixes(factors: Axis) -> Iterable[int]:
    return itertools.accumulate(factors, lambda x, y: x * y, initial=1)


def align(ledger: Ledger, values: Sequence[Value]) -> Iterator[tuple[tuple[int, ...], list[Block]]]:
    """All blocks of values of one shape (or with axes of length 1), with equal cuts and factors."""
    rank = len(values[0].cuts)
    for axis in range(rank):
        length = max(v.shape[axis] for v in values)
        points = {
            p for v in values for p in itertools.accumulate(v.cuts[axis], initial=0)
            if v.shape[axis] == length
        }  # fmt: skip
        values = [cut(ledger, v, axis, points) if v.shape[axis] == length else v for v in values]
    counts = [max(len(v.cuts[a]) for v in values) for a in range(rank)]
    for index in itertools.product(*map(range, counts)):
        blocks = [
            v.blocks[tuple(i if len(v.cuts[a]) > 1 else 0 for a, i in enumerate(index))]
            for v in values
        ]
        yield index, alike(ledger, blocks)


def alike(ledger: Ledger, blocks: list[Block]) -> list[Block]:
    """The blocks with the same factors along each axis (or none, where they have length one)."""
    for axis in range(len(blocks[0].axes)):
        found = {b.axes[axis] for b in blocks if b.axes[axis]}
        if len(found) <= 1:
            continue
        finest: Axis | None = ()
        for factors in found:
            finest = finest if finest is None else common(finest, factors)
        if finest is None:
            blocks = [flattened(ledger, b, axis) for b in blocks]
        else:
            blocks = [refactor(ledger, b, axis, finest) if b.axes[axis] else b for b in blocks]
    return blocks


def flattened(ledger: Ledger, block: Block, axis: int) -> Block:
    """The block with one factor along an axis, along which scale and shift are constant."""
    block = still(ledger, block, block.along([axis]), "axes that do not fit")
    moves = dict.fromkeys(block.along([axis]), ((axis, 0),))
    axes = replaced(block.axes, axis, whole(math.prod(block.axes[axis])))
    return moved(unnamed(block), axes, moves)


def map_blocks(ledger: Ledger, rule: Callable[..., Block], *values: Value) -> Value:
    """A rule for blocks, applied to aligned values block by block."""
    if all(len(v.blocks) == 1 for v in values):
        blocks = [next(iter(v.blocks.values())) for v in values]
        if any(b.axes != blocks[0].axes for b in blocks):
            blocks = alike(ledger, blocks)
        cuts = tuple(map(max, zip(*(v.cuts for v in values), strict=True)))
        return Value(cuts, {(0,) * len(cuts): rule(*blocks)})
    shape = [max(lengths) for lengths in zip(*(v.shape for v in values), strict=True)]
    results = {index: rule(*blocks) for index, blocks in align(ledger, values)}
    lengths: list[Axis] = []
    for axis, length in enumerate(shape):
        points = {
            p for v in values if v.shape[axis] == length
            for p in itertools.accumulate(v.cuts[axis], initial=0)
        }  # fmt: skip
        lengths.append(tuple(b - a for a, b in itertools.pairwise(sorted(points))))
    return Value(tuple(lengths), results)


def merge(ledger: Ledger, value: Value, axis: int, join: Callable[..., Block], what: str) -> Value:
    """The value with one segment along an axis; scale and shift are constant along it."""
    single = whole(value.shape[axis])

    def uniform(block: Block) -> Block:
        block = still(ledger, block, block.along([axis]), what)
        if block.axes[axis] == single:
            return block
        moves = dict.fromkeys(block.along([axis]), ((axis, 0),) if single else ())
        return moved(unnamed(block), replaced(block.axes, axis, single), moves)

    if len(value.cuts[axis]) == 1:
        return value.each(uniform)
    rows: dict[tuple[int, ...], list[Block]] = {}
    for index, block in value.blocks.items():
        rows.setdefault((*index[:axis], 0, *index[axis + 1 :]), []).append(uniform(block))
    cuts = replaced(value.cuts, axis, (value.shape[axis],))
    joined = {}
    for index, blocks in rows.items():
        block = join(*alike(ledger, blocks))
        position = frozenset([(axis, 0)]) if single else frozenset()
        joined[index] = unnamed(block)._replace(varies=block.varies | position)
    return Value(cuts, joined)


def moved(block: Block, axes: tuple[Axis, ...], moves: Mapping[Position, Placement]) -> Block:
    """The block with positions moved (those not named stay), each to places of its own."""

    def where(position: Position) -> Placement:
        return moves.get(position, (position,))

    return Block(
        axes,
        fields.moved(block.scale, where) if block.scale else block.scale,
        fields.moved(block.shift, where) if block.shift else block.shift,
        block.cons,
        frozenset(new for old in block.varies for new in where(old)),
        block.facts.moved(where),
    )


def unnamed(block: Block) -> Block:
    """The block as a choice of its entries: nothing is known of which is which."""
    return block.only_knowing(_of_entries(block))


def _of_entries(block: Block) -> Facts:
    facts = block.facts.of_entries()
    pending = tuple(
        p._replace(zeros=tuple(z._replace(over=NO_REFS, of=None) for z in p.zeros))
        for p in block.facts.pending
    )
    return facts._replace(pending=pending, soft=block.facts.soft)


def replaced(items: tuple, at: int, new: Any) -> tuple:
    """The tuple with another entry at one place."""
    return (*items[:at], new, *items[at + 1 :])
