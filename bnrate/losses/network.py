"""A small smooth network under BatchNorm: what the theorems are for, without known constants."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from bnrate import normalize
from bnrate.groups import Group, Groups, Member
from bnrate.losses.problem import Problem, full_batch
from bnrate.ranges import in_range


class Examples(NamedTuple):
    """The one batch of `bn_network`.

    Attributes:
      x: the inputs.
      labels: from 0 on.
    """

    x: Float[Array, "n features"]
    labels: Int[Array, " n"]


def bn_network(x: ArrayLike, labels: ArrayLike, widths: Sequence[int]) -> Problem:
    """Cross-entropy of a perceptron on one batch, each linear layer under a BatchNorm without eps.

    Softplus in between, so that the loss is smooth as the theorems ask.  Each neuron's incoming
    weights are one unit; the scales and biases of the normalisations are the rest.  The gradient is
    by automatic differentiation; constants and minimizer are unknown.  A neuron that is constant on
    the batch has no normalised value, and there the loss is not smooth.

    Args:
      x: of shape (n, features).
      labels: integers from 0 to `widths[-1] - 1`.
      widths: of the layers; the last one is the number of classes.

    Raises:
      ValueError: there are no widths, or one below 1; a label is not below the last one; an input
        is not finite.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be one or more, all at least 1; got {tuple(widths)}")
    in_range("labels", labels, f"[0, {widths[-1]})", "widths end with the number of classes")
    inputs = in_range("x", x, "(-inf, inf)")
    examples = Examples(jnp.asarray(inputs, inputs.dtype), jnp.asarray(labels))

    def init(key: Array) -> tuple[PyTree, Examples]:
        params, keys = {}, jax.random.split(key, len(widths))
        sizes = itertools.pairwise([inputs.shape[-1], *widths])
        for i, (key, (fan_in, fan_out)) in enumerate(zip(keys, sizes, strict=True)):
            kernel = jax.random.normal(key, (fan_in, fan_out), inputs.dtype)
            one = jnp.ones(fan_out, inputs.dtype)
            params[f"layer{i}"] = {"kernel": kernel}
            params[f"norm{i}"] = {"scale": one, "bias": 0 * one}
        return params, examples

    return full_batch(
        init=init,
        groups=Groups(Group([Member(f"layer{i}/kernel", axes=1)]) for i in range(len(widths))),
        mean=_mean,
        gradient=jax.grad(_mean),
    )


def _mean(params: PyTree, data: Examples) -> Float[Array, ""]:
    h = data.x
    for i in range(len(params) // 2):
        h = h if i == 0 else jax.nn.softplus(h)
        h, _ = normalize.over_batch(h @ params[f"layer{i}"]["kernel"], **params[f"norm{i}"])
    return optax.softmax_cross_entropy_with_integer_labels(h, data.labels).mean()
