"""Rules for sums, products, powers, logarithms and exponentials of single entries.

A rule turns the statements about the operands into one about the result, and writes down what
must hold for that.  Those here speak of one block at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from bnrate.certify import fields, linear
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts, Pending, Ref, Refs, meet
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
)
from bnrate.certify.values import Block, facts_of, fixed, length, place_of, settle

_MOST_TOKENS = 3  # of which products are still formed
_MOST_REFS = 32

# --- sums


def add(ledger: Ledger, a: Block, b: Block) -> Block:
    """Sum a + b: equal scales; or the smaller operand's failure to scale along becomes a token."""
    for x, other in ((a, b), (b, a)):
        number = other.facts.literal
        if number == 0:
            return stretched(x, axes_of(a, b))
        if number is not None and abs(number) <= TINY and x.scale:
            above = number > 0 and x.facts.nonnegative
            return with_epsilon(ledger, x, other, "an epsilon is added", above=above)
    if a.facts.wild or b.facts.wild:
        solid = b if a.facts.wild else a
        facts = Facts(wild=a.facts.wild and b.facts.wild, nonnegative=_both_nonnegative(a, b))
        return made((a, b), solid.scale, fields.add(a.shift, b.shift), facts=facts)
    shift, facts = fields.add(a.shift, b.shift), _sum_facts(ledger, a, b)
    difference = fields.add(b.scale, a.scale, -1)
    if not difference:
        return made((a, b), a.scale, shift, _perhaps_cancelled(ledger, a, b, shift), facts)
    first, second = (b, a) if len(b.varies) > len(a.varies) else (a, b)
    met = ledger.vanish(difference, _sum_of(first, second))
    if a.scale and b.scale and all(isinstance(atom, Token) for atom, _ in difference):
        # Both may be sums of the same entries.
        met |= _perhaps_cancelled(ledger, a, b, shift)
    reach = {p for field in (a.scale, b.scale, second.shift) for _, at in field for p in at}
    depends = _sorted(second.varies | reach)
    constant_along = [
        p for p in first.varies if p not in depends and (p[0] >= 0 or p in ledger.shards)
    ]
    if not constant_along:
        return made((a, b), first.scale, shift, met, facts)
    shift = fields.add(shift, {ledger.token(met | second.cons, depends): 1})
    total = made((a, b), first.scale, shift, facts=facts)
    return total._replace(cons=first.cons)


def _perhaps_cancelled(ledger: Ledger, a: Block, b: Block, shift: Field) -> int:
    """The constraints of a sum that may be nothing but epsilons, like sqrt(w^2 + eps) - |w|.

    It is so if terms of one scale, or of shifts that cancel, have had different epsilons excused.
    """
    alone = (a.cons ^ b.cons) & ledger.excusable
    if not alone or _both_nonnegative(a, b):
        return 0
    cancelled = len(shift) < len({*a.shift, *b.shift})
    return ledger.hardened(alone) if a.scale or cancelled else 0


def with_epsilon(ledger: Ledger, a: Block, epsilon: Block, what: str, *, above: bool) -> Block:
    """The block a, changed by a tiny number: what that breaks is pending.

    `above`: the result is positive.
    """
    eps, hard = ledger.epsilon(a.scale, epsilon.facts.literal or 0.0, what)
    pending = Pending(eps, eps, hard, (a.zeros,))
    result = made((a, epsilon), a.scale, a.shift, facts=Facts(nonnegative=above, nonzero=above))
    return awaiting(result, a.soft, (*a.facts.pending, pending))


def _both_nonnegative(a: Block, b: Block) -> bool:
    return a.facts.nonnegative and b.facts.nonnegative


