"""The bounds for SGD against runs, exact expectations, and the formulas written out in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate.theory import constants as known
from bnrate.theory import gd, sgd
from bnrate.theory.constants import Constants, Noise

ALPHAS = [0.0, 0.25, 0.5]
GRID = [
    pytest.param(rate, alpha, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
    for i, rate in enumerate((0.01, 1.0, 100.0))
    for j, alpha in enumerate(ALPHAS)
]


def make(curvature=(2.0,), gradient=(1.0,), mixed=None, rest=0.0, lowest=0.0):
    """Constants of blocks that do not bend each other."""
    curvature, gradient = jnp.diag(jnp.array(curvature)), jnp.array(gradient)
    mixed = 0 * gradient if mixed is None else jnp.array(mixed)
    return Constants(curvature, curvature, gradient, mixed, jnp.array(rest), jnp.array(lowest))


def noise(gradient=(1.0,), rest=0.0):
    return Noise(jnp.array(gradient), jnp.array(rest))


# ---- one step, exactly


class Step(NamedTuple):
    """One step of SGD from a random state, in the mean over all batches, and what the lemma says.

    `cost` is without C, which is what is tested.
    """

    gain: jax.Array
    descent: jax.Array
    cost: jax.Array
    large: jax.Array
    rest_noise: jax.Array
    C: jax.Array
    rounding: jax.Array


def coupled(params, case):
    """f1(v1) + f2(v2) + g v1'M v2 + g^2 / 2 + s g, whose curvature in g is 1."""
    (w1, w2, g), (A1, A2, M, s) = params, case
    v1, v2 = w1 / jnp.linalg.norm(w1), w2 / jnp.linalg.norm(w2)
    return v1 @ A1 @ v1 + v2 @ A2 @ v2 + g * (v1 @ M @ v2) + g**2 / 2 + s * g


def random_losses(key, batches=3, dims=(3, 4)):
    """Those of all batches; some do not couple the blocks."""
    keys = jax.random.split(key, 5)
    A1, A2 = (jax.random.normal(k, (batches, d, d)) for k, d in zip(keys, dims, strict=False))
    M, s = jax.random.normal(keys[2], (batches, *dims)), jax.random.normal(keys[3], (batches,))
    size = jax.random.choice(keys[4], jnp.array([0.0, 0.3, 1.0]))
    return A1 + A1.mT, A2 + A2.mT, size * M, s - jnp.mean(s)


def random_state(key, mean):
    """At unit norm; often where the uncoupled mean loss is least."""
    keys = jax.random.split(key, 4)
    still = jax.random.bernoulli(keys[3], 0.3)
    lowest = [jnp.linalg.eigh(A)[1][:, 0] for A in mean[:2]]
    there = (*lowest, jnp.zeros(()))
    drawn = [jax.random.normal(k, x.shape) for k, x in zip(keys, there, strict=False)]
    drawn = [x / jnp.linalg.norm(x) for x in drawn[:2]] + drawn[2:]
    return tuple(jnp.where(still, a, b) for a, b in zip(there, drawn, strict=True))


def coupled_constants(mean, reach):
    """Of the mean loss, as long as |g| <= reach."""
    spread = jnp.stack([jnp.ptp(jnp.linalg.eigvalsh(A)) for A in mean[:2]])
    norm = jnp.linalg.norm(mean[2], 2)
    across = jnp.full((2, 2), norm * reach)
    tangent = jnp.diag(2 * spread) + across
    return Constants(
        tangent, tangent * jnp.inf, spread + norm * reach, norm * jnp.ones(2), jnp.ones(()), 0.0
    )


