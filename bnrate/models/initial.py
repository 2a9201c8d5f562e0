"""Data-dependent initialisation of networks without normalisation."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate import normalize
from bnrate.models.layers import BatchNorm
from bnrate.models.mlp import MLP
from bnrate.models.resnet import ResNet
from bnrate.models.vgg import VGG


def data_dependent(model: MLP | VGG | ResNet, key: Array, x: Float[Array, "batch ..."]) -> PyTree:
    """Parameters with which each layer's outputs on `x` have mean 0 and variance 1, per channel.

    Setting 3b of the paper (Krähenbühl et al. 2015; Mishkin & Matas 2015; Salimans & Kingma 2016).
    The kernels are those of the same network with BatchNorm, and the moments of this one batch are
    folded into them: kernel / sqrt(var), bias = -mean / sqrt(var).  On `x` the two networks are the
    same function.  A channel that is constant on `x` has no variance to set; it becomes zero.  What
    no normalisation follows, the head of a ResNet, stays as drawn.

    Args:
      model: a network with `norm=None`.
      key: of the Glorot-uniform kernels.
      x: the first batch.

    Raises:
      ValueError: the model has a normalisation.
    """
    if model.norm is not None:
        raise ValueError(f"data-dependent initialisation needs norm=None, got {model.norm}")
    # With decay 0 the running moments are those of the one batch.
    normalised = model.clone(norm=lambda name: BatchNorm(decay=0.0, name=name))
    variables = normalised.init(key, x, train=True)
    _, seen = normalised.apply(variables, x, train=True, mutable=["batch_stats"])
    layers = {k: layer for k, layer in variables["params"].items() if not k.startswith("norm")}
    stats = {k.replace("norm", "layer"): moments for k, moments in seen["batch_stats"].items()}
    return layers | {k: _fold(layers[k], moments) for k, moments in stats.items()}


def _fold(layer: Mapping[str, Array], stats: Mapping[str, Array]) -> dict[str, Array]:
    factor = normalize.inverse_deviation(normalize.Moments(**stats))
    kernel = layer["kernel"]
    along_outputs = jnp.expand_dims(factor, tuple(range(kernel.ndim - 1)))
    return {"kernel": kernel * along_outputs, "bias": -stats["mean"] * factor}
