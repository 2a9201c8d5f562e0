"""A linear layer with its normalisation, and BatchNorm as a flax module."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnrate import normalize

# `norm(name=...)` makes a module, or a function, that is called with (x, train=...)
Norm = Callable[..., Callable[..., Array]]


class BatchNorm(nn.Module):
    """Batch normalisation with eps = 0 by default: the layer in front is exactly scale-invariant.

    Parameters `scale` (ones) and `bias` (zeros); running moments in the collection "batch_stats",
    updated when that collection is mutable.

    Attributes:
      eps: added to the variance; 0 keeps the invariance exact.
      decay: of the running moments.
    """

    eps: float = 0.0
    decay: float = 0.9

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], *, train: bool
    ) -> Float[Array, "*batch channels"]:
        """Normalise with the batch's moments (train) or with the running ones."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, x.dtype)
        dtype = jax.eval_shape(normalize.moments, x).mean.dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        average = normalize.Moments(mean.value, var.value)
        if not train:
            return normalize.batch_norm(x, average, scale, bias, eps=self.eps)
        y, using = normalize.over_batch(x, scale, bias, eps=self.eps)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value, var.value = normalize.running(average, using, self.decay)
        return y


def per_example(norm: Callable[..., nn.Module]) -> Norm:
    """A normalisation of flax that looks at one example at a time, so that training is no matter.

    For LayerNorm, GroupNorm, RMSNorm and InstanceNorm: `MLP((16,), 10, per_example(nn.LayerNorm))`.
    """

    def named(name: str) -> Callable[..., Array]:
        module = norm(name=name)
        return lambda x, *, train: module(x)

    return named


def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """The maxima of windows 2x2, side by side; sizes that are odd are rounded up.

    As flax's, but its gradient is an order of magnitude faster on a CPU.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        return nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
    corners = [
        jax.lax.slice(x, (0, i, j, 0), x.shape, (1, 2, 2, 1)) for i in (0, 1) for j in (0, 1)
    ]
    # Not `jnp.maximum`: in a compiled program its gradient is lost where the value that it compares
    # with the maximum was computed once more, and rounded otherwise.
    return functools.reduce(lambda a, b: jnp.where(a >= b, a, b), corners)


def normalised(
    layer: Callable[..., nn.Module],
    i: int,
    features: int,
    norm: Norm | None,
    x: Array,
    train: bool,
    **kwargs,
) -> Array:
    """`layer{i}` and then `norm{i}`, inside a compact module.

    Without a normalisation the layer has a bias; in front of one a bias would have no effect.
    """
    kernel_init = nn.initializers.glorot_uniform()
    use_bias = norm is None
    x = layer(features, use_bias=use_bias, kernel_init=kernel_init, name=f"layer{i}", **kwargs)(x)
    return x if norm is None else norm(name=f"norm{i}")(x, train=train)
