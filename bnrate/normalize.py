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
    return _centred(x)[1]


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
    centred = _wide(x) - _channels(using.mean, x)
    return _affine(centred, inverse_deviation(using, eps), scale, bias).astype(x.dtype)


def over_batch(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"] | None = None,
    bias: Float[Array, " channels"] | None = None,
    *,
    eps: float = 0.0,
) -> tuple[Float[Array, "*batch channels"], Moments]:
    """`batch_norm` with the moments of x itself, and these moments.

    The same numbers; but x is centred once, so that its gradient takes a sum over the batch less.

    >>> y, using = over_batch(jnp.array([[1., 5.], [3., 5.]]))
    >>> y, using.mean
    (Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32), Array([2., 5.], dtype=float32))
    """
    centred, using = _centred(x)
    return _affine(centred, inverse_deviation(using, eps), scale, bias).astype(x.dtype), using


def _centred(x: Array) -> tuple[Array, Moments]:
    """What is left of x without its mean, and the moments."""
    wide, axes = _wide(x), tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    centred = wide - _channels(mean, wide)
    return centred, Moments(mean, jnp.mean(jnp.square(centred), axes))


def _affine(centred: Array, factor: Array, scale: Array | None, bias: Array | None) -> Array:
    """Centred * factor * scale + bias, with one product: one sum over it in the gradient."""
    factor = factor if scale is None else factor * scale.astype(factor.dtype)
    y = centred * _channels(factor, centred)
    return y if bias is None else y + _channels(bias.astype(factor.dtype), centred)


def _wide(x: Array) -> Array:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _channels(values: Array, x: Array) -> Array:
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
