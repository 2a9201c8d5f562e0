"""What the numeric witness does to units in numpy, against what groups do in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member
from bnrate.invariance import _moves

RNG = np.random.default_rng(0)
TREE = {"a": RNG.standard_normal((2, 3, 4)), "b": RNG.standard_normal((3, 2)), "c": np.array(2.0)}
GROUPS = {
    "whole": Group([Member("a")]),
    "a scalar": Group([Member("c")]),
    "one axis": Group([Member("a", 1)]),
    "two axes": Group([Member("a", (0, 2))]),
    "axes in another order": Group([Member("a", (2, 0))]),
    "jointly, in another order": Group([Member("a", (1, 0)), Member("b", (0, 1))]),
    "a view": Group([Member("a", 1, shape=(6, 2, 2))]),
    "a part": Group([Member("a", 2, part=[(1, 1, 3)])]),
    "a part of a view": Group([Member("a", (0, 2), shape=(6, 2, 2), part=[(0, 2, 5)])]),
    "two parts together": Group(
        [Member("a", part=[(0, 0, 1)]), Member("a", part=[(0, 1, 2), (1, 0, 1)])]
    ),
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_agrees_with_groups(group, float64):
    tree, groups = jax.tree.map(jnp.asarray, TREE), Groups([group])
    norm2 = gr.norm2(groups, tree)
    np.testing.assert_allclose(_moves.norms(group, tree) ** 2, norm2, rtol=1e-12)
    factors = np.exp(RNG.standard_normal(len(norm2)))
    expected = gr.rescale(groups, tree, jnp.asarray(factors))
    for one, two in zip(
        jax.tree.leaves(_moves.rescale(group, tree, factors)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_displacements_are_as_long_as_asked(group, float64):
    tree, groups = jax.tree.map(jnp.asarray, TREE), Groups([group])
    distances = 1.0 + np.arange(len(gr.norm2(groups, tree)))
    far = _moves.displace(group, tree, distances, np.random.default_rng(0))
    step = jax.tree.map(jnp.subtract, far, tree)
    np.testing.assert_allclose(gr.norm2(groups, step), distances**2, rtol=1e-12)
    assert all(not np.any(leaf) for leaf in gr.rest(groups, step).values())


def test_dtypes_stay():
    tree = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(2)}
    moved = _moves.rescale(Group([Member("a", 0)]), tree, np.array([2.0, 3.0]))
    assert moved["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved["a"][:, 0], jnp.asarray([2, 3], jnp.bfloat16))
