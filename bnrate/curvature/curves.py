"""Curves on the product of the units' spheres and the flat space of the rest.

Great circles in the units, straight lines in the rest, both at constant speed.  A step of gradient
descent turns each unit by an angle whose tangent is |D| / b, with D the gradient at unit norm and
b = G / rate; the great circle through both ends is the curve on which theorems about the step need
bounds of the second derivative.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bnrate import groups as gr
from bnrate import lanczos
from bnrate.ranges import in_range

Loss = Callable[[PyTree], Float[Array, ""]]
Curve = Callable[[ArrayLike], PyTree]

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def on_spheres(params: PyTree, groups: gr.Groups) -> PyTree:
    """The parameters with every unit divided by its norm; the rest as it is.

    What a loss does here is what it does at the parameters only if it is invariant to the scale of
    each unit, which is not checked.

    Args:
      params: arrays of floats, float32 or wider.
      groups: what may be scaled.

    Raises:
      ValueError: a leaf is not an array of such floats, or not finite; a unit has norm zero, so no
        direction, or one entry only, so no tangent.  Numbers that only a compiled program will know
        become NaN there instead.
    """
    for path, leaf in gr.leaves(params).items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(f"leaf '{path}' must be an array of floats, got {dtype}")
        if jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"leaf '{path}' must be float32 or wider, got {dtype}, in which units are not of "
                "norm 1; cast the parameters to float32, and back inside the loss if it needs that"
            )
        if not isinstance(leaf, Tracer) and not np.all(np.isfinite(np.asarray(leaf, float))):
            raise ValueError(f"leaf '{path}' must be finite, got NaN or infinity")
    for name, entries in zip(gr.units(groups, params), gr.dims(groups, params), strict=True):
        if entries < 2:
            raise ValueError(
                f"unit '{name}' has {entries} entry, so its sphere has no tangent; leave it out of "
                "the groups, and its leaf out of the parameters that vary"
            )
    return gr.rescale(groups, params, 1 / _legal_norms(groups, params))


def geodesic(point: PyTree, velocity: PyTree, groups: gr.Groups) -> Curve:
    """The curve that starts at a point with a velocity and never turns.

    Args:
      point: every unit of norm 1, as `on_spheres` returns it.
      velocity: a tree like it, in the units tangent to the spheres.
      groups: of the units.

    Returns:
      s -> cos(s |u|) v + sin(s |u|) u / |u| in each unit v of velocity u, x + s u in the rest x.
    """
    angle = norms(groups, velocity)

    def curve(s: ArrayLike) -> PyTree:
        s = jnp.asarray(s)
        turned = s.astype(angle.dtype) * angle
        # sin(s |u|) / |u|, which is s where |u| is 0
        sine = jnp.where(angle > 0, jnp.sin(turned), s.astype(angle.dtype))
        circle = plus(
            gr.rescale(groups, point, jnp.cos(turned)),
            gr.rescale(groups, velocity, sine / jnp.where(angle > 0, angle, 1)),
        )
        straight = jax.tree.map(lambda x, u: x + s.astype(x.dtype) * u, point, velocity)
        return gr.combine(groups, circle, straight)

    return curve


def joining_curve(
    loss: Loss, params: PyTree, groups: gr.Groups, rate: ArrayLike, rate_rest: ArrayLike
) -> Curve:
    """The curve from the parameters to those after one step of gradient descent, at unit norm.

    With the gradient of a batch it is a step of SGD.  At s = 1 it is where w - rate * grad points,
    and where the rest is after its step.

    Args:
      loss: of parameters, invariant to the scale of each unit.
      params: from which the step is taken; their norms count.
      groups: of the units.
      rate: eta of the groups.
      rate_rest: eta of the rest.

    Returns:
      s -> parameters, units of norm 1; pure, and vmaps over s in [0, 1].

    Raises:
      ValueError: a rate is negative or not one number; or as `on_spheres` and `gradient_of`.
    """
    rate = one_number("rate", rate, "[0, inf)")
    rate_rest = one_number("rate_rest", rate_rest, "[0, inf)")
    point = on_spheres(params, groups)
    D = gr.tangent(groups, point, gradient_of(loss, point)(point))
    size, G = norms(groups, D), gr.norm2(groups, params)
    angle = jnp.arctan2(rate.astype(G.dtype) * size, G)
    turn = gr.rescale(groups, D, -angle / jnp.where(size > 0, size, 1))
    move = jax.tree.map(lambda leaf: -rate_rest.astype(leaf.dtype) * leaf, D)
    return geodesic(point, gr.combine(groups, turn, move), groups)


def along(
    curve: Curve, measure: Callable[[PyTree], Any], points: tuple[float, ...] = POINTS
) -> PyTree:
    """Measure at points of a curve.

    The largest of what is measured is a lower estimate of the largest on the curve: an estimate
    explains, and proves nothing.

        >>> from bnrate.groups import Groups
        >>> curve = joining_curve(lambda x: jnp.sum(x ** 4), jnp.array([1.]), Groups(), 1.0, 0.1)
        >>> along(curve, lambda x: x[0], points=(0.0, 1.0))
        Array([1. , 0.6], dtype=float32)

    Args:
      curve: s -> parameters.
      measure: parameters -> arrays.
      points: values of s.

    Returns:
      What `measure` returns, with a leading axis of points.
    """
    return jax.lax.map(lambda s: measure(curve(s)), jnp.asarray(points))


def gradient_of(loss: Loss, params: PyTree) -> Callable[[PyTree], PyTree]:
    """The gradient of a loss, after a check that it is one number.

    Raises:
      ValueError: it is not.
    """
    value = jax.eval_shape(loss, params)
    one = isinstance(value, jax.ShapeDtypeStruct) and value.shape == ()
    if not (one and jnp.issubdtype(value.dtype, jnp.floating)):
        raise ValueError(
            f"the loss must be one number of a float dtype, got {value}; average over examples, "
            "and leave out what else it returns"
        )
    return jax.grad(loss)


def one_number(what: str, value: ArrayLike, legal: str) -> Float[Array, ""]:
    """As `in_range`, of a single number.

    Raises:
      ValueError: it is an array of more; or as `in_range`.
    """
    array = in_range(what, value, legal)
    if array.ndim:
        raise ValueError(f"{what} must be one number, got shape {array.shape}; vmap over several")
    return array


def norm(tree: PyTree) -> Float[Array, ""]:
    """Over all leaves, in float32 or wider; squares neither under- nor overflow."""
    leaves = jax.tree.leaves(tree)
    dtype = jnp.float64 if jnp.float64 in [leaf.dtype for leaf in leaves] else jnp.float32
    scale = _scale(leaves, dtype)
    squares = (jnp.sum((leaf.astype(dtype) / scale) ** 2) for leaf in leaves)
    return scale * jnp.sqrt(sum(squares, jnp.zeros((), dtype)))


def norms(groups: gr.Groups, tree: PyTree) -> Float[Array, " units"]:
    """The norm of each unit; squares neither overflow nor all underflow."""
    inside = gr.members(groups, tree)
    scale = _scale(list(inside.values()), gr.norm2(groups, tree).dtype)
    return scale * jnp.sqrt(
        gr.norm2(groups, {path: leaf / scale.astype(leaf.dtype) for path, leaf in inside.items()})
    )


def plus(a: PyTree, b: PyTree) -> PyTree:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)


def minus(a: PyTree, b: PyTree) -> PyTree:
    """The difference of two trees."""
    return jax.tree.map(jnp.subtract, a, b)


def _scale(leaves: list[Array], dtype: Any) -> Float[Array, ""]:
    scales = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]
    return lanczos.scale_of(jnp.stack(scales) if scales else jnp.zeros(0, dtype))


def _legal_norms(groups: gr.Groups, params: PyTree) -> Float[Array, " units"]:
    """The norms of the units, none of them zero; NaN where only a program will know."""
    G = gr.norm2(groups, params)
    legal = (G > 0) & jnp.isfinite(G)
    if not isinstance(G, Tracer) and not np.all(legal):
        i = int(np.flatnonzero(~np.asarray(legal))[0])
        raise ValueError(
            f"unit '{gr.units(groups, params)[i]}' has squared norm {float(G[i]):g}, which must be "
            f"positive and finite in {G.dtype}; a unit without a direction has no curvature"
        )
    return jnp.sqrt(jnp.where(legal, G, jnp.nan))
