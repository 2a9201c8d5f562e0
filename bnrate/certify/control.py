"""Rules for calls, branches and loops: the program inside is read like the one outside.

A loop is read once more until its carry no longer changes: what is then known of the carry before
a step is also true after it, hence at every step.  The scanned axis of a scan stays on its values
as an axis below zero, along which the body's values may vary from step to step.
"""

from collections.abc import Callable, Sequence
from typing import Any

from bnrate.certify.axes import flattened, map_blocks, relabel
from bnrate.certify.choices import either, select
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts
from bnrate.certify.ledger import Ledger
from bnrate.certify.registry import reference_of
from bnrate.certify.shapes import joined, uniform
from bnrate.certify.source import differentiated_by_jax
from bnrate.certify.values import (
    Block,
    Value,
    fixed,
    moved,
    settle,
    still,
    unnamed,
    whole,
)

# Reads a closed or open jaxpr: (ledger, jaxpr, values) -> values.
Read = Callable[[Ledger, Any, Sequence[Value]], list[Value]]

_MOST_READINGS = 12
_CARRY = "a loop's carry that scales differently from step to step"


def call(read: Read, body: str) -> Callable[..., list[Value]]:
    """A rule that reads the called program, which is the parameter `body`."""
    return lambda ledger, eqn, *operands: read(ledger, eqn.params[body], operands)


