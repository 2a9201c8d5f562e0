"""Rules for operations that run along axes: reductions, products of matrices, convolutions."""

import functools
import itertools
import math
from collections.abc import Collection
from fractions import Fraction
from typing import Any

from bnrate.certify import fields
from bnrate.certify.arithmetic import add, derived, multiply
from bnrate.certify.fields import Position, Token
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import ENTRIES
from bnrate.certify.shapes import joined, reshaped, resized, uniform
from bnrate.certify.values import (
    Block,
    Value,
    alike,
    data,
    firm,
    fixed,
    map_blocks,
    moved,
    relabel,
    settle,
    still,
)


def reduce_sum(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """The sum over axes."""
    return summed(ledger, a, _axes(eqn), ENTRIES)


def collective_sum(ledger: Ledger, eqn: Any, *operands: Value) -> list[Value]:
    """The psum of `jax.vmap` with a named axis, which sums over axes of its operands."""
    axes = eqn.params["axes"]
    if eqn.params.get("axis_index_groups") or not all(hasattr(a, "__index__") for a in axes):
        return uniform(ledger, eqn, *operands)
    return [summed(ledger, a, tuple(map(int, axes)), ENTRIES) for a in operands]


def summed(ledger: Ledger, value: Value, axes: Collection[int], what: str) -> Value:
    """The sum over axes: scales must be constant along them."""
    if any(value.shape[axis] == 0 for axis in axes):
        return data([n for a, n in enumerate(value.shape) if a not in axes])
    parts = value.each(lambda b: _block_sum(ledger, b, axes, what))
    return _dropped(ledger, parts, axes)


def _axes(eqn: Any) -> tuple[int, ...]:
    return tuple(map(int, eqn.params["axes"]))


def _block_sum(ledger: Ledger, block: Block, axes: Collection[int], what: str) -> Block:
    """The sum over all entries of one block; summed axes are left without positions."""
    gone = set(block.along(axes))
    count = math.prod(block.axes[a][j] for a, j in gone)
    block = firm(ledger, block)
    block = _common_scale(ledger, block, gone, what)
    order = {p: i for i, p in enumerate(block.positions)}
    kept: dict = {}
    varying: dict = {}
    for (atom, at), k in block.shift.items():
        if not gone.intersection(at):
            kept[atom, at] = k * count
        elif (term := _summed_cross(atom, at, block, gone)) is not None:
            kept = dict(fields.add(kept, {term: k}))
        else:
            varying[atom, at] = k
    if symbol := block.symbol:
        symbol = symbol[0], _sum_name(symbol[1], block, {order[p] for p in gone})
    # Nothing is known of a token summed over what it varies along, but its obligations.
    bare = tuple(() if a in axes else f for a, f in enumerate(block.axes))
    result = moved(block.but(shift=kept), bare, dict.fromkeys(gone, ()))
    extra, cons = derived(ledger, varying, lambda at: {*at} - gone, result)
    number = None if block.literal is None else block.literal * count
    return result.but(
        shift=fields.add(result.shift, extra), cons=result.cons | cons, symbol=symbol,
        literal=number, sign=2 if block.sign and block.generic and count > 1 else block.sign,
    )  # fmt: skip


def _common_scale(ledger: Ledger, block: Block, gone: set[Position], what: str) -> Block:
    """The block with a scale that is constant along positions.

    A sum of non-negative terms that scale differently still changes by some positive factor: a
    token, which a later normalisation may remove.
    """
    across = fields.on(block.scale, gone)
    if not across:
        return block
    met, rest = ledger.vanish(across, what), fields.off(block.scale, across)
    if block.shift or not block.sign:
        return block.but(scale=rest, cons=block.cons | met)
    at = {p for _, placement in across for p in placement} | block.varies
    factor = ledger.token(met, at - gone)
    return block.but(scale=fields.add(rest, {factor: 1}))


def _sum_name(name: Any, block: Block, gone: set[int]) -> Any:
    """The name of a sum over some of the positions of a block that has this name."""
    return "sum", name, frozenset(gone), block.sizes


def _summed_cross(atom: Any, at: tuple[Position, ...], block: Block, gone: set[Position]) -> Any:
    """The sum of a token S*T (see `arithmetic`) over axes along which T is constant, if it is one.

    It must still vary along all positions of the block, as when it was named.
    """
    if not (isinstance(atom, Token) and isinstance(atom.name, tuple) and atom.name[0] == "times"):
        return None
    _, name, token, place, sizes = atom.name
    removed = {i for i, p in enumerate(at) if p in gone}
    if removed.intersection(place) or at != tuple(block.positions) or sizes != block.sizes:
        return None
    left = [i for i in range(len(at)) if i not in removed]
    inner = (
        "times", _sum_name(name, block, removed), token,
        tuple(left.index(i) for i in place), tuple(sizes[i] for i in left),
    )  # fmt: skip
    return atom._replace(name=inner), tuple(at[i] for i in left)


def extreme(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """reduce_max and reduce_min: scale and shift must be constant along the axes."""
    what = "an extreme over entries that scale differently"
    axes = _axes(eqn)
    for axis in axes:
        a = joined(ledger, a, axis, what)
    return _dropped(ledger, a.each(lambda b: _without(b, axes)), axes)


def reduce_product(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """The product over axes."""
    axes = _axes(eqn)
    count = math.prod(a.shape[axis] for axis in axes)
    for axis in axes:
        a = joined(ledger, a, axis)

    def rule(block: Block) -> Block:
        block = settle(ledger, firm(ledger, block), "a product of shifted values")
        block = block.but(scale=fields.scaled(block.scale, Fraction(count)), sign=0, wild=False)
        # A product of zeros and infinities: all that is sure is that nothing scales.
        return _without(block, axes)

    if any(block.wild for block in a.blocks.values()):
        return uniform(ledger, eqn, a)[0]
    return _dropped(ledger, a.each(rule), axes)


def _without(block: Block, axes: Collection[int]) -> Block:
    """A block that is constant along axes in scale and shift, without these axes' positions."""
    moves = dict.fromkeys(block.along(axes), ())
    bare = tuple(() if a in axes else f for a, f in enumerate(block.axes))
    return moved(block, bare, moves).but(literal=None, generic=False)


def _dropped(ledger: Ledger, value: Value, axes: Collection[int]) -> Value:
    """The value without axes that have no positions left; blocks that then coincide are added."""
    kept = [a for a in range(len(value.cuts)) if a not in axes]
    rows: dict[tuple[int, ...], list[Block]] = {}
    for index, block in value.blocks.items():
        moves = {(a, j): ((i, j),) for i, a in enumerate(kept) for j in range(len(block.axes[a]))}
        block = moved(block, tuple(block.axes[a] for a in kept), moves, same=True)
        rows.setdefault(tuple(index[a] for a in kept), []).append(block)
    total = {
        place: functools.reduce(lambda a, b: add(ledger, None, a, b), alike(ledger, blocks))
        for place, blocks in rows.items()
    }
    return Value(tuple(value.cuts[a] for a in kept), total)


# --- products


def dot_general(ledger: Ledger, eqn: Any, a: Value, b: Value) -> Value:
    """A product of matrices: multiply in a frame that has all axes, and sum some of them."""
    (sum_a, sum_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    free_a = [d for d in range(len(a.cuts)) if d not in (*sum_a, *batch_a)]
    free_b = [d for d in range(len(b.cuts)) if d not in (*sum_b, *batch_b)]
    order_a = [*batch_a, *free_a, *([None] * len(free_b)), *sum_a]
    order_b = [*batch_b, *([None] * len(free_a)), *free_b, *sum_b]
    frame = tuple(range(len(order_a) - len(sum_a), len(order_a)))
    return _contracted(ledger, _framed(a, order_a), _framed(b, order_b), frame)


def _framed(value: Value, order: list[int | None]) -> Value:
    """The value with its axes in another order; None is a new axis of length one."""
    shape = [1 if d is None else value.shape[d] for d in order]
    return relabel(value, shape, {d: new for new, d in enumerate(order) if d is not None})


def _contracted(ledger: Ledger, a: Value, b: Value, axes: tuple[int, ...]) -> Value:
    product = map_blocks(ledger, lambda x, y: multiply(ledger, None, x, y), a, b)
    # An axis along which neither operand has positions has length one in both.
    return summed(ledger, product, axes, ENTRIES)


def convolution(ledger: Ledger, eqn: Any, a: Value, kernel: Value) -> Value:
    """A convolution: uniform along space, a contraction of the input channels of each group."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1 or eqn.params.get("runs", False):
        return uniform(ledger, eqn, a, kernel)[0]
    out = eqn.outvars[0].aval.shape
    batch, channels, *space = numbers.lhs_spec
    features, inputs, *window = numbers.rhs_spec
    padded = any(low > 0 or high > 0 for low, high in eqn.params["padding"])
    padded |= any(step != 1 for step in eqn.params["lhs_dilation"])
    what = "a convolution across positions that scale differently"
    sizes = [out[axis] for axis in numbers.out_spec[2:]]
    for axis, size in zip(space, sizes, strict=True):
        a = _mixed(ledger, a, axis, size, padded, what)
    for axis in window:
        kernel = resized(joined(ledger, kernel, axis, what), axis, 1)
    # A literal array sums to something else: only its number is known, and that not here.
    a, kernel = (v.each(lambda b: b.but(literal=None)) for v in (a, kernel))
    # The frame: batch, groups, outputs of a group, space, inputs of a group.
    left = _framed(a, [batch, channels, *space])
    left = reshaped(ledger, left, (a.shape[batch], groups, a.shape[channels] // groups, *sizes))
    ins, outs = kernel.shape[inputs], kernel.shape[features] // groups
    left = _framed(left, [0, 1, None, *range(3, 3 + len(sizes)), 2])
    right = reshaped(ledger, _framed(kernel, [features, inputs]), (groups, outs, ins))
    right = _framed(right, [None, 0, 1, *([None] * len(sizes)), 2])
    result = _contracted(ledger, left, right, (3 + len(sizes),))
    result = reshaped(ledger, result, (out[numbers.out_spec[0]], groups * outs, *sizes))
    order: list[int | None] = [0] * len(out)
    for place, axis in enumerate(numbers.out_spec):
        order[axis] = place
    return _framed(result, order).each(lambda b: b.but(symbol=None, sign=0, literal=None))


def _mixed(ledger: Ledger, value: Value, axis: int, length: int, edges: bool, what: str) -> Value:
    """The value as seen by sums over windows along an axis, which then has another length.

    Scales must be uniform along it.  Tokens go on to vary along it if they did, or if the windows
    reach over the edges.
    """
    if min(value.shape[axis], length) <= 1:
        value = joined(ledger, value, axis, what)
        if edges and value.shape[axis] != length:
            value = value.each(lambda b: settle(ledger, b, what))
        return resized(value, axis, length).each(
            lambda b: b.but(varies=b.varies | set(b.along([axis])), literal=None, symbol=None)
        )
    if len(value.cuts[axis]) > 1:
        value = joined(ledger, value, axis, what)

    def rule(block: Block) -> Block:
        along = set(block.along([axis]))
        across = fields.on(block.scale, along)
        met = ledger.vanish(across, what)
        moving = block.shift if edges else fields.on(block.shift, along)
        block = block.but(
            scale=fields.off(block.scale, across), shift=fields.off(block.shift, moving),
            cons=block.cons | met, varies=block.varies | along, symbol=None, literal=None, sign=0,
        )  # fmt: skip
        made, cons = derived(ledger, moving, along.union, block)
        block = block.but(shift=fields.add(block.shift, made), cons=block.cons | cons)
        return _one_factor(ledger, block, axis)

    return resized(value.each(rule), axis, length)


def _one_factor(ledger: Ledger, block: Block, axis: int) -> Block:
    """A block whose factors along an axis are one: what still varies between them must not."""
    if len(block.axes[axis]) <= 1:
        return block
    block = still(ledger, block, block.along([axis]), "windows across a reshape")
    moves = dict.fromkeys(block.along([axis]), ((axis, 0),))
    axes = list(block.axes)
    axes[axis] = (math.prod(block.axes[axis]),)
    return moved(block, tuple(axes), moves)


def window_sum(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """Sums over windows (average pooling)."""
    edges = any(map(any, eqn.params["padding"])) or set(eqn.params["base_dilation"]) != {1}
    a = _windowed(ledger, eqn, a, edges, "a sum over windows that scale differently")
    if edges:
        a = a.each(lambda b: settle(ledger, b, "a sum over windows of a shifted value"))
    count = Fraction(math.prod(eqn.params["window_dimensions"]))
    return a.each(lambda b: b.but(shift=fields.scaled(b.shift, count), symbol=None))


def window_extreme(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """Extremes over windows (max pooling): what fills the edges is infinite."""
    what = "an extreme over entries that scale differently"
    for axis in _windows(eqn):
        a = joined(ledger, a, axis, what)
    return _windowed(ledger, eqn, a, False, what).each(lambda b: b.but(generic=False))


def _windows(eqn: Any) -> list[int]:
    """The axes along which the windows do anything."""
    names = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    each = zip(*(eqn.params[name] for name in names), strict=True)
    idle = 1, 1, (0, 0), 1, 1
    return [axis for axis, (*found,) in enumerate(each) if _plain(found) != idle]


def _plain(found: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(map(int, x)) if isinstance(x, tuple | list) else int(x) for x in found)


def _windowed(ledger: Ledger, eqn: Any, a: Value, edges: bool, what: str) -> Value:
    for axis in _windows(eqn):
        a = _mixed(ledger, a, axis, eqn.outvars[0].aval.shape[axis], edges, what)
    return a.each(lambda b: firm(ledger, b).but(symbol=None, literal=None))


def running(ledger: Ledger, eqn: Any, a: Value) -> Value:
    """cumsum, cummax, rev, sort of one operand: uniform along their axis in scale and shift."""
    for axis in _along(eqn):
        a = joined(ledger, a, axis)
    if eqn.primitive.name == "cumsum":
        what = "a running sum of shifted values"
        a = a.each(lambda b: settle(ledger, firm(ledger, b), what))
    return a.each(lambda b: b.but(
        symbol=None, literal=None, generic=False, varies=b.varies | set(b.along(_along(eqn))),
    ))  # fmt: skip


def _along(eqn: Any) -> tuple[int, ...]:
    params = eqn.params
    found = params.get("dimensions", params.get("axis", params.get("dimension")))
    return tuple(map(int, found)) if isinstance(found, tuple | list) else (int(found),)


def sort(ledger: Ledger, eqn: Any, *operands: Value) -> list[Value]:
    """Sort along an axis; with several operands the order of the keys is another condition."""
    axis = int(eqn.params["dimension"])
    operands = tuple(joined(ledger, a, axis) for a in operands)
    if len(operands) == 1:
        return [running(ledger, eqn, operands[0])]
    cons = 0
    for block in itertools.chain.from_iterable(a.blocks.values() for a in operands):
        cons |= fixed(ledger, block, "a sort by several keys").cons
    return [data(a.shape, cons) for a in operands]


def top_k(ledger: Ledger, eqn: Any, a: Value) -> list[Value]:
    """The largest entries along the last axis, and where they are."""
    axis = int(eqn.params.get("axis", -1)) % len(a.cuts)
    shape = eqn.outvars[0].aval.shape
    a = resized(joined(ledger, a, axis), axis, shape[axis])
    a = a.each(
        lambda b: b.but(
            varies=b.varies | set(b.along([axis])), symbol=None, literal=None, generic=False
        )
    )
    cons = 0
    for block in a.blocks.values():
        cons |= block.cons | ledger.hardened(block.pending)
    return [a, data(shape, cons)]
