"""SGD and Adam on the sphere of each unit, along great circles.

Every unit w stays on the sphere of its own norm, to rounding, which in bfloat16 adds up (`set_norm`
after them holds it).  The rules see the unit vector v = w / |w|: the gradient there is |w| times
that at w, its tangent part D the Riemannian gradient, and the rate a rate on the unit sphere.
Momentum is a tangent vector; as v moves, it is carried along.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from bnrate import groups as gr
from bnrate.transforms.units import (
    Members,
    Scalar,
    at_step,
    check_range,
    incremented,
    norms_of,
    plus,
    root,
    scaled,
    turning,
    unitwise,
    zeros_like,
)


class SphereState(NamedTuple):
    """What a rule on the spheres remembers.

    Attributes:
      steps: taken so far.
      momentum: a tangent vector at each unit vector; None for a rule without.
      second: a running mean of the squared norms of the gradients; None for a rule without.
    """

    steps: Int[Array, ""]
    momentum: PyTree
    second: PyTree


class Move(NamedTuple):
    """What a rule decides: a tangent step, and what it will remember (see `SphereState`)."""

    step: Members
    momentum: PyTree = None
    second: PyTree = None


def riemannian_sgd(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule,
    momentum: Scalar | None = None,
    *,
    retraction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SGD on the unit sphere of each unit (Bonnabel, 2013), with heavy-ball momentum if given.

    Args:
      groups: whose units stay on their spheres; the rest passes unchanged.
      learning_rate: on the unit sphere.
      momentum: of D, carried along by parallel transport.
      retraction: step straight and rescale, and carry the momentum by projection, instead of going
        along the great circle: cheaper, and equal to first order.

    Raises:
      ValueError: the rate is negative, momentum outside [0, 1); (in init) a unit has norm zero.
    """
    check_range("riemannian_sgd", "learning_rate", learning_rate, "[0, inf)", schedule=True)
    if momentum is not None:
        check_range("riemannian_sgd", "momentum", momentum, "[0, 1)")

    def step(D: Members, state: SphereState, rate: Array) -> Move:
        if momentum is None:
            return Move(scaled(groups, D, -rate))
        velocity = plus(D, scaled(groups, state.momentum, momentum))
        return Move(scaled(groups, velocity, -rate), momentum=velocity)

    start = _start("riemannian_sgd", groups, momentum=momentum is not None)
    return _on_spheres("riemannian_sgd", groups, learning_rate, start, step, retraction)


