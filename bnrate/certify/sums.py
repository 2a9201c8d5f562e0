"""Rules for operations that run along axes: reductions, products of matrices, convolutions."""

import functools
import math
from collections.abc import Collection
from typing import Any

from bnrate.certify import fields, linear
from bnrate.certify.arithmetic import add, derived, multiply
from bnrate.certify.axes import alike, map_blocks, relabel
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts, Position, Ref, Zeros, over_all
from bnrate.certify.fields import Field, Token
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import ENTRIES, EXPONENTIAL
from bnrate.certify.shapes import bilinear, joined, reshaped, resized, uniform
from bnrate.certify.values import (
    Block,
    Value,
    data,
    facts_of,
    length,
    moved,
    place_of,
    settle,
    still,
    told,
)


def reduce_sum(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """The sum over axes."""
    return summed(ledger, a, _axes(eqn), ENTRIES)


def summed(ledger: Ledger, value: Value, axes: Collection[int], what: str) -> Value:
    """The sum over axes: scales must be constant along them."""
    if any(value.shape[axis] == 0 for axis in axes):
        return data([n for a, n in enumerate(value.shape) if a not in axes])
    parts = value.each(lambda b: total(ledger, b, {*b.along(axes)}, axes, what))
    return _dropped(ledger, parts, axes)


def _axes(eqn: Equation) -> tuple[int, ...]:
    return tuple(map(int, eqn.params["axes"]))


def total(
    ledger: Ledger, block: Block, gone: set[Position], axes: Collection[int], what: str
) -> Block:
    """The sum of one block along positions, of some axes or of shards; the axes are left bare."""
    count = math.prod(length(ledger, block, p) for p in gone)
    block = _common_scale(ledger, block, gone, what)
    kept: Field = {}
    varying: dict = {}
    for (atom, at), k in block.shift.items():
        constant = not gone.intersection(at)
        found = ((atom, at), count) if constant else _summed_cross(ledger, atom, at, block, gone)
        if found is None:
            varying[atom, at] = k
        else:
            term, times = found
            kept = fields.add(kept, {term: k * times})
    bare = tuple(() if a in axes else f for a, f in enumerate(block.axes))
    varies = block.varies - gone
    result = Block(bare, block.scale, kept, block.cons, varies, _facts_of_sum(ledger, block, gone))
    # Nothing is known of a token summed over what it varies along, but its obligations.
    extra, cons = derived(ledger, varying, lambda at: {*at} - gone, result)
    return result.demanding(cons, shift=fields.add(result.shift, extra))


def _facts_of_sum(ledger: Ledger, block: Block, gone: set[Position]) -> Facts:
    known = block.facts
    if known.literal is not None:
        return facts_of(known.literal * math.prod(length(ledger, block, p) for p in gone))
    lengths = {p: length(ledger, block, p) for p in gone}
    soft, pending = block.soft, []
    for p in known.pending:
        # Entries that are not negative do not cancel.
        if all((z.null and known.nonnegative) or not z.varies & gone for z in p.zeros):
            zeros = tuple(_zeros_of_sum(zeros, lengths) for zeros in p.zeros)
            pending.append(p._replace(zeros=zeros))
        else:
            soft |= p.hard
    return Facts(
        wild=known.wild,
        symbol=known.symbol and _symbol_of_sum(ledger, block, known.symbol, gone),
        nonnegative=known.nonnegative,
        nonzero=known.nonnegative and known.nonzero,
        over=over_all(block.over, lengths) if known.nonnegative else frozenset(),
        factors=over_all(block.factors, lengths),
        pending=tuple(pending), soft=soft if pending else 0,
    )  # fmt: skip


def _zeros_of_sum(zeros: Zeros, gone: dict[Position, int]) -> Zeros:
    of = zeros.of if zeros.of and not {*zeros.of.at} & {*gone} else None
    return Zeros(over_all(zeros.over, gone), zeros.varies - {*gone}, of, zeros.null)


def _symbol_of_sum(
    ledger: Ledger, block: Block, symbol: tuple[linear.Number, Ref], gone: set[Position]
) -> tuple[linear.Number, Ref]:
    """A sum's name: that of the value summed, and over what; a sum of a sum is one sum."""
    k, ref = symbol
    k = k * math.prod(length(ledger, block, p) for p in gone.difference(ref.at))
    removed = frozenset(i for i, p in enumerate(ref.at) if p in gone)
    if not removed:
        return k, ref
    left = tuple(p for p in ref.at if p not in gone)
    sizes = tuple(p if isinstance(p, int) else length(ledger, block, p) for p in ref.at)
    return k, Ref(ledger.names.of_sum(ref.name, removed, sizes), left)


def _common_scale(ledger: Ledger, block: Block, gone: set[Position], what: str) -> Block:
    """The block with a scale that is constant along positions.

    A sum of non-negative terms that scale differently still changes by some positive factor: a
    token, which a later normalisation may remove.
    """
    across = fields.on(block.scale, gone)
    if not across:
        return block
    met, rest = ledger.vanish(across, what), fields.off(block.scale, across)
    if block.shift or not block.facts.nonnegative:
        return block.demanding(met, scale=rest)
    at = {p for _, placement in across for p in placement} | block.varies
    factor = ledger.token(met, at - gone, not fields.perhaps_infinite(across))
    return block._replace(scale=fields.add(rest, {factor: 1}))


def _summed_cross(
    ledger: Ledger, atom: Any, at: tuple[Position, ...], block: Block, gone: set[Position]
) -> Any:
    """The sum of a token S*T (see `arithmetic`) over axes along which T is constant, if it is one.

    It must still vary along all positions of the block, as when it was named.
    """
    if not (isinstance(atom, Token) and isinstance(atom.name, tuple) and atom.name[0] == "times"):
        return None
    _, name, token, place, sizes = atom.name
    own = place_of(ledger, block)
    removed = {i for i, p in enumerate(at) if p in gone}
    if at != tuple(sorted([*ledger.steps, *own])) or removed.intersection(place):
        return None
    if sizes != tuple(length(ledger, block, p) for p in own) or name is None:
        return None
    left = [i for i in range(len(at)) if i not in removed]
    summed_name = ledger.names.of_sum(name, frozenset(own.index(at[i]) for i in removed), sizes)
    inner = (
        "times", summed_name, token, tuple(left.index(i) for i in place),
        tuple(n for p, n in zip(own, sizes, strict=True) if p not in gone),
    )  # fmt: skip
    times = math.prod(length(ledger, block, p) for p in gone.difference(at))
    return (atom._replace(name=inner), tuple(at[i] for i in left)), times


def extreme(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """reduce_max and reduce_min: scale and shift must be constant along the axes."""
    what = "an extreme over entries that scale differently"
    axes, largest = _axes(eqn), eqn.primitive.name == "reduce_max"
    for axis in axes:
        a = joined(ledger, a, axis, what)
    return _dropped(ledger, a.each(lambda b: _extreme(b, axes, largest)), axes)


def _extreme(block: Block, axes: Collection[int], largest: bool) -> Block:
    known, gone = block.facts, {(a, j): block.axes[a][j] for a, j in block.along(axes)}
    positive = known.nonnegative and largest
    facts = Facts(
        wild=known.wild, nonnegative=known.nonnegative, nonzero=known.nonzero,
        over=over_all(block.over, gone) if positive else frozenset(),
        factors=over_all(block.factors, gone),
    )  # fmt: skip
    return _without(block, axes).only_knowing(facts)


def reduce_product(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """The product over axes."""
    axes = _axes(eqn)
    count = math.prod(a.shape[axis] for axis in axes)
    for axis in axes:
        a = joined(ledger, a, axis)

    def rule(block: Block) -> Block:
        block = settle(ledger, block, "a product of shifted values")
        block = block._replace(scale=fields.scaled(block.scale, count))
        return _without(block, axes).only_knowing()

    # A product of zeros and infinities: all that is sure is that nothing scales.
    if any(block.facts.wild for block in a.blocks.values()):
        return uniform(ledger, eqn, a)[0]
    return _dropped(ledger, a.each(rule), axes)


def _without(block: Block, axes: Collection[int]) -> Block:
    """A block that is constant along axes in scale and shift, without these axes' positions."""
    moves = dict.fromkeys(block.along(axes), ())
    bare = tuple(() if a in axes else f for a, f in enumerate(block.axes))
    return moved(block.only_knowing(), bare, moves)


def _dropped(ledger: Ledger, value: Value, axes: Collection[int]) -> Value:
    """The value without axes that have no positions left; blocks that then coincide are added."""
    kept = [a for a in range(len(value.cuts)) if a not in axes]
    rows: dict[tuple[int, ...], list[Block]] = {}
    for index, block in value.blocks.items():
        moves = {(a, j): ((i, j),) for i, a in enumerate(kept) for j in range(len(block.axes[a]))}
        block = moved(block, tuple(block.axes[a] for a in kept), moves)
        rows.setdefault(tuple(index[a] for a in kept), []).append(block)
    total = {
        place: functools.reduce(functools.partial(add, ledger), alike(ledger, blocks))
        for place, blocks in rows.items()
    }
    return Value(tuple(value.cuts[a] for a in kept), total)


# --- products


def dot_general(ledger: Ledger, eqn: Equation, a: Value, b: Value) -> Value:
    """A product of matrices: multiply in a frame that has all axes, and sum some of them."""
    (sum_a, sum_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    free_a = [d for d in range(len(a.cuts)) if d not in (*sum_a, *batch_a)]
    free_b = [d for d in range(len(b.cuts)) if d not in (*sum_b, *batch_b)]
    order_a = [*batch_a, *free_a, *([None] * len(free_b)), *sum_a]
    order_b = [*batch_b, *([None] * len(free_a)), *free_b, *sum_b]
    frame = tuple(range(len(order_a) - len(sum_a), len(order_a)))
    return contracted(ledger, framed(a, order_a), framed(b, order_b), frame)


def framed(value: Value, order: list[int | None]) -> Value:
    """The value with its axes in another order; None is a new axis of length one."""
    shape = [1 if d is None else value.shape[d] for d in order]
    return relabel(value, shape, {d: new for new, d in enumerate(order) if d is not None})


def contracted(ledger: Ledger, a: Value, b: Value, axes: tuple[int, ...]) -> Value:
    """The product of values in one frame, summed over axes of it."""
    product = map_blocks(ledger, functools.partial(multiply, ledger), a, b)
    # An axis along which neither operand has positions has length one in both.
    return summed(ledger, product, axes, ENTRIES)


def convolution(ledger: Ledger, eqn: Equation, a: Value, kernel: Value) -> Value:
    """A convolution: uniform along space, a contraction of the input channels of each group."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1 or eqn.params.get("runs", False):
        return bilinear(ledger, eqn, a, kernel)
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
    a, kernel = (v.each(Block.only_knowing) for v in (a, kernel))
    # The frame: batch, groups, outputs of a group, space, inputs of a group.
    left = framed(a, [batch, channels, *space])
    left = reshaped(ledger, left, (a.shape[batch], groups, a.shape[channels] // groups, *sizes))
    ins, outs = kernel.shape[inputs], kernel.shape[features] // groups
    left = framed(left, [0, 1, None, *range(3, 3 + len(sizes)), 2])
    right = reshaped(ledger, framed(kernel, [features, inputs]), (groups, outs, ins))
    right = framed(right, [None, 0, 1, *([None] * len(sizes)), 2])
    result = contracted(ledger, left, right, (3 + len(sizes),))
    result = reshaped(ledger, result, (out[numbers.out_spec[0]], groups * outs, *sizes))
    order: list[int | None] = [0] * len(out)
    for place, axis in enumerate(numbers.out_spec):
        order[axis] = place
    return framed(result, order).each(Block.only_knowing)


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
            lambda b: b.only_knowing()._replace(varies=b.varies | set(b.along([axis])))
        )
    if len(value.cuts[axis]) > 1:
        value = joined(ledger, value, axis, what)

    def rule(block: Block) -> Block:
        along = set(block.along([axis]))
        across = fields.on(block.scale, along)
        met = ledger.vanish(across, what)
        moving = block.shift if edges else fields.on(block.shift, along)
        block = Block(
            block.axes, fields.off(block.scale, across), fields.off(block.shift, moving),
            block.cons | met, block.varies | along,
        )  # fmt: skip
        made, cons = derived(ledger, moving, along.union, block)
        block = block.demanding(cons, shift=fields.add(block.shift, made))
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


def window_sum(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """Sums over windows (average pooling)."""
    edges = any(map(any, eqn.params["padding"])) or set(eqn.params["base_dilation"]) != {1}
    a = _windowed(ledger, eqn, a, edges, "a sum over windows that scale differently")
    if edges:
        a = a.each(lambda b: settle(ledger, b, "a sum over windows of a shifted value"))
    count = math.prod(eqn.params["window_dimensions"])
    return a.each(lambda b: b._replace(shift=fields.scaled(b.shift, count)))


def window_extreme(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """Extremes over windows (max pooling): what fills the edges is infinite."""
    what = "an extreme over entries that scale differently"
    for axis in windows(eqn):
        a = joined(ledger, a, axis, what)
    return _windowed(ledger, eqn, a, False, what)


def windows(eqn: Equation) -> list[int]:
    """The axes along which the windows do anything."""
    names = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    rank = len(eqn.params["window_dimensions"])
    idle = 1, 1, (0, 0), 1, 1
    each = zip(
        *(eqn.params.get(n, [i] * rank) for n, i in zip(names, idle, strict=True)), strict=True
    )
    return [axis for axis, (*found,) in enumerate(each) if _plain(found) != idle]


def _plain(found: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(map(int, x)) if isinstance(x, tuple | list) else int(x) for x in found)


def _windowed(ledger: Ledger, eqn: Equation, a: Value, edges: bool, what: str) -> Value:
    for axis in windows(eqn):
        a = _mixed(ledger, a, axis, eqn.outvars[0].aval.shape[axis], edges, what)
    return a.each(Block.only_knowing)


def running(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """cumsum, cummax, rev, sort of one operand: uniform along their axis in scale and shift."""
    for axis in _along(eqn):
        a = joined(ledger, a, axis)
    if eqn.primitive.name == "cumsum":
        what = "a running sum of shifted values"
        a = a.each(lambda b: settle(ledger, b, what))
    return a.each(lambda b: varying(b, _along(eqn)))


def varying(block: Block, axes: Collection[int]) -> Block:
    """The statement of a block for other numbers, which vary along axes."""
    return block.only_knowing()._replace(varies=block.varies | set(block.along(axes)))


def _along(eqn: Equation) -> tuple[int, ...]:
    params = eqn.params
    found = params.get("dimensions", params.get("axis", params.get("dimension")))
    return tuple(map(int, found)) if isinstance(found, tuple | list) else (int(found),)


def sort(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
    """Sort along an axis; the order of the keys is that of all operands.

    Keys that scale and shift alike along the axis keep their order, others may go anywhere in it.
    """
    axis = int(eqn.params["dimension"])
    if len(operands) == 1:
        return [running(ledger, eqn, operands[0])]
    operands = tuple(joined(ledger, a, axis) for a in operands)
    cons = 0
    for key in operands[: eqn.params["num_keys"]]:
        for block in key.blocks.values():
            cons |= told(ledger, block, "an order").cons
    return [a.each(lambda b: varying(b, range(len(b.axes))).demanding(cons)) for a in operands]


def running_logarithm(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """`cumlogsumexp`: of numbers that are shifted alike; they may not scale."""
    (axis,) = _along(eqn)
    a = joined(ledger, a, axis)

    def rule(block: Block) -> Block:
        if not ledger.real:
            block = settle(ledger, block, EXPONENTIAL)
        block = block.demanding(ledger.vanish(block.scale, EXPONENTIAL), scale={})
        return varying(block, [axis])

    return a.each(rule)


def top_k(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
    """The largest entries along the last axis, and where they are."""
    axis = int(eqn.params.get("axis", -1)) % len(a.cuts)
    shape = eqn.outvars[0].aval.shape
    a = resized(joined(ledger, a, axis), axis, shape[axis])
    a = a.each(lambda b: varying(b, [axis]))
    cons = 0
    for block in a.blocks.values():
        cons |= told(ledger, block, "an order").cons
    return [a, data(shape, cons)]
