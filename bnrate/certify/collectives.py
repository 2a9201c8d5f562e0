"""Rules for programs of one shard each (`shard_map`, `pmap`) and what they say to each other.

A mesh axis stays on the values inside as an axis below zero: a position along which the values of
shards may differ.  What is sharded has its outer factor there, what is replicated does not vary
along it, and a `psum` is a sum along it.  So a mean over the local and the mapped part of a batch
is the mean of the batch.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from bnrate.certify.axes import common, flattened, refactor, relabel
from bnrate.certify.control import Read
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts, Position
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import ENTRIES
from bnrate.certify.shapes import joined, uniform
from bnrate.certify.sums import summed, total
from bnrate.certify.values import (
    Block,
    Value,
    data,
    moved,
    replaced,
    settle,
    still,
    unnamed,
    whole,
)

_SHARDS = "shards that scale differently"

Rule = Callable[..., Value | list[Value]]


def on_each_shard(rule: Rule) -> Rule:
    """A rule for what each shard does alone: its results differ where its operands do."""

    def apply(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
        results = rule(ledger, eqn, *operands)
        if not ledger.shards:
            return results
        blocks = [b for v in operands for b in v.blocks.values()]
        differ = frozenset(p for b in blocks for p in b.varies if p in ledger.shards)
        if isinstance(results, Value):
            return _differing(results, differ)
        return [_differing(v, differ) for v in results]

    return apply


def _differing(value: Value, along: frozenset[Position]) -> Value:
    return value.each(lambda b: b if along <= b.varies else b.mixed(along))


def shard_map(read: Read) -> Rule:
    """The program of a shard, on a mesh of a known size."""

    def rule(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
        params = eqn.params
        names = sorted(params.get("newly_manual_axes", params.get("manual_axes", ())))
        before, after = params.get("in_specs"), params.get("out_specs")
        if not names or {*names} & {*ledger.mesh} or before is None or after is None:
            return uniform(ledger, eqn, *operands)
        if not _plain(before, after):
            return uniform(ledger, eqn, *operands)
        outside = ledger.depth, dict(ledger.mesh), dict(ledger.shards)
        new: set[Position] = set()
        for name in names:
            ledger.depth += 1
            ledger.mesh[name] = (-ledger.depth, 0)
            if (size := params["mesh"].shape[name]) > 1:
                ledger.shards[ledger.mesh[name]] = size
                new.add(ledger.mesh[name])
        inputs = [_sharded(ledger, v, s) for v, s in zip(operands, before, strict=True)]
        outputs = read(ledger, params["jaxpr"], inputs)
        results = [_whole(ledger, v, s, new) for v, s in zip(outputs, after, strict=True)]
        ledger.depth, ledger.mesh, ledger.shards = outside
        return results

    return rule


def _plain(*specs: Any) -> bool:
    """Whether all that the specs say is along which mesh axes each axis lies."""
    return not any(
        getattr(spec, "unreduced", None) or getattr(spec, "reduced", None)
        for group in specs for spec in group
    )  # fmt: skip


def _named(ledger: Ledger, names: Any) -> list[Position]:
    """The positions of mesh axes, without those of one shard."""
    names = names if isinstance(names, tuple | list | frozenset) else (names,)
    found = [ledger.mesh[name] for name in names if name is not None]
    return [p for p in found if p in ledger.shards]


def _sharded(ledger: Ledger, value: Value, spec: Any) -> Value:
    for axis, names in enumerate(spec):
        value = _dealt(ledger, value, axis, _named(ledger, names))
    return value


def _dealt(ledger: Ledger, value: Value, axis: int, mesh: Sequence[Position]) -> Value:
    """The value with the outer factors of an axis along mesh axes: each shard has its own part."""
    if not mesh:
        return value
    outer = tuple(ledger.shards[p] for p in mesh)
    local = value.shape[axis] // math.prod(outer)
    wanted = (*outer, *whole(local))

    def rule(block: Block) -> Block:
        finer = common(block.axes[axis], wanted)
        if finer is None or finer[: len(outer)] != outer:
            block, finer = flattened(ledger, block, axis), wanted
        block = refactor(ledger, block, axis, finer)
        moves = {(axis, i): (p,) for i, p in enumerate(mesh)}
        moves |= {(axis, j): ((axis, j - len(mesh)),) for j in range(len(mesh), len(finer))}
        return moved(block, replaced(block.axes, axis, finer[len(mesh) :]), moves)

    value = joined(ledger, value, axis) if len(value.cuts[axis]) > 1 else value
    return Value(replaced(value.cuts, axis, (local,)), value.each(rule).blocks)


def _collected(ledger: Ledger, value: Value, axis: int, mesh: Sequence[Position]) -> Value:
    """The value with mesh axes as the outer factors of an axis: the parts of all shards."""
    if not mesh:
        return value
    outer = tuple(ledger.shards[p] for p in mesh)

    def rule(block: Block) -> Block:
        moves = {p: ((axis, i),) for i, p in enumerate(mesh)}
        moves |= {(axis, j): ((axis, j + len(mesh)),) for _, j in block.along([axis])}
        return moved(block, replaced(block.axes, axis, (*outer, *block.axes[axis])), moves)

    value = joined(ledger, value, axis) if len(value.cuts[axis]) > 1 else value
    length = value.shape[axis] * math.prod(outer)
    return Value(replaced(value.cuts, axis, (length,)), value.each(rule).blocks)


def _whole(ledger: Ledger, value: Value, spec: Any, new: Collection[Position]) -> Value:
    """The parts of all shards; of what is not sharded any shard's copy."""
    seen: set[Position] = set()
    for axis, names in enumerate(spec):
        mesh = _named(ledger, names)
        value = _collected(ledger, value, axis, mesh)
        seen.update(mesh)
    rest = set(new) - seen
    return value.each(lambda b: _copy(ledger, b, rest)) if rest else value


