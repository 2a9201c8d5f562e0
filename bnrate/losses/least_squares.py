"""Least squares on one linear feature behind a BatchNorm, in closed form."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bnrate.losses.problem import (
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
from bnrate.ranges import in_range
from bnrate.theory import constants
from bnrate.theory.constants import Constants, Noise


class Moments(NamedTuple):
    """What least squares needs to know of examples (x, y); leading axes, if any, are minibatches.

    Attributes:
      covariance: S, of the features; or its diagonal, if it has no other entries.
      cross: b, their covariances with y.
      square: the variance of y; or the mean of y^2, where there is no bias.
      mean: of y; None for a model without bias.
    """

    covariance: Float[Array, "*batches d d"] | Float[Array, "*batches d"]
    cross: Float[Array, "*batches d"]
    square: Float[Array, "*batches"]
    mean: Float[Array, "*batches"] | None = None


def moments(x: Float[Array, "*batches n d"], y: Float[Array, "*batches n"]) -> Moments:
    """The moments of examples, those of each minibatch where there are leading axes.

    A minibatch of d examples or fewer has a singular covariance, and infinite constants.
    """
    n, mean = y.shape[-1], jnp.mean(y, axis=-1)
    x, y = x - jnp.mean(x, axis=-2, keepdims=True), y - mean[..., None]
    covariance = jnp.einsum("...ni,...nj->...ij", x, x) / n
    cross = jnp.einsum("...ni,...n->...i", x, y) / n
    return Moments(covariance, cross, jnp.mean(y**2, axis=-1), mean)


def bn_least_squares(of: Any, start: Any = None) -> Problem:
    """E (gamma w'x / sqrt(w'Sw) + bias - y)^2 for centred x: BatchNorm, without eps, and a line.

    The constants hold where gradient descent can take gamma from where it is, at that rate.

    >>> import jax
    >>> of = Moments(jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 2.0]), jnp.array(2.5))
    >>> problem = bn_least_squares(of, start={"w": [1.0, -0.5], "gamma": 0.5})
    >>> params, data = problem.init(jax.random.key(0))
    >>> least = problem.minimizer(data)
    >>> print(f"{problem.mean(params, data):.3f}, at least {problem.mean(least, data):.3f}")
    2.750, at least 0.500

    Args:
      of: the `Moments`, or a function from a key to them.
      start: w, or a dictionary of some of w, gamma and bias, or a function from a key to either;
        w is normal if not given, gamma 1 and bias 0.

    Raises:
      ValueError: the moments have other shapes, or d < 2; start has, or its w is zero.
    """
    return full_batch(
        minimizer=_minimizer,
        **_known(drawn(lambda of: _checked(of, 2), of), start),
    )


def noisy_bn_least_squares(of: Any, start: Any = None) -> Problem:
    """`bn_least_squares` on one minibatch per step, normalised by the moments of that minibatch.

    The mean is that over minibatches, and not the loss on all examples together: normalising by
    other moments makes it another function, of unknown minimizer.

    Args:
      of: the `Moments` of all minibatches, along a first axis; or a function from a key to them.
      start: as in `bn_least_squares`.

    Raises:
      ValueError: the moments have other shapes, or d < 2; start has, or its w is zero.
    """
    return one_of_many(
        _value,
        noise=_noise,
        **_known(drawn(lambda of: _checked(of, 3), of), start),
    )


def _known(data: Any, start: Any) -> dict[str, Any]:
    return {
        "init": starting(data, _default, start),
        "groups": W,
        "mean": lambda params, of: jnp.mean(_value(params, of)),
        "gradient": _gradient,
        "constants": _constants,
    }


def _default(key: Array, of: Moments) -> dict[str, Array]:
    one = jnp.ones((), of.cross.dtype)
    bias = {} if of.mean is None else {"bias": 0 * one}
    return {"w": normal(key, of.cross), "gamma": one, **bias}


def _value(params: PyTree, of: Moments) -> Float[Array, "*batches"]:
    gamma, (u, _) = params["gamma"], _feature(params["w"], of)
    shift = 0 if of.mean is None else (params["bias"] - of.mean) ** 2
    return gamma**2 - 2 * gamma * u + of.square + shift


def _gradient(params: PyTree, of: Moments) -> PyTree:
    gamma, (u, slope) = params["gamma"], _feature(params["w"], of)
    along = {
        "w": -2 * gamma * jnp.mean(slope.reshape(-1, slope.shape[-1]), axis=0),
        "gamma": 2 * (gamma - jnp.mean(u)),
    }
    return along if of.mean is None else {**along, "bias": 2 * (params["bias"] - jnp.mean(of.mean))}


def _feature(w: Array, of: Moments) -> tuple[Float[Array, "*batches"], Float[Array, "*batches d"]]:
    """The covariance of y with the normalised feature, u = b'w / sqrt(w'Sw), and its gradient."""
    spread = w.reshape([1] * (of.cross.ndim - 1) + [-1])
    Sw = of.covariance * spread if _diagonal(of) else times(of.covariance, w)
    deviation = jnp.sqrt(jnp.einsum("...i,i->...", Sw, w))
    u = jnp.einsum("...i,i->...", of.cross, w) / deviation
    return u, (of.cross - (u / deviation)[..., None] * Sw) / deviation[..., None]


def _minimizer(of: Moments) -> PyTree:
    w = jnp.linalg.solve(_full(of), of.cross)
    w = jnp.where(jnp.any(w != 0), w, 1)  # if y has nothing to do with x, all directions are equal
    bias = {} if of.mean is None else {"bias": of.mean}
    return {"w": w, "gamma": jnp.sqrt(of.cross @ w), **bias}


def _constants(params: PyTree, of: Moments, rate_rest: ArrayLike) -> Constants:
    mean = 0.0 if of.mean is None else of.mean
    return constants.bn_least_squares(
        _full(of), of.cross, of.square, params["gamma"], rate_rest, mean
    )


def _noise(params: PyTree, of: Moments, rate_rest: ArrayLike) -> Noise:
    mean = 0.0 if of.mean is None else of.mean
    return constants.bn_least_squares_noise(_full(of), of.cross, params["gamma"], rate_rest, mean)


def _diagonal(of: Moments) -> bool:
    return jnp.ndim(of.covariance) == jnp.ndim(of.cross)


def _full(of: Moments) -> Float[Array, "*batches d d"]:
    if not _diagonal(of):
        return of.covariance
    return jnp.vectorize(jnp.diag, signature="(d)->(d,d)")(of.covariance)


def _checked(of: Moments, rank: int) -> Moments:
    b = floats("cross", of.cross, rank - 1)
    if _diagonal(of):
        S = floats("covariance", of.covariance, rank - 1)
    else:
        S = symmetric("covariance", of.covariance, rank)
    square = in_range("square", of.square, "[0, inf)")
    mean = None if of.mean is None else in_range("mean", of.mean, "(-inf, inf)")
    shapes = b.shape, square.shape, square.shape if mean is None else mean.shape
    of_b = S.shape if _diagonal(of) else S.shape[:-1]
    if shapes != (of_b, of_b[:-1], of_b[:-1]):
        raise ValueError(
            f"with a covariance of shape {S.shape}, cross must have shape {of_b}, square and mean "
            f"{of_b[:-1]}; got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    mean = None if mean is None else jnp.asarray(mean, b.dtype)
    return Moments(S, b, jnp.asarray(square, b.dtype), mean)
