"""Every loss against every law; trajectories and values that are known to many digits."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate import certify, losses, normalize, sweep, train, transforms
from bnrate import groups as gr

PARTS = 3  # of the losses that are drawn from several
POINTS = 6


def normal(*shape):
    return lambda key: jax.random.normal(key, shape, jnp.result_type(float))


def definite(key, *batches):
    """Positive definite matrices, well conditioned."""
    x = normal(*batches, 3, 9)(key)
    return x @ jnp.swapaxes(x, -1, -2) / 9 + 0.1 * jnp.eye(3, dtype=x.dtype)[(None,) * len(batches)]


def sampled(*batches, bias=True):
    def of(key):
        x = normal(*batches, 12, 4)(key)
        found = losses.moments(x[..., :3], x @ jnp.arange(1.0, 5.0, dtype=x.dtype) + 1)
        return found if bias else found._replace(mean=None)

    return of


def network():
    x, labels = normal(16, 4)(jax.random.key(1)), jnp.arange(16) % 2
    return losses.bn_network(x, labels, (3, 2))


LOSSES = {
    "rayleigh": lambda: losses.rayleigh(normal(4)),
    "noisy_rayleigh": lambda: losses.noisy_rayleigh(normal(PARTS, 4, 4)),
    "generalized_rayleigh": lambda: losses.generalized_rayleigh(normal(3, 3), definite),
    "bn_least_squares": lambda: losses.bn_least_squares(sampled(bias=False)),
    "bn_least_squares-bias": lambda: losses.bn_least_squares(sampled()),
    "noisy_bn_least_squares": lambda: losses.noisy_bn_least_squares(sampled(PARTS)),
    "bn_halfspace": lambda: losses.bn_halfspace(normal(20, 3)),
    "coupled_blocks": lambda: losses.coupled_blocks(normal(2), normal(3), normal(2, 3)),
    "bn_network": network,
    "chain": lambda: losses.chain(3, start=normal(4)),
}
RATE_REST = 0.3


def nearby(key, params):
    """Other parameters, as far away as 1."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def facts(problem, key):
    """All that the laws speak of, at a random point of a random instance."""
    of_init, of_point, of_factors = jax.random.split(key, 3)
    params, data = problem.init(of_init)
    params = nearby(of_point, params)
    G = gr.norm2(problem.groups, params)
    factors = 10 ** jax.random.uniform(of_factors, G.shape, G.dtype, -2, 2)
    parts = None if problem.noise is None else jnp.arange(PARTS)
    each = jax.vmap(lambda i: problem.loss(params, data, i)[0])
    rate = jnp.asarray(RATE_REST, G.dtype)
    grads = problem.gradient(params, data)
    return {
        "mean": problem.mean(params, data),
        "scaled": problem.mean(gr.rescale(problem.groups, params, factors), data),
        "average": problem.loss(params, data, ())[0] if parts is None else each(parts).mean(),
        "gradient": grads,
        "autodiff": jax.grad(problem.mean)(params, data),
        "radial": gr.inner(problem.groups, params, grads),
        "least": problem.minimizer and problem.mean(problem.minimizer(data), data),
        "still": problem.minimizer and problem.gradient(problem.minimizer(data), data),
        "constants": problem.constants and problem.constants(params, data, rate),
        "noise": problem.noise and problem.noise(params, data, rate),
    }


@functools.cache
def found(name):
    with jax.enable_x64(True):
        problem, keys = LOSSES[name](), jax.random.split(jax.random.key(3), POINTS)
        values = jax.jit(jax.vmap(functools.partial(facts, problem)))(keys)
        return jax.tree.map(np.asarray, values)


every = pytest.mark.parametrize("name", LOSSES)


@every
def test_only_the_direction_of_a_block_matters(name):
    np.testing.assert_allclose(found(name)["scaled"], found(name)["mean"], rtol=1e-12)
    assert np.ptp(found(name)["mean"]) > 1e-3


@every
def test_gradient_is_that_of_the_mean(name):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, found(name)["gradient"], found(name)["autodiff"])


@every
def test_gradient_is_tangent(name):
    np.testing.assert_allclose(found(name)["radial"], 0, atol=1e-12)


@every
def test_mean_is_that_of_the_batches(name):
    np.testing.assert_allclose(found(name)["average"], found(name)["mean"], rtol=1e-12)


