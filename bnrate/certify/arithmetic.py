"""Rules for sums, products, powers, logarithms and exponentials of single entries.

A rule turns the statements about the operands into one about the result, and writes down what
must hold for that.  Those here speak of one block at a time.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from bnrate.certify import fields, linear
from bnrate.certify.fields import Field, Placement, Position, Token
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import (
    EXPONENTIAL,
    FIXED,
    PENALTY,
    SUM,
    TINY,
    axes_of,
    made,
    stretched,
    unmarked,
)
from bnrate.certify.values import Block, firm, fixed, settle, sign_of

_MOST_TOKENS = 3  # of which products are still formed  # of which products are still formed


# --- sums


def add(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """Sum a + b: equal scales; or the smaller operand's failure to scale along becomes a token."""
    if a.wild or b.wild:
        solid = b if a.wild else a
        return made(solid, a, b).but(
            wild=a.wild and b.wild,
            shift=fields.add(a.shift, b.shift),
            pending=a.pending | b.pending,
            sign=_summed(a, b),
        )
    for x, number in ((a, b.literal), (b, a.literal)):
        if number is not None and 0 < abs(number) <= TINY and x.scale:
            x = unmarked(ledger, x)
            pending = x.pending | ledger.epsilon(x.scale, number, "an epsilon is added")
            return made(x, a, b).but(pending=pending, sign=_summed(a, b))
    if a.symbol and b.symbol and a.symbol[1] == b.symbol[1]:
        a = a.but(generic=False)  # h - h vanishes everywhere
    a, b = firm(ledger, a), firm(ledger, b)
    shift = fields.add(a.shift, b.shift)
    difference = fields.add(b.scale, a.scale, -1)
    if not difference:
        return made(a, a, b).but(shift=shift, sign=_summed(a, b))
    if len(b.varies) > len(a.varies):
        a, b = b, a
    met = ledger.vanish(difference, _sum_of(a, b))
    reach = {p for field in (a.scale, b.scale, b.shift) for _, at in field for p in at}
    depends = _sorted(b.varies | reach)
    constant_along = [p for p in a.varies if p not in depends and p[0] >= 0]
    if not constant_along:
        cons = a.cons | b.cons | met
        return made(a, a, b).but(shift=shift, cons=cons, sign=_summed(a, b))
    shift = fields.add(shift, {ledger.token(met | b.cons, depends): 1})
    return made(a, a, b).but(shift=shift, cons=a.cons)


