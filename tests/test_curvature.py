"""Curvature on the spheres against dense Hessians, explicit projections and NumPy's eigenvalues."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from test_losses import LOSSES, RATE_REST, nearby

from bnrate import curvature
from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member

ONE = Groups([Group([Member("w")])])
KEY = jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def spd(seed, size):
    a = normal(seed, size, size)
    return a @ a.T + jnp.eye(size)


class Case(NamedTuple):
    loss: object
    params: object
    groups: Groups


def rayleigh(dims):
    spectrum = jnp.linspace(-1.0, 2.0, dims)

    def loss(params):
        return jnp.sum(spectrum * params["w"] ** 2) / jnp.sum(params["w"] ** 2)

    return Case(loss, {"w": normal(dims, dims) * 3}, ONE)


def generalised_rayleigh():
    A, S = spd(1, 5) - 3 * jnp.eye(5), spd(2, 5)

    def loss(params):
        w = params["w"]
        return w @ A @ w / (w @ S @ w)

    return Case(loss, {"w": normal(3, 5)}, ONE)


def bn_least_squares():
    S, b = spd(4, 4), normal(5, 4)

    def loss(params):
        w, gamma = params["w"], params["gamma"]
        return gamma**2 - 2 * gamma * (b @ w) / jnp.sqrt(w @ S @ w) + 2.5

    return Case(loss, {"gamma": jnp.asarray(0.7), "w": 5 * normal(6, 4)}, ONE)


def two_blocks():
    A, M = spd(7, 3), normal(8, 3, 4)

    def loss(params):
        a = params["a"] / jnp.linalg.norm(params["a"])
        b = params["b"] / jnp.linalg.norm(params["b"])
        g = params["g"]
        return a @ A @ a + (a @ M @ b) * jnp.sin(g[0]) + jnp.sum(g**2) * b[0] + jnp.cos(g @ g)

    groups = Groups([Group([Member("b")]), Group([Member("a")])])
    return Case(loss, {"a": normal(9, 3), "b": 0.1 * normal(10, 4), "g": normal(11, 2)}, groups)


def normalised(h):
    return (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)


def network(activation=jax.nn.softplus):
    """Two layers with BatchNorm, each output a unit."""
    x, y = normal(12, 24, 3), normal(13, 24)

    def loss(params):
        h = activation(normalised(x @ params["first"]["kernel"]) + params["bias"][None])
        h = activation(normalised(h @ params["second"]))
        return jnp.mean((h @ params["head"] - y) ** 2)

    params = {"first": {"kernel": normal(14, 3, 4)}, "bias": normal(15, 4),
              "second": 7 * normal(16, 4, 2), "head": normal(17, 2)}  # fmt: skip
    units = [Group([Member("first/kernel", 1)]), Group([Member("second", 1)])]
    return Case(loss, params, Groups(units))


def joint():
    """Scales and biases that a later normalisation lets one scale together."""
    x, y, A = normal(18, 20, 3), normal(19, 20, 2), normal(20, 4, 2)

    def loss(params):
        h = normalised(x @ params["k"]) * params["scale"][None] + params["bias"][None]
        return jnp.mean((jnp.tanh(normalised(h @ A)) - y) ** 2)

    params = {"bias": normal(21, 4), "k": normal(22, 3, 4), "scale": normal(23, 4)}
    return Case(loss, params, Groups([Group([Member("scale"), Member("bias")]),
                                      Group([Member("k", 1)])]))  # fmt: skip


def stack():
    """Two layers in one leaf, each of their outputs a unit; two of four columns of another."""
    x, y = normal(25, 24, 2), normal(26, 24)

    def loss(params):
        h = x
        for kernel in params["layers"]:
            h = jnp.tanh(normalised(h @ kernel))
        mixed = (
            params["mixed"]
            / jnp.where(jnp.arange(4) < 2, jnp.linalg.norm(params["mixed"], axis=0), 1.0)[None]
        )
        return jnp.mean((jnp.sum(h @ mixed, 1) + jnp.tanh(params["shift"]) - y) ** 2)

    params = {"layers": normal(27, 2, 2, 2), "mixed": normal(28, 2, 4), "shift": normal(29, 1)}
    halves = Member("mixed", 2, shape=(2, 2, 2), part=[(1, 0, 1)])
    return Case(loss, params, Groups([Group([halves]), Group([Member("layers", (0, 2))])]))


def ungrouped():
    return two_blocks()._replace(groups=Groups())


def whole():
    found = network()
    return found._replace(groups=found.groups.whole())


def instance(name):
    """A loss of which much is known, parameters, and the data that define it."""
    problem = LOSSES[name]()
    of_init, of_point = jax.random.split(jax.random.key(3))
    params, data = problem.init(of_init)
    if name == "chain":  # elsewhere it is all but flat
        return problem, {"w": jnp.array([0.004, -0.003, 0.005, 1.0])}, data
    return problem, nearby(of_point, params), data


def known(name):
    problem, params, data = instance(name)
    return Case(lambda p: problem.mean(p, data), params, problem.groups)


CASES = {
    "circle": lambda: rayleigh(2),
    "rayleigh": lambda: rayleigh(6),
    "generalised": generalised_rayleigh,
    "least-squares": bn_least_squares,
    "two-blocks": two_blocks,
    "network": network,
    "whole": whole,
    "joint": joint,
    "stack": stack,
    "ungrouped": ungrouped,
    # Of the other known losses there are relatives above.
    **{
        f"known-{name}": functools.partial(known, name)
        for name in ("bn_halfspace", "chain", "coupled_blocks")
    },
}
every = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("known") else n for n in CASES],
)


def numbers(case):
    """For each unit the numbers of its entries in the flat parameters; those of the rest last."""
    flat, unravel = ravel_pytree(case.params)
    numbered = gr.leaves(unravel(jnp.arange(flat.size, dtype=flat.dtype)))
    numbered = {path: np.asarray(leaf, int) for path, leaf in numbered.items()}
    units = []
    for group in case.groups:
        parts = []
        for member in group.members:
            leaf = numbered[member.path]
            view = leaf if member.shape is None else leaf.reshape(member.shape)
            for axis, start, stop in member.part:
                view = np.take(view, range(start, stop), axis)
            size = np.prod([view.shape[axis] for axis in member.axes], dtype=int)
            first = range(len(member.axes))
            parts.append(np.moveaxis(view, member.axes, first).reshape(size, -1))
        units += list(np.concatenate(parts, 1))
    used = np.concatenate([*units, np.zeros(0, int)])
    return units, np.setdiff1d(np.arange(flat.size), used)


class Dense(NamedTuple):
    hessian: np.ndarray
    gradient: np.ndarray
    tangents: list  # of each unit, and of the rest: orthonormal columns
    ambients: list


@functools.cache
def dense(name):
    """Everything at unit norm, by brute force."""
    with jax.enable_x64(True):
        case = CASES[name]()
        units, rest = numbers(case)
        flat, unravel = ravel_pytree(case.params)
        v = np.array(flat)
        for unit in units:
            v[unit] /= np.linalg.norm(v[unit])
        at = lambda x: case.loss(unravel(x))  # noqa: E731
        H, D = jax.jit(lambda x: (jax.hessian(at)(x), jax.grad(at)(x)))(jnp.asarray(v))
    eye, tangents, ambients = np.eye(v.size), [], []
    for entries in [*units, rest]:
        ambients.append(eye[:, entries])
        radial = v[entries][:, None]
        kept = np.linalg.svd(radial)[0][:, 1:] if len(tangents) < len(units) else np.eye(rest.size)
        tangents.append(eye[:, entries] @ kept)
    return Dense(np.asarray(H), np.asarray(D), tangents, ambients)


def eigenvalues(name, which=slice(None)):
    found = dense(name)
    basis = np.concatenate(found.tangents[which], 1)
    return np.linalg.eigvalsh(basis.T @ found.hessian @ basis)


def run(measure, case, **options):
    """In a compiled program: step by step each operation would be compiled alone."""
    return jax.jit(lambda params: measure(case.loss, params, case.groups, **options))(case.params)


class Measured(NamedTuple):
    spectrum: curvature.Spectrum
    trace: curvature.Estimate
    blocks: curvature.Blocks


@functools.cache
def measured(name, spread=False):
    """What is found at the parameters, or with units that were scaled by random factors."""
    with jax.enable_x64(True):
        case = CASES[name]()
        factors = jnp.exp(3 * normal(24, len(gr.units(case.groups, case.params))))
        params = gr.rescale(case.groups, case.params, factors) if spread else case.params
        return program(name)(params)


@functools.cache
def program(name):
    case = CASES[name]()
    return jax.jit(
        lambda params: Measured(
            curvature.spectrum(case.loss, params, case.groups, key=KEY, iterations=100),
            curvature.trace(case.loss, params, case.groups),
            curvature.blocks(case.loss, params, case.groups, key=KEY),
        )
    )


@pytest.mark.usefixtures("float64")
@every
def test_the_ends_of_the_spectrum(name):
    found, expected = measured(name).spectrum, eigenvalues(name)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.lowest, expected[0], rtol=1e-8, atol=1e-9 * scale)
    np.testing.assert_allclose(found.highest, expected[-1], rtol=1e-8, atol=1e-9 * scale)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-6 * scale)


@pytest.mark.usefixtures("float64")
def test_a_rayleigh_quotient_in_closed_form():
    """Every second derivative along the sphere is 2 (lambda - f)."""
    spectrum = np.linspace(-1.0, 2.0, 6)
    case = rayleigh(6)._replace(params={"w": 4 * jnp.eye(6)[0]})
    found, trace, blocks = program("rayleigh")(case.params)
    expected = 2 * (spectrum[1:] + 1)
    np.testing.assert_allclose(found.lowest, expected[0], rtol=1e-12)  # not 0, the radial one
    np.testing.assert_allclose(found.highest, expected[-1], rtol=1e-12)
    np.testing.assert_allclose(trace.value, expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(blocks.tangent, [[6.0]], rtol=1e-12)
    np.testing.assert_allclose(blocks.gradient, [0.0], atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["two-blocks", "stack"])
def test_parts_of_the_parameters(name):
    case = CASES[name]()
    b, a = case.groups
    many, all_of = (2, 6) if name == "stack" else (1, 2)
    parts = {b: slice(many), a: slice(many, all_of), "invariant": slice(all_of)}
    parts["rest"] = slice(all_of, all_of + 1)

    def measure(loss, params, groups):
        return [
            (curvature.spectrum(loss, params, groups, key=KEY, part=part),
             curvature.trace(loss, params, groups, part=part))
            for part in parts
        ]  # fmt: skip

    for which, (found, trace) in zip(parts.values(), run(measure, case), strict=True):
        expected = eigenvalues(name, which)
        np.testing.assert_allclose(
            [found.lowest, found.highest], expected[[0, -1]], rtol=1e-7, atol=1e-14
        )
        np.testing.assert_allclose(trace.value, expected.sum(), rtol=1e-9)


@pytest.mark.usefixtures("float64")
@every
def test_the_norms_of_the_blocks(name):
    found, reference = measured(name).blocks, dense(name)
    m = len(reference.tangents) - 1

    def norm(left, right):
        return np.linalg.norm(left.T @ reference.hessian @ right, 2)

    tangent, ambient = (
        np.array([[norm(a, b) for b in bases[:m]] for a in bases[:m]]).reshape(m, m)
        for bases in (reference.tangents, reference.ambients)
    )
    rest = reference.ambients[m]
    has_rest = rest.shape[1] > 0
    tolerance = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(found.tangent, tangent, **tolerance)
    np.testing.assert_allclose(found.ambient, ambient, **tolerance)
    np.testing.assert_allclose(found.rest, norm(rest, rest) if has_rest else 0, **tolerance)
    mixed = [norm(a, rest) if has_rest else 0 for a in reference.tangents[:m]]
    np.testing.assert_allclose(found.mixed, mixed, **tolerance)
    gradient = [np.linalg.norm(a.T @ reference.gradient) for a in reference.ambients[:m]]
    np.testing.assert_allclose(found.gradient, gradient, **tolerance)


@pytest.mark.usefixtures("float64")
def test_ambient_and_tangent_norms_differ():
    """On the diagonal, by what D adds: H v = -D."""
    found = measured("least-squares").blocks
    assert found.ambient[0, 0] > 1.01 * found.tangent[0, 0]
    assert found.ambient[0, 0] > found.gradient[0]


@pytest.mark.usefixtures("float64")
@every
def test_the_trace(name):
    exact, expected = measured(name).trace, eigenvalues(name).sum()
    np.testing.assert_allclose(exact.value, expected, rtol=1e-8, atol=1e-9)
    assert exact.error == 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["rayleigh", "joint"])
def test_the_estimate_of_the_trace_has_the_error_it_says(name):
    case, expected = CASES[name](), eigenvalues(name).sum()
    estimate = jax.jit(lambda key: curvature.trace(*case, key=key, samples=30))
    found = jax.lax.map(estimate, jax.random.split(KEY, 40))
    off = np.asarray((found.value - expected) / found.error)
    assert np.all(np.asarray(found.error) > 0)
    assert abs(off.mean()) < 0.6  # 0 to within 1 / sqrt(40), times 3.8
    assert 0.6 < off.std() < 1.6


@pytest.mark.usefixtures("float64")
@every
def test_the_scale_of_units_does_not_matter(name):
    """At all where there are no units."""
    here, there = jax.tree.leaves(measured(name)), jax.tree.leaves(measured(name, spread=True))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_without_groups_the_scale_of_units_does_matter():
    case = rayleigh(6)._replace(groups=Groups())
    longer = case._replace(params={"w": 10 * case.params["w"]})
    here = run(curvature.spectrum, case, key=KEY)
    there = run(curvature.spectrum, longer, key=KEY)
    np.testing.assert_allclose(here.highest, 100 * there.highest, rtol=1e-9)
    np.testing.assert_allclose(here.lowest, 100 * there.lowest, rtol=1e-9)


@functools.partial(jax.jit, static_argnums=(2, 3))
def spectrum_of_rayleigh(params, key, dims, iterations):
    return curvature.spectrum(rayleigh(dims).loss, params, ONE, key=key, iterations=iterations)


@pytest.mark.usefixtures("float64")
@settings(deadline=None, max_examples=30)
@given(iterations=st.sampled_from([1, 3, 12]), seed=st.integers(0))
def test_what_is_found_lies_inside_the_spectrum(iterations, seed):
    dims, seed = 7, seed % 2**31
    case = rayleigh(dims)._replace(params={"w": normal(seed, dims)})
    v = np.asarray(case.params["w"] / jnp.linalg.norm(case.params["w"]))
    lambdas = np.linspace(-1.0, 2.0, dims)
    H = 2 * (np.diag(lambdas) - v @ np.diag(lambdas) @ v * np.eye(dims))
    basis = np.linalg.svd(v[:, None])[0][:, 1:]
    expected = np.linalg.eigvalsh(basis.T @ H @ basis)
    found = spectrum_of_rayleigh(case.params, jax.random.key(seed), dims, iterations)
    assert found.lowest >= expected[0] - 1e-12
    assert found.highest <= expected[-1] + 1e-12
    for value, residual in zip(found[:2], found.residuals, strict=True):
        assert np.abs(expected - value).min() <= residual + 1e-10


def test_float32_is_kept_and_programs_agree_with_single_operations():
    case = rayleigh(4)
    measure = functools.partial(curvature.trace, key=KEY, samples=3)
    for a, b in zip(measure(*case), run(measure, case), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


SCALES = (1e-30, 1e-22, 1e-11, 1.0, 1e10, 1e20, 1e35)


class TestScales:
    """In float32, though squares of what is found are no numbers there."""

    def test_of_a_loss_without_units(self):
        curvatures = jnp.linspace(1.0, 3.0, 8)

        @jax.jit
        def measure(scale):
            loss = lambda params: scale * jnp.sum(curvatures * params["x"] ** 2) / 2  # noqa: E731
            case = loss, {"x": jnp.ones(8)}, Groups()
            return curvature.spectrum(*case, key=KEY), curvature.blocks(*case, key=KEY)

        for scale in SCALES:
            spectrum, blocks = measure(jnp.float32(scale))
            assert blocks.rest.dtype == spectrum.lowest.dtype == jnp.float32
            np.testing.assert_allclose(
                [spectrum.lowest / scale, spectrum.highest / scale], [1, 3], rtol=1e-5
            )
            off = spectrum.residuals / scale
            assert 1e-7 < off.min() <= off.max() < 1e-4
            np.testing.assert_allclose(blocks.rest / scale, 3, rtol=1e-5)

    def test_of_all_blocks(self):
        case = bn_least_squares()

        @jax.jit
        def measure(scale):
            loss = lambda params: scale * case.loss(params)  # noqa: E731
            return curvature.blocks(loss, case.params, case.groups, key=KEY)

        expected = measure(jnp.float32(1))
        for scale in SCALES:
            for a, b in zip(measure(jnp.float32(scale)), expected, strict=True):
                np.testing.assert_allclose(a / scale, b, rtol=1e-4, atol=1e-5)

    def test_of_a_step(self):
        case = rayleigh(3)

        def loss(params):
            return jnp.float32(1e-25) * case.loss(params)

        ends = [
            curvature.joining_curve(f, case.params, ONE, rate, 0.1)(1.0)["w"]
            for f, rate in ((loss, 1e25), (case.loss, 1.0))
        ]
        np.testing.assert_allclose(*ends, rtol=1e-5)
        assert np.abs(ends[0] - curvature.on_spheres(case.params, ONE)["w"]).max() > 1e-2


def test_an_empty_leaf_is_no_rest():
    case = rayleigh(4)
    loss = lambda params: case.loss(params) + jnp.sum(params["none"])  # noqa: E731
    found = run(curvature.blocks, Case(loss, {**case.params, "none": jnp.zeros(0)}, ONE), key=KEY)
    assert np.all(np.isfinite(found.tangent))
    np.testing.assert_array_equal(found.mixed, [0])
    assert found.rest == 0


@pytest.mark.usefixtures("float64")
def test_instances_are_mapped():
    case = two_blocks()
    many = jax.tree.map(lambda leaf: jnp.stack([leaf**2, 1.1 * leaf, leaf]), case.params)

    def measure(params):
        return curvature.blocks(case.loss, params, case.groups, key=KEY)

    found = jax.jit(jax.vmap(measure))(many)
    for a, b in zip(found, measured("two-blocks").blocks, strict=True):
        np.testing.assert_allclose(a[2], b, rtol=1e-9, atol=1e-12)


class TestCurves:
    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("name", ["circle", "two-blocks", "joint"])
    def test_the_ends_are_those_of_a_step(self, name):
        case = CASES[name]()

        @jax.jit
        def both(rate):
            curve = curvature.joining_curve(*case, rate, 0.1)
            grads = jax.grad(case.loss)(case.params)
            whole = jax.tree.map(lambda w, g: w - rate * g, case.params, grads)
            flat = jax.tree.map(lambda w, g: w - 0.1 * g, case.params, grads)
            step = gr.combine(case.groups, gr.unit_vectors(case.groups, whole), flat)
            start = gr.unit_vectors(case.groups, case.params)
            return jax.vmap(curve)(jnp.array([0.0, 1.0])), jax.tree.map(
                lambda a, b: jnp.stack([a, b]), start, step
            )

        for rate in (1e-3, 1.0, 1e3):
            found, expected = both(rate)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)

    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("name", ["rayleigh", "two-blocks", "joint"])
    def test_units_keep_their_norm_and_speed(self, name):
        case = CASES[name]()
        s = jnp.linspace(0.0, 1.0, 5)

        @jax.jit
        @jax.vmap
        def moving(s):
            curve = curvature.joining_curve(*case, 2.0, 0.1)
            return jax.jvp(curve, (s,), (jnp.ones_like(s),))

        points, speeds = moving(s)
        norm2 = jax.vmap(functools.partial(gr.norm2, case.groups))
        np.testing.assert_allclose(norm2(points), 1, rtol=1e-12)
        at_start = norm2(speeds)[:1]
        np.testing.assert_allclose(norm2(speeds), np.tile(at_start, (5, 1)), rtol=1e-10)
        assert at_start.min() > 0

    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("name", ["rayleigh", "two-blocks", "joint"])
    def test_the_loss_bends_along_it_by_the_hessian(self, name):
        """No part of the gradient is in it: great circles accelerate along v, and <D, v> = 0."""
        case, reference = CASES[name](), dense(name)

        @jax.jit
        def at(s):
            curve = curvature.joining_curve(*case, 2.0, 0.1)
            velocity = jax.jvp(curve, (s,), (jnp.ones_like(s),))[1]
            return jax.grad(jax.grad(lambda s: case.loss(curve(s))))(s), ravel_pytree(velocity)[0]

        bend, velocity = at(jnp.asarray(0.0))
        np.testing.assert_allclose(bend, velocity @ reference.hessian @ velocity, rtol=1e-8)

    @pytest.mark.usefixtures("float64")
    def test_the_largest_along_a_curve_is_below_the_constants(self):
        """Of a Rayleigh quotient, of range 3: second derivatives of 6 and gradients of 3."""
        case = rayleigh(6)

        def measure(loss, params, groups):
            curve = curvature.joining_curve(loss, params, groups, 5.0, 0.0)
            return curvature.along(curve, lambda p: curvature.blocks(loss, p, groups, key=KEY))

        found, here = run(measure, case), measured("rayleigh").blocks
        assert found.tangent.shape == (5, 1, 1)
        np.testing.assert_allclose(found.tangent[0], here.tangent, rtol=1e-9)
        assert 3.0 < found.tangent.max() <= 6.0
        assert found.gradient.max() <= 3.0

    @pytest.mark.slow
    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize(
        "name",
        [
            "generalized_rayleigh",
            "noisy_rayleigh",
            "bn_least_squares-bias",
            "coupled_blocks",
            "chain",
        ],
    )
    def test_nothing_on_it_is_above_the_constants_of_a_known_loss(self, name):
        """What is found is below, however long the step."""
        problem, params, data = instance(name)
        constants = problem.constants(params, data, jnp.asarray(RATE_REST, float))

        def measure(rate):
            loss = lambda p: problem.mean(p, data)  # noqa: E731
            curve = curvature.joining_curve(loss, params, problem.groups, rate, RATE_REST)
            return curvature.along(
                curve, lambda p: curvature.blocks(loss, p, problem.groups, key=KEY)
            )

        found = jax.jit(jax.vmap(measure))(jnp.array([1e-2, 1.0, 1e2]))
        for field in found._fields:
            bound = np.asarray(getattr(constants, field))
            assert np.all(np.asarray(getattr(found, field)) <= bound * (1 + 1e-9) + 1e-12), field

    def test_python_numbers_are_points_of_it(self):
        @jax.jit
        def points():
            curve = curvature.joining_curve(*rayleigh(4), 2.0, 0.1)
            return [curve(s)["w"] for s in (1.0, 1, jnp.ones(()))]

        expected = points()[-1]
        for found in points():
            np.testing.assert_array_equal(found, expected)

    def test_a_stationary_point_stays(self):
        case = rayleigh(3)._replace(params={"w": jnp.array([2.0, 0.0, 0.0])})
        curve = curvature.joining_curve(*case, 1.0, 0.1)
        np.testing.assert_array_equal(curve(jnp.float32(0.7))["w"], [1.0, 0.0, 0.0])


def bad(params=None, loss=None, groups=ONE, **options):
    w = {"w": jnp.ones(3)} if params is None else params
    return lambda: curvature.spectrum(loss or rayleigh(3).loss, w, groups, key=KEY, **options)


BAD = {
    "zero": (bad({"w": jnp.zeros(3)}), "unit 'w' has squared norm 0"),
    "one entry": (bad({"w": jnp.ones(1)}), "unit 'w' has 1 entry"),
    "nan": (bad({"w": jnp.array([1.0, jnp.nan, 0.0])}), "leaf 'w' must be finite"),
    "nan in the rest": (bad({"w": jnp.ones(3), "g": jnp.inf * jnp.ones(1)}), "leaf 'g' must be"),
    "integers": (bad({"w": jnp.ones(3), "g": jnp.ones(2, int)}), "array of floats, got int32"),
    "half precision": (
        bad({"w": jnp.ones(3, jnp.bfloat16)}),
        "leaf 'w' must be float32 or wider, got bfloat16, .*cast the parameters",
    ),
    "half precision in the rest": (
        bad({"w": jnp.ones(3), "g": jnp.ones(2, jnp.float16)}),
        "leaf 'g' must be float32 or wider, got float16",
    ),
    "huge": (bad({"w": 1e30 * jnp.ones(3)}), "squared norm inf"),
    "a vector": (bad(loss=lambda params: params["w"]), "one number of a float dtype"),
    "an integer": (bad(loss=lambda params: jnp.ones((), int)), "one number of a float dtype"),
    "two": (bad(loss=lambda params: (jnp.ones(()), {})), "one number of a float dtype"),
    "no iterations": (bad(iterations=0), "at least 1 iteration"),
    "no rest": (bad(part="rest"), "no parameters in the part 'rest'"),
    "no such part": (bad(part="biases"), "part must be None, 'invariant', 'rest'"),
    "other group": (bad(part=Group([Member("g")])), r"one of the groups \('w'\)"),
    "no key": (lambda: curvature.trace(*rayleigh(3), samples=5), "no key"),
    "one sample": (lambda: curvature.trace(*rayleigh(3), key=KEY, samples=1), "got 1 and a key"),
    "no block iterations": (
        lambda: curvature.blocks(*rayleigh(3), key=KEY, iterations=0),
        "at least 1 iteration",
    ),
    "rates": (
        lambda: curvature.joining_curve(*rayleigh(3), jnp.ones(2), 0.1),
        r"rate must be one number, got shape \(2,\)",
    ),
    "rates of the rest": (
        lambda: curvature.joining_curve(*rayleigh(3), 1.0, jnp.ones(1)),
        r"rate_rest must be one number, got shape \(1,\)",
    ),
    "negative rate": (
        lambda: curvature.joining_curve(*rayleigh(3), -1.0, 0.1),
        r"rate must lie in \[0, inf\)",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_in_a_program_bad_numbers_become_nan():
    loss = rayleigh(3).loss

    @jax.jit
    def measure(w):
        case = loss, {"w": w}, ONE
        blocks = curvature.blocks(*case, key=KEY)
        return (curvature.spectrum(*case, key=KEY), blocks.tangent, blocks.ambient,
                curvature.trace(*case).value)  # fmt: skip

    for w in ([0.0, 0, 0], [1.0, np.nan, 0], [np.inf, 1, 1]):
        for leaf in jax.tree.leaves(measure(jnp.array(w))):
            assert np.all(np.isnan(leaf))


def test_a_unit_without_a_direction_has_no_curvature_though_the_loss_has():
    loss = lambda params: jnp.sum(params["w"] ** 2)  # noqa: E731
    found = run(curvature.spectrum, Case(loss, {"w": jnp.zeros(3)}, ONE), key=KEY)
    assert np.all(np.isnan([found.lowest, found.highest]))


def test_a_loss_that_is_nan_has_no_curvature():
    loss = lambda params: jnp.nan * jnp.sum(params["w"] ** 3)  # noqa: E731
    found = run(curvature.spectrum, Case(loss, {"w": jnp.ones(3)}, ONE), key=KEY)
    assert np.all(np.isnan(found.residuals))
    assert np.all(np.isnan([found.lowest, found.highest]))
