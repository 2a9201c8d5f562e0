"""Projected SGD: where it is bounded, and the orbit on which it is stuck where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate.theory import psgd
from bnrate.theory.constants import Constants

ONE = jnp.ones(1)

TABLE = {  # rate -> angle in degrees, loss, gradient, multiplier
    1.1: (12.309989, 0.045455, 0.4165977905, -0.652893),
    1.5: (24.094843, 0.166667, 0.7453559925, 0.111111),
    2.0: (30.0, 0.25, 0.8660254038, 0.5),
    5.0: (39.231520, 0.4, 0.9797958971, 0.92),
    100.0: (44.713516, 0.495, 0.9999499987, 0.9998),
    1000.0: (44.971352, 0.4995, 0.9999995, 0.999998),
}


def rayleigh(spectrum):
    """The Rayleigh quotient of a diagonal matrix, and its gradient."""
    A = np.asarray(spectrum)

    def loss(w):
        return np.sum(A * w**2, axis=-1) / np.sum(w**2, axis=-1)

    def gradient(w):
        G = np.sum(w**2, axis=-1, keepdims=True)
        return 2 * (A - loss(w)[..., None]) * w / G

    return loss, gradient


def trained(gradient, w, rate, steps, project):
    """The iterates at unit norm and their gradients' norms."""
    vectors, lengths = [], []
    for t in range(steps):
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        g = gradient(w, t)
        vectors.append(w / size)
        lengths.append(np.linalg.norm(g * size, axis=-1))
        w = w - rate * g
        w = w / np.linalg.norm(w, axis=-1, keepdims=True) if project else w
    return np.array(vectors), np.array(lengths)


def constants(spread, ambient=None, blocks=1):
    curvature = 2.0 * spread * jnp.eye(blocks)
    ambient = curvature if ambient is None else ambient
    zero = jnp.zeros(())
    ones = jnp.ones(blocks)
    return Constants(curvature, ambient, spread * ones, 0 * ones, zero, zero)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", TABLE)