def _sum_facts(ledger: Ledger, a: Block, b: Block) -> Facts:
    positive = _both_nonnegative(a, b)
    facts = Facts(
        nonnegative=positive,
        nonzero=positive and (a.facts.nonzero or b.facts.nonzero),
        over=limited(a.over | b.over) if positive else frozenset(),
        factors=a.factors & b.factors,
    )
    if a.facts.symbol is None or b.facts.symbol is None:
        return facts
    (j, first), (k, second) = a.facts.symbol, b.facts.symbol
    if first == second:  # h - h, for one
        return facts._replace(symbol=(j + k, first)) if j + k else facts
    lengths = ledger.shards | dict(zip(_positions(a, b), _sizes_of(a, b), strict=True))
    places = _places(a, b, first, second)
    sizes = tuple(lengths.get(p, 0) for p in places)
    terms = [(m, r.name, _seats(r, places)) for m, r in ((j, first), (k, second))]
    coefficient, name = ledger.names.of_combination(terms, sizes)
    facts = facts._replace(symbol=(coefficient, Ref(name, places)))
    for (m, one), (n, other) in itertools.permutations(((j, first), (k, second))):
        ratio = linear.ratio(n, m)
        if ledger.names.is_centred(one, other, ratio, lengths):
            return facts._replace(nonzero=facts.nonzero or one.name in ledger.free)
        if m > 0 and ledger.real and (found := ledger.names.spread(one, other, ratio)):
            centred, parts = found
            nonzero = any(of in ledger.free and count > 1 for of, count in parts)
            return facts._replace(
                nonnegative=True, over=limited(frozenset(centred)), nonzero=nonzero
            )
    return facts


def _positions(a: Block, b: Block) -> list[Position]:
    return [(i, j) for i, factors in enumerate(axes_of(a, b)) for j in range(len(factors))]


def lengths_of(ledger: Ledger, *blocks: Block) -> dict[Position, int]:
    """The lengths of all positions of a result, and of shards."""
    axes = axes_of(*blocks)
    own = {(i, j): n for i, factors in enumerate(axes) for j, n in enumerate(factors)}
    return ledger.shards | own


def _places(a: Block, b: Block, *refs: Ref) -> tuple[Position, ...]:
    """The positions of a result, and those of names beyond them (of shards)."""
    named = {p for ref in refs for p in ref.at if not isinstance(p, int)}
    return _sorted({*_positions(a, b), *named})


def _seats(ref: Ref, places: tuple[Position, ...]) -> tuple[int, ...]:
    return tuple(places.index(p) for p in ref.at if not isinstance(p, int))


def _sizes_of(a: Block, b: Block) -> tuple[int, ...]:
    return tuple(n for factors in axes_of(a, b) for n in factors)


def limited(refs: Refs) -> Refs:
    """The refs, unless they are too many to be carried about."""
    return refs if len(refs) <= _MOST_REFS else frozenset()


def subtract(ledger: Ledger, a: Block, b: Block) -> Block:
    """Difference a - b."""
    return add(ledger, a, negate(ledger, b))


def negate(ledger: Ledger, a: Block) -> Block:
    """Negative -a."""
    return _times(a, -1)


# --- products


def multiply(ledger: Ledger, a: Block, b: Block) -> Block:
    """Product a * b: scales add; a token times anything is another token."""
    for x, other in ((a, b), (b, a)):
        number = other.facts.literal
        if number == 0:
            x = settle(ledger, x, "a product with infinity")
            return made((x, other), facts=Facts(wild=True))
        if number is not None and math.isfinite(number):
            return stretched(_times(x, _rational(ledger, number)), axes_of(a, b))
    same = a.facts.symbol and b.facts.symbol and a.facts.symbol[1] == b.facts.symbol[1]
    if same and a.axes == b.axes and a.facts.symbol and b.facts.symbol:
        return _square(ledger, a, linear.ratio(b.facts.symbol[0], a.facts.symbol[0]))
    if a.facts.wild or b.facts.wild:
        a, b = (settle(ledger, x, "a product with infinity") for x in (a, b))
        return made((a, b), facts=Facts(wild=True))
    # (A + T)(B + U) = AB + T(B + U) + AU for scaled values A, B with shifts T, U.
    result = made((a, b), fields.add(a.scale, b.scale), facts=_product_facts(ledger, a, b))
    soft = a.soft | b.soft
    for x, other in ((a, b), (b, a)):
        if x.shift:
            reach = other.varies | {
                p for f in (other.scale, other.shift) for _, at in f for p in at
            }
            shift, cons = derived(ledger, x.shift, reach.union, result)
            result = result.demanding(cons, shift=fields.add(result.shift, shift))
            soft |= cons
    if not (a.facts.pending or b.facts.pending):
        return result
    left: list[Pending] = []
    lengths = lengths_of(ledger, a, b)
    for x, other in ((a, b), (b, a)):
        for p in x.facts.pending:
            # Where it matters, the other factor may be zero.
            zeros = tuple(z for z in p.zeros if not meet(z.over, other.factors, lengths))
            soft |= 0 if zeros else p.met
            left += [p._replace(zeros=zeros)] if zeros else []
    return awaiting(result, soft, left)


