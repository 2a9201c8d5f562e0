"""One adaptive number per unit: transformations that scale gradients, and leave the rate to you.

Each turns a gradient into a scaled gradient, so that `optax.sgd` or `scale_by_learning_rate`
follows it, with any schedule or momentum; the rest passes unchanged and takes the same rate.

    >>> import jax.numpy as jnp, optax
    >>> from bnrate.groups import Group, Groups, Member
    >>> groups = Groups([Group([Member("kernel")])])
    >>> tx = optax.chain(adagrad_norm(groups, initial=0.0), optax.sgd(0.5))
    >>> params = {"kernel": jnp.array([2., 4.]), "bias": jnp.array([1.])}
    >>> grads = {"kernel": jnp.array([3., 4.]), "bias": jnp.array([1.])}
    >>> tx.update(grads, tx.init(params), params)[0]
    {'bias': Array([-0.5], dtype=float32), 'kernel': Array([-0.3, -0.4], dtype=float32)}
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from bnrate import groups as gr
from bnrate.transforms.units import (
    Members,
    Scalar,
    check_range,
    incremented,
    per_unit,
    plus,
    scaled,
    stateless,
    unitwise,
    zeros_like,
)


class Accumulator(NamedTuple):
    """What the gradients so far add up to: a number per unit, or arrays like the parameters."""

    total: PyTree


def effective_rate(groups: gr.Groups) -> optax.GradientTransformationExtraArgs:
    """Multiply each unit's gradient by its squared norm: the rate that follows is eta / |w|^2.

    It fixes what SGD on an invariant unit tunes by its norm: whatever the norm, the unit moves as
    projected SGD does on the unit sphere.
    """
    return stateless(
        "effective_rate",
        groups,
        lambda updates, params: gr.rescale(groups, updates, gr.norm2(groups, params)),
    )


def normalized_gradient(groups: gr.Groups) -> optax.GradientTransformationExtraArgs:
    """Divide each unit's gradient by its norm; a gradient of zero stays zero."""
    return stateless(
        "normalized_gradient", groups, lambda updates, params: gr.unit_vectors(groups, updates)
    )


