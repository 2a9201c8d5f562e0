"""How a rule that speaks of units alone becomes an optax transformation of any tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from bnrate import groups as gr
from bnrate.ranges import in_range

Scalar = Float[Array, ""] | float  # a number, perhaps known only to a compiled program
# The leaves of all groups by path, in float32 or wider; zero where entries are in no group.
Members = dict[str, Array]


def unitwise(
    name: str,
    groups: gr.Groups,
    init: Callable[[Members], optax.OptState],
    update: Callable[..., tuple[Members, optax.OptState]],
) -> optax.GradientTransformationExtraArgs:
    """A transformation of the groups' entries; all others pass unchanged.

    Of a leaf of which only parts are in groups, `init` and `update` see zeros for the other
    entries, and what they make of these is dropped.  What is computed and remembered is in float32
    or wider; the updates keep their dtypes.

    Args:
      name: of the rule, for its errors.
      groups: whose leaves are changed.
      init: from the parameters to a state.
      update: (updates, state, params, **extra_args) -> updates, state.

    Raises:
      ValueError: (in the update) the parameters are not given; (in both) a group does not fit.
    """

    def init_all(params: optax.Params) -> optax.OptState:
        return init(_widened(gr.members(groups, params)))

    def update_all(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")
        given, weights = gr.members(groups, updates), gr.members(groups, params)
        for path, leaf in given.items():
            if leaf.shape != weights[path].shape:
                raise ValueError(
                    f"{name} was given updates of shape {leaf.shape} for leaf '{path}', whose "
                    f"parameters have shape {weights[path].shape}"
                )
        new, after = update(_widened(given), state, _widened(weights), **extra_args)
        # Hyperparameters may be wider than what they meet; a loop can carry only what stays alike.
        after = jax.tree.map(
            lambda leaf, before: leaf if leaf.dtype == before.dtype else leaf.astype(before.dtype),
            after,
            state,
        )
        narrowed = {path: leaf.astype(given[path].dtype) for path, leaf in new.items()}
        return gr.combine(groups, narrowed, updates), after

    return optax.GradientTransformationExtraArgs(init_all, update_all)


def stateless(
    name: str, groups: gr.Groups, update: Callable[[Members, Members], Members]
) -> optax.GradientTransformationExtraArgs:
    """A transformation that remembers nothing: (updates, params) -> updates."""
    return unitwise(
        name,
        groups,
        lambda params: optax.EmptyState(),
        lambda updates, state, params, **extra_args: (update(updates, params), state),
    )


def scaled(groups: gr.Groups, tree: Members, factors: Float[Array, "..."] | float) -> Members:
    """Each unit times its factor; one factor serves all."""
    factors = jnp.asarray(factors)
    if not factors.ndim:
        factors = jnp.broadcast_to(factors, gr.dims(groups, tree).shape)
    return gr.rescale(groups, tree, factors)


def per_unit(name: str, groups: gr.Groups, params: Members, value: Any) -> Float[Array, " units"]:
    """One number for each unit, in the dtype of their norms."""
    like, value = gr.norm2(groups, params), jnp.asarray(value)
    if value.shape not in ((), like.shape):
        raise ValueError(
            f"{name} must be one number or {like.size}, one for each unit, got shape {value.shape}"
        )
    return jnp.broadcast_to(value.astype(like.dtype), like.shape)


def root(square: Array) -> Array:
    """The square root, with the derivative 0 at 0 instead of infinity."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0 * square)


def turning(groups: gr.Groups, params: Members, vectors: Members) -> Members:
    """The part of the vectors across the units, without what is only rounding of the part along."""
    across = gr.tangent(groups, params, vectors)
    square, whole = gr.norm2(groups, across), gr.norm2(groups, vectors)
    rounding = 16 * jnp.finfo(square.dtype).eps
    return scaled(groups, across, jnp.where(square > rounding**2 * whole, 1.0, 0.0))


def plus(a: Members, b: Members) -> Members:
    """The sum, leaf by leaf."""
    return {path: leaf + b[path] for path, leaf in a.items()}


def minus(a: Members, b: Members) -> Members:
    """The difference, leaf by leaf."""
    return {path: leaf - b[path] for path, leaf in a.items()}


def zeros_like(tree: Members) -> Members:
    """Zeros of the same shapes and dtypes."""
    return {path: jnp.zeros_like(leaf) for path, leaf in tree.items()}


def incremented(count: Array) -> Array:
    """One step more, up to the largest count there is."""
    return jnp.asarray(optax.safe_increment(count))


def at_step(value: optax.ScalarOrSchedule, count: Array, like: Array) -> Array:
    """A number, or what a schedule says of this step, in the dtype of `like`."""
    return jnp.asarray(value(count) if callable(value) else value).astype(like.dtype)


def check_range(rule: str, name: str, value: Any, legal: str, *, schedule: bool = False) -> None:
    """Refuse a number outside an interval, see `ranges.in_range`; a schedule may pass."""
    if not (schedule and callable(value)):
        in_range(f"{name} of {rule}", value, legal)


def norms_of(rule: str, groups: gr.Groups, params: Members) -> Float[Array, " units"]:
    """The norm of each unit of parameters that all need a direction.

    A norm of zero is refused, or, where only a compiled program will know it, NaN.
    """
    G = gr.norm2(groups, params)
    zero = np.zeros(0, int) if isinstance(G, Tracer) else np.flatnonzero(np.asarray(G) == 0)
    if zero.size:
        more = f" (and {zero.size - 1} more)" if zero.size > 1 else ""
        raise ValueError(
            f"{rule} needs a direction of every unit, but '{gr.units(groups, params)[zero[0]]}'"
            f"{more} has norm zero; initialise it otherwise, or leave it out of the groups"
        )
    return jnp.sqrt(jnp.where(G > 0, G, jnp.nan))


def widened(leaf: Array) -> Array:
    """In float32 or wider."""
    return leaf if leaf.dtype == jnp.float64 else leaf.astype(jnp.float32)


def _widened(members: Members) -> Members:
    return {path: widened(leaf) for path, leaf in members.items()}
