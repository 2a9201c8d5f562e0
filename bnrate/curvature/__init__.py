"""Second-order quantities of a loss where scale-invariant units have norm 1.

The Hessian at the weights says little about a loss that does not see their norm: it falls with the
square of it.  Here every unit of the groups is first put on its unit sphere, and only directions
tangent to the spheres count; the rest stays where it is, and all its directions count.  What comes
out depends on the directions of the weights alone.  Without groups, `Groups()`, all is rest, and
the same functions speak of the plain Hessian and the plain gradient.

That the loss is invariant to the scale of the units is not checked: for one that is not, the same
numbers come out, and they are not the curvature of anything.

Losses take parameters only: close over the batch.  A loss with BatchNorm is meant in training mode,
where it normalises by the batch and is invariant.

- `curves`: unit norm, great circles, and the curve that joins one step of (S)GD with the next.
- `hessian`: extreme eigenvalues, trace, and the norms of the blocks.
- `probes`: how loss and gradient change along the gradient; whether the gradient jumps.

    >>> import jax, jax.numpy as jnp
    >>> from bnrate.groups import Group, Groups, Member
    >>> def rayleigh(params):
    ...     square = params["w"] ** 2
    ...     return jnp.sum(jnp.array([0., 1., 3.]) * square) / jnp.sum(square)
    >>> groups = Groups([Group([Member("w")])])
    >>> minimizer = {"w": jnp.array([7., 0., 0.])}  # curvature is 2 (1 - 0) and 2 (3 - 0) there
    >>> found = spectrum(rayleigh, minimizer, groups, key=jax.random.key(0))
    >>> [round(float(value), 4) for value in (found.lowest, found.highest)]
    [2.0, 6.0]
"""

from bnrate.curvature.curves import along, geodesic, joining_curve, on_spheres
from bnrate.curvature.hessian import Blocks, Estimate, Spectrum, blocks, spectrum, trace
from bnrate.curvature.probes import MULTIPLES, Probe, probe, smoothness_residual

__all__ = [
    "MULTIPLES",
    "Blocks",
    "Estimate",
    "Probe",
    "Spectrum",
    "along",
    "blocks",
    "geodesic",
    "joining_curve",
    "on_spheres",
    "probe",
    "smoothness_residual",
    "spectrum",
    "trace",
]
