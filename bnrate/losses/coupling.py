"""Two spheres and a number that couples them: several blocks, a rest, and all constants."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate.groups import Group, Groups, Member
from bnrate.losses.problem import Problem, drawn, floats, full_batch, normal, starting, times
from bnrate.theory import constants

_GROUPS = Groups([Group([Member("w1")]), Group([Member("w2")])])


class Coupled(NamedTuple):
    """What defines an instance of `coupled_blocks`.

    Attributes:
      first: the eigenvalues of f1.
      second: those of f2.
      coupling: M.
    """

    first: Float[Array, " d1"]
    second: Float[Array, " d2"]
    coupling: Float[Array, "d1 d2"]


def coupled_blocks(first: Any, second: Any, coupling: Any, start: Any = None) -> Problem:
    """Two Rayleigh quotients and a number g: f1(w1) + f2(w2) + g v1'M v2 + g^2 / 2.

    Here v_i = w_i / |w_i|, and the quotients are of diagonal matrices.  The constants hold where
    gradient descent can take g from where it is, at that rate.  Their lower bound of the loss,
    min f1 + min f2 - |M|^2 / 2, is the minimum if the two lowest eigenvectors are a pair of
    singular vectors of M, the first; in general minimum and minimizer are unknown.

    Args:
      first: the eigenvalues of f1, or a function from a key to them.
      second: those of f2, likewise.
      coupling: M, of shape (d1, d2), likewise.
      start: a dictionary of some of w1, w2 and g, or a function from a key to it; w1 and w2 are
        normal if not given, and g is 1.

    Raises:
      ValueError: the shapes do not fit, or d1 or d2 is below 2; start has other shapes, or a zero
        vector.
    """
    return full_batch(
        init=starting(drawn(_checked, first, second, coupling), _default, start, _GROUPS),
        groups=_GROUPS,
        mean=_mean,
        gradient=_gradient,
        constants=lambda params, data, rate_rest: constants.coupled_blocks(
            data.first, data.second, data.coupling, params["g"], rate_rest
        ),
    )


def _default(key: Array, data: Coupled) -> dict[str, Array]:
    one, two = jax.random.split(key)
    g = jnp.ones((), data.coupling.dtype)
    return {"w1": normal(one, data.first), "w2": normal(two, data.second), "g": g}


def _mean(params: PyTree, data: Coupled) -> Float[Array, ""]:
    v1, v2, g = _unit(params["w1"]), _unit(params["w2"]), params["g"]
    apart = data.first @ v1**2 + data.second @ v2**2
    return apart + g * (v1 @ times(data.coupling, v2)) + g**2 / 2


def _gradient(params: PyTree, data: Coupled) -> PyTree:
    w1, w2, g = params["w1"], params["w2"], params["g"]
    v1, v2, M = _unit(w1), _unit(w2), data.coupling
    return {
        "w1": _across(v1, 2 * data.first * v1 + g * times(M, v2)) / jnp.linalg.norm(w1),
        "w2": _across(v2, 2 * data.second * v2 + g * times(M.T, v1)) / jnp.linalg.norm(w2),
        "g": v1 @ times(M, v2) + g,
    }


def _unit(w: Array) -> Array:
    return w / jnp.linalg.norm(w)


def _across(v: Array, vector: Array) -> Array:
    return vector - (v @ vector) * v


def _checked(first: Any, second: Any, coupling: Any) -> Coupled:
    A1, A2, M = floats("first", first, 1), floats("second", second, 1), floats("M", coupling, 2)
    if M.shape != (A1.size, A2.size):
        raise ValueError(f"coupling must have shape ({A1.size}, {A2.size}), got {M.shape}")
    return Coupled(A1, A2, M)