def trust_ratio(
    groups: gr.Groups, coefficient: Scalar = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Multiply each unit's step by coefficient |w| / |step|: layer-wise rates, unit by unit.

    LARS (You et al., 2017) after a gradient, LAMB (You et al., 2020) after Adam.  As in optax's
    `scale_by_trust_ratio`, which knows only whole leaves, nothing is scaled where either norm is 0.

    Raises:
      ValueError: the coefficient is not positive.
    """
    check_range("trust_ratio", "the coefficient", coefficient, "(0, inf)")

    def update(updates: Members, params: Members) -> Members:
        G, step2 = gr.norm2(groups, params), gr.norm2(groups, updates)
        defined = (G > 0) & (step2 > 0)
        ratio = jnp.sqrt(G) * jax.lax.rsqrt(jnp.where(defined, step2, 1))
        return scaled(groups, updates, jnp.where(defined, coefficient * ratio, 1))

    return stateless("trust_ratio", groups, update)


def wngrad(
    groups: gr.Groups, initial: Float[Array, "..."] | float = 1.0, *, delayed: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Divide each unit's gradient by b, which grows by |gradient|^2 / b (Wu, Ward & Bottou, 2018).

    `delayed` leaves the present gradient out, as plain SGD does on a scale-invariant unit: there
    b = |w|^2 / eta is this accumulator, of the gradient at w / |w| (Arora, Li & Lyu, 2019).

    Args:
      groups: whose gradients are scaled.
      initial: of b, one number or one per unit.
      delayed: divide by the b of the gradients before this one.

    Raises:
      ValueError: initial is not positive.
    """
    check_range("wngrad", "initial", initial, "(0, inf)")

    def init(params: Members) -> Accumulator:
        return Accumulator(per_unit("initial", groups, params, initial))

    def update(
        updates: Members, state: Accumulator, params: Members, **extra_args
    ) -> tuple[Members, Accumulator]:
        del params, extra_args
        b = state.total + gr.norm2(groups, updates) / state.total
        return scaled(groups, updates, 1 / (state.total if delayed else b)), Accumulator(b)

    return unitwise("wngrad", groups, init, update)


def adagrad_norm(
    groups: gr.Groups, initial: Float[Array, "..."] | float = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Divide each unit's gradient by b, with b^2 = initial^2 + all |gradient|^2, this one too.

    AdaGrad-Norm (Ward, Wu & Bottou, 2019).  A gradient of zero stays zero, with b = 0 too.

    Raises:
      ValueError: initial is negative.
    """
    check_range("adagrad_norm", "initial", initial, "[0, inf)")

    def init(params: Members) -> Accumulator:
        start = per_unit("initial", groups, params, initial)
        return Accumulator(start * start)

    def update(
        updates: Members, state: Accumulator, params: Members, **extra_args
    ) -> tuple[Members, Accumulator]:
        del params, extra_args
        total = state.total + gr.norm2(groups, updates)
        inverse = jax.lax.rsqrt(jnp.where(total > 0, total, 1))
        return scaled(groups, updates, inverse), Accumulator(total)

    return unitwise("adagrad_norm", groups, init, update)


def delayed_adagrad(
    groups: gr.Groups, initial: Scalar = 1.0, power: Scalar = 0.5, *, coordinate: bool = False
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad whose step knows only the gradients before this one (Li & Orabona, 2019).

    The gradient is divided by (initial + sum |gradient|^2)^power over the steps so far, so that the
    step size and the present gradient's noise are independent.

    Args:
      groups: whose gradients are scaled.
      initial: the paper's beta, above 0: all that the first step is divided by.
      power: the paper's 1/2 + epsilon, from 1/2 (inclusive) to 1.
      coordinate: a sum for each coordinate, instead of one for each unit.

    Raises:
      ValueError: initial or power is out of range.
    """
    check_range("delayed_adagrad", "initial", initial, "(0, inf)")
    check_range("delayed_adagrad", "power", power, "[0.5, 1)")

    def init(params: Members) -> Accumulator:
        if coordinate:
            return Accumulator({p: jnp.full_like(leaf, initial) for p, leaf in params.items()})
        return Accumulator(per_unit("initial", groups, params, initial))

    def update(
        updates: Members, state: Accumulator, params: Members, **extra_args
    ) -> tuple[Members, Accumulator]:
        del params, extra_args
        if coordinate:
            new = {path: g * state.total[path] ** -power for path, g in updates.items()}
            squares = {path: g * g for path, g in updates.items()}
            return new, Accumulator(plus(state.total, squares))
        total = state.total + gr.norm2(groups, updates)
        return scaled(groups, updates, state.total**-power), Accumulator(total)

    return unitwise("delayed_adagrad", groups, init, update)


class WeightedState(NamedTuple):
    """Steps taken, all weights over the last, the weighted mean of squares, the momentum."""

    steps: Int[Array, ""]
    weights: Float[Array, ""]
    mean_square: Members
    velocity: Members


def weighted_adagrad_momentum(
    groups: gr.Groups,
    momentum: Scalar = 0.9,
    *,
    power: Scalar = 0.0,
    nesterov: bool = False,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad per coordinate with weights t^power on the squares, and momentum after it.

    AdaUSM (Zou & Shen, 2018).  With V the weighted mean of all squared gradients so far and t their
    number, the gradient is divided by sqrt(t V) + eps; power 0 is AdaGrad, and the larger the power
    the sooner the past is forgotten.  Then heavy-ball momentum (AdaHB), or Nesterov's (AdaNAG).

    Raises:
      ValueError: momentum is outside [0, 1), power is negative, or eps not positive.
    """
    check_range("weighted_adagrad_momentum", "momentum", momentum, "[0, 1)")
    check_range("weighted_adagrad_momentum", "power", power, "[0, inf)")
    check_range("weighted_adagrad_momentum", "eps", eps, "(0, inf)")

    def init(params: Members) -> WeightedState:
        zeros = zeros_like(params)
        return WeightedState(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, zeros)

    def update(
        updates: Members, state: WeightedState, params: Members, **extra_args
    ) -> tuple[Members, WeightedState]:
        del params, extra_args
        t = incremented(state.steps)
        now = t.astype(state.weights.dtype)
        weights = 1 + ((now - 1) / now) ** power * state.weights  # relative, or they overflow
        means, scaled_down, velocity = {}, {}, {}
        for path, g in updates.items():
            old = state.mean_square[path]
            means[path] = old + (g * g - old) / weights.astype(g.dtype)
            scaled_down[path] = g / (jnp.sqrt(t.astype(g.dtype) * means[path]) + eps)
            velocity[path] = momentum * state.velocity[path] + scaled_down[path]
        new = velocity
        if nesterov:
            new = {path: u + momentum * velocity[path] for path, u in scaled_down.items()}
        return new, WeightedState(t, weights, means, velocity)

    return unitwise("weighted_adagrad_momentum", groups, init, update)


def gdnp(
    groups: gr.Groups, smoothness: Float[Array, "..."] | float
) -> optax.GradientTransformationExtraArgs:
    """Scale each unit's gradient by variance / (2 smoothness |value|): GDNP (Kohler et al., 2018).

    For a loss rho(w) = -(b'w)^2 / (w'S w), what least squares behind a normalisation comes to when
    its scale is at the best value: with the largest eigenvalue of S for `smoothness` and a rate of
    1 after it, rho - min rho shrinks at each step by the factor (1 - min eig S / max eig S)^2 or
    better.  The loss has to give two numbers with its gradient, as extra arguments of `update`:
    `value`, rho itself, and `variance`, the w'S w of each unit.

    Args:
      groups: whose gradients are scaled.
      smoothness: the largest eigenvalue of the covariance S of the inputs.

    Raises:
      ValueError: smoothness is not positive; (in the update) value or variance is missing.
    """
    check_range("gdnp", "smoothness", smoothness, "(0, inf)")

    def update(
        updates: Members,
        state: optax.EmptyState,
        params: Members,
        *,
        value: Array | None = None,
        variance: Array | None = None,
        **extra_args,
    ) -> tuple[Members, optax.EmptyState]:
        del params, extra_args
        if value is None or variance is None:
            raise ValueError(
                "gdnp needs the loss and the variances of the units: call "
                "update(grads, state, params, value=rho, variance=w'Sw)"
            )
        size = jnp.abs(per_unit("value", groups, updates, value))
        of_units = per_unit("variance", groups, updates, variance)
        curvature = per_unit("smoothness", groups, updates, smoothness)
        # Where rho is 0, at its largest, so is its gradient.
        factor = of_units / (2 * curvature * jnp.where(size > 0, size, 1))
        return scaled(groups, updates, jnp.where(size > 0, factor, 0)), state

    return unitwise("gdnp", groups, lambda params: optax.EmptyState(), update)
