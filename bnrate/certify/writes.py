"""Rules for writes: `x.at[i].set`, `add`, `multiply`, `max`, segment sums, slices written over.

Axes of which every write takes all keep their structure; along the others all scales are uniform.
"""

import functools
from collections.abc import Callable
from typing import Any

from bnrate.certify.arithmetic import multiply
from bnrate.certify.axes import map_blocks, relabel
from bnrate.certify.choices import either
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts
from bnrate.certify.ledger import Ledger
from bnrate.certify.shapes import joined, resized, uniform
from bnrate.certify.values import Block, Value, fixed, settle

_WRITE = "a write among values that scale differently"
_FACTOR = "a factor that scales is written"

Join = Callable[[Ledger, Block, Block], Block]


def scatter(join: Join) -> Callable[..., Value | list[Value]]:
    """A rule for writes at invariant indices, given what becomes of an old entry and new ones."""

    def rule(ledger: Ledger, eqn: Equation, a: Value, at: Value, new: Value) -> Value | list[Value]:
        if not _plain_write(eqn):
            return uniform(ledger, eqn, a, at, new)
        numbers = eqn.params["dimension_numbers"]
        held = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        window = [d for d in range(len(a.cuts)) if d not in held]
        kept = dict(zip(window, numbers.update_window_dims, strict=True))
        others = [d for d in range(len(new.cuts)) if d not in numbers.update_window_dims]
        pairs = zip(
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
        )
        kept |= {d: others[i] for d, i in pairs}
        return _written(ledger, join, a, new, kept, [at])

    return rule


def write_slice(ledger: Ledger, eqn: Equation, a: Value, new: Value, *starts: Value) -> Value:
    """`dynamic_update_slice`: a block of entries at an invariant place."""
    return _written(ledger, replace, a, new, {d: d for d in range(len(a.cuts))}, starts)


def _written(
    ledger: Ledger, join: Join, a: Value, new: Value, axes: dict[int, int], places: Any
) -> Value:
    """The array after a write; `axes` says which axis of what is written lies along which."""
    kept = {d: n for d, n in axes.items() if a.shape[d] == new.shape[n]}
    shape = a.shape
    for d in range(len(shape)):
        if d not in kept:
            a = resized(joined(ledger, a, d, _WRITE), d, 1)
    for n in range(len(new.cuts)):
        if n not in kept.values():
            new = resized(joined(ledger, new, n, _WRITE), n, 1)
    new = relabel(new, a.shape, {n: d for d, n in kept.items()})
    cons = 0
    for place in places:
        for block in place.blocks.values():
            cons |= fixed(ledger, block, "an index").cons
    written = map_blocks(ledger, functools.partial(join, ledger), a, new)
    written = relabel(written, shape, {d: d for d in kept})

    def rule(block: Block) -> Block:
        facts = Facts(wild=block.facts.wild, nonnegative=block.facts.nonnegative)
        block = block.demanding(cons, varies=block.varies | frozenset(block.positions))
        return block.only_knowing(facts)

    return written.each(rule)


def replace(ledger: Ledger, old: Block, new: Block) -> Block:
    """Some entries are old ones, some are new ones; the larger or smaller of them, too."""
    return either(ledger, _WRITE, old, new)


def accumulate(ledger: Ledger, old: Block, new: Block) -> Block:
    """Nobody knows how many new entries are added to an old one."""
    old, new = (settle(ledger, b, "a sum of shifted values") for b in (old, new))
    return either(ledger, _WRITE, old, new)


def deduct(ledger: Ledger, old: Block, new: Block) -> Block:
    """New entries are subtracted."""
    return accumulate(ledger, old, new).knowing(nonnegative=False)


def scale(ledger: Ledger, old: Block, new: Block) -> Block:
    """Nobody knows how many new entries an old one is multiplied by."""
    old = settle(ledger, old, "a product of a shifted value")
    return multiply(ledger, old.only_knowing(), fixed(ledger, new, _FACTOR).only_knowing())


def _plain_write(eqn: Equation) -> bool:
    """Whether the new entries are the updates, or are added; not a function of the old ones."""
    function = eqn.params.get("update_jaxpr")
    if function is None or eqn.primitive.name != "scatter":
        return True
    jaxpr = getattr(function, "jaxpr", function)
    return not jaxpr.eqns and jaxpr.outvars[0] is jaxpr.invars[-1]
