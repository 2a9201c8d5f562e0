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
from jaxtyping import Array, Bool, Float


class Ritz(NamedTuple):
    """Approximate eigenvalues, ascending, each with an eigenvalue of the operator this near.

    The extreme ones converge first, from inside the spectrum.  All is up to the rounding of the
    eigenvalue of largest magnitude, which the residuals include for products that are as accurate
    as sums in their dtype: of 1e7, 1 and -1, float32 cannot tell the last two apart.  Where values
    are NaN, residuals are.
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

    The scale of the operator does not matter, as long as its products and eigenvalues are numbers
    of the dtype: inside, all is relative to the first product.

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

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple, tuple]:
        basis, q, unit = carry
        basis = basis.at[i].set(q)
        image = inside(product(q))
        unit = jnp.where(i == 0, scale_of(image), unit)
        image = image / unit
        along = q @ image
        left = image
        for _ in range(2):  # twice is enough (Parlett)
            left = inside(left - basis.T @ (basis @ left))
        beta, reached = jnp.linalg.norm(left), jnp.any(q != 0)
        goes_on = beta > 10 * tiny * jnp.linalg.norm(image)
        q = jnp.where(goes_on, left / jnp.where(goes_on, beta, 1), 0)
        return (basis, q, unit), (along, jnp.where(goes_on, beta, 0), reached)

    first = start / scale_of(start)
    carry = basis, first / jnp.linalg.norm(first), jnp.ones((), start.dtype)
    (_, _, unit), found = jax.lax.scan(step, carry, jnp.arange(iterations))
    values, residuals = _of_tridiagonal(*found)
    sums = 10 + iterations + start.size**0.5
    largest = jnp.max(jnp.abs(values))
    rounding = sums * tiny * largest
    # Smaller numbers are 0 in many programs.
    underflow = jnp.where(largest > 0, sums * jnp.finfo(start.dtype).tiny, 0)
    return Ritz(values * unit, (residuals + rounding) * unit + underflow)


def scale_of(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The largest magnitude of the entries, to divide by before squares are taken.

    1 where it is 0 or not finite.
    """
    largest = jnp.max(jnp.abs(x), initial=0)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def _of_tridiagonal(
    alpha: Float[Array, " n"], beta: Float[Array, " n"], reached: Bool[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Ritz values, and how far their vectors are from being eigenvectors."""
    off = jnp.diag(beta[:-1], 1)
    filled = jnp.where(reached, alpha, alpha[0])
    values, vectors = jnp.linalg.eigh(jnp.diag(filled) + off + off.T)
    known = jnp.all(jnp.isfinite(filled) & jnp.isfinite(beta))
    values = jnp.where(known, values, jnp.nan)  # of a NaN in a corner, eigh does not see all
    repeated = jnp.linalg.norm(jnp.where(reached[:, None], 0, vectors), axis=0)
    # The Rayleigh quotient of the start is off by what the second vector was left with.
    return values, beta[-1] * jnp.abs(vectors[-1]) + beta[0] * repeated
