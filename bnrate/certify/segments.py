"""Joining segments of an axis again, once they scale alike: fewer blocks, and tokens in common."""

from bnrate.certify.facts import Facts
from bnrate.certify.values import Block, Value, replaced, whole


def coalesced(value: Value) -> Value:
    """The value with neighbouring segments joined wherever all their blocks say the same."""
    if len(value.blocks) == 1:
        return value
    for axis in range(len(value.cuts)):
        i = 0
        while i + 1 < len(value.cuts[axis]):
            joined = _joined(value, axis, i)
            i, value = (i, joined) if joined else (i + 1, value)
    return value


def _joined(value: Value, axis: int, i: int) -> Value | None:
    """The value with segments i and i + 1 of an axis as one, if they are alike."""
    blocks: dict[tuple[int, ...], Block] = {}
    for index, block in value.blocks.items():
        if index[axis] == i:
            other = value.blocks[replaced(index, axis, i + 1)]
            if not _alike(block, other, axis):
                return None
            blocks[index] = _both(block, other, axis, sum(value.cuts[axis][i : i + 2]))
        elif index[axis] != i + 1:
            blocks[replaced(index, axis, index[axis] - (index[axis] > i))] = block
    lengths = value.cuts[axis]
    cut = (*lengths[:i], lengths[i] + lengths[i + 1], *lengths[i + 2 :])
    return Value(replaced(value.cuts, axis, cut), blocks)


def _alike(a: Block, b: Block, axis: int) -> bool:
    varying = any(p[0] == axis for f in (a.scale, a.shift) for _, at in f for p in at)
    statements = [
        (x.scale, x.shift, x.facts.pending, x.facts.literal, x.facts.wild,
         replaced(x.axes, axis, ()))
        for x in (a, b)
    ]  # fmt: skip
    told_apart = any(x.facts.over or x.facts.guard for x in (a, b))  # zeros of each, by name
    return not varying and not told_apart and statements[0] == statements[1]


def _both(a: Block, b: Block, axis: int, length: int) -> Block:
    varies = {p for p in a.varies | b.varies if p[0] != axis}
    x, y = a.facts, b.facts
    facts = Facts(
        x.literal, x.wild, None, x.nonnegative and y.nonnegative, x.nonzero and y.nonzero,
        pending=x.pending, soft=x.soft | y.soft,
    )  # fmt: skip
    return Block(
        replaced(a.axes, axis, whole(length)), a.scale, a.shift, a.cons | b.cons,
        frozenset(varies if x.literal is not None else {*varies, (axis, 0)}), facts,
    )  # fmt: skip
