"""Operations of the random programs with tiny numbers and guards against zero, true and false."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from programs.operations import need, operation, reduction, register_all
from programs.tiny import tiny

register_all(
    0.3,
    {
        "add_small": lambda x: x + tiny(),
        "maximum_small": lambda x: jnp.maximum(x, tiny()),
        "minimum_small": lambda x: jnp.minimum(x, tiny()),
        "clip_small": lambda x: jnp.clip(x, tiny()),
        "above_small": lambda x: jnp.where(jnp.abs(x) > tiny(), x, 0.0),
        "safe_log": lambda x: jnp.log(jax.nn.relu(x) + tiny()),
        "log_of_square": lambda x: jnp.log(x * x + tiny()),
        "log_where": lambda x: jnp.log(jnp.where(x > 0, x, tiny())),
        "safe_inverse": lambda x: 1 / (jax.nn.relu(x) + tiny()),
        "inverse_of_square": lambda x: 1 / (x * x + tiny()),
        "root_of_small": lambda x: jnp.sqrt(jax.nn.relu(x) + tiny()),
        "guarded_inverse": lambda x: 1 / jnp.where(jnp.abs(x) > tiny(), jnp.abs(x), 1.0),
        "zero_test": lambda x: (x == 0).astype(float),
        "rounded_test": lambda x: (0.4 * (jnp.abs(x) > 0)).astype(int).astype(float),
        "bytes_squared": lambda x: ((7 * jnp.sign(x)).astype(jnp.int8) ** 3 > 0).astype(float),
        "halves": lambda x: ((1e-9 * jnp.abs(x)).astype(jnp.float16) > 0).astype(float),
    },
)


@reduction(2.0)
def guarded_unit(step, x, axes, _):
    """Divided by a norm, guarded in some way; not always by the norm of what is divided."""
    y = step.choose([x, x, x, jax.nn.relu(x), step.other(x)])
    square = (y * y).sum(axes, keepdims=True)
    norm = jnp.sqrt(square)
    kinds = [
        lambda: x / (norm + tiny()),
        lambda: x / jnp.maximum(norm, tiny()),
        lambda: x / jnp.clip(norm, tiny()),
        lambda: x / jnp.clip(norm, tiny(), 1e-3),
        lambda: x * lax.rsqrt(square + tiny()),
        lambda: x * lax.rsqrt(jnp.maximum(square, tiny())),
        lambda: x / jnp.where(norm > 0, norm, 1.0),
        lambda: x / jnp.where(norm >= 0, norm, 1.0),
        lambda: x / jnp.where(norm > tiny(), norm, 1.0),
        lambda: jnp.where(norm == 0, x, x / norm),
        lambda: jnp.where(norm == 0, 1.0, x / norm),
        lambda: jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0),
        lambda: x / optax.safe_norm(y, tiny(), axis=axes, keepdims=True),
        lambda: x / jnp.where(step.other(x).max() > 0, norm, tiny()),
    ]
    return step.choose(kinds)()


@operation(0.7)
def trust(step, x):
    """A ratio of norms that is 1 where one of them is 0."""
    y = step.other(x)
    a, b = jnp.linalg.norm(x), jnp.linalg.norm(y)
    tests = [lambda: (a > 0) & (b > 0), lambda: ~((a == 0) | (b == 0)), lambda: (a > 0) | (b > 0)]
    return step.choose([x, y]) * jnp.where(step.choose(tests)(), a / b, 1.0)


@operation(0.7)
def branch_on_zero(step, x):
    n = jnp.linalg.norm(step.choose([x, jax.nn.relu(x)]))
    test = step.choose([n > 0, n != 0, n > tiny(), n >= 0])
    other = step.choose([lambda: x, lambda: 0.0 * x, lambda: jnp.ones_like(x)])
    return lax.cond(test, lambda: x / n, other)


@operation(1.0, rank=1)
def folded_norm(step, x):
    """Batch normalisation as a product and a sum."""
    axis = step.axis(x)
    need(x.shape[axis] > 1)
    mean, var = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
    scale = lax.rsqrt(var + step.choose([tiny(), 0.0]))
    return x * scale - step.choose([mean, mean, 0.5 * mean]) * scale