def awaiting(block: Block, soft: int, pending: Iterable[Pending]) -> Block:
    """The block, of which these are pending, and which needs `soft` once they are excused."""
    pending, cons = tuple(pending), soft
    for p in pending:
        cons |= p.hard
    return block._replace(cons=cons).knowing(pending=pending, soft=soft if pending else 0)


def _product_facts(ledger: Ledger, a: Block, b: Block) -> Facts:
    x, y = a.facts, b.facts
    over: Refs = frozenset()
    if x.nonzero or y.nonzero:
        over = (b.over if x.nonzero else over) | (a.over if y.nonzero else over)
    facts = Facts(
        nonnegative=_both_nonnegative(a, b) and ledger.real,
        nonzero=x.nonzero and y.nonzero,
        over=over,
        factors=limited(a.factors | b.factors),
    )
    if x.symbol is None or y.symbol is None:
        return facts
    places = _places(a, b, x.symbol[1], y.symbol[1])
    terms = sorted((r.name, _seats(r, places)) for _, r in (x.symbol, y.symbol))
    name = ledger.names.of("product", *terms, _sizes_of(a, b))
    return facts._replace(symbol=(x.symbol[0] * y.symbol[0], Ref(name, places)))


def divide(ledger: Ledger, a: Block, b: Block) -> Block:
    """Quotient a / b."""
    return multiply(ledger, a, _reciprocal(ledger, b))


def square(ledger: Ledger, a: Block) -> Block:
    """Square a * a."""
    return _square(ledger, a, 1)


def integer_power(ledger: Ledger, eqn: Equation, a: Block) -> Block:
    """Power a ** n for a fixed whole n."""
    exponent = eqn.params["y"]
    return square(ledger, a) if exponent == 2 else _power(ledger, a, Fraction(exponent))


def power(ledger: Ledger, a: Block, b: Block) -> Block:
    """Power a ** b, homogeneous where b is a known number."""
    number = b.facts.literal
    if number is not None and math.isfinite(number):
        return stretched(_power(ledger, a, _rational(ledger, number)), axes_of(a, b))
    return made([fixed(ledger, x, "a power with a variable exponent") for x in (a, b)])


def root(exponent: Fraction) -> Callable[..., Block]:
    """A rule for a ** exponent."""
    return lambda ledger, a: _power(ledger, a, exponent)


def log(ledger: Ledger, a: Block) -> Block:
    """The scale of a becomes the shift of log a."""
    a = settle(ledger, excused(a), "the logarithm of a shifted value")
    return Block(a.axes, {}, a.scale, a.cons, a.varies)


def exp(ledger: Ledger, a: Block) -> Block:
    """The shift of a becomes the scale of exp a."""
    if not ledger.real:
        a = settle(ledger, a, EXPONENTIAL)
    cons = a.cons | ledger.vanish(a.scale, EXPONENTIAL)
    facts = Facts(nonnegative=ledger.real)  # it is 0 of minus infinity
    return Block(a.axes, a.shift, {}, cons, a.varies, facts)


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
        everywhere = (p for p in (*result.positions, *ledger.shards) if p in result.varies)
        if set(placement).issuperset(everywhere):
            cons |= met
        else:
            made[ledger.token(met, placement)] = 1
    return made, cons


def _square(ledger: Ledger, a: Block, ratio: linear.Number) -> Block:
    """Product a * (ratio a).  Its tokens are named by what they are, so that equal ones cancel.

    This is what removes a bias from a variance: E[(x + T)^2] - (E[x + T])^2.
    """
    symbol = a.facts.symbol
    if len(a.shift) > _MOST_TOKENS or symbol is None or symbol[1].at != place_of(ledger, a):
        a = settle(ledger, a, "a product of shifted values")
    shift: Field = {}
    own = place_of(ledger, a)
    place = tuple(sorted([*ledger.steps, *own]))
    lengths = tuple(length(ledger, a, p) for p in own)
    order = {p: i for i, p in enumerate(place)}
    coefficient, name = (symbol[0], symbol[1].name) if symbol else (1, None)
    terms = list(a.shift.items())
    for i, ((atom, at), k) in enumerate(terms):
        met = ledger.vanish({(atom, at): k}, "a term that is not scaled along")
        cross = Token(("times", name, atom, tuple(order[p] for p in at), lengths), met)
        shift = fields.add(shift, {(cross, place): 2 * k * coefficient * ratio})
        for (other, where), m in terms[i:]:
            both = tuple(sorted({*at, *where}))
            seats = tuple(both.index(p) for p in at), tuple(both.index(p) for p in where)
            sizes = tuple(a.axes[p[0]][p[1]] if p[0] >= 0 else 0 for p in both)
            pair = Token(("pair", atom, other, seats, sizes), met)
            twice = 1 if (other, where) == (atom, at) else 2
            shift = fields.add(shift, {(pair, both): twice * k * m * ratio})
    facts = Facts(
        symbol=symbol and (
            symbol[0] ** 2 * ratio, Ref(ledger.names.of("square", symbol[1].name), symbol[1].at)
        ),
        nonnegative=ratio > 0 and ledger.real,
        nonzero=a.facts.nonzero, over=a.over, factors=a.factors,
        pending=a.facts.pending, soft=a.facts.soft,
    )  # fmt: skip
    return Block(a.axes, fields.scaled(a.scale, 2), shift, a.cons, a.varies, facts)


