"""Weight decay as an angle per step, and back.

Weight decay shrinks what updates lengthen; once both balance, a unit turns by about the same angle
in each step, however long its gradients are.  Rules that fix this angle need no decay, and these
functions translate between the two:

    >>> angle = adamw_angle(1e-3, decay=0.1, b1=0.9)   # radians per step
    >>> round(float(angle), 6), round(float(adamw_decay(1e-3, angle, b1=0.9)), 4)
    (0.003245, 0.1)

The derivations need no small angles: with w' = (1 - eta lambda) w + update, a stationary |w|^2
fixes the mean product of weights and update, and so the mean cosine.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range

_POSITIVE, _DECAY, _MOMENTUM, _TURN = "(0, inf)", "[0, inf)", "[0, 1)", "[0, 1.5708)"


def sgd_angle(rate: ArrayLike, decay: ArrayLike, momentum: ArrayLike = 0.0) -> Float[Array, "..."]:
    """The angle per step at which SGD with decay settles: arccos(1 - eta lambda / (1 + mu)).

    Exact wherever norms and their products with the buffer no longer change; else the mean cosine
    of a stationary state.  For small angles sqrt(2 eta lambda / (1 + mu)), as in Wan et al. (2021)
    and Kosson, Messmer & Jaggi (2023).

    Args:
      rate: eta.
      decay: lambda, added to the gradient before the momentum.
      momentum: mu.

    Returns:
      Radians.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    product = _product(rate, decay)
    return _angle(product / (1 + in_range("momentum", momentum, _MOMENTUM)))


def sgd_decay(rate: ArrayLike, angle: ArrayLike, momentum: ArrayLike = 0.0) -> Float[Array, "..."]:
    """The decay with which SGD settles at an angle per step; undoes `sgd_angle`.

    Raises:
      ValueError: no decay turns the weights that fast.
    """
    momentum = in_range("momentum", momentum, _MOMENTUM)
    return _decay((1 + momentum) * _versine(angle), rate)


def adamw_angle(rate: ArrayLike, decay: ArrayLike, b1: ArrayLike = 0.9) -> Float[Array, "..."]:
    """The angle per step at which AdamW settles.

    tan(angle / 2)^2 = (eta lambda / (2 - eta lambda)) (1 - b1) / (1 + b1), exact for updates
    whose average of past gradients is stationary, each gradient being orthogonal to the weights,
    as it nearly is after Adam's division.  For small angles sqrt(2 eta lambda (1 - b1) / (1 + b1))
    (Kosson et al. 2023); without its last factor one is off by a factor 4.4 at b1 = 0.9.

    Args:
      rate: eta.
      decay: lambda; a step shrinks the weights by 1 - eta lambda, as in optax.
      b1: of the average of gradients.

    Returns:
      Radians.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    product, b1 = _product(rate, decay), in_range("b1", b1, _MOMENTUM)
    return 2 * jnp.arctan(jnp.sqrt(product / (2 - product) * (1 - b1) / (1 + b1)))


def adamw_decay(rate: ArrayLike, angle: ArrayLike, b1: ArrayLike = 0.9) -> Float[Array, "..."]:
    """The decay with which AdamW settles at an angle per step; undoes `adamw_angle`.

    Raises:
      ValueError: no decay turns the weights that fast.
    """
    b1, half = in_range("b1", b1, _MOMENTUM), in_range("angle", angle, _TURN) / 2
    tan2 = jnp.tan(half) ** 2 * (1 + b1) / (1 - b1)
    return _decay(2 * tan2 / (1 + tan2), rate)


def lion_angle(
    rate: ArrayLike, decay: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99
) -> Float[Array, "..."]:
    """The angle per step at which Lion settles, if gradients are Gaussian and independent.

    Signs of Gaussians correlate as the arc sines of their correlations, which is summed up here.
    The formula in use, sqrt(pi eta lambda ((1 - b1)^2 + b1^2 (1 - b2) / (1 + b2))) of Kosson et
    al. (2023), is its limit for small eta lambda and small correlations.  At the default b1 and b2
    it is within 1 % up to eta lambda = 1e-4, 3 % short at 1e-3, and a quarter short at 1e-2, where
    decay forgets as fast as b2.

    Args:
      rate: eta.
      decay: lambda; a step shrinks the weights by 1 - eta lambda, as in optax.
      b1: weighs the average against the last gradient.
      b2: of the average of gradients.

    Returns:
      Radians.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    product = _product(rate, decay)
    b1, b2 = in_range("b1", b1, _MOMENTUM), in_range("b2", b2, _MOMENTUM)
    return _angle(_lion_versine(product, b1, b2))


