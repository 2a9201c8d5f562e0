"""The rule that needs no rate: what it measures, and what it does with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate import transforms as tf
from bnrate.groups import Group, Groups, Member

GROUPS = Groups([Group([Member("w")])])
SPECTRUM = jnp.array([0.5, 1.0, 4.0])


def loss(params):
    """A direction, and a quadratic with a known Hessian in the rest."""
    w, g = params["w"], params["g"]
    return w[0] / jnp.linalg.norm(w) + 0.5 * jnp.sum(SPECTRUM * g**2) + 0.1 * params["linear"]


def start():
    return {"w": jnp.array([0.6, 0.8]), "g": jnp.ones(3), "linear": jnp.array(2.0)}


def stepped(tx, params, state=None, of=loss):
    state = tx.init(params) if state is None else state
    updates, state = tx.update(jax.grad(of)(params), state, params, value_fn=of)
    return optax.apply_updates(params, updates), updates, state


def test_the_rest_takes_the_rate_of_its_largest_curvature():
    params = start()
    _, updates, state = stepped(tf.auto(GROUPS, steady=jnp.inf, safety=0.25), params)
    np.testing.assert_allclose(state.curvature, 4, rtol=1e-5)
    grads = jax.grad(loss)(params)
    np.testing.assert_allclose(updates["g"], -2 * 0.75 / 4 * grads["g"], rtol=1e-5)
    np.testing.assert_allclose(updates["linear"], -2 * 0.75 / 4 * 0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["w"], -0.3 * grads["w"], rtol=1e-6)


def test_of_a_leaf_the_entries_outside_the_groups_are_the_rest():
    """The first column a direction, the other three a quadratic, in one leaf."""
    groups = Groups([Group([Member("w", part=[(1, 0, 1)])])])
    params = {"w": jnp.ones((2, 4)), "linear": jnp.array(2.0)}

    def of(params):
        apart = {"w": params["w"][:, 0], "g": params["w"][0, 1:], "linear": params["linear"]}
        return loss(apart)

    _, updates, state = stepped(tf.auto(groups, steady=jnp.inf), params, of=of)
    np.testing.assert_allclose(state.curvature, 4, rtol=1e-5)
    grads = jax.grad(of)(params)
    rates = jnp.array([[0.3, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(updates["w"], -rates * grads["w"], rtol=1e-5)


def test_noisy_batches_bring_the_rate_of_the_rest_down_with_time():
    params, tx = start(), tf.auto(GROUPS, 0.7, steady=8.0)
    state = tx.init(params)._replace(steps=jnp.int32(24), curvature=jnp.float32(5))
    grads = jax.grad(loss)(params)
    _, updates, _ = stepped(tx, params, state)
    np.testing.assert_allclose(updates["g"], -1 / 5 / 2 * grads["g"], rtol=1e-6)
    np.testing.assert_allclose(updates["w"], -0.7 * grads["w"], rtol=1e-6)


def test_the_largest_curvature_so_far_counts_every_so_many_steps():
    def flatter(params):
        return 0.1 * loss(params)

    def steeper(params):
        return 3 * loss(params)

    tx, seen = tf.auto(GROUPS, 0.1, every=2, steady=jnp.inf), []
    params, state = start(), None
    for of in (loss, flatter, flatter, steeper, steeper):
        params, _, state = stepped(tx, params, state, of)
        seen.append(float(state.curvature))
    np.testing.assert_allclose(seen, [4, 4, 4, 4, 12], rtol=1e-4)


def test_until_the_loss_curves_the_rest_takes_the_rate_of_the_groups():
    def flat(params):
        return jnp.sum(params["g"])

    _, updates, state = stepped(tf.auto(GROUPS, 0.2, steady=jnp.inf), start(), of=flat)
    assert state.curvature == 0
    np.testing.assert_allclose(updates["g"], -0.2, rtol=1e-6)


@pytest.mark.parametrize("first", [0.6, 0.1, 0.01, 1e-4])
def test_a_curvature_that_grows_at_once_is_seen_at_once(first):
    """The rest's rate is up to 1e8 for a step, and the run settles all the same."""

    def of(params):
        w = params["w"] / jnp.linalg.norm(params["w"])
        return (w[0] * params["scale"] - 2) ** 2

    tx = tf.auto(GROUPS)

    def body(carry, _):
        params, _, state = stepped(tx, *carry, of)
        return (params, state), of(params)

    params = {"w": jnp.array([first, 1.0]), "scale": jnp.array(1.0)}
    run = jax.jit(lambda start: jax.lax.scan(body, start, length=200)[1])
    assert run((params, tx.init(params)))[-1] < 1e-6


def test_what_is_not_finite_does_not_count_but_where_nothing_else_is_known():
    def kinked(params):
        return jnp.sum(jnp.abs(params["g"]) ** 1.5)

    params = start() | {"g": jnp.array([0.0, 1.0, 1.0])}
    tx = tf.auto(GROUPS)
    _, updates, _ = stepped(tx, params, of=kinked)
    assert jnp.all(jnp.isnan(updates["g"]))
    known = tx.init(params)._replace(curvature=jnp.float32(4.0))
    _, updates, state = stepped(tx, params, known, of=kinked)
    assert state.curvature == 4
    assert jnp.all(jnp.isfinite(updates["g"]))


def test_more_dimensions_than_iterations():
    """The largest Ritz value lies below the largest curvature; with its residual it does not."""
    spectrum = jnp.linspace(1, 2, 200).at[-1].set(2.2)

    def of(params):
        return 0.5 * jnp.sum(spectrum * params["g"] ** 2)

    params, found = {"w": jnp.array([0.6, 0.8]), "g": jnp.ones(200)}, []
    for iterations in (3, 6, 100):
        _, _, state = stepped(tf.auto(GROUPS, iterations=iterations), params, of=of)
        found.append(float(state.curvature))
    assert min(found) > 2
    np.testing.assert_allclose(found[-1], 2.2, rtol=1e-4)
    state = tf.auto(GROUPS).init(params)
    later = stepped(tf.auto(GROUPS, iterations=3), params, state._replace(steps=jnp.int32(20)), of)
    assert abs(later[2].curvature - found[0]) > 1e-4  # another start


def test_without_a_rest_it_is_plain_sgd():
    params = {"w": jnp.array([0.6, 0.8])}

    def of(params):
        return params["w"][0] / jnp.linalg.norm(params["w"])

    _, updates, _ = stepped(tf.auto(GROUPS, 0.2), params, of=of)
    np.testing.assert_allclose(updates["w"], -0.2 * jax.grad(of)(params)["w"], rtol=1e-6)


def test_what_it_needs_is_said():
    tx, params = tf.auto(GROUPS), start()
    with pytest.raises(ValueError, match="auto needs the parameters and the loss: call update"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(
        ValueError, match="leaf 'n' of the rest must be an array of floats, got int32"
    ):
        tx.init({"w": jnp.ones(2), "n": jnp.zeros(2, jnp.int32)})
    inside = tf.by_group(GROUPS, invariant=tf.auto(GROUPS), rest=optax.sgd(0.1))
    with pytest.raises(ValueError, match="auto needs all parameters; use it outside"):
        inside.init(params)