def _times(a: Block, k: linear.Number) -> Block:
    """The block times a number other than 0."""
    facts = a.facts
    if facts.literal is not None:
        facts = facts_of(float(k) * facts.literal)
    else:
        symbol = facts.symbol and (facts.symbol[0] * k, facts.symbol[1])
        facts = facts._replace(symbol=symbol, nonnegative=facts.nonnegative and k > 0, guard=None)
    return a._replace(shift=fields.scaled(a.shift, k), facts=facts)


def _reciprocal(ledger: Ledger, a: Block) -> Block:
    number = a.facts.literal
    if number is None:
        return _power(ledger, a, Fraction(-1))
    inverse = 1 / number if number else math.inf
    if number and math.isfinite(number):
        inverse = Inverse(1 / _rational(ledger, number))
    return a.only_knowing(facts_of(inverse))


class Inverse(float):
    """The float nearest to a fraction that is known exactly (1/49)."""

    exact: Fraction

    def __new__(cls, exact: Fraction) -> "Inverse":  # noqa: D102
        number = super().__new__(cls, exact)
        number.exact = exact
        return number


def _power(ledger: Ledger, a: Block, exponent: Fraction) -> Block:
    if exponent == 0:
        return Block(a.axes, {}, {}, 0, frozenset(), facts_of(1.0))
    if exponent.denominator != 1 or exponent < 0:
        a = excused(a)
    a = settle(ledger, a, "a power of a shifted value")
    even = exponent.denominator == 1 and exponent % 2 == 0
    whole = exponent.denominator == 1
    real = a.facts.nonnegative or whole  # the root of a negative number is nan
    facts = Facts(
        nonnegative=(a.facts.nonnegative or even) and ledger.real,
        nonzero=a.facts.nonzero and exponent > 0 and real,  # one over infinity is 0
        pending=a.facts.pending, soft=a.facts.soft,
    )  # fmt: skip
    if exponent > 0 and real:
        facts = facts._replace(over=a.over, factors=a.factors)
    if (symbol := a.facts.symbol) and symbol[0] == 1:
        name = ledger.names.of("power", exponent, symbol[1].name)
        facts = facts._replace(symbol=(1, Ref(name, symbol[1].at)))
    return Block(a.axes, fields.scaled(a.scale, exponent), {}, a.cons, a.varies, facts)


def excused(a: Block) -> Block:
    """The block under a root, a logarithm or a division, which is what epsilons are for.

    Of a value that is zero on a null set only they are excused; else a factor must be zero there.
    """
    if not a.facts.pending:
        return a
    soft, left = a.soft, []
    for p in a.facts.pending:
        if all(zeros.null for zeros in p.zeros):
            soft |= p.eps
        else:
            left.append(p)
    return awaiting(a, soft, left)


def _rational(ledger: Ledger, number: float) -> Fraction:
    """The simple fraction that a literal is the rounding of, or the literal itself."""
    if isinstance(number, Inverse):
        return number.exact
    near = Fraction(number).limit_denominator(10**6)
    return near if ledger.rounded(float(near)) == ledger.rounded(number) else Fraction(number)


def _sum_of(a: Block, b: Block) -> str:
    if not a.axes:
        return PENALTY
    return SUM if a.scale and b.scale else FIXED


def _sorted(positions: Any) -> tuple[Position, ...]:
    return tuple(sorted(positions))
