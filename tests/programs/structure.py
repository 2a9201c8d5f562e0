"""Structural operations of the random programs: reshapes, parts, joins, indexing, masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.operations import need, operation


@operation(1.5)
def reshape(step, x):
    return x.reshape(step.factorised(x.size))


@operation(1.5, rank=2)
def merge(step, x):
    k = int(step.rng.integers(x.ndim - 1))
    return x.reshape(*x.shape[:k], x.shape[k] * x.shape[k + 1], *x.shape[k + 2 :])


@operation(1.5, rank=2)
def transpose(step, x):
    return jnp.transpose(x, tuple(int(k) for k in step.rng.permutation(x.ndim)))


@operation(1.0, rank=1)
def reverse(step, x):
    return step.choose([jnp.flip, lambda y, axis: jnp.roll(y, 1, axis)])(x, axis=step.axis(x))


@operation(1.0)
def expand(step, x):
    y = jnp.expand_dims(x, int(step.rng.integers(x.ndim + 1)))
    return step.choose([y, jnp.broadcast_to(y, tuple(max(n, 2) for n in y.shape))])


@operation(0.7, rank=1)
def repeat(step, x):
    kind = step.choose([partial(jnp.repeat, repeats=2), partial(jnp.tile, reps=2)])
    return kind(x, axis=step.axis(x)) if kind.func is jnp.repeat else kind(x)


@operation(2.0, rank=1)
def part(step, x):
    """A slice, strided or not, or one entry."""
    axis = step.axis(x)
    need(x.shape[axis] > 1)
    kinds = [slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1), -1]
    return x[(slice(None),) * axis + (step.choose(kinds),)]


@operation(2.0, rank=1)
def join(step, x):
    """Concatenated or stacked with another value; sometimes taken apart again at other places."""
    axis, y = step.axis(x), step.choose([step.other, step.other, lambda x: 2 * x, lambda x: x])(x)
    whole = step.choose([jnp.concatenate, jnp.concatenate, jnp.stack])([x, y], axis)
    at = step.choose([x.shape[axis], 1, whole.shape[axis] - 1])
    need(at <= whole.shape[axis])
    pieces = [lambda: whole, lambda: whole, lambda: jnp.split(whole, [at], axis)[0]]
    pieces += [lambda: jnp.split(whole, [at], axis)[1], lambda: jnp.split(whole, [at], axis)]
    out = step.choose(pieces)()
    if isinstance(out, list):
        return out[1] if out[1].size > out[0].size else out[0] + 0 * out[1].sum()
    return out


@operation(1.0, rank=1)
def split_parts(step, x):
    """Halves of one value treated each in its own way, as in a fused qkv."""
    axis = step.axis(x)
    need(x.shape[axis] % 2 == 0)
    a, b = jnp.split(x, 2, axis)
    unit_a = a / jnp.sqrt((a * a).sum())
    kinds = [lambda: a * b, lambda: a / (1 + b * b), lambda: unit_a, lambda: unit_a * b]
    return step.choose([*kinds, lambda: jnp.concatenate([b, a], axis), lambda: a - b])()


@operation(1.5, rank=1)
def pad(step, x):
    """With borders that may be negative, holes, and a fill that may be another value."""
    widths = [(0, 0, 0)] * x.ndim
    choices = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 1), (-1, 2, 0)]
    axis = step.axis(x)
    need(x.shape[axis] > 2)
    widths[axis] = step.choose(choices)
    fills = [lambda: 0.0, lambda: 0.0, lambda: 1.0, lambda: -jnp.inf, lambda: x.ravel()[0]]
    fill = step.choose([*fills, lambda: jnp.abs(step.leaf()), lambda: x.sum()])()
    y = lax.pad(x, jnp.asarray(fill, x.dtype), widths)
    return jnp.where(jnp.isfinite(y), y, jnp.zeros_like(y)) if np.ndim(fill) == 0 else y


@operation(1.5, rank=1)
def take(step, x):
    axis = step.axis(x)
    n = x.shape[axis]

    def largest():
        return jnp.argmax(jnp.moveaxis(step.other(x), axis, 0).reshape(n, -1).sum(1))[None]

    def rounded():
        return jnp.floor(jnp.abs(step.other(x)).ravel()[:2]).astype(int) % n

    indices = [lambda: jnp.array([0, n - 1]), lambda: step.labels(3, n), largest, rounded]
    mode = step.choose(["clip", "fill", None])
    return jnp.take(x, step.choose(indices)(), axis=axis, mode=mode)


@operation(0.7, rank=2)
def take_each(step, x):
    """One entry of each row: a label's."""
    labels = step.labels(x.shape[0], x.shape[-1]).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, labels, -1)


@operation(1.5, rank=1)
def dynamic_slice(step, x):
    axis = step.axis(x)
    n = x.shape[axis]
    need(n > 2)
    starts = [lambda: 1, lambda: step.labels(1, n)[0], lambda: jnp.argmax(step.other(x))]
    starts.append(lambda: jnp.int64(x.ravel()[0]))
    return lax.dynamic_slice_in_dim(x, step.choose(starts)(), n - 1, axis)


@operation(1.5, rank=1)
def update(step, x):
    """Part of a value replaced by another's, at a fixed or a traced place."""
    y = step.choose([step.other, step.other, jnp.zeros_like, lambda x: 0.5 * x, jnp.ones_like])(x)
    n = x.shape[0]
    need(n > 1)
    places = [lambda: 0, lambda: n - 1, lambda: jnp.array([0, n - 1]), lambda: step.labels(2, n)]
    at = step.choose([*places, lambda: jnp.argmax(x) % n])()
    kinds = [
        lambda: x.at[at].set(y[at]),
        lambda: x.at[at].add(y[at]),
        lambda: x.at[at].multiply(y[at]),
        lambda: x.at[at].max(y[at]),
        lambda: x.at[at].min(y[at]),
        lambda: x.at[:1].set(y[:1]),
        lambda: lax.dynamic_update_slice_in_dim(x, y[1:], 0, 0),
        lambda: lax.dynamic_update_slice_in_dim(x, y[:1], jnp.argmax(y) % n, 0),
    ]
    return step.choose(kinds)()


@operation(0.7, rank=1)
def segment_sum(step, x):
    return jax.ops.segment_sum(x, step.labels(x.shape[0], 3), 3)


@operation(1.0, rank=2)
def masked(step, x):
    """Triangles and diagonals; with -inf the result goes through a softmax."""
    mask = jnp.tri(*x.shape[-2:], dtype=bool)
    low = step.choose([-jnp.inf, jnp.finfo(x.dtype).min])
    kinds = [jnp.tril, jnp.triu, lambda y: jnp.where(mask, y, 0.0), lambda y: y * mask]
    kinds += [lambda y: jax.nn.softmax(jnp.where(mask, y, low)), lambda y: y + 0.0 * mask]
    kinds += [lambda y: jnp.where(mask, y, low).max(-1), lambda y: jnp.where(mask, y, -1.0)]
    return step.choose(kinds)(x)


@operation(0.7, rank=2)
def diagonal(step, x):
    return step.choose([jnp.trace, jnp.diagonal])(x, axis1=-2, axis2=-1)


@operation(0.3, rank=1)
def positions(step, x):
    """Times the positions along the last axis, or with them added."""
    iota = jnp.arange(x.shape[-1], dtype=x.dtype)
    return step.choose([lambda: x * iota, lambda: x + iota, lambda: jnp.where(iota > 0, x, 0.0)])()
