"""Transformations x laws: a new transformation is a row of `RULES` and meets every law."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import linen, nnx

from bnrate import groups as gr
from bnrate import transforms as tf
from bnrate.groups import Group, Groups, Member
from bnrate.transforms import units

GROUPS = Groups(
    [
        Group([Member("a/kernel", 1)]),
        Group([Member("n/bias"), Member("n/scale")]),
        Group([Member("stack", axes=(0, 2))]),  # each channel of each layer
        # Of a fused kernel the first third by heads, the second as a whole, the last not at all.
        Group([Member("qkv", 2, (3, 3, 2, 2), [(1, 0, 1)])]),
        Group([Member("qkv", (), (3, 3, 4), [(1, 1, 2)])]),
    ]
)
UNITS = 4 + 1 + 8 + 2 + 1


class Rule(NamedTuple):
    """A transformation, and what is claimed of it.

    Attributes:
      make: (groups, rate, c) -> the transformation; c: weights are that many times as long.
      exponent: with weights c times as long goes a rate c^exponent times as large.
      norm: units keep their norms.
      tangent: the steps are orthogonal to the units.
      rest: it decides about the rest, too.
      nonzero: a unit of norm zero is refused.
      spreads: NaN in one unit reaches others.
      rate: one at which it comes near the minimum of the test problems.
    """

    make: Callable[[Groups, float, float], optax.GradientTransformation]
    exponent: float
    norm: bool = False
    tangent: bool = False
    rest: bool = False
    nonzero: bool = False
    spreads: bool = False
    rate: float = 0.3

    def __call__(self, rate, groups=GROUPS, c=1.0):
        return self.make(groups, rate, c)


def after(rule, bare, **claims):
    """`bare(groups)`, after a rule of that rate."""
    return Rule(lambda groups, rate, c: optax.chain(rule(rate), bare(groups)), rest=True, **claims)


def before_sgd(bare, **claims):
    """`bare(groups, c)` with SGD of that rate after it."""
    return Rule(
        lambda groups, rate, c: optax.chain(bare(groups, c), optax.sgd(rate)), rest=True, **claims
    )


def momentum(rate):
    return optax.sgd(rate, momentum=0.5)


def inside(groups, rate, c):
    """In a partition, where the rest is masked out."""
    kept = optax.chain(optax.sgd(rate, momentum=0.5), tf.keep_norm(groups))
    return tf.by_group(groups, invariant=kept, rest=optax.sgd(0.01, momentum=0.9))


def hyperball(groups, rate, c):
    return optax.chain(tf.trust_ratio(groups), optax.sgd(rate), tf.set_norm(groups))


ON_SPHERE = {"exponent": 0, "norm": True, "nonzero": True}
RULES = {
    "by_group": Rule(
        lambda groups, rate, c: tf.by_group(
            groups, invariant=optax.sgd(rate), rest=optax.sgd(0.01)
        ),
        exponent=2,
        tangent=True,
        rest=True,
    ),
    "keep_norm": after(optax.sgd, tf.keep_norm, exponent=2, norm=True, rate=0.1),
    "keep_norm inside": Rule(inside, exponent=2, norm=True, rest=True),
    "set_norm": after(momentum, tf.set_norm, exponent=2, norm=True, nonzero=True),
    "hyperball": Rule(hyperball, rest=True, rate=0.01, **ON_SPHERE),
    "bounded_norm": Rule(
        lambda groups, rate, c: tf.bounded_norm(groups, momentum(rate)),
        exponent=2,
        norm=True,
        nonzero=True,
    ),
    "tangent": after(momentum, tf.tangent, exponent=2, tangent=True),
    "rotational": Rule(
        lambda groups, rate, c: optax.chain(momentum(1.0), tf.rotational(groups, rate)),
        rest=True,
        rate=0.01,
        **ON_SPHERE,
    ),
    "riemannian_sgd": Rule(lambda groups, rate, c: tf.riemannian_sgd(groups, rate), **ON_SPHERE),
    "riemannian_sgd, momentum": Rule(
        lambda groups, rate, c: tf.riemannian_sgd(groups, rate, 0.5), **ON_SPHERE
    ),
    "riemannian_sgd, retraction": Rule(
        lambda groups, rate, c: tf.riemannian_sgd(groups, rate, 0.5, retraction=True), **ON_SPHERE
    ),
    "riemannian_adam": Rule(
        lambda groups, rate, c: tf.riemannian_adam(groups, rate), **ON_SPHERE | {"rate": 0.03}
    ),
    "grassmann_sgd": Rule(lambda groups, rate, c: tf.grassmann_sgd(groups, rate), **ON_SPHERE),
    "grassmann_adam": Rule(
        lambda groups, rate, c: tf.grassmann_adam(groups, rate), **ON_SPHERE | {"rate": 0.03}
    ),
    "sgdp": Rule(lambda groups, rate, c: tf.sgdp(groups, rate, 0.5), exponent=2, spreads=True),
    "adamp": Rule(
        lambda groups, rate, c: tf.adamp(groups, rate), exponent=1, spreads=True, rate=0.01
    ),
    "effective_rate": before_sgd(lambda groups, c: tf.effective_rate(groups), exponent=0),
    "normalized_gradient": before_sgd(
        lambda groups, c: tf.normalized_gradient(groups), exponent=1, rate=0.01
    ),
    "trust_ratio": before_sgd(lambda groups, c: tf.trust_ratio(groups), exponent=0, rate=0.01),
    "wngrad": before_sgd(lambda groups, c: tf.wngrad(groups, 1 / c), exponent=1),
    "wngrad, delayed": before_sgd(
        lambda groups, c: tf.wngrad(groups, 1 / c, delayed=True), exponent=1
    ),
    "adagrad_norm": before_sgd(lambda groups, c: tf.adagrad_norm(groups, 0.1 / c), exponent=1),
    "delayed_adagrad": before_sgd(
        lambda groups, c: tf.delayed_adagrad(groups, 1 / c**2), exponent=1
    ),
    "delayed_adagrad, coordinate": before_sgd(
        lambda groups, c: tf.delayed_adagrad(groups, 1 / c**2, coordinate=True), exponent=1
    ),
    "weighted_adagrad_momentum": before_sgd(
        lambda groups, c: tf.weighted_adagrad_momentum(groups, power=2.0), exponent=1, rate=0.1
    ),
    "gdnp": before_sgd(lambda groups, c: tf.gdnp(groups, 4.0), exponent=0),
    "exponential_equivalent": Rule(
        lambda groups, rate, c: tf.exponential_equivalent(groups, rate, 0.01 / c**2, 0.5),
        exponent=2,
        rate=0.1,
    ),
    "auto": Rule(
        lambda groups, rate, c: tf.auto(groups, rate, every=2, iterations=3),
        exponent=2,
        tangent=True,
        rest=True,
    ),
}


def having(**claims):
    """A parametrisation over the rules of which this is claimed."""
    chosen = {
        name: rule
        for name, rule in RULES.items()
        if all(getattr(rule, claim) == value for claim, value in claims.items())
    }
    return pytest.mark.parametrize("rule", chosen.values(), ids=chosen)


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "a": {"kernel": (6, 4)}, "n": {"bias": (4,), "scale": (4,)}, "head": (4, 2),
        "stack": (2, 3, 4), "qkv": (3, 12),
    }  # fmt: skip
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def loss(params):
    """A Rayleigh quotient in each unit, and a square of the rest."""
    params = jax.tree.map(units.widened, params)
    q, k, v = jnp.split(params["qkv"], 3, 1)
    columns = [
        params["a"]["kernel"],
        jnp.concatenate([params["n"]["bias"], params["n"]["scale"]])[:, None],
        *params["stack"],
        jnp.swapaxes(q.reshape(3, 2, 2), 1, 2).reshape(6, 2),  # each head a column
        k.reshape(12, 1),
    ]
    quotients = sum(map(quotient, columns), jnp.zeros((), q.dtype))
    return quotients + jnp.sum((params["head"] - 1) ** 2) + jnp.sum((v - 1) ** 2)


def quotient(columns):
    """The sum of a Rayleigh quotient of each column."""
    spectrum = jnp.arange(1, len(columns) + 1, dtype=columns.dtype)[:, None]
    return jnp.sum(jnp.sum(spectrum * columns**2, 0) / jnp.sum(columns**2, 0))


gradient = jax.jit(jax.grad(loss))


def arguments(params, of=loss, groups=GROUPS):
    """What a loss may give along with its gradient."""
    return {
        "value": of(params),
        "value_fn": of,
        "variance": gr.norm2(groups, params),
        "unknown": None,
    }


def step(tx, params, grads=None, state=None):
    """One step; by default along the gradient of `loss`, from the first state."""
    given = arguments(params) if grads is None else arguments(params) | {"value": jnp.ones(())}
    grads = gradient(params) if grads is None else grads
    state = tx.init(params) if state is None else state
    updates, state = tx.update(grads, state, params, **given)
    return optax.apply_updates(params, updates), updates, state


def after_steps(rule, steps):
    """(rate, c, parameters) -> those after some steps on `loss`: one program for all."""

    @jax.jit
    def stepped(rate, c, params, state):
        return step(rule(rate, c=c), params, state=state)[::2]

    def run(rate, c, params):
        state = jax.jit(lambda rate, c, params: rule(rate, c=c).init(params))(rate, c, params)
        for _ in range(steps):
            params, state = stepped(rate, c, params, state)
        return params

    return run


@having()
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_and_shapes_are_kept(rule, dtype):
    params = tree(0, dtype)
    tx = rule(0.1)
    _, updates, state = jax.eval_shape(lambda p, g: step(tx, p, g), params, tree(1, dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(tx.init, params))


@having()
@pytest.mark.usefixtures("float64")
def test_in_float64_everything_is_in_float64(rule):
    params = tree(0, jnp.float64)
    tx = rule(0.1)
    _, updates, state = jax.eval_shape(lambda p, g: step(tx, p, g), params, tree(1, jnp.float64))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == jnp.float64 for leaf in floats)


@having()
def test_one_program_serves_all_rates_alone_and_under_vmap(rule):
    traces = []

    @jax.jit
    def stepped(rate, params, grads):
        traces.append(rate)
        return step(rule(rate), params, grads)[0]

    rates, params, grads = jnp.array([0.01, 0.1, 1.0]), tree(0), tree(1)
    looped = [stepped(rate, params, grads) for rate in rates]
    assert len(traces) == 1
    vmapped = jax.jit(jax.vmap(stepped, (0, None, None)))(rates, params, grads)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *looped)
    chex.assert_trees_all_close(vmapped, stacked, rtol=2e-5, atol=1e-6)


@having()
@pytest.mark.usefixtures("standard_promotion")  # optax's wrappers count steps in integers
def test_optax_wraps_it(rule):
    params, grads = tree(0), tree(1)

    def every_wrapper(params, grads):
        multi = optax.MultiSteps(rule(0.1), every_k_schedule=2)
        injected = optax.inject_hyperparams(rule, static_args=("groups",))(rate=0.1, groups=GROUPS)
        finite = optax.apply_if_finite(rule(0.1), 3)
        return [step(tx, params, grads)[:2] for tx in (multi, injected, finite)]

    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(every_wrapper, params, grads), [(params, grads)] * 3
    )


@having(rest=False)
def test_the_rest_passes_unchanged(rule):
    grads = tree(1)
    _, updates, _ = step(rule(0.1), tree(0), grads)
    same_rest(updates, grads)
    assert not np.allclose(updates["a"]["kernel"], grads["a"]["kernel"])
    assert not np.allclose(updates["qkv"][:, 4:8], grads["qkv"][:, 4:8])


def same_rest(a, b):
    chex.assert_trees_all_equal(gr.rest(GROUPS, a), gr.rest(GROUPS, b))


BARE = {
    "keep_norm": tf.keep_norm, "set_norm": tf.set_norm,
    "tangent": tf.tangent, "rotational": lambda groups: tf.rotational(groups, 0.1),
    "effective_rate": tf.effective_rate, "normalized_gradient": tf.normalized_gradient,
    "trust_ratio": tf.trust_ratio, "wngrad": tf.wngrad, "adagrad_norm": tf.adagrad_norm,
    "delayed_adagrad": tf.delayed_adagrad, "gdnp": lambda groups: tf.gdnp(groups, 1.0),
    "weighted_adagrad_momentum": tf.weighted_adagrad_momentum,
}  # fmt: skip


@pytest.mark.parametrize("bare", BARE.values(), ids=BARE)
def test_the_rest_passes_unchanged_in_a_chain(bare):
    grads = tree(1)
    _, updates, state = step(bare(GROUPS), tree(0), grads)
    _, updates, _ = step(bare(GROUPS), tree(0), grads, state)
    same_rest(updates, grads)
    assert not np.allclose(updates["a"]["kernel"], grads["a"]["kernel"])
    assert not np.allclose(updates["qkv"][:, 4:8], grads["qkv"][:, 4:8])
    nothing, _ = bare(Groups()).update(grads, bare(Groups()).init(tree(0)), tree(0), **NO_UNITS)
    chex.assert_trees_all_equal(nothing, grads)


NO_UNITS = {"value": jnp.ones(()), "variance": jnp.ones(0)}


def test_every_transformation_is_in_the_table():
    covered = {name.partition(",")[0].split()[0] for name in RULES}
    assert set(tf.__all__) - {"inverse_power"} <= covered


@having()
def test_rescaling_law(rule):
    """Weights c times as long, and the rate that goes with them: the same directions."""
    params, c = tree(0), 8.0
    longer = gr.rescale(GROUPS, params, jnp.full(len(gr.units(GROUPS, params)), c))
    run = after_steps(rule, 3)
    here, there = run(0.1, 1.0, params), run(0.1 * c**rule.exponent, c, longer)
    ends = [gr.members(GROUPS, gr.unit_vectors(GROUPS, end)) for end in (here, there)]
    for path in GROUPS.paths:
        np.testing.assert_allclose(ends[0][path], ends[1][path], atol=2e-5)
    moved = np.abs(ends[0]["a/kernel"] - gr.unit_vectors(GROUPS, params)["a"]["kernel"])
    assert moved.max() > 1e-3


@having(norm=True)
@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e3])
def test_the_norm_is_kept(rule, rate):
    params = tree(0)
    new, _, _ = step(rule(rate), params)
    np.testing.assert_allclose(gr.norm2(GROUPS, new), gr.norm2(GROUPS, params), rtol=1e-5)


@having(norm=True)
def test_the_norm_does_not_drift_over_many_small_steps(rule, key):
    """Rounding must not pull one way: 5000 steps stay within a random walk of ulps."""
    tx, params = rule(1e-4), tree(0)

    def body(carry, k):
        params, state = carry
        grads = jax.tree.map(lambda p: jax.random.normal(k, p.shape), params)
        params, _, state = step(tx, params, gr.tangent(GROUPS, params, grads), state)
        return (params, state), None

    many = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(key, 5000))[0])
    end, _ = many((params, tx.init(params)))
    np.testing.assert_allclose(gr.norm2(GROUPS, end), gr.norm2(GROUPS, params), rtol=1e-5)


@having(tangent=True)
def test_steps_are_orthogonal_to_the_units(rule):
    params, tx = tree(0), rule(0.1)
    state = tx.init(params)
    for _ in range(2):
        _, updates, state = step(tx, params, state=state)
        length = jnp.sqrt(gr.norm2(GROUPS, params) * gr.norm2(GROUPS, updates))
        along = gr.inner(GROUPS, params, updates) / length
        np.testing.assert_allclose(along, 0, atol=1e-6)


CONVERGING = {name: rule for name, rule in RULES.items() if name != "gdnp"}  # in test_scalars


@pytest.mark.parametrize("rule", CONVERGING.values(), ids=CONVERGING)
def test_it_converges(rule):
    """On a Rayleigh quotient and on BN least squares, with an SGD for the rest if it has none."""
    cases = [
        (toys.rayleigh([0.0, 1.0, 3.0], [0.2, 0.6, 0.7]), 0.0),
        (toys.bn_least_squares([[1.0, 0], [0, 4]], [1.0, 2], 2.5, [1, -0.5], 0.5), 0.5),
    ]
    for problem, least in cases:
        tx = rule(rule.rate, problem.groups)
        if not rule.rest:
            tx = tf.by_group(problem.groups, invariant=tx, rest=optax.sgd(0.3))

        def body(carry, t, problem=problem, tx=tx):
            params, state = carry
            given = arguments(params, lambda p: problem.loss(p, t), problem.groups)
            updates, state = tx.update(jax.grad(given["value_fn"])(params), state, params, **given)
            return (optax.apply_updates(params, updates), state), given["value"]

        start = (problem.params, tx.init(problem.params))
        _, losses = jax.jit(lambda s, b=body: jax.lax.scan(b, s, jnp.arange(1000)))(start)
        assert losses[0] > least + 0.5
        assert losses[-1] < least + 0.01


@having()
def test_a_gradient_of_zero_moves_nothing(rule):
    params = tree(0)
    still, _, state = step(rule(1.0), params, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_close(still, params, rtol=1e-6)
    chex.assert_tree_all_finite(step(rule(1.0), params, state=state)[0])


@having()
def test_nan_passes_through_and_stays_in_its_unit(rule):
    params, grads = tree(0), gradient(tree(0))
    grads["a"]["kernel"] = grads["a"]["kernel"].at[0, 2].set(jnp.nan)
    new, _, _ = step(rule(0.1), params, grads)
    assert jnp.any(jnp.isnan(new["a"]["kernel"][:, 2]))
    if not rule.spreads:
        assert jnp.all(jnp.isfinite(new["a"]["kernel"][:, :2]))
    assert jnp.all(jnp.isfinite(new["n"]["scale"]))
    assert jnp.all(jnp.isfinite(new["head"]))


@having()
def test_nan_stays_in_its_part_of_a_leaf(rule):
    """Of one layer's channel, and of one head."""
    params, grads = tree(0), gradient(tree(0))
    grads["stack"] = grads["stack"].at[1, 0, 2].set(jnp.nan)
    grads["qkv"] = grads["qkv"].at[0, 3].set(jnp.nan)
    new, _, _ = step(rule(0.1), params, grads)
    assert jnp.any(jnp.isnan(new["stack"][1, :, 2]))
    assert jnp.any(jnp.isnan(new["qkv"][:, 2:4]))
    if not rule.spreads:
        assert jnp.all(jnp.isfinite(jnp.delete(new["stack"].reshape(6, 4), 2, 1)))
        assert jnp.all(jnp.isfinite(new["stack"][0]))
        assert jnp.all(jnp.isfinite(new["qkv"][:, :2]))
    assert jnp.all(jnp.isfinite(new["qkv"][:, 4:]))


