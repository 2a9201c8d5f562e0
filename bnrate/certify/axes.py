"""Axes of values: moving them, cutting them into segments and factors, and making values fit.

Where a statement varies along a factor that must be split, the leaf behind it is asked to be
refined for the next reading, and for now the variation is forbidden.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from bnrate.certify import fields
from bnrate.certify.facts import Placement, Position
from bnrate.certify.fields import Cut, Field, Folded, Line, Token, Unknown
from bnrate.certify.ledger import Ledger
from bnrate.certify.values import (
    Axis,
    Block,
    Value,
    moved,
    replaced,
    still,
    unnamed,
    whole,
)


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
            if not outer:  # all factors become one, along which what varied along any varies
                return ((axis, 0),) if kept else ()
            return ((axis, kept.index(position[1])),) if position[1] in kept else ()

        part = block if repeated(block, touched) else unnamed(block)
        span = low // stride, high // stride
        part = part._replace(
            scale=_restricted(ledger, part, part.scale, first, span),
            shift=_restricted(ledger, part, part.shift, first, span),
        )
        parts.append(moved(part, axes, {p: where(p) for p in block.positions}))
    return parts


def repeated(block: Block, positions: Iterable[Position]) -> bool:
    """Whether the block is the same at all indices of positions, and so is all that is known of it.

    Then each part of it is the block itself, fewer times, and has its name.
    """
    gone = set(positions)
    statement = fields.on(block.scale, gone) or fields.on(block.shift, gone)
    known = gone.isdisjoint(block.varies) and gone.isdisjoint(block.facts.positions())
    return known and not statement


def _restricted(
    ledger: Ledger, block: Block, field: Field, position: Position, span: tuple[int, int]
) -> Field:
    """A field on a range of indices of a position; on one index, what varies there has an entry.

    Otherwise the restriction is another token.
    """
    across = fields.on(field, [position])
    if not across:
        return field

    def name(line: Line, placement: Placement) -> Cut:
        sizes = tuple(block.axes[a][j] if a >= 0 else 0 for a, j in placement)
        return Cut(line, placement.index(position), span, sizes)

    found: dict = {}
    unknown = {}
    for (atom, placement), k in field.items():
        if (atom, placement) not in across:
            placed = atom, placement
        elif isinstance(atom, Token):
            placed = atom._replace(name=name(frozenset([(atom, 1)]), placement)), placement
        elif span[1] - span[0] == 1:
            at = placement.index(position)
            placed = atom.entry(at, span[0]), (*placement[:at], *placement[at + 1 :])
        else:
            unknown[atom, placement] = k
            continue
        found[placed] = found.get(placed, 0) + k  # entries of two positions may be of one unknown
    found = {placed: k for placed, k in found.items() if k}
    return fields.add(found, ledger.tokens(unknown, "a slice of a per-index scaling", name))


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
            sizes = tuple(n for _, n in taken)
            block = block._replace(
                scale=_folded(ledger, block.scale, (axis, j), sizes),
                shift=_folded(ledger, block.shift, (axis, j), sizes),
            )
    return moved(block, replaced(block.axes, axis, finer), spread)


def _folded(ledger: Ledger, field: Field, position: Position, sizes: tuple[int, ...]) -> Field:
    """A field whose unknowns along a position are tokens, as that is to become several.

    Tokens of them say so in their name: by it the finer structure of a leaf is found.
    """
    ledger.refine(field, position, sizes=sizes)

    def name(line: Line, placement: Placement) -> Folded:
        return Folded(line, placement.index(position), sizes)

    found, unknown = {}, {}
    for (atom, placement), k in field.items():
        if isinstance(atom, Unknown):
            (unknown if position in placement else found)[atom, placement] = k
        elif position in placement and isinstance(atom.name, Cut | Folded):
            own = name(frozenset([(atom, 1)]), placement)
            found[atom._replace(name=own), placement] = k
        else:
            found[atom, placement] = k
    return {**found, **ledger.tokens(unknown, "a reshape of a per-index scaling", name)}


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
        joined[index] = unnamed(block).mixed([(axis, 0)] if single else ())
    return Value(cuts, joined)
