"""What one step does on the spheres: (params, grads, updates) -> arrays.

Three numbers are called a rate elsewhere and are three here: the effective rate eta / |w|^2, the
relative update |dw| / |w|, and the angle between successive weights.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from bnrate import groups as gr

# The dimensions of each measure, besides those of the recording.
DIMS = {
    "norm2": ("group",),
    "effective_rate": ("group",),
    "spherical_gradient": ("group",),
    "angle": ("group",),
    "rest_gradient": (),
    "spherical_gradient_whole": (),
}


def on_spheres(
    groups: gr.Groups,
    params: PyTree,
    grads: PyTree,
    updates: PyTree,
    rate: Float[Array, ""],
) -> dict[str, Array]:
    """Measure one step, before it is taken; one entry per unit of `groups`.

    Args:
      groups: the spheres; `groups.whole()` measures group by group.
      params: before the step.
      grads: of the loss at `params`.
      updates: that will be added to `params`.
      rate: eta of the invariant groups.

    Returns:
      norm2: G = |w|^2.
      effective_rate: eta / G, that of plain (S)GD; under other rules the angle says more.
      spherical_gradient: |w| |grad|, the norm of the gradient at w / |w|.
      angle: between w and w + update, in radians.
      rest_gradient: the norm of the gradient over the leaves in no group.
      spherical_gradient_whole: over all units and the rest, the norm that the theorems bound.
    """
    G = gr.norm2(groups, params)
    spherical = jnp.sqrt(G) * jnp.sqrt(gr.norm2(groups, grads))
    along = gr.inner(groups, params, updates)
    across = gr.norm2(groups, gr.tangent(groups, params, updates))
    rest = optax.tree.norm(optax.tree.cast(gr.rest(groups, grads), G.dtype))
    return {
        "norm2": G,
        "effective_rate": rate / G,
        "spherical_gradient": spherical,
        # Not the arc cosine of <w, w+>, which loses every digit of a small angle.
        "angle": jnp.arctan2(jnp.sqrt(G) * jnp.sqrt(across), G + along),
        "rest_gradient": jnp.asarray(rest, G.dtype),
        "spherical_gradient_whole": optax.tree.norm((spherical, rest)),
    }