def one_step(key):
    """A step with an effective rate between 1e-5 and 1e5, after some others."""
    keys = jax.random.split(key, 5)
    batches = random_losses(keys[0])
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), batches)
    params = random_state(keys[1], mean)
    effective = 10 ** jax.random.uniform(keys[2], (2,), minval=-5, maxval=5)
    c, t = (
        jax.random.uniform(keys[3], minval=0.05, maxval=0.95),
        jax.random.randint(keys[4], (), 0, 9),
    )
    rate_rest, age = 2 * (1 - c), jnp.asarray(t + 1, float)
    rates = (*effective, rate_rest / jnp.sqrt(age))

    D = jax.grad(coupled)(params, mean)
    F = jax.vmap(jax.grad(coupled), (None, 0))(params, batches)
    after = jax.vmap(lambda F: tuple(w - r * f for w, r, f in zip(params, rates, F, strict=True)))(
        F
    )
    L, L_after = coupled(params, mean), jax.vmap(coupled, (0, None))(after, mean)

    constants = coupled_constants(mean, jnp.maximum(jnp.abs(params[2]), jnp.max(jnp.abs(after[2]))))
    tan = jnp.stack([r * jnp.linalg.norm(f, axis=1) for r, f in zip(effective, F, strict=False)], 1)
    n = jnp.stack([jnp.sum(D[0] ** 2), jnp.sum(D[1] ** 2)])
    return Step(
        gain=jnp.mean(L_after) - L,
        descent=jnp.sum(effective * n) + c / 2 * rates[2] * D[2] ** 2,
        cost=jnp.mean(jnp.arctan(tan) ** 2, axis=0),
        large=jnp.sum(jnp.mean(tan - jnp.arctan(tan), axis=0) * constants.gradient),
        rest_noise=(1 - c / 2) * rate_rest / age * jnp.var(F[2]),
        C=gd.cost(constants, rate_rest),
        rounding=1e-13 * (1 + jnp.abs(L) + jnp.max(jnp.abs(L_after)) + jnp.sum(effective * n)),
    )


@pytest.mark.usefixtures("float64")
def test_the_mean_of_one_step():
    """Two coupled blocks and a rest; each term of the lemma is needed."""
    # Few at a time: XLA's CPU stops for ever at two eigendecompositions of thousands of matrices.
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(lambda keys: jax.lax.map(one_step, keys, batch_size=50))(keys)
    cost = jnp.sum(found.C * found.cost, axis=1)

    def violations(cost=cost, large=found.large, rest_noise=found.rest_noise):
        allowed = cost + large + rest_noise - found.descent
        return int(jnp.sum(found.gain > allowed + found.rounding))

    assert violations() == 0
    assert violations(cost=cost / 2) > 10
    assert violations(large=0.0) > 100
    assert violations(rest_noise=0.0) > 100


@pytest.mark.usefixtures("float64")
def test_what_turning_costs_is_attained():
    """At the minimum of diag(0, 1), small noise lifts the mean loss by C theta^2 and no less."""
    C, theta = gd.cost(known.rayleigh(np.array([0.0, 1.0]))), 1e-3
    after = np.array([[1.0, np.tan(theta)], [1.0, -np.tan(theta)]])  # steps on A + N and A - N
    gain = np.mean(after[:, 1] ** 2 / np.sum(after**2, axis=1))
    assert 0.999 * C[0] * theta**2 < gain < C[0] * theta**2


# ---- runs


class Run:
    """What many runs of SGD from one start went through: norm2 and squared gradients by step."""

    def __init__(self, gradients, w, g, rate, alpha, rate_rest, steps, replicas=64):
        """`gradients`: (rng, w, g) -> those of a batch, the squared one of the mean on spheres."""
        rng = np.random.default_rng(0)
        w, g = np.tile(w, (replicas, 1)), np.full(replicas, g)
        norm2, squares = [np.sum(w**2, axis=-1)], []
        for t in range(steps):
            (step_w, step_g), square = gradients(rng, w, g)
            squares.append(square)
            w = w - rate * (t + 1) ** -alpha * step_w
            g = g - rate_rest * (t + 1) ** -0.5 * step_g
            norm2.append(np.sum(w**2, axis=-1))
        self.norm2, self.squares = np.array(norm2), np.array(squares)


def matrices():
    A = np.random.default_rng(1).standard_normal((4, 5, 5)) / 2
    return (A + np.swapaxes(A, -1, -2)) / 2 + np.diag(np.linspace(0, 1, 5))


