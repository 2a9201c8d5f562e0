"""Quotients of quadratic forms: the plainest scale-invariant losses, and all is known of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate.losses.problem import (
    Data,
    Problem,
    W,
    drawn,
    floats,
    full_batch,
    normal,
    one_of_many,
    starting,
    symmetric,
    times,
)
from bnrate.theory import constants

Products = Callable[[Array, Data], tuple[Array, Array]]


def rayleigh(spectrum: Any, start: Any = None) -> Problem:
    """The Rayleigh quotient w'Aw / w'w of a diagonal A.

    Up to a rotation, which gradient descent does not notice, this is any A.

    >>> problem = rayleigh([0.0, 1.0], start=[0.6, 0.8])
    >>> params, data = problem.init(jax.random.key(0))
    >>> print(f"{problem.mean(params, data):.2f}")
    0.64

    Args:
      spectrum: the eigenvalues of A, or a function from a key to them.
      start: w, or a function from a key to it; normal if not given.

    Raises:
      ValueError: there are fewer than two eigenvalues; start is zero, or of another length.
    """
    mean, gradient = _quotient(lambda w, spectrum: (spectrum * w, w))
    data = drawn(lambda spectrum: floats("spectrum", spectrum, 1), spectrum)
    return full_batch(
        init=starting(data, lambda key, spectrum: {"w": normal(key, spectrum)}, start),
        groups=W,
        mean=mean,
        gradient=gradient,
        minimizer=lambda A: {"w": jax.nn.one_hot(jnp.argmin(A), A.size, dtype=A.dtype)},
        constants=lambda params, spectrum, rate_rest: constants.rayleigh(spectrum),
    )


def noisy_rayleigh(matrices: Any, start: Any = None) -> Problem:
    """The quotients w'A_k w / w'w, one k drawn per step; their mean is that of the mean matrix.

    Args:
      matrices: all A_k, of shape (batches, d, d), or a function from a key to them; only their
        symmetric parts matter.
      start: w, or a function from a key to it; normal if not given.

    Raises:
      ValueError: the matrices have another shape, or d < 2; start is zero, or of another length.
    """
    value, slope = _quotient(lambda w, matrix: (times(matrix, w), w))

    def average(matrices: Array) -> Array:
        return jnp.mean(matrices, axis=0)

    return one_of_many(
        value,
        init=starting(
            drawn(lambda matrices: symmetric("matrices", matrices, 3), matrices),
            lambda key, matrices: {"w": normal(key, matrices)},
            start,
        ),
        groups=W,
        mean=lambda params, matrices: value(params, average(matrices)),
        gradient=lambda params, matrices: slope(params, average(matrices)),
        minimizer=lambda matrices: {"w": jnp.linalg.eigh(average(matrices))[1][:, 0]},
        constants=lambda params, matrices, rate_rest: constants.rayleigh(
            jnp.linalg.eigvalsh(average(matrices))
        ),
        noise=lambda params, matrices, rate_rest: constants.rayleigh_noise(matrices),
    )


def generalized_rayleigh(numerator: Any, denominator: Any, start: Any = None) -> Problem:
    """The quotient w'Bw / w'Sw with a positive definite S: the generalised eigenvalue problem.

    Args:
      numerator: B, or a function from a key to it; only its symmetric part matters.
      denominator: S, likewise.  If it is singular the constants are infinite.
      start: w, or a function from a key to it; normal if not given.

    Raises:
      ValueError: the matrices are not square, not of one size, or d < 2; start is zero, or of
        another length.
    """
    mean, gradient = _quotient(lambda w, forms: (times(forms[0], w), times(forms[1], w)))
    return full_batch(
        init=starting(
            drawn(_pair, numerator, denominator),
            lambda key, forms: {"w": normal(key, forms[0])},
            start,
        ),
        groups=W,
        mean=mean,
        gradient=gradient,
        minimizer=lambda forms: {"w": _whiten(*forms)[2][:, 0]},
        constants=lambda params, forms, rate_rest: constants.generalized_rayleigh(
            *_whiten(*forms)[:2]
        ),
    )


def _quotient(
    products: Products,
) -> tuple[Callable[[PyTree, Data], Array], Callable[[PyTree, Data], PyTree]]:
    """Value and gradient of w'Bw / w'Sw, from (w, data) -> (Bw, Sw)."""

    def value(params: PyTree, data: Data) -> Array:
        Bw, Sw = products(params["w"], data)
        return params["w"] @ Bw / (params["w"] @ Sw)

    def gradient(params: PyTree, data: Data) -> PyTree:
        Bw, Sw = products(params["w"], data)
        return {"w": 2 * (Bw - value(params, data) * Sw) / (params["w"] @ Sw)}

    return value, gradient


def _pair(numerator: Any, denominator: Any) -> tuple[Array, Array]:
    B, S = symmetric("numerator", numerator), symmetric("denominator", denominator)
    if B.shape != S.shape:
        raise ValueError(f"numerator and denominator have shapes {B.shape} and {S.shape}")
    return B, S


def _whiten(
    B: Float[Array, "d d"], S: Float[Array, "d d"]
) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, "d d"]]:
    """The eigenvalues of S; the generalised ones, ascending; their eigenvectors, as columns."""
    metric, Q = jnp.linalg.eigh(S)
    # Where S is not positive definite nothing is true of the rest, and its constants say so.
    to_w = Q / jnp.sqrt(jnp.where(metric > 0, metric, 1))[None, :]
    spectrum, Y = jnp.linalg.eigh(to_w.T @ B @ to_w)
    return metric, spectrum, to_w @ Y
