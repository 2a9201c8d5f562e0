"""Transformations that decide about the norm of each unit; put them last in a chain.

They take a step that some other rule made and return another step, to be added to the parameters;
but `bounded_norm` has that rule inside, because it shows it other weights.
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
    at_step,
    check_range,
    incremented,
    minus,
    norms_of,
    per_unit,
    plus,
    scaled,
    stateless,
    turning,
    unitwise,
)


def keep_norm(groups: gr.Groups) -> optax.GradientTransformationExtraArgs:
    """Rescale each unit to the norm that it had before the step; put it last in a chain.

    For example `optax.chain(by_group(groups, ...), keep_norm(groups))`.

    After SGD this is the projected SGD of Arora, Li & Lyu (2019), setting 2: it removes exactly
    the growth of the norm by which the effective rate tunes itself.  The rest passes unchanged.  A
    unit of norm zero stays zero, and one whose step ends at zero ends there, having no direction;
    NaN passes through, and a step whose norm overflows becomes NaN.  The norm is kept to rounding,
    which in bfloat16 adds up; `set_norm` holds it there too.

    Raises:
      ValueError: (in the update) the parameters are not given, or a group does not fit them.
    """
    return stateless("keep_norm", groups, lambda updates, params: _kept(groups, updates, params)[0])


class SetNormState(NamedTuple):
    """The norm at the start, of each unit; None where the user said which."""

    radius: PyTree


def set_norm(
    groups: gr.Groups, radius: Float[Array, "..."] | float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Rescale each unit to a fixed norm after the step; put it last in a chain.

    Nothing adds up: each step ends on the sphere to rounding, in bfloat16 too.  After
    `trust_ratio` this is known as hyperball optimisation: every step is of the same length, on a
    sphere of the same radius.  A step that ends at zero, having no direction, becomes NaN.

    Args:
      groups: whose units are rescaled; the rest passes unchanged.
      radius: a positive number, or one per unit in the order of `groups.units`; by default the
        norms at initialisation.

    Raises:
      ValueError: the radius is not positive; (in init) it is not given and a unit has norm zero;
        (in the update) the parameters are not given, or a group does not fit them.
    """
    if radius is not None:
        check_range("set_norm", "the radius", radius, "(0, inf)")

    def init(params: Members) -> SetNormState:
        if radius is not None:
            return SetNormState(None)
        return SetNormState(norms_of("set_norm", groups, params))

    def update(
        updates: Members, state: SetNormState, params: Members, **extra_args
    ) -> tuple[Members, SetNormState]:
        del extra_args
        given = state.radius if radius is None else radius
        wanted, stepped = per_unit("the radius", groups, params, given), plus(params, updates)
        on_sphere = scaled(groups, stepped, wanted * jax.lax.rsqrt(gr.norm2(groups, stepped)))
        return minus(on_sphere, params), state

    return unitwise("set_norm", groups, init, update)


def tangent(groups: gr.Groups) -> optax.GradientTransformationExtraArgs:
    """Remove the radial part of each unit's step: what is left is orthogonal to it.

    The gradient of an invariant unit is orthogonal to it already; momentum, preconditioners and
    decay make the step lean, and the radial part changes nothing but the norm.  AdamP and SGDP
    (Heo et al., 2021) guess from one gradient where to do this; here the groups say.  The norm
    still grows, by what Pythagoras adds.  A unit of norm zero, with no direction, moves freely.

    Raises:
      ValueError: (in the update) the parameters are not given, or a group does not fit them.
    """
    return stateless("tangent", groups, lambda updates, params: gr.tangent(groups, params, updates))


class RotationalState(NamedTuple):
    """Steps taken, the norms at the start, and a running mean of the steps' squared norms."""

    steps: Int[Array, ""]
    radius: Float[Array, " units"]
    mean_square: Float[Array, " units"]


