"""The leaves of a tree by path."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree


def leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order.

    Raises:
      ValueError: two leaves have one path (a key holds a "/").
    """
    pairs = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [path for path, times in Counter(path for path, _ in pairs).items() if times > 1]
        raise ValueError(f"several leaves have the path '{twice[0]}'; keys must not hold a '/'")
    return found


def replace(tree: PyTree, new: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves at some paths.

    Raises:
      ValueError: the tree has no leaf at one of them.
    """
    unknown = set(new) - set(leaves(tree))
    if unknown:
        raise ValueError(f"the tree has no leaf '{min(unknown)}' to replace")
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: new.get(path_of(keys), leaf), tree)


def path_of(keys: Any) -> str:
    """A path of keys as users write it."""
    # A flax nnx.State holds each array in a Variable; users write "conv/kernel" for its value.
    match keys:
        case (*_, jax.tree_util.DictKey(), jax.tree_util.GetAttrKey("value")):
            keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")
