"""A loss that no rate makes easy: each step can bring one more coordinate into play, at best."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate.losses.problem import Problem, W, drawn, full_batch, starting
from bnrate.ranges import in_range
from bnrate.theory import chain as theory


def chain(length: int, radius: Any = None, start: Any = None) -> Problem:
    """The chain f of Carmon, Duchi, Hinder & Sidford 2017 on a sphere: f(radius w_1..n / |w|).

    With x_0 = 1, f(x) is the sum over i of Psi(-x_(i-1)) Phi(-x_i) - Psi(x_(i-1)) Phi(x_i); see
    `theory.chain` for Psi and Phi, and for what is known of the loss.  Psi is exactly 0 up to 1/2,
    so that after t steps of a first-order method w_1..t are all that has moved from 0, whatever its
    rate.

    >>> problem = chain(5)
    >>> params, data = problem.init(jax.random.key(0))
    >>> print(jnp.abs(problem.gradient(params, data)["w"][1:]))
    [0. 0. 0. 0. 0.]

    Args:
      length: n; w has one entry more.
      radius: or a function from a key to it; 46 sqrt(n) if not given, from where on the gradient is
        proved to stay large.
      start: w, or a function from a key to it; (0, ..., 0, 1) if not given.

    Raises:
      ValueError: length is below 1; radius is not positive; start is zero, or of another length.
    """
    if length < 1:
        raise ValueError(f"the chain must have at least 1 coordinate, got length {length}")

    def checked(radius: Any) -> Array:
        radius = in_range("radius", radius, "(0, inf)")
        return jnp.asarray(radius, radius.dtype)

    def default(key: Array, radius: Array) -> dict[str, Array]:
        return {"w": jnp.zeros(length + 1, radius.dtype).at[-1].set(1)}

    return full_batch(
        init=starting(
            drawn(checked, theory.RADIUS * math.sqrt(length) if radius is None else radius),
            default,
            start,
        ),
        groups=W,
        mean=_mean,
        gradient=_gradient,
        constants=lambda params, radius, rate_rest: theory.constants(length, radius),
    )


def _mean(params: PyTree, radius: Float[Array, ""]) -> Float[Array, ""]:
    w = params["w"]
    x, before = _links(radius * w[:-1] / jnp.linalg.norm(w))
    return jnp.sum(_psi(-before) * _phi(-x) - _psi(before) * _phi(x))


def _gradient(params: PyTree, radius: Float[Array, ""]) -> PyTree:
    w = params["w"]
    norm = jnp.linalg.norm(w)
    x, before = _links(radius * w[:-1] / norm)
    own = -(_psi(-before) + _psi(before)) * _phi_slope(x)
    next_one = -(_psi_slope(-before) * _phi(-x) + _psi_slope(before) * _phi(x))[1:]
    D = jnp.append(own + jnp.append(next_one, 0), 0)
    v = w / norm
    return {"w": radius / norm * (D - (v @ D) * v)}


def _links(x: Array) -> tuple[Array, Array]:
    """Each coordinate, and the one before it."""
    return x, jnp.concatenate([jnp.ones(1, x.dtype), x[:-1]])


def _psi(x: Array) -> Array:
    alive, y = _alive(x)
    return jnp.where(alive, jnp.exp(1 - 1 / y**2), 0)


def _psi_slope(x: Array) -> Array:
    alive, y = _alive(x)
    return jnp.where(alive, 4 / y**3 * jnp.exp(1 - 1 / y**2), 0)


def _alive(x: Array) -> tuple[Array, Array]:
    """Where Psi is more than the smallest float, which it is not before 0.515; and 2x - 1 there.

    Below, y is a number at which all derivatives are finite, so that the 0 chosen instead has
    derivative 0 and not NaN.
    """
    y = 2 * x - 1
    alive = y > 0.03
    return alive, jnp.where(alive, y, 1)


def _phi(x: Array) -> Array:
    return theory.PHI * jax.scipy.stats.norm.cdf(x)


def _phi_slope(x: Array) -> Array:
    return theory.PHI_SLOPE * jnp.exp(-(x**2) / 2)