def rotational(
    groups: gr.Groups, rotation: optax.ScalarOrSchedule, decay: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Keep each unit's norm and turn it by `rotation` radians a step, on average.

    The rotational optimisers of Kosson et al. (2023): weight decay leads every invariant unit to an
    equilibrium in which it turns by an angle that the rate, the decay and the rule fix
    (`theory.equilibrium`); here it turns by that angle from the first step on, and there is no
    decay.  Put it after a rule of any rate, for example
    `optax.chain(optax.adam(1.0), rotational(groups, equilibrium.angle))`; of the rule's step the
    tangent part counts, relative to its root mean square over the last steps.

    Args:
      groups: whose units are turned; the rest passes unchanged.
      rotation: the length of an average step relative to |w|, to first order its angle in radians.
      decay: of the mean square, per step; 0 turns by the arc tangent of `rotation` each time.

    Raises:
      ValueError: rotation is negative, or decay outside [0, 1); (in init) a unit has norm zero; (in
        the update) the parameters are not given, or a group does not fit them.
    """
    check_range("rotational", "rotation", rotation, "[0, inf)", schedule=True)
    check_range("rotational", "decay", decay, "[0, 1)")

    def init(params: Members) -> RotationalState:
        norms = norms_of("rotational", groups, params)
        return RotationalState(jnp.zeros((), jnp.int32), norms, jnp.zeros_like(norms))

    def update(
        updates: Members, state: RotationalState, params: Members, **extra_args
    ) -> tuple[Members, RotationalState]:
        del extra_args
        count, turn = incremented(state.steps), turning(groups, params, updates)
        mean_square = decay * state.mean_square + (1 - decay) * gr.norm2(groups, turn)
        typical2 = mean_square / (1 - decay ** count.astype(mean_square.dtype))
        length = at_step(rotation, state.steps, state.radius) * state.radius
        factor = jnp.where(typical2 > 0, length * jax.lax.rsqrt(typical2), 0)
        stepped = plus(params, scaled(groups, turn, factor))
        back = state.radius * jax.lax.rsqrt(gr.norm2(groups, stepped))
        moved = minus(scaled(groups, stepped, back), params)
        return moved, RotationalState(count, state.radius, mean_square)

    return unitwise("rotational", groups, init, update)


class BoundedNormState(NamedTuple):
    """The length of each unit's hidden vector, and what the rule for it remembers."""

    hidden_norm: Float[Array, " units"]
    rule: optax.OptState


def bounded_norm(
    groups: gr.Groups, rule: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Keep each unit's norm, and train by `rule` a hidden vector of free length along it.

    Bounded weight normalisation (Hoffer et al., 2018): the weight is w = rho v / |v|, with rho the
    norm that it starts with, and v is what the rule trains, with or without weight decay.  Only
    |v| is stored.  Of a scale-invariant unit any rule goes through the same directions as it
    would without; the length of w, which the loss does not see, is held.

    Args:
      groups: whose units are trained; the rest passes unchanged.
      rule: for v, from gradient to step, such as `optax.sgd(0.1, momentum=0.9)`.

    Raises:
      ValueError: (in init) a unit has norm zero; (in the update) the parameters are not given, or a
        group does not fit them.
    """
    rule = optax.with_extra_args_support(rule)

    def init(params: Members) -> BoundedNormState:
        return BoundedNormState(norms_of("bounded_norm", groups, params), rule.init(params))

    def update(
        grads: Members, state: BoundedNormState, params: Members, **extra_args
    ) -> tuple[Members, BoundedNormState]:
        longer = state.hidden_norm / jnp.sqrt(gr.norm2(groups, params))
        hidden = scaled(groups, params, longer)
        of_hidden = scaled(groups, gr.tangent(groups, params, grads), 1 / longer)
        step, after = rule.update(of_hidden, state.rule, hidden, **extra_args)
        kept, growth = _kept(groups, scaled(groups, gr.members(groups, step), 1 / longer), params)
        return kept, BoundedNormState(state.hidden_norm * jnp.sqrt(1 + growth), after)

    return unitwise("bounded_norm", groups, init, update)


def _kept(groups: gr.Groups, updates: Members, params: Members) -> tuple[Members, Array]:
    """The step with each unit's norm kept, and by which part the squared norm would have grown."""
    G = gr.norm2(groups, params)
    growth = 2 * gr.inner(groups, params, updates) + gr.norm2(groups, updates)
    growth = jnp.where(G > 0, growth / jnp.where(G > 0, G, 1), 0)

    def short() -> Members:
        # The factor from the growth alone, or rounding would make the norm drift.
        longer = jnp.sqrt(1 + growth)
        factor, excess = jnp.where(G > 0, 1 / longer, 0), -growth / (longer * (1 + longer))
        return plus(gr.rescale(groups, updates, factor), gr.rescale(groups, params, excess))

    def long() -> Members:
        # The growth knows nothing of a step that nearly ends at zero.
        stepped = plus(params, updates)
        after = gr.norm2(groups, stepped)
        factor = jnp.where(after > 0, jnp.sqrt(G / jnp.where(after > 0, after, 1)), 0)
        # A step too long for its norm to be computed is lost, visibly.
        factor = jnp.where(jnp.isfinite(after), factor, jnp.nan)
        return minus(gr.rescale(groups, stepped, factor), params)

    return jax.lax.cond(jnp.all(jnp.abs(growth) < 0.5), short, long), growth
