"""Learning a halfspace behind a normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate.losses.problem import Problem, W, drawn, floats, full_batch, normal, starting


def bn_halfspace(examples: Any, start: Any = None) -> Problem:
    """Mean of log(1 + exp(-gamma z'w / sqrt(w'Sw))) over examples z = y x, with S = mean of z z'.

    Kohler et al. 2018 (learning halfspaces), on a finite sample.  Not convex in w.  There are no
    constants: where a halfspace separates the examples gamma grows for ever, and the second
    derivatives in w grow with its square.

    >>> problem = bn_halfspace(lambda key: 1 + jax.random.normal(key, (50, 3)))
    >>> params, z = problem.init(jax.random.key(0))
    >>> bool(problem.mean(params, z) == problem.mean({**params, "w": 8 * params["w"]}, z))
    True

    Args:
      examples: all z, of shape (n, d), or a function from a key to them.
      start: w, or a dictionary of some of w and gamma, or a function from a key to either; w is
        normal if not given, and gamma 1.

    Raises:
      ValueError: the examples have another shape, or d < 2; start has, or its w is zero.
    """
    data = drawn(lambda examples: floats("examples", examples, 2), examples)
    return full_batch(
        init=starting(
            data, lambda key, z: {"w": normal(key, z), "gamma": jnp.ones((), z.dtype)}, start
        ),
        groups=W,
        mean=_mean,
        gradient=_gradient,
    )


def _mean(params: PyTree, z: Float[Array, "n d"]) -> Float[Array, ""]:
    margin, _ = _margins(params["w"], z)
    return jnp.mean(jax.nn.softplus(-params["gamma"] * margin))


def _gradient(params: PyTree, z: Float[Array, "n d"]) -> PyTree:
    gamma, (m, deviation) = params["gamma"], _margins(params["w"], z)
    slope = -jax.nn.sigmoid(-gamma * m) / len(z)  # of the loss in gamma m
    across = slope - (slope @ m) * m / len(z)  # how far m moves with h, the norm held
    return {"w": gamma * (across @ z) / deviation, "gamma": slope @ m}


def _margins(w: Array, z: Array) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """The margins z'w / sqrt(w'Sw), and sqrt(w'Sw)."""
    h = z @ w
    deviation = jnp.sqrt(jnp.mean(h**2))
    return h / deviation, deviation