def test_the_orbit_to_eight_digits(rate):
    found = psgd.orbit(rate)
    angle, loss, gradient, multiplier = TABLE[rate]
    np.testing.assert_allclose(np.degrees(np.arctan(found.tangent)), angle, atol=5e-7)
    np.testing.assert_allclose(found.loss, loss, atol=5e-7)
    np.testing.assert_allclose(found.gradient, gradient, atol=5e-11)
    np.testing.assert_allclose(found.multiplier, multiplier, atol=5e-7)
    np.testing.assert_allclose(psgd.step(found.tangent, rate), -found.tangent, rtol=1e-12)
    slope = jax.grad(psgd.step)(found.tangent, rate)
    np.testing.assert_allclose(slope, found.multiplier, rtol=1e-10)
    for pole, multiplier in ((0.0, 1 - 2 * rate), (1e9, 1 / (1 + 2 * rate))):
        np.testing.assert_allclose(jax.grad(psgd.step)(pole, rate), multiplier, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate", "spread"), [(2.0, 1.0), (0.4, 5.0), (300.0, 0.02)])
def test_the_orbit_is_that_of_the_rule(rate, spread):
    """Steps by autodiff, in weights; rate and spread act through their product."""
    found = psgd.orbit(rate, spread)
    loss = lambda w: spread * w[1] ** 2 / jnp.sum(w**2)  # noqa: E731
    w = jnp.array([1.0, found.tangent])
    w = w / jnp.linalg.norm(w)
    np.testing.assert_allclose(loss(w), found.loss, rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(jax.grad(loss)(w)), found.gradient, rtol=1e-12)
    after = w - rate * jax.grad(loss)(w)
    np.testing.assert_allclose(after[1] / after[0], -found.tangent, rtol=1e-12)
    for tau in (0.01, 0.5, 3.0):
        after = jnp.array([1.0, tau]) / jnp.sqrt(1 + tau**2)
        after = after - rate * jax.grad(loss)(after)
        np.testing.assert_allclose(psgd.step(tau, rate, spread), after[1] / after[0], rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [1.1, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("dims", [2, 20])
def test_the_orbit_attracts_also_among_other_eigenvalues(rate, dims):
    gradient = rayleigh(np.linspace(0, 1, dims))[1]
    w = np.random.default_rng(dims).standard_normal((20, dims))
    w = w / np.linalg.norm(w, axis=-1, keepdims=True)
    lengths = trained(lambda w, t: gradient(w), w, rate, 4000, project=True)[1]
    np.testing.assert_allclose(lengths[-2:], psgd.orbit(rate).gradient, rtol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", TABLE)
def test_from_the_orbit_gradient_descent_converges_and_the_projected_stays(rate):
    gradient = rayleigh([0.0, 1.0])[1]
    found = psgd.orbit(rate)
    w = np.array([1.0, float(found.tangent)])
    w = w / np.linalg.norm(w)
    stuck = trained(lambda w, t: gradient(w), w, rate, 1000, project=True)[1]
    np.testing.assert_allclose(stuck, float(found.gradient), rtol=1e-8)
    free = trained(lambda w, t: gradient(w), w, rate, 10_000, project=False)[1]
    assert free[-1] < 1e-7


def noisy(replicas, rate, steps, project):
    """The mean squared gradient of A = diag(0, 1), with A + N or A - N at each step."""
    gradient = rayleigh([0.0, 1.0])[1]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (steps, replicas, 1))
    squares = []

    def sampled(w, t):
        swapped, G = w[:, ::-1] / 2, np.sum(w**2, axis=-1, keepdims=True)  # N w
        quotient = np.sum(w * swapped, axis=-1, keepdims=True) / G
        squares.append(np.mean(np.sum(gradient(w) ** 2, axis=-1) * G[:, 0]))
        return gradient(w) + signs[t] * 2 * (swapped - quotient * w) / G

    w = np.tile([np.sqrt(0.5), np.sqrt(0.5)], (replicas, 1))
    trained(sampled, w, rate, steps, project)
    return np.array(squares)


@pytest.mark.usefixtures("float64")
def test_below_the_threshold_noise_sets_a_floor():
    """N has the gradient |2 P N v| = |cos 2 theta| <= 1, of mean 0."""
    rate, steps = 0.1, 3000
    measured = noisy(64, rate, steps, project=True)
    known, one = constants(1.0), jnp.ones(1)
    bound = psgd.bound(known, one, loss=0.5, rate=rate, steps=steps)
    means = np.cumsum(measured) / np.arange(1, steps + 1)
    assert np.all(means <= bound)
    late = np.mean(measured[-1000:])
    floor = psgd.floor(known, one, rate)
    np.testing.assert_allclose(floor, 0.1 / 0.9, rtol=1e-12)
    assert 0.8 * floor < late <= floor
    # half of C would not do
    halved = psgd.floor(constants(0.5), one, rate)
    assert late > halved


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [0.5, 2.0, 10.0])
def test_at_any_rate_sgd_goes_below_the_floor_on_which_the_projected_stays(rate):
    free, stuck = (noisy(64, rate, 3000, project) for project in (False, True))
    assert np.mean(free[-500:]) < 0.05 < 0.3 < np.mean(stuck[-500:])


@pytest.mark.usefixtures("float64")
def test_the_bound_of_several_blocks():
    """By hand: C = (3/2, 2), the gap 0.7."""
    known = constants(1.0, ambient=jnp.array([[2.0, 1.0], [1.0, 3.0]]), blocks=2)
    deviation = jnp.array([0.5, 0.1])
    found = psgd.bound(known, deviation, loss=0.7, rate=0.2, steps=3)
    margin, noise = 1 - 0.2 * 2, 0.2 * (1.5 * 0.25 + 2 * 0.01)
    expected = [(0.7 / (0.2 * T) + noise) / margin for T in (1, 2, 3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


WITH_REST = constants(1.0)._replace(rest=jnp.ones(()))
UNKNOWN = constants(1.0, ambient=jnp.full((1, 1), jnp.inf))
REFUSED = [
    ({"rate": 1.0}, r"rate \* smoothness / 2 must lie in \[0, 1\), got 1; from rate = 2"),
    ({"rate": 0.0}, r"rate must lie in \(0, inf\), got 0"),
    ({"rate": jnp.nan}, r"rate must lie in \(0, inf\), got nan"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"loss": -0.1}, r"loss - constants.lowest must lie in \[0, inf\], got -0.1"),
    ({"deviation": -ONE}, r"deviation must lie in \[0, inf\), got -1"),
    ({"constants": WITH_REST}, r"constants.rest must lie in \[0, 0\], got 1; this bound is for"),
    ({"constants": UNKNOWN}, r"rate \* smoothness / 2 must lie in \[0, 1\), got inf"),
]
GOOD = {"constants": constants(1.0), "deviation": ONE, "loss": 0.5, "rate": 0.1, "steps": 5}


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_bad_settings_are_refused(bad, message):
    psgd.bound(**GOOD)
    with pytest.raises(ValueError, match=message):
        psgd.bound(**{**GOOD, **bad})


def test_a_loss_below_the_lowest_by_rounding_is_at_the_lowest():
    known = GOOD["constants"]._replace(lowest=jnp.asarray(0.3))
    below = np.nextafter(np.float32(0.3), np.float32(0))
    found = psgd.bound(**{**GOOD, "constants": known, "loss": below})
    np.testing.assert_allclose(found, psgd.floor(known, ONE, 0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psgd.orbit(1.0), r"rate \* spread must lie in \(1, inf\), got 1; at such rates"),
        (lambda: psgd.orbit(2.0, -1.0), r"spread must lie in \(0, inf\), got -1"),
        (lambda: psgd.step(1.0, 0.0), r"rate must lie in \(0, inf\), got 0"),
    ],
)
def test_there_is_no_orbit_elsewhere(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_in_a_program_there_is_nan_and_rates_go_side_by_side():
    rates = jnp.array([0.1, 0.999, 1.0, 5.0])
    args = {name: value for name, value in GOOD.items() if name != "rate"}
    found = jax.jit(jax.vmap(lambda rate: psgd.bound(**args, rate=rate)))(rates)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(jnp.isnan(found[:, 0]), [False, False, True, True])
    np.testing.assert_allclose(found[0], psgd.bound(**GOOD), rtol=1e-6)
    known = GOOD["constants"]._replace(rest=jnp.array([0.0, 1.0]))
    axes = Constants(None, None, None, None, 0, None)
    floor = jax.jit(jax.vmap(lambda known: psgd.floor(known, ONE, 0.1), in_axes=(axes,)))(known)
    np.testing.assert_array_equal(jnp.isnan(floor), [False, True])
    orbits = jax.jit(psgd.orbit)(rates)
    np.testing.assert_array_equal(jnp.isnan(orbits.gradient), [True, True, True, False])
    assert orbits.gradient.dtype == jnp.float32
