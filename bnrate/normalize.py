"""Batch normalisation as pure functions, exactly scale-invariant at eps = 0.

Ioffe & Szegedy 2015.  `moments` describe a batch, `batch_norm` applies them, `running` averages
them for evaluation.  Channels are on the last axis; all other axes are averaged over.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A channel whose deviation is below this many units in the last place of its mean is constant up
# to rounding: its "variance" is noise, and dividing by it would blow the noise up to size one.
_DEAD_ULPS = 8


class Moments(NamedTuple):
    """Mean and (biased) variance of each channel."""

    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]


def moments(x: Float[Array, "*batch channels"]) -> Moments:
    """Mean and variance of each channel of a batch, by the two-pass formula, in float32 or wider.

    >>> moments(jnp.array([[1., 5.], [3., 5.]]))
    Moments(mean=Array([2., 5.], dtype=float32), var=Array([1., 0.], dtype=float32))
    """
    x, axes = _wide(x), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    fixed = jax.lax.stop_gradient(mean)
    # About any fixed number the variance is mean (x - fixed)^2 - (mean - fixed)^2, which has the
    # same derivatives, of any order, as (x - mean)^2, for one sum over x less in the gradient.
    var = jnp.mean(jnp.square(x - _channels(fixed, x)), axes) - jnp.square(mean - fixed)
    return Moments(mean, var)


def running(average: Moments, batch: Moments, decay: float = 0.9) -> Moments:
    """Exponential moving average of the moments, used in place of the batch's in evaluation."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, batch)


def inverse_deviation(using: Moments, eps: float = 0.0) -> Float[Array, " channels"]:
    """1 / sqrt(var + eps), and 0 for a dead channel: one that is constant up to rounding.

    Dead is var <= (8 ulp mean)^2, a test that is itself scale-invariant.  A variance that has
    overflowed gives NaN, so that the loss shows it.

    Raises:
      ValueError: eps is negative.
    """
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    noise = _DEAD_ULPS * float(jnp.finfo(using.mean.dtype).eps) * using.mean
    alive = using.var > jnp.square(noise)
    # 1/sqrt(inf) = 0, with derivative 0: the gradient needs no guard of its own.  And not rsqrt,
    # whose derivative var^(-3/2) overflows in float32 from var = 1e-26 down.
    factor = 1 / jnp.sqrt(jnp.where(alive, using.var + eps, jnp.inf))
    return jnp.where(jnp.isinf(using.var), jnp.nan, factor)


def batch_norm(
    x: Float[Array, "*batch channels"],
    using: Moments,
    scale: Float[Array, " channels"] | None = None,
    bias: Float[Array, " channels"] | None = None,
    *,
    eps: float = 0.0,
) -> Float[Array, "*batch channels"]:
    """(x - mean) / sqrt(var + eps) * scale + bias, channel by channel, in the dtype of x.

    With `using=moments(x)` and eps = 0 the result does not change when a channel of x is
    multiplied by c > 0.  A dead channel becomes `bias`, with gradient zero.

    >>> x = jnp.array([[1., 0.1], [3., 0.1]])
    >>> batch_norm(x, moments(x))
    Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    factor = inverse_deviation(using, eps)
    # One product with x, hence one sum over it in the gradient, for the deviation and the scale.
    factor = factor if scale is None else factor * scale.astype(factor.dtype)
    # And the mean as a fixed number and what it differs by, which is added with the bias, so that
    # one sum over the gradient serves them both.
    fixed = jax.lax.stop_gradient(using.mean)
    shift = (fixed - using.mean) * factor
    shift = shift if bias is None else shift + bias.astype(factor.dtype)
    y = (_wide(x) - _channels(fixed, x)) * _channels(factor, x) + _channels(shift, x)
    return y.astype(x.dtype)


def _wide(x: Array) -> Array:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _channels(values: Array, x: Array) -> Array:
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
