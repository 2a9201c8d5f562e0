"""Which entries of a tree are in groups, which are the rest, and the units' names and sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from bnrate.groups import _views
from bnrate.groups._trees import leaves, path_of, replace
from bnrate.groups._values import Group, Groups, Member

INVARIANT = "invariant"
REST = "rest"


def members(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The leaves that are in groups, by path, in the order of the groups.

    Where members are parts of a leaf, its other entries are zero.
    """
    found = _views.check(groups, tree)
    return {path: _views.select(groups, path, leaf, None) for path, leaf in found.items()}


def rest(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The leaves that are in no group, by path.

    A leaf of which only parts are in groups is here too, with zeros for the entries of the parts:
    `members` and `rest` add up to the tree.
    """
    inside = _covered(groups, tree)
    return {
        path: _views.outside(groups, path, leaf)
        for path, leaf in leaves(tree).items()
        if path not in inside
    }


def combine(groups: Groups, inside: PyTree, outside: PyTree) -> PyTree:
    """A tree with the entries of the groups from `inside` and all others from `outside`."""
    others, found = _views.check_alike(groups, outside, inside)
    new = {path: _views.select(groups, path, leaf, others[path]) for path, leaf in found.items()}
    return replace(outside, new)


def labels(groups: Groups, tree: PyTree) -> PyTree:
    """A tree of the strings "invariant" and "rest", as `optax.partition` takes it.

    A leaf is invariant if all of its entries are in groups: a transformation that has one rule for
    a leaf treats a leaf of which only parts are invariant as the rest.
    """
    inside = _covered(groups, tree)
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: INVARIANT if path_of(keys) in inside else REST, tree
    )


def units(groups: Groups, tree: PyTree) -> tuple[str, ...]:
    """One name per unit: the group's name, with `[index, ...]` where it has unit axes."""
    names, found = [], _views.check(groups, tree)
    for group in groups:
        first = group.members[0]
        shape = _views.unit_shape(first, jnp.shape(found[first.path]))
        each = np.ndindex(*shape) if first.axes else ()
        indices = [f"[{', '.join(map(str, index))}]" for index in each] if first.axes else [""]
        names += [group.name + index for index in indices]
    return tuple(names)


def dims(groups: Groups, tree: PyTree) -> Int[np.ndarray, " units"]:
    """The number of entries of each unit, known without the values of the tree."""
    found, counts = _views.check(groups, tree), []
    for group, size in zip(groups, _views.sizes(groups, found), strict=True):
        entries = sum(_views.entries(m, jnp.shape(found[m.path])) for m in group.members)
        counts += [entries // max(size, 1)] * size
    return np.array(counts, int)


def matrices(tree: PyTree, axis: int = -1) -> Groups:
    """Every float leaf of two or more axes, each index along one axis a unit: a guess, no proof.

    For comparison with published rules (AdamP, rotational optimisers), which assume that each
    output of each kernel is scale-invariant; the last axis is the outputs' in flax.

    Raises:
      ValueError: a leaf has no such axis.
    """
    groups = []
    for path, leaf in leaves(tree).items():
        if jnp.ndim(leaf) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating):
            if not -leaf.ndim <= axis < leaf.ndim:
                raise ValueError(f"leaf '{path}' has rank {leaf.ndim}, so it has no axis {axis}")
            groups.append(Group([Member(path, axis % leaf.ndim)]))
    return Groups(groups)


def _covered(groups: Groups, tree: PyTree) -> set[str]:
    """The paths of the leaves that are in groups with all of their entries."""
    found = _views.check(groups, tree)
    return {
        path
        for path, leaf in found.items()
        if _views.covered(groups.by_path[path], jnp.shape(leaf))
    }