def _copy(ledger: Ledger, block: Block, mesh: Collection[Position]) -> Block:
    """The block of any shard, along some mesh axes."""
    symbol = block.facts.symbol
    same = block.varies.isdisjoint(mesh) and symbol and {*symbol[1].at}.isdisjoint(mesh)
    block = unnamed(still(ledger, block, mesh, _SHARDS))
    block = moved(block, block.axes, dict.fromkeys(mesh, ()))
    return block.knowing(symbol=symbol) if same else block


# --- what shards say to each other


def _known(ledger: Ledger, eqn: Equation, names: Any) -> bool:
    """Whether all shards along these mesh axes take part."""
    names = names if isinstance(names, tuple | list) else (names,)
    return not eqn.params.get("axis_index_groups") and all(name in ledger.mesh for name in names)


def _split_names(axes: Sequence[Any]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Axes of the operands (of `jax.vmap` with a named axis), and mesh axes."""
    numbers = tuple(int(a) for a in axes if hasattr(a, "__index__"))
    return numbers, tuple(a for a in axes if not hasattr(a, "__index__"))


def psum(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """The sum over mesh axes, and over axes of the operands."""
    numbers, names = _split_names(eqn.params["axes"])
    if not _known(ledger, eqn, names):
        return uniform(ledger, eqn, *operands)
    mesh = {*_named(ledger, names)}
    return [
        (summed(ledger, a, numbers, ENTRIES) if numbers else a).each(
            lambda b: total(ledger, b, mesh, (), ENTRIES) if mesh else b
        )
        for a in operands
    ]


def extreme(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """`pmax`, `pmin`."""
    numbers, names = _split_names(eqn.params["axes"])
    if numbers or not _known(ledger, eqn, names):
        return uniform(ledger, eqn, *operands)
    mesh = _named(ledger, names)

    def rule(block: Block) -> Block:
        facts = Facts(
            wild=block.facts.wild, nonnegative=block.facts.nonnegative, nonzero=block.facts.nonzero
        )
        block = still(ledger, block, mesh, "an extreme over shards that scale differently")
        return moved(block.only_knowing(facts), block.axes, dict.fromkeys(mesh, ()))

    return [a.each(rule) for a in operands]


def all_gather(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """The parts of all shards, along an axis or (not tiled) along a new one."""
    params = eqn.params
    if not _known(ledger, eqn, params["axis_name"]):
        return uniform(ledger, eqn, *operands)
    mesh = _named(ledger, params["axis_name"])

    def gathered(a: Value) -> Value:
        axis = params["all_gather_dimension"]
        if not params["tiled"]:
            to = {old: old + (old >= axis) for old in range(len(a.cuts))}
            a = relabel(a, (*a.shape[:axis], 1, *a.shape[axis:]), to)
        return _collected(ledger, a, axis, mesh)

    return [gathered(a) for a in operands]


def reduce_scatter(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """The sum over shards, of which each has its own part."""
    params = eqn.params
    if not _known(ledger, eqn, params["axis_name"]):
        return uniform(ledger, eqn, *operands)
    mesh = _named(ledger, params["axis_name"])

    def dealt(a: Value) -> Value:
        axis = params["scatter_dimension"]
        a = a.each(lambda b: total(ledger, b, {*mesh}, (), ENTRIES)) if mesh else a
        a = _dealt(ledger, a, axis, mesh)
        if params["tiled"]:
            return a
        to = {old: old - (old > axis) for old in range(len(a.cuts)) if old != axis}
        return relabel(a, (*a.shape[:axis], *a.shape[axis + 1 :]), to)

    return [dealt(a) for a in operands]


def all_to_all(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """Each shard sends a part of one axis to each other, which joins them along another axis."""
    params = eqn.params
    into, out_of = params["split_axis"], params["concat_axis"]
    if into == out_of or not params["tiled"] or not _known(ledger, eqn, params["axis_name"]):
        return uniform(ledger, eqn, *operands)
    mesh = _named(ledger, params["axis_name"])
    aside = {p: (p[0] - 10**6, p[1]) for p in mesh}  # where no mesh axis is

    def sent(a: Value) -> Value:
        a = a.each(lambda b: moved(b, b.axes, {p: (q,) for p, q in aside.items()}))
        a = _dealt(ledger, a, into, mesh)
        shards = ledger.shards
        ledger.shards = shards | {q: shards[p] for p, q in aside.items()}
        a = _collected(ledger, a, out_of, [aside[p] for p in mesh])
        ledger.shards = shards
        return a

    return [sent(a) for a in operands]


def permute(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
    """`ppermute`: each shard has another's value; those that nobody sends to have zeros."""
    params = eqn.params
    if not _known(ledger, eqn, params["axis_name"]):
        return uniform(ledger, eqn, *operands)
    mesh = _named(ledger, params["axis_name"])
    complete = len(params["perm"]) == math.prod(ledger.shards[p] for p in mesh)

    def rule(block: Block) -> Block:
        if not complete:
            block = settle(ledger, block, "zeros are put beside a shifted value")
        block = still(ledger, block, mesh, _SHARDS).only_knowing(Facts(wild=block.facts.wild))
        return block._replace(varies=block.varies | {*mesh})

    return [a.each(rule) for a in operands]


def axis_index(ledger: Ledger, eqn: Equation) -> Value:
    """The number of the shard."""
    return _differing(data(()), frozenset(ledger.shards))
