"""Rates over time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from bnrate import transforms as tf
from bnrate.theory import equivalence


def decayed(rate, decay, momentum):
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum))


def varying(t):
    return 0.1 * (1 + 0.5 * jnp.cos(0.3 * t.astype(float)))


SETTINGS = {
    "no momentum": (0.1, 0.05, 0.0),
    "momentum": (0.02, 0.1, 0.9),
    "rates that vary": (varying, 0.05, 0.5),
    "decays that vary": (0.1, varying, 0.3),
    "no decay": (0.1, 0.0, 0.9),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_without_decay_the_same_directions(setting):
    problem = toys.rayleigh([0.0, 1.0, 3.0], [0.2, 0.6, 0.7])
    rate, decay, momentum = setting
    # optax counts the steps of a decay that varies only when told to
    with_decay = decayed(rate, decay, momentum)
    if callable(decay):
        scheduled = optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=decay)
        with_decay = optax.chain(scheduled, optax.sgd(rate, momentum))
    without = tf.exponential_equivalent(problem.groups, rate, decay, momentum)
    with jax.numpy_dtype_promotion("standard"):
        gap = equivalence.gap(with_decay, without, problem, 100)
        other = equivalence.gap(decayed(0.12, 0.05, 0.0), without, problem, 100)
    assert gap.units < 1e-12
    assert other.units > 1e-3


def test_ten_thousand_steps_in_float32_overflow_nowhere():
    """The plain schedule would; here the weights are at most twice as long as those with decay."""
    problem = toys.noise(10)

    def norms(tx):
        def body(carry, t):
            params, state = carry
            updates, state = tx.update(jax.grad(problem.loss)(params, t), state, params)
            return (optax.apply_updates(params, updates), state), jnp.linalg.norm(params["w"])

        start = (problem.params, tx.init(problem.params))
        return jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(10_000))[1])(start)

    ours = norms(tf.exponential_equivalent(problem.groups, 0.1, 0.1))
    ratio = ours / norms(decayed(0.1, 0.1, 0.0))
    assert jnp.all((ratio > 0.99) & (ratio < 2.01))
    assert jnp.isinf(equivalence.exponential_rate(0.1, 0.1)(10_000))


def test_the_theorems_schedule():
    np.testing.assert_allclose(
        tf.inverse_power(3.0, 0.25)(jnp.arange(5.0)), 3 / (1 + np.arange(5)) ** 0.25
    )


BAD = {
    "decays at once": ((1.0, 1.0, 0.0), "rate . decay is 1, and must be below 1"),
    "no real root": ((0.1, 0.5, 0.9), r"at most .1 - sqrt.momentum..\^2 = 0.00263"),
    "negative decay": ((0.1, -0.5, 0.9), "weight_decay of exponential_equivalent must lie in"),
    "momentum": ((0.1, 0.01, 1.0), "momentum of exponential_equivalent must lie in"),
}


@pytest.mark.parametrize(("setting", "message"), BAD.values(), ids=BAD)
def test_settings_without_an_equivalent_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        tf.exponential_equivalent(toys.ONE_UNIT, *setting)


def test_in_a_compiled_run_they_are_data():
    problem = toys.rayleigh([0.0, 1.0], [0.6, 0.8])

    @jax.jit
    def stepped(rate):
        tx = tf.exponential_equivalent(problem.groups, rate, 1.0)
        return tx.update(problem.params, tx.init(problem.params), problem.params)[0]["w"]

    assert jnp.all(jnp.isnan(stepped(2.0)))
    assert jnp.all(jnp.isfinite(stepped(0.5)))
