"""GDNP's contraction and lowest value against the steps themselves, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate.theory import gdnp


def rho(S, b, w):
    return -((b @ w) ** 2) / (w @ S @ w)


def step(S, b, w):
    variance, product = w @ S @ w, b @ w
    gradient = -2 * product / variance * (b - product / variance * (S @ w))
    rate = variance / (2 * np.linalg.eigvalsh(S)[-1] * abs(rho(S, b, w)))
    return w - rate * gradient


def random_case(seed, dims, decades):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    S = (q * 10 ** rng.uniform(-decades, 0, dims)) @ q.T
    return (S + S.T) / 2, rng.standard_normal(dims), rng.standard_normal(dims)


def excesses(S, b, w, steps):
    """By how much rho exceeds its least value, step by step."""
    found = []
    for _ in range(steps + 1):
        found.append(rho(S, b, w) + b @ np.linalg.solve(S, b))
        w = step(S, b, w)
    return np.array(found)


@pytest.mark.usefixtures("float64")
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 2))
def test_each_step_contracts(seed, dims, decades):
    S, b, w = random_case(seed, dims, decades)
    factor = float(gdnp.contraction(jnp.asarray(S)))
    found = excesses(S, b, w, 20)
    assert np.all(found[1:] <= factor * found[:-1] + 1e-12 * (b @ np.linalg.solve(S, b)))


@pytest.mark.usefixtures("float64")
def test_the_contraction_is_attained_where_the_slow_error_is_small():
    S = np.diag([1.0, 4.0])
    factor = gdnp.contraction(jnp.asarray(S))
    np.testing.assert_allclose(factor, (1 - 1 / 4) ** 2, rtol=1e-12)
    b, w = S @ np.array([1e-3, 1.0]), np.array([0.0, 1.0])  # S^-1 b is hardly along the first
    found = excesses(S, b, w, 3)
    np.testing.assert_allclose(found[1:] / found[:-1], factor, rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_value(seed):
    S, b, w = random_case(seed, 4, 1.5)
    found = gdnp.lowest(jnp.asarray(S), jnp.asarray(b))
    np.testing.assert_allclose(found, rho(S, b, np.linalg.solve(S, b)), rtol=1e-10)
    assert found <= rho(S, b, w)


def test_covariances_without_an_inverse_are_refused():
    advice = "singular: take more samples than dimensions"
    for S in (jnp.diag(jnp.array([0.0, 1.0])), jnp.diag(jnp.array([-1.0, 1.0])), jnp.zeros((2, 2))):
        with pytest.raises(ValueError, match=advice):
            gdnp.contraction(S)
        with pytest.raises(ValueError, match=advice):
            gdnp.lowest(S, jnp.ones(2))


def test_in_a_program_they_are_nan_and_spare_the_others():
    S = jnp.array([[[1.0, 0], [0, 2]], [[1, 1], [1, 1]], [[jnp.nan, 0], [0, 1]]])
    b = jnp.ones((3, 2))
    found = jax.jit(jax.vmap(lambda S, b: (gdnp.contraction(S), gdnp.lowest(S, b))))(S, b)
    for values, first in zip(found, (0.25, -1.5), strict=True):
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values[0], first, rtol=1e-6)
        np.testing.assert_array_equal(jnp.isnan(values), [False, True, True])
