"""What a traced program says of its rounding, and of leaves that are no matrices."""

import jax
import jax.numpy as jnp
import pytest

from bnrate import objective
from bnrate.invariance import _program

S, W, T = jnp.ones((3, 4)), jnp.ones((4, 4)), jnp.ones((3, 4, 4))
X = jnp.ones((5, 4))


def over_layers(body, p, x, **stacks):
    return jax.lax.scan(lambda h, one: (body(h, one), None), x, stacks)[0].sum()


def normed(h):
    return h / jnp.sqrt((h**2).mean(1, keepdims=True))


LAST = "multiplies"
STACK = "is used in slices"
USES = {  # loss of one leaf, the leaf, how the reason begins
    "a matrix": (lambda w, x: jnp.sum(x @ w), W, None),
    "a matrix behind a transposition": (lambda w, x: jnp.sum(x @ (2 * w).T), W, None),
    "a scanned scale": (
        lambda w, x: over_layers(lambda h, o: normed(h) * o["s"][None], w, x, s=w), S, STACK,
    ),
    "a scanned scale, one more": (
        lambda w, x: over_layers(lambda h, o: normed(h) * (1 + o["s"])[None], w, x, s=w), S, STACK,
    ),
    "a scanned bias": (
        lambda w, x: over_layers(lambda h, o: jnp.tanh(h + o["s"][None]), w, x, s=w), S, STACK,
    ),
    "scanned kernels": (
        lambda w, x: over_layers(lambda h, o: jnp.tanh(h @ o["w"]), w, x, w=w), T, None,
    ),
    "a loop in Python": (
        lambda w, x: sum(jnp.sum(jnp.tanh(x * w[i][None])) for i in range(3)), S, STACK,
    ),
    "a dynamic index": (
        lambda w, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h * w[i][None]), x).sum(),
        S, STACK,
    ),
    "checkpointed and compiled": (
        lambda w, x: jax.checkpoint(jax.jit(lambda w, x: jnp.sum(x[:3] * w)))(w, x), S, LAST,
    ),
    "a scale of two axes": (lambda w, x: jnp.sum(normed(x)[:3] * w), S, LAST),
    "a divisor": (lambda w, x: jnp.sum(normed(x)[:3] / w), S, LAST),
    "exp of a scale": (lambda w, x: jnp.sum(x[:3] * jnp.exp(-w)), S, LAST),
    "positions": (lambda w, x: jnp.sum(jnp.tanh(x[:3] + w)), S, None),
    "an embedding": (lambda w, x: jnp.sum(w[jnp.arange(5) % 3] * x), S, None),
    "a scale that is a matrix too": (lambda w, x: jnp.sum((x[:4] * w) @ w), W, None),
    "in new axes": (lambda w, x: jnp.sum((x[:4] * w).reshape(2, 2, 4) @ w), W, None),
    "a penalty only": (lambda w, x: jnp.sum(w * w), W, None),
    "a vector": (lambda w, x: jnp.sum(x * w[None]), jnp.ones(4), None),
    "a row": (lambda w, x: jnp.sum(x * w), jnp.ones((1, 4)), None),
    "unused": (lambda w, x: jnp.sum(x), W, None),
    "carried": (
        lambda w, x: jax.lax.fori_loop(0, 3, lambda i, w: w * 2, w).sum(), W, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "leaf", "reason"), USES.values(), ids=USES)
def test_uses(loss, leaf, reason):
    program = objective.trace(lambda p, x: loss(p["w"], x), {"w": leaf}, (X,))
    found = _program.scales(program, {"w": leaf.shape})
    assert set(found) == ({"w"} if reason else set())
    assert not reason or found["w"].startswith((reason, f"it {reason}"))


def cast(w, dtype):
    return jnp.sum(jnp.tanh(w.astype(dtype)).astype(jnp.float64))


ROUNDINGS = {
    "float64": (lambda p, x: jnp.sum(jnp.tanh(p)), "float64"),
    "float32": (lambda p, x: cast(p, "float32"), "float32"),
    "bfloat16": (lambda p, x: cast(p, "bfloat16"), "bfloat16"),
    "inside a loop": (
        lambda p, x: jax.lax.fori_loop(0, 2, lambda _, h: h + cast(h, "float16"), p).sum(),
        "float16",
    ),
    "float32 in what does not matter": (lambda p, x: (jnp.sum(p), cast(p, "float32")), "float64"),
    "float32 of data": (lambda p, x: jnp.sum(p) + cast(x, "float32"), "float64"),
    "a loss of float32": (lambda p, x: jnp.sum(p).astype("float32"), "float32"),
}


@pytest.mark.parametrize(("loss", "dtype"), ROUNDINGS.values(), ids=ROUNDINGS)
def test_the_coarsest_rounding(loss, dtype, float64):
    program = objective.trace(loss, {"w": jnp.ones(3)}["w"], (jnp.ones(3),))
    assert _program.rounding(program, 1) == float(jnp.finfo(dtype).eps)
