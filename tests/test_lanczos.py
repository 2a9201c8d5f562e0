"""Ritz values against the eigenvalues of dense matrices."""

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
