"""Rules for choices between entries, tests of entries, and functions of one entry.

Like those of `arithmetic`, they speak of one block at a time.
"""

import functools
from typing import Any

import jax.numpy as jnp

from bnrate.certify import fields
from bnrate.certify.arithmetic import awaiting, lengths_of, with_epsilon
from bnrate.certify.equations import Equation
from bnrate.certify.facts import NO_REFS, NOTHING, Facts, Guard, Pending, meet
from bnrate.certify.fields import Stopped
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import (
    TINY,
    axes_of,
    cons_of,
    invariant,
    made,
    soft_of,
    stretched,
)
from bnrate.certify.values import (
    Block,
    as_dtype,
    facts_of,
    fixed,
    is_boundless,
    settle,
    told,
)

_STOPPED = "the gradient of a value that scales is stopped"
# Of "v OP 0", for a v that is positive where it is not zero.
_USUALLY = {"gt": True, "ge": True, "ne": True, "lt": False, "le": False, "eq": False}
_MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}


def either(ledger: Ledger, what: str, *blocks: Block) -> Block:
    """A choice, index by index, between values that must scale and shift alike.

    No shift moves a number that stands for infinity; a scale does.
    """
    bounded = [b for b in blocks if not is_boundless(b.facts.literal)]
    if any(b.shift != bounded[0].shift for b in bounded):
        blocks = tuple(settle(ledger, b, what) for b in blocks)
    solid = [b for b in blocks if not b.facts.wild]
    first = next((b for b in solid if b.facts.literal is None), solid[0] if solid else blocks[0])
    met = 0
    for block in solid:
        met |= ledger.vanish(fields.add(block.scale, first.scale, -1), what)
    facts = Facts(
        wild=not solid,
        nonnegative=all(b.facts.nonnegative for b in blocks),
        nonzero=all(b.facts.nonzero for b in blocks),
        factors=functools.reduce(
            frozenset.intersection, [b.factors for b in blocks if b.facts.literal != 0]
            or [frozenset()],
        ),
    )  # fmt: skip
    chosen = made(blocks, first.scale, first.shift, met, facts)
    pending = [p for b in blocks for p in b.facts.pending]
    return awaiting(chosen, met | soft_of(*blocks), pending).mixed() if pending else chosen


def maximum(ledger: Ledger, a: Block, b: Block) -> Block:
    """The larger one; a tiny number below a value that is not negative is an epsilon."""
    for x, other in ((a, b), (b, a)):
        number = other.facts.literal
        if number is not None and x.facts.nonnegative:
            if number <= 0:
                return stretched(x, axes_of(a, b))
            if number <= TINY and x.scale:
                return with_epsilon(ledger, x, other, "a guard against zero", above=True)
    result = either(ledger, "a maximum of values that scale differently", _firm(a), _firm(b))
    positive = a.facts.nonnegative or b.facts.nonnegative
    over = a.over | b.over if a.facts.nonnegative and b.facts.nonnegative else frozenset()
    return result.knowing(nonnegative=positive, over=over)


def minimum(ledger: Ledger, a: Block, b: Block) -> Block:
    """The smaller one."""
    return either(ledger, "a minimum of values that scale differently", _firm(a), _firm(b))


def _firm(a: Block) -> Block:
    """The block without excuses: what it is may be 0 once an epsilon is."""
    return a.knowing(pending=(), soft=0) if a.facts.pending else a


def clamp(ledger: Ledger, eqn: Equation, low: Block, a: Block, high: Block) -> Block:
    """A choice; where operand and bound are the same number, JAX gives none of them a gradient."""
    bounds = [b for b in (low, high) if not b.facts.wild]
    if all(b.facts.literal is not None for b in bounds):
        return minimum(ledger, maximum(ledger, a, low), high)
    if ledger.gradient:
        with ledger.of_gradient():
            return invariant(ledger, eqn, low, a, high)
    return either(ledger, "values that scale differently are clamped", low, a, high)


def select(
    ledger: Ledger,
    predicate: Block,
    *cases: Block,
    what: str = "a choice of values that scale differently",
) -> Block:
    """The case that the predicate names, index by index."""
    if (number := predicate.facts.literal) is not None:
        return stretched(cases[int(number)], axes_of(predicate, *cases))
    predicate = fixed(ledger, predicate, "a condition")
    guard = predicate.facts.guard
    if guard and len(cases) == 2:
        usual, other = cases[int(guard.usually)], cases[1 - int(guard.usually)]
        if _differ(usual, other) and not usual.facts.wild:
            return _guarded(ledger, what, guard, predicate, usual, other)
    chosen = either(ledger, what, *cases).demanding(predicate.cons)
    return stretched(chosen, axes_of(predicate, chosen)).mixed(predicate.varies)


def _differ(usual: Block, other: Block) -> bool:
    """Whether a choice between the two would demand something."""
    same = usual.scale == other.scale and usual.shift == other.shift
    return not (same or other.facts.wild) or bool(usual.facts.pending)


