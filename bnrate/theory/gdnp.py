"""Least squares behind a normalisation, with steps that know the variance: linearly fast.

With its scale at the best value, least squares on the normalised feature w'x / sqrt(w'S w) comes to
rho(w) = -(b'w)^2 / (w'S w), S the covariance of the inputs and b their covariance with the target.
GDNP (Kohler et al. 2018) takes steps of w'S w / (2 L |rho|) along the gradient, L the largest
eigenvalue of S; `transforms.gdnp` is that rule.

    >>> import jax.numpy as jnp
    >>> S, b = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0])
    >>> float(lowest(S, b)), float(contraction(S))
    (-1.5, 0.25)

Why it works: scaled to its best length, w is theta with theta'S theta = b'theta, and there the step
is one of gradient descent, at rate 1 / L, on the quadratic q = theta'S theta / 2 - b'theta, whose
error shrinks by (1 - mu / L)^2 at least.  The best length of what comes out can only lower q
further, and at the best length rho = 2 q.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnrate.ranges import in_range


def contraction(covariance: Float[Array, "d d"]) -> Float[Array, ""]:
    """By which each step of GDNP shrinks rho - min rho, or by more: (1 - mu / L)^2.

    mu and L are the extreme eigenvalues of S.  It holds from any w with b'w != 0 (elsewhere rho is
    0 and its gradient too), and it is attained in the limit of slow errors that hardly change the
    length.

    Args:
      covariance: S, symmetric and positive definite; only symmetry is taken for granted.

    Raises:
      ValueError: S is not positive definite, to the rounding of its dtype.
    """
    eigenvalues = jnp.linalg.eigvalsh(covariance)
    return (1 - _condition(eigenvalues)) ** 2


def lowest(covariance: Float[Array, "d d"], cross: Float[Array, " d"]) -> Float[Array, ""]:
    """The least value of rho: -b' S^-1 b, at w = S^-1 b.

    Args:
      covariance: S, symmetric and positive definite; only symmetry is taken for granted.
      cross: b.

    Raises:
      ValueError: S is not positive definite, to the rounding of its dtype.
    """
    eigenvalues, vectors = jnp.linalg.eigh(covariance)
    along = (cross @ vectors) ** 2
    return jnp.where(_condition(eigenvalues) > 0, -jnp.sum(along / eigenvalues), jnp.nan)


def _condition(eigenvalues: Array) -> Array:
    """The ratio mu / L of eigenvalues in ascending order."""
    rounding = eigenvalues.size * jnp.finfo(eigenvalues.dtype).eps
    advice = "the covariance is singular: take more samples than dimensions"
    ratio = eigenvalues[0] / eigenvalues[-1]
    return in_range("least / largest eigenvalue", ratio, f"({rounding}, 1]", advice)
