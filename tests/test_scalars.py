"""Each adaptive scalar against its formula, written out in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from test_transforms import GROUPS, UNITS, loss, step, tree

from bnrate import groups as gr
from bnrate import transforms as tf
from bnrate.theory import equivalence

GRADIENTS = [tree(seed) for seed in range(5)]


def scaled_gradients(tx):
    """What becomes of a fixed sequence of gradients."""
    params, outcomes = tree(9), []
    state = tx.init(params)
    for grads in GRADIENTS:
        updates, state = tx.update(grads, state, params)
        outcomes.append(updates)
    return outcomes


def unit_norms2():
    return np.array([gr.norm2(GROUPS, grads) for grads in GRADIENTS], float)


def wngrad(squares, delayed):
    b, divisors = np.ones(UNITS), []
    for square in squares:
        after = b + square / b
        divisors.append(b if delayed else after)
        b = after
    return divisors


BY_UNIT = {
    "wngrad": (tf.wngrad(GROUPS), lambda s: wngrad(s, False)),
    "wngrad, delayed": (tf.wngrad(GROUPS, delayed=True), lambda s: wngrad(s, True)),
    "adagrad_norm": (tf.adagrad_norm(GROUPS, 0.5), lambda s: np.sqrt(0.25 + np.cumsum(s, 0))),
    "delayed_adagrad": (
        tf.delayed_adagrad(GROUPS, 2.0, 0.6),
        lambda s: (2 + np.cumsum(s, 0) - s) ** 0.6,
    ),
    "normalized_gradient": (tf.normalized_gradient(GROUPS), np.sqrt),
}


@pytest.mark.parametrize(("tx", "divisors"), BY_UNIT.values(), ids=BY_UNIT)
def test_each_unit_is_divided_by_its_number(tx, divisors):
    wanted = divisors(unit_norms2())
    for grads, new, divisor in zip(GRADIENTS, scaled_gradients(tx), wanted, strict=True):
        expected = gr.rescale(GROUPS, grads, jnp.asarray(1 / divisor, jnp.float32))
        chex.assert_trees_all_close(new, expected, rtol=1e-5)


def kernels(trees):
    return np.array([t["a"]["kernel"] for t in trees], float)


@pytest.mark.parametrize("power", [0.0, 2.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_weighted_adagrad_with_momentum(power, nesterov):
    """Zou & Shen: m' = mu m - g / (sqrt(V / mean weight) + eps); x' = x + m' (+ mu (m' - m))."""
    tx = tf.weighted_adagrad_momentum(GROUPS, 0.8, power=power, nesterov=nesterov, eps=0.1)
    g, m, V, A = kernels(GRADIENTS), 0.0, 0.0, 0.0
    for t, new in enumerate(kernels(scaled_gradients(tx)), start=1):
        A, V = A + t**power, V + t**power * g[t - 1] ** 2
        before, m = m, 0.8 * m - g[t - 1] / (np.sqrt(V / (A / t)) + 0.1)
        wanted = m + 0.8 * (m - before) if nesterov else m
        np.testing.assert_allclose(new, -wanted, rtol=1e-5)


def test_delayed_adagrad_by_coordinate_knows_only_the_past():
    tx = tf.delayed_adagrad(GROUPS, 2.0, coordinate=True)
    g = kernels(GRADIENTS)
    wanted = g / np.sqrt(2 + np.cumsum(g**2, 0) - g**2)
    np.testing.assert_allclose(kernels(scaled_gradients(tx)), wanted, rtol=1e-5)


def test_trust_ratio_makes_steps_as_long_as_the_weights():
    params = tree(0)
    _, updates, _ = step(tf.trust_ratio(GROUPS, 0.02), params, tree(1))
    expected = 0.02**2 * gr.norm2(GROUPS, params)
    np.testing.assert_allclose(gr.norm2(GROUPS, updates), expected, rtol=1e-5)
    params["n"] = jax.tree.map(jnp.zeros_like, params["n"])
    _, updates, _ = step(tf.trust_ratio(GROUPS, 0.02), params, tree(1))
    np.testing.assert_array_equal(updates["n"]["bias"], tree(1)["n"]["bias"])


def test_adagrad_norm_from_zero():
    nothing = jax.tree.map(jnp.zeros_like, tree(0))
    _, updates, state = step(tf.adagrad_norm(GROUPS, 0.0), tree(0), nothing)
    chex.assert_trees_all_equal(updates, nothing)
    _, updates, _ = step(tf.adagrad_norm(GROUPS, 0.0), tree(0), tree(1), state)
    np.testing.assert_allclose(gr.norm2(GROUPS, updates), 1, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_a_fixed_effective_rate_is_projected_sgd():
    problem = toys.noisy_rayleigh(6)
    G = gr.norm2(problem.groups, problem.params)[0]
    fixed = optax.chain(tf.effective_rate(problem.groups), optax.sgd(0.2))
    projected = optax.chain(optax.sgd(0.2 * G), tf.keep_norm(problem.groups))
    assert equivalence.gap(fixed, projected, problem, 100).units < 1e-12
    other = optax.chain(optax.sgd(0.2), tf.keep_norm(problem.groups))
    assert equivalence.gap(fixed, other, problem, 100).units > 1e-3


@pytest.mark.usefixtures("float64")
def test_sgd_on_an_invariant_unit_is_delayed_wngrad_on_the_unit_sphere():
    problem = toys.noisy_rayleigh(6)
    problem = problem._replace(params=gr.unit_vectors(problem.groups, problem.params))

    def on_sphere(delayed):
        initial = equivalence.wngrad_initial(0.3, 1.0)
        scalar = tf.wngrad(problem.groups, initial, delayed=delayed)
        return optax.chain(scalar, optax.sgd(1.0), tf.set_norm(problem.groups, 1.0))

    assert equivalence.gap(optax.sgd(0.3), on_sphere(True), problem, 100).units < 1e-12
    assert equivalence.gap(optax.sgd(0.3), on_sphere(False), problem, 100).units > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(3))
def test_gdnp_contracts_as_fast_as_proved(seed):
    """Kohler et al.: by (1 - mu / L)^2 each step at least, and some step is not much faster."""
    rng = np.random.default_rng(seed)
    spectrum = rng.uniform(1, 10, 5)
    S, b = jnp.diag(jnp.asarray(spectrum)), jnp.asarray(rng.standard_normal(5))

    def rho(params):
        w = params["w"]
        return -((b @ w) ** 2) / (w @ S @ w)

    tx = optax.chain(tf.gdnp(toys.ONE_UNIT, spectrum.max()), optax.sgd(1.0))
    params = {"w": jnp.asarray(rng.standard_normal(5))}
    least = -b @ jnp.linalg.solve(S, b)
    bound = (1 - spectrum.min() / spectrum.max()) ** 2
    ratios = []
    for _ in range(15):
        value, grads = jax.value_and_grad(rho)(params)
        given = {"value": value, "variance": (params["w"] @ S @ params["w"])[None]}
        updates, _ = tx.update(grads, tx.init(params), params, **given)
        params = optax.apply_updates(params, updates)
        ratios.append((rho(params) - least) / (value - least))
    assert max(ratios) <= bound * (1 + 1e-9)
    assert max(ratios) > 0.3 * bound


def test_gdnp_stays_at_a_stationary_point():
    tx, params = tf.gdnp(toys.ONE_UNIT, 1.0), {"w": jnp.ones(2)}
    nothing = {"w": jnp.zeros(2)}
    updates, _ = tx.update(
        nothing, tx.init(params), params, value=jnp.zeros(()), variance=jnp.ones(1)
    )
    np.testing.assert_array_equal(updates["w"], 0)


def test_a_large_power_of_the_step_does_not_overflow():
    tx = tf.weighted_adagrad_momentum(toys.ONE_UNIT, 0.0, power=10.0, eps=1e-30)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)._replace(steps=jnp.int32(10**6), weights=jnp.float32(10**6 / 11))
    updates, state = tx.update(params, state, params)
    np.testing.assert_allclose(state.weights, 10**6 / 11, rtol=1e-4)
    np.testing.assert_allclose(updates["w"] ** -2, 11, rtol=1e-2)  # t of which 11 / t is the last


def test_gdnp_needs_what_the_loss_must_give():
    tx = tf.gdnp(GROUPS, 1.0)
    with pytest.raises(ValueError, match="gdnp needs the loss and the variances"):
        tx.update(tree(1), tx.init(tree(0)), tree(0), value=loss(tree(0)))
