"""The ends of the random programs: scalars of a value, and their sum."""

import jax
import jax.numpy as jnp

from programs.operations import operation


@operation(0.0)
def terminal(step, x):
    """A scalar that depends on every entry in its own way."""
    weights = step.constant(*x.shape)
    if x.size == 1:
        return step.choose([jnp.tanh, jnp.square, jnp.log1p, lambda y: jnp.tanh(y + 0.5)])(
            jnp.abs(x).sum()
        )
    norm = jnp.sqrt((x * x).sum())
    kinds = [
        lambda: jnp.tanh(x * weights).sum(),
        lambda: jnp.mean((x - weights) ** 2),
        lambda: (x / norm * weights).sum(),
        lambda: (x / norm * weights).sum(),
        lambda: jnp.tanh(x / norm * weights).sum(),
        lambda: jnp.mean((x * weights) ** 2) / (x * x).mean(),
        lambda: jnp.log((x**2 * jnp.abs(weights)).sum()) - jnp.log((x**2).sum()),
        lambda: jax.nn.logsumexp(x * weights),
        lambda: (weights * jax.nn.softmax(x.ravel()).reshape(x.shape)).sum(),
        lambda: (x * weights).max() / jnp.abs(x).sum(),
        lambda: jnp.sign((x * weights).sum()) + (x * weights).sum() / norm,
        lambda: jnp.where((x > 0.2 * norm), weights, 0.0).sum(),
    ]
    return step.choose(kinds)()


@operation(0.0, rank=2)
def cross_entropy(step, x):
    rows = x.reshape(-1, x.shape[-1])
    labels = step.labels(rows.shape[0], rows.shape[1])
    return -jnp.take_along_axis(jax.nn.log_softmax(rows), labels[:, None], 1).mean()


@operation(0.0)
def total(step, x):
    out = x
    for y in step.rest():
        out = out + y
    return out
