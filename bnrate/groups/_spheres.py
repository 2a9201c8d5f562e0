"""Norms, directions and tangent parts of all units at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bnrate.groups import _views
from bnrate.groups._trees import leaves, replace
from bnrate.groups._values import Groups, Member


def inner(groups: Groups, a: PyTree, b: PyTree) -> Float[Array, " units"]:
    """Inner product of two trees of one structure, unit by unit, in float32 or wider.

    Raises:
      ValueError: (as all functions here) a member is missing from a tree, is not an array of
        floats, has no such axes, shape or part, or differs in its units' number from its group's
        other members; parts of one leaf overlap.
    """
    found_a, found_b = _views.check_alike(groups, a, b)
    dtypes = [leaf.dtype for found in (found_a, found_b) for leaf in found.values()]
    dtype = jnp.float64 if jnp.float64 in dtypes else jnp.float32

    def member_sum(member: Member) -> Array:
        one, two = (_views.take(member, found[member.path]) for found in (found_a, found_b))
        product = one.astype(dtype) * two.astype(dtype)
        others = [axis for axis in range(product.ndim) if axis not in member.axes]
        return _views.by_unit(member, jnp.sum(product, axis=others))

    sums = [sum(map(member_sum, group.members), jnp.zeros(1, dtype)) for group in groups]
    return jnp.concatenate(sums) if sums else jnp.zeros(0, dtype)


def norm2(groups: Groups, tree: PyTree) -> Float[Array, " units"]:
    """Squared norm of each unit: the paper's G."""
    return inner(groups, tree, tree)


def rescale(groups: Groups, tree: PyTree, factors: Float[Array, " units"]) -> PyTree:
    """Multiply each unit by its factor; the rest and all dtypes stay as they are."""
    return _changed(groups, tree, factors, lambda _, x, factor: x * factor.astype(x.dtype))


def unit_vectors(groups: Groups, tree: PyTree) -> PyTree:
    """Each unit divided by its norm; a unit that is zero stays zero."""
    G = norm2(groups, tree)
    inverse = jax.lax.rsqrt(jnp.where(G > 0, G, 1))  # guarded twice, or its gradient is NaN at 0
    return rescale(groups, tree, jnp.where(G > 0, inverse, 0))


def tangent(groups: Groups, params: PyTree, vectors: PyTree) -> PyTree:
    """The part of `vectors` that is orthogonal to each unit of `params`; the rest unchanged.

    A unit of norm zero has no direction: its vector is returned as it is.
    """
    G, weights = norm2(groups, params), leaves(params)
    radial = jnp.where(G > 0, inner(groups, params, vectors) / G, 0)

    def across(member: Member, vector: Any, along: Array) -> Any:
        w = _views.take(member, weights[member.path])
        return vector - (w * along.astype(w.dtype)).astype(vector.dtype)

    return _changed(groups, vectors, radial, across)


def _changed(
    groups: Groups,
    tree: PyTree,
    numbers: Float[Array, " units"],
    change: Callable[[Member, Any, Array], Any],
) -> PyTree:
    """The tree with `change(member, its entries, its units' numbers)` for each member."""
    new = _views.check(groups, tree)
    for member, number in _views.spread(groups, new, numbers):
        leaf = new[member.path]
        changed = change(member, _views.take(member, leaf), number)
        new[member.path] = _views.put(member, leaf, changed)
    return replace(tree, new)
