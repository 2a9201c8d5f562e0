"""The constants of the chain against the chain itself, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

from bnrate.theory import chain

pytestmark = pytest.mark.usefixtures("float64")


def psi(x):
    inside = jnp.where(x > 0.5, 2 * x - 1, 1.0)
    return jnp.where(x > 0.5, jnp.exp(1 - inside**-2), 0.0)


def phi(x):
    return jnp.sqrt(jnp.pi * jnp.e / 2) * (1 + erf(x / jnp.sqrt(2)))


def f(x):
    links = psi(-x[:-1]) * phi(-x[1:]) - psi(x[:-1]) * phi(x[1:])
    return -psi(1.0) * phi(x[0]) + jnp.sum(links)


def on_sphere(radius):
    """The scale-invariant chain."""
    return lambda w: f(radius * w[:-1] / jnp.linalg.norm(w))


def over(function, x):
    return jax.jit(jax.vmap(function))(x)


def points(n, number=300, seed=0):
    """Points of the chain where its links are bent, some of them at their worst."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(-2.5, 2.5, (number, n))
    worst = rng.choice([0.0, 0.75, 0.76, 0.91, 0.95, 1.0, -0.76, 3.0, -3.0], (number, n))
    return jnp.asarray(np.concatenate([spread, worst]))


def vectors(x, radius):
    """Unit vectors of the sphere over points of the chain."""
    last = jnp.sqrt(radius**2 - jnp.sum(x**2, axis=1, keepdims=True))
    return jnp.concatenate([x, last], axis=1) / radius


def test_the_chain_itself():
    np.testing.assert_allclose(f(jnp.zeros(5)), -2.06636568, rtol=1e-8)
    np.testing.assert_allclose(jax.grad(f)(jnp.zeros(5))[0], -1.64872127, rtol=1e-8)
    x = jnp.array([1, 1, 0.75, 0, 0.0])
    np.testing.assert_allclose(f(x), -10.25312330, rtol=1e-9)
    found = jax.grad(f)(x)
    expected = [-14.90820725, -13.78456556, -4.53662536, -0.08208500, 0]
    np.testing.assert_allclose(found, expected, atol=6e-9)


@pytest.mark.parametrize(
    ("function", "largest"),
    [
        (psi, chain.PSI),
        (jax.grad(psi), chain.PSI_SLOPE),
        (jax.grad(jax.grad(psi)), chain.PSI_CURVATURE),
        (phi, chain.PHI),
        (jax.grad(phi), chain.PHI_SLOPE),
        (jax.grad(jax.grad(phi)), 1.0),
    ],
)
def test_the_largest_values_of_its_parts(function, largest):
    x = jnp.concatenate([jnp.linspace(-4, 4, 4001), jnp.linspace(4, 400, 2000)])
    found = float(jnp.max(jnp.abs(over(function, x))))
    assert largest * (1 - 1e-4) < found <= largest * (1 + 1e-12)


def test_slope_and_curvature_are_bounds_and_nearly_attained():
    x = points(5)
    slope = jnp.max(jnp.abs(over(jax.grad(f), x)))
    assert 0.9 * chain.SLOPE < slope <= chain.SLOPE
    curvature = jnp.max(jnp.linalg.norm(over(jax.hessian(f), x), 2, axis=(1, 2)))
    assert 0.85 * chain.CURVATURE < curvature <= chain.CURVATURE


def test_slope_and_curvature_by_hand():
    """23 and 152 in the paper; by row, with what one entry can be from points where it is so."""
    slope = np.e**1.5 + np.sqrt(54 / np.e) * np.sqrt(2 * np.pi * np.e)
    np.testing.assert_allclose(chain.SLOPE, slope, rtol=1e-12)
    np.testing.assert_allclose(chain.gradient_floor(4, 100.0), 100 - 2 * slope, rtol=1e-12)
    np.testing.assert_allclose(chain.CURVATURE, 151.26048, rtol=1e-7)
    x = 0.5 + 0.5 / np.sqrt(1.5)  # where the slope of Psi is largest; that of Phi is at 0
    off = jnp.abs(jax.hessian(f)(jnp.array([x, 0.0]))[0, 1])
    along = chain.PSI + chain.PSI_CURVATURE * chain.PHI
    np.testing.assert_allclose(chain.CURVATURE, along + 2 * off, rtol=1e-12)


