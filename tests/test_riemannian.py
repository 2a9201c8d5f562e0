"""Steps along great circles, and what is carried along."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from bnrate import groups as gr
from bnrate import transforms as tf

GROUPS = toys.ONE_UNIT


def turned(tx, params, grads, state=None):
    updates, state = tx.update(grads, tx.init(params) if state is None else state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("radius", [1.0, 3.0])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 2.0, 6.0])
def test_the_angle_of_a_step_is_rate_times_spherical_gradient(radius, rate):
    params, grads = {"w": radius * jnp.eye(4)[0]}, {"w": jnp.array([5.0, 0.3, 0.4, 0.0]) / radius}
    w = turned(tf.riemannian_sgd(GROUPS, rate), params, grads)[0]["w"] / radius
    angle = 0.5 * rate
    expected = [np.cos(angle), -0.6 * np.sin(angle), -0.8 * np.sin(angle), 0]
    np.testing.assert_allclose(w, expected, atol=1e-15)
    short = turned(tf.riemannian_sgd(GROUPS, rate, retraction=True), params, grads)[0]["w"]
    np.testing.assert_allclose(short[1] / short[0], -0.6 * angle, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_momentum_stays_tangent_and_as_long():
    """Parallel transport is an isometry; projection is not."""
    problem = toys.noisy_rayleigh(6)
    for retraction in (False, True):
        tx, params, state = (
            tf.riemannian_sgd(GROUPS, 0.3, 0.9, retraction=retraction),
            problem.params,
            None,
        )
        lengths = []
        for t in range(10):
            before = jnp.zeros(1) if state is None else gr.norm2(GROUPS, state.momentum)
            gradient = {"w": jnp.zeros(6)} if t else jax.grad(problem.loss)(params, t)
            params, state = turned(tx, params, gradient, state)
            along = jnp.sum(params["w"] * state.momentum["w"])
            np.testing.assert_allclose(along, 0, atol=1e-14)
            lengths.append(gr.norm2(GROUPS, state.momentum) / (0.81 * before))
        isometric = np.allclose(lengths[1:], 1, rtol=1e-12)
        assert isometric != retraction


def test_a_long_gradient_is_clipped_unit_by_unit():
    params = {"w": jnp.eye(4)[0]}
    tx = tf.grassmann_sgd(GROUPS, 1.0, clip=0.1)
    for length in (0.05, 0.1, 30.0):
        w = turned(tx, params, {"w": length * jnp.eye(4)[1]})[0]["w"]
        np.testing.assert_allclose(jnp.arctan2(-w[1], w[0]), min(length, 0.1), rtol=1e-6)


def test_schedules_are_followed():
    params, grads = {"w": jnp.eye(4)[0]}, {"w": jnp.eye(4)[1]}
    tx = tf.riemannian_sgd(GROUPS, lambda count: jnp.where(count == 0, 0.1, 0.0))
    once, state = turned(tx, params, grads)
    twice, _ = turned(tx, once, grads, state)
    assert jnp.abs(once["w"][1] + jnp.sin(0.1)) < 1e-6
    np.testing.assert_array_equal(once["w"], twice["w"])
