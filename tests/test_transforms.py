"""Transformations x laws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate import groups as gr
from bnrate import transforms
from bnrate.groups import Group, Groups, Member

GROUPS = Groups(
    [
        Group([Member("a/kernel", 1)]),
        Group([Member("n/bias"), Member("n/scale")]),
    ]
)


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"kernel": (6, 4)}, "n": {"bias": (4,), "scale": (4,)}, "head": (4, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def by_group(rate, groups=GROUPS):
    return transforms.by_group(groups, invariant=optax.sgd(rate), rest=optax.sgd(0.01))


def keep_norm(rate, groups=GROUPS):
    return optax.chain(optax.sgd(rate), transforms.keep_norm(groups))


def keep_norm_inside(rate, groups=GROUPS):
    """In a partition, where the rest is masked out."""
    inside = optax.chain(optax.sgd(rate, momentum=0.9), transforms.keep_norm(groups))
    return transforms.by_group(groups, invariant=inside, rest=optax.sgd(0.01, momentum=0.9))


RULES = {f.__name__: f for f in (by_group, keep_norm, keep_norm_inside)}
KEEP = {name: rule for name, rule in RULES.items() if name.startswith("keep")}


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def step(tx, params, grads):
    updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), updates, state


every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_keep = pytest.mark.parametrize("rule", KEEP.values(), ids=KEEP)


@every_rule
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_and_shapes_are_kept(rule, dtype):
    params = tree(0, dtype)
    tx = rule(0.1)
    _, updates, state = step(tx, params, tree(1, dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


@every_rule
def test_one_compilation_serves_all_rates(rule):
    traces = []

    @jax.jit
    def stepped(rate, params, grads):
        traces.append(rate)
        return step(rule(rate), params, grads)[0]

    for rate in (0.1, 1.0, 10.0):
        stepped(jnp.float32(rate), tree(0), tree(1))
    assert len(traces) == 1


@every_rule
def test_vmap_over_rates_equals_a_loop(rule):
    rates = jnp.array([0.1, 1.0, 10.0])
    vmapped = jax.vmap(lambda rate: step(rule(rate), tree(0), tree(1))[0])(rates)
    looped = [step(rule(rate), tree(0), tree(1))[0] for rate in rates]
    chex.assert_trees_all_close(vmapped, jax.tree.map(lambda *x: jnp.stack(x), *looped), rtol=1e-5)


@every_rule
@pytest.mark.usefixtures("standard_promotion")  # optax's wrappers count steps in integers
def test_extra_arguments_and_other_wrappers_are_accepted(rule):
    tx = optax.with_extra_args_support(optax.chain(rule(0.1), optax.identity()))
    params = tree(0)
    tx.update(tree(1), tx.init(params), params, value=jnp.float32(1.0))
    multi = optax.MultiSteps(rule(0.1), every_k_schedule=2)
    multi.update(tree(1), multi.init(params), params)
    injected = optax.inject_hyperparams(rule, static_args=("groups",))(rate=0.1, groups=GROUPS)
    injected.update(tree(1), injected.init(params), params)


@every_rule
def test_a_group_that_does_not_fit_is_refused_at_once(rule):
    wrong = Groups([Group([Member("a/kernle")])])
    with pytest.raises(ValueError, match="'a/kernle' of a group is not in the tree"):
        rule(0.1, wrong).init(tree(0))


@every_rule
@pytest.mark.parametrize("c", [0.01, 0.5, 30.0])
def test_rescaling_law(rule, c):
    """w -> c w, grad -> grad / c, rate -> c^2 rate: the same directions."""
    params, grads = tree(0), tree(1)
    up = jnp.full(len(gr.units(GROUPS, params)), c)
    here, _, _ = step(rule(0.3), params, grads)
    there, _, _ = step(
        rule(0.3 * c**2), gr.rescale(GROUPS, params, up), gr.rescale(GROUPS, grads, 1 / up)
    )
    directions = [gr.leaves(gr.unit_vectors(GROUPS, end)) for end in (here, there)]
    for path in GROUPS.paths:
        np.testing.assert_allclose(directions[0][path], directions[1][path], atol=1e-5)


def test_by_group_uses_each_rate_on_its_side():
    params, grads = tree(0), tree(1)
    _, updates, _ = step(by_group(0.5), params, grads)
    for path, update in gr.leaves(updates).items():
        rate = 0.5 if path in GROUPS.paths else 0.01
        np.testing.assert_allclose(update, -rate * gr.leaves(grads)[path], rtol=1e-6)


def test_by_group_without_groups_trains_everything_as_rest():
    grads = tree(1)
    _, updates, _ = step(by_group(0.5, Groups()), tree(0), grads)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.01 * g, grads))


@every_keep
@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e4])
def test_the_norm_is_kept(rule, rate):
    params = tree(0)
    new, _, _ = step(rule(rate), params, tree(1))
    np.testing.assert_allclose(gr.norm2(GROUPS, new), gr.norm2(GROUPS, params), rtol=1e-5)


def test_keep_norm_is_the_step_rescaled_and_leaves_the_rest():
    params, grads = tree(0), tree(1)
    plain, kept = step(optax.sgd(0.7), params, grads)[0], step(keep_norm(0.7), params, grads)[0]
    factors = jnp.sqrt(gr.norm2(GROUPS, params) / gr.norm2(GROUPS, plain))
    expected = gr.rescale(GROUPS, plain, factors)
    chex.assert_trees_all_close(kept, expected, rtol=1e-5)
    np.testing.assert_array_equal(kept["head"], plain["head"])


@pytest.mark.parametrize("short_of_zero", [1e-2, 1e-4])
def test_the_norm_is_kept_through_a_step_that_nearly_ends_at_zero(short_of_zero):
    params = tree(0)
    tx = transforms.keep_norm(GROUPS)
    updates = jax.tree.map(lambda p: (short_of_zero - 1) * p, params)
    new = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    np.testing.assert_allclose(gr.norm2(GROUPS, new), gr.norm2(GROUPS, params), rtol=1e-5)


def test_a_step_that_overflows_is_lost_visibly():
    params = tree(0)
    new, _, _ = step(keep_norm(1e30), params, tree(1))
    assert jnp.all(jnp.isnan(new["a"]["kernel"]))


def test_the_norm_does_not_drift_over_many_small_steps(key):
    """Rounding must not pull one way: 5000 steps stay within a random walk of ulps."""
    tx, params = keep_norm(1e-4), tree(0)

    def body(params, k):
        grads = gr.tangent(
            GROUPS, params, jax.tree.map(lambda p: jax.random.normal(k, p.shape), params)
        )
        return step(tx, params, grads)[0], None

    end, _ = jax.lax.scan(body, params, jax.random.split(key, 5000))
    np.testing.assert_allclose(gr.norm2(GROUPS, end), gr.norm2(GROUPS, params), rtol=1e-5)


def test_zero_units_and_zero_gradients():
    params = tree(0)
    params["a"]["kernel"] = params["a"]["kernel"].at[:, 1].set(0)
    new, _, _ = step(keep_norm(1.0), params, tree(1))
    np.testing.assert_array_equal(new["a"]["kernel"][:, 1], 0)
    still, _, _ = step(keep_norm(1.0), params, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(still, params)
    # a step that ends at zero has no direction to rescale
    ended, _, _ = step(keep_norm(1.0), params, params)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(ended))
    np.testing.assert_array_equal(ended["n"]["scale"], 0)


def test_nan_passes_through_and_stays_in_its_unit():
    grads = tree(1)
    grads["a"]["kernel"] = grads["a"]["kernel"].at[0, 2].set(jnp.nan)
    new, _, _ = step(keep_norm(1.0), tree(0), grads)
    assert jnp.all(jnp.isnan(new["a"]["kernel"][:, 2]))
    assert jnp.all(jnp.isfinite(new["a"]["kernel"][:, :2]))
    assert jnp.all(jnp.isfinite(new["head"]))


def test_keep_norm_needs_the_parameters():
    tx = transforms.keep_norm(GROUPS)
    with pytest.raises(ValueError, match="keep_norm needs the parameters"):
        tx.update(tree(1), tx.init(tree(0)))
