"""Joining segments of an axis again, once they scale alike: fewer blocks, and tokens in common."""

from bnrate.certify.values import Block, Value, replaced, whole


def coalesced(value: Value) -> Value:
    """The value with neighbouring segments joined wherever all their blocks say the same."""
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
        (x.scale, x.shift, x.pending, x.wild, x.literal, x.usual, replaced(x.axes, axis, ()))
        for x in (a, b)
    ]
    return not varying and statements[0] == statements[1]


def _both(a: Block, b: Block, axis: int, length: int) -> Block:
    varies = {p for p in a.varies | b.varies if p[0] != axis}
    return a.but(
        axes=replaced(a.axes, axis, whole(length)),
        cons=a.cons | b.cons,
        varies=frozenset(varies if a.literal is not None else {*varies, (axis, 0)}),
        sign=min(a.sign, b.sign),
        generic=a.generic and b.generic,
        symbol=None,
    )
