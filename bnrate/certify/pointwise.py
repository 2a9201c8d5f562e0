"""Rules for operations that act on each index by itself.

A rule turns the statements about the operands into one about the result, and writes down what
must hold for that.  Those here speak of one block at a time.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnrate.certify import fields
from bnrate.certify.fields import Field, Placement, Position, Token
from bnrate.certify.ledger import Ledger
from bnrate.certify.values import (
    Block,
    Value,
    firm,
    fixed,
    is_boundless,
    is_wild,
    map_blocks,
    relabel,
    settle,
    sign_of,
)

# What a constraint says to a user; advice is given on these by name.
SUM = "terms that scale differently are added"
FIXED = "a value that scales is added to one that does not"
PENALTY = "terms of the loss that scale differently are added"
ENTRIES = "entries that scale differently are summed"
EXPONENTIAL = "a value that scales is exponentiated"
LOSS = "the loss itself scales"

_TINY = 1e-3  # a literal of at most this size is taken for an epsilon, and reported
_MOST_TOKENS = 3  # of which products are still formed
_ROUNDING = 3e-7  # of a literal like 1/49 in float32

# Of "v OP 0", for a v that is positive except on a degenerate set.
_USUAL = {"gt": True, "ge": True, "ne": True, "lt": False, "le": False, "eq": False}
_MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}

_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "sqrt": np.sqrt, "square": np.square,
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "sign": np.sign, "abs": np.abs, "exp": np.exp,
    "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


def pointwise(rule: Callable[..., Block]) -> Callable[..., Value]:
    """A rule for values from a rule `(ledger, eqn, *blocks)`; literals are computed."""

    def apply(ledger: Ledger, eqn: Any, *operands: Value) -> Value:
        rank = max(len(v.cuts) for v in operands)
        operands = tuple(v if len(v.cuts) == rank else relabel(v, (1,) * rank, {}) for v in operands)

        def on_blocks(*blocks: Block) -> Block:
            numbers = [b.literal for b in blocks]
            fold = _FOLDED.get(eqn.primitive.name)
            if fold is not None and None not in numbers:
                with np.errstate(all="ignore"):
                    number = float(fold(*numbers))
                return Block(
                    _axes(*blocks), literal=number, wild=is_wild(number), sign=sign_of(number)
                )
            return rule(ledger, eqn, *blocks)

        return map_blocks(ledger, on_blocks, *operands)

    return apply


# --- sums


def add(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """a + b: equal scales; or the smaller operand's failure to scale along becomes a token."""
    if a.wild or b.wild:
        solid = b if a.wild else a
        return _made(solid, a, b).but(
            wild=a.wild and b.wild,
            shift=fields.add(a.shift, b.shift),
            pending=a.pending | b.pending,
            sign=_summed(a, b),
        )
    for x, number in ((a, b.literal), (b, a.literal)):
        if number is not None and 0 < abs(number) <= _TINY and x.scale:
            x = _unmarked(ledger, x)
            pending = x.pending | ledger.epsilon(x.scale, number, "an epsilon is added")
            return _made(x, a, b).but(pending=pending, sign=_summed(a, b))
    a, b = firm(ledger, a), firm(ledger, b)
    shift = fields.add(a.shift, b.shift)
    difference = fields.add(b.scale, a.scale, -1)
    if not difference:
        return _made(a, a, b).but(shift=shift, sign=_summed(a, b))
    if len(b.varies) > len(a.varies):
        a, b = b, a
    met = ledger.vanish(difference, _sum_of(a, b))
    reach = {p for field in (a.scale, b.scale, b.shift) for _, at in field for p in at}
    depends = _sorted(b.varies | reach)
    constant_along = [p for p in a.varies if p not in depends and p[0] >= 0]
    if not constant_along:
        cons = a.cons | b.cons | met
        return _made(a, a, b).but(shift=shift, cons=cons, sign=_summed(a, b))
    token = Token(ledger.name(), met | b.cons)
    shift = fields.add(shift, {(token, depends): 1})
    return _made(a, a, b).but(shift=shift, cons=a.cons)


