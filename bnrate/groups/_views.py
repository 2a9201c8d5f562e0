"""Members against the leaves of a tree: do they fit, which entries are theirs, in which units."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from bnrate.groups._trees import leaves
from bnrate.groups._values import Groups, Member, boxes_meet, check_fit, refuse_overlap

Shape = tuple[int, ...]


def check(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The leaves of the members by path, after a check that they fit.

    Raises:
      ValueError: a leaf is missing or not an array of floats, or a member does not fit it; parts
        overlap; the units of a group's members differ in shape.
    """
    if not isinstance(groups, Groups):
        raise TypeError(f"expected Groups, got {type(groups).__name__}; detect's are in .groups")
    everything = leaves(tree)
    for path in groups.paths:
        if path not in everything:
            known = ", ".join(f"'{path}'" for path in list(everything)[:8]) or "no leaves at all"
            more = ", ..." if len(everything) > 8 else ""
            raise ValueError(
                f"leaf '{path}' of a group is not in the tree, which has {known}{more}; "
                "use the tree in which the groups were found"
            )
        leaf = everything[path]
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(f"leaf '{path}' must be an array of floats, got {dtype}")
    found = {path: everything[path] for path in groups.paths}
    _unit_counts(groups, _shapes(found))
    return found


def check_alike(groups: Groups, a: PyTree, b: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members' leaves of both trees, after a check that they have the same shapes."""
    found = check(groups, a)
    others = found if a is b else check(groups, b)
    for path, leaf in others.items():
        if leaf.shape != found[path].shape:
            raise ValueError(
                f"leaf '{path}' has shape {found[path].shape} in one tree and {leaf.shape} in the "
                "other"
            )
    return found, others


def unit_shape(member: Member, shape: Shape) -> Shape:
    """How many units there are along each unit axis, of a leaf of this shape."""
    lengths = _lengths(member, shape)
    return tuple(lengths[axis] for axis in member.axes)


def entries(member: Member, shape: Shape) -> int:
    """How many entries of a leaf of this shape are the member's."""
    return math.prod(_lengths(member, shape))


def sizes(groups: Groups, found: Mapping[str, Any]) -> tuple[int, ...]:
    """The number of units of each group."""
    return _unit_counts(groups, _shapes(found))


def covered(members: tuple[Member, ...], shape: Shape) -> bool:
    """Whether every entry of a leaf of this shape is one of the members'."""
    return not all(m.part for m in members) or (
        sum(entries(m, shape) for m in members) == math.prod(shape)
    )


def take(member: Member, leaf: Any) -> Any:
    """The member's entries of a leaf, in its view."""
    view = leaf if member.shape is None else jnp.reshape(leaf, member.shape)
    for axis, start, stop in member.part:
        view = jax.lax.slice_in_dim(view, start, stop, axis=axis)
    return view


def put(member: Member, leaf: Any, new: Any) -> Any:
    """The leaf with other entries for the member, in its view."""
    if member.part:
        # Padded and selected: under vmap, an update of a slice becomes a slow scatter.
        view = leaf if member.shape is None else jnp.reshape(leaf, member.shape)
        ranges = {axis: (start, view.shape[axis] - stop, 0) for axis, start, stop in member.part}
        padding = [ranges.get(axis, (0, 0, 0)) for axis in range(view.ndim)]
        new = jnp.where(_box(member, view.shape), jax.lax.pad(new, _zero(new), padding), view)
    return new if member.shape is None else jnp.reshape(new, jnp.shape(leaf))


def by_unit(member: Member, sums: Any) -> Array:
    """A vector of one number per unit, from an array over the unit axes in their order."""
    if len(member.axes) < 2:
        return jnp.atleast_1d(sums)
    return jnp.ravel(jnp.transpose(sums, _ranks(member.axes)))


def spread(
    groups: Groups, found: Mapping[str, Any], factors: Array
) -> Iterator[tuple[Member, Array]]:
    """Each member with its factors, in a shape that broadcasts against what `take` returns."""
    counts = sizes(groups, found)
    if jnp.shape(factors) != (sum(counts),):
        raise ValueError(
            f"factors must have shape ({sum(counts)},), one per unit, got {jnp.shape(factors)}"
        )
    starts = itertools.accumulate(counts, initial=0)
    for group, start, count in zip(groups, starts, counts, strict=False):
        for member in group.members:
            yield member, _aligned(member, found[member.path], factors[start : start + count])


def select(groups: Groups, path: str, inside: Any, outside: Any) -> Any:
    """One leaf, with the members' entries from one array and all others from another, or zero."""
    members, shape = groups.by_path[path], jnp.shape(inside)
    if covered(members, shape) or isinstance(inside, jax.ShapeDtypeStruct):
        return inside
    other = _zero(inside) if outside is None else outside
    return jnp.where(_mask(members, shape), inside.astype(other.dtype), other)


def outside(groups: Groups, path: str, leaf: Any) -> Any:
    """One leaf with zeros for the members' entries."""
    if path not in groups.by_path or isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jnp.where(_mask(groups.by_path[path], leaf.shape), _zero(leaf), leaf)


def _shapes(found: Mapping[str, Any]) -> tuple[Shape, ...]:
    return tuple([jnp.shape(leaf) for leaf in found.values()])


@functools.lru_cache
def _unit_counts(groups: Groups, shapes: tuple[Shape, ...]) -> tuple[int, ...]:
    """The number of units of each group, after a check that the members fit leaves of these shapes.

    It is cached because tracing a rule asks dozens of times.
    """
    shape_of = dict(zip(groups.paths, shapes, strict=True))
    for path, members in groups.by_path.items():
        _check_members(members, shape_of[path])
    counts = []
    for group in groups:
        found = {m.name: unit_shape(m, shape_of[m.path]) for m in group.members}
        if len(set(found.values())) > 1:
            raise ValueError(
                f"the unit axes of group '{group.name}' differ in length ({found}); "
                "units are scaled index by index together"
            )
        counts.append(math.prod(next(iter(found.values()))))
    return tuple(counts)


def _check_members(members: tuple[Member, ...], shape: Shape) -> None:
    """Refuse members of one leaf that do not fit its shape, or that overlap."""
    for member in members:
        if member.shape is not None and math.prod(member.shape) != math.prod(shape):
            raise ValueError(
                f"leaf '{member.path}' has shape {shape}, so {math.prod(shape)} entries, and "
                f"cannot be viewed as {member.shape}, which has {math.prod(member.shape)}; give a "
                "shape of as many entries"
            )
        check_fit(member, _viewed(member, shape))
    for a, b in itertools.combinations(members, 2):
        views = _viewed(a, shape), _viewed(b, shape)
        if views[0] == views[1]:
            refuse_overlap(a, b, boxes_meet(a, b))
            continue
        masks = [
            np.broadcast_to(_box(m, view), view).ravel()
            for m, view in zip((a, b), views, strict=True)
        ]
        refuse_overlap(a, b, bool(np.any(masks[0] & masks[1])))


def _viewed(member: Member, shape: Shape) -> Shape:
    return shape if member.shape is None else member.shape


def _lengths(member: Member, shape: Shape) -> Shape:
    """The lengths of the axes of what `take` returns."""
    ranges = {axis: stop - start for axis, start, stop in member.part}
    view = _viewed(member, shape)
    return tuple(ranges.get(axis, length) for axis, length in enumerate(view))


def _aligned(member: Member, leaf: Any, factors: Array) -> Array:
    """The factors of one member, each axis at its place in the view."""
    lengths = _lengths(member, jnp.shape(leaf))
    if member.axes != tuple(sorted(member.axes)):
        factors = factors.reshape([lengths[axis] for axis in member.axes])
        factors = jnp.transpose(factors, np.argsort(member.axes).tolist())
    kept = [length if axis in member.axes else 1 for axis, length in enumerate(lengths)]
    return factors.reshape(kept)


def _ranks(axes: Shape) -> list[int]:
    """The place of each axis among all of them, sorted."""
    return [sorted(axes).index(axis) for axis in axes]


def _box(member: Member, view: Shape) -> np.ndarray:
    """Which entries of the view are the member's, in a shape that broadcasts against it."""
    inside = np.ones([1] * len(view), bool)
    for axis, start, stop in member.part:
        shape = [-1 if other == axis else 1 for other in range(len(view))]
        index = np.arange(view[axis]).reshape(shape)
        inside = inside & (start <= index) & (index < stop)
    return inside


def _mask(members: tuple[Member, ...], shape: Shape) -> Bool[Array, "..."]:
    """Which entries of a leaf of this shape are the members'."""
    boxes: dict[Shape, np.ndarray] = {}
    for member in members:
        view = _viewed(member, shape)
        boxes[view] = boxes.get(view, np.zeros([1] * len(view), bool)) | _box(member, view)
    masks = [jnp.broadcast_to(box, view).reshape(shape) for view, box in boxes.items()]
    return functools.reduce(jnp.logical_or, masks)


def _zero(like: Any) -> Array:
    return jnp.zeros((), like.dtype)
