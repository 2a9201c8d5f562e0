"""Rules for choices between entries, tests of entries, and functions of one entry.

Like those of `arithmetic`, they speak of one block at a time.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import TINY, axes_of, cons_of, invariant, made, stretched, unmarked
from bnrate.certify.values import (
    Block,
    firm,
    fixed,
    is_boundless,
    is_wild,
    settle,
    sign_of,
)

# Of "v OP 0", for a v that is positive except on a degenerate set.
_USUAL = {"gt": True, "ge": True, "ne": True, "lt": False, "le": False, "eq": False}
_MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}


def either(ledger: Ledger, what: str, *blocks: Block, usual: int | None = None) -> Block:
    """A choice, index by index, between values that must scale and shift alike.

    A tiny literal among them counts as an epsilon; so does any literal beside the usual case.
    """
    bounded = [b for b in blocks if not is_boundless(b.literal)]
    if any(b.shift != bounded[0].shift for b in bounded):
        blocks = tuple(settle(ledger, b, what) for b in blocks)
    solid = {i: b for i, b in enumerate(blocks) if not b.wild}
    first = next((b for b in solid.values() if b.literal is None), next(iter(solid.values()), None))
    first = blocks[0] if first is None else first
    cons, pending = cons_of(*blocks), 0
    for i, block in solid.items():
        pending |= block.pending
        number = block.literal
        if number is None or (
            abs(number) > TINY and usual in (None, i) and not is_boundless(number)
        ):
            cons |= ledger.vanish(fields.add(block.scale, first.scale, -1), what)
            continue
        first = unmarked(ledger, first)
        cons |= first.cons
        if is_boundless(number):
            cons |= ledger.epsilon(first.scale, number, "a stand-in for infinity")
        else:
            pending |= ledger.epsilon(first.scale, number, "a guard against zero")
    varies = frozenset(p for b in blocks for p in b.varies)
    return first.but(
        axes=axes_of(*blocks), cons=cons, pending=pending, wild=not solid, literal=None,
        symbol=None, varies=varies, sign=min(b.sign for b in blocks), usual=None,
        generic=False,
    )  # fmt: skip


def clamp(ledger: Ledger, eqn: Any, low: Block, a: Block, high: Block) -> Block:
    """A choice; where operand and bound are the same number, JAX gives none of them a gradient."""
    if ledger.gradient and any(not b.wild and b.literal is None for b in (low, high)):
        return invariant(ledger, eqn, low, a, high)
    return either(ledger, "values that scale differently are clamped", low, a, high)


def choose(what: str) -> Callable[..., Block]:
    """A rule for max, min, clamp."""
    return lambda ledger, eqn, *blocks: either(ledger, what, *blocks)


def select(ledger: Ledger, eqn: Any, predicate: Block, *cases: Block) -> Block:
    """The case that the predicate names, index by index."""
    if predicate.literal is not None:
        return stretched(cases[int(predicate.literal)], axes_of(predicate, *cases))
    predicate = fixed(ledger, predicate, "a condition")
    usual = None if predicate.usual is None else int(predicate.usual)
    what = "a choice of values that scale differently"
    chosen = either(ledger, what, *cases, usual=usual)
    return chosen.but(
        axes=axes_of(predicate, *cases),
        cons=chosen.cons | predicate.cons,
        varies=chosen.varies | predicate.varies,
    )


def compare(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """A comparison of values that scale and shift alike; 0 and inf scale like anything."""
    if a.shift != b.shift:
        a, b = (settle(ledger, x, "a comparison of a shifted value") for x in (a, b))
    a, b = firm(ledger, a), firm(ledger, b)
    cons = a.cons | b.cons
    number = a.literal if b.literal is None else b.literal
    tiny = number is not None and abs(number) <= TINY
    if not (a.wild or b.wild):
        difference = fields.add(b.scale, a.scale, -1)
        if tiny:
            x = unmarked(ledger, a if b.literal is not None else b)
            cons |= x.cons | ledger.epsilon(x.scale, number or 0.0, "a comparison with an epsilon")
        else:
            cons |= ledger.vanish(difference, "a comparison of values that scale differently")
    usual = None
    positive = b if b.literal is None else a
    if tiny and positive.sign == 2 and (number == 0 or positive.scale):
        name = str(eqn.primitive.name)
        usual = _USUAL.get(name if b.literal is not None else _MIRRORED.get(name, name))
    return made(a, a, b).but(scale={}, shift={}, cons=cons, wild=False, usual=usual, generic=False)


def sign(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The sign forgets the scale."""
    a = settle(ledger, firm(ledger, a), "the sign of a shifted value")
    return a.but(scale={}, wild=a.wild and a.literal == 0, literal=None, symbol=None, generic=False)


def is_finite(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """In real arithmetic a rescaled or shifted number is finite as before."""
    return a.but(scale={}, shift={}, pending=0, wild=False, literal=None, symbol=None,
                 cons=a.cons | ledger.hardened(a.pending))  # fmt: skip


def absolute(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The absolute value keeps the scale."""
    a = settle(ledger, a, "the absolute value of a shifted value")
    return a.but(symbol=None, sign=max(1, a.sign), generic=False)


def convert(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """Another dtype: float keeps all, bool keeps what zero keeps, whole numbers keep nothing."""
    to = eqn.params["new_dtype"]
    if jnp.issubdtype(to, jnp.complexfloating):
        return a.but(literal=None, sign=0)
    if a.literal is not None:
        number = float(np.asarray(a.literal).astype(to))
        return a.but(literal=number, wild=is_wild(number), sign=sign_of(number))
    if _inexact(to) or not _inexact(eqn.invars[0].aval.dtype):
        return a
    if jnp.issubdtype(to, jnp.bool_):
        return sign(ledger, eqn, a).but(wild=False)
    return fixed(ledger, a, "a rounding").but(
        wild=False, symbol=None, sign=min(a.sign, 1), generic=False
    )


def keep(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The same numbers."""
    return a


def stop_gradient(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The same numbers; to the gradient, a constant."""
    if not ledger.gradient:
        return a
    return a.but(scale={}, shift={}, cons=0, pending=0, symbol=None)


def _inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