@every
def test_nothing_lies_below_the_lowest(name):
    known, blocks = found(name)["constants"], found(name)["radial"].shape[1]
    if known is None:
        assert name in ("bn_halfspace", "bn_network")
        return
    assert np.all(found(name)["mean"] >= known.lowest - 1e-12)
    shapes = [(blocks, blocks)] * 2 + [(blocks,)] * 2 + [()] * 2
    assert [values.shape[1:] for values in known] == shapes
    assert all(np.all(np.isfinite(values)) for values in known)


@every
def test_at_the_minimizer_the_loss_is_the_lowest(name):
    if found(name)["least"] is None:
        assert name in (
            "noisy_bn_least_squares", "bn_halfspace", "coupled_blocks", "bn_network", "chain",
        )  # fmt: skip
        return
    lowest = found(name)["constants"].lowest
    np.testing.assert_allclose(found(name)["least"], lowest, rtol=1e-10, atol=1e-12)
    for leaf in jax.tree.leaves(found(name)["still"]):
        np.testing.assert_allclose(leaf, 0, atol=1e-10)


@every
def test_batches_are_drawn_from_all_parts(name):
    problem, key = LOSSES[name](), jax.random.key(5)
    if problem.noise is None:
        assert problem.batch(key, jnp.array(0)) == ()
        return
    drawn = jax.vmap(lambda step: problem.batch(key, step))(jnp.arange(60))
    assert np.bincount(drawn, minlength=PARTS).min() > 10
    assert set(np.asarray(drawn).tolist()) == set(range(PARTS))


@every
def test_the_structural_witness_finds_the_same_groups(name):
    problem = LOSSES[name]()
    proved = certify.certify(problem.mean, *problem.init(jax.random.key(0))).groups
    assert set(proved) >= set(problem.groups)
    assert len(proved) == len(problem.groups)


@pytest.mark.slow
@every
def test_it_trains_as_a_network_does(name):
    problem = LOSSES[name]()

    def rule(rates):
        return transforms.by_group(
            problem.groups, invariant=optax.sgd(rates.invariant), rest=optax.sgd(rates.rest)
        )

    run = train.make_run(
        init=problem.init, loss=problem.loss, batch=problem.batch, groups=problem.groups, rule=rule
    )
    grid = {"rate_invariant": [0.1, 10.0], "rate_rest": [0.1], "seed": range(2)}
    ds = sweep.run(lambda: run, grid, steps=20)
    assert not ds.diverged.any()
    assert np.isfinite(ds.final_loss).all()
    grows = np.diff(ds.norm2.transpose(..., "step", "group"), axis=-2) / ds.norm2.max().item()
    assert grows.min() > -1e-5


@every
def test_single_precision_stays_single(name):
    """Of all that `facts` returns; that it is finite too, training shows."""
    problem = LOSSES[name]()
    of = jax.eval_shape(functools.partial(facts, problem), jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(of)} == {"float32"}
    params, _ = jax.eval_shape(problem.init, jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))


@pytest.mark.usefixtures("float64")
def test_the_dtype_is_that_of_the_arguments():
    problem = losses.rayleigh(jnp.arange(3, dtype=jnp.float32), start=[1.0, 2.0, 3.0])
    params, data = problem.init(jax.random.key(0))
    assert problem.gradient(params, data)["w"].dtype == jnp.float32


def descent(problem, rates, steps):
    """Parameters, loss and gradient before each step of gradient descent, and after the last."""

    def step(params, _):
        grads = problem.gradient(params, data)
        record = {**params, "loss": problem.mean(params, data), "gradient": grads}
        return {name: p - rates[name] * grads[name] for name, p in params.items()}, record

    params, data = problem.init(jax.random.key(0))
    return jax.jit(lambda: jax.lax.scan(step, params, None, steps + 1)[1])()


@pytest.mark.usefixtures("float64")
def test_a_trajectory_of_the_rayleigh_quotient():
    problem = losses.rayleigh([0.0, 1.0], start=[0.6, 0.8])
    path = descent(problem, {"w": 2.0}, 10)
    expected = {
        0: ([0.6, 0.8], 0.64),
        1: ([2.136, -0.352], 0.0264390577),
        2: ([2.18420231, -0.05949961], 7.41515824e-4),
        3: ([2.18555927, -0.00968645], 1.96424579e-5),
    }
    for t, (w, value) in expected.items():
        np.testing.assert_allclose(path["w"][t], w, rtol=1e-6)
        np.testing.assert_allclose(path["loss"][t], value, rtol=1e-7)
    np.testing.assert_allclose(path["w"][10], [2.18559619, -2.9e-8], rtol=1e-2)
    np.testing.assert_allclose(path["w"][10] @ path["w"][10], 4.77683071, rtol=1e-8)
    np.testing.assert_allclose(path["loss"][10], 1.77756885e-16, rtol=1e-6)


