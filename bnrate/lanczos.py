"""Eigenvalues of a symmetric operator that is known only by its products with vectors.

>>> A = jnp.diag(jnp.array([-3., 0.5, 1., 2.]))
>>> found = ritz(lambda v: A @ v, jnp.ones(4), 4)
>>> [round(value, 3) for value in found.values.tolist()]
[-3.0, 0.5, 1.0, 2.0]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Ritz(NamedTuple):
    """Approximate eigenvalues, ascending, each with an eigenvalue of the operator this near.

    The extreme ones converge first, from inside the spectrum.
    """

    values: Float[Array, " iterations"]
    residuals: Float[Array, " iterations"]


Operator = Callable[[Float[Array, " n"]], Float[Array, " n"]]


def ritz(
    product: Operator, start: Float[Array, " n"], iterations: int, project: Operator | None = None
) -> Ritz:
    """Lanczos with full reorthogonalisation: one product per iteration, all vectors kept.

    Power iteration would not do: on a scale-invariant block the largest and the smallest eigenvalue
    are about as large.  Where the vectors span all that the start can reach before the end, the
    values after that are repetitions of its Rayleigh quotient, which lies inside the spectrum.

    Args:
      product: of the operator with a vector.
      start: any vector but zero.
      iterations: at most the dimension is used.
      project: orthogonally onto a subspace that `start` is in.  What is found are eigenvalues of
        the operator between two such projections, on that subspace; those of 0 outside of it do
        not count.

    Raises:
      ValueError: there are no iterations, or no vector.
    """
    if iterations < 1 or start.ndim != 1 or not start.size:
        raise ValueError(
            f"Lanczos needs a vector to start with and at least 1 iteration, got shape "
            f"{start.shape} and {iterations}"
        )
    iterations = min(iterations, start.size)
    basis = jnp.zeros((iterations, start.size), start.dtype)
    tiny = jnp.finfo(start.dtype).eps
    inside = project or (lambda vector: vector)

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], tuple]:
        basis, q = carry
        basis = basis.at[i].set(q)
        image = inside(product(q))
        along = q @ image
        left = image
        for _ in range(2):  # twice is enough (Parlett)
            left = inside(left - basis.T @ (basis @ left))
        beta, reached = jnp.linalg.norm(left), jnp.any(q != 0)
        goes_on = beta > 10 * tiny * jnp.linalg.norm(image)
        q = jnp.where(goes_on, left / jnp.where(goes_on, beta, 1), 0)
        return (basis, q), (along, jnp.where(goes_on, beta, 0), reached)

    first = start / jnp.linalg.norm(start)
    _, (alpha, beta, reached) = jax.lax.scan(step, (basis, first), jnp.arange(iterations))
    alpha = jnp.where(reached, alpha, alpha[0])
    off = jnp.diag(beta[:-1], 1)
    values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + off + off.T)
    return Ritz(values, beta[-1] * jnp.abs(vectors[-1]))
