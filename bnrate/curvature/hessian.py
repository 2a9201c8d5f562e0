"""The Hessian on the product of spheres: extreme eigenvalues, trace, norms of its blocks.

A loss that does not see the norm of a unit v has a gradient D orthogonal to it, so at unit norm the
Riemannian Hessian is the Hessian H between projections onto the tangent space, P H P: the term
<D, v> that curvature of the sphere would add is zero.  H is never formed, only multiplied by
vectors.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from bnrate import groups as gr
from bnrate import lanczos
from bnrate.curvature.curves import Loss, gradient_of, norms, on_spheres

Part = gr.Group | str | None


class Spectrum(NamedTuple):
    """The ends of a spectrum, as far as Lanczos has found them: from inside.

    All is up to the rounding of the eigenvalue of largest magnitude, which the residuals include.

    Attributes:
      lowest: not below the smallest eigenvalue.
      highest: not above the largest.
      residuals: of both: an eigenvalue is as near as that, though perhaps not the outermost.
    """

    lowest: Float[Array, ""]
    highest: Float[Array, ""]
    residuals: Float[Array, "2"]


class Estimate(NamedTuple):
    """A number and its standard error, which is 0 if it is exact."""

    value: Float[Array, ""]
    error: Float[Array, ""]


class Blocks(NamedTuple):
    """Norms of second derivatives and of the gradient at one point, where units have norm 1.

    The names are those of the theorems' constants, which bound the same on all that a trajectory
    visits; so what is found at points of it is below them, and a lower estimate.

    Attributes:
      tangent: [i, j] of P_i H_ij P_j, between tangent directions of units i and j.
      ambient: [i, j] of H_ij, between all directions.
      gradient: [i] of the gradient in unit i.
      mixed: [i] of the second derivative in unit i and the rest; 0 without a rest.
      rest: of the second derivative in the rest; 0 without a rest.
    """

    tangent: Float[Array, "units units"]
    ambient: Float[Array, "units units"]
    gradient: Float[Array, " units"]
    mixed: Float[Array, " units"]
    rest: Float[Array, ""]


class _Operator(NamedTuple):
    """The Hessian at a point, on flat vectors."""

    product: lanczos.Operator
    project: lanczos.Operator  # onto the tangent space of what varies
    size: int
    dtype: jnp.dtype


def spectrum(
    loss: Loss,
    params: PyTree,
    groups: gr.Groups,
    *,
    key: Array,
    iterations: int = 30,
    part: Part = None,
) -> Spectrum:
    """The smallest and the largest eigenvalue of the Hessian on the spheres.

    Rescaling units changes nothing.  With `Groups()` it is the plain Hessian's.

    Args:
      loss: of parameters, invariant to the scale of each unit.
      params: where; units need not have norm 1.
      groups: whose units are on spheres; `groups.whole()` has one sphere per group.
      key: of the random start.
      iterations: Hessian products; with as many as the tangent space has dimensions, both ends
        are exact up to the rounding of the larger.  As many vectors are kept.
      part: what varies while all else stays: one of the groups, "invariant" (all groups), "rest",
        or None for everything.

    Raises:
      ValueError: `iterations` is below 1, or there is no such part; or as `on_spheres` and
        `gradient_of`.
    """
    operator = _operator(*_restricted(loss, on_spheres(params, groups), groups, part))
    normal = jax.random.normal(key, (operator.size,), operator.dtype)
    found = lanczos.ritz(operator.product, operator.project(normal), iterations, operator.project)
    ends = np.array([0, -1])
    return Spectrum(found.values[0], found.values[-1], found.residuals[ends])


def trace(
    loss: Loss,
    params: PyTree,
    groups: gr.Groups,
    *,
    key: Array | None = None,
    samples: int | None = None,
    part: Part = None,
) -> Estimate:
    """The trace of the Hessian on the spheres: the sum of its eigenvalues.

    Exact with one Hessian product per coordinate, or estimated from random signs (Hutchinson 1989)
    with one per sample.

    Args:
      loss: as for `spectrum`.
      params: as for `spectrum`.
      groups: as for `spectrum`.
      key: of the samples.
      samples: at least 2 for an estimate with its standard error; None for the exact value.
      part: as for `spectrum`.

    Raises:
      ValueError: there are samples but no key, or fewer than 2; or as `spectrum`.
    """
    operator = _operator(*_restricted(loss, on_spheres(params, groups), groups, part))
    size, dtype = operator.size, operator.dtype

    def quadratic(x: Float[Array, " n"]) -> Float[Array, ""]:
        u = operator.project(x)
        return u @ operator.product(u)

    if samples is None:
        terms = jax.lax.map(
            lambda i: quadratic(jax.nn.one_hot(i, size, dtype=dtype)), np.arange(size)
        )
        return Estimate(jnp.sum(terms), jnp.zeros((), dtype))
    if samples < 2 or key is None:
        raise ValueError(
            f"an estimate of the trace needs a key and at least 2 samples, got {samples} and "
            f"{'no key' if key is None else 'a key'}"
        )
    keys = jax.random.split(key, samples)
    terms = jax.lax.map(lambda k: quadratic(jax.random.rademacher(k, (size,), dtype)), keys)
    return Estimate(jnp.mean(terms), jnp.std(terms, ddof=1) / samples**0.5)


def blocks(
    loss: Loss, params: PyTree, groups: gr.Groups, *, key: Array, iterations: int = 30
) -> Blocks:
    """The norms of all blocks of the Hessian at unit norm, unit by unit.

    Each is the root of the largest eigenvalue of B'B, found by Lanczos from inside: exact with as
    many iterations as B has columns, else not above the norm, both up to rounding.  Each pair of
    units costs two Hessian products an iteration, so give `groups.whole()` where units are many.

    Args:
      loss: as for `spectrum`.
      params: as for `spectrum`.
      groups: as for `spectrum`; the theorems speak of units.
      key: of the random starts.
      iterations: for each block.

    Raises:
      ValueError: as `spectrum`.
    """
    point = on_spheres(params, groups)
    operator, index = _operator(loss, point, groups), _blocks_of_entries(groups, point)
    norm = functools.partial(_block_norm, operator, index, key, iterations)
    m = len(gr.units(groups, point))

    # The rest is block m, if it has entries.  All pairs, then each unit in all directions: one
    # program for both.
    has_rest = any(leaf.size for leaf in gr.rest(groups, point).values())
    i, j = (a.astype(np.int32) for a in np.triu_indices(m + has_rest))
    units, pairs = np.arange(m, dtype=np.int32), len(i)
    in_tangent = np.arange(pairs + m) < pairs
    found = jax.lax.map(
        lambda block: norm(*block), (np.append(i, units), np.append(j, units), in_tangent)
    )
    between, ambient = found[:pairs], found[pairs:]
    full = jnp.zeros((m + 1, m + 1), found.dtype).at[i, j].set(between).at[j, i].set(between)
    tangent, same = full[:m, :m], jnp.eye(m, dtype=bool)
    return Blocks(
        tangent=tangent,
        ambient=jnp.where(same, jnp.diag(ambient), tangent),  # H_ij v_j = 0 for others
        gradient=norms(groups, gradient_of(loss, point)(point)),
        mixed=full[:m, m],
        rest=full[m, m],
    )


def _block_norm(
    operator: _Operator,
    index: Int[Array, " n"],
    key: Array,
    iterations: int,
    i: Int[Array, ""],
    j: Int[Array, ""],
    tangent: Bool[Array, ""],
) -> Float[Array, ""]:
    """The norm of the Hessian's block in i and j, between tangent or between all directions."""

    def onto(block: Array, x: Array) -> Array:
        return jnp.where(index == block, jnp.where(tangent, operator.project(x), x), 0)

    def image(x: Array) -> Array:
        return onto(i, operator.product(x))

    start = onto(j, jax.random.normal(key, index.shape, operator.dtype))
    scale = lanczos.scale_of(image(start))  # B'B / scale is of the size of B; B'B may be no number
    found = lanczos.ritz(
        lambda x: operator.product(image(x) / scale), start, iterations, lambda x: onto(j, x)
    )
    largest = found.values[-1]
    largest = jnp.where(largest < 0, 0, largest)  # of zero, rounding can make less; not NaN
    return jnp.sqrt(scale) * jnp.sqrt(largest)


