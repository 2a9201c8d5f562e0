"""A loss on which no rate is fast: the chain of Carmon, Duchi, Hinder and Sidford, on a sphere.

The chain f(x_1 ... x_n) has a large gradient as long as x_n = 0, and a first-order method that
starts at 0 sets one more coordinate per step, at best.  With x = radius * w_1..n / |w| it becomes
scale-invariant in w (of n + 1 entries, from (0, ..., 0, 1)), and neither the normalisation nor the
rate lets a step reach further.  Here is what is known of it, with f(x) = -Psi(1) Phi(x_1)
+ sum_i Psi(-x_i-1) Phi(-x_i) - Psi(x_i-1) Phi(x_i), Psi(x) = exp(1 - 1 / (2x - 1)^2) above 1/2
and 0 below, and Phi(x) = sqrt(e) int_-inf^x exp(-t^2 / 2) dt:

    >>> n, radius = 10, 150.0
    >>> least = gradient_floor(n, radius) ** 2    # squared gradient, after each of n - 1 steps
    >>> known = constants(n, radius)
    >>> gap = -PHI / 2 - known.lowest             # between the start and the minimum, or more
    >>> bool(least * n > gap * known.tangent[0, 0] / 7000)
    True

So the bounds of `gd` have the best dependence on gap, smoothness and number of steps, up to
constants and logarithms.

Source: Carmon, Duchi, Hinder & Sidford, "Lower bounds for finding stationary points I" (2017); what
is special to the sphere is derived here.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range
from bnrate.theory.constants import Constants

_S = (9 + math.sqrt(33)) / 4  # 1 / (2x - 1)^2 where Psi'' is largest

PSI = math.e
"""Psi lies below; its infimum is 0."""

PSI_SLOPE = math.sqrt(54 / math.e)
"""The largest Psi', where 1 / (2x - 1)^2 = 3/2."""

PSI_CURVATURE = (16 * _S**3 - 24 * _S**2) * math.exp(1 - _S)
"""The largest |Psi''|."""

PHI = math.sqrt(2 * math.pi * math.e)
"""Phi lies below; its infimum is 0, and Phi(0) is half of it."""

PHI_SLOPE = math.sqrt(math.e)
"""The largest Phi'; the largest |Phi''| is 1."""

SLOPE = PSI * PHI_SLOPE + PSI_SLOPE * PHI
"""Bounds every |df/dx_i|: x_i is the second argument of one link of the chain, the first of the
next, and the two halves of a link are never both non-zero."""

CURVATURE = PSI + PSI_CURVATURE * PHI + 2 * PSI_SLOPE * PHI_SLOPE
"""Bounds the norm of the Hessian of f, which has three diagonals, by a sum of absolute values."""

RADIUS = 46.0
"""At this radius times sqrt(n), `gradient_floor` is above half of the radius."""


def constants(length: int, radius: ArrayLike) -> Constants:
    """Bounds for the scale-invariant chain, over the whole sphere: one block, no rest.

    Along a great circle x(s) the second derivative is x' Hess f x' - <grad f, x>, so `tangent` is
    radius^2 CURVATURE + radius sqrt(n) SLOPE, and `gradient` the latter term alone.  With the
    radial direction the second derivative is the block [[0, -D'], [-D, H]], and `ambient` bounds
    its norm.

    Args:
      length: n, the coordinates of the chain.
      radius: of the sphere in the space of the chain.

    Raises:
      ValueError: length is below 1, or radius not positive.
    """
    R = in_range("radius", radius, "(0, inf)")
    gradient = R * math.sqrt(_checked(length)) * SLOPE
    tangent = R**2 * CURVATURE + gradient
    ambient = tangent / 2 + jnp.sqrt(tangent**2 / 4 + gradient**2)
    zero = jnp.zeros_like(tangent)
    lowest = zero - PHI * (1 + PSI * (length - 1))
    return Constants(
        tangent=tangent.reshape(1, 1),
        ambient=ambient.reshape(1, 1),
        gradient=gradient.reshape(1),
        mixed=zero.reshape(1),
        rest=zero,
        lowest=lowest,
    )


def gradient_floor(length: int, radius: ArrayLike) -> Float[Array, ""]:
    """The spherical gradient is at least this long wherever x_n = 0: radius - sqrt(n) SLOPE.

    So it is at the start and after each of the first n - 1 steps of any method that moves within
    the span of the gradients it has seen, at any rate.  At 46 sqrt(n) the floor is above half of
    the radius; with radius^2 in proportion to n, the least squared gradient of n steps falls no
    faster than (gap of the loss) * (smoothness) / n.

    Why: let x_k be the last coordinate that is not 0 (x_0 := 1).  If |x_k| >= 1, |df/dx_k+1| is
    at least sqrt(e), and projecting on the sphere does not change it, as x_k+1 = 0.  Else some
    |x_i| < 1 follows one with |x_i-1| >= 1; there |df/dx_i| > 1, and projecting takes away at most
    |x_i| |<x, grad f>| / radius^2, where |<x, grad f>| <= radius sqrt(n) SLOPE.

    Args:
      length: n, the coordinates of the chain.
      radius: of the sphere in the space of the chain.

    Raises:
      ValueError: length is below 1; radius is too small for the argument to say anything.
    """
    least = math.sqrt(_checked(length)) * SLOPE
    advice = "below, nothing is proved; 46 sqrt(length) leaves half of the radius"
    return in_range("radius", radius, f"({least}, inf)", advice) - least


def _checked(length: int) -> int:
    if length < 1:
        raise ValueError(f"the chain must have at least 1 coordinate, got length {length}")
    return length
