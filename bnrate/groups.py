"""Scale-invariant groups as values: which leaves scale together, and how finely.

A *group* is a set of leaves that the loss lets us multiply together by one c > 0.  Its *units* are
the finest pieces that may be scaled alone: the whole group, or each index along a unit axis (each
output channel of a kernel that BatchNorm follows).  Leaves in no group are the *rest*.

`Groups` says where the units are; it holds no arrays.  The functions here apply it to a tree of
parameters (or of gradients, or updates) and speak of all units at once, as one vector of shape
`(units,)`: group after group in the order of `Groups`, index after index along the unit axis.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.array([[3., 1.], [4., 0.]]), "bias": jnp.zeros(2)}}
    >>> groups = Groups([Group([Member("dense/kernel", axis=1)])])   # one unit per column
    >>> norm2(groups, params)
    Array([25.,  1.], dtype=float32)
    >>> labels(groups, params)
    {'dense': {'bias': 'rest', 'kernel': 'invariant'}}
"""

import dataclasses
import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

INVARIANT = "invariant"
REST = "rest"


@dataclasses.dataclass(frozen=True)
class Member:
    """One leaf of a group: its path, and the axis whose indices are units (None: no axis).

    `path` is `jax.tree_util.keystr(path, simple=True, separator="/")`, for example
    `"Dense_0/kernel"`.  `axis` counts from the front.
    """

    path: str
    axis: int | None = None

    def __post_init__(self):
        if self.axis is not None and self.axis < 0:
            raise ValueError(
                f"unit axis {self.axis} of leaf '{self.path}' is negative; count from the front"
            )


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that are scaled together; all have a unit axis (of one length), or none has."""

    members: tuple[Member, ...]

    def __init__(self, members: Iterable[Member]):
        object.__setattr__(self, "members", tuple(members))
        if not self.members:
            raise ValueError("a group needs at least one member")
        if len({member.axis is None for member in self.members}) > 1:
            raise ValueError(
                f"group '{self.name}' mixes members with and without a unit axis; "
                "its members are scaled index by index together, or as a whole"
            )

    @property
    def name(self) -> str:
        """The paths of the members, joined by `+`."""
        return "+".join(member.path for member in self.members)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Groups:
    """All scale-invariant groups of one loss: immutable, hashable, static under `jax.jit`.

    Raises:
      ValueError: a leaf stands in two groups.
    """

    groups: tuple[Group, ...]

    def __init__(self, groups: Iterable[Group] = ()):
        object.__setattr__(self, "groups", tuple(groups))
        for path, times in Counter(self.paths).items():
            if times > 1:
                raise ValueError(
                    f"leaf '{path}' is named {times} times; a leaf belongs to one group only"
                )

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of all members, in order."""
        return tuple(member.path for group in self.groups for member in group.members)

    def whole(self) -> "Groups":
        """The same groups without unit axes: each group is one unit."""
        return Groups(Group(Member(m.path) for m in group.members) for group in self.groups)


def leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order.

    Raises:
      ValueError: two leaves have one path (a key holds a "/").
    """
    pairs = [(_path(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [path for path, times in Counter(path for path, _ in pairs).items() if times > 1]
        raise ValueError(f"several leaves have the path '{twice[0]}'; keys must not hold a '/'")
    return found


def members(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The leaves that are in groups, by path, in the order of the groups."""
    return _check(groups, tree)


