"""How far blocks can grow on a budget that they share, to the last digit and never too low.

A block at b may grow to y at the price y - b - C log(y / b).  This is below 0 for a while where
b < C, so that one block's growth pays for another's.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

_NEWTON = 4  # steps to the last digit, for any budget
_TERMS = range(21, 1, -2)  # of a series, to the last digit


def rounded_up(x: Array, blocks: int) -> Array:
    """Rounded up: after a handful of operations and sums over blocks, and from underflow."""
    kind = jnp.finfo(x.dtype)
    return x * jnp.asarray(1 + (8 + blocks) * kind.eps, x.dtype) + kind.tiny


def largest(budget: Array, C: Array, b: Array) -> tuple[Array, Array]:
    """The most that each y_i - b_i, and the sum of C_i log(y_i / b_i), can be.

    For y >= b with sum h_i <= budget, where h_i(y) = y - b_i - C_i log(y / b_i).  Two ways to limit
    a y: all other h are at their minimum, or the sum of logarithms at its maximum.

    For any rise > 0 is rise C log(y / b) at most h(y) + depth, by the definition of depth.  At the
    y that is sought it is that; a rise that misses it by rounding costs but the square of the miss,
    and never lets the limit be too low.  Where next to nothing may grow, the depth is best 0.
    """
    everything, kind = budget + jnp.sum(C), jnp.finfo(b.dtype)
    # Larger budget and C allow more: this rounds up all that follows, and spares the case 0.
    budget, C = rounded_up(budget, b.size), rounded_up(jnp.maximum(C, kind.eps**2 * b), b.size)
    depth, gap = _depth(C, b), C * _phi((b - C) / C, jnp.log(b / C))
    others = budget + jnp.sum(depth[None] * (1 - jnp.eye(b.size, dtype=b.dtype)), axis=1)
    flat = (1 - 8 * kind.eps) * (b - C) / C  # the most at depth 0

    def one(rise: Array) -> Array:
        return (others + _depth(C, b, rise)) / rise

    def all_of_them(rise: Array) -> Array:
        return (budget + jnp.sum(_depth(C, b, rise))) / rise

    alone = _lower(one, root((others + gap) / C), flat)
    turning = _lower(all_of_them, _level(budget, C, b, gap), jnp.min(flat))
    growth = jnp.minimum(others + alone, budget + turning)
    finite = jnp.isfinite(everything)
    growth, turning = (jnp.where(finite, y, everything) for y in (growth, turning))
    return growth, turning


def _lower(limit: Callable[[Array], Array], *rises: Array) -> Array:
    """The lower of the limits at two rises, which are first made positive and finite."""
    kind = jnp.finfo(rises[0].dtype)
    first, second = (limit(jnp.clip(rise, kind.eps, kind.max**0.5)) for rise in rises)
    return jnp.minimum(first, second)


def _depth(C: Array, b: Array, rise: ArrayLike = 0.0) -> Array:
    """The most that M log(y / b) - (y - b) can be for y >= b, where M = (1 + rise) C."""
    M = C + rise * C
    return M * _phi(jnp.minimum((b - C - rise * C) / M, 0), jnp.log(b / M))


def _level(budget: Array, C: Array, b: Array, gap: Array) -> Array:
    """The largest rise such that y = max(b, C + rise C) has sum h_i(y_i) <= budget: water-filling.

    For any set of blocks, sum h_i(C_i + rise C_i) = budget says that rise - log(1 + rise) is
    (budget + sum gap_i) / sum C_i.  The set with b < y comes first in the order of b / C, and
    has the least such ratio: a block lowers it while its own, gap / C, is lower.
    """
    order = jnp.argsort(b / C)
    ratios = (budget + jnp.cumsum(gap[order])) / jnp.cumsum(C[order])
    return root(jnp.min(ratios))


def _phi(u: Array, log: Array) -> Array:
    """How far u lies above log(1 + u), which is given: to the last digit.

    If u is small, by log(1 + u) = 2 (s + s^3 / 3 + s^5 / 5 + ...), where s = u / (2 + u) and thus
    u - 2 s = u s.
    """
    s = u / (2 + u)
    tail = reduce(lambda tail, k: (tail + 1 / k) * s**2, _TERMS, 0.0)
    return jnp.where(jnp.abs(u) < 0.25, s * (u - 2 * tail), u - log)


def root(r: Array) -> Array:
    """The root u >= 0 of u - log(1 + u) = r, for r >= 0; convex, so Newton descends to it."""
    plain = (r > 0) & (r < jnp.inf)
    safe = jnp.where(plain, r, 1)

    def newton(_: int | Array, u: Array) -> Array:
        return u - (_phi(u, jnp.log1p(u)) - safe) * (1 + 1 / u)

    above = safe + jnp.sqrt(2 * safe)
    u = jax.lax.fori_loop(0, _NEWTON, newton, jax.lax.stop_gradient(above))
    # One more step, for the derivative: that of the root, whatever led to it.
    u = newton(0, jax.lax.stop_gradient(u))
    return jnp.where(plain, u, jnp.maximum(r, 0))
