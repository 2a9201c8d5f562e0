"""Probes along the gradient against NumPy, their scale, and what tells a kink from a bend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import curvature
from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member

UNITS = Groups([Group([Member("kernel", 1)])])
KEY = jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def network(activation=jax.nn.softplus, seed=0, width=8):
    """Loss, parameters and groups of a layer with BatchNorm, an activation and a linear output."""
    x, y = normal(seed, 64, 5), normal(seed + 1000, 64)

    def loss(params):
        h = x @ params["kernel"]
        h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
        return jnp.mean((activation(h + params["bias"][None]) @ params["head"] - y) ** 2)

    params = {"kernel": normal(seed + 1, 5, width), "bias": 0.1 * normal(seed + 2, width),
              "head": normal(seed + 3, width) / width**0.5}  # fmt: skip
    return loss, params, UNITS


def probe(loss, params, groups, rate=0.1, **options):
    measure = jax.jit(lambda p: curvature.probe(loss, p, groups, rate, **options))
    return measure(params)


def unit(w):
    return w / np.linalg.norm(w)


@pytest.mark.usefixtures("float64")
def test_straight_steps_against_numpy():
    """As published: the loss and the gradient at w - s grad."""
    A, b = np.diag([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0])
    loss = lambda p: p["w"] @ A @ p["w"] / 2 + jnp.sum(jnp.sin(p["w"] * b))  # noqa: E731
    grad = lambda w: A @ w + b * np.cos(w * b)  # noqa: E731
    w = np.array([0.3, -0.7, 1.1])
    found = probe(loss, {"w": jnp.asarray(w)}, Groups(), 0.2)
    sizes = 0.2 * np.array(curvature.MULTIPLES)
    moved = [w - s * grad(w) for s in sizes]
    change = np.array([np.linalg.norm(grad(m) - grad(w)) for m in moved])
    np.testing.assert_allclose(found.step, sizes, rtol=1e-12)
    np.testing.assert_allclose(found.loss, [loss({"w": m}) for m in moved], rtol=1e-12)
    np.testing.assert_allclose(found.gradient_change, change, rtol=1e-12)
    smoothness = (change / (sizes * np.linalg.norm(grad(w)))).max()
    np.testing.assert_allclose(found.smoothness, smoothness, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_steps_on_a_sphere_against_numpy():
    """The gradient is carried along the great circle by the rotation of the plane it lies in."""
    A = np.array([[0.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 3.0]])
    loss = lambda p: p["w"] @ A @ p["w"] / (p["w"] @ p["w"])  # noqa: E731
    gradient = lambda v: 2 * (A @ v - (v @ A @ v) * v)  # noqa: E731
    w = np.array([3.0, 4.0, -5.0])
    v, D = unit(w), gradient(unit(w))
    along, changes, losses = unit(-D), [], []
    sizes = np.array([0.1, 0.5, 2.0])
    for s in sizes:
        angle = s * np.linalg.norm(D)
        turn = (
            np.eye(3)
            + np.sin(angle) * (np.outer(along, v) - np.outer(v, along))
            + (np.cos(angle) - 1) * (np.outer(v, v) + np.outer(along, along))
        )
        losses.append((turn @ v) @ A @ (turn @ v))
        changes.append(np.linalg.norm(gradient(turn @ v) - turn @ D))
    groups = Groups([Group([Member("w")])])
    found = probe(loss, {"w": jnp.asarray(w)}, groups, 1.0, multiples=tuple(sizes))
    np.testing.assert_allclose(found.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(found.gradient_change, changes, rtol=1e-11)
    smoothness = np.max(changes / (sizes * np.linalg.norm(D)))
    np.testing.assert_allclose(found.smoothness, smoothness, rtol=1e-11)


@pytest.mark.usefixtures("float64")
def test_short_steps_find_the_second_derivative_along_the_gradient():
    loss, params, groups = network()
    for with_groups in (Groups(), groups):
        found = probe(loss, params, with_groups, 1e-6)
        point = curvature.on_spheres(params, with_groups)
        product = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (jax.grad(loss)(p),)))
        D, HD = product(point)
        HD = gr.tangent(with_groups, point, HD)
        norm = lambda t: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(t)))  # noqa: E731
        np.testing.assert_allclose(found.smoothness, norm(HD) / norm(D), rtol=1e-4)


@pytest.mark.usefixtures("float64")
def test_on_spheres_it_does_not_see_the_scale():
    loss, params, groups = network()
    spread = gr.rescale(groups, params, jnp.exp(3 * normal(5, params["kernel"].shape[1])))
    for a, b in zip(probe(loss, params, groups), probe(loss, spread, groups), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)


@pytest.mark.usefixtures("float64")
def test_in_the_weights_it_does():
    """Lengths of 10 w are ten times those of w, gradients a tenth: smoothness a hundredth."""
    loss, w, _ = network()
    of_kernel = lambda kernel: loss({**w, "kernel": kernel})  # noqa: E731
    here = probe(of_kernel, w["kernel"], Groups(), 0.1)
    there = probe(of_kernel, 10 * w["kernel"], Groups(), 0.1)
    assert np.all(np.abs(here.loss - there.loss) > 1e-3)
    assert here.smoothness > 10 * there.smoothness
    matched = probe(of_kernel, 10 * w["kernel"], Groups(), 10.0)
    np.testing.assert_allclose(matched.loss, here.loss, rtol=1e-10)
    np.testing.assert_allclose(matched.gradient_change, here.gradient_change / 10, rtol=1e-9)
    np.testing.assert_allclose(matched.smoothness, here.smoothness / 100, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_smoothness_of_a_rayleigh_quotient_is_below_its_constant():
    """Second derivatives on the sphere are at most twice the range of the spectrum, here 3."""
    loss = lambda p: jnp.sum(jnp.linspace(0.0, 3.0, 5) * p["w"] ** 2) / jnp.sum(p["w"] ** 2)  # noqa: E731
    groups = Groups([Group([Member("w")])])
    measure = jax.jit(lambda p: curvature.probe(loss, p, groups, 1.0).smoothness)
    found = [float(measure({"w": normal(seed, 5)})) for seed in range(20)]
    assert max(found) <= 6.0
    assert max(found) > 2.0


def test_a_stationary_point_has_smoothness_zero_and_float32_is_kept():
    loss = lambda p: jnp.sum(p["w"] ** 2)  # noqa: E731
    found = probe(loss, {"w": jnp.zeros(3)}, Groups())
    assert found.smoothness == 0
    assert {leaf.dtype for leaf in found} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_in_float32_tiny_and_huge_losses_are_measured_as_others(scale):
    loss, params, groups = network()
    expected = probe(loss, params, groups)
    found = probe(lambda p: jnp.float32(scale) * loss(p), params, groups, 0.1 / scale)
    np.testing.assert_allclose(found.smoothness / scale, expected.smoothness, rtol=1e-4)
    np.testing.assert_allclose(found.gradient_change / scale, expected.gradient_change, rtol=1e-4)


def test_nan_stays_nan():
    found = probe(lambda p: jnp.nan * jnp.sum(p["w"] ** 2), {"w": jnp.ones(3)}, Groups())
    assert np.isnan(found.smoothness)
    assert np.all(np.isnan(found.gradient_change))


@functools.cache
def residuals(activation, seeds=20, **options):
    """The largest residual over the segments, for each seed."""
    with jax.enable_x64(True):
        loss, params, groups = network(activation)

        def largest(seed):
            keys = jax.random.split(jax.random.fold_in(KEY, seed), 4)
            drawn = jax.tree.map(
                lambda leaf, key: jax.random.normal(key, leaf.shape, leaf.dtype),
                params,
                dict(zip(params, keys, strict=False)),
            )
            found = curvature.smoothness_residual(loss, drawn, groups, key=keys[3], **options)
            return jnp.max(found)

        return np.asarray(jax.jit(lambda: jax.lax.map(largest, jnp.arange(seeds)))())


SMOOTH = {"softplus": jax.nn.softplus, "tanh": jnp.tanh, "gelu": jax.nn.gelu, "silu": jax.nn.silu,
          "linear": lambda h: h}  # fmt: skip
KINKED = {"relu": jax.nn.relu, "leaky": jax.nn.leaky_relu, "abs": jnp.abs, "relu6": jax.nn.relu6}
BENT = {"elu": jax.nn.elu, "squared-relu": lambda h: jax.nn.relu(h) ** 2}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_leave_rounding(name):
    assert residuals(SMOOTH[name]).max() < 1e-12


@pytest.mark.parametrize("name", KINKED)
def test_kinks_leave_much_more(name):
    assert residuals(KINKED[name]).min() > 0.1


@pytest.mark.parametrize("name", BENT)
def test_jumps_of_the_second_derivative_lie_between(name):
    found = residuals(BENT[name])
    assert found.min() > 1e-5
    assert found.max() < 0.05


def test_in_float32_too():
    loss, params, groups = network(jax.nn.softplus)
    kinked, _, _ = network(jax.nn.relu)
    measure = jax.jit(curvature.smoothness_residual, static_argnums=(0, 2))
    smooth = measure(loss, params, groups, key=KEY)
    assert smooth.dtype == jnp.float32
    assert smooth.max() < 1e-4
    assert measure(kinked, params, groups, key=KEY).max() > 0.01


def test_gradients_that_never_change_leave_nothing():
    for loss in (lambda p: jnp.sum(p["w"]), lambda p: jnp.zeros(())):
        found = curvature.smoothness_residual(loss, {"w": normal(0, 3)}, Groups(), key=KEY)
        assert found.max() < 1e-3


def test_a_nan_is_no_evidence_of_smoothness():
    loss = lambda p: jnp.nan * jnp.sum(p["w"] ** 2)  # noqa: E731
    found = curvature.smoothness_residual(loss, {"w": jnp.ones(3)}, Groups(), key=KEY)
    assert np.all(np.isnan(found))


def residual(**options):
    loss, params, groups = network()
    return lambda: curvature.smoothness_residual(loss, params, groups, key=KEY, **options)


BAD = {
    "length": (residual(length=0.0), "length must be positive"),
    "segments": (residual(segments=0), "segments and nodes at least 1, got 0.1, 0"),
    "nodes": (residual(nodes=0), "segments and nodes at least 1"),
    "rate": (lambda: curvature.probe(*network(), 0.0), r"rate must lie in \(0, inf\)"),
    "rates": (
        lambda: curvature.probe(*network(), jnp.ones(2)),
        r"rate must be one number, got shape \(2,\)",
    ),
    "no multiples": (lambda: curvature.probe(*network(), 1.0, ()), "at least one number"),
    "multiples": (lambda: curvature.probe(*network(), 1.0, (1.0, -1.0)), "multiples must lie in"),
    "vector": (
        lambda: curvature.probe(lambda p: p["w"], {"w": jnp.ones(2)}, Groups(), 1.0),
        "one number",
    ),
    "zero": (
        lambda: curvature.probe(
            network()[0], jax.tree.map(jnp.zeros_like, network()[1]), UNITS, 1.0
        ),
        r"unit 'kernel\[0\]' has squared norm 0",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call()