def _guarded(
    ledger: Ledger, what: str, guard: Guard, predicate: Block, usual: Block, other: Block
) -> Block:
    """The usual case, or another where some value is zero (see `Guard`)."""
    usual, other = (settle(ledger, b, what) for b in (usual, other))
    # Wherever the condition varies, some entries may be of the one and some of the other.
    usual, other = (b.only_knowing(b.facts.blurred(predicate.varies)) for b in (usual, other))
    difference = fields.add(other.scale, usual.scale, -1)
    eps, hard = ledger.epsilon(difference, other.facts.literal or 0.0, "a guard against zero")
    lengths = lengths_of(ledger, predicate, usual, other)
    idle = other.facts.literal == 0 or all(
        meet(zeros.over, other.factors, lengths) for zeros in guard.zeros
    )
    if idle and not guard.eps:
        eps = hard = 0  # where the other case is chosen it is zero
    of = {zeros.of for zeros in guard.zeros} - {None}
    soft, pending = usual.soft | other.soft | guard.soft, list(other.facts.pending)
    for p in usual.facts.pending:
        # Where it matters, the other case may be chosen.
        zeros = tuple(z for z in p.zeros if of.isdisjoint(z.over))
        soft |= 0 if zeros else p.met
        pending += [p._replace(zeros=zeros)] if zeros else []
    zeros = tuple(z for z in guard.zeros if guard.eps or not z.null)
    if not zeros:
        soft |= eps  # a null set
    elif hard or guard.hard:
        null = len(zeros) < len(guard.zeros)
        met = eps | guard.eps if guard.eps or null else 0
        pending.append(Pending(eps | guard.eps, met, hard | guard.hard, zeros))
    facts = Facts(
        nonnegative=usual.facts.nonnegative and other.facts.nonnegative,
        nonzero=other.facts.nonzero and (usual.facts.nonzero or not of.isdisjoint(usual.over)),
        factors=usual.factors if idle else frozenset(),
    )  # fmt: skip
    chosen = made((predicate, usual, other), usual.scale, facts=facts)
    return awaiting(chosen, soft, pending)


def compare(ledger: Ledger, eqn: Equation, a: Block, b: Block) -> Block:
    """A comparison of values that scale and shift alike; 0 and inf scale like anything."""
    a, b = (told(ledger, x, "a comparison") for x in (a, b))
    if a.shift != b.shift:
        a, b = (settle(ledger, x, "a comparison of a shifted value") for x in (a, b))
    name: str = eqn.primitive.name
    number, x, other = b.facts.literal, a, b
    if number is None:
        number, x, other, name = a.facts.literal, b, a, _MIRRORED.get(name, name)
    what = "a comparison of values that scale differently"
    signless = name in ("eq", "ne")
    if number == 0 and (signless or (x.facts.nonnegative and name in ("gt", "le"))):
        guard = Guard(_USUALLY[name], cons_of(a, b), 0, 0, (x.zeros,))
        return made((a, b), facts=Facts(guard=guard))
    if a.facts.wild or b.facts.wild:
        return made((a, b))
    if number is not None and 0 < number <= TINY and x.scale and x.facts.nonnegative:
        eps, hard = ledger.epsilon(x.scale, number, "a comparison with an epsilon")
        guard = Guard(_USUALLY[name], x.cons | other.cons, eps, hard, (x.zeros,))
        return made((a, b), cons=x.cons | hard, facts=Facts(guard=None if signless else guard))
    return made((a, b), cons=ledger.vanish(fields.add(b.scale, a.scale, -1), what))


def in_total_order(ledger: Ledger, eqn: Equation, a: Block, b: Block) -> Block:
    """A comparison that orders zeros by sign, and nan: of values that scale and shift alike."""
    a, b = (told(ledger, x, "a comparison") for x in (a, b))
    if a.shift != b.shift:
        a, b = (settle(ledger, x, "a comparison of a shifted value") for x in (a, b))
    if a.facts.wild or b.facts.wild:
        return made((a, b))
    what = "a comparison of values that scale differently"
    return made((a, b), cons=ledger.vanish(fields.add(b.scale, a.scale, -1), what))


def negation(ledger: Ledger, eqn: Equation, a: Block) -> Block:
    """Not a."""
    guard = a.facts.guard
    opposite = guard and guard._replace(usually=not guard.usually)
    return invariant(ledger, eqn, a).knowing(guard=opposite)


def both(ledger: Ledger, eqn: Equation, a: Block, b: Block) -> Block:
    """Or of what is usually false, and of what is usually true: a guard of all their zeros."""
    result = invariant(ledger, eqn, a, b)
    x, y = a.facts.guard, b.facts.guard
    if x is None or y is None or x.usually != y.usually:
        return result
    if x.usually != (eqn.primitive.name == "and"):
        return result  # the opposite only where both are
    return result.knowing(guard=Guard(
        x.usually, x.soft | y.soft, x.eps | y.eps, x.hard | y.hard, (*x.zeros, *y.zeros)
    ))  # fmt: skip