SCHEDULED = {
    "riemannian_sgd": tf.riemannian_sgd,
    "riemannian_adam": tf.riemannian_adam,
    "grassmann_sgd": lambda groups, rate: tf.grassmann_sgd(groups, rate, momentum=0.0),
    "grassmann_adam": tf.grassmann_adam,
    "sgdp": tf.sgdp,
    "adamp": tf.adamp,
    "rotational": tf.rotational,
    "auto": tf.auto,
    "exponential_equivalent": lambda groups, rate: tf.exponential_equivalent(groups, rate, 0.1),
}


@pytest.mark.parametrize("rule", SCHEDULED.values(), ids=SCHEDULED)
def test_schedules_are_read_at_the_step(rule):
    """0.1 at the first step and 0.001 after: only the first step is long."""
    tx, params = rule(GROUPS, lambda count: jnp.where(count == 0, 0.1, 0.001)), tree(0)
    _, first, state = step(tx, params)
    _, second, _ = step(tx, params, state=state)
    constant, _ = (step(rule(GROUPS, 0.1), params)[i] for i in (1, 2))
    chex.assert_trees_all_close(first["a"], constant["a"], rtol=1e-5)
    lengths = [jnp.linalg.norm(updates["a"]["kernel"]) for updates in (first, second)]
    assert lengths[1] < 0.1 * lengths[0]


