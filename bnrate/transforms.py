"""Optax transformations that treat scale-invariant groups and the rest apart.

Both are plain optax: compose them with `optax.chain`, wrap them, feed them to any training loop.

    >>> import jax.numpy as jnp, optax
    >>> from bnrate.groups import Group, Groups, Member
    >>> groups = Groups([Group([Member("kernel")])])
    >>> tx = by_group(groups, invariant=optax.sgd(0.3), rest=optax.sgd(0.01))
    >>> params = {"kernel": jnp.array([2., 4.]), "bias": jnp.array([1.])}
    >>> tx.update(params, tx.init(params), params)[0]
    {'bias': Array([-0.01], dtype=float32), 'kernel': Array([-0.6, -1.2], dtype=float32)}
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bnrate import groups as gr


def by_group(
    groups: gr.Groups,
    *,
    invariant: optax.GradientTransformation,
    rest: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """One transformation for the leaves in scale-invariant groups, another for the rest.

    That any rate will do for the invariant groups is proved for plain (S)GD.  Leaves without any
    effect on the loss count as rest.

    Args:
      groups: as `invariance.detect` finds them (`.groups`).
      invariant: for the leaves in groups.
      rest: for all others.

    Raises:
      ValueError: (in init) a group does not fit the parameters.
    """
    return optax.partition(
        {gr.INVARIANT: invariant, gr.REST: rest}, lambda params: gr.labels(groups, params)
    )


def keep_norm(groups: gr.Groups) -> optax.GradientTransformationExtraArgs:
    """Rescale each unit to the norm that it had before the step; put it last in a chain.

    For example `optax.chain(by_group(groups, ...), keep_norm(groups))`.

    After SGD this is the projected SGD of Arora, Li & Lyu (2019), setting 2: it removes exactly
    the growth of the norm by which the effective rate tunes itself.  The rest passes unchanged.  A
    unit of norm zero stays zero, and one whose step ends at zero ends there, having no direction;
    NaN passes through, and a step whose norm overflows becomes NaN.  The norm is kept to rounding,
    which in bfloat16 adds up.

    Raises:
      ValueError: (in the update) the parameters are not given, or a group does not fit them.
    """

    def init(params: optax.Params) -> optax.OptState:
        gr.norm2(groups, params)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise ValueError("keep_norm needs the parameters: call update(updates, state, params)")
        G, stepped = gr.norm2(groups, params), optax.tree.add(params, updates)
        after = gr.norm2(groups, stepped)
        growth = (2 * gr.inner(groups, params, updates) + gr.norm2(groups, updates)) / G
        # Long steps: factor (w + u) - w.  Short steps: the same, as factor u + (factor - 1) w, and
        # the factor from the growth of the norm alone, or rounding would make the norm drift.
        short = jnp.abs(growth) < 0.5
        factor = jax.lax.rsqrt(jnp.where(short, 1 + growth, after / G))
        excess = jnp.expm1(-0.5 * jnp.log1p(jnp.where(short, growth, 0)))
        # A step too long for its norm to be computed is lost, visibly.
        factor = jnp.where(jnp.isinf(after), jnp.nan, factor)
        no_direction = (G == 0) | (after == 0)
        of_stepped = jnp.where(short | no_direction, 0, factor)
        of_updates = jnp.where(no_direction, jnp.where(G == 0, 0, 1), jnp.where(short, factor, 0))
        of_params = jnp.where(no_direction, 0, jnp.where(short, excess, -1))
        kept = optax.tree.add(
            gr.rescale(groups, stepped, of_stepped),
            optax.tree.add(
                gr.rescale(groups, updates, of_updates), gr.rescale(groups, params, of_params)
            ),
        )
        return gr.combine(groups, kept, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
