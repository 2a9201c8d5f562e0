"""More losses for `special`: of zeros, of what is nearly zero, and of numbers that wrap around.

`ZEROS` is exact like `SPECIAL`, and `ZERO_EXCUSES` is like `EXCUSES`: in these an epsilon is felt
on more than a null set, or is no epsilon, or a guard's condition is not what it seems.  Of what is
not invariant by value the tests make sure by numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from special import centred, entry, rms, whole
from special_found import BY_VALUE
from zoo import Entry

V = np.array([-1.3, -0.3, 0.7, 1.7])
MASK = np.array([[1.0], [0.0], [1.0], [0.0], [0.0]])  # of rows of w
SIGNS = np.array([1.0, -1.0])
SIXTEEN_BITS = jnp.full(4, 65536, jnp.int32)


def norm(w):
    return jnp.sqrt(jnp.sum(w**2))


def logged(bound):
    """The logarithms of bounded values, less their means: where the bound holds, they shift."""
    return entry(lambda x, w: (h := jnp.log(bound(x @ w))) @ V - (h @ V).mean())


def divided(divisor, net=lambda x, w: x @ w):
    return entry(lambda x, w: net(x, w) / divisor(x, w))


def guarded(test):
    """Divided by the norm where a test does not fail, though it does."""
    return divided(lambda x, w: jnp.where(test(x, w), norm(w), 1.0))


def unless(test, turn=jnp.positive):
    """Ones, but the numbers themselves where a test fails that they pass if they are real."""
    return entry(lambda x, w: jnp.where(test(h := turn(w)), 1.0, h))


def sum_of_products(x, s):
    """Of two epsilons in one line only one is of a value that is hardly ever zero."""
    return jnp.sum((jnp.abs(s) + 1e-6) * (jax.nn.relu(x[:, :2] * s) + 1e-6), 1)


def halvings(x, w):
    """How often the norm must be halved."""
    start = w, 0.0
    return x * lax.while_loop(lambda c: norm(c[0]) > 1e-3, lambda c: (c[0] / 2, c[1] + 1), start)[1]


def small_share(x, w):
    return 0.4 * (norm(w) > 0).astype(float)


def eight_bits(n):
    return jnp.full(5, n, jnp.int8)


own = jax.custom_vjp(jnp.positive)
own.defvjp(jnp.broadcast_arrays, jnp.broadcast_arrays)  # both are JAX's; no rule of anything

ZEROS: dict[str, Entry] = {
    "guard by a sum in eight bits": guarded(
        lambda x, w: jnp.sum(eight_bits(100), dtype=jnp.int8) > 0
    ),
    "guard by a square in eight bits": guarded(lambda x, w: eight_bits(16)[0] ** 2 > 0),
    "guard by a square in sixteen bits": unless(
        lambda h: (h**2).astype(float) != 0, lambda w: w.astype(jnp.float16)
    ),
    "guard by the roots of negative numbers": unless(lambda w: jnp.sqrt(w) > 0),
    "guard by zero times infinity": unless(lambda w: 0 * (1 / jax.nn.relu(w)) == 0),
    "rule made of JAX's functions": entry(lambda x, w: x @ own(w) / norm(w), note=BY_VALUE),
}

ZERO_EXCUSES: dict[str, Entry] = {
    # what is bounded may lie under the bound
    "log of ReLU and an epsilon": logged(lambda h: jax.nn.relu(h) + 1e-6),
    "log of a maximum": logged(lambda h: jnp.maximum(h, 1e-6)),
    "log of a clip": logged(lambda h: jnp.clip(h, 1e-6)),
    "log of a choice": logged(lambda h: jnp.where(h > 0, h, 1e-6)),
    "inverse of ReLU and an epsilon": entry(
        lambda x, w: rms(1 / (jax.nn.relu(x @ w) + 1e-3), axis=0)
    ),
    "divided by a minimum": divided(lambda x, w: jnp.minimum(norm(w), 1e-3)),
    "divided by a clip": divided(lambda x, w: jnp.clip(norm(w), 1e-6, 1e-3)),
    "log of a sum of products": entry(lambda x, s: centred(jnp.log(sum_of_products(x, s))), "s"),
    # once an epsilon is zero, nothing is left
    "divided by a difference": entry(
        lambda x, w: jnp.abs(w) / (jnp.sqrt(w**2 + 1e-4) - jnp.abs(w))
    ),
    "divided by a sum of both signs": entry(lambda x, s: s / jnp.sum(s * SIGNS + 1e-4), "s"),
    "divided by what is left of an epsilon": entry(
        lambda x, w: jnp.exp(-(w**2) / jax.nn.relu(1e-4 - w**2))
    ),
    # a small number that is chosen, whatever the parameters
    "divided by a choice of data": divided(lambda x, w: jnp.where(x[:, :1] > 0, norm(w), 1e-3)),
    "divided by a branch never taken": divided(
        lambda x, w: lax.cond(False, lambda: norm(w), lambda: 1e-4)
    ),
    "divided by a branch of data": divided(
        lambda x, w: lax.cond(x[0, 0] > 9, lambda: norm(w), lambda: 1e-4)
    ),
    "divided by a write": divided(
        lambda x, w: jnp.full(4, 1e-3).at[jnp.argmax(x[0, :4])].set(norm(w))
    ),
    "halvings": entry(halvings),
    "pruning": entry(lambda x, w: x @ rms(jnp.where(jnp.abs(w) > 1e-3, w, 0.0), axis=None)),
    # conditions that are what they seem of a value that is rounded, or not what they seem
    "guard by a rounded condition": guarded(
        lambda x, w: small_share(x, w).astype(int).astype(bool)
    ),
    "guard by the log of a condition": guarded(
        lambda x, w: jnp.log((norm(w) > 0) * 1.0).astype(bool)
    ),
    "guard by a difference": guarded(lambda x, w: jnp.sum((w - w.T.T) ** 2) > 0),
    "guard by a mask and its complement": guarded(
        lambda x, w: jnp.sum((MASK * (1 - MASK)) ** 2) > 0
    ),
    "guard by masked entries": guarded(
        lambda x, w: jnp.sum((MASK * w * ((1 - MASK) * w)) ** 2) > 0
    ),
    "guard by a variance of one": guarded(lambda x, w: jnp.var(w[None], axis=0).sum() > 0),
    "guard by a product that wraps around": guarded(
        lambda x, w: jnp.dot(SIXTEEN_BITS + 0 * whole(x[0, 0]), SIXTEEN_BITS) > 0
    ),
}