def small_least_squares():
    of = losses.Moments(jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 2.0]), jnp.array(2.5))
    return losses.bn_least_squares(of, start={"w": [1.0, -0.5], "gamma": 0.5})


@pytest.mark.usefixtures("float64")
def test_a_trajectory_of_least_squares():
    path = descent(small_least_squares(), {"w": 3.0, "gamma": 0.5}, 100)
    expected = {  # t: loss, gamma, w, norm2
        0: (2.75, 0.5, [1.0, -0.5], 1.25),
        1: (2.5, 0.0, [3.12132034, 3.74264069], 23.75),
        2: (0.78954773, 1.30784260, None, None),
        3: (0.66696077, None, [3.60186459, 3.34187218], 24.14153817),
        10: (0.50000008, None, None, 24.70766505),
        100: (0.5, 1.41421356, [4.44591187, 2.22295593], 24.70766542),
    }
    for t, known in expected.items():
        w = path["w"][t]
        for value, digits in zip((path["loss"][t], path["gamma"][t], w, w @ w), known, strict=True):
            if digits is not None:
                np.testing.assert_allclose(value, digits, rtol=2e-8, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_least_squares_is_that_of_a_batch_norm():
    x, y = normal(PARTS, 9, 3)(jax.random.key(0)), normal(PARTS, 9)(jax.random.key(1)) + 2
    of = losses.moments(x, y)
    start = {"w": [1.0, 2.0, 3.0], "gamma": 0.7, "bias": 0.4}

    def on_examples(params, x, y):
        h, _ = normalize.over_batch(x @ params["w"][:, None], params["gamma"][None])
        return jnp.mean((h[:, 0] + params["bias"] - y) ** 2)

    problem = losses.noisy_bn_least_squares(of, start)
    params, data = problem.init(jax.random.key(0))
    values = jax.jit(jax.vmap(lambda i: problem.loss(params, data, i)[0]))(jnp.arange(PARTS))
    expected = jax.jit(jax.vmap(on_examples, (None, 0, 0)))(params, x, y)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    one = losses.bn_least_squares(jax.tree.map(lambda moment: moment[0], of), start)
    np.testing.assert_allclose(one.mean(*one.init(jax.random.key(0))), expected[0], rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_with_the_best_gamma_least_squares_is_a_quotient():
    problem = small_least_squares()
    params, of = problem.init(jax.random.key(0))
    u = -problem.gradient({**params, "gamma": 0.0}, of)["gamma"] / 2
    quotient = losses.generalized_rayleigh(
        of.square * of.covariance - jnp.outer(of.cross, of.cross), of.covariance, params["w"]
    )
    value = quotient.mean(*quotient.init(jax.random.key(0)))
    np.testing.assert_allclose(problem.mean({**params, "gamma": u}, of), value, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_eps_of_a_batch_norm_leaks():
    """What the laws above would see of it."""
    S, b, eps = jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 2.0]), 1e-3
    w = jnp.array([0.3, -0.1])
    u, slope = jax.value_and_grad(lambda w: b @ w / jnp.sqrt(w @ S @ w + eps))(w)
    np.testing.assert_allclose(w @ slope, 0.00210908002, rtol=1e-8)
    np.testing.assert_allclose(w @ slope, u * eps / (w @ S @ w + eps), rtol=1e-12)


def at(x, radius=100.0):
    """A chain of that many coordinates at x, on a sphere where w and x have one scale."""
    x = np.asarray(x, float)
    w = np.append(x, math.sqrt(radius**2 - x @ x))
    problem = losses.chain(x.size, radius, start=w)
    params, data = problem.init(jax.random.key(0))
    value, slope = jax.jit(lambda *at: (problem.mean(*at), problem.gradient(*at)))(params, data)
    return w, value, slope["w"]


@pytest.mark.usefixtures("float64")
def test_values_of_the_chain():
    w, value, slope = at(np.zeros(5))
    np.testing.assert_allclose(value, -2.06636568, rtol=1e-8)
    np.testing.assert_allclose(slope, [-1.64872127, 0, 0, 0, 0, 0], rtol=1e-8)
    w, value, slope = at([1, 1, 0.75, 0, 0])
    np.testing.assert_allclose(value, -10.25312330, rtol=1e-9)
    flat = np.array([-14.90820725, -13.78456556, -4.53662536, -0.08208500, 0, 0])
    np.testing.assert_allclose(slope, flat - w * (w @ flat) / 1e4, rtol=2e-7)


@pytest.mark.usefixtures("float64")
def test_a_step_adds_one_coordinate_of_the_chain_and_the_gradient_stays_large():
    length, rates = 8, jnp.array([1e-8, 1e-4, 1.0, 1e3])
    path = jax.vmap(lambda rate: descent(losses.chain(length), {"w": rate}, length - 1))(rates)
    norm, slope = (np.linalg.norm(of, axis=-1) for of in (path["w"], path["gradient"]["w"]))
    assert np.all(norm * slope >= 46 * math.sqrt(length) / 2)
    for t in range(length):
        assert np.all(np.asarray(path["w"][:, t, t:length]) == 0)


@pytest.mark.parametrize("wide", [False, True])
def test_the_chain_is_smooth_where_it_ends(wide):
    """No derivative is NaN about 1/2, where exp(-1 / (2x - 1)^2) and its factors meet 0."""
    with jax.enable_x64(wide):
        # All three links stand at x: w = (x, x, x, sqrt(1 - 3 x^2)) on the unit sphere.
        problem = losses.chain(3, radius=1.0)
        ulps = np.finfo(float if wide else np.float32).eps * 0.5 ** np.arange(3)
        x = jnp.asarray(np.concatenate([0.5 + ulps, 0.5 - ulps, [0.5, 0.514, 0.516, 0.53, 0, -1]]))

        def third(x):
            w = jnp.stack([x, x, x, jnp.sqrt(jnp.maximum(1 - 3 * x**2, 0))])
            return jax.jacfwd(jax.hessian(lambda w: problem.mean({"w": w}, jnp.asarray(1.0))))(w)

        assert np.all(np.isfinite(jax.jit(jax.vmap(third))(x)))


def test_a_seed_draws_an_instance_and_a_start():
    problem = losses.rayleigh(lambda key: jax.random.uniform(key, (3,)), start=normal(3))
    params, data = jax.vmap(problem.init)(jax.random.split(jax.random.key(0), 4))
    assert np.ptp(data, axis=0).min() > 0
    assert np.ptp(params["w"], axis=0).min() > 0
    again = losses.rayleigh(jnp.arange(3.0), start={"w": jnp.ones(3)})
    params, data = jax.vmap(again.init)(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(params["w"], 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batches", [(), (PARTS,)], ids=["one", "minibatches"])
def test_a_diagonal_covariance_may_be_given_as_its_diagonal(batches):
    make = losses.noisy_bn_least_squares if batches else losses.bn_least_squares
    S, b = jnp.exp(normal(*batches, 3)(jax.random.key(1))), normal(*batches, 3)(jax.random.key(2))
    square, key = 20 * jnp.ones(batches), jax.random.key(0)
    full = S[..., None] * jnp.eye(3).reshape([1] * len(batches) + [3, 3])
    problems = [make(losses.Moments(covariance, b, square)) for covariance in (S, full)]
    short, long = (facts_of(problem, *problem.init(key), key) for problem in problems)
    chex.assert_trees_all_close(short, long, rtol=1e-12)


def facts_of(problem, params, data, key):
    batch = problem.batch(key, jnp.int32(3))
    return {
        "loss": problem.loss(params, data, batch)[0],
        "gradient": problem.gradient(params, data),
        "constants": problem.constants(params, data, RATE_REST),
        "noise": problem.noise and problem.noise(params, data, RATE_REST),
        "minimizer": problem.minimizer and problem.minimizer(data),
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["noisy_rayleigh", "noisy_bn_least_squares", "coupled_blocks"])
def test_replicas_are_trained_apart(name):
    problem, key = LOSSES[name](), jax.random.key(7)
    many = losses.replicas(problem, 3)
    params, data = many.init(key)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], params), problem.init(key)[0])
    params = nearby(key, params)
    batches = many.batch(key, jnp.int32(0))
    grads = jax.grad(lambda p: many.loss(p, data, batches)[0])(params)
    for i in range(3):
        one, batch = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (params, batches))
        alone = jax.grad(lambda p, batch=batch: problem.loss(p, data, batch)[0])(one)
        of_many = jax.tree.map(lambda x, i=i: x[i], grads)
        chex.assert_trees_all_close(of_many, alone, rtol=1e-12)
        closed = jax.tree.map(lambda x, i=i: x[i], many.gradient(params, data))
        chex.assert_trees_all_close(closed, problem.gradient(one, data), rtol=1e-12)
    assert gr.norm2(many.groups, params).shape == (3 * len(problem.groups),)


