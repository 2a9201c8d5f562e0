"""Constants of the theorems: bounds of the derivatives of a loss at unit norm.

A convergence theorem asks how much a loss can bend.  For a scale-invariant loss that is a question
about compact spheres, so that some losses have an answer in closed form:

    >>> known = rayleigh(jnp.array([0.0, 0.3, 1.0]))
    >>> known.tangent, known.gradient
    (Array([[2.]], dtype=float32), Array([1.], dtype=float32))

The bounds hold for all directions of the weights.  Where one is not scale-invariant (`gamma`, `g`),
they hold for all values of it that gradient descent can reach from where it is, which depends on
its rate.  They are exact up to the rounding of their own evaluation; but a matrix that must be
inverted is taken to be as much nearer to singular as its own rounding may have made it, so that in
float32 the constants of ill-conditioned ones are too large, never too small.

All functions take one instance and `vmap` over instances.  Numbers out of range are refused, and
are NaN in a compiled program; a matrix that must be inverted and is singular, up to rounding, has
infinite constants.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range

_FINITE = "(-inf, inf)"

# The second derivative of q'w / |w| at a unit v is -(a P + xi v' + v xi'), with a = q'v and
# P q = xi.  On the tangent space its norm is |a|; in all directions it is
# (|a| + sqrt(a^2 + 4 |xi|^2)) / 2, which is largest at a = |q| / sqrt(3): this times |q|.
_RADIAL = 2 / math.sqrt(3)


class Constants(NamedTuple):
    """Bounds that hold at unit norm, on all that a trajectory visits.

    A block is one sphere: a unit, or a whole group.  The rest is flat.

    Attributes:
      tangent: [i, j] bounds the second derivative in blocks i and j, both tangent to their spheres.
      ambient: [i, j] bounds it in all directions, which only the bound by straight segments needs;
        infinite if unknown.
      gradient: [i] bounds the norm of the gradient in block i.
      mixed: [i] bounds the second derivative in block i and the rest; 0 without a rest.
      rest: bounds the second derivative in the rest; 0 without a rest.
      lowest: no value of the loss lies below.
    """

    tangent: Float[Array, "blocks blocks"]
    ambient: Float[Array, "blocks blocks"]
    gradient: Float[Array, " blocks"]
    mixed: Float[Array, " blocks"]
    rest: Float[Array, ""]
    lowest: Float[Array, ""]


class Noise(NamedTuple):
    """Bounds of the gradients of single batches at unit norm.

    Attributes:
      gradient: [i] bounds the norm of every batch's gradient in block i.
      rest: bounds the standard deviation of the gradient in the rest: the root of the mean square
        of its distance from that of the mean loss; 0 without a rest.
    """

    gradient: Float[Array, " blocks"]
    rest: Float[Array, ""]


# ---- quotients of quadratic forms


def rayleigh(spectrum: ArrayLike) -> Constants:
    """Of w'Aw / w'w, for all w.

    At a unit vector v where the quotient is f, the second derivative has the eigenvalues
    2 (lambda_k - f), and the gradient is twice a standard deviation of the spectrum.  All bounds
    are attained.

    Args:
      spectrum: the eigenvalues of A, two or more.

    Raises:
      ValueError: there are fewer than two: the sphere is two points; an entry is not finite.
    """
    spectrum = _spectrum("spectrum", spectrum)
    low, high = jnp.min(spectrum), jnp.max(spectrum)
    return _one_block(2 * (high - low), 2 * (high - low), high - low, low)


def rayleigh_noise(matrices: ArrayLike) -> Noise:
    """Of w'A_k w / w'w, one k drawn per step; the mean loss has the constants of the mean matrix.

    Args:
      matrices: all A_k, of shape (batches, d, d); only their symmetric parts matter.

    Raises:
      ValueError: the shape is another; an entry is not finite.
    """
    spectra = jnp.linalg.eigvalsh(_matrices("matrices", matrices, 3))
    return Noise(jnp.max(spectra[:, -1] - spectra[:, 0]).reshape(1), jnp.zeros((), spectra.dtype))


def generalized_rayleigh(metric: ArrayLike, spectrum: ArrayLike) -> Constants:
    """Of w'Bw / w'Sw, for all w: a Rayleigh quotient of S^(1/2) w.

    The change of variables stretches by sqrt(kappa(S)) at most, once per derivative.  The loss
    c - (b'w)^2 / (w'Sw) of least squares with the best gamma is one of these, with B = c S - b b'.

    Args:
      metric: the eigenvalues of S, two or more, positive; else the constants are infinite.
      spectrum: the generalised eigenvalues: those of S^(-1) B, as many; of their own rounding, when
        computed in the dtype they have, account is taken here.

    Raises:
      ValueError: there are fewer than two, or not as many of both; an entry is not finite.
    """
    metric, spectrum = _spectrum("metric", metric), _spectrum("spectrum", spectrum)
    if metric.shape != spectrum.shape:
        raise ValueError(
            f"S has {metric.size} eigenvalues and the spectrum {spectrum.size}; give as many"
        )
    kappa = _condition(metric)
    singular = jnp.isinf(kappa)
    # Rounding of S and B, as of matrices, moves the quotient by so much at most.
    noise = 2 * _rounding(metric) * jnp.where(singular, 1, kappa) * jnp.max(jnp.abs(spectrum))
    low = jnp.min(spectrum) - noise
    spread = jnp.max(spectrum) + noise - low
    curvature = jnp.where(singular, jnp.inf, 2 * kappa * spread)
    gradient = jnp.where(singular, jnp.inf, jnp.sqrt(kappa) * spread)
    return _one_block(curvature, curvature, gradient, jnp.where(singular, -jnp.inf, low))


# ---- least squares on a normalised feature


def bn_least_squares(
    covariance: ArrayLike,
    cross: ArrayLike,
    square: ArrayLike,
    gamma: ArrayLike,
    rate_rest: ArrayLike,
    mean: ArrayLike = 0.0,
) -> Constants:
    """Of E (gamma w'x / sqrt(w'Sw) + bias - y)^2, from this gamma on.

    With beta = S^(-1/2) b and u = b'w / sqrt(w'Sw), the loss is gamma^2 - 2 gamma u, plus what
    depends on the bias only; |u| <= |beta|, so that each step moves gamma towards some number in
    [-|beta|, |beta|].  `tangent`, `gradient` and `mixed` are attained, for suitable b.

    Several minibatches, each normalised by its own moments, stand along leading axes: the loss is
    then the mean of theirs, and the constants are means too.  They serve every rate of gamma up to
    `rate_rest`, so schedules that fall.

    Args:
      covariance: S of the features, of shape (..., d, d); only its symmetric part matters.
      cross: b, the covariances of the features with y, of shape (..., d).
      square: the variance of y, or E y^2 if there is no bias; of shape (...).
      gamma: at the start.
      rate_rest: of gamma and bias, below 1; beyond 1 gamma diverges.
      mean: of y, of shape (...), if there is a bias.

    Raises:
      ValueError: a shape is another; `rate_rest` is not in [0, 1); an entry is not finite.
    """
    kappa, beta = _whitened(covariance, cross)
    reach = _least_squares_reach(beta, gamma, rate_rest)
    square, mean = in_range("square", square, "[0, inf)"), in_range("mean", mean, _FINITE)
    mixed = jnp.mean(2 * jnp.sqrt(kappa) * beta)
    # u is beta'z of a unit vector z = S^(1/2) v / sqrt(v'Sv), and S^(1/2) stretches by sqrt(kappa)
    # at most: so `mixed`, and `ambient`.  Tangent vectors at v do not go to tangent vectors at z;
    # `tangent` has no factor for the radial direction all the same.  In the plane of v and a
    # tangent x let S be [[p, q], [q, r]], of determinant D and condition k <= kappa.  Whitened, x
    # is (q, sqrt(D)) / p, so that u bends by |beta| sqrt(D (D + 4 q^2)) / p^2 at most along x.
    # With e the share of the larger eigenvector in v, the square of that is |beta|^2
    # (k^2 + 4 k (k-1)^2 e (1-e)) / (1 + (k-1) e)^4 <= |beta|^2 k^2, by (1 + y)^4 >= 1 + 4 y.
    curvature = reach * jnp.mean(2 * kappa * beta)
    return _one_block(
        curvature,
        _RADIAL * curvature,
        reach * mixed,
        jnp.mean(square) + jnp.var(mean) - jnp.mean(beta) ** 2,
        mixed=mixed,
        rest=jnp.full_like(mixed, 2),
    )


def bn_least_squares_noise(
    covariance: ArrayLike,
    cross: ArrayLike,
    gamma: ArrayLike,
    rate_rest: ArrayLike,
    mean: ArrayLike = 0.0,
) -> Noise:
    """Of `bn_least_squares` with one minibatch drawn per step, uniformly; the same arguments.

    Raises:
      ValueError: as `bn_least_squares` does.
    """
    kappa, beta = _whitened(covariance, cross)
    reach = _least_squares_reach(beta, gamma, rate_rest)
    gradient = reach * jnp.max(2 * jnp.sqrt(kappa) * beta)
    rest = 2 * jnp.sqrt(jnp.mean(beta**2) + jnp.var(in_range("mean", mean, _FINITE)))
    return Noise(gradient.reshape(1), rest)


def _least_squares_reach(beta: Array, gamma: ArrayLike, rate_rest: ArrayLike) -> Array:
    rate = in_range("rate_rest", rate_rest, "[0, 1)", "at larger rates gamma diverges")
    return _reach(in_range("gamma", gamma, _FINITE), jnp.max(beta), 2 * rate)


def _whitened(covariance: ArrayLike, cross: ArrayLike) -> tuple[Array, Array]:
    """Condition of S, and |S^(-1/2) b|: infinite both if S is singular."""
    covariance, cross = _matrices("covariance", covariance), in_range("cross", cross, _FINITE)
    if cross.shape != covariance.shape[:-1]:
        raise ValueError(
            f"cross must have shape {covariance.shape[:-1]}, as a row of the covariance; "
            f"got {cross.shape}"
        )
    values, vectors = jnp.linalg.eigh(covariance)
    kappa = _condition(values)
    singular = jnp.isinf(kappa)
    values = jnp.where(singular[..., None], 1, _lowered(values))
    along = jnp.einsum("...ij,...i->...j", vectors, cross)
    beta = jnp.linalg.norm(along / jnp.sqrt(values), axis=-1)
    # The eigenvectors have been rounded too, as if b had been.
    noise = _rounding(values) * jnp.linalg.norm(cross, axis=-1) / jnp.sqrt(values[..., 0])
    return kappa, jnp.where(singular, jnp.inf, beta + noise)


# ---- two blocks


def coupled_blocks(
    first: ArrayLike, second: ArrayLike, coupling: ArrayLike, g: ArrayLike, rate_rest: ArrayLike
) -> Constants:
    """Of f1(w1) + f2(w2) + g v1'M v2 + g^2 / 2, v_i = w_i / |w_i|, f_i Rayleigh quotients.

    A step is g <- (1 - rate) g - rate v1'M v2, towards some number in [-|M|, |M|].  All but
    `ambient` are attained, for suitable M, and `lowest` too where the singular vectors of M are the
    lowest eigenvectors.

    Args:
      first: the eigenvalues of f1, two or more.
      second: those of f2.
      coupling: M, of shape (d1, d2).
      g: at the start.
      rate_rest: of g, below 2; beyond 2 it diverges.

    Raises:
      ValueError: a shape is another; `rate_rest` is not in [0, 2); an entry is not finite.
    """
    spectra = _spectrum("first", first), _spectrum("second", second)
    coupling = in_range("coupling", coupling, _FINITE)
    if coupling.shape != (spectra[0].size, spectra[1].size):
        raise ValueError(
            f"coupling must have shape ({spectra[0].size}, {spectra[1].size}), as many as "
            f"eigenvalues; got {coupling.shape}"
        )
    norm = jnp.linalg.svd(coupling, compute_uv=False)[0]
    rate = in_range("rate_rest", rate_rest, "[0, 2)", "at larger rates g diverges")
    across = norm * _reach(in_range("g", g, _FINITE), norm, rate)
    low = jnp.stack([jnp.min(spectrum) for spectrum in spectra])
    spread = jnp.stack([jnp.max(spectrum) for spectrum in spectra]) - low
    off = across * (1 - jnp.eye(2, dtype=norm.dtype))
    return Constants(
        tangent=jnp.diag(2 * spread + across) + off,
        ambient=jnp.diag(2 * spread + _RADIAL * across) + off,
        gradient=spread + across,
        mixed=jnp.full_like(spread, norm),
        rest=jnp.ones_like(norm),
        lowest=jnp.sum(low) - norm**2 / 2,
    )


# ---- shared


def _one_block(
    tangent: Array,
    ambient: Array,
    gradient: Array,
    lowest: Array,
    mixed: Array | None = None,
    rest: Array | None = None,
) -> Constants:
    zero = jnp.zeros_like(tangent)
    mixed, rest = zero if mixed is None else mixed, zero if rest is None else rest
    return Constants(
        tangent.reshape(1, 1),
        ambient.reshape(1, 1),
        gradient.reshape(1),
        mixed.reshape(1),
        rest,
        lowest,
    )


def _reach(start: Array, target: Array, pull: Array) -> Array:
    """No |g| is larger, where a step is g <- (1 - pull) g + pull t, and all |t| <= target.

    Up to 1, `pull` averages, and nothing leaves an interval that holds both.  Beyond, a step
    overshoots: |g+| <= (pull - 1) |g| + pull target, which maps [0, r] into itself from
    r = target pull / (2 - pull) on.  The straight path of a step stays inside too.
    """
    return jnp.maximum(jnp.abs(start), target * jnp.maximum(pull / (2 - pull), 1))


def _condition(eigenvalues: Float[Array, "... d"]) -> Float[Array, "..."]:
    """No less than the largest by the smallest; infinite if that is not positive for sure."""
    low, high = jnp.min(_lowered(eigenvalues), axis=-1), jnp.max(eigenvalues, axis=-1)
    high = high * (1 + _rounding(eigenvalues))
    singular = low <= 0  # false for NaN, which stays
    return jnp.where(singular, jnp.inf, high / jnp.where(singular, 1, low))


def _lowered(eigenvalues: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """None of the true ones is smaller: each is known up to the rounding of the largest."""
    return eigenvalues - _rounding(eigenvalues) * jnp.max(eigenvalues, axis=-1, keepdims=True)


def _rounding(eigenvalues: Float[Array, "... d"]) -> float:
    """By what a matrix is rounded when its eigenvalues are computed, relative to the largest."""
    return eigenvalues.shape[-1] * float(jnp.finfo(eigenvalues.dtype).eps)


def _spectrum(what: str, value: ArrayLike) -> Float[Array, " d"]:
    spectrum = in_range(what, value, _FINITE)
    if spectrum.ndim != 1 or spectrum.size < 2:
        raise ValueError(
            f"{what} must hold two eigenvalues or more (in one dimension the sphere is two points, "
            f"with nothing between); got shape {spectrum.shape}"
        )
    return spectrum


def _matrices(what: str, value: ArrayLike, rank: int | None = None) -> Float[Array, "... d d"]:
    matrices = in_range(what, value, _FINITE)
    *_, rows, columns = (0, 0, *matrices.shape)
    if rows != columns or rows < 2 or rank not in (None, matrices.ndim):
        raise ValueError(
            f"{what} must be square, two by two or more (in one dimension the sphere is two "
            f"points), of rank {rank or '2 or more'}; got shape {matrices.shape}"
        )
    return matrices
