"""Where weight decay and the growth of the norm balance: angle, norm, and the time it takes.

Updates lengthen a scale-invariant unit, decay shortens it.  Its norm, and with it the angle by
which it turns per step, settles where both are equal (Li & Arora 2020; Wan et al., "Spherical
motion dynamics", 2021; Kosson, Messmer & Jaggi, "Rotational equilibrium", 2023):

    >>> predicted = sgd(rate=0.1, decay=0.1, spherical_gradient=1.0)
    >>> [round(float(value), 4) for value in (predicted.angle, predicted.norm2)]
    [0.1415, 0.7089]
    >>> round(float(steps_to(predicted, norm2=10.0)))   # to come within 1 % from there
    226

The predictions are about noise: gradients that are orthogonal to the weights, independent of one
another, and of one mean square on the unit sphere.  Angles need less, since a stationary norm
fixes them; norms need it all: where the gradients of a network are not independent of those before,
as while it learns, they come out shorter.
`residual` compares with a run; `log_cos_identity` holds for every run of SGD, noisy or not.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range
from bnrate.theory import rotation


class Equilibrium(NamedTuple):
    """What a unit settles at.

    Attributes:
      angle: by which it turns per step, in radians.
      norm2: G = |w|^2.
      effective_rate: eta / G.
      contraction: by which a small deviation of `norm2` shrinks per step.
      power: `norm2 ** power` is what approaches its limit exponentially, from any distance.
    """

    angle: Float[Array, "..."]
    norm2: Float[Array, "..."]
    effective_rate: Float[Array, "..."]
    contraction: Float[Array, "..."]
    power: int


class Residual(NamedTuple):
    """Measured / predicted - 1.

    Attributes:
      angle: of the root mean square angle.
      norm2: of the mean norm2.
      start: the step from which on was measured.
    """

    angle: Float[Array, "..."]
    norm2: Float[Array, "..."]
    start: Float[Array, "..."]


def sgd(
    rate: ArrayLike,
    decay: ArrayLike,
    spherical_gradient: ArrayLike,
    momentum: ArrayLike = 0.0,
) -> Equilibrium:
    """The equilibrium of SGD with decay, and perhaps with momentum.

    G^2 = eta n (1 + mu) / (lambda (1 - mu) (2 (1 + mu) - eta lambda)), n the mean square of the
    spherical gradient.  With momentum 0 and a constant n, angle, norm and contraction are exact;
    with momentum and noise, angle and norm are exact but for the fluctuation of G, and the
    contraction is to leading order.  For small eta lambda, G = sqrt(eta n / (2 lambda (1 - mu))).

    Args:
      rate: eta.
      decay: lambda > 0, added to the gradient before the momentum.
      spherical_gradient: |w| |gradient|, its root mean square.
      momentum: mu; the buffer is not dampened.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    angle = rotation.sgd_angle(rate, decay, momentum)
    rate, decay, momentum = jnp.asarray(rate), _positive_decay(decay), jnp.asarray(momentum)
    n = in_range("spherical gradient", spherical_gradient, "(0, inf)") ** 2
    spread = (1 - momentum) * (2 * (1 + momentum) - rate * decay)
    norm2 = jnp.sqrt(rate / decay * n * (1 + momentum) / spread)
    slow = 2 * (1 - rate * decay / (1 - momentum)) ** 2 - 1
    contraction = jnp.maximum(jnp.abs(slow), jnp.sqrt(momentum))
    return Equilibrium(angle, norm2, rate / norm2, contraction, power=2)