def lion_decay(
    rate: ArrayLike, angle: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99
) -> Float[Array, "..."]:
    """The decay with which Lion settles at an angle per step; undoes `lion_angle`.

    Raises:
      ValueError: no decay turns the weights that fast.
    """
    b1, b2 = in_range("b1", b1, _MOMENTUM), in_range("b2", b2, _MOMENTUM)
    wanted = _versine(angle)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        short = _lion_versine(jnp.exp(middle), b1, b2) < wanted
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    # Each product turns the weights by less than its own versine would.
    ends = jnp.log(wanted), jnp.zeros_like(wanted)
    low, high = jax.lax.fori_loop(0, 60, halve, ends)
    reachable = _lion_versine(jnp.ones_like(wanted), b1, b2) > wanted
    return _decay(jnp.where(reachable, jnp.exp((low + high) / 2), 1.0), rate)


def lion_persistence(
    product: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99
) -> Float[Array, "..."]:
    """How Lion's updates persist: the sum over k >= 1 of (1 - product)^(k - 1) r_k.

    r_k is the correlation of a coordinate's sign with that k steps later, for independent Gaussian
    gradients: (2 / pi) arcsin(rho b2^(k-1)), where rho is the correlation before taking signs.
    64 powers of the arc sine's series are taken, each summed over k in closed form: exact to 1e-10
    at usual settings, to a few per cent where b1 and b2 are within 1e-4 of 1.

    Args:
      product: eta lambda, by which old updates are forgotten.
      b1: weighs the average against the last gradient.
      b2: of the average of gradients.
    """
    product = in_range("rate * decay", product, "[0, 1]")
    b1, b2 = in_range("b1", b1, _MOMENTUM), in_range("b2", b2, _MOMENTUM)
    spread = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    rho = b1 * (1 - b2) * (1 - b1 + b1 * b2 / (1 + b2)) / spread
    dtype, n = rho.dtype, range(64)
    coefficients = jnp.array([math.comb(2 * i, i) / 4**i / (2 * i + 1) for i in n], dtype)

    def term(coefficient: Array, power: Array) -> Array:
        return coefficient * rho**power / (1 - (1 - product) * b2**power)

    powers = jnp.array([2 * i + 1 for i in n], dtype)
    return 2 / jnp.pi * jnp.sum(jax.vmap(term)(coefficients, powers), axis=0)


def relative_update(angle: ArrayLike) -> Float[Array, "..."]:
    """The relative update |dw| / |w| of a step that turns by an angle and keeps the norm."""
    return 2 * jnp.sin(in_range("angle", angle, "[0, 3.1416]") / 2)


def hyperball_rate(angle: ArrayLike) -> Float[Array, "..."]:
    """The rate of a hyperball rule, whose steps turn the weights by this angle.

    Such a rule gives each update the norm rate * |w|, and then restores |w|.  Exact for updates
    that are orthogonal to the weights: tan(angle).
    """
    return jnp.tan(in_range("angle", angle, _TURN))


def angle_of_hyperball(rate: ArrayLike) -> Float[Array, "..."]:
    """The angle by which a hyperball rule turns the weights per step; undoes `hyperball_rate`."""
    return jnp.arctan(in_range("rate", rate, "[0, inf)"))


def _lion_versine(product: Array, b1: Array, b2: Array) -> Array:
    """The mean 1 - cos for updates of norm 1 that persist, w' = (1 - product) w + update."""
    persistence = lion_persistence(product, b1, b2)
    return product * (1 - product * persistence) / (1 + 2 * (1 - product) * persistence)


def _angle(versine: Array) -> Array:
    """The angle of a given 1 - cos; the arc cosine would lose the digits of a small one."""
    return 2 * jnp.arcsin(jnp.sqrt(versine / 2))


def _versine(angle: ArrayLike) -> Array:
    return 2 * jnp.sin(in_range("angle", angle, _TURN) / 2) ** 2


def _product(rate: ArrayLike, decay: ArrayLike) -> Array:
    rate, decay = in_range("rate", rate, _POSITIVE), in_range("decay", decay, _DECAY)
    return in_range("rate * decay", rate * decay, "[0, 1)")


def _decay(product: Array, rate: ArrayLike) -> Array:
    advice = "no decay turns the weights that fast"
    product = in_range("rate * decay for this angle", product, "[0, 1)", advice)
    return product / in_range("rate", rate, _POSITIVE)