def subtract(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """Difference a - b."""
    return add(ledger, eqn, a, negate(ledger, eqn, b))


def negate(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """Negative -a."""
    negative = None if a.literal is None else -a.literal
    return _times(a, -1).but(literal=negative)


# --- products


def multiply(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """Product a * b: scales add; a token times anything is another token."""
    for x, other in ((a, b), (b, a)):
        if other.literal == 0:
            return stretched(other, axes_of(a, b))
        if other.literal is not None and math.isfinite(other.literal):
            return stretched(_times(x, _rational(ledger, other.literal)), axes_of(a, b))
    a, b = firm(ledger, a), firm(ledger, b)
    if a.symbol and b.symbol and a.symbol[1] == b.symbol[1] and a.axes == b.axes:
        return _square(ledger, a, b.symbol[0] / a.symbol[0])
    if a.wild or b.wild:
        a, b = (settle(ledger, x, "a product with infinity") for x in (a, b))
        return made(a, a, b).but(scale={}, wild=True)
    # (A + T)(B + U) = AB + T(B + U) + AU for scaled values A, B with shifts T, U.
    scale, sign = fields.add(a.scale, b.scale), min(a.sign, b.sign) if ledger.real else 0
    result = made(a, a, b).but(scale=scale, shift={}, sign=sign)
    for x, other in ((a, b), (b, a)):
        reach = other.varies | {p for f in (other.scale, other.shift) for _, at in f for p in at}
        shift, cons = derived(ledger, x.shift, reach.union, result)
        result = result.but(shift=fields.add(result.shift, shift), cons=result.cons | cons)
    return result


def divide(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """Quotient a / b."""
    return multiply(ledger, eqn, a, _reciprocal(ledger, b))


def square(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """Square a * a."""
    return _square(ledger, firm(ledger, a), Fraction(1))


def integer_power(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """Power a ** n for a fixed whole n."""
    exponent = eqn.params["y"]
    if exponent == 2:
        return square(ledger, eqn, a)
    return _power(ledger, a, Fraction(exponent))


def power(ledger: Ledger, eqn: Any, a: Block, b: Block) -> Block:
    """Power a ** b, homogeneous where b is a known number."""
    if b.literal is not None and math.isfinite(b.literal):
        return _power(ledger, a, _rational(ledger, b.literal)).but(axes=axes_of(a, b))
    a, b = (fixed(ledger, x, "a power with a variable exponent") for x in (a, b))
    return made(a, a, b).but(wild=False)


def root(exponent: Fraction) -> Callable[..., Block]:
    """A rule for a ** exponent."""
    return lambda ledger, eqn, a: _power(ledger, a, exponent)


def log(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The scale of a becomes the shift of log a."""
    a = settle(ledger, _excused(a), "the logarithm of a shifted value")
    return a.but(shift=a.scale, scale={}, literal=None, symbol=None, sign=0)


def exp(ledger: Ledger, eqn: Any, a: Block) -> Block:
    """The shift of a becomes the scale of exp a."""
    if not ledger.real:
        a = settle(ledger, a, EXPONENTIAL)
    a = firm(ledger, a)
    cons = a.cons | ledger.vanish(a.scale, EXPONENTIAL)
    return a.but(scale=a.shift, shift={}, cons=cons, wild=False, literal=None, symbol=None, sign=1)


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
            made[ledger.token(met, placement)] = 1
    return made, cons


def _square(ledger: Ledger, a: Block, ratio: linear.Number) -> Block:
    """Product a * (ratio a).  Its tokens are named by what they are, so that equal ones cancel.

    This is what removes a bias from a variance: E[(x + T)^2] - (E[x + T])^2.  Inside of a scan
    the names would not tell one step from another.
    """
    if len(a.shift) > _MOST_TOKENS or a.symbol is None or ledger.steps:
        a = settle(ledger, a, "a product of shifted values")
    shift: Field = {}
    order = {p: i for i, p in enumerate(a.positions)}
    coefficient, name = a.symbol or (1, None)
    terms = list(a.shift.items())
    for i, ((atom, at), k) in enumerate(terms):
        met = ledger.vanish({(atom, at): k}, "a term that is not scaled along")
        cross = Token(("times", name, atom, tuple(order[p] for p in at), a.sizes), met)
        shift = fields.add(shift, {(cross, tuple(order)): 2 * k * coefficient * ratio})
        for (other, place), m in terms[i:]:
            both = tuple(sorted({*at, *place}))
            where = tuple(both.index(p) for p in at), tuple(both.index(p) for p in place)
            sizes = tuple(a.axes[p[0]][p[1]] for p in both)
            pair = Token(("pair", atom, other, where, sizes), met)
            twice = 1 if (other, place) == (atom, at) else 2
            shift = fields.add(shift, {(pair, both): twice * k * m * ratio})
    return a.but(
        scale=fields.scaled(a.scale, 2), shift=shift, literal=None, symbol=None,
        sign=max(1, a.sign) if ratio > 0 and ledger.real else 0,
    )  # fmt: skip


def _times(a: Block, k: linear.Number) -> Block:
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
        inverse = Inverse(1 / _rational(ledger, a.literal)) if exact else inverse
        return a.but(literal=inverse, sign=sign_of(inverse))
    return _power(ledger, a, Fraction(-1))


class Inverse(float):
    """The float nearest to a fraction that is known exactly (1/49)."""

    exact: Fraction

    def __new__(cls, exact: Fraction) -> "Inverse":  # noqa: D102
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
        sign=max(a.sign, int(even or exponent.denominator % 2 == 0)) if ledger.real else 0,
    )  # fmt: skip


def _excused(a: Block) -> Block:
    """An epsilon under a root, a logarithm or a division is what epsilons are for."""
    return a.but(cons=a.cons | a.pending, pending=0)


def _rational(ledger: Ledger, number: float) -> Fraction:
    """The simple fraction that a literal is the rounding of, or the literal itself."""
    if isinstance(number, Inverse):
        return number.exact
    near = Fraction(number).limit_denominator(10**6)
    return (
        near if abs(near - Fraction(number)) <= ledger.rounding * abs(number) else Fraction(number)
    )


def _sum_of(a: Block, b: Block) -> str:
    if not a.axes:
        return PENALTY
    return SUM if a.scale and b.scale else FIXED


def _summed(a: Block, b: Block) -> int:
    return max(a.sign, b.sign) if min(a.sign, b.sign) else 0


def _sorted(positions: Any) -> tuple[Position, ...]:
    return tuple(sorted(positions))
