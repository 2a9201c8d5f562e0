"""What the rules for operations that act on each index by itself have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnrate.certify import fields
from bnrate.certify.axes import map_blocks, relabel
from bnrate.certify.equations import Equation
from bnrate.certify.facts import NOTHING, Facts
from bnrate.certify.fields import Field
from bnrate.certify.ledger import Ledger
from bnrate.certify.values import Block, Value, facts_of, fixed, is_integer

# What a constraint says to a user; advice is given on these by name.
SUM = "terms that scale differently are added"
FIXED = "a value that scales is added to one that does not"
PENALTY = "terms of the loss that scale differently are added"
ENTRIES = "entries that scale differently are summed"
EXPONENTIAL = "a value that scales is exponentiated"
LOSS = "the loss itself scales"

# A literal of at most 1e-3, as any dtype rounds it, is taken for an epsilon, and reported.
TINY = 1e-3 * (1 + 2**-8)

_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "sqrt": np.sqrt, "square": np.square,
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "sign": np.sign, "abs": np.abs, "exp": np.exp,
    "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip
# Of whole numbers these are what they are of real ones; others wrap around or round.
_WHOLE = {"select_n", "max", "min", "clamp", "copy", "convert_element_type", "stop_gradient"}


def pointwise(rule: Callable[..., Block]) -> Callable[..., Value]:
    """A rule for values from a rule `(ledger, eqn, *blocks)`; literals are computed."""

    def apply(ledger: Ledger, eqn: Equation, *operands: Value) -> Value:
        rank = max(len(v.cuts) for v in operands)
        operands = tuple(
            v if len(v.cuts) == rank else relabel(v, (1,) * rank, {}) for v in operands
        )
        name = eqn.primitive.name
        whole = is_integer(eqn.outvars[0].aval.dtype)
        fold = None if whole else _FOLDED.get(name)
        chosen = invariant if whole and name not in _WHOLE else rule

        def on_blocks(*blocks: Block) -> Block:
            numbers = [b.facts.literal for b in blocks]
            if fold is None or None in numbers:
                return chosen(ledger, eqn, *blocks)
            dtypes = [v.aval.dtype for v in eqn.invars]
            with np.errstate(all="ignore"):
                number = float(
                    fold(*(np.asarray(n, t) for n, t in zip(numbers, dtypes, strict=True)))
                )
            return Block(axes_of(*blocks), {}, {}, 0, frozenset(), facts_of(number))

        return map_blocks(ledger, on_blocks, *operands)

    return apply


def invariant(ledger: Ledger, eqn: Equation, *blocks: Block) -> Block:
    """A function of each index about which nothing is known: its operands must be invariant."""
    what = f"{eqn.primitive.name} of a value that scales"
    blocks = tuple(fixed(ledger, b, what) for b in blocks)
    return made(blocks)


def made(
    operands: Sequence[Block],
    scale: Field = fields.ZERO,
    shift: Field = fields.ZERO,
    cons: int = 0,
    facts: Facts = NOTHING,
) -> Block:
    """A new value that is made of operands, index by index: it has their constraints and extent."""
    varies = operands[0].varies
    for block in operands[1:]:
        varies = varies | block.varies
    return Block(axes_of(*operands), scale, shift, cons | cons_of(*operands), varies, facts)


def axes_of(*blocks: Block) -> tuple[tuple[int, ...], ...]:
    """The axes of a result; those of length one are broadcast."""
    if all(b.axes == blocks[0].axes for b in blocks):
        return blocks[0].axes
    return tuple(max(found, key=len) for found in zip(*(b.axes for b in blocks), strict=True))


def stretched(block: Block, axes: tuple[tuple[int, ...], ...]) -> Block:
    """The block broadcast to other axes: other axes of it have length one."""
    return block if block.axes == axes else block._replace(axes=axes)


def cons_of(*blocks: Block) -> int:
    """The constraints of all blocks."""
    total = 0
    for block in blocks:
        total |= block.cons
    return total


def soft_of(*blocks: Block) -> int:
    """The constraints of all blocks once all that is pending is excused."""
    total = 0
    for block in blocks:
        total |= block.soft
    return total
