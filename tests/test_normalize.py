import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate import normalize
from bnrate.normalize import Moments

SHAPES = [(16, 3), (4, 5, 6, 3)]


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def normalised(x, eps=0.0):
    return normalize.batch_norm(x, normalize.moments(x), eps=eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_agrees_with_flax(shape, eps):
    x, scale, bias = normal(0, shape), normal(1, 3), normal(2, 3)
    ours = normalize.batch_norm(x, normalize.moments(x), scale, bias, eps=eps)
    module = nn.BatchNorm(use_running_average=False, epsilon=eps, use_fast_variance=False)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    theirs, _ = module.apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}, x, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([2.0**k for k in range(-20, 21)]))
def test_exactly_invariant_to_powers_of_two(seed, c):
    x = normal(seed, (8, 3))
    np.testing.assert_array_equal(normalised(c * x), normalised(x))


def test_epsilon_breaks_the_invariance():
    x = normal(0, (8, 3))
    assert jnp.max(jnp.abs(normalised(0.01 * x, eps=1e-5) - normalised(x, eps=1e-5))) > 1e-3


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-30, 1e30 / 1e12, -7.3])
@pytest.mark.parametrize("n", [7, 128, 1000])
def test_a_constant_channel_is_dead_not_noise(constant, n):
    x = jnp.stack([normal(0, n), jnp.full(n, constant)], axis=1)

    def loss(x):
        return jnp.sum(normalised(x) * normal(1, (n, 2)))

    np.testing.assert_array_equal(normalised(x)[:, 1], 0)
    gradient = jax.grad(loss)(x)
    np.testing.assert_array_equal(gradient[:, 1], 0)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("ulps", [20, 100, 1000])
def test_a_small_deviation_about_a_large_mean_is_not_dead(ulps):
    x = 1 + ulps * 1.2e-7 * normal(0, (64, 1))
    np.testing.assert_allclose(jnp.std(normalised(x)), 1, rtol=2e-2)


def test_half_precision_is_averaged_in_single():
    """A deviation of 5 % is no rounding noise, though it is 6 ulp of bfloat16."""
    x = jnp.array([[1.0], [1.1], [1.0], [1.1]], jnp.bfloat16)
    np.testing.assert_allclose(normalised(x).astype(jnp.float32)[:, 0], [-1, 1, -1, 1], atol=0.01)


def test_an_overflow_shows():
    x = jnp.array([[1e20], [3e20]])
    assert jnp.all(jnp.isnan(normalised(x)))


@pytest.mark.parametrize("size", [1e-15, 1e-12, 1e12, 1e15])
def test_the_gradient_stands_tiny_and_huge_deviations(size):
    x, weights = normal(0, (16, 2)), normal(1, (16, 2))
    at_one = jax.grad(lambda x: jnp.sum(normalised(x) * weights))(x)
    scaled = jax.grad(lambda x: jnp.sum(normalised(x) * weights))(size * x)
    np.testing.assert_allclose(size * scaled, at_one, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_finite_with_a_dead_channel():
    x = jnp.stack([normal(0, 8), jnp.full(8, 0.1)], axis=1)
    hessian = jax.hessian(lambda x: jnp.sum(normalised(x) ** 3))(x)
    assert jnp.all(jnp.isfinite(hessian))


def plain(x, mean, var, scale, bias):
    return (x - mean) / jnp.sqrt(var) * scale + bias


def of_the_batch(apply):
    """Moments from x itself: the derivatives pass through them."""
    return lambda x, scale, bias: apply(x, jnp.mean(x, 0), jnp.var(x, 0), scale, bias)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("given", ["of the batch", "moments"])
def test_derivatives_are_those_of_the_formula(order, given, float64):
    """Of any order, with respect to all arguments, those of the moments included."""
    x = 3 + normal(0, (4, 2), jnp.float64)
    scale, bias = normal(1, (2,), jnp.float64), normal(2, (2,), jnp.float64)
    with jax.numpy_rank_promotion("allow"):
        if given == "moments":
            arguments = (x, 0.5 + scale**2, 1 + bias**2, scale, bias)
            ours, theirs = lambda x, m, v, s, b: normalize.batch_norm(x, Moments(m, v), s, b), plain
        else:
            arguments = (x, scale, bias)
            theirs = of_the_batch(plain)
            ours = lambda x, s, b: normalize.over_batch(x, s, b)[0]  # noqa: E731

        def derivative(f):
            d = lambda *a: jnp.sum(jnp.sin(f(*a)))  # noqa: E731
            for _ in range(order):
                d = jax.jacobian(d, tuple(range(len(arguments))))
            return d(*arguments)

        chex.assert_trees_all_close(derivative(ours), derivative(theirs), rtol=1e-9, atol=1e-9)


def test_running_moments_average_and_serve_for_evaluation():
    batches = [normal(seed, (64, 3)) + 5 for seed in range(200)]
    average = Moments(jnp.zeros(3), jnp.ones(3))
    for x in batches:
        average = normalize.running(average, normalize.moments(x), decay=0.9)
    np.testing.assert_allclose(average.mean, 5 * np.ones(3), atol=0.2)
    y = normalize.batch_norm(batches[0], average)
    np.testing.assert_allclose(y, (batches[0] - average.mean[None]) / jnp.sqrt(average.var[None]),
                               rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_over_the_batch_is_with_the_moments_of_the_batch(dtype):
    x, scale, bias = 3 + normal(0, (16, 3), dtype), normal(1, (3,), dtype), normal(2, (3,), dtype)
    y, using = normalize.over_batch(x, scale, bias, eps=0.1)
    chex.assert_trees_all_equal(using, normalize.moments(x))
    chex.assert_trees_all_equal(y, normalize.batch_norm(x, using, scale, bias, eps=0.1))


def test_running_is_the_weighted_mean():
    new = normalize.running(Moments(jnp.array([1.0]), jnp.array([2.0])),
                            Moments(jnp.array([3.0]), jnp.array([6.0])), decay=0.75)  # fmt: skip
    np.testing.assert_allclose(new, [[1.5], [3.0]])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_kept(dtype):
    assert normalised(normal(0, (16, 3), dtype)).dtype == dtype


def test_negative_epsilon_is_refused():
    with pytest.raises(ValueError, match="eps must be >= 0, got -1"):
        normalised(normal(0, (4, 2)), eps=-1.0)
