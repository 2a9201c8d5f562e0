"""Normalisations as they are written, with the guards against zero of libraries: all are proven.

That a guard excuses no more than it may is tested by `special_zeros`.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from special_zeros import V, norm

from bnrate import groups as gr
from bnrate.certify import certify

W, X = jnp.ones((5, 4)), jnp.ones((6, 5))


def along(z, axis=1):
    return jnp.linalg.norm(z, axis=axis, keepdims=True)


def batch_norm(h):
    return (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)


def fast_batch_norm(h):
    variance = jnp.maximum(0, (h * h).mean(0) - h.mean(0) ** 2)
    return (h - h.mean(0)) * lax.rsqrt(variance + 1e-5) * 3


def guarded_batch_norm(h):
    return (h - h.mean(0)) / jnp.sqrt(jnp.where(h.var(0) > 0, h.var(0), 1.0))


def weight_standardised(w):
    s = lax.rsqrt(w.var(0) + 1e-5)
    return w * s - w.mean(0) * s


def unless_zero(h):
    n = along(h)
    return jnp.where(n == 0, h, h / n)


def double_where(h):
    n = along(h)
    return jnp.where(n > 0, h / jnp.where(n > 0, n, 1.0), 0.0)


def trust_ratio(w, x):
    a, b = norm(x), norm(w)
    return jnp.where(jnp.logical_or(a == 0, b == 0), 1.0, a / b)


def rotated(h):
    """Halves of what a norm that was made as large as its operand has normalised."""
    scale = lax.rsqrt((h * h).mean(1, keepdims=True) + 1e-5)
    a, b = jnp.split(h * jnp.broadcast_to(scale, h.shape), 2, axis=1)
    return jnp.concatenate([a - 2 * b, b + 2 * a], axis=1)


def of_relu(net):
    """Of rows or columns that may be zero: all units may be off."""
    return lambda w, x: net(jax.nn.relu(x @ w))


def of_weights(net):
    return lambda w, x: x @ net(w)


GUARDED = {  # the net, and the unit axes of its weights
    "two batch norms": (lambda w, x: batch_norm(jax.nn.relu(batch_norm(x @ w))) @ V, (1,)),
    "batch norm of sums": (of_relu(lambda h: batch_norm(h @ jnp.ones((4, 3)))), ()),
    "batch norm of ReLU": (of_relu(batch_norm), (1,)),
    "fast variance": (of_relu(fast_batch_norm), (1,)),
    "RMS norm": (
        of_relu(lambda h: h * lax.rsqrt((h * h).mean(1, keepdims=True) + 1e-5)), (),
    ),
    "RMS norm made large and cut": (of_relu(rotated), ()),
    "maximum of a norm": (of_relu(lambda h: h / jnp.maximum(along(h), 1e-5)), ()),
    "norm plus epsilon": (of_relu(lambda h: h / (along(h) + 1e-5)), ()),
    "clipped norm": (of_weights(lambda w: w / jnp.clip(norm(w), 1e-6)), ()),
    "optax.safe_norm": (of_weights(lambda w: w / optax.safe_norm(w, 1e-6)), ()),
    "optax.safe_norm of rows": (
        of_relu(lambda h: h / optax.safe_norm(h, 1e-6, axis=1, keepdims=True)), (),
    ),
    "unless the norm is zero": (of_relu(unless_zero), ()),
    "trust ratio": (lambda w, x: x @ (w * trust_ratio(w, x)), ()),
    "standardised weights": (of_weights(weight_standardised), (1,)),
    "column norms": (of_weights(lambda w: w / jnp.maximum(along(w, 0), 1e-6)), (1,)),
    "normalised by a branch": (
        of_weights(lambda w: lax.cond(norm(w) > 0, lambda: w / norm(w), lambda: w)), (),
    ),
}  # fmt: skip
EXACT = {
    "where twice": (of_relu(double_where), ()),
    "guarded variance": (of_relu(guarded_batch_norm), (1,)),
}


def claimed(net, eps, params=W):
    def loss(w, x):
        return jnp.mean((jnp.tanh(net(w, x)) - 0.3) ** 3)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return certify(loss, params, X, eps=eps).groups


@pytest.mark.parametrize("name", GUARDED)
def test_guards_are_seen_through(name):
    net, axes = GUARDED[name]
    assert claimed(net, "ignore") == gr.Groups([gr.Group([gr.Member("", axes)])])


@pytest.mark.parametrize("name", EXACT)
def test_some_guards_cost_nothing(name):
    net, axes = EXACT[name]
    assert claimed(net, "strict") == gr.Groups([gr.Group([gr.Member("", axes)])])


def parts_of(net):
    """Of what leaves of several widths make, joined along the features, and a bias."""
    return lambda p, x: net(jnp.concatenate([x @ p["w"], x @ p["u"], x @ p["v"]], 1) + p["b"])


def fast_layer_norm(h):
    mean = h.mean(1, keepdims=True)
    variance = jnp.maximum(0, (h * h).mean(1, keepdims=True) - mean**2)
    return (h - mean) * lax.rsqrt(variance + 1e-5)


@pytest.mark.parametrize("activation", [jax.nn.relu, lambda h: h])
def test_a_fast_variance_of_parts_is_a_variance(activation):
    params = {"w": W, "u": W[:, :2], "v": W[:, :3], "b": jnp.ones(9)}
    groups = claimed(parts_of(lambda h: fast_layer_norm(activation(h))), "ignore", params)
    assert [sorted(g.name.split("+")) for g in groups] == [["b", "u", "v", "w"]]
