"""Rules for operations that move, cut, join and pick entries."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from bnrate.certify import fields
from bnrate.certify.axes import align, common, cut, flattened, merge, refactor, relabel
from bnrate.certify.choices import either
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import ENTRIES, invariant
from bnrate.certify.values import (
    Axis,
    Block,
    Value,
    data,
    fixed,
    moved,
    replaced,
    settle,
    still,
    told,
    unnamed,
    whole,
)

_MOST_SEGMENTS = 256
_MIXED = "a join of values that scale differently"


def broadcast(ledger: Ledger, eqn: Equation, a: Value, *_: Value) -> Value:
    """`broadcast_in_dim`."""
    to = {i: int(d) for i, d in enumerate(eqn.params["broadcast_dimensions"])}
    return relabel(a, eqn.params["shape"], to)


def squeeze(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """Leave out axes of length one."""
    gone = {d % len(a.cuts) for d in eqn.params["dimensions"]}
    kept = [axis for axis in range(len(a.cuts)) if axis not in gone]
    return relabel(a, [a.shape[axis] for axis in kept], {old: new for new, old in enumerate(kept)})


def expand(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """Put in axes of length one."""
    shape = eqn.outvars[0].aval.shape
    new = {d % len(shape) for d in eqn.params["dimensions"]}
    return relabel(a, shape, dict(enumerate(i for i in range(len(shape)) if i not in new)))


def transpose(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """Permute the axes."""
    order = eqn.params["permutation"]
    return relabel(a, [a.shape[old] for old in order], {old: new for new, old in enumerate(order)})


def reshape(ledger: Ledger, eqn: Equation, a: Value, *_: Value) -> Value:
    """Merge and split axes; the entries stay in their order."""
    if eqn.params.get("dimensions") is not None:
        return uniform(ledger, eqn, a)[0]
    return reshaped(ledger, a, eqn.outvars[0].aval.shape)


def reshaped(ledger: Ledger, value: Value, shape: Sequence[int]) -> Value:
    """The value with another shape of as many entries."""
    if 0 in shape:
        return data(shape)
    pairs = list(_pairs(value.shape, shape))
    for old, new in pairs:
        value = _fit_segments(ledger, value, old, [shape[a] for a in new])
    cuts: list[Axis] = [()] * len(shape)
    for old, new in pairs:
        inner = math.prod(value.shape[a] for a in old[1:])
        below = math.prod(shape[a] for a in new[1:])
        for axis in new:
            cuts[axis] = (shape[axis],)
        if old and new:
            cuts[new[0]] = tuple(n * inner // below for n in value.cuts[old[0]])
    blocks = {}
    for index, block in value.blocks.items():
        place = [0] * len(shape)
        for old, new in pairs:
            if old and new:
                place[new[0]] = index[old[0]]
        sizes = [cuts[axis][i] for axis, i in enumerate(place)]
        blocks[tuple(place)] = _regrouped(ledger, block, pairs, sizes)
    return Value(tuple(cuts), blocks)


def _pairs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes that are merged and split among themselves; axes of length one by the way."""
    ones = [i for i, n in enumerate(new) if n == 1]
    if ones:
        yield [], ones
    left, right = ([i for i, n in enumerate(shape) if n != 1] for shape in (old, new))
    while left or right:
        a, b = [left.pop(0)], [right.pop(0)]
        while (p := math.prod(old[i] for i in a)) != (q := math.prod(new[i] for i in b)):
            (a if p < q else b).append((left if p < q else right).pop(0))
        yield a, b


def _fit_segments(ledger: Ledger, value: Value, old: list[int], new: list[int]) -> Value:
    """Join the segments that the new axes could not keep."""
    below = math.prod(new[1:])
    for i, axis in enumerate(old):
        inner = math.prod(value.shape[a] for a in old[i + 1 :])
        fits = i == 0 and all(n * inner % below == 0 for n in value.cuts[axis])
        if len(value.cuts[axis]) > 1 and not fits:
            value = joined(ledger, value, axis)
    return value