def rest(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The leaves that are in no group, by path."""
    _check(groups, tree)
    return {path: leaf for path, leaf in leaves(tree).items() if path not in groups.paths}


def units(groups: Groups, tree: PyTree) -> tuple[str, ...]:
    """One name per unit: the group's name, with `[index]` where it has a unit axis."""
    names = []
    for group, size in zip(groups, _sizes(groups, _check(groups, tree)), strict=True):
        whole = group.members[0].axis is None
        names += [group.name] if whole else [f"{group.name}[{i}]" for i in range(size)]
    return tuple(names)


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


def dims(groups: Groups, tree: PyTree) -> Int[np.ndarray, " units"]:
    """The number of entries of each unit, known without the values of the tree."""
    found, counts = _check(groups, tree), []
    for group, size in zip(groups, _sizes(groups, found), strict=True):
        entries = sum(math.prod(jnp.shape(found[member.path])) for member in group.members)
        counts += [entries // max(size, 1)] * size
    return np.array(counts, int)


def labels(groups: Groups, tree: PyTree) -> PyTree:
    """A tree of the strings "invariant" and "rest", as `optax.partition` takes it."""
    _check(groups, tree)
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: INVARIANT if _path(keys) in groups.paths else REST, tree
    )


def inner(groups: Groups, a: PyTree, b: PyTree) -> Float[Array, " units"]:
    """Inner product of two trees of one structure, unit by unit, in float32 or wider.

    Raises:
      ValueError: (as all functions here) a member is missing from a tree, is not an array of
        floats, has no such axis, or differs in length from its group's other members.
    """
    found_a, found_b = _check(groups, a), _check_alike(groups, a, b)
    dtypes = [leaf.dtype for found in (found_a, found_b) for leaf in found.values()]
    dtype = jnp.float64 if jnp.float64 in dtypes else jnp.float32

    def member_sum(member: Member) -> Array:
        product = found_a[member.path].astype(dtype) * found_b[member.path].astype(dtype)
        others = [axis for axis in range(product.ndim) if axis != member.axis]
        return jnp.atleast_1d(jnp.sum(product, axis=others))

    sums = [sum(map(member_sum, group.members), jnp.zeros(1, dtype)) for group in groups]
    return jnp.concatenate(sums) if sums else jnp.zeros(0, dtype)


def norm2(groups: Groups, tree: PyTree) -> Float[Array, " units"]:
    """Squared norm of each unit: the paper's G."""
    return inner(groups, tree, tree)


def rescale(groups: Groups, tree: PyTree, factors: Float[Array, " units"]) -> PyTree:
    """Multiply each unit by its factor; the rest and all dtypes stay as they are."""
    found = _check(groups, tree)
    scaled = {
        path: found[path] * factor.astype(found[path].dtype)
        for path, factor in _spread(groups, found, factors).items()
    }
    return replace(tree, scaled)


def unit_vectors(groups: Groups, tree: PyTree) -> PyTree:
    """Each unit divided by its norm; a unit that is zero stays zero."""
    G = norm2(groups, tree)
    inverse = jax.lax.rsqrt(jnp.where(G > 0, G, 1))  # guarded twice, or its gradient is NaN at 0
    return rescale(groups, tree, jnp.where(G > 0, inverse, 0))


def tangent(groups: Groups, params: PyTree, vectors: PyTree) -> PyTree:
    """The part of `vectors` that is orthogonal to each unit of `params`; the rest unchanged.

    A unit of norm zero has no direction: its vector is returned as it is.
    """
    G = norm2(groups, params)
    radial = jnp.where(G > 0, inner(groups, params, vectors) / G, 0)
    found, weights = _check(groups, vectors), leaves(params)
    projected = {
        path: leaf - (weights[path] * along.astype(weights[path].dtype)).astype(leaf.dtype)
        for path, along in _spread(groups, found, radial).items()
        for leaf in [found[path]]
    }
    return replace(vectors, projected)


def combine(groups: Groups, inside: PyTree, outside: PyTree) -> PyTree:
    """A tree with the members of the groups from `inside` and all other leaves from `outside`."""
    return replace(outside, _check_alike(groups, outside, inside))


def replace(tree: PyTree, new: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves at some paths.

    Raises:
      ValueError: the tree has no leaf at one of them.
    """
    unknown = set(new) - set(leaves(tree))
    if unknown:
        raise ValueError(f"the tree has no leaf '{min(unknown)}' to replace")
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: new.get(_path(keys), leaf), tree)


def to_json(groups: Groups) -> str:
    """Groups as JSON with one group a line, for people to read and edit."""
    lines = [
        json.dumps([{"path": m.path} | ({} if m.axis is None else {"axis": m.axis}) for m in g])
        for g in (group.members for group in groups)
    ]
    body = ",\n".join(f"    {line}" for line in lines)
    return f'{{\n  "groups": [\n{body}\n  ]\n}}\n' if lines else '{\n  "groups": []\n}\n'


def from_json(text: str) -> Groups:
    """Read back what `to_json` wrote.

    Raises:
      ValueError: the text is not JSON, or not of that form; the message shows the offending part.
    """
    form = '{"groups": [[{"path": "layer/kernel", "axis": 1}, ...], ...]}'
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected {form}") from error
    if not (isinstance(document, dict) and set(document) == {"groups"}):
        raise ValueError(f"expected an object with the one key 'groups', like {form}")
    if not isinstance(document["groups"], list):
        raise ValueError(f"'groups' must be a list of groups, like {form}")
    return Groups(_group_from_json(group, form) for group in document["groups"])


def _group_from_json(group: Any, form: str) -> Group:
    if not isinstance(group, list):
        raise ValueError(f"a group must be a list of members, got {group!r}; expected {form}")
    for member in group:
        match member:
            case {"path": str(), **others} if not others:
                pass
            case {"path": str(), "axis": int(axis), **others} if not (
                others or isinstance(axis, bool)
            ):
                pass
            case _:
                raise ValueError(
                    f"a member has a 'path' and perhaps an integer 'axis', got {member!r}; "
                    f"expected {form}"
                )
    return Group(Member(**member) for member in group)


def _path(keys: Any) -> str:
    # A flax nnx.State holds each array in a Variable; users write "conv/kernel" for its value.
    match keys:
        case (*_, jax.tree_util.DictKey(), jax.tree_util.GetAttrKey("value")):
            keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _check(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """The members' leaves by path, after a check that each is there and has its unit axis."""
    if not isinstance(groups, Groups):
        raise TypeError(f"expected Groups, got {type(groups).__name__}; detect's are in .groups")
    everything = leaves(tree)
    for member in itertools.chain.from_iterable(group.members for group in groups):
        if member.path not in everything:
            known = ", ".join(f"'{path}'" for path in list(everything)[:8]) or "no leaves at all"
            more = ", ..." if len(everything) > 8 else ""
            raise ValueError(
                f"leaf '{member.path}' of a group is not in the tree, which has {known}{more}; "
                "use the tree in which the groups were found"
            )
        leaf = everything[member.path]
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(f"leaf '{member.path}' must be an array of floats, got {dtype}")
        if member.axis is not None and member.axis >= jnp.ndim(leaf):
            raise ValueError(
                f"leaf '{member.path}' has rank {jnp.ndim(leaf)}, so it has no unit axis "
                f"{member.axis}; give an axis from 0 to {jnp.ndim(leaf) - 1}, or None"
            )
    found = {path: everything[path] for path in groups.paths}
    for group in groups:
        lengths = {
            m.path: jnp.shape(found[m.path])[m.axis] for m in group.members if m.axis is not None
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"the unit axes of group '{group.name}' differ in length ({lengths}); "
                "units are scaled index by index together"
            )
    return found


def _check_alike(groups: Groups, a: PyTree, b: PyTree) -> dict[str, Any]:
    """The members' leaves of `b`, after a check that they have the shapes of those of `a`."""
    shapes, found = (
        {path: leaf.shape for path, leaf in _check(groups, a).items()},
        _check(groups, b),
    )
    for path, leaf in found.items():
        if leaf.shape != shapes[path]:
            raise ValueError(
                f"leaf '{path}' has shape {shapes[path]} in one tree and {leaf.shape} in the other"
            )
    return found


def _sizes(groups: Groups, found: Mapping[str, Any]) -> list[int]:
    """The number of units of each group."""
    first = [group.members[0] for group in groups]
    return [1 if m.axis is None else jnp.shape(found[m.path])[m.axis] for m in first]


def _spread(groups: Groups, found: Mapping[str, Any], factors: Array) -> dict[str, Array]:
    """Each member's factors, in a shape that broadcasts against its leaf."""
    sizes = _sizes(groups, found)
    if jnp.shape(factors) != (sum(sizes),):
        raise ValueError(
            f"factors must have shape ({sum(sizes)},), one per unit, got {jnp.shape(factors)}"
        )
    starts = itertools.accumulate(sizes, initial=0)
    spread = {}
    for group, start, size in zip(groups, starts, sizes, strict=False):
        for member in group.members:
            shape = [1] * jnp.ndim(found[member.path])
            if member.axis is not None:
                shape[member.axis] = size
            spread[member.path] = factors[start : start + size].reshape(shape)
    return spread
