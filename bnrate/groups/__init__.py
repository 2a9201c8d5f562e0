"""Scale-invariant groups as values: which leaves scale together, and how finely.

A *group* is a set of leaves that the loss lets us multiply together by one c > 0.  Its *units* are
the finest pieces that may be scaled alone: the whole group, or each index of its unit axes (each
output channel of a kernel that BatchNorm follows; each channel of each layer of a stack of such
kernels).  What is in no group is the *rest*.

`Groups` says where the units are; it holds no arrays.  The functions here apply it to a tree of
parameters (or of gradients, or updates) and speak of all units at once, as one vector of shape
`(units,)`: group after group in the order of `Groups`, index after index of the unit axes.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.array([[3., 1.], [4., 0.]]), "bias": jnp.zeros(2)}}
    >>> groups = Groups([Group([Member("dense/kernel", axes=1)])])   # one unit per column
    >>> norm2(groups, params)
    Array([25.,  1.], dtype=float32)
    >>> labels(groups, params)
    {'dense': {'bias': 'rest', 'kernel': 'invariant'}}

A member may also be a part of a leaf, in a view of it.  Of queries, keys and values in one kernel,
the heads of the first two, if they are normalised, and no value:

    >>> params = {"qkv": jnp.ones((4, 3 * 2 * 5))}
    >>> one, two = ([(1, i, i + 1)] for i in (0, 1))
    >>> q, k = (Member("qkv", axes=2, shape=(4, 3, 2, 5), part=part) for part in (one, two))
    >>> units(Groups([Group([q]), Group([k])]), params)
    ('qkv[:, 0:1][0]', 'qkv[:, 0:1][1]', 'qkv[:, 1:2][0]', 'qkv[:, 1:2][1]')
"""

from bnrate.groups._json import from_json, to_json
from bnrate.groups._spheres import inner, norm2, rescale, tangent, unit_vectors
from bnrate.groups._splitting import (
    INVARIANT,
    REST,
    combine,
    dims,
    labels,
    matrices,
    members,
    rest,
    units,
)
from bnrate.groups._trees import leaves, replace
from bnrate.groups._values import Group, Groups, Member, Range

__all__ = [
    "INVARIANT",
    "REST",
    "Group",
    "Groups",
    "Member",
    "Range",
    "combine",
    "dims",
    "from_json",
    "inner",
    "labels",
    "leaves",
    "matrices",
    "members",
    "norm2",
    "replace",
    "rescale",
    "rest",
    "tangent",
    "to_json",
    "unit_vectors",
    "units",
]
