"""Rates over time: those of the theorems, and those that do what weight decay does."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from bnrate import groups as gr
from bnrate.theory import equivalence
from bnrate.transforms.units import (
    Members,
    Scalar,
    at_step,
    check_range,
    incremented,
    minus,
    plus,
    scaled,
    unitwise,
    zeros_like,
)


def inverse_power(rate: Scalar, power: Scalar = 0.5) -> optax.Schedule:
    """The schedule rate (t + 1)^-power of the theorems for SGD (Arora, Li & Lyu, 2019).

    Scale-invariant parameters may take any power from 0 to 1/2; the rest takes 1/2.

        >>> schedule = inverse_power(0.3)
        >>> [round(float(schedule(t)), 3) for t in (0, 3, 99)]
        [0.3, 0.15, 0.03]

    Raises:
      ValueError: the rate is negative, or the power outside [0, 1/2].
    """
    check_range("inverse_power", "rate", rate, "[0, inf)")
    check_range("inverse_power", "power", power, "[0, 0.5]")

    def schedule(count: ArrayLike) -> Array:
        return rate * (jnp.asarray(count) + 1.0) ** -power

    return schedule


class EquivalentState(NamedTuple):
    """Steps taken, the momentum, and what the exchange remembers."""

    steps: Int[Array, ""]
    momentum: Members
    balance: equivalence.Balance


def exponential_equivalent(
    groups: gr.Groups,
    rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    momentum: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD without weight decay that trains invariant units as SGD with it does, exactly.

    `optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum))` goes through
    the same directions.  Here nothing decays: the rate grows, exponentially where rate and decay
    are constant (Li & Arora, 2020; `theory.equivalence.exponential_rate` has the formula).  Nothing
    overflows, because weights and momentum are rescaled by powers of 2 as needed, which rounds
    nothing and which the loss does not see.

    Args:
      groups: whose units are trained; the rest passes unchanged, as it would not train the same.
      rate: of the rule with decay.
      weight_decay: of that rule.
      momentum: of that rule, heavy-ball.

    Raises:
      ValueError: rate * weight_decay is 1 or more, or above (1 - sqrt(momentum))^2, or a number is
        negative; what only a compiled program knows becomes NaN.
    """
    check_range("exponential_equivalent", "rate", rate, "(0, inf)", schedule=True)
    check_range("exponential_equivalent", "weight_decay", weight_decay, "[0, inf)", schedule=True)
    check_range("exponential_equivalent", "momentum", momentum, "[0, 1)")
    if not (callable(rate) or callable(weight_decay)):
        equivalence.exponential_rate(rate, weight_decay, momentum)

    def init(params: Members) -> EquivalentState:
        like = gr.norm2(groups, params)
        none = jnp.zeros((), like.dtype)
        return EquivalentState(
            jnp.zeros((), jnp.int32), zeros_like(params), equivalence.balanced(none)
        )

    def update(
        grads: Members, state: EquivalentState, params: Members, **extra_args
    ) -> tuple[Members, EquivalentState]:
        del extra_args
        eta, decay, mu = (
            at_step(value, state.steps, state.balance.scale)
            for value in (rate, weight_decay, jnp.asarray(momentum))
        )
        balance, step = equivalence.advance(state.balance, eta, decay, mu)
        velocity = plus(scaled(groups, state.momentum, mu), grads)
        moved = plus(params, scaled(groups, velocity, -step.rate))
        rescaled = minus(scaled(groups, moved, step.factor), params)
        velocity = scaled(groups, velocity, 1 / step.factor)
        return rescaled, EquivalentState(incremented(state.steps), velocity, balance)

    return unitwise("exponential_equivalent", groups, init, update)