@having()
def test_bad_trees_are_refused_at_once(rule):
    with pytest.raises(ValueError, match="'a/kernle' of a group is not in the tree"):
        rule(0.1, Groups([Group([Member("a/kernle")])])).init(tree(0))
    integers = tree(0) | {"a": {"kernel": jnp.ones((6, 4), int)}}
    with pytest.raises(ValueError, match="leaf 'a/kernel' must be an array of floats, got int32"):
        rule(0.1).init(integers)
    zero = tree(0)
    zero["a"]["kernel"] = zero["a"]["kernel"].at[:, 1].set(0)
    if rule.nonzero:
        with pytest.raises(ValueError, match=r"'a/kernel\[1\]' has norm zero; initialise"):
            rule(0.1).init(zero)
    else:
        chex.assert_tree_all_finite(step(rule(0.1), zero, tree(1))[0])


@having(nonzero=True)
def test_a_unit_of_norm_zero_is_data_in_a_compiled_run(rule):
    zero = tree(0)
    zero["a"]["kernel"] = zero["a"]["kernel"].at[:, 1].set(0)
    new, _, _ = jax.jit(lambda p, g: step(rule(0.1), p, g))(zero, tree(1))
    assert not jnp.any(jnp.isfinite(new["a"]["kernel"][:, 1]))
    assert jnp.all(jnp.isfinite(new["a"]["kernel"][:, 0]))
    assert jnp.all(jnp.isfinite(new["n"]["scale"]))


