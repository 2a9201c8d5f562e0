"""Angles and norms at which rules with decay settle: closed forms against simulated noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from bnrate import measure, transforms
from bnrate.theory import equilibrium, rotation

DIMS = 400


def sgd(rate, decay, momentum=0.0):
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=momentum))


def trace(problem, rule, steps):
    """Angle and norm2 of each step and unit."""

    def body(carry, t):
        params, state = carry
        grads = jax.grad(problem.loss)(params, t)
        updates, state = rule.update(grads, state, params)
        record = measure.on_spheres(problem.groups, params, grads, updates, jnp.asarray(1.0))
        after = optax.apply_updates(params, updates)
        return (after, state), (record["angle"], record["norm2"], record["spherical_gradient"])

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam counts steps in integers
        start = problem.params, rule.init(problem.params)
        return jax.jit(lambda: jax.lax.scan(body, start, jnp.arange(steps))[1])()


def longer(problem, norm2):
    """The problem from weights of this squared norm."""
    w = problem.params["w"]
    return problem._replace(params={"w": w * jnp.sqrt(norm2 / jnp.sum(w**2))})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rate", "decay", "n", "norm2", "angle", "contraction", "effective_rate"),
    [
        (0.1, 0.1, 1.0, 0.70888121, 0.14153947, 0.9602, 0.14106736),
        (0.5, 0.2, 2.0, 1.62221421, 0.45102681, 0.62, 0.30822070),
    ],
)
def test_two_equilibria_of_sgd(rate, decay, n, norm2, angle, contraction, effective_rate):
    found = equilibrium.sgd(rate, decay, np.sqrt(n))
    expected = angle, norm2, effective_rate, contraction
    np.testing.assert_allclose(found[:4], expected, rtol=5e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate", "decay"), [(0.1, 0.1), (0.5, 0.2), (0.01, 1.0)])
def test_without_momentum_and_with_a_constant_gradient_it_is_exact(rate, decay):
    problem = toys.noise(20, spherical_gradient=1.3)
    angle, norm2, _ = trace(problem, sgd(rate, decay), 2500)
    predicted = equilibrium.sgd(rate, decay, 1.3)
    np.testing.assert_allclose(angle[-1], predicted.angle, rtol=1e-12)
    np.testing.assert_allclose(norm2[-1], predicted.norm2, rtol=1e-12)
    # and so is the last phase of the approach
    apart = norm2 / predicted.norm2 - 1
    late = int(jnp.argmax(jnp.abs(apart) < 1e-5)) + np.arange(5)
    np.testing.assert_allclose(apart[late + 1] / apart[late], predicted.contraction, rtol=1e-4)


RULES = {  # name -> rule, predicted, relative tolerance
    "sgd": (sgd(0.1, 0.1), lambda: equilibrium.sgd(0.1, 0.1, 1.0), 1e-3),
    "sgd-momentum": (sgd(0.1, 0.01, 0.9), lambda: equilibrium.sgd(0.1, 0.01, 1.0, 0.9), 3e-3),
    "adamw": (
        optax.adamw(0.01, b1=0.9, b2=0.99, weight_decay=0.5),
        lambda: equilibrium.adamw(0.01, 0.5, DIMS, b1=0.9),
        2e-2,  # a gradient has a part in what it is divided by
    ),
    "adamw-large": (
        optax.adamw(0.1, b1=0.5, b2=0.999, weight_decay=0.5),
        lambda: equilibrium.adamw(0.1, 0.5, DIMS, b1=0.5),
        2e-2,  # and is divided by what was, before the norm had settled
    ),
    "lion": (
        optax.lion(0.02, b1=0.9, b2=0.99, weight_decay=0.5),
        lambda: equilibrium.lion(0.02, 0.5, DIMS, b1=0.9, b2=0.99),
        1e-2,
    ),
    "lion-equal": (
        optax.lion(0.05, b1=0.9, b2=0.9, weight_decay=0.2),
        lambda: equilibrium.lion(0.05, 0.2, DIMS, b1=0.9, b2=0.9),
        1e-2,
    ),
}


@functools.cache
def settled(name):
    """A run of a rule on noise from twice the predicted norm2, in float64."""
    with jax.enable_x64(True):
        rule, predicted, _ = RULES[name]
        problem = longer(toys.noise(DIMS), 2 * predicted().norm2)
        return trace(problem, rule, 6000)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", RULES)
def test_noise_settles_where_predicted(name):
    _, predicted, tolerance = RULES[name]
    angle, norm2, _ = settled(name)
    found = equilibrium.residual(predicted(), angle, norm2, tolerance=1e-3)
    assert 0 < found.start[0] < 3000
    assert abs(found.angle[0]) < tolerance
    assert abs(found.norm2[0]) < tolerance


MISSES = {
    "no-momentum": ("sgd-momentum", lambda: equilibrium.sgd(0.1, 0.01, 1.0)),
    "no-average": ("adamw", lambda: equilibrium.adamw(0.01, 0.5, DIMS, b1=0.0)),
    "half-the-decay": ("adamw-large", lambda: equilibrium.adamw(0.1, 0.25, DIMS, b1=0.5)),
    "other-b2": ("lion", lambda: equilibrium.lion(0.02, 0.5, DIMS, b1=0.9, b2=0.9)),
    "other-dims": ("lion", lambda: equilibrium.lion(0.02, 0.5, 2 * DIMS)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("miss", MISSES)
def test_wrong_predictions_are_told_apart(miss):
    name, predicted = MISSES[miss]
    angle, norm2, _ = settled(name)
    found = equilibrium.residual(predicted(), angle, norm2)
    assert max(abs(found.angle[0]), abs(found.norm2[0])) > 0.2


@pytest.mark.usefixtures("float64")
def test_the_formula_in_use_for_lion_is_a_limit():
    def in_use(product, b1=0.9, b2=0.99):
        return np.sqrt(np.pi * product * ((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)))

    small, large = rotation.lion_angle(1.0, 1e-6), rotation.lion_angle(1.0, 1e-2)
    assert abs(in_use(1e-6) / small - 1) < 0.01
    assert abs(in_use(1e-2) / large - 1) > 0.2  # where "lion" above is met within 1 %


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_small_angles_are_those_of_the_literature(momentum):
    rate, decay = 1e-3, 1e-3
    sgd_angle = rotation.sgd_angle(rate, decay, momentum)
    np.testing.assert_allclose(sgd_angle, np.sqrt(2e-6 / (1 + momentum)), rtol=1e-5)
    adamw_angle = rotation.adamw_angle(rate, decay, momentum)
    expected = np.sqrt(2e-6 * (1 - momentum) / (1 + momentum))
    np.testing.assert_allclose(adamw_angle, expected, rtol=1e-5)
    found = equilibrium.sgd(rate, decay, 1.0, momentum), equilibrium.adamw(rate, decay, 7, momentum)
    expected = np.sqrt(rate / (2 * decay * (1 - momentum))), rate * 7 / (2 * decay)
    np.testing.assert_allclose([f.norm2 for f in found], expected, rtol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rate", "decay", "mu"), [(0.1, 0.1, 0.0), (0.1, 0.3, 0.3), (0.02, 1, 0.9)]
)
def test_closed_forms_are_fixed_points_of_the_mean_squares(rate, decay, mu):
    """E|w|^2, E<w, buffer> and E|buffer|^2, stepped on for gradients that are pure noise."""
    a, b, c = 1.0, 0.0, 0.0  # SGD
    for _ in range(20_000):
        c = mu**2 * c + 2 * mu * decay * b + 1 / a + decay**2 * a
        ahead = mu * b + decay * a
        a, b = a - 2 * rate * ahead + rate**2 * c, ahead - rate * c
    found = equilibrium.sgd(rate, decay, 1.0, mu)
    np.testing.assert_allclose(found.norm2, a, rtol=1e-10)
    kept, q, m, w = 1 - rate * decay, 0.0, 0.0, 1.0  # AdamW: its buffer is an average
    for _ in range(20_000):
        m, before = mu**2 * m + (1 - mu) ** 2 * DIMS, w
        w = kept**2 * w - 2 * kept * rate * mu * q + rate**2 * m
        cosine = (kept * before - rate * mu * q) / w
        q = kept * mu * q - rate * m
    found = equilibrium.adamw(rate, decay, DIMS, mu)
    np.testing.assert_allclose((found.norm2, jnp.cos(found.angle)), (w, cosine), rtol=1e-10)


PAIRS = {
    "sgd": (rotation.sgd_angle, rotation.sgd_decay, ()),
    "sgd-momentum": (rotation.sgd_angle, rotation.sgd_decay, (0.9,)),
    "adamw": (rotation.adamw_angle, rotation.adamw_decay, (0.95,)),
    "lion": (rotation.lion_angle, rotation.lion_decay, (0.9, 0.99)),
    "lion-equal": (rotation.lion_angle, rotation.lion_decay, (0.95, 0.95)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("wide", [False, True])
def test_decay_and_angle_undo_each_other(pair, wide):
    to_angle, to_decay, more = PAIRS[pair]
    with jax.enable_x64(wide):
        decays = jnp.array([1e-6, 1e-3, 0.1, 1.0, 3.0])
        back = jax.jit(lambda decays: to_decay(0.1, to_angle(0.1, decays, *more), *more))(decays)
        assert back.dtype == decays.dtype
        np.testing.assert_allclose(back, decays, rtol=1e-12 if wide else 3e-5)
        one = to_decay(0.1, to_angle(0.1, 0.1, *more), *more)
        np.testing.assert_allclose(one, back[2], rtol=1e-5)


def test_an_update_of_given_angle():
    angle = jnp.array([1e-4, 0.1, 1.0])
    w, across = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for theta, rate, chord in zip(
        angle, rotation.hyperball_rate(angle), rotation.relative_update(angle), strict=True
    ):
        stepped = w + rate * across
        turned = stepped / np.linalg.norm(stepped)
        np.testing.assert_allclose(turned, [np.cos(theta), np.sin(theta)], rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(turned - w), chord, rtol=1e-3)
    back = rotation.angle_of_hyperball(rotation.hyperball_rate(angle))
    np.testing.assert_allclose(back, angle, rtol=1e-6)


REFUSED = [
    (lambda: rotation.sgd_angle(2.0, 0.5), r"rate \* decay must lie in \[0, 1\), got 1"),
    (lambda: rotation.adamw_angle(0.1, 0.1, 1.0), r"b1 must lie in \[0, 1\), got 1"),
    (lambda: rotation.lion_angle(-0.1, 0.1), r"rate must lie in \(0, inf\), got -0.1"),
    (lambda: rotation.adamw_decay(0.1, 0.5, 0.9), r"got 1.1\d+; no decay turns the weights that"),
    (lambda: rotation.lion_decay(0.1, 1.0, 0.99, 0.99), r"got 1; no decay turns the weights that"),
    (lambda: rotation.sgd_decay(0.1, 1.6), r"angle must lie in \[0, 1.5708\), got 1.6"),
    (lambda: equilibrium.sgd(0.1, 0.0, 1.0), r"decay must lie in \(0, inf\), got 0; without decay"),
    (lambda: equilibrium.sgd(0.1, 0.1, 0.0), r"spherical gradient must lie in \(0, inf\), got 0"),
    (lambda: equilibrium.adamw(0.1, 0.1, 0), r"dims must lie in \[1, inf\), got 0"),
    (
        lambda: equilibrium.log_cos_identity(jnp.ones(3), jnp.ones(3), 0.1, 0.1),
        r"norm2 must have 4 entries for 3 angles, got 3",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inside_a_program_bad_settings_are_nan_and_spare_the_others():
    decays = jnp.array([0.1, 20.0])
    found = jax.jit(jax.vmap(lambda decay: equilibrium.lion(0.1, decay, 10).angle))(decays)
    np.testing.assert_array_equal(jnp.isnan(found), [False, True])
    angles = jnp.array([0.1, 0.9])
    found = jax.jit(lambda angles: rotation.adamw_decay(0.1, angles, 0.9))(angles)
    np.testing.assert_array_equal(jnp.isnan(found), [False, True])


def test_units_are_predicted_at_once():
    dims = np.array([3, 5])
    for found in (equilibrium.adamw(0.1, 0.1, dims), equilibrium.lion(0.1, 0.1, dims)):
        np.testing.assert_allclose(found.norm2[1] / found.norm2[0], 5 / 3, rtol=1e-6)
        assert equilibrium.steps_to(found, jnp.ones(2)).shape == (2,)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["noise", "noisy_rayleigh", "bn_regression"])
def test_the_log_cos_identity_holds_for_any_loss(name):
    """Also where rate and decay vary; it has no room for momentum."""
    problem, steps = getattr(toys, name)(10), 500
    rates = jnp.linspace(0.2, 0.1, steps)
    decays = jnp.where(jnp.arange(steps) < 200, 0.1, 0.05)

    def run(momentum):
        decay = optax.add_decayed_weights(lambda t: decays[t])
        invariant = optax.chain(decay, optax.sgd(lambda t: rates[t], momentum=momentum))
        rule = transforms.by_group(problem.groups, invariant=invariant, rest=optax.sgd(0.1))
        angle, norm2, _ = trace(problem, rule, steps)
        return equilibrium.log_cos_identity(angle[:-1], norm2, rates[:-1], decays[:-1])

    left, right = run(0.0)
    np.testing.assert_allclose(left, right, rtol=1e-12)
    left, right = run(0.5)
    assert jnp.all(jnp.abs(left / right - 1) > 1e-2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("far", [0.3, 20.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_time_to_equilibrium(far, momentum):
    predicted = equilibrium.sgd(0.05, 0.1, 1.0, momentum)
    problem = longer(toys.noise(2000), far * predicted.norm2)
    apart = trace(problem, sgd(0.05, 0.1, momentum), 600)[1][:, 0] / predicted.norm2 - 1
    steps = equilibrium.steps_to(predicted, far * predicted.norm2, tolerance=0.4)
    measured = int(jnp.argmax(jnp.abs(apart) < 0.4))
    np.testing.assert_allclose(steps, measured, rtol=0.05, atol=3)
    assert equilibrium.steps_to(predicted, predicted.norm2) == 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("momentum", "fraction", "tolerance"),
    [
        (0.0, 0.001, 1e-10),
        (0.0, 0.5, 1e-10),
        (0.5, 0.001, 0.01),
        (0.9, 0.02, 0.1),
        (0.5, 1.5, 1e-6),  # the buffer forgets more slowly than the norm changes
        (0.9, 3.0, 1e-6),
    ],
)
def test_contraction_is_that_of_the_mean_squares(momentum, fraction, tolerance):
    """The spectral radius of the map of `test_closed_forms...`, linearised by hand."""
    rate, decay = 1.0, fraction * (1 - np.sqrt(momentum)) ** 2
    found = equilibrium.sgd(rate, decay, 1.0, momentum)
    c = np.array([decay**2 - 1 / float(found.norm2) ** 2, 2 * momentum * decay, momentum**2])
    b = np.array([decay, momentum, 0]) - rate * c
    a = np.array([1 - 2 * rate * decay, -2 * rate * momentum, 0]) + rate**2 * c
    radius = np.abs(np.linalg.eigvals(np.array([a, b, c]))).max()
    np.testing.assert_allclose(*np.log([radius, found.contraction]), rtol=tolerance)


def test_a_run_that_is_too_short_says_nothing():
    predicted = equilibrium.sgd(0.1, 0.1, 1.0)
    angle = jnp.full((100, 2), predicted.angle)
    norm2 = jnp.stack([jnp.full(100, 1e6), jnp.full(100, predicted.norm2)], axis=1)
    found = equilibrium.residual(predicted, angle, norm2)
    np.testing.assert_array_equal(jnp.isnan(found.angle), [True, False])
    strided = equilibrium.residual(predicted, angle, norm2, stride=100)
    assert not jnp.any(jnp.isnan(strided.angle))
    np.testing.assert_allclose(strided.angle, 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate", "decay", "momentum"), [(0.1, 0.05, 0.0), (0.1, 0.02, 0.9)])
def test_a_network_turns_as_noise_does(rate, decay, momentum):
    problem = toys.network()
    rule = transforms.by_group(
        problem.groups, invariant=sgd(rate, decay, momentum), rest=optax.sgd(0.05)
    )
    angle, norm2, spherical = trace(problem, rule, 3000)
    length = jnp.sqrt(jnp.mean(spherical[1500:] ** 2, axis=0))
    predicted = equilibrium.sgd(rate, decay, length, momentum)
    found = equilibrium.residual(predicted, angle, norm2)
    assert jnp.max(jnp.abs(found.angle)) < 0.03
    assert jnp.max(jnp.abs(found.norm2)) < 0.3


def test_large_angles_come_back_too():
    for rate, momentum in ((0.9, 0.0), (1.0, 0.9)):
        angle = rotation.sgd_angle(rate, 0.95, momentum)
        np.testing.assert_allclose(rotation.sgd_decay(rate, angle, momentum), 0.95, rtol=1e-5)
    assert rotation.adamw_decay(0.1, rotation.adamw_angle(0.1, 0.0)) == 0


@pytest.mark.parametrize("rates", [jnp.full(3, 0.1), jnp.full((10, 2), 0.1)])
def test_rates_of_another_length_are_refused(rates):
    with pytest.raises(ValueError, match="rate must be one or 10, one a step"):
        equilibrium.log_cos_identity(jnp.ones(10) / 10, jnp.ones(11), rates, 0.1)