def _operator(
    loss: Loss, point: PyTree, groups: gr.Groups, varying: PyTree | None = None
) -> _Operator:
    """The Hessian at a point, in the widest dtype of its leaves; `varying` is 0 for what stays."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(point)]
    dtype = jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(dtype), point)
    flat, unravel = ravel_pytree(wide)

    def of_flat(x: Array) -> Array:
        return loss(jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), unravel(x), point))

    def project(x: Array) -> Array:
        x = ravel_pytree(gr.tangent(groups, wide, unravel(x)))[0]
        return x if varying is None else jnp.where(ravel_pytree(varying)[0] > 0, x, 0)

    _, product = jax.linearize(gradient_of(of_flat, flat), flat)
    return _Operator(product, project, flat.size, dtype)


def _restricted(
    loss: Loss, params: PyTree, groups: gr.Groups, part: Part
) -> tuple[Loss, PyTree, gr.Groups, PyTree | None]:
    """The loss of some leaves while the others stay: loss, leaves by path, their groups.

    Last comes what varies of these leaves, if it is not all: 1 in its place, and 0 elsewhere.
    """
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.float32), params)
    if part is None:
        varying, inside = gr.leaves(ones), groups
    elif part == gr.REST:
        varying, inside = gr.rest(groups, ones), gr.Groups()
    elif part == gr.INVARIANT:
        varying, inside = gr.members(groups, ones), groups
    elif isinstance(part, gr.Group) and part in groups:
        inside = gr.Groups([part])
        varying = gr.members(inside, ones)
    else:
        names = ", ".join(f"'{group.name}'" for group in groups)
        raise ValueError(
            f"part must be None, 'invariant', 'rest' or one of the groups ({names}), got {part!r}"
        )
    if not varying:
        raise ValueError(f"there are no parameters in the part {part!r}, so no second derivative")
    found = gr.leaves(params)
    some = {path: found[path] for path in varying}
    restricted = lambda new: loss(gr.replace(params, new))  # noqa: E731
    return restricted, some, inside, varying if groups.in_parts and part else None


def _blocks_of_entries(groups: gr.Groups, tree: PyTree) -> Int[Array, " n"]:
    """The number of the unit that each entry of the flat parameters is in; the rest counts last."""
    m = len(gr.units(groups, tree))
    of_rest, of_units = (
        jax.tree.map(lambda leaf, value=value: jnp.full(leaf.shape, value, jnp.float32), tree)
        for value in (m, 1)
    )
    numbered = gr.rescale(
        groups, gr.combine(groups, of_units, of_rest), jnp.arange(m, dtype=jnp.float32)
    )
    return ravel_pytree(numbered)[0].astype(jnp.int32)