def subtract(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """a - b."""
    return add(ledger, eqn, a, negate(ledger, eqn, b))


def negate(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """-a."""
    return _times(a, Fraction(-1))


# --- products


def multiply(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """a * b: scales add; a token times anything is another token."""
    for x, other in ((a, b), (b, a)):
        if other.literal == 0:
            return other.but(axes=_axes(a, b))
        if other.literal is not None and not is_boundless(other.literal):
            return _times(x, _rational(other.literal)).but(axes=_axes(a, b))
    a, b = firm(ledger, a), firm(ledger, b)
    if a.symbol and b.symbol and a.symbol[1] == b.symbol[1] and a.axes == b.axes:
        return _square(ledger, a, b.symbol[0] / a.symbol[0])
    if a.wild or b.wild:
        a, b = (settle(ledger, x, "a product with infinity") for x in (a, b))
        return _made(a, a, b).but(scale={}, wild=True)
    # (A + T)(B + U) = AB + T(B + U) + AU for scaled values A, B with shifts T, U.
    scale, sign = fields.add(a.scale, b.scale), min(a.sign, b.sign)
    result = _made(a, a, b).but(scale=scale, shift={}, sign=sign)
    for x, other in ((a, b), (b, a)):
        reach = other.varies | {p for f in (other.scale, other.shift) for _, at in f for p in at}
        shift, cons = derived(ledger, x.shift, reach.union, result)
        result = result.but(shift=fields.add(result.shift, shift), cons=result.cons | cons)
    return result


def divide(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """a / b."""
    return multiply(ledger, eqn, a, _reciprocal(ledger, b))


def square(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """a * a."""
    return _square(ledger, firm(ledger, a), Fraction(1))


def integer_power(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """a ** n for a fixed whole n."""
    exponent = eqn.params["y"]
    if exponent == 2:
        return square(ledger, eqn, a)
    return _power(ledger, a, Fraction(exponent))


def power(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """a ** b, homogeneous where b is a known number."""
    if b.literal is not None and not is_boundless(b.literal):
        return _power(ledger, a, _rational(b.literal)).but(axes=_axes(a, b))
    a, b = (fixed(ledger, x, "a power with a variable exponent") for x in (a, b))
    return _made(a, a, b).but(wild=False)


def root(exponent: Fraction) -> Callable[..., Block]:
    """A rule for a ** exponent."""
    return lambda ledger, eqn, a: _power(ledger, a, exponent)


def log(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The scale of a becomes the shift of log a."""
    a = settle(ledger, _excused(a), "the logarithm of a shifted value")
    return a.but(shift=a.scale, scale={}, literal=None, symbol=None, sign=0)


def exp(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The shift of a becomes the scale of exp a."""
    a = firm(ledger, a)
    cons = a.cons | ledger.vanish(a.scale, EXPONENTIAL)
    return a.but(
        scale=a.shift, shift={}, cons=cons, wild=False, literal=None, symbol=None, sign=2
    )


# --- choices and tests


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
    cons, pending = _cons(*blocks), 0
    for i, block in solid.items():
        pending |= block.pending
        number = block.literal
        if number is not None and (abs(number) <= _TINY or usual not in (None, i)):
            first = _unmarked(ledger, first)
            cons |= first.cons
            pending |= ledger.epsilon(first.scale, number, "a guard against zero")
        else:
            cons |= ledger.vanish(fields.add(block.scale, first.scale, -1), what)
    varies = frozenset(p for b in blocks for p in b.varies)
    return first.but(
        axes=_axes(*blocks), cons=cons, pending=pending, wild=not solid, literal=None,
        symbol=None, varies=varies, sign=min(b.sign for b in blocks), usual=None,
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
        return cases[int(predicate.literal)].but(axes=_axes(predicate, *cases))
    predicate = fixed(ledger, predicate, "a condition")
    usual = None if predicate.usual is None else int(predicate.usual)
    what = "a choice of values that scale differently"
    chosen = either(ledger, what, *cases, usual=usual)
    return chosen.but(
        axes=_axes(predicate, *cases),
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
    tiny = number is not None and abs(number) <= _TINY
    if not (a.wild or b.wild):
        difference = fields.add(b.scale, a.scale, -1)
        if tiny:
            x = _unmarked(ledger, a if b.literal is not None else b)
            cons |= x.cons | ledger.epsilon(x.scale, number or 0.0, "a comparison with an epsilon")
        else:
            cons |= ledger.vanish(difference, "a comparison of values that scale differently")
    usual = None
    if tiny and (b if b.literal is None else a).sign == 2:  # something positive against zero
        name = eqn.primitive.name
        usual = _USUAL.get(name if b.literal is not None else _MIRRORED.get(name, name))
    return _made(a, a, b).but(scale={}, shift={}, cons=cons, wild=False, usual=usual)


def sign(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The sign forgets the scale."""
    a = settle(ledger, firm(ledger, a), "the sign of a shifted value")
    return a.but(scale={}, wild=a.wild and a.literal == 0, literal=None, symbol=None)


def is_finite(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """In real arithmetic a rescaled or shifted number is finite as before."""
    return a.but(scale={}, shift={}, pending=0, wild=False, literal=None, symbol=None,
                 cons=a.cons | ledger.hardened(a.pending))  # fmt: skip


def absolute(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The absolute value keeps the scale."""
    a = settle(ledger, a, "the absolute value of a shifted value")
    return a.but(symbol=None, sign=max(1, a.sign))


def convert(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """Another dtype: float keeps all, bool keeps what zero keeps, whole numbers keep nothing."""
    to = eqn.params["new_dtype"]
    if a.literal is not None:
        number = float(np.asarray(a.literal).astype(to))
        return a.but(literal=number, wild=is_wild(number), sign=sign_of(number))
    if _inexact(to) or not _inexact(eqn.invars[0].aval.dtype):
        return a
    if jnp.issubdtype(to, jnp.bool_):
        return sign(ledger, eqn, a).but(wild=False)
    return fixed(ledger, a, "a rounding").but(wild=False, symbol=None)


def keep(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The same numbers."""
    return a


def stop_gradient(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The same numbers; to the gradient, a constant."""
    if not ledger.gradient:
        return a
    return a.but(scale={}, shift={}, cons=0, pending=0, symbol=None)


def invariant(ledger: Ledger, eqn: Any, *blocks: Block) -> Block:
    """A function of each index about which nothing is known: its operands must be invariant."""
    what = f"{eqn.primitive.name} of a value that scales"
    blocks = tuple(fixed(ledger, b, what) for b in blocks)
    return _made(blocks[0], *blocks).but(wild=False)


# --- the pieces


def derived(
    ledger: Ledger, shift: Field, where: Callable[[Placement], Iterable[Position]], result: Block
) -> tuple[Field, int]:
    """What a linear operation makes of shifts: atoms at a placement then vary along `where` of it.

    Those that vary alike are one new token; one that varies along all of the result could never
    cancel, so it is made to vanish (the mask).
    """
    groups: dict[Placement, dict] = {}
    for placed, k in shift.items():
        groups.setdefault(_sorted(where(placed[1])), {})[placed] = k
    made, cons = {}, 0
    for placement, part in groups.items():
        met = ledger.vanish(part, "a term that is not scaled along")
        if set(placement).issuperset(p for p in result.positions if p in result.varies):
            cons |= met
        else:
            made[Token(ledger.name(), met), placement] = 1
    return made, cons


def _square(ledger: Ledger, a: Block, ratio: Fraction) -> Block:
    """a * (ratio a).  Its tokens are named by what they are, so that equal ones cancel.

    This is what removes a bias from a variance: E[(x + T)^2] - (E[x + T])^2.
    """
    if len(a.shift) > _MOST_TOKENS or a.symbol is None:
        a = settle(ledger, a, "a product of shifted values")
    shift: Field = {}
    order = {p: i for i, p in enumerate(a.positions)}
    hidden = {p for _, placement in a.shift for p in placement} - set(order)
    if hidden:
        a = settle(ledger, a, "a product of shifted values")
    terms = list(a.shift.items())
    for i, ((atom, at), k) in enumerate(terms):
        met = ledger.vanish({(atom, at): k}, "a term that is not scaled along")
        coefficient, name = a.symbol or (Fraction(1), None)
        cross = Token(("times", name, atom, tuple(order[p] for p in at)), met)
        shift = fields.add(shift, {(cross, tuple(order)): 2 * k * coefficient * ratio})
        for (other, place), m in terms[i:]:
            both = _sorted({*at, *place})
            where = tuple(both.index(p) for p in at), tuple(both.index(p) for p in place)
            pair = Token(("pair", atom, other, where), met)
            twice = 1 if (other, place) == (atom, at) else 2
            shift = fields.add(shift, {(pair, both): twice * k * m * ratio})
    return a.but(
        scale=fields.scaled(a.scale, Fraction(2)), shift=shift, literal=None, symbol=None,
        sign=max(1, a.sign) if ratio > 0 else 0,
    )  # fmt: skip


def _times(a: Block, k: Fraction) -> Block:
    return a.but(
        shift=fields.scaled(a.shift, k),
        symbol=(a.symbol[0] * k, a.symbol[1]) if a.symbol else None,
        literal=None,
        sign=a.sign if k > 0 else 0,
    )


def _reciprocal(ledger: Ledger, a: Block) -> Block:
    if a.literal is not None:
        inverse = 1 / a.literal if a.literal else math.inf
        exact = a.literal and math.isfinite(a.literal)
        inverse = Inverse(1 / _rational(a.literal)) if exact else inverse
        return a.but(literal=inverse, sign=sign_of(inverse))
    return _power(ledger, a, Fraction(-1))


class Inverse(float):
    """The float nearest to a fraction that is known exactly (1/49)."""

    exact: Fraction

    def __new__(cls, exact: Fraction) -> "Inverse":
        number = super().__new__(cls, exact)
        number.exact = exact
        return number


def _power(ledger: Ledger, a: Block, exponent: Fraction) -> Block:
    if exponent == 0:
        return Block(a.axes, literal=1.0, sign=2)
    a = settle(ledger, _excused(a) if exponent.denominator != 1 or exponent < 0 else
               firm(ledger, a), "a power of a shifted value")  # fmt: skip
    even = exponent.denominator == 1 and exponent % 2 == 0
    return a.but(
        scale=fields.scaled(a.scale, exponent), literal=None, symbol=None,
        sign=max(a.sign, int(even or exponent.denominator % 2 == 0)),
    )  # fmt: skip


def _excused(a: Block) -> Block:
    """An epsilon under a root, a logarithm or a division is what epsilons are for."""
    return a.but(cons=a.cons | a.pending, pending=0)


def _rational(number: float) -> Fraction:
    """The simple fraction that a literal is the rounding of, or the literal itself."""
    if isinstance(number, Inverse):
        return number.exact
    near = Fraction(number).limit_denominator(10**6)
    return near if abs(near - Fraction(number)) <= _ROUNDING * abs(number) else Fraction(number)


def _made(base: Block, *operands: Block) -> Block:
    """The base's statement, for a result of operands: their constraints and extent."""
    return base.but(
        axes=_axes(*operands), cons=_cons(*operands), symbol=None, literal=None, sign=0,
        usual=None, varies=frozenset(p for b in operands for p in b.varies), pending=0,
    )  # fmt: skip


def _unmarked(ledger: Ledger, a: Block) -> Block:
    """The block without the tokens of leaves that may have no effect: no epsilon excuses them."""
    tokens = {
        (atom, at): k for (atom, at), k in a.scale.items()
        if isinstance(atom, Token) and ledger.marked(atom.obligations)
    }  # fmt: skip
    cons = a.cons | ledger.vanish(tokens, "an epsilon is added")
    return a.but(scale=fields.off(a.scale, tokens), cons=cons)


def _sum_of(a: Block, b: Block) -> str:
    if not a.axes:
        return PENALTY
    return SUM if a.scale and b.scale else FIXED


def _summed(a: Block, b: Block) -> int:
    return max(a.sign, b.sign) if min(a.sign, b.sign) else 0


def _inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _axes(*blocks: Block) -> tuple[tuple[int, ...], ...]:
    return tuple(max(found, key=len) for found in zip(*(b.axes for b in blocks), strict=True))


def _cons(*blocks: Block) -> int:
    total = 0
    for block in blocks:
        total |= block.cons
    return total


def _sorted(positions: Any) -> tuple[Position, ...]:
    return tuple(sorted(positions))
