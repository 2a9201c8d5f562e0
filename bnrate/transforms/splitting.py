"""One transformation for the scale-invariant leaves, another for the rest."""

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
      groups: as `certify.certify` proves them or `invariance.detect` finds them (`.groups`).
      invariant: for the leaves in groups.
      rest: for all others.

    Raises:
      ValueError: (in init) a group does not fit the parameters.
    """
    return optax.partition(
        {gr.INVARIANT: invariant, gr.REST: rest}, lambda params: gr.labels(groups, params)
    )
