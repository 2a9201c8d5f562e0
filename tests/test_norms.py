"""What each transformation of norms does, beyond the laws that all meet."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from test_transforms import GROUPS, UNITS, gradient, loss, step, tree

from bnrate import groups as gr
from bnrate import transforms as tf
from bnrate.groups import Groups


def by_group(rate, groups=GROUPS):
    return tf.by_group(groups, invariant=optax.sgd(rate), rest=optax.sgd(0.01))


def kept(rate):
    return optax.chain(optax.sgd(rate), tf.keep_norm(GROUPS))


def test_by_group_uses_each_rate_on_its_side():
    grads = tree(1)
    _, updates, _ = step(by_group(0.5), tree(0), grads)
    expected = gr.combine(
        GROUPS, *(jax.tree.map(lambda g, r=r: -r * g, grads) for r in (0.5, 0.01))
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_by_group_shows_each_side_its_entries_alone():
    """The norm over a side, by which it is clipped, is that of its entries."""
    params, grads = tree(0), tree(1)
    clipped = {side: optax.clip_by_global_norm(1.0) for side in ("invariant", "rest")}
    _, updates, _ = step(tf.by_group(GROUPS, **clipped), params, grads)
    for of in (gr.members, gr.rest):
        np.testing.assert_allclose(optax.tree.norm(of(GROUPS, updates)), 1.0, rtol=1e-5)
        small = 1 / optax.tree.norm(of(GROUPS, grads))
        scaled = jax.tree.map(lambda g, small=small: small * g, of(GROUPS, grads))
        chex.assert_trees_all_close(of(GROUPS, updates), scaled, rtol=1e-5)


def test_by_group_of_one_axis_is_a_partition():
    """Where no leaf is split it is optax's, state and all."""
    groups = Groups([*GROUPS][:3])
    tx = by_group(0.5, groups)
    assert set(tx.init(tree(0)).inner_states) == {"invariant", "rest"}


def test_by_group_without_groups_trains_everything_as_rest():
    grads = tree(1)
    with pytest.raises(ValueError, match=r"by_group got no groups, .* give allow_empty=True"):
        by_group(0.5, Groups())
    tx = tf.by_group(Groups(), invariant=optax.sgd(0.5), rest=optax.sgd(0.01), allow_empty=True)
    _, updates, _ = step(tx, tree(0), grads)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.01 * g, grads))


def test_keep_norm_is_the_step_rescaled():
    params, grads = tree(0), tree(1)
    plain, rescaled = (step(tx, params, grads)[0] for tx in (optax.sgd(0.7), kept(0.7)))
    factors = jnp.sqrt(gr.norm2(GROUPS, params) / gr.norm2(GROUPS, plain))
    chex.assert_trees_all_close(rescaled, gr.rescale(GROUPS, plain, factors), rtol=1e-5)
    np.testing.assert_array_equal(rescaled["head"], plain["head"])


def test_columns_of_a_stack_keep_their_norms_under_adam(key):
    """Each channel of each layer, and each head, over 400 steps."""
    tx, params = optax.chain(optax.adam(1e-3), tf.keep_norm(GROUPS)), tree(0)

    def body(carry, k):
        noise = jax.tree.map(lambda p: jax.random.normal(k, p.shape), params)
        grads = jax.tree.map(jnp.add, gradient(carry[0]), noise)
        new, _, state = step(tx, carry[0], grads, carry[1])
        return (new, state), None

    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes
        many = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(key, 400))[0])
        end, _ = many((params, tx.init(params)))
    for norms in (
        lambda t: jnp.linalg.norm(t["stack"], axis=1),
        lambda t: jnp.linalg.norm(t["qkv"][:, :4].reshape(3, 2, 2), axis=(0, 2)),
    ):
        np.testing.assert_allclose(norms(end), norms(params), rtol=1e-5)
    assert jnp.max(jnp.abs(end["stack"] - params["stack"])) > 0.05


@pytest.mark.parametrize("short_of_zero", [1e-2, 1e-4])
def test_the_norm_is_kept_through_a_step_that_nearly_ends_at_zero(short_of_zero):
    params, tx = tree(0), tf.keep_norm(GROUPS)
    updates = jax.tree.map(lambda p: (short_of_zero - 1) * p, params)
    new, _, _ = step(tx, params, updates)
    np.testing.assert_allclose(gr.norm2(GROUPS, new), gr.norm2(GROUPS, params), rtol=1e-5)


def test_a_step_that_overflows_is_lost_visibly():
    new, _, _ = step(kept(1e30), tree(0), tree(1))
    assert jnp.all(jnp.isnan(new["a"]["kernel"]))


def test_units_without_a_direction_stay_or_end_at_zero():
    params = tree(0)
    params["a"]["kernel"] = params["a"]["kernel"].at[:, 1].set(0)
    new, _, _ = step(kept(1.0), params, tree(1))
    np.testing.assert_array_equal(new["a"]["kernel"][:, 1], 0)
    ended, _, _ = step(kept(1.0), params, params)
    np.testing.assert_array_equal(ended["n"]["scale"], 0)
    nan, _, _ = step(optax.chain(optax.sgd(1.0), tf.set_norm(GROUPS, 1.0)), params, params)
    assert jnp.all(jnp.isnan(nan["n"]["scale"]))


@pytest.mark.parametrize("radius", [0.5, jnp.arange(1.0, UNITS + 1)])
def test_set_norm_sets_the_norm_and_keeps_the_direction(radius):
    params, grads = tree(0), tree(1)
    new, _, _ = step(optax.chain(optax.sgd(0.3), tf.set_norm(GROUPS, radius)), params, grads)
    plain, _, _ = step(optax.sgd(0.3), params, grads)
    np.testing.assert_allclose(jnp.sqrt(gr.norm2(GROUPS, new)), jnp.full(UNITS, radius), rtol=1e-6)
    chex.assert_trees_all_close(
        gr.unit_vectors(GROUPS, new), gr.unit_vectors(GROUPS, plain), rtol=1e-5
    )