def _regrouped(
    ledger: Ledger, block: Block, pairs: list[tuple[list[int], list[int]]], sizes: list[int]
) -> Block:
    """A block whose factors are dealt out to other axes, split where a boundary asks for it."""
    axes: list[Axis] = [()] * len(sizes)
    moves = {}
    for old, new in pairs:
        new = [axis for axis in new if sizes[axis] != 1]
        run = tuple(n for axis in old for n in block.axes[axis])
        wanted = tuple(sizes[axis] for axis in new)
        finer = common(run, wanted)
        if finer is None:
            for axis in old:
                block = still(ledger, block, block.along([axis]), "a reshape across axes")
            block = unnamed(block)
            spread = tuple((axis, 0) for axis in new)
            moves |= dict.fromkeys(block.along(old), spread)
            axes = [whole(n) if a in new else axes[a] for a, n in enumerate(sizes)]
            continue
        rest = list(finer)
        for axis in old:
            mine = []
            while math.prod(mine) < math.prod(block.axes[axis]):
                mine.append(rest.pop(0))
            block = refactor(ledger, block, axis, tuple(mine))
        source = iter(block.along(old))
        for axis in new:
            while math.prod(axes[axis]) < sizes[axis]:
                position = next(source)
                moves[position] = ((axis, len(axes[axis])),)
                axes[axis] = (*axes[axis], block.axes[position[0]][position[1]])
    return moved(block, tuple(axes), moves)