def sign(ledger: Ledger, a: Block) -> Block:
    """The sign forgets the scale."""
    a = told(ledger, settle(ledger, a, "the sign of a shifted value"), "a sign")
    return Block(a.axes, {}, {}, a.cons, a.varies, Facts(factors=a.factors))


def is_finite(ledger: Ledger, a: Block) -> Block:
    """In real arithmetic a rescaled or shifted number is finite as before."""
    a = told(ledger, a, "whether a number is finite")
    return Block(a.axes, {}, {}, a.cons, a.varies)


def absolute(ledger: Ledger, a: Block) -> Block:
    """The absolute value keeps the scale."""
    a = settle(ledger, a, "the absolute value of a shifted value")
    facts = Facts(
        wild=a.facts.wild, nonnegative=True, nonzero=a.facts.nonzero, over=a.over,
        factors=a.factors, pending=a.facts.pending, soft=a.facts.soft,
    )  # fmt: skip
    if a.facts.nonnegative:
        facts = a.facts
    return a.only_knowing(facts)


def remainder(ledger: Ledger, a: Block, b: Block) -> Block:
    """The remainder of values that scale alike scales with them."""
    return _of_pair(ledger, "a remainder of values that scale differently", a, b)


def angle(ledger: Ledger, a: Block, b: Block) -> Block:
    """The angle of two values that scale alike does not scale."""
    a, b = (told(ledger, x, "an angle") for x in (a, b))
    pair = _of_pair(ledger, "an angle of values that scale differently", a, b)
    return pair._replace(scale={})


def _of_pair(ledger: Ledger, what: str, a: Block, b: Block) -> Block:
    """A homogeneous function of two values."""
    a, b = (settle(ledger, x, what) for x in (a, b))
    solid = b if a.facts.literal == 0 else a  # zero scales like anything
    other = a if solid is b else b
    met = 0 if other.facts.literal == 0 else ledger.vanish(fields.add(a.scale, b.scale, -1), what)
    return made((a, b), solid.scale, cons=met)


def reduce_precision(ledger: Ledger, eqn: Equation, a: Block) -> Block:
    """Fewer bits: of bfloat16's and float16's numbers on they stand for real ones."""
    ledger.narrow |= eqn.params["exponent_bits"] < 8
    if eqn.params["exponent_bits"] >= 5 and eqn.params["mantissa_bits"] >= 7:
        return a if eqn.params["exponent_bits"] >= 8 else a.only_knowing()
    return fixed(ledger, a, "a rounding").only_knowing()


def convert(ledger: Ledger, eqn: Equation, a: Block) -> Block:
    """Another dtype: float keeps all, bool keeps what zero keeps, others keep nothing."""
    before, to = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    if jnp.issubdtype(before, jnp.complexfloating) and not jnp.issubdtype(to, jnp.complexfloating):
        a = settle(ledger, a, "a part of a shifted value").only_knowing()
        return a if _wide(to) else fixed(ledger, a, "a rounding").only_knowing()
    if jnp.issubdtype(to, jnp.complexfloating):
        return a.only_knowing(a.facts._replace(literal=None, nonnegative=False, guard=None))
    if a.facts.literal is not None:
        number = as_dtype(a.facts.literal, to)
        return a.only_knowing(NOTHING if number is None else facts_of(number))
    if to == jnp.float16 and before != jnp.float16 and _wide(before):
        factors, positive = a.factors, a.facts.nonnegative  # small numbers become 0
        facts = a.facts.rounded()._replace(symbol=None, over=NO_REFS, factors=factors)
        return a.only_knowing(facts._replace(nonnegative=positive))
    if to == before or (_wide(to) and _wide(before)):
        return a
    if (not _wide(to) and before == jnp.bool_) or (
        not _wide(before) and jnp.issubdtype(to, jnp.integer)
    ):
        return fixed(ledger, a, "a rounding").only_knowing(Facts(guard=a.facts.guard))
    if _wide(to):
        facts = Facts(nonnegative=before == jnp.bool_)
        return fixed(ledger, a, "a rounding").only_knowing(facts)
    if jnp.issubdtype(to, jnp.bool_):
        return sign(ledger, a).only_knowing()
    return fixed(ledger, a, "a rounding").only_knowing()


def keep(ledger: Ledger, a: Block) -> Block:
    """The same numbers."""
    return a


def stop_gradient(ledger: Ledger, a: Block) -> Block:
    """The same numbers; to the gradient, a constant.

    What a rescaling does to them is a token: to the gradient 0, so that it is not what it does to
    numbers that are not stopped, and vanishes if that does.
    """
    if not ledger.gradient:
        return a
    with ledger.of_gradient():
        scale, shift = (
            ledger.tokens(field, _STOPPED, lambda line, _: Stopped(line))
            for field in (a.scale, a.shift)
        )
    facts = a.facts._replace(symbol=None, over=a.over, factors=a.factors)
    return Block(a.axes, scale, shift, a.cons, a.varies, facts)


def _wide(dtype: Any) -> bool:
    """Whether numbers of this dtype stand for real ones: floats of 16 bits or more."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.dtype(dtype).itemsize >= 2