def adamw(rate: ArrayLike, decay: ArrayLike, dims: ArrayLike, b1: ArrayLike = 0.9) -> Equilibrium:
    """The equilibrium of AdamW, whose division leaves each coordinate a mean square of 1.

    Exact for updates that are averages of such noise; the memory of the division (b2) is left
    out, which shows while the norm changes faster than it forgets.  For small eta lambda,
    G = eta dims / (2 lambda).

    Args:
      rate: eta.
      decay: lambda > 0; a step shrinks the weights by 1 - eta lambda, as in optax.
      dims: entries of the unit, as `groups.dims` counts them.
      b1: of the average of gradients.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    angle = rotation.adamw_angle(rate, decay, b1)
    rate, b1 = jnp.asarray(rate), jnp.asarray(b1)
    kept = 1 - rate * _positive_decay(decay)
    update2 = rate**2 * in_range("dims", dims, "[1, inf)") * (1 - b1) / (1 + b1)
    persistence = b1 / (1 - kept * b1)
    return _decoupled(angle, rate, kept, update2, persistence, memory=b1)


def lion(
    rate: ArrayLike, decay: ArrayLike, dims: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99
) -> Equilibrium:
    """The equilibrium of Lion, whose updates have entries of 1 and -1 times the rate.

    For Gaussian noise, and units of many entries; see `rotation.lion_angle`.

    Args:
      rate: eta.
      decay: lambda > 0; a step shrinks the weights by 1 - eta lambda, as in optax.
      dims: entries of the unit, as `groups.dims` counts them.
      b1: weighs the average against the last gradient.
      b2: of the average of gradients.

    Raises:
      ValueError: rate * decay is 1 or more; a value is out of range.
    """
    angle = rotation.lion_angle(rate, decay, b1, b2)
    rate, b2 = jnp.asarray(rate), jnp.asarray(b2)
    kept = 1 - rate * _positive_decay(decay)
    update2 = rate**2 * in_range("dims", dims, "[1, inf)")
    persistence = rotation.lion_persistence(1 - kept, b1, b2)
    return _decoupled(angle, rate, kept, update2, persistence, memory=b2)


def steps_to(
    predicted: Equilibrium, norm2: ArrayLike, tolerance: ArrayLike = 0.01
) -> Float[Array, "..."]:
    """How many steps it takes until norm2 is that close to its equilibrium.

    To leading order in eta lambda.

    Args:
      predicted: the equilibrium.
      norm2: at the start.
      tolerance: relative deviation of norm2 at which to stop counting.

    Returns:
      Steps, not rounded; 0 if it is that close already.
    """
    tolerance = in_range("tolerance", tolerance, "(0, 1)")
    ratio = in_range("norm2", norm2, "(0, inf)") / predicted.norm2
    excess = ratio**predicted.power - 1
    above, below = (1 + tolerance) ** predicted.power - 1, 1 - (1 - tolerance) ** predicted.power
    target = jnp.where(excess > 0, above, below)
    shrinks = jnp.log(target / jnp.abs(excess)) / jnp.log(predicted.contraction)
    return jnp.maximum(shrinks, 0)


def residual(
    predicted: Equilibrium,
    angle: Float[Array, "records ..."],
    norm2: Float[Array, "records ..."],
    *,
    stride: int = 1,
    tolerance: ArrayLike = 0.01,
) -> Residual:
    """How far a run's equilibrium is from a predicted one; NaN if it has not been reached.

    The records of `measure.on_spheres` will do.  The average begins when `steps_to` has passed.

    Args:
      predicted: one for all units, or one for each.
      angle: of each recorded step.
      norm2: before each recorded step.
      stride: steps from one record to the next.
      tolerance: how close to equilibrium the average begins.
    """
    start = steps_to(predicted, norm2[0], tolerance)
    steps = stride * jnp.arange(len(norm2)).reshape(-1, *[1] * start.ndim).astype(start.dtype)
    late = jnp.broadcast_to(steps >= start[None], norm2.shape)
    return Residual(
        jnp.sqrt(jnp.mean(angle**2, axis=0, where=late)) / predicted.angle - 1,
        jnp.mean(norm2, axis=0, where=late) / predicted.norm2 - 1,
        start,
    )


def log_cos_identity(
    angle: Float[Array, "steps ..."],
    norm2: Float[Array, "records ..."],
    rate: ArrayLike,
    decay: ArrayLike,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Both sides of what ties angles to decay in every run of SGD without momentum.

    The mean of -log cos(angle) is that of -log(1 - eta lambda), plus log(G_T / G_0) / (2 T): it
    follows from gradients being orthogonal to the weights, and from nothing else.  So while the
    norm neither vanishes nor explodes, the mean square of the angle cannot exceed
    -2 log(1 - eta lambda) for long, whatever the loss.

    Args:
      angle: of each step, none left out.
      norm2: before each step, and after the last: one entry more.
      rate: eta, constant or of each step.
      decay: lambda, constant or of each step.

    Returns:
      Left and right side, which agree to rounding.

    Raises:
      ValueError: norm2 has not one entry more than the angles, or rates or decays not as many.
    """
    steps = len(angle)
    if len(norm2) != steps + 1:
        raise ValueError(
            f"norm2 must have {steps + 1} entries for {steps} angles, got {len(norm2)}; give the "
            "one after the last step too"
        )
    rate, decay = in_range("rate", rate, "[0, inf)"), in_range("decay", decay, "[0, inf)")
    for name, value in (("rate", rate), ("decay", decay)):
        if value.shape not in ((), (steps,)):
            raise ValueError(f"{name} must be one or {steps}, one a step; got shape {value.shape}")
    product = in_range("rate * decay", rate * decay, "[0, 1)")
    left = jnp.mean(-jnp.log1p(-(jnp.sin(angle) ** 2)) / 2, axis=0)
    return left, jnp.mean(-jnp.log1p(-product)) + jnp.log(norm2[-1] / norm2[0]) / (2 * steps)


def _decoupled(
    angle: Array, rate: Array, kept: Array, update2: Array, persistence: Array, memory: Array
) -> Equilibrium:
    """For w' = kept w - update, updates of one mean square whose correlations persist."""
    norm2 = update2 * (1 + 2 * kept * persistence) / ((1 - kept) * (1 + kept))
    contraction = jnp.maximum(kept, memory) ** 2
    return Equilibrium(angle, norm2, rate / norm2, contraction, power=1)


def _positive_decay(decay: ArrayLike) -> Array:
    return in_range("decay", decay, "(0, inf)", "without decay the norm grows for ever")
