"""Constants from both sides: no derivative exceeds them, and named instances attain them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from bnrate import groups as gr
from bnrate import losses
from bnrate.theory import constants

POINTS = 300
RATE_REST = 0.4  # at which gamma and g stay where they are, if that is far enough
FAR = 9.0  # further than every |beta| and |M| below

RNG = np.random.default_rng(0)
MATRICES = RNG.standard_normal((3, 4, 4))
EXAMPLES = RNG.standard_normal((3, 12, 3)) * [1.0, 2.0, 0.5], RNG.standard_normal((3, 12)) + 2
S3 = np.cov(EXAMPLES[0][0].T)


def of(*batches):
    x, y = (jnp.asarray(values[batches]) for values in EXAMPLES)
    return losses.moments(x, y + x[..., 0])


PROBLEMS = {
    "rayleigh": lambda: losses.rayleigh(MATRICES[0, 0]),
    "noisy_rayleigh": lambda: losses.noisy_rayleigh(MATRICES),
    "generalized_rayleigh": lambda: losses.generalized_rayleigh(MATRICES[1, :3, :3], S3),
    "bn_least_squares": lambda: losses.bn_least_squares(of(0)._replace(mean=None)),
    "bn_least_squares-bias": lambda: losses.bn_least_squares(of(1)),
    "noisy_bn_least_squares": lambda: losses.noisy_bn_least_squares(of()),
    "coupled_blocks": lambda: losses.coupled_blocks(
        MATRICES[2, 0, :2], MATRICES[2, 0, :3], MATRICES[0, :2, :3]
    ),
    "chain": lambda: losses.chain(3, radius=3.0),
}
every = pytest.mark.parametrize("name", PROBLEMS)


def of_rest(groups, params):
    return [name for name in params if name not in groups.paths]


def bends(problem, params, data):
    """The norms that the constants bound, at one point: as `Constants`, without the lowest."""
    params, groups = gr.unit_vectors(problem.groups, params), problem.groups
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda flat: problem.mean(unravel(flat), data))(flat)
    where = {
        name: ravel_pytree({**zeros(params), name: 1 + 0 * params[name]})[0] for name in params
    }
    spheres, rest = groups.paths, of_rest(groups, params)

    def tangent(name):
        v = ravel_pytree({**zeros(params), name: params[name]})[0]
        return jnp.diag(where[name]) - jnp.outer(v, v)

    norm = functools.partial(jnp.linalg.norm, ord=2)
    P = [tangent(name) for name in spheres]
    A = [jnp.diag(where[name]) for name in spheres]
    R = jnp.diag(sum((where[name] for name in rest), jnp.zeros_like(flat)))
    grads = problem.gradient(params, data)
    return (
        jnp.stack([jnp.stack([norm(p @ hessian @ q) for q in P]) for p in P]),
        jnp.stack([jnp.stack([norm(p @ hessian @ q) for q in A]) for p in A]),
        jnp.stack([jnp.linalg.norm(grads[name]) for name in spheres]),
        jnp.stack([norm(p @ hessian @ R) for p in A]),
        norm(R @ hessian @ R),
    )


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def random_params(problem, key):
    """Directions, and numbers of the rest between -FAR and FAR, these included."""
    params, data = problem.init(key)
    for name in of_rest(problem.groups, params):
        params[name] = jnp.clip(3 * FAR * jax.random.normal(key, (), params[name].dtype), -FAR, FAR)
    return params, data


@functools.cache
def found(name):
    """What the constants bound at random points, and the constants from FAR on."""
    with jax.enable_x64(True):
        problem = PROBLEMS[name]()
        params, data = problem.init(jax.random.key(0))
        params = {n: p if n in problem.groups.paths else FAR + 0 * p for n, p in params.items()}
        keys = jax.random.split(jax.random.key(1), POINTS)
        measured = jax.jit(jax.vmap(lambda key: bends(problem, *random_params(problem, key))))(keys)
        rate = jnp.asarray(RATE_REST)
        known = problem.constants(params, data, rate)
        noise = problem.noise and problem.noise(params, data, rate)
        return [np.asarray(values) for values in measured], known, noise


@pytest.mark.usefixtures("float64")
@every
def test_no_derivative_exceeds_its_bound(name):
    measured, known, _ = found(name)
    for kind, values, bound in zip(known._fields, measured, known, strict=False):
        largest = values.max(axis=0)
        assert np.all(largest <= bound * (1 + 1e-12)), kind
        # random points come near, but for the chain, whose bounds are crude
        assert name == "chain" or np.all(largest >= 0.2 * bound), kind


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["noisy_rayleigh", "noisy_bn_least_squares"])
def test_no_gradient_of_a_batch_exceeds_its_bound(name):
    problem, (_, known, noise) = PROBLEMS[name](), found(name)

    def each(key):
        params, data = random_params(problem, key)
        params = gr.unit_vectors(problem.groups, params)
        slopes = jax.vmap(jax.grad(lambda p, i: problem.loss(p, data, i)[0]), (None, 0))
        grads = slopes(params, jnp.arange(3))
        rest = sum((jnp.var(grads[n]) for n in of_rest(problem.groups, params)), jnp.zeros(()))
        return jnp.linalg.norm(grads["w"], axis=1), jnp.sqrt(rest)

    lengths, deviations = jax.jit(jax.vmap(each))(jax.random.split(jax.random.key(2), POINTS))
    assert 0.3 * noise.gradient[0] <= lengths.max() <= noise.gradient[0]
    assert 0.2 * noise.rest <= deviations.max() <= noise.rest
    assert known.gradient[0] <= noise.gradient[0]


E = np.eye(3)
DIAGONAL = np.diag([1.0, 4.0])
MIX = np.array([1.0, 1.0]) / math.sqrt(2)
LOWER, UPPER = np.eye(2)


def least_squares(S, b):
    return losses.bn_least_squares(losses.Moments(S, np.asarray(b, float), np.array(3.0)))


def coupled(M):
    return losses.coupled_blocks([0.0, 1.0], [0.0, 0.5], M)


ATTAINED = {  # constant -> loss, parameters
    "rayleigh-tangent": (lambda: losses.rayleigh([0, 0.3, 1]), {"w": E[0]}),
    "rayleigh-ambient": (lambda: losses.rayleigh([0, 0.3, 1]), {"w": E[2]}),
    "rayleigh-gradient": (lambda: losses.rayleigh([0, 0.3, 1]), {"w": E[0] - E[2]}),
    "generalized-tangent": (
        lambda: losses.generalized_rayleigh(np.diag([0.0, 4]), DIAGONAL),
        {"w": LOWER},
    ),
    "generalized-ambient": (
        lambda: losses.generalized_rayleigh(np.diag([0.0, 4]), DIAGONAL),
        {"w": LOWER},
    ),
    "generalized-gradient": (
        lambda: losses.generalized_rayleigh(np.array([[0.5, 1], [1, 2]]), DIAGONAL),
        {"w": LOWER},
    ),
    "least-squares-tangent": (
        lambda: least_squares(DIAGONAL, [1, 0]),
        {"w": LOWER, "gamma": FAR},
    ),
    "least-squares-ambient": (
        lambda: least_squares(np.eye(2), [1 / math.sqrt(3), math.sqrt(2 / 3)]),
        {"w": LOWER, "gamma": -FAR},
    ),
    "least-squares-gradient": (
        lambda: least_squares(DIAGONAL, [0, 2]),
        {"w": LOWER, "gamma": -FAR},
    ),
    "least-squares-mixed": (lambda: least_squares(DIAGONAL, [0, 2]), {"w": LOWER, "gamma": FAR}),
    "least-squares-rest": (lambda: least_squares(DIAGONAL, [0, 2]), {"w": LOWER, "gamma": FAR}),
    "coupled-tangent": (
        lambda: coupled(2 * np.outer(UPPER, UPPER)),
        {"w1": UPPER, "w2": UPPER, "g": FAR},
    ),
    "coupled-gradient": (
        lambda: coupled(2 * np.outer([1, -1], [1, -1]) / 2),
        {"w1": MIX, "w2": MIX * [1, -1], "g": -FAR},
    ),
    "coupled-mixed": (
        lambda: coupled(2 * np.outer(LOWER, UPPER)),
        {"w1": UPPER, "w2": UPPER, "g": FAR},
    ),
    "coupled-rest": (lambda: coupled(np.eye(2)), {"w1": UPPER, "w2": UPPER, "g": FAR}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ATTAINED)
def test_a_named_instance_attains_the_bound(name):
    make, params = ATTAINED[name]
    problem, kind = make(), name.rpartition("-")[2]
    params = {name: jnp.asarray(value, float) for name, value in params.items()}
    data = problem.init(jax.random.key(0))[1]
    known = problem.constants(params, data, jnp.asarray(RATE_REST))
    position = known._fields.index(kind)
    measured = jax.jit(bends, static_argnums=0)(problem, params, data)[position]
    # of several blocks, the first; they are not alike
    np.testing.assert_allclose(measured.ravel()[0], known[position].ravel()[0], rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_two_blocks_meet_as_closely_as_they_may():
    problem, params = coupled(2 * np.outer(LOWER, LOWER)), {"w1": UPPER, "w2": UPPER, "g": FAR}
    params = {name: jnp.asarray(value, float) for name, value in params.items()}
    data = problem.init(jax.random.key(0))[1]
    tangent = jax.jit(bends, static_argnums=0)(problem, params, data)[0]
    np.testing.assert_allclose(tangent[0, 1], 2 * FAR, rtol=1e-12)
    known = problem.constants(params, data, jnp.asarray(RATE_REST))
    np.testing.assert_allclose(known.tangent[0, 1], 2 * FAR, rtol=1e-12)
    lowest = {"w1": jnp.asarray(LOWER), "w2": jnp.asarray(LOWER), "g": jnp.asarray(-2.0)}
    np.testing.assert_allclose(problem.mean(lowest, data), known.lowest, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_a_batch_attains_the_bound_of_the_noise():
    matrices = np.stack([np.diag([0.0, 0.3, 1.0]), np.diag([0.0, 2.0, 0.0])])
    problem = losses.noisy_rayleigh(matrices, start=E[0] + E[1])
    params, data = problem.init(jax.random.key(0))
    slope = jax.grad(lambda p: problem.loss(p, data, jnp.array(1))[0])(params)["w"]
    noise = problem.noise(params, data, jnp.asarray(0.0))
    np.testing.assert_allclose(math.sqrt(2) * jnp.linalg.norm(slope), noise.gradient[0], rtol=1e-12)
    # two batches with opposite b: u_k = +-|beta|, and y of mean 1 and 3
    b = np.array([[1.0, 0.0], [-1.0, 0.0]])
    of = losses.Moments(np.stack([np.eye(2)] * 2), b, np.ones(2), np.array([1.0, 3.0]))
    problem = losses.noisy_bn_least_squares(of, start={"w": LOWER})
    params, data = problem.init(jax.random.key(0))
    slope = jax.vmap(lambda i: jax.grad(lambda p: problem.loss(p, data, i)[0])(params))
    grads = slope(jnp.arange(2))
    noise = problem.noise(params, data, jnp.asarray(0.3))
    deviation = math.sqrt(jnp.var(grads["gamma"]) + jnp.var(grads["bias"]))
    np.testing.assert_allclose(deviation, noise.rest, rtol=1e-12)


def steps(problem, params, data, rate, rate_rest, count=100):
    """Gradient descent: what each step fell short of its linear part, and what the lemma allows."""
    known = problem.constants(params, data, rate_rest)
    rest = of_rest(problem.groups, params)
    c = 1 - rate_rest * known.rest / 2
    joint = (1 - c) / c * known.mixed * jnp.sum(known.mixed)
    C = jnp.sum(known.tangent, axis=1) / 2
    C = C + joint / known.rest if rest else C

    def step(params, _):
        grads, G = problem.gradient(params, data), gr.norm2(problem.groups, params)
        along = jnp.sqrt(G * gr.norm2(problem.groups, grads))
        theta = jnp.arctan(along * rate / G)
        flat = sum((grads[name] ** 2 for name in rest), jnp.zeros(()))
        linear = jnp.sum(theta * along) + c * rate_rest / 2 * flat
        after = {
            name: p - (rate_rest if name in rest else rate) * grads[name]
            for name, p in params.items()
        }
        short = problem.mean(after, data) - problem.mean(params, data) + linear
        return after, (short, jnp.sum(C * theta**2), {name: after[name] for name in rest})

    return jax.lax.scan(step, params, None, count)[1]


def of_steps(name, rate_rest):
    problem = PROBLEMS[name]()

    def one(key, rate):
        params, data = problem.init(key)
        for rest in of_rest(problem.groups, params):
            params[rest] = params[rest] * jax.random.normal(key, (), params[rest].dtype)
        known = problem.constants(params, data, jnp.asarray(rate_rest))
        return *steps(problem, params, data, rate, jnp.asarray(rate_rest)), known

    keys = jax.random.split(jax.random.key(4), 20)
    rates = jnp.repeat(10.0 ** jnp.arange(-2.0, 3), 4)
    return jax.jit(jax.vmap(one))(keys, rates)


@pytest.mark.usefixtures("float64")
@every
def test_steps_descend_as_the_constants_allow(name):
    """The descent lemma: it needs all the constants of several blocks and a rest at once."""
    short, allowed, _, known = of_steps(name, 0.5)
    rounding = 1e-13 * (1 + jnp.abs(known.lowest))[:, None]
    assert jnp.all(short <= allowed + rounding)
    if "rayleigh" in name:  # where there is one constant only, little of it is to spare
        assert jnp.max(jnp.where(allowed > 1e-6, short / allowed, 0)) > 0.85


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate_rest", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["bn_least_squares", "noisy_bn_least_squares", "coupled_blocks"])
def test_gradient_descent_stays_where_the_constants_hold(name, rate_rest):
    *_, rest, known = of_steps(name, rate_rest)
    g = jnp.abs(rest["g"] if name == "coupled_blocks" else rest["gamma"])
    reach = (known.tangent[:, 0, 1] if name == "coupled_blocks" else known.gradient[:, 0])[:, None]
    reach = reach / known.mixed[:, :1]  # both are proportional to it
    assert jnp.all(g <= reach * (1 + 1e-12))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate_rest", "factor"), [(0.0, 1.0), (0.3, 1.0), (0.5, 1.0), (0.8, 4.0)])
def test_no_smaller_region_would_do(rate_rest, factor):
    """From gamma = 0, targets of u chosen against us lead as far as the bound says, or stay."""
    known = constants.bn_least_squares(np.eye(2), LOWER, np.array(1.0), 0.0, rate_rest)
    np.testing.assert_allclose(known.gradient[0] / known.mixed[0], factor, rtol=1e-12)
    gamma = 0.0
    for _ in range(200):
        gamma -= rate_rest * (2 * gamma - 2 * math.copysign(1.0, gamma * (1 - 2 * rate_rest)))
    assert factor * (1 - 1e-9) <= abs(gamma) <= factor or rate_rest == 0


@pytest.mark.usefixtures("float64")
def test_least_squares_in_numbers():
    known = constants.bn_least_squares(DIAGONAL, np.array([1.0, 2]), np.array(2.5), 0.5, 0.5)
    ambient, C = known.ambient[0, 0], known.ambient[0, 0] / 2 + known.mixed[0] ** 2 / 2
    np.testing.assert_allclose(ambient, 18.47520861, rtol=1e-9)
    np.testing.assert_allclose(known.tangent[0, 0], 16, rtol=1e-14)
    np.testing.assert_allclose(known.gradient, 8, rtol=1e-14)
    np.testing.assert_allclose(known.mixed, 5.65685425, rtol=1e-9)
    np.testing.assert_allclose(C, 25.23760431, rtol=1e-9)
    np.testing.assert_allclose([known.rest, 2.75 - known.lowest], [2, 2.25], rtol=1e-14)


def rotation(seed, d=3):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


few = settings(deadline=None, max_examples=15)
sizes = st.floats(0.1, 10)


@given(size=sizes, scale=sizes, seed=st.integers(0, 99), shift=st.floats(-5, 5))
@few
def test_units_and_axes_do_not_matter(size, scale, seed, shift):
    """Features in other units and axes; y in other units; a spectrum with another origin."""
    with jax.enable_x64(True):
        S, b = (np.asarray(values) for values in of(0)[:2])
        one, gamma, Q = np.array(9.0), 3.0, size * rotation(seed)
        here = constants.bn_least_squares(S, b, one, gamma, 0.2)
        there = constants.bn_least_squares(
            Q @ S @ Q.T, scale * (Q @ b), scale**2 * one, scale * gamma, 0.2
        )
        powers = constants.Constants(2, 2, 2, 1, 0, 2)
        for a, b, power in zip(here, there, powers, strict=True):
            np.testing.assert_allclose(scale**power * a, b, rtol=1e-9)
        low = constants.rayleigh(MATRICES[0, 0])
        high = constants.rayleigh(scale * MATRICES[0, 0] + shift)
        np.testing.assert_allclose(scale * low.tangent, high.tangent, rtol=1e-9)
        np.testing.assert_allclose(scale * low.lowest + shift, high.lowest, rtol=1e-9, atol=1e-12)


@given(gamma=st.floats(-20, 20), rate=st.floats(0, 0.95), further=st.floats(1, 3))
@few
def test_further_and_faster_is_never_smaller(gamma, rate, further):
    """So that constants serve schedules that fall, and all later parts of a trajectory."""
    with jax.enable_x64(True):
        square = np.array(1.0)
        least = constants.bn_least_squares(DIAGONAL, LOWER, square, gamma, rate)
        for other in ((gamma * further, rate), (gamma, rate + (1 - rate) * (1 - 1 / further))):
            more = constants.bn_least_squares(DIAGONAL, LOWER, square, *other)
            assert all(jnp.all(a <= b + 1e-12 * abs(b)) for a, b in zip(least, more, strict=True))


@pytest.mark.usefixtures("float64")
def test_minibatches_are_averaged():
    batches = of()
    mean = constants.bn_least_squares(*batches[:3], FAR, 0.2, batches.mean)
    each = [constants.bn_least_squares(*of(i)[:3], FAR, 0.2) for i in range(3)]
    for kind in ("tangent", "ambient", "gradient", "mixed", "rest"):
        average = np.mean([getattr(one, kind) for one in each], axis=0)
        np.testing.assert_allclose(getattr(mean, kind), average, rtol=1e-12)
    noise = constants.bn_least_squares_noise(*batches[:2], FAR, 0.2, batches.mean)
    assert noise.gradient[0] == max(one.gradient[0] for one in each)


@pytest.mark.usefixtures("float64")
def test_minibatches_that_agree_attain_the_lowest_and_one_alone_the_reach():
    """Features u of 1 and 3 in one direction: their mean is 2, but SGD can bring gamma to 3."""
    cross = np.outer([1.0, 3.0], LOWER)
    of = losses.Moments(np.stack([np.eye(2)] * 2), cross, np.array([8.0, 12]), np.array([0.0, 2]))
    problem = losses.noisy_bn_least_squares(of, start={"w": LOWER, "gamma": 2.0, "bias": 1.0})
    params, data = problem.init(jax.random.key(0))
    known = problem.constants(params, data, jnp.asarray(0.2))
    np.testing.assert_allclose(problem.mean(params, data), known.lowest, rtol=1e-12)
    np.testing.assert_allclose(known.gradient / known.mixed, 3, rtol=1e-12)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_singular_matrix_has_infinite_constants(wide, seed):
    """Also where rounding has made its smallest eigenvalue a little positive or negative."""
    with jax.enable_x64(wide):
        Q = rotation(seed)
        S = jnp.asarray(Q @ np.diag([0.0, 1.0, 2.0]) @ Q.T, float)
        b, square = S @ jnp.ones(3), jnp.asarray(1.0)
        program = jax.jit(constants.bn_least_squares)
        for cross in (b, 0 * b):
            known = program(S, cross, square, square, square / 4)
            for kind in ("tangent", "ambient", "gradient", "mixed"):
                assert np.all(getattr(known, kind) == np.inf), kind
            assert known.lowest == -np.inf
        spectrum = jnp.linalg.eigvalsh(S)
        known = constants.generalized_rayleigh(spectrum, jnp.ones(3))
        assert np.isposinf([known.tangent[0, 0], known.ambient[0, 0], known.gradient[0]]).all()
        assert known.lowest == -np.inf


def test_inside_a_program_bad_numbers_are_nan_and_spare_the_others():
    S, b, one = jnp.asarray(DIAGONAL, float), jnp.ones(2), jnp.ones(())
    rates = jnp.array([0.1, 0.99, 1.0, 7.0, -0.1, jnp.nan])
    program = jax.jit(jax.vmap(lambda rate: constants.bn_least_squares(S, b, one, one, rate)))
    bad = np.isnan(program(rates).tangent[:, 0, 0])
    np.testing.assert_array_equal(bad, [False, False, True, True, True, True])
    program = jax.jit(lambda spectrum: constants.rayleigh(spectrum))
    assert np.isnan(program(jnp.array([0.0, jnp.nan])).tangent[0, 0])
    known = jax.jit(constants.bn_least_squares)(S * jnp.nan, b, one, one, one / 2)
    assert all(np.all(np.isnan(values)) for values in known[:4])


ONE = np.array(1.0)
REFUSED = [
    (lambda: constants.rayleigh(np.ones(1)), r"two eigenvalues or more .* got shape \(1,\)"),
    (lambda: constants.rayleigh(np.array([0.0, np.inf])), r"must lie in \(-inf, inf\), got inf"),
    (lambda: constants.rayleigh_noise(np.eye(2)), r"of rank 3; got shape \(2, 2\)"),
    (lambda: constants.rayleigh_noise(np.ones((3, 1, 1))), r"got shape \(3, 1, 1\)"),
    (
        lambda: constants.generalized_rayleigh(np.ones(3), np.ones(2)),
        "S has 3 eigenvalues and the spectrum 2",
    ),
    (
        lambda: constants.bn_least_squares(np.eye(2), np.ones(3), ONE, ONE, 0.1),
        r"cross must have shape \(2,\)",
    ),
    (
        lambda: constants.bn_least_squares(np.ones(2), np.ones(2), ONE, ONE, 0.1),
        r"covariance must be square.* got shape \(2,\)",
    ),
    (
        lambda: constants.bn_least_squares(np.eye(2), np.ones(2), ONE, ONE, 1.0),
        r"rate_rest must lie in \[0, 1\), got 1; at larger rates gamma diverges",
    ),
    (
        lambda: constants.bn_least_squares(np.eye(2), np.ones(2), -ONE, ONE, 0.1),
        r"square must lie in \[0, inf\), got -1",
    ),
    (
        lambda: constants.coupled_blocks(np.ones(2), np.ones(3), np.ones((2, 2)), ONE, 0.1),
        r"coupling must have shape \(2, 3\)",
    ),
    (
        lambda: constants.coupled_blocks(np.ones(2), np.ones(2), np.ones((2, 2)), ONE, 2.0),
        r"rate_rest must lie in \[0, 2\), got 2; at larger rates g diverges",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("d", [2, 5, 30])
@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e5, 1e6])
def test_in_float32_ill_conditioned_constants_are_never_too_small(kappa, d):
    """Against float64, of the very numbers that float32 was given."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        Q, scales = rotation(seed, d), np.geomspace(1, 1 / kappa, d)
        S = ((Q * scales) @ Q.T).astype(np.float32)
        S = (S + S.T) / 2
        B = rng.standard_normal((d, d)).astype(np.float32)
        B, b = (B + B.T) / 2, S @ rng.standard_normal(d).astype(np.float32)
        wide, cross = S.astype(float), b.astype(float)
        values, vectors = np.linalg.eigh(wide)
        if values[0] <= 0:
            continue
        found = constants.bn_least_squares(S, b, np.float32(9), np.float32(0), 0.2)
        assert found.tangent.dtype == jnp.float32
        beta2 = cross @ np.linalg.solve(wide, cross)
        assert found.tangent[0, 0] >= 2 * beta2 * values[-1] / values[0]
        assert found.gradient[0] >= 2 * beta2 * np.sqrt(values[-1] / values[0])
        assert found.lowest <= 9 - beta2
        root = vectors / np.sqrt(values)
        spectrum = np.linalg.eigvalsh(root.T @ B.astype(float) @ root)
        problem = losses.generalized_rayleigh(B, S)
        params, data = problem.init(jax.random.key(0))
        found = problem.constants(params, data, jnp.asarray(0.0))
        assert found.tangent[0, 0] >= 2 * np.ptp(spectrum) * values[-1] / values[0]
        assert found.lowest <= spectrum[0]
        assert np.isfinite(found.tangent[0, 0]) or kappa > 1e4