def test_set_norm_holds_the_norm_in_bfloat16(key):
    tx, params = optax.chain(optax.sgd(0.01), tf.set_norm(GROUPS)), tree(0, jnp.bfloat16)

    def body(carry, k):
        grads = jax.tree.map(lambda p: jax.random.normal(k, p.shape, p.dtype), params)
        new, _, state = step(tx, *carry[:1], grads, carry[1])
        return (new, state), None

    scan = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(key, 1000))[0])
    end, _ = scan((params, tx.init(params)))
    np.testing.assert_allclose(gr.norm2(GROUPS, end), gr.norm2(GROUPS, params), rtol=0.02)


def test_tangent_removes_the_radial_part_alone():
    params, updates = tree(0), tree(1)
    _, left, _ = step(tf.tangent(GROUPS), params, updates)
    removed = jax.tree.map(lambda u, t: u - t, updates, left)
    along = gr.inner(GROUPS, params, updates) / gr.norm2(GROUPS, params)
    expected = gr.members(GROUPS, gr.rescale(GROUPS, params, along))
    chex.assert_trees_all_close(gr.members(GROUPS, removed), expected, atol=1e-6)


HIDDEN = {
    "SGD": optax.sgd(0.5),
    "decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5)),
    "momentum": optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9)),
    "Adam": optax.adamw(0.1),
}


@pytest.mark.parametrize("rule", HIDDEN.values(), ids=HIDDEN)
def test_bounded_norm_goes_where_the_rule_goes_alone(rule):
    """In the same directions for an invariant loss, with the norms held."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's adam promotes
        free = held = tree(0, jnp.float64)
        txs = rule, tf.bounded_norm(GROUPS, rule)
        states, norms = [tx.init(free) for tx in txs], gr.norm2(GROUPS, free)
        for _ in range(20):
            free, _, states[0] = step(txs[0], free, state=states[0])
            held, _, states[1] = step(txs[1], held, state=states[1])
        for path, unit in gr.members(GROUPS, gr.unit_vectors(GROUPS, free)).items():
            theirs = gr.members(GROUPS, gr.unit_vectors(GROUPS, held))[path]
            np.testing.assert_allclose(unit, theirs, atol=1e-12)
        np.testing.assert_allclose(gr.norm2(GROUPS, held), norms, rtol=1e-13)
        assert np.all(abs(gr.norm2(GROUPS, free) / norms - 1) > 0.01)
        np.testing.assert_allclose(states[1].hidden_norm ** 2, gr.norm2(GROUPS, free), rtol=1e-12)


def test_bounded_norm_trains_the_direction_of_a_weight_that_is_not_invariant():
    """Against the explicit parametrisation w = rho v / |v|."""
    params, rule = {"w": jnp.array([3.0, 4.0])}, optax.sgd(0.1, 0.9)

    def square(w):
        return jnp.sum((w - jnp.array([1.0, -2.0])) ** 2)

    def hidden(v):
        return square(5 * v["w"] / jnp.linalg.norm(v["w"]))

    tx, v = tf.bounded_norm(toys.ONE_UNIT, rule), params
    states = [tx.init(params), rule.init(v)]
    for _ in range(10):
        updates, states[0] = tx.update({"w": jax.grad(square)(params["w"])}, states[0], params)
        params = optax.apply_updates(params, updates)
        updates, states[1] = rule.update(jax.grad(hidden)(v), states[1])
        v = optax.apply_updates(v, updates)
        np.testing.assert_allclose(params["w"], 5 * v["w"] / jnp.linalg.norm(v["w"]), rtol=1e-4)


@pytest.mark.parametrize("rule", [tf.riemannian_adam, tf.rotational])
def test_a_step_along_the_weights_alone_turns_nothing(rule):
    tx, params = rule(GROUPS, 0.03), tree(0)
    state = tx.init(params)
    for _ in range(10):
        params, _, state = step(tx, params, params, state)
    directions = [gr.members(GROUPS, gr.unit_vectors(GROUPS, t)) for t in (params, tree(0))]
    chex.assert_trees_all_close(*directions, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_rotational_turns_by_its_angle_on_average(decay, key):
    """Steps of any size, with a radial part: the root mean square of the angles is what is set."""
    problem = toys.noise(50)
    tx = optax.chain(optax.sgd(7.0), tf.rotational(problem.groups, 0.02, decay))

    def body(carry, k):
        params, state = carry
        lengths, direction = jax.random.split(k)
        grads = {"w": jax.random.normal(direction, (50,)) + 3 * params["w"]}
        grads = jax.tree.map(lambda g: g * jax.random.uniform(lengths, (), g.dtype), grads)
        updates, state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        cosine = jnp.sum(params["w"] * new["w"]) / jnp.sum(new["w"] ** 2)
        return (new, state), jnp.sqrt(jnp.maximum(2 - 2 * cosine, 0))

    start = (problem.params, tx.init(problem.params))
    angles = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(key, 2000))[1])(start)
    if decay == 0:
        np.testing.assert_allclose(angles, np.arctan(0.02), rtol=5e-3)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(angles**2)), 0.02, rtol=0.05)


def test_the_norms_law_would_catch_a_rule_that_grows():
    new, _, _ = step(optax.sgd(1.0), tree(0))
    assert jnp.all(gr.norm2(GROUPS, new) > gr.norm2(GROUPS, tree(0)) * 1.001)
    assert jnp.isfinite(loss(new))
