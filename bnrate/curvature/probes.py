"""Probes of the landscape along the gradient, and of whether the gradient jumps.

Santurkar, Tsipras, Ilyas & Madry ("How does batch normalization help optimization?", 2018) move
along the gradient by several step sizes and look at the loss, at how far the gradient has changed
(its predictiveness), and at that change per distance (the effective smoothness, their beta).  They
move straight, in the weights.  For scale-invariant weights both the step and the change then depend
on the norm, and so does what one concludes; on the spheres neither does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bnrate import groups as gr
from bnrate.curvature.curves import (
    Loss,
    geodesic,
    gradient_of,
    minus,
    norm,
    norms,
    on_spheres,
    one_number,
    plus,
)
from bnrate.ranges import in_range

MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


class Probe(NamedTuple):
    """What a step of each size along the gradient finds.

    Attributes:
      step: the size: a rate.
      loss: there.
      gradient_change: |gradient there - gradient here|, the one here carried along.
      smoothness: the largest change per distance moved; 0 where the gradient is zero.
    """

    step: Float[Array, " steps"]
    loss: Float[Array, " steps"]
    gradient_change: Float[Array, " steps"]
    smoothness: Float[Array, ""]


def probe(
    loss: Loss,
    params: PyTree,
    groups: gr.Groups,
    rate: ArrayLike,
    multiples: tuple[float, ...] = MULTIPLES,
) -> Probe:
    """Loss, gradient predictiveness and effective smoothness along the gradient.

    With `Groups()` as published: straight steps -s grad in the coordinates of the parameters.  With
    the groups of the loss every unit is first put on its unit sphere, and moves along the great
    circle of its gradient D by the angle s |D|, the rest straight; the gradient there is compared
    with the one here after parallel transport along the circle, which turns it as the circle turns.
    That is free of the scale of the units, so `rate` is one on the unit sphere.

        >>> from bnrate.groups import Groups
        >>> found = probe(lambda x: x @ x, jnp.array([3., 4.]), Groups(), 0.1, (1.0, 2.0))
        >>> found.loss.round(3), found.smoothness.round(3)
        (Array([16.,  9.], dtype=float32), Array(2., dtype=float32))

    Args:
      loss: of parameters, invariant to the scale of each unit.
      params: where.
      groups: whose units are on spheres.
      rate: of the steps that are multiplied.
      multiples: step sizes as multiples of the rate.  The default, from half to four times the rate
        of training in steps of a half, is fixed so that results compare; the points are ours.

    Raises:
      ValueError: rate or multiples are not positive, the rate is not one number, there are no
        multiples; or as `on_spheres` and `gradient_of`.
    """
    rate = one_number("rate", rate, "(0, inf)")
    if not len(multiples):
        raise ValueError("multiples must be at least one number in (0, inf), got none")
    factors = in_range("multiples", np.array(multiples), "(0, inf)")
    here, gradient = on_spheres(params, groups), gradient_of(loss, params)
    ahead = jax.tree.map(jnp.negative, gr.tangent(groups, here, gradient(here)))
    curve, speed = geodesic(here, ahead, groups), norm(ahead)
    steps = rate.astype(speed.dtype) * factors.astype(speed.dtype)

    def at(s: Float[Array, ""]) -> tuple[Array, Array]:
        # The velocity of the curve is the first gradient, reversed and carried along.
        there, velocity = jax.jvp(curve, (s,), (jnp.ones_like(s),))
        value, grads = jax.value_and_grad(loss)(there)
        return value, norm(plus(gr.tangent(groups, there, grads), velocity))

    values, change = jax.lax.map(at, steps)
    distance = steps * speed
    ratio = jnp.where(speed == 0, 0, change / jnp.where(speed == 0, 1, distance))
    return Probe(steps, values, change, jnp.max(ratio))


def smoothness_residual(
    loss: Loss,
    params: PyTree,
    groups: gr.Groups,
    *,
    key: Array,
    length: float = 0.1,
    segments: int = 4,
    nodes: int = 24,
) -> Float[Array, " segments"]:
    """How much of the gradient's change along random segments the Hessian does not explain.

    If a loss is twice continuously differentiable, the gradient changes by the integral of Hessian
    times velocity, and what is left is the error of the quadrature: rounding, for analytic losses
    on short segments.  Automatic differentiation does not see the jumps of the gradient where a
    rectifier switches, so there more is left.  This is evidence, not proof: a segment may miss the
    jumps, and a smooth loss may bend more sharply than the nodes resolve.

        >>> from bnrate.groups import Groups
        >>> x, key = jnp.linspace(-1., 1., 50), jax.random.key(0)
        >>> smooth = lambda bias: jnp.mean(jax.nn.softplus(x + bias) ** 2)
        >>> kinked = lambda bias: jnp.mean(jnp.abs(x + bias))
        >>> [bool(smoothness_residual(loss, jnp.zeros(1), Groups(), key=key).max() > 0.01)
        ...  for loss in (lambda b: smooth(b[0]), lambda b: kinked(b[0]))]
        [False, True]

    Args:
      loss: of parameters, invariant to the scale of each unit.
      params: where the segments start, put to unit norm.
      groups: whose units are on spheres.
      key: of the directions.
      length: by which each unit turns, in radians, and by which the rest moves.
      segments: their number.
      nodes: of the Gauss-Legendre quadrature on each.

    Returns:
      For each segment |change - integral| / (|change| + |integral| + noise), which lies in [0, 1].
      The noise is |gradient| times the root of the dtype's epsilon, so that a gradient that is
      constant but for rounding has a residual near 0.

    Raises:
      ValueError: length is not positive, there are no segments or nodes; or as `on_spheres` and
        `gradient_of`.
    """
    if not length > 0 or segments < 1 or nodes < 1:
        raise ValueError(
            f"length must be positive, segments and nodes at least 1, got {length}, {segments} and "
            f"{nodes}"
        )
    here, gradient = on_spheres(params, groups), gradient_of(loss, params)
    at, weights = np.polynomial.legendre.leggauss(nodes)

    def residual(key: Array) -> Float[Array, ""]:
        curve = geodesic(here, _direction(here, groups, key, length), groups)

        def slope(s: Array) -> PyTree:
            return jax.jvp(lambda s: gradient(curve(s)), (s,), (jnp.ones_like(s),))[1]

        slopes = jax.lax.map(slope, jnp.asarray((1 + at) / 2, float))
        integral = jax.tree.map(lambda leaf: _weighted(weights / 2, leaf), slopes)
        start = gradient(here)
        change = minus(gradient(curve(jnp.ones(()))), start)
        size = norm(change) + norm(integral)
        noise = jnp.sqrt(jnp.finfo(size.dtype).eps) * norm(start)
        size = jnp.where(size + noise == 0, 1, size + noise)
        return norm(minus(change, integral)) / size

    return jax.lax.map(residual, jax.random.split(key, segments))


def _direction(point: PyTree, groups: gr.Groups, key: Array, length: float) -> PyTree:
    """A random tangent vector, of this length in each unit and in the rest as a whole."""
    leaves, structure = jax.tree.flatten(point)
    keys = jax.random.split(key, max(len(leaves), 1))
    normal = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)
    ]
    tangent = gr.tangent(groups, point, jax.tree.unflatten(structure, normal))
    units = gr.rescale(groups, tangent, length / norms(groups, tangent))
    size = norm(gr.rest(groups, tangent))
    rest = jax.tree.map(lambda leaf: leaf * (length / size).astype(leaf.dtype), tangent)
    return gr.combine(groups, units, rest)


def _weighted(weights: np.ndarray, values: Float[Array, "nodes ..."]) -> Float[Array, "..."]:
    return jnp.tensordot(jnp.asarray(weights, values.dtype), values, 1)