@pytest.mark.parametrize("c", [3.0, 46.0])
def test_the_constants_hold_on_the_sphere(c):
    n = 4
    radius = c * np.sqrt(n)
    known, v = chain.constants(n, radius), vectors(points(n), radius)
    assert [bound.shape for bound in known] == [(1, 1), (1, 1), (1,), (1,), (), ()]
    value = over(on_sphere(radius), v)
    gradient = over(jax.grad(on_sphere(radius)), v)
    hessian = over(jax.hessian(on_sphere(radius)), v)
    tangent = jnp.eye(n + 1)[None] - v[:, :, None] * v[:, None, :]
    for bound, measured, near in [
        (known.tangent[0, 0], jnp.linalg.norm(tangent @ hessian @ tangent, 2, axis=(1, 2)), 0.7),
        (known.ambient[0, 0], jnp.linalg.norm(hessian, 2, axis=(1, 2)), 0.7),
        (known.gradient[0], jnp.linalg.norm(gradient, axis=1), 0.5),
        (-known.lowest, -value, 0.5),
    ]:
        assert near * bound < jnp.max(measured) <= bound
    assert known.mixed == known.rest == 0


def test_the_radial_direction_adds_a_block():
    known = chain.constants(9, 300.0)
    B, curvature = known.gradient[0], known.tangent[0, 0]
    block = np.array([[0, -B], [-B, curvature]])
    np.testing.assert_allclose(known.ambient[0, 0], np.abs(np.linalg.eigvalsh(block)).max())


@pytest.mark.parametrize("c", [24.0, 46.0, 100.0])
def test_the_gradient_is_large_wherever_the_last_coordinate_is_zero(c):
    n = 6
    radius = c * np.sqrt(n)
    v = vectors(points(n).at[:, -1].set(0), radius)
    length = jnp.linalg.norm(over(jax.grad(on_sphere(radius)), v), axis=1)
    floor = chain.gradient_floor(n, radius)
    assert floor < jnp.min(length)
    assert c < 46 or floor >= radius / 2
    hard = radius * np.ones(n) / np.sqrt(n)  # far out along the diagonal, but for the last
    v = jnp.concatenate([jnp.asarray(hard), jnp.zeros(1)]).at[-2].set(0)
    assert floor < jnp.linalg.norm(jax.grad(on_sphere(radius))(v / jnp.linalg.norm(v)))


@pytest.mark.parametrize("n", [10, 30])
def test_no_rate_reaches_the_end_before_its_time(n):
    """After t steps of SGD only the first t coordinates have moved at all, whatever the rate."""
    radius = 46 * np.sqrt(n)
    gradient = jax.grad(on_sphere(radius))

    def step(w, rate):
        w = w - rate * gradient(w)
        return w, (w, jnp.linalg.norm(w) * jnp.linalg.norm(gradient(w)))

    def run(rate):
        rates = jnp.full(n - 1, rate)
        return jax.lax.scan(step, jnp.zeros(n + 1).at[-1].set(1.0), rates)[1]

    w, length = jax.vmap(run)(jnp.array([1e-8, 1e-6, 1e-4, 1.0, 1e3]))
    reached = np.arange(n)[None] <= np.arange(n - 1)[:, None]
    assert not np.any(np.where(reached[None], 0, w[:, :, :n]))
    assert jnp.min(length) >= chain.gradient_floor(n, radius) >= radius / 2
    assert jnp.max(jnp.abs(w[:, -1, n - 2])) > 0  # and some rate does get as far as can be


def test_a_rate_of_one_by_steps_is_optimal():
    """With gap, smoothness and steps in these proportions, no first-order method does better."""
    for n in (10, 100, 1000):
        radius = 46 * np.sqrt(n)
        known = chain.constants(n, radius)
        gap = -chain.PHI / 2 - known.lowest
        scale = gap * known.tangent[0, 0] / n
        assert scale / 7000 < chain.gradient_floor(n, radius) ** 2 < scale


REFUSED = [
    (lambda: chain.constants(0, 1.0), "the chain must have at least 1 coordinate, got length 0"),
    (lambda: chain.constants(3, 0.0), r"radius must lie in \(0, inf\), got 0"),
    (lambda: chain.constants(3, np.nan), r"radius must lie in \(0, inf\), got nan"),
    (lambda: chain.gradient_floor(4, 45.0), r"radius must lie in \(45.8\d*, inf\), got 45; below"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_in_a_program_they_are_nan_and_dtypes_stay():
    radii = jnp.array([-1.0, 10.0, 100.0], jnp.float32)
    known = jax.jit(jax.vmap(lambda radius: chain.constants(4, radius)))(radii)
    np.testing.assert_array_equal(jnp.isnan(known.tangent[:, 0, 0]), [True, False, False])
    assert {bound.dtype for bound in known} == {jnp.dtype("float32")}
    floor = jax.jit(jax.vmap(lambda radius: chain.gradient_floor(4, radius)))(radii)
    np.testing.assert_array_equal(jnp.isnan(floor), [True, True, False])
    np.testing.assert_allclose(floor[2], chain.gradient_floor(4, 100.0), rtol=1e-6)