def noisy_rayleigh():
    """A quotient whose matrix is one of four; the mean loss is that of their mean."""
    A = matrices()
    mean = A.mean(0)

    def at(B, v):
        Bv = np.einsum("...ij,...j->...i", B, v)
        return 2 * (Bv - np.sum(Bv * v, axis=-1, keepdims=True) * v)

    def gradients(rng, w, g):
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        batch = at(A[rng.integers(4, size=len(w))], w / size) / size
        return (batch, 0 * g), np.sum(at(mean, w / size) ** 2, axis=-1)

    w = np.ones(5) / np.sqrt(5)
    of_mean, of_batches = known.rayleigh(np.linalg.eigvalsh(mean)), known.rayleigh_noise(A)
    return gradients, w, 0.0, w @ mean @ w, lambda _: (of_mean, of_batches)


def bn_least_squares():
    """Least squares behind a normalisation, with six minibatches and a trained scale."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((6, 12, 3))
    y = X @ np.array([1.0, -1.0, 0.5]) + rng.standard_normal((6, 12)) / 2
    X, y = X - X.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    S, b = np.einsum("kni,knj->kij", X, X) / 12, np.einsum("kni,kn->ki", X, y) / 12
    square = np.mean(y**2, axis=1)

    def at(v, g):
        """The gradients of all batches, (replicas, batches, ...), at unit norm."""
        Sv = np.einsum("kij,ri->rkj", S, v)
        p2, bv = np.einsum("rkj,rj->rk", Sv, v), np.einsum("ki,ri->rk", b, v)
        u = bv / np.sqrt(p2)
        slope = b[None] / np.sqrt(p2)[..., None] - (bv / p2**1.5)[..., None] * Sv
        return -2 * g[:, None, None] * slope, 2 * (g[:, None] - u), u

    def gradients(rng, w, g):
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        D, Dg, _ = at(w / size, g)
        one = np.arange(len(w)), rng.integers(6, size=len(w))
        square = np.sum(D.mean(1) ** 2, axis=-1) + Dg.mean(1) ** 2
        return (D[one] / size, Dg[one]), square

    w, g = np.array([0.6, 0.8, 0.0]), 0.5
    loss = g**2 - 2 * g * at(w[None], np.array([g]))[2].mean() + square.mean()

    def constants(rate_rest):
        return (
            known.bn_least_squares(S, b, square, g, rate_rest),
            known.bn_least_squares_noise(S, b, g, rate_rest),
        )

    return gradients, w, g, loss, constants


PROBLEMS = {"rayleigh": (noisy_rayleigh, None), "least squares": (bn_least_squares, 0.5)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("rate", "alpha"), GRID)
def test_runs_stay_below_the_bound(name, alpha, rate):
    build, rate_rest = PROBLEMS[name]
    gradients, w, g, loss, constants = build()
    of_mean, of_batches = constants(rate_rest)
    steps, start = 1000, {"norm2": jnp.ones(1), "rate": rate, "alpha": alpha}
    run = Run(gradients, w, g, rate, alpha, rate_rest or 0.0, steps)
    more = {**start, "rate_rest": rate_rest, "steps": steps}
    found = sgd.bound(of_mean, of_batches, loss=loss, **more)
    assert np.all(run.norm2 <= np.asarray(found.envelope) * (1 + 1e-12))
    mean = run.squares.mean(1)
    omega = np.asarray(sgd.weights(of_mean, of_batches, **more))
    np.testing.assert_allclose(np.cumsum(omega), found.weights, rtol=1e-10)
    assert np.all(np.minimum.accumulate(mean) <= found.least)
    assert np.all(np.cumsum(omega * mean) <= found.descent)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rate", "alpha"), GRID)
def test_runs_stay_below_the_bound_by_second_moments(alpha, rate):
    gradients, w, g, loss, constants = noisy_rayleigh()
    of_mean, of_batches = constants(None)
    second = np.sqrt(np.mean(np.ptp(np.linalg.eigvalsh(matrices()), axis=-1) ** 2))
    found = sgd.second_moment(
        of_mean, of_batches, second, loss=loss, norm2=jnp.ones(1), rate=rate,
        alpha=alpha, steps=1000,
    )  # fmt: skip
    run = Run(gradients, w, g, rate, alpha, 0.0, 1000)
    assert np.all(run.norm2.mean(1) <= found.envelope[:, 0] * (1 + 1e-12))
    length = np.sqrt(run.squares).mean(1)
    assert np.all(np.minimum.accumulate(length) ** 2 <= found.least)


@pytest.mark.usefixtures("float64")
def test_where_small_steps_meet_no_noise_the_bound_is_attained():
    """The descent is the gap, up to what the angles cost: a quotient falls from near its top."""
    spectrum = np.linspace(0, 1, 5)
    constants = known.rayleigh(spectrum)
    v = np.array([0.05, 0, 0, 0, 1.0])
    w = v / np.linalg.norm(v)

    def gradients(rng, w, g):
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        v = w / size
        D = 2 * (spectrum * v - np.sum(spectrum * v**2, axis=-1, keepdims=True) * v)
        return (D / size, 0 * g), np.sum(D**2, axis=-1)

    run = Run(gradients, w, 0.0, 1e-2, 0.0, 0.0, 3000, replicas=1)
    of_batches, more = Noise(constants.gradient, constants.rest), {"rate": 1e-2, "steps": 3000}
    start = {"loss": w @ (spectrum * w), "norm2": jnp.ones(1)}
    found = sgd.bound(constants, of_batches, **start, **more)
    gained = np.cumsum(
        run.squares[:, 0] * sgd.weights(constants, of_batches, norm2=jnp.ones(1), **more)
    )
    assert 0.75 * found.descent[-1] < gained[-1] <= found.descent[-1]


# ---- envelope and growth

_envelope = jax.jit(sgd.envelope, static_argnames="steps")


@pytest.mark.usefixtures("float64")
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0, 1), min_size=12, max_size=12),
    st.sampled_from(ALPHAS),
    st.floats(1e-3, 1e3),
    st.floats(1e-2, 1e2),
)
def test_no_sequence_of_gradients_outgrows_the_envelope(shares, alpha, rate, norm2):
    B = np.array([0.7, 3.0])
    lengths = B * np.array([shares, shares[::-1]]).T
    found = np.asarray(_envelope(B, norm2=np.full(2, norm2), rate=rate, alpha=alpha, steps=12))
    G = np.full(2, norm2)
    for t, length in enumerate(lengths):
        assert np.all(found[t] * (1 + 1e-12) >= G)
        G = G + (rate * (t + 1) ** -alpha * length) ** 2 / G
    assert np.all(found[-1] * (1 + 1e-12) >= G)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_envelope_is_attained_by_the_longest_gradients(alpha):
    found = sgd.envelope(jnp.array([3.0]), norm2=jnp.ones(1), rate=2.0, alpha=alpha, steps=20)
    G = [1.0]
    for t in range(20):
        G.append(G[-1] + (2.0 * (t + 1) ** -alpha * 3.0) ** 2 / G[-1])
    np.testing.assert_allclose(found[:, 0], G, rtol=1e-12)


def test_in_float32_small_steps_are_not_lost_in_a_large_norm():
    found = sgd.envelope(jnp.ones(1), norm2=jnp.ones(1), rate=1e-4, steps=10_000)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[-1, 0], np.sqrt(1 + 2e-4), rtol=1e-6)


def test_in_float32_the_envelope_of_a_long_run_does_not_stall():
    """Noise of constant norm attains it; without compensation it is short by one per cent here."""
    steps = 300_000
    found = _envelope(jnp.ones(1), norm2=jnp.ones(1), rate=1.0, alpha=0.5, steps=steps)
    G = 1.0
    for t in range(steps):
        G += 1 / ((t + 1) * G)
    np.testing.assert_allclose(found[-1, 0], G, rtol=1e-6)


def grown(rate, alpha, steps, replicas=64):
    """Norms under noise that never ends: squared gradients 0.4 or 2.6, of mean 1.5, as s^2."""
    squares = np.random.default_rng(0).choice([0.4, 2.6], (steps, replicas))
    G, found = np.ones(replicas), [np.ones(replicas)]
    for t in range(steps):
        G = G + (rate * (t + 1) ** -alpha) ** 2 * squares[t] / G
        found.append(G)
    return np.mean(found, axis=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_under_persistent_noise_norms_grow_as_a_power(alpha, rate):
    steps = 20_000
    predicted = sgd.growth(rate, np.sqrt(1.5), alpha, steps)
    measured = grown(rate, alpha, steps)
    assert predicted.shape == measured.shape
    assert 0.98 < measured[-1] / predicted[-1] < 1.02
    t = np.geomspace(2000, steps, 20).astype(int)
    exponent = np.polyfit(np.log(t), np.log(measured[t]), 1)[0]
    assert abs(exponent - (0.5 - alpha)) < 0.02


@pytest.mark.usefixtures("float64")
def test_the_growth_by_hand():
    expected = [0, np.sqrt(2), np.sqrt(2 * 1.5), np.sqrt(2 * (1.5 + 1 / 3))]
    np.testing.assert_allclose(sgd.growth(3.0, 0.2, 0.5, 3), 0.6 * np.array(expected), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_asymptotics_of_the_bound(alpha):
    """U as eta B sqrt(2 sum), the weights as T / (B sqrt(2 sum T)), independent of eta."""
    steps, B, rates = 30_000, 2.0, (0.25, 0.5)
    found = [
        sgd.bound(
            make(gradient=[B]), noise([B]), loss=0.5, norm2=jnp.ones(1), rate=rate, alpha=alpha,
            steps=steps,
        )
        for rate in rates
    ]  # fmt: skip
    np.testing.assert_allclose(found[0].weights[-1], found[1].weights[-1], rtol=0.1)
    for one, rate in zip(found, rates, strict=True):
        growth = sgd.growth(rate, B, alpha, steps)
        np.testing.assert_allclose(one.envelope[-1, 0], growth[-1], rtol=0.15)
        if alpha < 0.5:
            weights = np.sqrt(2 * (1 - 2 * alpha) * steps) / B
            np.testing.assert_allclose(one.weights[-1], weights, rtol=0.05)


# ---- the formulas, and what is refused


def by_hand(constants, noise, loss, norm2, rate, alpha, rate_rest, steps):
    """R_T and omega_t for two blocks and a rest, as the theorem is printed, in NumPy."""
    tangent, _, gradient, mixed, rest, lowest = (np.asarray(part) for part in constants)
    B, sigma = np.asarray(noise.gradient), float(noise.rest)
    c = 1 - rate_rest * rest / 2
    C = tangent.sum(1) / 2 + mixed * mixed.sum() * (1 - c) / (c * rest)
    x = (rate * B / norm2) ** 2
    E = np.sum((1 + x) / (3 + x) * rate * B * gradient / norm2)
    U, R, omega, harmonic = np.array(norm2), [], [], 0.0
    for t in range(steps):
        eta = rate * (t + 1) ** -alpha
        omega.append(min((eta / U).min(), c * rate_rest / np.sqrt(t + 1) / 2))
        U, harmonic = U + (eta * B) ** 2 / U, harmonic + 1 / (t + 1)
        noisy = (1 - c / 2) * rate_rest * sigma**2 * harmonic
        R.append(loss - lowest + noisy + np.sum(C * np.log(U / norm2)) + E)
    return np.array(R), np.array(omega)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("rate", [0.01, 30.0])
def test_two_blocks_and_a_rest_by_hand(alpha, rate):
    constants = make([2.0, 5.0], [1.0, 2.0], [0.3, 0.1], rest=4.0, lowest=-1.0)
    constants = constants._replace(tangent=constants.tangent + 0.5)
    batches, norm2 = noise([1.5, 2.5], rest=0.7), jnp.array([1.0, 3.0])
    args = {"norm2": norm2, "rate": rate, "alpha": alpha, "rate_rest": 0.3, "steps": 40}
    found = sgd.bound(constants, batches, loss=0.5, **args)
    R, omega = by_hand(constants, batches, 0.5, np.array([1.0, 3.0]), rate, alpha, 0.3, 40)
    np.testing.assert_allclose(found.descent, R, rtol=1e-12)
    np.testing.assert_allclose(sgd.weights(constants, batches, **args), omega, rtol=1e-12)
    np.testing.assert_allclose(found.least, R / np.cumsum(omega), rtol=1e-12)
    says = found.least < 1.0**2 + 2.0**2
    first = int(np.argmax(says)) + 1 if np.any(says) else np.inf
    assert found.vacuous_until == first


@pytest.mark.usefixtures("float64")
def test_a_mean_gradient_is_no_longer_than_the_longest():
    loose, tight = make(gradient=[9.0]), make(gradient=[1.0])
    args = {"loss": 0.5, "norm2": jnp.ones(1), "rate": 10.0, "steps": 100}
    found = [sgd.bound(constants, noise(), **args) for constants in (loose, tight)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("s", [0.2, 3.0])
def test_second_moments_by_hand(s):
    constants, batches, eta, G = make([4.0], [1.0]), noise([3.0]), 0.5, 2.0
    steps, q = 30, (eta * 3.0) ** 2
    args = {"loss": 0.5, "norm2": jnp.full(1, G), "rate": eta, "alpha": 0.25, "steps": steps}
    found = sgd.second_moment(constants, batches, s, **args)
    U = np.asarray(sgd.envelope(batches.gradient, **{k: args[k] for k in args if k != "loss"}))[
        :, 0
    ]
    etas = eta * (np.arange(steps) + 1) ** -0.25
    squares = np.concatenate([[0], np.cumsum(etas**2)])
    M = np.sqrt(G**2 + 2 * s**2 * squares + q * (np.log(U / G) + q / G**2))
    M = np.minimum(np.where(squares == 0, G, M), U)
    assert np.all(M[1:] < U[1:]) if s < 3 else np.all(M == U)
    x = (eta * 3.0 / G) ** 2
    R = 0.5 + 2.0 * np.log(M[1:] / G) + (1 + x) / (3 + x) * eta * 3.0 / G
    np.testing.assert_allclose(found.envelope[:, 0], M, rtol=1e-12)
    np.testing.assert_allclose(found.descent, R, rtol=1e-12)
    np.testing.assert_allclose(found.least, R / np.cumsum(etas / M[:-1]), rtol=1e-12)


GOOD = {
    "constants": make(),
    "noise": noise(),
    "loss": 0.5,
    "norm2": jnp.ones(1),
    "rate": 1.0,
    "alpha": 0.25,
    "steps": 5,
}
WITH_REST = make(rest=2.0)
REFUSED = [
    ({"alpha": -0.1}, r"alpha must lie in \[0, 0.5\], got -0.1"),
    ({"alpha": 0.6}, r"alpha must lie in \[0, 0.5\], got 0.6"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"rate": 0.0}, r"rate must lie in \(0, inf\), got 0"),
    ({"rate": jnp.nan}, r"rate must lie in \(0, inf\), got nan"),
    ({"norm2": jnp.zeros(1)}, r"norm2 must lie in \(0, inf\), got 0"),
    ({"norm2": jnp.ones(2)}, r"norm2 must have one entry per block, like the gradient's \(1,\)"),
    ({"constants": make([1.0, 1.0], [1.0, 1.0])}, r"of the same blocks, got .* \(2,\) and \(1,\)"),
    ({"constants": make([-2.0])}, r"cost of turning must lie in \[0, inf\], got -1"),
    ({"constants": make([np.nan])}, r"cost of turning must lie in \[0, inf\], got nan"),
    ({"loss": -1.0}, r"loss - constants.lowest must lie in \[0, inf\], got -1"),
    (
        {
            "constants": make([1.0, 1.0], [1.0, 1.0], [0.3, -0.1]),
            "noise": noise([1.0, 1.0]),
            "norm2": jnp.ones(2),
            "rate_rest": 0.1,
        },
        r"constants.mixed must lie in \[0, inf\], got -0.1",
    ),
    ({"noise": noise([np.inf])}, r"gradient must lie in \[0, inf\), got inf"),
    ({"constants": WITH_REST}, "these constants are of a loss with a rest: give rate_rest"),
    ({"constants": WITH_REST, "rate_rest": 1.0}, r"rate_rest \* constants.rest must lie in \[0, 2"),
    ({"constants": make(rest=1.0), "noise": noise(rest=-1.0), "rate_rest": 1.0}, "noise.rest must"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_bad_settings_are_refused(bad, message):
    sgd.bound(**GOOD)
    with pytest.raises(ValueError, match=message):
        sgd.bound(**{**GOOD, **bad})


def test_a_loss_below_the_lowest_by_rounding_is_at_the_lowest():
    constants = make(lowest=0.3)
    found = [
        sgd.bound(**{**GOOD, "constants": constants, "loss": np.float32(loss)})
        for loss in (np.nextafter(np.float32(0.3), np.float32(0)), 0.3)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_no_record_survives_a_power_that_is_none():
    args = {name: value for name, value in GOOD.items() if name != "alpha"}
    bad = jnp.asarray([0.7, jnp.nan])
    found = jax.jit(jax.vmap(lambda alpha: sgd.second_moment(**args, alpha=alpha, moment=1.0)))(bad)
    assert np.all(np.isnan(found.least))
    assert np.all(np.isnan(found.weights))


def test_second_moments_are_for_one_block_without_a_rest():
    sgd.second_moment(**GOOD, moment=1.0)
    two = {"constants": make([1.0, 1.0], [1.0, 1.0]), "noise": noise([1.0, 1.0])}
    with pytest.raises(ValueError, match="proved for one block, got 2; use bound"):
        sgd.second_moment(**{**GOOD, **two, "norm2": jnp.ones(2)}, moment=1.0)
    with pytest.raises(ValueError, match="these constants are of a loss with a rest"):
        sgd.second_moment(**{**GOOD, "constants": WITH_REST}, moment=1.0)
    with pytest.raises(ValueError, match=r"moment must lie in \[0, inf\), got -1"):
        sgd.second_moment(**GOOD, moment=-1.0)


def test_weights_need_the_rate_of_the_rest_too():
    args = {name: value for name, value in GOOD.items() if name != "loss"}
    with pytest.raises(ValueError, match="these constants are of a loss with a rest"):
        sgd.weights(**{**args, "constants": WITH_REST})
    del args["constants"]
    compiled = jax.jit(lambda rest: sgd.weights(make()._replace(rest=rest), **args))
    assert np.all(np.isnan(compiled(2.0)))
    assert np.all(np.isfinite(compiled(0.0)))


@pytest.mark.parametrize("wide", [False, True])
def test_in_a_program_lanes_go_side_by_side_and_bad_ones_are_nan(wide):
    with jax.enable_x64(wide):
        rates = jnp.array([-1.0, 0.1, 1e9])
        constants, batches = make(rest=1.0), noise(rest=0.5)

        def both(rate):
            args = {"loss": 0.5, "norm2": jnp.ones(1), "rate": rate, "alpha": 0.25, "steps": 9}
            whole = sgd.bound(constants, batches, **args, rate_rest=0.5)
            return whole, sgd.second_moment(make(), noise(), 1.0, **args)

        found = jax.jit(jax.vmap(both))(rates)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {rates.dtype}
        for one in found:
            np.testing.assert_array_equal(np.isnan(one.least[:, -1]), [True, False, False])
            np.testing.assert_array_equal(np.isinf(one.vacuous_until[:1]), [True])
        alone = jax.tree.map(lambda leaf: leaf[1], found)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), alone, both(0.1))
