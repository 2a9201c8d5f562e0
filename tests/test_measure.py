import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import groups as gr
from bnrate import measure
from bnrate.groups import Group, Groups, Member

# By columns; two leaves jointly; by layer and channel; two of the three thirds of a leaf jointly.
GROUPS = Groups(
    [
        Group([Member("k", 1)]),
        Group([Member("s"), Member("b")]),
        Group([Member("stack", (0, 2))]),
        Group(Member("qkv", 2, (3, 3, 2), [(1, i, i + 1)]) for i in (0, 2)),
    ]
)
RATE = jnp.float32(0.3)
SHAPES = {"k": (3, 2), "s": (4,), "b": (4,), "head": (5,), "stack": (2, 4, 3), "qkv": (3, 6)}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in SHAPES.items()}


def vectors(t):
    t = jax.tree.map(lambda x: np.asarray(x, np.float64), t)
    return [
        *t["k"].T,
        np.concatenate([t["s"], t["b"]]),
        *(layer[:, i] for layer in t["stack"] for i in range(3)),
        *(t["qkv"][:, [i, 4 + i]].ravel() for i in range(2)),
    ]


def rest(t):
    return np.concatenate([np.asarray(t["head"]), np.asarray(t["qkv"][:, 2:4]).ravel()])


def sgd(grads):
    return jax.tree.map(lambda g: -RATE * g, grads)


def test_against_numpy():
    params, grads = tree(0), tree(1)
    got = measure.on_spheres(GROUPS, params, grads, sgd(grads), RATE)
    assert set(got) == set(measure.DIMS)
    W, D = vectors(params), vectors(grads)
    G = np.array([w @ w for w in W])
    spherical = np.array([np.linalg.norm(w) * np.linalg.norm(d) for w, d in zip(W, D, strict=True)])
    stepped = [w - 0.3 * d for w, d in zip(W, D, strict=True)]
    cosines = [
        w @ v / np.linalg.norm(w) / np.linalg.norm(v) for w, v in zip(W, stepped, strict=True)
    ]
    np.testing.assert_allclose(got["norm2"], G, rtol=1e-5)
    np.testing.assert_allclose(got["effective_rate"], 0.3 / G, rtol=1e-5)
    np.testing.assert_allclose(got["spherical_gradient"], spherical, rtol=1e-5)
    np.testing.assert_allclose(got["angle"], np.arccos(cosines), rtol=1e-4)
    whole = np.sqrt((spherical**2).sum() + np.sum(rest(grads) ** 2))
    np.testing.assert_allclose(got["spherical_gradient_whole"], whole, rtol=1e-5)
    np.testing.assert_allclose(got["rest_gradient"], np.linalg.norm(rest(grads)), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0])
def test_small_angles_keep_their_digits(size):
    """In float32 the arc cosine of 1 - 5e-15 is 0."""
    params = tree(0)
    across = gr.tangent(GROUPS, params, tree(1))
    updates = jax.tree.map(lambda u: size * u, across)
    got = measure.on_spheres(GROUPS, params, across, updates, RATE)["angle"]
    W, U = vectors(params), vectors(updates)
    expected = [np.arctan(np.linalg.norm(u) / np.linalg.norm(w)) for w, u in zip(W, U, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_tiny_and_huge_units_are_measured(size):
    """The squares of their products would leave float32."""
    groups = Groups([Group([Member("w")])])
    params, updates = {"w": jnp.array([size, 0.0])}, {"w": jnp.array([0.0, 0.1 * size])}
    got = measure.on_spheres(groups, params, params, updates, RATE)
    np.testing.assert_allclose(got["angle"], [np.arctan(0.1)], rtol=1e-5)
    np.testing.assert_allclose(got["spherical_gradient"], [size**2], rtol=1e-5)


def test_a_rest_in_half_precision():
    half = {name: leaf.astype(jnp.bfloat16) for name, leaf in tree(0).items()}
    got = measure.on_spheres(GROUPS, half, half, half, RATE)
    assert got["spherical_gradient_whole"].dtype == got["rest_gradient"].dtype == jnp.float32


def test_angle_past_a_right_one():
    params = {"w": jnp.array([1.0, 0.0])}
    groups = Groups([Group([Member("w")])])
    updates = {"w": jnp.array([-3.0, 0.0])}
    angle = measure.on_spheres(groups, params, params, updates, RATE)["angle"]
    np.testing.assert_allclose(angle, [np.pi], rtol=1e-6)


def test_spherical_gradient_does_not_see_the_norm():
    """Gradient degree -1: w -> c w, grad -> grad / c."""
    params, grads = tree(0), tree(1)
    c = jnp.array([0.1, 3.0, 50.0, 1e-2, 1e2, 7.0, 1.0, 0.2, 0.3, 4.0, 5.0])
    here = measure.on_spheres(GROUPS, params, grads, sgd(grads), RATE)
    scaled = gr.rescale(GROUPS, params, c), gr.rescale(GROUPS, grads, 1 / c)
    there = measure.on_spheres(GROUPS, *scaled, sgd(grads), RATE)
    np.testing.assert_allclose(here["spherical_gradient"], there["spherical_gradient"], rtol=1e-5)
    np.testing.assert_allclose(here["norm2"] * c**2, there["norm2"], rtol=1e-5)


def test_without_groups_the_whole_is_the_gradient():
    params, grads = tree(0), tree(1)
    got = measure.on_spheres(Groups(), params, grads, sgd(grads), RATE)
    assert got["norm2"].shape == (0,)
    everything = np.concatenate([np.asarray(g).ravel() for g in grads.values()])
    np.testing.assert_allclose(
        got["spherical_gradient_whole"], np.linalg.norm(everything), rtol=1e-6
    )


def test_everything_in_groups_leaves_no_rest():
    params = {"w": jnp.array([3.0, 4.0])}
    got = measure.on_spheres(Groups([Group([Member("w")])]), params, params, params, RATE)
    np.testing.assert_allclose(got["spherical_gradient_whole"], 25.0, rtol=1e-6)
    assert got["rest_gradient"] == 0