def test_replicas_of_a_part_are_units():
    half = gr.Member("w", shape=(2, 2), part=[(0, 1, 2)])
    one = losses.rayleigh([1.0, 2.0, 3.0, 4.0])._replace(groups=gr.Groups([gr.Group([half])]))
    many = losses.replicas(one, 3)
    params, _ = many.init(jax.random.key(0))
    np.testing.assert_allclose(
        gr.norm2(many.groups, params), np.sum(params["w"][:, 2:] ** 2, 1), rtol=1e-6
    )


def test_replicas_have_batches_of_their_own():
    many = losses.replicas(LOSSES["noisy_rayleigh"](), 40)
    first, second = (many.batch(jax.random.key(0), jnp.int32(step)) for step in range(2))
    assert set(np.unique(first)) == set(range(PARTS))
    assert np.any(first != second)


S2, B2 = np.eye(2), np.ones(2)
REFUSED = [
    (lambda: losses.rayleigh([1.0]), r"spectrum must be .* of rank 1 .* got shape \(1,\)"),
    (lambda: losses.rayleigh([[0.0, 1.0]]), r"got shape \(1, 2\)"),
    (lambda: losses.rayleigh([0.0, np.nan]), r"spectrum must lie in \(-inf, inf\), got nan"),
    (lambda: losses.rayleigh([0.0, 1.0], [0.0, 0.0]), "start of w is zero, which has no direction"),
    (lambda: losses.rayleigh([0.0, 1.0], [1.0]), r"start of w must have shape \(2,\), got \(1,\)"),
    (lambda: losses.rayleigh([0.0, 1.0], {"v": [1.0, 1.0]}), "the tree has no leaf 'v'"),
    (lambda: losses.rayleigh(normal(1)), r"two entries or more; got shape \(1,\)"),
    (lambda: losses.noisy_rayleigh(S2), r"matrices must be an array of rank 3"),
    (lambda: losses.noisy_rayleigh(np.ones((3, 2, 4))), r"matrices must be square, got shape"),
    (lambda: losses.generalized_rayleigh(S2, np.eye(3)), r"have shapes \(2, 2\) and \(3, 3\)"),
    (
        lambda: losses.bn_least_squares(losses.Moments(S2, np.ones(3), np.array(1.0))),
        r"cross must have shape \(2,\), square and mean \(\); got \(3,\), \(\) and \(\)",
    ),
    (
        lambda: losses.bn_least_squares(losses.Moments(S2, B2, np.array(-1.0))),
        r"square must lie in \[0, inf\), got -1",
    ),
    (
        lambda: losses.bn_least_squares(losses.Moments(S2, B2, np.array(1.0)), {"bias": 0.0}),
        "the tree has no leaf 'bias'",
    ),
    (lambda: losses.bn_halfspace(np.ones((5, 1))), "two entries or more"),
    (lambda: losses.coupled_blocks(B2, B2, np.ones((2, 3))), r"must have shape \(2, 2\)"),
    (
        lambda: losses.coupled_blocks(B2, B2, S2, {"w2": np.zeros(2)}),
        "start of w2 is zero",
    ),
    (lambda: losses.bn_network(S2, np.arange(2), (3, 0)), r"widths .* at least 1; got \(3, 0\)"),
    (lambda: losses.bn_network(S2, np.arange(2), ()), r"widths .* got \(\)"),
    (lambda: losses.bn_network(S2, np.arange(2), (3, 1)), r"labels must lie in \[0, 1\), got 1"),
    (lambda: losses.replicas(losses.rayleigh(B2), 0), "at least 1 replica, got 0"),
    (lambda: losses.replicas(network(), 2), "must have no unit axes"),
    (lambda: losses.chain(0), "at least 1 coordinate, got length 0"),
    (lambda: losses.chain(3, -1.0), r"radius must lie in \(0, inf\), got -1"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0))
