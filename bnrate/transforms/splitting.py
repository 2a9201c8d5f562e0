"""One transformation for the scale-invariant leaves, another for the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from bnrate import groups as gr


def by_group(
    groups: gr.Groups,
    *,
    invariant: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    allow_empty: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """One transformation for the leaves in scale-invariant groups, another for the rest.

    That any rate will do for the invariant groups is proved for plain (S)GD.  Leaves without any
    effect on the loss count as rest.  Of a leaf of which only parts are in groups, both sides see
    the leaf with zeros for what is the other's.

    Args:
      groups: as `certify.certify` proves them or `invariance.detect` finds them (`.groups`).
      invariant: for the leaves in groups.
      rest: for all others.
      allow_empty: take groups that are empty, and train everything by `rest`.

    Raises:
      ValueError: there are no groups; (in init) a group does not fit the parameters.
    """
    if not (groups.groups or allow_empty):
        raise ValueError(
            "by_group got no groups, so `invariant` would train nothing: no leaf was proven or "
            "found to be scale-invariant. Print the certificate or the detection to see why; if "
            "that is as it should be, give allow_empty=True"
        )
    if groups.in_parts:
        return _by_entry(groups, invariant, rest)
    return optax.partition(
        {gr.INVARIANT: invariant, gr.REST: rest}, lambda params: gr.labels(groups, params)
    )


class ByEntryState(NamedTuple):
    """What the transformations of both sides remember."""

    invariant: optax.OptState
    rest: optax.OptState


def _by_entry(
    groups: gr.Groups,
    invariant: optax.GradientTransformation,
    rest: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """As `optax.partition`, but leaves of which parts are in groups belong to both sides."""
    sides = _side(gr.members, groups, invariant), _side(gr.rest, groups, rest)

    def init(params: optax.Params) -> ByEntryState:
        return ByEntryState(*(tx.init(params) for tx in sides))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ByEntryState]:
        inside, invariant = sides[0].update(updates, state.invariant, params, **extra_args)
        outside, rest = sides[1].update(updates, state.rest, params, **extra_args)
        return gr.combine(groups, inside, outside), ByEntryState(invariant, rest)

    return optax.GradientTransformationExtraArgs(init, update)


def _side(
    of: Callable[[gr.Groups, PyTree], dict[str, Any]],
    groups: gr.Groups,
    rule: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The rule on the leaves `of` the groups alone, with zeros for entries of the other side."""

    def mask(tree: PyTree) -> PyTree:
        return gr.replace(
            jax.tree.map(lambda _: False, tree), dict.fromkeys(of(groups, tree), True)
        )

    def seen(tree: PyTree) -> PyTree:
        return gr.replace(tree, of(groups, tree))

    masked = optax.with_extra_args_support(optax.masked(rule, mask))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = None if params is None else seen(params)
        return masked.update(seen(updates), state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(lambda params: masked.init(seen(params)), update)
