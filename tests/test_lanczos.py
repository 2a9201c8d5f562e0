"""Ritz values against the eigenvalues of dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import lanczos


def symmetric(spectrum, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))
    return jnp.asarray(q @ np.diag(spectrum) @ q.T)


def start(size, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(size))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_with_as_many_iterations_as_dimensions_all_are_found(size):
    spectrum = np.sort(np.random.default_rng(size).standard_normal(size))
    found = lanczos.ritz(lambda v: symmetric(spectrum) @ v, start(size), size + 3)
    np.testing.assert_allclose(found.values, spectrum, atol=1e-12)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_extremes_come_first_and_each_value_has_an_eigenvalue_as_near_as_said():
    spectrum = np.concatenate([[-5.0], np.linspace(-1, 1, 200), [5.1]])
    found = lanczos.ritz(lambda v: symmetric(spectrum) @ v, start(202), 20)
    np.testing.assert_allclose(np.asarray(found.values)[[0, -1]], [-5, 5.1], rtol=1e-9)
    distance = np.abs(np.asarray(found.values)[:, None] - spectrum).min(1)
    assert np.all(distance <= np.asarray(found.residuals) + 1e-12)
    few = lanczos.ritz(lambda v: symmetric(spectrum) @ v, start(202), 3)
    assert few.values[-1] < 5.1 - 1e-3
    assert few.residuals[-1] > 1e-3


@pytest.mark.parametrize("spectrum", [[-3.0, -3, -3, -2], [0.0, 0, 0, 0], [2.0, 2, 2, 2]])
def test_where_the_vectors_run_out_nothing_is_invented(spectrum):
    found = lanczos.ritz(lambda v: jnp.asarray(spectrum) * v, jnp.ones(4), 4)
    assert np.all(np.isfinite(found.values))
    assert found.values[0] >= min(spectrum) - 1e-5
    assert found.values[-1] <= max(spectrum) + 1e-5
    np.testing.assert_allclose(found.values[-1], max(spectrum), atol=1e-5)


@pytest.mark.parametrize("size", [3, 40])
def test_a_subspace_is_not_left(size):
    """All its eigenvalues are found and none of the others, however many iterations there are."""
    spectrum = np.concatenate([np.linspace(1, 2, size), np.zeros(300 - size)])
    A = symmetric(spectrum).astype(jnp.float32)
    vectors = np.linalg.eigh(np.asarray(A, np.float64))[1][:, -size:]
    inside = jnp.asarray(vectors @ vectors.T, jnp.float32)
    found = lanczos.ritz(
        lambda v: A @ v, inside @ start(300).astype(jnp.float32), 100, lambda v: inside @ v
    )
    np.testing.assert_allclose(found.values[0], 1, rtol=1e-4)
    np.testing.assert_allclose(found.values[-1], 2, rtol=1e-4)


def dense(seed, size):
    return symmetric(np.random.default_rng(seed).standard_normal(size), seed)


def lower_rank(seed, size):
    return symmetric(np.concatenate([[1.0], np.full(size - 1, 1e-6)]), seed)


def repeated(seed, size):
    return jnp.diag(jnp.round(start(size, seed)))


@jax.jit
def five_values(A, first):
    return lanczos.ritz(lambda v: A @ v, first, 5)


@pytest.mark.parametrize("make", [dense, lower_rank, repeated])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-11, 1.0, 1e11, 1e22, 1e36])
def test_in_float32_an_eigenvalue_is_as_near_as_said_at_every_scale(make, scale):
    """For exact values (there are 5 dimensions) as for those that are repeated or on the way."""
    for size in (5, 12):
        A = jnp.float32(scale) * make(size, size).astype(jnp.float32)
        expected = np.linalg.eigvalsh(np.asarray(A, float))
        found = five_values(A, start(size).astype(jnp.float32))
        values, residuals = (np.asarray(part, float) for part in found)
        largest = np.abs(expected).max()
        assert np.all(np.abs(values[:, None] - expected).min(1) <= residuals)
        assert np.all(residuals > 1e-7 * np.abs(values).max())
        if size == 5 and make is dense:
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * largest)
            assert residuals.max() < 1e-5 * largest


def test_of_the_repetitions_too():
    """The Rayleigh quotient of the start is not near an eigenvalue, and its residual says so."""
    found = lanczos.ritz(lambda v: jnp.array([1.0, -1.0, -1.0, -1.0]) * v, jnp.ones(4), 4)
    distance = np.minimum(np.abs(found.values - 1), np.abs(found.values + 1))
    assert distance.max() > 0.4  # -1/2 is among them
    assert np.all(distance <= found.residuals)
    assert np.all(np.asarray(found.residuals)[[0, -1]] < 1e-5)


def test_what_rounding_hides_is_within_the_residual():
    found = lanczos.ritz(lambda v: jnp.array([1e7, 1.0, -1.0, 1.0]) * v, jnp.ones(4), 4)
    assert abs(found.values[0] + 1) <= found.residuals[0]
    assert found.residuals[0] < 100


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_length_of_the_start_does_not_matter(size):
    spectrum = jnp.array([1.0, 2.0, 3.0])
    found = lanczos.ritz(lambda v: spectrum * v, size * jnp.ones(3), 3)
    np.testing.assert_allclose(found.values, spectrum, rtol=1e-5)


@pytest.mark.parametrize("at", [0.0, 2.5])
def test_nan_at_any_iteration_leaves_nan_values_and_residuals(at):
    """The second vector, unlike the first, has an entry below 0."""
    spectrum = jnp.array([1.0, 2.0, 4.0])

    def product(v):
        return jnp.where(v.min() < at, jnp.nan, spectrum * v)

    found = lanczos.ritz(product, jnp.ones(3), 3)
    assert np.all(np.isnan(found.values))
    assert np.all(np.isnan(found.residuals))
