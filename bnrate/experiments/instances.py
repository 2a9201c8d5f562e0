"""Losses of known constants, each seed another instance: what the bounds are held against.

A spectrum is uniform, or geometric over three decades; a start is random, or near the largest
eigenvalue, where gradients are small and curvature is negative; a covariance has the condition
number 1, 10 or 100.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnrate import losses

_CONDITIONS = 1.0, 10.0, 100.0
_EXAMPLES = 16  # of a minibatch
_BATCHES = 6


class Family(NamedTuple):
    """A title, and how to build the problem that draws its instance from a key."""

    title: str
    build: Callable[[], losses.Problem]


def _rayleigh(dims: int) -> Family:
    def start(key: Array) -> Float[Array, " d"]:
        near, noise = jax.random.bernoulli(key), jax.random.normal(key, (dims,))
        return jnp.where(near, 0.01 * noise + jax.nn.one_hot(dims - 1, dims), noise)

    return Family(
        f"Rayleigh, d = {dims}",
        lambda: losses.rayleigh(functools.partial(_spectrum, dims), start),
    )


def _least_squares(dims: int) -> Family:
    def drawn(key: Array) -> losses.Moments:
        keys = jax.random.split(key, 4)
        kappa = jax.random.choice(keys[0], jnp.array(_CONDITIONS))
        S = kappa ** -jax.random.permutation(keys[1], jnp.linspace(0, 1, dims))
        beta = jax.random.normal(keys[2], (dims,)) / jnp.sqrt(dims)
        mean = jax.random.normal(keys[3])
        return losses.Moments(S, jnp.sqrt(S) * beta, beta @ beta + 0.5, mean)

    def start(key: Array) -> dict[str, Array]:
        return {"gamma": jax.random.normal(key)}

    return Family(f"BN least squares, d = {dims}", lambda: losses.bn_least_squares(drawn, start))


def _coupled(first: int, second: int) -> Family:
    def coupling(key: Array) -> Float[Array, "d1 d2"]:
        return jax.random.normal(key, (first, second)) / jnp.sqrt(first * second)

    spectra = functools.partial(_spectrum, first), functools.partial(_spectrum, second)
    return Family(
        f"two blocks, d = {first}, {second}",
        lambda: losses.coupled_blocks(*spectra, coupling),
    )


def _noisy_rayleigh(dims: int) -> Family:
    def drawn(key: Array) -> Float[Array, "batches d d"]:
        of_mean, of_noise = jax.random.split(key)
        noise = jax.random.normal(of_noise, (_BATCHES, dims, dims)) / jnp.sqrt(dims)
        noise = (noise + jnp.swapaxes(noise, 1, 2)) / 4
        return jnp.diag(_spectrum(dims, of_mean))[None] + noise - noise.mean(0, keepdims=True)

    return Family(f"noisy Rayleigh, d = {dims}", lambda: losses.noisy_rayleigh(drawn))


def _noisy_least_squares(dims: int) -> Family:
    def drawn(key: Array) -> losses.Moments:
        of_x, of_y, of_target = jax.random.split(key, 3)
        x = jax.random.normal(of_x, (_BATCHES, _EXAMPLES, dims))
        noise = jax.random.normal(of_y, (_BATCHES, _EXAMPLES))
        target = jax.random.normal(of_target, (dims,)) / jnp.sqrt(dims)
        return losses.moments(x, x @ target + 0.3 * noise)

    return Family(
        f"BN minibatches, d = {dims}",
        lambda: losses.noisy_bn_least_squares(drawn),
    )


def _spectrum(dims: int, key: Array) -> Float[Array, " d"]:
    """From 0 or 0.001 to 1, ascending."""
    kind, values = jax.random.split(key)
    uniform = jnp.sort(jax.random.uniform(values, (dims,)).at[:2].set(jnp.array([0.0, 1.0])))
    return jnp.where(jax.random.bernoulli(kind), uniform, jnp.geomspace(1e-3, 1, dims))


GD = {
    **{f"rayleigh-{dims}": _rayleigh(dims) for dims in (2, 5, 20, 100)},
    **{f"bn-least-squares-{dims}": _least_squares(dims) for dims in (2, 5, 20, 100)},
    **{f"coupled-{d1}-{d2}": _coupled(d1, d2) for d1, d2 in ((3, 5), (10, 20))},
}

SGD = {
    **{f"noisy-rayleigh-{dims}": _noisy_rayleigh(dims) for dims in (3, 10)},
    **{f"noisy-bn-least-squares-{dims}": _noisy_least_squares(dims) for dims in (2, 6)},
}
