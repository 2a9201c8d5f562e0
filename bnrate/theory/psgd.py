"""Projected SGD, which resets the norm after each step: what is true of it, and what is not.

Without the growth of the norm nothing tunes the rate.  Below 2 / smoothness the usual bound holds,
down to a floor that noise sets (`bound`); from there on nothing does.  On the Rayleigh quotient of
diag(0, r) = r tau^2 / (1 + tau^2), with tau = w_2 / w_1, projected gradient descent at any rate
above 1 / r (which is 2 / smoothness) has an orbit of period 2 that attracts, and the gradient on it
is almost as long as gradients get (`orbit`):

    >>> found = orbit(2.0)
    >>> round(float(found.tangent), 6), round(float(found.gradient), 6)
    (0.57735, 0.866025)
    >>> round(float(step(found.tangent, 2.0)), 6)      # and back again
    -0.57735

Gradient descent that lets the norm grow converges from there at the same rate: the first steps
lengthen w until the rate is small enough.  Own derivation; Arora, Li & Lyu (2019) compare both.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range
from bnrate.theory import gd
from bnrate.theory.constants import Constants


class Orbit(NamedTuple):
    """Two directions, mirror images, between which projected gradient descent alternates.

    Attributes:
      tangent: tau = w_2 / w_1 > 0 of one; that of the other is -tau.
      loss: on the orbit, above the least.
      gradient: the norm of the spherical gradient on the orbit, at every step.
      multiplier: the derivative of `step` on the orbit, by which small deviations are multiplied;
        between -1 and 1, so the orbit attracts.
    """

    tangent: Float[Array, "..."]
    loss: Float[Array, "..."]
    gradient: Float[Array, "..."]
    multiplier: Float[Array, "..."]


def bound(
    constants: Constants,
    deviation: Float[Array, " blocks"],
    *,
    loss: ArrayLike,
    rate: ArrayLike,
    steps: int,
) -> Float[Array, " steps"]:
    """Bounds min over t < T of E|grad L|^2, and its mean over t, for T = 1 ... steps.

    (gap / (eta T) + eta sum C_i sigma_i^2) / (1 - eta max C_i), C_i = sum_j ambient_ij / 2: descent
    along the straight step, on which |w| >= 1, since gradients are orthogonal to w.  Assumes that
    the batch's gradient has mean grad L given the past.

    Args:
      constants: on all that is visited, the straight steps included; no rest.
      deviation: sigma_i, the root of a bound of E|grad F - grad L|^2 in block i at unit norm.
      loss: the mean loss at the start.
      rate: eta, the same at every step.
      steps: the largest T.

    Raises:
      ValueError: eta max C_i is 1 or more, where no bound holds (see `orbit`); there is a rest;
        steps is below 1; a value is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    gap = gd.height(loss, constants.lowest)
    margin = _margin(constants, rate)
    T = jnp.arange(1, steps + 1).astype(margin.dtype)
    return gap / (rate * margin * T) + floor(constants, deviation, rate)


def floor(
    constants: Constants, deviation: Float[Array, " blocks"], rate: ArrayLike
) -> Float[Array, ""]:
    """What `bound` tends to: noise keeps projected SGD of a constant rate from converging.

    Args:
      constants: as in `bound`.
      deviation: as in `bound`.
      rate: eta.

    Raises:
      ValueError: as in `bound`.
    """
    margin = _margin(constants, rate)
    sigma = in_range("deviation", deviation, "[0, inf)")
    return jnp.sum(_cost(constants) * sigma**2) * rate / margin


def orbit(rate: ArrayLike, spread: ArrayLike = 1.0) -> Orbit:
    """The orbit of period 2 of projected gradient descent on the quotient of diag(0, spread).

    With e = eta r: tau = sqrt((e - 1) / (e + 1)), the gradient r sqrt(1 - e^-2), and the multiplier
    1 - 2 e^-2.  The stationary points tau = 0 and infinity repel, so an open set of starts never
    comes near them.  In more dimensions, with further eigenvalues between 0 and r, all other
    components shrink on the orbit, so it attracts there too.

    Args:
      rate: eta > 1 / r.
      spread: r, the range of the spectrum.

    Raises:
      ValueError: rate * spread is 1 or less, where there is no such orbit.
    """
    r = in_range("spread", spread, "(0, inf)")
    advice = "at such rates projected gradient descent converges on this loss"
    e = in_range("rate * spread", rate * r, "(1, inf)", advice)
    gradient = r * jnp.sqrt((1 - 1 / e) * (1 + 1 / e))
    return Orbit(jnp.sqrt((e - 1) / (e + 1)), r * (1 - 1 / e) / 2, gradient, 1 - 2 / e**2)


def step(tangent: ArrayLike, rate: ArrayLike, spread: ArrayLike = 1.0) -> Float[Array, "..."]:
    """One step of projected gradient descent on that quotient, in terms of tau = w_2 / w_1.

    tau' = tau (1 + tau^2 - 2 e) / (1 + tau^2 + 2 e tau^2), e = eta r.

    Args:
      tangent: tau.
      rate: eta.
      spread: r, the range of the spectrum.

    Raises:
      ValueError: rate or spread is not positive.
    """
    e = in_range("rate", rate, "(0, inf)") * in_range("spread", spread, "(0, inf)")
    tau, square = jnp.asarray(tangent), jnp.asarray(tangent) ** 2
    return tau * (1 + square - 2 * e) / (1 + square + 2 * e * square)


def _margin(constants: Constants, rate: ArrayLike) -> Array:
    """1 - eta max C_i; NaN or an error where it is not positive, or where there is a rest."""
    rest = in_range("constants.rest", constants.rest, "[0, 0]", "this bound is for spheres only")
    eta = in_range("rate", rate, "(0, inf)")
    advice = "from rate = 2 / smoothness on, projected SGD need not converge"
    product = in_range("rate * smoothness / 2", eta * jnp.max(_cost(constants)), "[0, 1)", advice)
    return 1 - product + rest  # which is 0, or NaN in a compiled program


def _cost(constants: Constants) -> Array:
    return jnp.sum(in_range("constants.ambient", constants.ambient, "[0, inf]"), axis=1) / 2
