"""Larger operations of the random programs: layers, control flow, differentiation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.operations import need, operation


def unit(x, axis=None):
    return x / jnp.sqrt((x * x).sum(axis, keepdims=True))


def centred(x, axis=0):
    return x - x.mean(axis, keepdims=True)


# Linear.


@operation(5.0, rank=1)
def dense(step, x):
    return x @ step.leaf(x.shape[-1], step.size())


@operation(2.0, rank=2)
def dense_bias_norm(step, x):
    n = step.size()
    y = x @ step.leaf(x.shape[-1], n) + step.leaf(n)
    axes = step.choose([(0,), tuple(range(y.ndim - 1)), (-1,)])
    norm = step.choose([jnp.var, lambda z, a, keepdims: (z * z).mean(a, keepdims=keepdims)])
    y = y - y.mean(axes, keepdims=True) if step.flag(0.8) else y
    return step.choose([jax.nn.relu, jnp.tanh, lambda z: z])(
        y / jnp.sqrt(norm(y, axes, keepdims=True))
    )


@operation(1.5, rank=2)
def multiply_left(step, x):
    return jnp.tensordot(step.leaf(step.size(), x.shape[0]), x, 1)


@operation(2.0, rank=2)
def contraction(step, x):
    """An einsum, also of a value with itself and with batch dimensions."""
    n, m = x.shape[-2:]
    leaf, other, size = step.leaf, step.other, step.size
    specs = [
        lambda: jnp.einsum("...ij,...kj->...ik", x, x),
        lambda: jnp.einsum("...ij,...ij->...j", x, other(x)),
        lambda: jnp.einsum("...ij,...ij->...", x, x),
        lambda: jnp.einsum("...ij,j->...i", x, leaf(m)),
        lambda: jnp.einsum("...ij,i->...ij", x, leaf(n)),
        lambda: jnp.einsum("...ij,ijk->...ik", x, leaf(n, m, size())),
        lambda: jnp.einsum("...ij,jk,lk->...il", x, leaf(m, n), leaf(m, n)),
        lambda: jnp.einsum("...ij,...ik->...jk", x, other(x)),
        lambda: jnp.einsum("...ij->...ji", x) @ other(x),
        lambda: jnp.einsum("...ii->...i", x @ jnp.swapaxes(x, -1, -2)),
    ]
    return step.choose(specs)()


@operation(0.7, rank=1)
def outer(step, x):
    need(x.ndim == 1)
    return jnp.outer(x, step.choose([lambda: x, lambda: step.leaf(step.size())])())


@operation(1.0, rank=2)
def tied(step, x):
    """There and back through one leaf."""
    w = step.leaf(x.shape[-1], step.size())
    middle = step.choose([lambda y: y, jax.nn.relu, jnp.tanh, unit, partial(centred, axis=-1)])
    return middle(x @ w) @ w.T


@operation(6.0, rank=3)
def convolution(step, x):
    """In one or two dimensions: grouped, depthwise, strided, dilated, with borders or without."""
    n = x.ndim - 2
    need(n <= 2 and min(x.shape[1:-1]) >= 2)
    features = x.shape[-1]
    groups = step.choose([1, 1, 1, features, 2 if features % 2 == 0 else 1])
    out = groups * int(step.rng.integers(1, 3))
    window = [int(step.choose([1, 2, 3]))] * n
    dilation = step.choose([[1] * n, [1] * n, [1] * n, [2] * n])
    padding = step.choose(["SAME", "VALID", [(1, 0)] * n]) if dilation[0] == 1 else [(1, 0)] * n
    strides = step.choose([[1] * n, [1] * n, [2] * n])
    need(padding != "VALID" or min(x.shape[1:-1]) >= window[0])
    letters = "HW"[:n]
    return lax.conv_general_dilated(
        x,
        step.leaf(*window, features // groups, out),
        strides,
        padding,
        lhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )


@operation(1.5, rank=3)
def batch_grouped_convolution(step, x):
    need(x.ndim == 3 and x.shape[0] % 2 == 0)
    kernel = step.leaf(2, x.shape[-1], 4)
    return lax.conv_general_dilated(
        x, kernel, [1], "SAME", batch_group_count=2, dimension_numbers=("NHC", "HIO", "NHC")
    )


@operation(3.0, rank=3)
def pool(step, x):
    need(x.ndim <= 4 and min(x.shape[1:-1]) >= 2)
    n = x.ndim - 2
    window, strides = (1, *[2] * n, 1), (1, *[int(step.choose([1, 2]))] * n, 1)
    start, body = step.choose([(-np.inf, lax.max), (0.0, lax.add), (np.inf, lax.min)])
    y = lax.reduce_window(x, start, body, window, strides, step.choose(["SAME", "VALID"]))
    return y / 2**n if body is lax.add else y


@operation(2.0, rank=2)
def attention(step, x):
    """With or without biases, masks, normalised queries and keys."""
    need(x.ndim <= 3)
    n, d, h = *x.shape[-2:], step.size()
    projected = [x @ step.leaf(d, h) for _ in range(3)]
    query, key, value = [y + step.leaf(h) if step.flag(0.4) else y for y in projected]
    if step.flag(0.4):
        query, key = unit(query, -1), unit(key, -1)
    scores = jnp.einsum("...qh,...kh->...qk", query, key) * step.choose([1.0, h**-0.5])
    low = step.choose([None, -jnp.inf, float(jnp.finfo(x.dtype).min), 0.0])
    scores = scores if low is None else jnp.where(jnp.tri(n, dtype=bool), scores, low)
    shift = step.choose([lax.stop_gradient, lambda y: y, lambda y: 0 * y])
    weights = jnp.exp(scores - shift(scores.max(-1, keepdims=True)))
    return weights / weights.sum(-1, keepdims=True) @ value


@operation(1.0, rank=2)
def normalised_leaf(step, x):
    """Weight normalisation, weight standardisation, cosine similarity."""
    w = step.leaf(x.shape[-1], step.size())
    forms = [lambda: unit(w, 0), lambda: unit(w), lambda: unit(centred(w), 0)]
    return step.choose([x, unit(x, -1)]) @ step.choose(forms)()


@operation(0.7)
def leaf_product(step, x):
    """Times a product, a quotient or a power of leaves."""
    a, b = step.leaf(), step.leaf()
    kinds = [lambda: a * b, lambda: a / b, lambda: a / jnp.abs(b), lambda: a + b, lambda: a * a * b]
    return x * step.choose([*kinds, lambda: jnp.abs(a) ** 0.5 - b, lambda: a - a + b])()


# Control flow.


@operation(2.0, rank=2)
def recurrence(step, x):
    """A scan along the first axis."""
    d = x.shape[-1]
    w = step.leaf(d, d) if step.flag() else jnp.eye(d, dtype=x.dtype)
    bodies = [
        lambda h, t: (jax.nn.relu(h @ w + t),) * 2,
        lambda h, t: (jnp.tanh(h @ w + t), h),
        lambda h, t: (h + t, h * (t @ w)),
        lambda h, t: (unit(h + t @ w), t),
        lambda h, t: (jnp.maximum(h, t @ w), h),
        lambda h, t: (t, h @ w),
        lambda h, t: (h * t, h @ w),
        lambda h, t: (0.5 * h, h + t @ w),
    ]
    zeros = jnp.zeros_like
    start = step.choose([zeros, zeros, lambda y: y, jnp.ones_like, lambda y: step.other(x)[0]])
    last, trace = lax.scan(step.choose(bodies), start(x[0]), x, reverse=step.flag())
    return step.choose([last, trace])


@operation(1.0, rank=1)
def swapping_scan(step, x):
    """Two carries change places: their degrees must agree after all."""
    y, times = step.other(x), int(step.choose([1, 2, 3]))
    bodies = [
        lambda s, _: ((s[1], s[0]), s[0]),
        lambda s, _: ((s[1], s[0] + s[1]), s[1]),
        lambda s, _: ((s[1], s[0] / 2), ()),
        lambda s, _: ((s[0], s[0] * s[1]), ()),
    ]
    return lax.scan(step.choose(bodies), (x, y), None, length=times)[0][int(step.flag())]


@operation(2.0, rank=1)
def scanned_layers(step, x):
    """One stacked leaf, a layer at a time."""
    d = x.shape[-1]
    need(x.ndim <= 3)
    stack = (step.leaf(2, d, d), step.leaf(2, d))
    bodies = [
        lambda h, p: (unit(h @ p[0], -1) * p[1], None),
        lambda h, p: (jax.nn.relu(h @ p[0]), None),
        lambda h, p: (h + unit(h @ p[0]) * p[1].sum(), None),
        lambda h, p: (unit(centred(h @ p[0] + p[1])), None),
        lambda h, p: (h * p[1], p[1]),
    ]
    return lax.scan(step.choose(bodies), x, stack)[0]


@operation(1.0)
def loop(step, x):
    """Loops with a fixed or a traced number of rounds."""
    y = step.other(x)
    kinds = [
        lambda: lax.fori_loop(0, 3, lambda i, h: h + y, x),
        lambda: lax.fori_loop(0, 3, lambda i, h: h * y, x),
        lambda: lax.fori_loop(0, 2, lambda i, h: unit(h) + i, x),
        lambda: lax.fori_loop(0, jnp.int64(3), lambda i, h: 2 * h, x),
        lambda: lax.while_loop(lambda h: jnp.abs(h).sum() > 1.0, lambda h: h / 2, x),
        lambda: lax.while_loop(lambda h: h[0] < 2, lambda h: (h[0] + 1, h[1] * 0.5), (0, x))[1],
        lambda: lax.while_loop(
            lambda h: h[0] < jnp.argmax(y) % 3, lambda h: (h[0] + 1, jax.nn.relu(h[1])), (0, x)
        )[1],
        lambda: lax.while_loop(
            lambda h: jnp.abs(h[0]).sum() > jnp.abs(h[1]).sum(),
            lambda h: (0.5 * h[0], h[1]),
            (x, y),
        )[0],
        lambda: lax.fori_loop(0, 2, lambda i, h: (h[1], h[0]), (x, y))[0],
    ]
    return step.choose(kinds)()


@operation(1.5)
def branch(step, x):
    y = step.other(x)
    tests = [y.sum() > 0, y.sum() > x.sum(), jnp.abs(y).sum() > 1.0, jnp.argmax(y) > 1, y.sum() > 9]
    left = step.choose([jax.nn.relu, lambda z: 2 * z, unit, jnp.tanh, jnp.zeros_like])
    right = step.choose([jnp.abs, lambda z: z, jnp.square, jnp.ones_like, lambda z: z + y])
    if step.flag():
        return lax.cond(step.choose(tests), left, right, x)
    at = step.choose([jnp.argmax(y), step.labels(1, 3)[0], jnp.int64(y.sum()), jnp.int64(1)])
    return lax.switch(at, [left, right, lambda z: z], x)


@operation(2.0, rank=2)
def mapped(step, x):
    """`vmap` and `lax.map` of a function of rows, also with names for the axis."""
    x = x * step.leaf(x.shape[-1]) if step.flag() else x
    w = step.constant(x.shape[-1])
    need(x.ndim <= 3)
    named = partial(jax.vmap, axis_name="i")
    kinds = [
        lambda: jax.vmap(lambda r: unit(r) * w)(x),
        lambda: jax.vmap(lambda r: jax.nn.softmax(r * w), in_axes=1, out_axes=1)(x[..., None] * w),
        lambda: lax.map(lambda r: jax.nn.relu(r) @ w, x),
        lambda: lax.map(lambda r: centred(r * w, -1), x),
        lambda: named(lambda r: r - lax.pmean(r, "i"))(x * w),
        lambda: named(lambda r: r / lax.psum(jnp.abs(r), "i"))(x * w),
        lambda: named(lambda r: r / lax.pmax(jnp.abs(r), "i"))(x),
        lambda: jax.vmap(lambda r, v: lax.cond(v > 0, jnp.tanh, jnp.abs, r))(x, step.leaf(len(x))),
        lambda: jax.vmap(lambda r: lax.dynamic_slice_in_dim(r, jnp.argmax(r) % 2, 2))(x),
        lambda: jax.vmap(lambda r: r.at[0].set(r[-1]))(x),
    ]
    return step.choose(kinds)()


@operation(1.5)
def wrapped(step, x):
    """In a jit, a checkpoint or both."""
    y = step.other(x)
    inner = step.choose([unit, jax.nn.relu, lambda z: z * y, lambda z: z + y, lambda z: z / y])
    wrappers = [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f)), jax.named_call]
    return step.choose(wrappers)(inner)(x)


# Differentiation.


@operation(1.0)
def inner_gradient(step, x):
    """A gradient within the loss, or a gradient step."""
    y = step.other(x)
    functions = [
        lambda z: jnp.tanh(unit(z) * y).sum(),
        lambda z: (z * y).sum() ** 2,
        lambda z: (jax.nn.relu(z) * y).sum(),
        lambda z: jax.nn.logsumexp(z),
        lambda z: unit(z).max() * y.sum(),
        lambda z: jnp.log((z * z).sum()),
    ]
    gradient = jax.grad(step.choose(functions))(x)
    return step.choose([gradient, x - 0.1 * gradient, unit(gradient), x * gradient])


@operation(0.7)
def tangent(step, x):
    function = step.choose([unit, jax.nn.relu, jnp.square, jnp.tanh])
    return jax.jvp(function, (x,), (step.other(x),))[int(step.flag(0.8))]


@jax.custom_jvp
def honest(x):
    return x * jnp.abs(x)


honest.defjvps(lambda t, out, x: 2 * jnp.abs(x) * t)


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvps(lambda t, out, x: t)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_vjp
def clipped_gradient(x):
    return x / jnp.sqrt((x * x).sum())


clipped_gradient.defvjp(lambda x: (clipped_gradient(x), x), lambda x, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def honest_backward(x):
    return 3 * x


honest_backward.defvjp(lambda x: (3 * x, None), lambda _, g: (3 * g,))


@operation(0.7)
def custom_derivative(step, x):
    rules = [honest, straight_through, reversed_gradient, clipped_gradient, honest_backward]
    return step.choose(rules)(x)


@operation(0.7)
def stopped(step, x):
    """A stopped norm, a stopped part, a straight-through estimator."""
    stop = lax.stop_gradient
    norm = jnp.sqrt((x * x).sum())
    kinds = [lambda: x / stop(norm), lambda: stop(x), lambda: x + stop(step.other(x) - x)]
    kinds += [lambda: x * stop(step.other(x)), lambda: x - stop(x.max()), lambda: x - stop(x)]
    return step.choose(kinds)()


@operation(0.7, rank=1)
def random_numbers(step, x):
    """Dropout, or noise, from a fixed key."""
    key = jax.random.key(3)
    keep = jax.random.bernoulli(key, 0.7, x.shape[-1:])
    noise = jax.random.normal(key, x.shape[-1:], x.dtype)
    return step.choose(
        [lambda: jnp.where(keep, x / 0.7, 0.0), lambda: x * noise, lambda: x + noise]
    )()


@operation(0.3, rank=2)
def factorisation(step, x):
    """Primitives of linear algebra: nothing is known of them."""
    gram = jnp.einsum("...ij,...kj->...ik", x, x)
    return jnp.linalg.cholesky(gram + step.choose([0.0, 1.0]) * jnp.eye(x.shape[-2], dtype=x.dtype))