def slices(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """A range of each axis."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis, bounds in enumerate(zip(starts, limits, strides, strict=True)):
        low, high, stride = map(int, bounds)
        if stride != 1:
            a = resized(joined(ledger, a, axis), axis, len(range(low, high, stride)))
        else:
            a = reach(ledger, a, axis, low, high)
    return a


def split(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
    """Consecutive ranges of one axis."""
    points = list(itertools.accumulate(map(int, eqn.params["sizes"]), initial=0))
    axis = int(eqn.params["axis"])
    return [reach(ledger, a, axis, low, high) for low, high in itertools.pairwise(points)]


def reach(ledger: Ledger, value: Value, axis: int, low: int, high: int) -> Value:
    """The entries from low to high along an axis."""
    if (low, high) == (0, value.shape[axis]):
        return value
    if low == high:
        return data([*value.shape[:axis], 0, *value.shape[axis + 1 :]])
    value = cut(ledger, value, axis, [low, high])
    starts = list(itertools.accumulate(value.cuts[axis], initial=0))
    first, last = starts.index(low), starts.index(high)
    blocks = {
        replaced(index, axis, index[axis] - first): block
        for index, block in value.blocks.items()
        if first <= index[axis] < last
    }
    return Value(replaced(value.cuts, axis, value.cuts[axis][first:last]), blocks)


def concatenate(ledger: Ledger, eqn: Equation, *parts: Value) -> Value:
    """Join along an axis: one segment where all parts are alike, else a segment for each."""
    axis = int(eqn.params["dimension"])
    parts = tuple(part for part in parts if part.shape[axis])
    return chained(ledger, list(parts), axis) if parts else data(eqn.outvars[0].aval.shape)


def chained(ledger: Ledger, parts: list[Value], axis: int) -> Value:
    """The parts one behind the other along an axis."""
    total = sum(part.shape[axis] for part in parts)
    length = sum(len(part.cuts[axis]) for part in parts)
    # One common length makes alignment leave the axis alone.
    single = [part.only for part in parts]
    if all(single) and _alike([b for b in single if b], axis):
        first = parts[0]
        others = [a for a in range(len(first.cuts)) if a != axis]
        if all(len({b.axes[a] for b in single if b}) == 1 for a in others):
            return _one_segment(ledger, parts, axis, total)
    if length > _MOST_SEGMENTS:
        parts = [joined(ledger, part, axis) for part in parts]
        if len(parts) > _MOST_SEGMENTS:
            return _one_segment(ledger, parts, axis, total)
    parts = _aligned_but(ledger, parts, axis)
    blocks, cuts, start = {}, (), 0
    for part in parts:
        for index, block in part.blocks.items():
            blocks[replaced(index, axis, index[axis] + start)] = block
        start, cuts = start + len(part.cuts[axis]), cuts + part.cuts[axis]
    return Value(replaced(parts[0].cuts, axis, cuts), blocks)


def _alike(blocks: list[Block], axis: int) -> bool:
    """Whether blocks may share a segment at no cost."""
    solid = [b for b in blocks if not b.facts.wild] or blocks[:1]
    first = solid[0]
    varying = fields.on(first.scale, first.along([axis])) or first.shift
    return not varying and all(
        not (b.shift or b.facts.pending) and b.scale == first.scale for b in solid
    )


def _one_segment(ledger: Ledger, parts: list[Value], axis: int, total: int) -> Value:
    """The parts joined into one segment, with equal and constant scale along it."""
    bare = [resized(joined(ledger, part, axis), axis, 1) for part in parts]
    rows = {}
    shape = replaced(bare[0].shape, axis, total)
    for index, blocks in align(ledger, bare):
        blocks = [resized_block(block, axis, total) for block in blocks]
        row = either(ledger, _MIXED, *blocks)
        rows[index] = row.mixed(blocks[0].along([axis]))
    cuts = [_cut_of(bare, a) for a in range(len(shape))]
    return Value(tuple(replaced(tuple(cuts), axis, (total,))), rows)


def _aligned_but(ledger: Ledger, parts: list[Value], axis: int) -> list[Value]:
    """The parts with equal cuts and factors along all axes but one."""
    for other in range(len(parts[0].cuts)):
        if other != axis:
            points = {p for v in parts for p in itertools.accumulate(v.cuts[other], initial=0)}
            parts = [cut(ledger, part, other, points) for part in parts]
    for other in range(len(parts[0].cuts)):
        if other == axis:
            continue
        for i in range(len(parts[0].cuts[other])):
            found = {b.axes[other] for v in parts for x, b in v.blocks.items() if x[other] == i}
            finest: Axis | None = ()
            for factors in found:
                finest = None if finest is None else common(finest, factors) if factors else finest
            parts = [_refactored(ledger, part, other, i, finest) for part in parts]
    return parts


def _refactored(ledger: Ledger, value: Value, axis: int, i: int, finest: Axis | None) -> Value:
    def rule(block: Block) -> Block:
        if finest is None:
            return flattened(ledger, block, axis)
        return refactor(ledger, block, axis, finest)

    blocks = {x: rule(b) if x[axis] == i else b for x, b in value.blocks.items()}
    return Value(value.cuts, blocks)


def pad(ledger: Ledger, eqn: Equation, a: Value, filling: Value) -> Value:
    """Padding is a join with the filling; negative or interior padding needs uniform axes."""
    for axis, config in enumerate(eqn.params["padding_config"]):
        low, high, interior = map(int, config)  # they may be NumPy's
        if (low, high, interior) == (0, 0, 0):
            continue
        if min(low, high) < 0 or interior:
            length = eqn.outvars[0].aval.shape[axis]
            a = _one_segment(ledger, [a, _filled(a, filling, axis, 1)], axis, length)
        else:
            ends = [_filled(a, filling, axis, n) for n in (low, high)]
            parts = [ends[0]] * bool(low > 0) + [a] + [ends[1]] * bool(high > 0)
            a = chained(ledger, parts, axis)
    return a


def _filled(like: Value, filling: Value, axis: int, length: int) -> Value:
    return relabel(filling, replaced(like.shape, axis, length), {})


def gather(ledger: Ledger, eqn: Equation, a: Value, indices: Value) -> Value:
    """Entries at invariant indices; axes that are taken whole keep their structure."""
    filling = eqn.params.get("fill_value")
    if filling is not None and np.isfinite(filling):
        if filling != 0:
            return uniform(ledger, eqn, a, indices)[0]
        a = a.each(lambda b: settle(ledger, b, "a lookup in a shifted value, filled with 0"))
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.outvars[0].aval.shape
    inside = [
        d for d in range(len(sizes))
        if d not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    ]  # fmt: skip
    offset = dict(zip(inside, numbers.offset_dims, strict=True))
    batch = [out for out in range(len(shape)) if out not in numbers.offset_dims]
    kept = {d: out for d, out in offset.items() if sizes[d] == a.shape[d]}
    for d, i in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        kept[d] = batch[i]
    picked = _picked(ledger, a, indices, kept, shape, "a lookup across a per-index scaling")
    # What lies outside may be filled with 0, nan or infinities.
    above = filling is None or not np.real(filling) < 0
    return picked.each(
        lambda b: b.only_knowing(
            Facts(wild=b.facts.wild, nonnegative=above and b.facts.nonnegative)
        )
    )


def dynamic_slice(ledger: Ledger, eqn: Equation, a: Value, *starts: Value) -> Value:
    """A range at invariant starts; axes that are taken whole keep their structure."""
    sizes = eqn.params["slice_sizes"]
    kept = {d: d for d, size in enumerate(sizes) if size == a.shape[d]}
    what = "a slice across a per-index scaling"
    for start in starts:
        a = _picked(ledger, a, start, kept, sizes, what)
    return a


def _picked(
    ledger: Ledger, a: Value, indices: Value, kept: dict[int, int], shape: Sequence[int], what: str
) -> Value:
    for axis in range(len(a.cuts)):
        if axis not in kept:
            a = resized(joined(ledger, a, axis), axis, 1)
    cons = 0
    for block in indices.blocks.values():
        cons |= fixed(ledger, block, "an index").cons
    picked = relabel(a, shape, {d: kept[d] for d in kept})
    return picked.each(lambda b: unnamed(b).demanding(cons).mixed(b.positions))


def argument(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """The indices argmax and argmin: where the extreme is, whatever the scale."""
    for axis in map(int, eqn.params["axes"]):
        a = joined(ledger, a, axis)
    shape = eqn.outvars[0].aval.shape
    gone = set(map(int, eqn.params["axes"]))
    for axis in gone:
        a = resized(a, axis, 1)
    kept = [axis for axis in range(len(a.cuts)) if axis not in gone]
    a = relabel(a, shape, {old: new for new, old in enumerate(kept)})
    return a.each(lambda b: _place_of(told(ledger, b, "an order")))


def _place_of(block: Block) -> Block:
    return Block(block.axes, {}, {}, block.cons, frozenset(block.positions))


def bare_block(ledger: Ledger, value: Value) -> Block:
    """One statement for all entries of a value: its scale must be uniform."""
    for axis in range(len(value.cuts)):
        value = resized(joined(ledger, value, axis), axis, 1)
    value = relabel(value, (), {})
    return value.blocks[()]


def uniform(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
    """The sound default: invariant operands give invariant results, whatever the operation."""
    cons = 0
    for operand in operands:
        for block in operand.blocks.values():
            cons |= invariant(ledger, eqn, block).cons
    # What shards it may differ between is not known either.
    return [
        data(getattr(v.aval, "shape", ()), cons).each(
            lambda b: b._replace(varies=b.varies | {*ledger.shards})
        )
        for v in eqn.outvars
    ]


def bilinear(ledger: Ledger, eqn: Equation, a: Value, b: Value) -> Value:
    """A sum of products of entries, nobody knows which: uniform in both."""
    x, y = (settle(ledger, bare_block(ledger, v), ENTRIES) for v in (a, b))
    product = Block((), fields.add(x.scale, y.scale), {}, x.cons | y.cons, x.varies | y.varies)
    value = relabel(Value((), {(): product}), eqn.outvars[0].aval.shape, {})
    return value.each(lambda b: b.only_knowing()._replace(varies=b.varies | {*b.positions}))


def same(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
    """The same arrays."""
    return list(operands)


def joined(ledger: Ledger, value: Value, axis: int, what: str = _MIXED) -> Value:
    """The value with one segment along an axis, along which all scale alike."""
    return merge(ledger, value, axis, lambda *blocks: either(ledger, what, *blocks), what)


def resized(value: Value, axis: int, length: int) -> Value:
    """A value that is uniform along an axis, with another length there."""
    return Value(
        replaced(value.cuts, axis, (length,)),
        {index: resized_block(block, axis, length) for index, block in value.blocks.items()},
    )


def resized_block(block: Block, axis: int, length: int) -> Block:
    """A block that is uniform along an axis, with another length there."""
    moves = dict.fromkeys(block.along([axis]), ()) if length == 1 else {}
    return moved(unnamed(block), replaced(block.axes, axis, whole(length)), moves)


def _cut_of(values: list[Value], axis: int) -> Axis:
    points = {p for v in values for p in itertools.accumulate(v.cuts[axis], initial=0)}
    return tuple(b - a for a, b in itertools.pairwise(sorted(points)))