@having()
def test_the_parameters_are_needed(rule):
    tx, grads = rule(0.1), tree(1)
    if rule is not RULES["by_group"]:  # plain SGD needs none
        with pytest.raises(ValueError, match="needs the parameters"):
            tx.update(grads, tx.init(tree(0)))


def linen_params():
    return linen.Dense(4).init(jax.random.key(0), jnp.ones((2, 6)))["params"], "kernel"


def nnx_params():
    return nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param), "kernel"


def equinox_params():
    return eqx.filter(eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.is_array), "weight"


def haiku_params():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(x)))
    return net.init(jax.random.key(0), jnp.ones((2, 6))), "linear/w"


FRAMEWORKS = (linen_params, nnx_params, equinox_params, haiku_params)


@having()
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda f: f.__name__)
@pytest.mark.usefixtures("standard_promotion")  # haiku's initialisers promote
def test_trees_of_every_framework(rule, framework):
    params, path = framework()
    groups = Groups([Group([Member(path, 0)])])

    def stepped(params):
        tx = rule(0.1, groups)
        given = {"value": jnp.ones(()), "variance": gr.norm2(groups, params)}
        given["value_fn"] = lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
        return tx.update(params, tx.init(params), params, **given)[0]

    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(stepped, params), params)


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


BAD = {
    "radius": (lambda: tf.set_norm(GROUPS, 0.0), r"the radius of set_norm must lie in \(0, inf\)"),
    "radii": (
        lambda: tf.set_norm(GROUPS, jnp.ones(UNITS).at[1].set(-1.0)),
        "the radius of set_norm",
    ),
    "rotation": (lambda: tf.rotational(GROUPS, -0.1), r"rotation of rotational must lie in \[0,"),
    "rotation's decay": (lambda: tf.rotational(GROUPS, 0.1, 1.0), "decay of rotational"),
    "rate": (lambda: tf.riemannian_sgd(GROUPS, -1.0), "learning_rate of riemannian_sgd"),
    "nan": (lambda: tf.riemannian_sgd(GROUPS, float("nan")), "in .0, inf., got nan"),
    "momentum": (lambda: tf.riemannian_sgd(GROUPS, 0.1, 1.0), "momentum of riemannian_sgd"),
    "b2": (lambda: tf.riemannian_adam(GROUPS, 0.1, b2=1.0), "b2 of riemannian_adam"),
    "clip": (lambda: tf.grassmann_sgd(GROUPS, clip=0.0), "clip of grassmann_sgd"),
    "eps": (lambda: tf.grassmann_adam(GROUPS, eps=0.0), "eps of grassmann_adam"),
    "delta": (lambda: tf.adamp(GROUPS, delta=-1.0), "delta of adamp"),
    "weight decay": (lambda: tf.sgdp(GROUPS, 0.1, weight_decay=-1.0), "weight_decay of sgdp"),
    "coefficient": (lambda: tf.trust_ratio(GROUPS, 0.0), "coefficient of trust_ratio"),
    "wngrad": (lambda: tf.wngrad(GROUPS, 0.0), "initial of wngrad"),
    "adagrad": (lambda: tf.adagrad_norm(GROUPS, -1.0), "initial of adagrad_norm"),
    "power": (lambda: tf.delayed_adagrad(GROUPS, 1.0, 0.4), r"power .* must lie in \[0.5, 1\)"),
    "smoothness": (lambda: tf.gdnp(GROUPS, 0.0), "smoothness of gdnp"),
    "auto's rate": (lambda: tf.auto(GROUPS, -0.3), "rate of auto"),
    "auto's safety": (lambda: tf.auto(GROUPS, safety=1.0), r"safety of auto must lie in \(0, 1\)"),
    "every": (lambda: tf.auto(GROUPS, every=0), "every of auto must be a whole number"),
}


PER_UNIT = {
    "set_norm": (lambda: tf.set_norm(GROUPS, jnp.ones(3)), "the radius must be one number or 16"),
    "wngrad": (lambda: tf.wngrad(GROUPS, jnp.ones(3)), "initial must be one number or 16"),
    "gdnp": (lambda: tf.gdnp(GROUPS, jnp.ones(3)), "smoothness must be one number or 16"),
}


@pytest.mark.parametrize(("make", "message"), PER_UNIT.values(), ids=PER_UNIT)
def test_numbers_per_unit_are_as_many_as_units(make, message):
    with pytest.raises(ValueError, match=message):
        step(make(), tree(0), tree(1))


def test_updates_must_have_the_shapes_of_the_parameters():
    grads = tree(1) | {"a": {"kernel": jnp.ones((1, 4))}}
    with pytest.raises(ValueError, match=r"shape \(1, 4\) for leaf 'a/kernel', whose parameters"):
        step(tf.adagrad_norm(GROUPS), tree(0), grads)


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_numbers_out_of_range_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
