"""Exchanges of one rule for another: exact, and the near misses are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from bnrate import groups as gr
from bnrate import transforms
from bnrate.theory import equivalence

# Rounding is amplified where the norm shrinks until steps become unstable; gradient descent
# without noise comes there soon after it has converged, so it is followed for fewer steps.
PROBLEMS = {
    "rayleigh": (lambda: toys.rayleigh(np.linspace(0, 1, 20), np.cos(range(20))), 100),
    "noisy-rayleigh": (lambda: toys.noisy_rayleigh(10), 1000),
    "least-squares": (
        lambda: toys.bn_least_squares([[1, 0], [0, 4]], [1, 2], 2.5, [1, -0.5], 0.5),
        30,
    ),
    "regression": (toys.bn_regression, 1000),
    "network": (toys.network, 300),
}
SETTINGS = [(0.1, 0.05, 0.0), (0.02, 0.1, 0.9), (0.1, 0.01, 0.9)]  # rate, decay, momentum


def starting_at(rule, buffer, more=0.0):
    """The rule with a first momentum buffer of `buffer` times the weights, plus anything."""

    def init(params):
        first = jax.tree.map(lambda w: buffer * w + more * jnp.cos(9 * w), params)
        return optax.tree.set(rule.init(params), trace=first)

    return optax.GradientTransformationExtraArgs(init, rule.update)


def decayed(rate, decay, momentum, more=0.0):
    sgd = starting_at(optax.sgd(rate, momentum=momentum), 0.0, more)
    return optax.chain(optax.add_decayed_weights(decay), sgd)


def exponential(rate, decay, momentum, more=0.0, change=lambda exponential: exponential):
    rates = change(equivalence.exponential_rate(rate, decay, momentum))
    return starting_at(optax.sgd(rates, momentum=momentum), rates.buffer, more)


def rescaled(rates, decays, momentum):
    """SGD without decay, the rates as `advance` streams them."""

    def init(params):
        return equivalence.balanced(jnp.zeros(())), optax.tree.zeros_like(params), jnp.array(0)

    def update(grads, state, params):
        balance, buffer, t = state
        balance, step = equivalence.advance(balance, rates[t], decays[t], momentum)
        buffer = jax.tree.map(lambda b, g: momentum * b + g, buffer, grads)
        updates = jax.tree.map(
            lambda b, w: (step.factor - 1) * w - step.factor * step.rate * b, buffer, params
        )
        return updates, (balance, jax.tree.map(lambda b: b / step.factor, buffer), t + 1)

    return optax.GradientTransformation(init, update)


def split(problem, invariant):
    """The rule for the units; the rest has a schedule and a decay of its own."""
    rest = optax.chain(
        optax.add_decayed_weights(0.01),
        optax.sgd(lambda t: 0.05 / (1 + t.astype(float) / 100), momentum=0.5),
    )
    return transforms.by_group(problem.groups, invariant=invariant, rest=rest)


def gap(a, b, problem, steps):
    return equivalence.gap(split(problem, a), split(problem, b), problem, steps)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("rate", "decay", "momentum"), SETTINGS)
def test_weight_decay_is_an_exponential_rate(name, rate, decay, momentum):
    build, steps = PROBLEMS[name]
    sides = [rule(rate, decay, momentum, more=1.0) for rule in (decayed, exponential)]
    found = gap(*sides, build(), steps)
    assert max(found) < 5e-13, found


@pytest.mark.usefixtures("float64")
def test_the_exchange_knows_parts_and_several_axes():
    """Two layers of Rayleigh quotients, a column each; of a second leaf one row is a unit."""
    spectrum = jnp.linspace(0, 1, 5)[:, None]

    def loss(params, step):
        del step
        one, two = params["stack"] ** 2, params["mixed"][:1].T ** 2
        columns = jnp.concatenate([*one, two], 1)
        quotients = jnp.sum(spectrum * columns, 0) / jnp.sum(columns, 0)
        return jnp.sum(quotients) + jnp.sum((params["mixed"][1:] - 1) ** 2)

    groups = gr.Groups(
        [
            gr.Group([gr.Member("stack", (0, 2))]),
            gr.Group([gr.Member("mixed", part=[(0, 0, 1)])]),
        ]
    )
    params = {"stack": jnp.cos(jnp.arange(30.0)).reshape(2, 5, 3), "mixed": jnp.ones((2, 5))}
    task = equivalence.Task(loss, params, groups)
    found = gap(*(rule(0.1, 0.05, 0.0) for rule in (decayed, exponential)), task, 100)
    assert max(found) < 5e-13, found
    assert max(gap(decayed(0.1, 0.05, 0.0), optax.sgd(0.1), task, 100)) > 1e-3


NEAR_MISSES = {
    "no-buffer": lambda e: e._replace(buffer=jnp.zeros(())),
    "rho-for-alpha": lambda e: e._replace(log_alpha=jnp.log1p(jnp.asarray(-0.02 * 0.1))),
    "one-power-less": lambda e: e._replace(initial=e.initial * e.alpha),
    "buffer-of-wrong-sign": lambda e: e._replace(buffer=-e.buffer),
    "other-momentum": lambda e: equivalence.exponential_rate(0.02, 0.1, 0.89),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_near_misses_are_told_apart(miss):
    rule = exponential(0.02, 0.1, 0.9, change=NEAR_MISSES[miss])
    found = gap(decayed(0.02, 0.1, 0.9), rule, toys.bn_regression(), 300)
    assert found.units > 1e-3


@pytest.mark.usefixtures("float64")
def test_the_rest_must_keep_its_decay():
    """The exchange is for invariant parameters: made for all, it is another training."""
    problem = toys.bn_regression()
    sides = [rule(0.02, 0.1, 0.9) for rule in (decayed, exponential)]
    assert equivalence.gap(*sides, problem, 30).rest > 1e-2


@pytest.mark.usefixtures("float64")
def test_exponential_rates_of_two_settings():
    first = equivalence.exponential_rate(0.1, 0.05)
    np.testing.assert_allclose(first.alpha, 0.995, rtol=1e-15)
    expected = [0.1005025126, 0.1015151259, 0.1111003186]
    np.testing.assert_allclose([first(t) for t in (0, 1, 10)], expected, rtol=1e-9)
    second = equivalence.exponential_rate(0.02, 0.1, 0.9)
    np.testing.assert_allclose(second.alpha, 0.9735153013, rtol=1e-9)
    expected = [0.0205441044, 0.0216771234, 0.0351424126]
    np.testing.assert_allclose([second(t) for t in (0, 1, 10)], expected, rtol=2e-9)
    np.testing.assert_allclose(second.buffer, -1.3602610364, rtol=1e-10)


ENDS = {  # after 10 steps: the unit vector, |w|^2 with decay, |w|^2 with exponential rates
    (0.1, 0.05, 0.0): ((0.99021022, 0.13958331, 0.00047343), 1.04246452, 1.15239049),
    (0.02, 0.1, 0.9): ((0.93327395, 0.25999725, -0.24779259), 2.00000485, 3.42117593),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("setting", ENDS)
def test_ten_steps_on_a_rayleigh_quotient(setting):
    problem = toys.rayleigh([0, 1, 3], np.ones(3) / np.sqrt(3))
    direction, with_decay, without = ENDS[setting]
    for rule, norm2 in ((decayed, with_decay), (exponential, without)):
        tx, params = rule(*setting), problem.params
        state = tx.init(params)
        for t in range(10):
            updates, state = tx.update(jax.grad(problem.loss)(params, t), state, params)
            params = optax.apply_updates(params, updates)
        w = np.asarray(params["w"])
        np.testing.assert_allclose(w @ w, norm2, rtol=1e-8)
        np.testing.assert_allclose(w / np.sqrt(w @ w), direction, atol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate", "decay", "momentum"), SETTINGS)
def test_weight_decay_undoes_exponential_rate(rate, decay, momentum):
    there = equivalence.exponential_rate(rate, decay, momentum)
    back = equivalence.weight_decay(there.initial, there.alpha, momentum)
    np.testing.assert_allclose(back[:3], (rate, decay, momentum), rtol=1e-12)
    np.testing.assert_allclose(back.buffer, -there.buffer, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("alpha", "momentum"), [(0.99, 0.0), (0.99, 0.9), (0.92, 0.9)])
def test_exponential_rates_are_a_weight_decay(alpha, momentum):
    """Also below the square root of the momentum, where `exponential_rate` takes the other root."""
    back = equivalence.weight_decay(0.01, alpha, momentum)
    growing = lambda t: 0.01 * alpha ** (-2 * t.astype(float))  # noqa: E731
    a = starting_at(optax.sgd(growing, momentum=momentum), 0.0, 1.0)
    sgd = starting_at(optax.sgd(back.rate, momentum=momentum), back.buffer, 1.0)
    b = optax.chain(optax.add_decayed_weights(back.decay), sgd)
    found = gap(a, b, toys.noisy_rayleigh(10), 200)
    assert max(found) < 1e-12, found


STEPS = 400
VARYING = {  # rates of all steps
    "cosine": 0.1 * np.minimum(np.arange(STEPS) / 50, np.cos(np.arange(STEPS) / STEPS * 1.5)),
    "stairs": np.where(np.arange(STEPS) % 100 < 50, 0.1, 0.01),
}


def varying(name, momentum):
    """Rates, decays, and the rule that has both."""
    rates = jnp.asarray(VARYING[name], float)
    decays = 0.01 + 0.01 * jnp.sin(jnp.linspace(0.0, 12.0, STEPS))
    sgd = optax.sgd(lambda t: rates[t], momentum=momentum)
    return rates, decays, optax.chain(optax.add_decayed_weights(lambda t: decays[t]), sgd)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", VARYING)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rates_and_decays_may_vary(name, momentum):
    rates, decays, with_decay = varying(name, momentum)
    streamed = rescaled(rates, decays, momentum)
    found = gap(with_decay, streamed, toys.noisy_rayleigh(10), STEPS)
    assert max(found) < 1e-12, found


@pytest.mark.usefixtures("float64")
def test_rates_that_vary_need_no_rescaling():
    rates, decays, with_decay = varying("stairs", 0.9)
    plain = equivalence.without_rescaling(equivalence.undecayed(rates, decays, 0.9))
    without = optax.sgd(lambda t: plain[t], momentum=0.9)
    found = gap(with_decay, without, toys.noisy_rayleigh(10), STEPS)
    assert max(found) < 1e-12, found


@pytest.mark.usefixtures("float64")
def test_rates_that_vary_must_be_exchanged_at_their_step():
    rates, decays, with_decay = varying("stairs", 0.9)
    late = rescaled(rates, jnp.roll(decays, 1), 0.9)
    assert gap(with_decay, late, toys.noisy_rayleigh(10), STEPS).units > 1e-6


@pytest.mark.usefixtures("float64")
def test_without_momentum_the_rates_are_those_of_the_products():
    rates, decays = jnp.linspace(0.1, 0.3, 50), jnp.linspace(1.0, 0.0, 50)
    fallen = np.concatenate([[1.0], np.cumprod(1 - np.asarray(rates * decays))])
    steps = equivalence.undecayed(rates, decays)
    plain = equivalence.without_rescaling(steps)
    np.testing.assert_allclose(plain, rates / (fallen[:-1] * fallen[1:]), rtol=1e-13)
    assert set(np.asarray(steps.factor)) == {0.5, 1.0}
    for momentum in (0.0, 0.9):
        steps = equivalence.undecayed(rates, 0.0, momentum)
        np.testing.assert_array_equal(steps, (rates, np.ones(50)))


@pytest.mark.usefixtures("float64")
def test_a_start_with_the_corrected_buffer_is_exponential_at_once():
    rates = equivalence.exponential_rate(0.02, 0.1, 0.9)
    balance, taken = equivalence.balanced(rates.buffer), 1.0
    for t in range(100):
        balance, step = equivalence.advance(balance, 0.02, 0.1, 0.9)
        np.testing.assert_allclose(step.rate / taken**2, rates(t), rtol=1e-12)
        taken *= step.factor
    assert taken == 2.0**-3


def train(problem, rates, factors, dtype):
    """Plain SGD, the weights rescaled after each step; no optimiser in between that rounds."""

    def body(params, now):
        rate, factor, t = now
        loss, grads = jax.value_and_grad(problem.loss)(params, t)
        return jax.tree.map(lambda w, g: factor * (w - rate * g), params, grads), loss

    start = optax.tree.cast(problem.params, dtype)
    inputs = rates.astype(dtype), factors.astype(dtype), jnp.arange(len(rates))
    return jax.jit(lambda: jax.lax.scan(body, start, inputs)[1])()


def test_rescaling_by_powers_of_2_rounds_nothing_and_never_overflows():
    problem = toys.noisy_rayleigh(10)
    steps = equivalence.undecayed(jnp.full(2000, 0.2), 0.5)
    plain = equivalence.without_rescaling(steps)
    ones = jnp.ones_like(plain)
    losses = train(problem, *steps, jnp.float32), train(problem, plain, ones, jnp.float32)
    assert jnp.isinf(plain[-1])
    assert not jnp.all(jnp.isfinite(losses[1]))
    assert jnp.all(jnp.isfinite(losses[0]))
    alive = 180  # after that the square of norm2, in the gradient, is too much for float32
    np.testing.assert_array_equal(losses[0][:alive], losses[1][:alive])


def test_small_decays_survive_float32():
    """1 - eta lambda rounds to 1 in float32, or loses a tenth of a percent, which adds up."""
    rate, decay, momentum, steps = 1e-3, 1e-4, 0.9, 10_000_000
    narrow = equivalence.exponential_rate(rate, decay, momentum)
    with jax.enable_x64(True):
        wide = equivalence.exponential_rate(rate, decay, momentum)(steps)
    assert narrow.alpha > 0.999998
    np.testing.assert_allclose(narrow(steps), wide, rtol=3e-5)
    ends = equivalence.undecayed(jnp.full(200_000, 1e-3), 0.05)
    np.testing.assert_allclose(
        np.log2(1 / ends.factor).sum(), np.floor(200_000 * 5e-5 / np.log(2)), atol=1
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("decay", [0.0, 0.5, 5.0])
def test_the_effective_rate_is_that_of_the_step_on_the_sphere(decay):
    problem, rate = toys.noisy_rayleigh(10), 0.1
    w, G = problem.params["w"], gr.norm2(problem.groups, problem.params)[0]
    grad = jax.grad(problem.loss)(problem.params, 0)["w"]
    after = w - rate * (grad + decay * w)
    effective = equivalence.effective_rate(rate, decay, G)
    on_sphere = w / jnp.sqrt(G) - effective * jnp.sqrt(G) * grad
    np.testing.assert_allclose(
        after / jnp.linalg.norm(after), on_sphere / jnp.linalg.norm(on_sphere), rtol=1e-13
    )
    np.testing.assert_allclose(equivalence.rate_of(effective, decay, G), rate, rtol=1e-14)
    cosine = w @ after / jnp.linalg.norm(w) / jnp.linalg.norm(after)
    angle = jnp.arctan(effective * jnp.sqrt(G) * jnp.linalg.norm(grad))
    np.testing.assert_allclose(jnp.cos(angle), cosine, rtol=1e-14)


@pytest.mark.usefixtures("float64")
def test_sgd_is_wngrad_that_lags():
    problem, rate = toys.noisy_rayleigh(10), 3.0
    problem = problem._replace(params=gr.unit_vectors(problem.groups, problem.params))
    initial = equivalence.wngrad_initial(rate, 1.0)
    np.testing.assert_allclose(equivalence.rate_of_wngrad(initial, 1.0), rate, rtol=1e-15)

    def on_sphere(initial, delayed):
        divide = transforms.wngrad(problem.groups, initial, delayed=delayed)
        return optax.chain(divide, optax.scale(-1.0), transforms.keep_norm(problem.groups))

    def apart(rule):
        return equivalence.gap(optax.sgd(rate), rule, problem, 500).units

    assert apart(on_sphere(initial, delayed=True)) < 1e-12
    assert apart(on_sphere(initial, delayed=False)) > 1e-2
    assert apart(on_sphere(2 * initial, delayed=True)) > 1e-2


REFUSED = [
    (lambda: equivalence.exponential_rate(10.0, 0.1), r"is 1, and must be below 1"),
    (lambda: equivalence.exponential_rate(0.1, 0.1, 0.9), r"is 0.01, and .* = 0.00263"),
    (lambda: equivalence.exponential_rate(0.0, 0.1), r"rate must lie in \(0, inf\), got 0"),
    (lambda: equivalence.exponential_rate(-1.0, 0.1), r"rate must lie in \(0, inf\), got -1"),
    (lambda: equivalence.exponential_rate(0.1, -0.1), r"decay must lie in \[0, inf\), got -0.1"),
    (lambda: equivalence.exponential_rate(0.1, 0.1, 1.0), r"momentum must lie in \[0, 1\), got 1"),
    (lambda: equivalence.exponential_rate(np.nan, 0.1), r"rate must lie in \(0, inf\), got nan"),
    (lambda: equivalence.exponential_rate(np.array([0.1, 9.0]), 0.2), r"is 1.8, and must be below"),
    (lambda: equivalence.weight_decay(0.1, 1.1), r"alpha must lie in \(0, 1\], got 1.1"),
    (lambda: equivalence.weight_decay(0.1, 0.8, 0.9), r"alpha must be at least the momentum"),
    (
        lambda: equivalence.undecayed(np.array([0.1, 1.0]), 1.0),
        r"step 1, of rate \* decay = 1, cannot",
    ),
    (
        lambda: equivalence.undecayed(np.full(99, 0.1), 0.1, 0.9),
        r"step \d+, of rate \* decay = 0.01, cannot",
    ),
    (lambda: equivalence.effective_rate(1.0, 1.0, 1.0), r"rate \* decay must lie in \[0, 1\)"),
    (lambda: equivalence.effective_rate(1.0, 0.0, 0.0), r"norm2 must lie in \(0, inf\), got 0"),
    (lambda: equivalence.wngrad_initial(0.0, 1.0), r"rate must lie in \(0, inf\), got 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_the_largest_decay_is_the_last_that_works(momentum):
    limit = (1 - np.sqrt(momentum)) ** 2
    largest = equivalence.exponential_rate(1.0, limit * (1 - 1e-12), momentum)
    np.testing.assert_allclose(largest.alpha, np.sqrt(momentum), rtol=1e-4)
    with pytest.raises(ValueError, match="must be below 1 and at most"):
        equivalence.exponential_rate(1.0, limit * (1 + 1e-12), momentum)


def test_inside_a_program_bad_settings_are_nan_and_spare_the_others():
    decays = jnp.array([0.1, 5.0, 20.0])
    found = jax.jit(jax.vmap(lambda decay: equivalence.exponential_rate(0.1, decay, 0.1)))(decays)
    np.testing.assert_array_equal(jnp.isnan(found.initial), [False, True, True])
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[0], found), equivalence.exponential_rate(0.1, 0.1, 0.1)
    )
    steps = jax.vmap(lambda decay: equivalence.undecayed(jnp.full(5, 0.1), decay))(decays)
    np.testing.assert_array_equal(jnp.isnan(steps.rate[:, 0]), [False, False, True])


def test_a_rule_has_no_gap_to_itself():
    problem = toys.bn_regression()
    assert max(equivalence.gap(optax.sgd(0.1), optax.sgd(0.1), problem, 50)) == 0


def test_states_at_the_start_are_used():
    problem, rule = toys.noisy_rayleigh(4), optax.sgd(0.1, momentum=0.9)
    pushed = optax.tree.set(rule.init(problem.params), trace=problem.params)
    for states in ({"state_a": pushed}, {"state_b": pushed}):
        assert equivalence.gap(rule, rule, problem, 5, **states).units > 1e-2
    assert equivalence.gap(rule, rule, problem, 5, state_a=pushed, state_b=pushed).units == 0


def test_a_rule_that_diverges_has_no_small_gap():
    problem = toys.bn_regression()
    sound, lost = optax.sgd(0.1), optax.sgd(jnp.nan)
    for rules in ((sound, lost), (lost, sound), (lost, lost)):
        assert np.isnan(equivalence.gap(*rules, problem, 20)).all()
