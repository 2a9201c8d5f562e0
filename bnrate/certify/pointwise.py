"""What the rules for operations that act on each index by itself have in common."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields
from bnrate.certify.fields import Field, Token
from bnrate.certify.ledger import Ledger
from bnrate.certify.values import Block, Value, fixed, is_wild, map_blocks, relabel, sign_of

# What a constraint says to a user; advice is given on these by name.
SUM = "terms that scale differently are added"
FIXED = "a value that scales is added to one that does not"
PENALTY = "terms of the loss that scale differently are added"
ENTRIES = "entries that scale differently are summed"
EXPONENTIAL = "a value that scales is exponentiated"
LOSS = "the loss itself scales"

TINY = 1e-3  # a literal of at most this size is taken for an epsilon, and reported

_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "sqrt": np.sqrt, "square": np.square,
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "sign": np.sign, "abs": np.abs, "exp": np.exp,
    "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip  # fmt: skip


def pointwise(rule: Callable[..., Block]) -> Callable[..., Value]:
    """A rule for values from a rule `(ledger, eqn, *blocks)`; literals are computed."""

    def apply(ledger: Ledger, eqn: Any, *operands: Value) -> Value:
        rank = max(len(v.cuts) for v in operands)
        operands = tuple(
            v if len(v.cuts) == rank else relabel(v, (1,) * rank, {}) for v in operands
        )

        def on_blocks(*blocks: Block) -> Block:
            numbers = [b.literal for b in blocks]
            fold = None if None in numbers else _FOLDED.get(eqn.primitive.name)
            if fold is not None and not _whole(eqn):
                with np.errstate(all="ignore"):
                    number = float(fold(*numbers))
                return Block(
                    axes_of(*blocks), literal=number, wild=is_wild(number), sign=sign_of(number)
                )
            if _whole(eqn) and eqn.primitive.name in _FOLDED:
                return invariant(ledger, eqn, *blocks)
            return rule(ledger, eqn, *blocks)

        return map_blocks(ledger, on_blocks, *operands)

    return apply


def _whole(eqn: Any) -> bool:
    """Whether the results are whole numbers, which wrap around and are divided otherwise."""
    return jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer)


def invariant(ledger: Ledger, eqn: Any, *blocks: Block) -> Block:
    """A function of each index about which nothing is known: its operands must be invariant."""
    what = f"{eqn.primitive.name} of a value that scales"
    blocks = tuple(fixed(ledger, b, what) for b in blocks)
    return made(blocks[0], *blocks).but(wild=False, generic=False)


def made(base: Block, *operands: Block) -> Block:
    """The base's statement, for a result of operands: their constraints and extent."""
    return base.but(
        axes=axes_of(*operands), cons=cons_of(*operands), symbol=None, literal=None, sign=0,
        usual=None, generic=all(b.generic for b in operands), pending=0,
        varies=frozenset(p for b in operands for p in b.varies),
    )  # fmt: skip


def axes_of(*blocks: Block) -> tuple[tuple[int, ...], ...]:
    """The axes of a result; those of length one are broadcast."""
    return tuple(max(found, key=len) for found in zip(*(b.axes for b in blocks), strict=True))


def stretched(block: Block, axes: tuple[tuple[int, ...], ...]) -> Block:
    """The block broadcast to other axes: then it is another array."""
    return block if block.axes == axes else block.but(axes=axes, symbol=None)


def cons_of(*blocks: Block) -> int:
    """The constraints of all blocks."""
    total = 0
    for block in blocks:
        total |= block.cons
    return total


def unmarked(ledger: Ledger, a: Block) -> Block:
    """The block without the tokens of leaves that may have no effect: no epsilon excuses them."""
    tokens: Field = {
        (atom, at): k for (atom, at), k in a.scale.items()
        if isinstance(atom, Token) and ledger.marked(atom.obligations)
    }  # fmt: skip
    cons = a.cons | ledger.vanish(tokens, "an epsilon is added")
    return a.but(scale=fields.off(a.scale, tokens), cons=cons)