def custom(read: Read, body: str) -> Callable[..., list[Value]]:
    """A call with a derivative rule of its own, which is not read.

    Invariant operands have tangents zero along the rescaling, whatever the rule; JAX's own rules
    are the true derivatives, and so are those of registered kernels.
    """

    def rule(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
        if (reference := reference_of(eqn)) is not None:
            return read(ledger, reference, operands)
        if ledger.gradient and not differentiated_by_jax(eqn):
            with ledger.of_gradient():
                return uniform(ledger, eqn, *operands)
        return read(ledger, eqn.params[body], operands)

    return rule


def cond(read: Read) -> Callable[..., list[Value]]:
    """A choice between programs by an invariant index."""

    def rule(ledger: Ledger, eqn: Equation, index: Value, *operands: Value) -> list[Value]:
        if (number := index.literal) is not None:
            last = len(eqn.params["branches"]) - 1
            chosen = eqn.params["branches"][min(max(int(number), 0), last)]
            return read(ledger, chosen, operands)
        results = [read(ledger, branch, operands) for branch in eqn.params["branches"]]
        what = "branches that scale differently"

        def chosen(*values: Value) -> Value:
            at = relabel(index, (1,) * len(values[0].cuts), {})
            return map_blocks(
                ledger, lambda i, *blocks: select(ledger, i, *blocks, what=what), at, *values
            )

        return [chosen(*values) for values in zip(*results, strict=True)]

    return rule


def while_loop(read: Read) -> Callable[..., list[Value]]:
    """A loop whose condition must be invariant."""

    def rule(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
        params = eqn.params
        n, m = params["cond_nconsts"], params["body_nconsts"]
        tests, consts, init = operands[:n], operands[n : n + m], operands[n + m :]

        def step(carry: list[Value]) -> tuple[list[Value], list[Value]]:
            (test,) = read(ledger, params["cond_jaxpr"], (*tests, *carry))
            cons = _fixed_all(ledger, test, "a loop's condition")
            out = read(ledger, params["body_jaxpr"], (*consts, *carry))
            return [v.each(lambda b: b.demanding(cons)) for v in out], []

        found = _steady(ledger, list(init), step)
        return uniform(ledger, eqn, *operands) if found is None else found[0]

    return rule


def scan(read: Read) -> Callable[..., list[Value]]:
    """A loop over the leading axis of some operands."""

    def rule(ledger: Ledger, eqn: Equation, *operands: Value) -> list[Value]:
        params = eqn.params
        n, m = params["num_consts"], params["num_carry"]
        consts, init, xs = operands[:n], operands[n : n + m], operands[n + m :]
        xs, factors = _leading(ledger, xs, params["length"])
        ledger.depth += 1
        hidden, outside = -ledger.depth, ledger.steps
        ledger.steps = (*outside, *((hidden, j) for j in range(len(factors))))
        inside = [_entered(x, hidden) for x in xs]

        def step(carry: list[Value]) -> tuple[list[Value], list[Value]]:
            out = read(ledger, params["jaxpr"], (*consts, *carry, *inside))
            positions = [(hidden, j) for j in range(len(factors))]
            carry = [v.each(lambda b: _same_each_step(ledger, b, positions)) for v in out[:m]]
            return carry, out[m:]

        found = _steady(ledger, list(init), step)
        ledger.depth, ledger.steps = ledger.depth - 1, outside
        if found is None:
            return uniform(ledger, eqn, *operands)
        carry, ys = found
        return [*carry, *(_left(y, hidden, params["length"], factors) for y in ys)]

    return rule


def _steady(
    ledger: Ledger,
    init: list[Value],
    step: Callable[[list[Value]], tuple[list[Value], list[Value]]],
) -> tuple[list[Value], list[Value]] | None:
    """The carry about which one step changes nothing, and the step's other results."""
    carry = [_anonymous(ledger, v) for v in init]
    for _ in range(_MOST_READINGS):
        out, others = step(carry)
        out = [_anonymous(ledger, v) for v in out]
        joint = [
            map_blocks(ledger, lambda a, b: _tidied(ledger, either(ledger, _CARRY, a, b)), c, o)
            for c, o in zip(carry, out, strict=True)
        ]
        if joint == carry:
            return carry, others
        carry = joint
    return None


def _anonymous(ledger: Ledger, value: Value) -> Value:
    """What is known of a value at every step: no shift, no name, no number."""

    def rule(block: Block) -> Block:
        block = settle(ledger, block, "a loop's carry that is shifted")
        facts = Facts(wild=block.facts.wild)
        varies = frozenset(block.positions) | block.varies
        return _tidied(ledger, block.only_knowing(facts)._replace(varies=varies))

    return value.each(rule)


def _tidied(ledger: Ledger, block: Block) -> Block:
    return block._replace(scale=ledger.tidy(block.scale, block.cons))


def _same_each_step(ledger: Ledger, block: Block, positions: list[tuple[int, int]]) -> Block:
    block = still(ledger, block, positions, _CARRY)
    return block._replace(varies=block.varies - set(positions))


def _leading(
    ledger: Ledger, xs: Sequence[Value], length: int
) -> tuple[list[Value], tuple[int, ...]]:
    """The scanned operands with one segment and the same factors along their leading axes."""
    single = [joined(ledger, x, 0) if len(x.cuts[0]) > 1 else x for x in xs]
    wholes = [next(iter(x.blocks.values())).axes[0] for x in single]
    if len(set(wholes)) > 1 or any(
        b.axes[0] != w for x, w in zip(single, wholes, strict=True) for b in x.blocks.values()
    ):
        single = [x.each(lambda b: flattened(ledger, b, 0)) for x in single]
    return single, (next(iter(single[0].blocks.values())).axes[0] if single else whole(length))


def _entered(value: Value, hidden: int) -> Value:
    """One step's entry of a scanned operand."""

    def rule(block: Block) -> Block:
        moves = {
            (a, j): (((a - 1, j),) if a else ((hidden, j),))
            for a, factors in enumerate(block.axes) for j in range(len(factors))
        }  # fmt: skip
        return moved(unnamed(block), block.axes[1:], moves)

    blocks = {index[1:]: rule(block) for index, block in value.blocks.items()}
    return Value(value.cuts[1:], blocks)


def _left(value: Value, hidden: int, length: int, factors: tuple[int, ...]) -> Value:
    """The stack of one result per step."""

    def rule(block: Block) -> Block:
        moves = {p: ((p[0] + 1, p[1]),) for p in block.positions}
        moves |= {(hidden, j): ((0, j),) for j in range(len(factors))}
        block = moved(unnamed(block), (factors, *block.axes), moves)
        return block.mixed(block.along([0]))

    blocks = {(0, *index): rule(block) for index, block in value.blocks.items()}
    return Value(((length,), *value.cuts), blocks)


def _fixed_all(ledger: Ledger, value: Value, what: str) -> int:
    cons = 0
    for block in value.blocks.values():
        cons |= fixed(ledger, block, what).cons
    return cons
