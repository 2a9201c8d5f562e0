"""SGDP and AdamP as published: whether a unit is scale-invariant is guessed from one gradient.

For comparison with `optax.chain(rule, tangent(groups))`, which knows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from bnrate import groups as gr
from bnrate.transforms.units import (
    Members,
    Scalar,
    at_step,
    check_range,
    incremented,
    plus,
    scaled,
    unitwise,
    zeros_like,
)


class CosineState(NamedTuple):
    """Steps taken, and what the rule inside remembers."""

    steps: Int[Array, ""]
    inner: PyTree


def sgdp(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule,
    momentum: Scalar = 0.0,
    *,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    eps: Scalar = 1e-8,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """SGDP (Heo et al., 2021): momentum SGD, and where a cosine is small no radial part.

    The momentum itself keeps its radial part (the authors' package, when it does not look ahead,
    writes what is left of it back into the momentum).

    Args:
      groups: which units may lose the radial part of their step, see `groups.matrices`; all leaves
        in groups are trained, the rest passes unchanged.
      learning_rate: of the step.
      momentum: of the gradients.
      dampening: 1 minus the weight of the present gradient.
      nesterov: look ahead.
      weight_decay: divided by 1 - momentum, as published.
      eps: added to norms.
      delta: how small the cosine of gradient and unit must be, times the root of its entries.
      wd_ratio: by which weight decay is multiplied where the radial part is removed.

    Raises:
      ValueError: a number is out of range.
    """
    check_range("sgdp", "momentum", momentum, "[0, 1)")
    check_range("sgdp", "dampening", dampening, "[0, 1]")

    def direction(grads: Members, velocity: Members, t: Array) -> tuple[Members, Members]:
        del t
        new = {path: momentum * velocity[path] + (1 - dampening) * g for path, g in grads.items()}
        if not nesterov:
            return new, new
        return {path: g + momentum * new[path] for path, g in grads.items()}, new

    decay = weight_decay / (1 - momentum)
    guess = _Guess("sgdp", eps, delta, wd_ratio)
    return _guessing(groups, learning_rate, decay, guess, zeros_like, direction)


def adamp(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """AdamP (Heo et al., 2021): Adam, and where a cosine is small no radial part.

    Args:
      groups: as for `sgdp`.
      learning_rate: of the step.
      b1: decay of the mean of the gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of it, and to norms.
      nesterov: look ahead.
      weight_decay: decoupled, as in AdamW.
      delta: as for `sgdp`.
      wd_ratio: as for `sgdp`.

    Raises:
      ValueError: a number is out of range.
    """
    check_range("adamp", "b1", b1, "[0, 1)")
    check_range("adamp", "b2", b2, "[0, 1)")

    def start(params: Members) -> tuple[Members, Members]:
        return zeros_like(params), zeros_like(params)

    def direction(
        grads: Members, means: tuple[Members, Members], t: Array
    ) -> tuple[Members, tuple[Members, Members]]:
        first, second, steps = {}, {}, {}
        for path, g in grads.items():
            c1, c2 = (1 - b ** t.astype(g.dtype) for b in (b1, b2))
            first[path] = b1 * means[0][path] + (1 - b1) * g
            second[path] = b2 * means[1][path] + (1 - b2) * g * g
            ahead = b1 * first[path] + (1 - b1) * g if nesterov else first[path]
            steps[path] = ahead / (c1 * (jnp.sqrt(second[path] / c2) + eps))
        return steps, (first, second)

    guess = _Guess("adamp", eps, delta, wd_ratio)
    return _guessing(groups, learning_rate, weight_decay, guess, start, direction)


class _Guess(NamedTuple):
    """The rule that guesses: its name, and the published constants."""

    name: str
    eps: Scalar
    delta: Scalar
    wd_ratio: Scalar


def _guessing(
    groups: gr.Groups,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Scalar,
    guess: _Guess,
    start: Callable[[Members], PyTree],
    direction: Callable[[Members, PyTree, Array], tuple[Members, PyTree]],
) -> optax.GradientTransformationExtraArgs:
    """A rule whose direction loses its radial part where the guess is that it is for nothing."""
    check_range(guess.name, "learning_rate", learning_rate, "[0, inf)", schedule=True)
    check_range(guess.name, "weight_decay", weight_decay, "[0, inf)")
    check_range(guess.name, "eps", guess.eps, "(0, inf)")
    check_range(guess.name, "delta", guess.delta, "[0, inf)")
    check_range(guess.name, "wd_ratio", guess.wd_ratio, "[0, 1]")

    def init(params: Members) -> CosineState:
        return CosineState(jnp.zeros((), jnp.int32), start(params))

    def update(
        grads: Members, state: CosineState, params: Members, **extra_args
    ) -> tuple[Members, CosineState]:
        del extra_args
        steps, updates = incremented(state.steps), dict(grads)
        wanted, inner = direction(grads, state.inner, steps)
        for group in groups:
            one = gr.Groups([group])
            g, w, d = (gr.members(one, tree) for tree in (grads, params, wanted))
            d, ratio = _without_radial(one, g, w, d, guess)
            rate = at_step(learning_rate, state.steps, ratio)
            decayed = scaled(one, w, -rate * weight_decay * ratio)
            others = {path: updates[path] for path in d}
            updates |= gr.combine(one, plus(scaled(one, d, -rate), decayed), others)
        return updates, CosineState(steps, inner)

    return unitwise(guess.name, groups, init, update)


def _without_radial(
    group: gr.Groups, grads: Members, params: Members, wanted: Members, guess: _Guess
) -> tuple[Members, Array]:
    """One group's direction, and the ratio of its weight decay: first by unit, then as a whole.

    Either all units of the group are taken for invariant, or the whole of it, or nothing is.
    """
    whole = group.whole()
    by_unit, by_whole = (
        _radial_removed(view, params, wanted, guess.eps) for view in (group, whole)
    )
    fires, fires_whole = (
        _all_nearly_orthogonal(view, grads, params, guess) for view in (group, whole)
    )
    new = {
        path: jnp.where(fires, by_unit[path], jnp.where(fires_whole, by_whole[path], d))
        for path, d in wanted.items()
    }
    one = jnp.ones((), gr.norm2(group, params).dtype)
    return new, jnp.where(fires | fires_whole, guess.wd_ratio * one, one)


def _radial_removed(view: gr.Groups, params: Members, wanted: Members, eps: Scalar) -> Members:
    """The part of the direction across u = w / (|w| + eps)."""
    u = scaled(view, params, 1 / (jnp.sqrt(gr.norm2(view, params)) + eps))
    return plus(wanted, scaled(view, u, -gr.inner(view, u, wanted)))


def _all_nearly_orthogonal(
    view: gr.Groups, grads: Members, params: Members, guess: _Guess
) -> Array:
    """Whether |cos(gradient, unit)| < delta / sqrt(entries) in every unit."""
    lengths = [jnp.maximum(jnp.sqrt(gr.norm2(view, tree)), guess.eps) for tree in (grads, params)]
    cosines = jnp.abs(gr.inner(view, grads, params)) / (lengths[0] * lengths[1])
    limits = guess.delta / np.sqrt(gr.dims(view, params))
    return jnp.all(cosines < limits.astype(cosines.dtype))