def riemannian_adam(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    retraction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam on the unit sphere of each unit (Becigneul & Ganea, 2019), its second moment a scalar.

    A second moment per coordinate would turn the step out of the tangent space; one per unit, of
    |D|^2, keeps the direction.

    Args:
      groups: whose units stay on their spheres; the rest passes unchanged.
      learning_rate: on the unit sphere.
      b1: decay of the mean of D, which is carried along by parallel transport.
      b2: decay of the mean of |D|^2.
      eps: added to its root.
      retraction: as for `riemannian_sgd`.

    Raises:
      ValueError: a number is out of range; (in init) a unit has norm zero.
    """
    _check_adam("riemannian_adam", learning_rate, b1, b2, eps)

    def step(D: Members, state: SphereState, rate: Array) -> Move:
        first, second = _means(groups, D, state, b1, b2)
        c1, c2 = _bias_corrections(state.steps, b1, b2, like=rate)
        factor = -rate / (c1 * (root(second / c2) + eps))
        return Move(scaled(groups, first, factor), first, second)

    start = _start("riemannian_adam", groups, momentum=True, second=True)
    return _on_spheres("riemannian_adam", groups, learning_rate, start, step, retraction)


def grassmann_sgd(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule = 0.2,
    momentum: Scalar = 0.9,
    clip: Scalar = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """SGD-G (Cho & Lee, 2017): momentum SGD over lines through 0, each unit's D clipped.

    Their manifold identifies v and -v, which changes no step: great circles and parallel transport
    are the sphere's.  The rate is inside the momentum, d = momentum d - rate D.

    Args:
      groups: whose units stay on their spheres; the rest passes unchanged.
      learning_rate: on the unit sphere.
      momentum: of the steps, carried along by parallel transport.
      clip: the largest norm of each unit's D.

    Raises:
      ValueError: a number is out of range; (in init) a unit has norm zero.
    """
    check_range("grassmann_sgd", "learning_rate", learning_rate, "[0, inf)", schedule=True)
    check_range("grassmann_sgd", "momentum", momentum, "[0, 1)")
    check_range("grassmann_sgd", "clip", clip, "(0, inf]")

    def step(D: Members, state: SphereState, rate: Array) -> Move:
        d = plus(
            scaled(groups, state.momentum, momentum),
            scaled(groups, _clipped(groups, D, clip), -rate),
        )
        return Move(d, momentum=d)

    start = _start("grassmann_sgd", groups, momentum=True)
    return _on_spheres("grassmann_sgd", groups, learning_rate, start, step)


def grassmann_adam(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule = 0.05,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    clip: Scalar = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """Adam-G (Cho & Lee, 2017): Adam over lines through 0, each unit's D clipped.

    Like `riemannian_adam`, but for the clipping and for eps, which is added below the root.

    Args:
      groups: whose units stay on their spheres; the rest passes unchanged.
      learning_rate: on the unit sphere.
      b1: decay of the mean of D.
      b2: decay of the mean of |D|^2.
      eps: added to that mean.
      clip: the largest norm of each unit's D.

    Raises:
      ValueError: a number is out of range; (in init) a unit has norm zero.
    """
    _check_adam("grassmann_adam", learning_rate, b1, b2, eps)
    check_range("grassmann_adam", "clip", clip, "(0, inf]")

    def step(D: Members, state: SphereState, rate: Array) -> Move:
        first, second = _means(groups, _clipped(groups, D, clip), state, b1, b2)
        c1, c2 = _bias_corrections(state.steps, b1, b2, like=rate)
        factor = -rate * jnp.sqrt(c2) / c1 * jax.lax.rsqrt(second + eps)
        return Move(scaled(groups, first, factor), first, second)

    start = _start("grassmann_adam", groups, momentum=True, second=True)
    return _on_spheres("grassmann_adam", groups, learning_rate, start, step)


def _on_spheres(
    name: str,
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule,
    start: Callable[[Members], SphereState],
    rule: Callable[[Members, SphereState, Array], Move],
    retraction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation from a rule on unit vectors: (D, state, rate) -> where to move."""
    along = _by_retraction if retraction else _by_great_circle

    def update(
        grads: Members, state: SphereState, params: Members, **extra_args
    ) -> tuple[Members, SphereState]:
        del extra_args
        norms = jnp.sqrt(gr.norm2(groups, params))
        v = scaled(groups, params, 1 / norms)
        D = turning(groups, v, scaled(groups, grads, norms))
        if state.momentum is not None:  # rounding has taken it out of the tangent space
            state = state._replace(momentum=_tangent(groups, v, state.momentum))
        move = rule(D, state, at_step(learning_rate, state.steps, like=norms))
        moved, carried = along(groups, v, move.step, move.momentum)
        after = SphereState(incremented(state.steps), carried, move.second)
        return scaled(groups, moved, norms), after

    return unitwise(name, groups, start, update)


def _start(
    name: str, groups: gr.Groups, *, momentum: bool = False, second: bool = False
) -> Callable[[Members], SphereState]:
    """The first state, of a rule with the memory it needs."""

    def init(params: Members) -> SphereState:
        norms = norms_of(name, groups, params)
        return SphereState(
            jnp.zeros((), jnp.int32),
            zeros_like(params) if momentum else None,
            jnp.zeros_like(norms) if second else None,
        )

    return init


def _by_great_circle(
    groups: gr.Groups, v: Members, step: Members, carried: Members | None
) -> tuple[Members, Members | None]:
    """exp_v(step) - v, and a tangent vector carried there by parallel transport."""
    angle = root(gr.norm2(groups, step))
    sine, half = jnp.sin(angle), jnp.sin(angle / 2)
    sinc = jnp.where(angle > 0, sine / jnp.where(angle > 0, angle, 1), 1)
    less = -2 * half * half  # cos(angle) - 1, to the last digit of a small angle
    moved = plus(scaled(groups, v, less), scaled(groups, step, sinc))
    if carried is None:
        return moved, None
    # What is orthogonal to the step stays; its part along the step turns as the step does.
    along = gr.inner(groups, carried, step) / jnp.where(angle > 0, angle**2, 1)
    turned = plus(scaled(groups, step, along * less), scaled(groups, v, -along * angle * sine))
    return moved, plus(carried, turned)


def _by_retraction(
    groups: gr.Groups, v: Members, step: Members, carried: Members | None
) -> tuple[Members, Members | None]:
    """(v + step) / |v + step| - v, and a tangent vector projected there."""
    growth = gr.norm2(groups, step)
    longer = jnp.sqrt(1 + growth)
    less = -growth / (longer * (1 + longer))  # 1 / longer - 1, to the last digit of a short step
    moved = plus(scaled(groups, v, less), scaled(groups, step, 1 / longer))
    if carried is None:
        return moved, None
    return moved, _tangent(groups, plus(v, moved), carried)


def _tangent(groups: gr.Groups, v: Members, vectors: Members) -> Members:
    """The part of the vectors that is orthogonal to the unit vectors v."""
    return plus(vectors, scaled(groups, v, -gr.inner(groups, v, vectors)))


def _means(
    groups: gr.Groups, D: Members, state: SphereState, b1: Scalar, b2: Scalar
) -> tuple[Members, Array]:
    """The running means of D and of |D|^2."""
    first = plus(scaled(groups, state.momentum, b1), scaled(groups, D, 1 - b1))
    return first, b2 * state.second + (1 - b2) * gr.norm2(groups, D)


def _bias_corrections(count: Array, b1: Scalar, b2: Scalar, like: Array) -> tuple[Array, Array]:
    """1 - b^t, for both means."""
    t = (count + 1).astype(like.dtype)
    return 1 - b1**t, 1 - b2**t


def _clipped(groups: gr.Groups, D: Members, clip: Scalar) -> Members:
    """D, shortened to the norm `clip` where it is longer."""
    square = gr.norm2(groups, D)
    longer = square > clip * clip
    return scaled(
        groups, D, jnp.where(longer, clip * jax.lax.rsqrt(jnp.where(longer, square, 1)), 1)
    )


def _check_adam(rule: str, learning_rate: object, b1: Scalar, b2: Scalar, eps: Scalar) -> None:
    check_range(rule, "learning_rate", learning_rate, "[0, inf)", schedule=True)
    check_range(rule, "b1", b1, "[0, 1)")
    check_range(rule, "b2", b2, "[0, 1)")
    check_range(rule, "eps", eps, "(0, inf)")
