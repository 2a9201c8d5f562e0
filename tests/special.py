"""Small losses that each turn on one rule of the certifier, with the symmetries that they have.

`SPECIAL` is exact: a strict proof may claim no more, whatever epsilons are written in the loss.
`EXCUSES` is about what an epsilon may excuse: a proof up to epsilon may claim no more.

The shorthands: `x` is (8, 5), `w` and `u` are (5, 4), `b` is (4,).
"""

from functools import partial

import jax
import jax.numpy as jnp
import zoo_models as m
from jax import lax
from zoo import Entry

rms = partial(m.rms, eps=0.0)
centred = partial(m.standardise, eps=0.0)
PAIR = (frozenset("wb"),)
TRIPLE = (frozenset("wub"),)
SHAPES = {"w": (5, 4), "u": (5, 4), "b": (4,), "s": ()}


def entry(net, leaves="w", x=(8, 5), **known):
    """Of `net(x, *leaves)`; each leaf is a name, or its shape is given in `known`."""
    shapes = {name: known.pop(name, SHAPES.get(name)) for name in leaves}
    return Entry(m.by_hand(lambda p, x, eps: net(x, *(p[k] for k in leaves)), x, **shapes), **known)


def shifted(net, *, x=(8, 5), joint=PAIR, dims=(1, 3), **known):
    """Of `net(h)` for h = x @ w + b, where the bias is felt: only both together may be scaled."""
    return entry(lambda x, w, b: net(x @ w + b), "wb", x, joint=joint, dims=dims, **known)


def along(net, **known):
    """Of `net(h)` for h = x @ w, where the columns of w must be scaled alike."""
    return entry(lambda x, w: net(x @ w), "w", invariant=("w",), dims=(1, 0), **known)


def signal(shape, net, x=(8, 5), **known):
    """Of `net(h)` for a scaled and shifted h = x * w + b with one channel, along axis 1."""
    return entry(
        lambda x, w, b: net(x * w + b), "wb", x, w=(), b=shape, joint=PAIR, dims=(1, 0),
        **known,
    )  # fmt: skip


def uneven(x, w):
    h = (x @ w).reshape(8, 2, 3)
    return jnp.append(jnp.tanh(h[..., :1]), jnp.tanh(h[..., 1:]))


def filtered(h):
    numbers = ("NWC", "WIO", "NWC")
    kernel = jnp.array([1.0, 2.0, 4.0])[:, None, None]
    return lax.conv_general_dilated(h[..., None], kernel, (1,), "SAME", dimension_numbers=numbers)


def convolved(x, w):
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x[..., None], w, (1,), "VALID", dimension_numbers=numbers)


def pooled(h, padding):
    return lax.reduce_window(h, 0.0, lax.add, (1, 3), (1, 1), padding)


def in_rows(h):
    """Some function of h that mixes rows, normalised so that h as a whole does not matter."""
    return jnp.tanh(centred(h, axis=0))


def doubled_until(limit):
    return lax.while_loop(lambda n: n < limit, lambda n: 2 * n, 1.0)


def whole(x):
    return x.astype(int)


def differing(x, w, u):
    """Entries of both signs that scale like w, or u, squared."""
    return (x @ w) ** 2 - (x @ u) ** 2


def stepwise(x, w):
    """A loop's results that the carry makes vary from step to step."""
    ys = lax.scan(lambda c, _: (jnp.sin(3 * c), c), x[0], length=8)[1]
    return centred(x @ w + ys, axis=0)


def single_rows(x, w, u):
    """Rows of which each is a segment of its own, for it scales unlike its neighbours."""
    rows = jnp.concatenate([(x[i : i + 1] @ u) ** k for i, k in enumerate((1, 2, 3, 2, 1))])
    return centred(x[::2] @ w + rows[::2])


def square(w):
    return jnp.broadcast_to(w, (len(w), len(w)))


def both_sums(x, w, u):
    return jnp.sign((w.sum(0) * w.sum(1) * jnp.abs(u)).sum())


def crossed_means(x, w, b):
    h = x @ w + b
    return rms((h**2).mean(0) - (h**2).mean(1), axis=0)


def clamped_to_itself(x, w):
    h = x @ w
    return lax.clamp(h, h, 2 * jnp.abs(h)) / jnp.sqrt(jnp.sum(h**2))


def fused_attention(x, w, b):
    q, k, v = jnp.split(x @ w + b, 3, axis=1)
    return jax.nn.softmax(q @ k.T) @ v


def root_of(h, bound):
    """Normalised by a root of its bounded variance."""
    return h / jnp.sqrt(bound((h**2).mean(0)))


def unlike(x, w, u):
    """Two constraints that differ in a coefficient only, in one line."""
    return jnp.tanh(x @ w * (x @ u)) + jnp.tanh(x @ w / (x @ u))


SPECIAL: dict[str, Entry] = {
    # sums and products of shifted values
    "product of a shifted value": entry(
        lambda x, w, b: centred((x @ w + b) * x[:, :4]), "wb", joint=PAIR, dims=(1, 3)
    ),
    "product of a bias": entry(
        lambda x, w, b: centred(x @ w + b * x[:, :4]), "wb", joint=PAIR, dims=(1, 3)
    ),
    "minus half the mean": shifted(lambda h: rms(h - h.mean(0) / 2, axis=0)),
    "minus the sum": shifted(lambda h: rms(h - h.sum(0), axis=0)),
    "minus nearly the mean": shifted(lambda h: rms(h - 0.1249 * h.sum(0), axis=0)),
    "minus a window's sum": signal((), lambda h: rms(h[:, 1:-1] - pooled(h, "VALID"), axis=0)),
    "minus twice": shifted(lambda h: rms(h - 2 * h, axis=0)),
    "quotient": entry(lambda x, w: (x @ w) ** -1 / (x @ w)),
    "difference of a root": entry(lambda x, w: jnp.sign(jnp.sqrt(jnp.abs(x @ w)) - jnp.abs(x @ w))),
    "quotient of a square": entry(lambda x, w: (x @ w) ** 2 / jnp.abs(x @ w)),
    "difference of squares": entry(
        lambda x, w, u, b: rms((h := x @ w + b) ** 2 - (h + x @ u) ** 2, axis=0), "wub",
        joint=TRIPLE, dims=(1, 3),
    ),
    "half of a square": shifted(lambda h: rms(h * (2 * h) - h * h, axis=0)),
    "difference of mean squares": entry(
        crossed_means, "wb", (4, 4, 5), joint=PAIR, dims=(1, 3)
    ),
    "product with a transpose": entry(
        lambda x, w: rms(w * w.T), w=(4, 4), invariant=("w",), dims=(1, 3)
    ),
    "quotient by a transpose": entry(
        lambda x, w: w / w.T, w=(4, 4), invariant=("w",), dims=(1, 3)
    ),
    "outer product": entry(
        lambda x, w: rms(square(w[:, None]) * square(w)), w=(5,), invariant=("w",), dims=(1, 0)
    ),
    # functions of one entry
    "exp of a scale": entry(lambda x, w: jnp.exp(x @ w)),
    "exp of a shift": entry(lambda x, b: jnp.exp(x[:, :4] + b), "b"),
    "softmax with an epsilon": entry(
        lambda x, s: (e := jnp.exp(x + s)) / (e.sum(1, keepdims=True) + 1e-5), "s"
    ),
    "log of a scale": entry(lambda x, w: x * jnp.log(jnp.sum(w**2))),
    "log of a shifted value": shifted(lambda h: centred(jnp.log(h * h))),
    "power of a shifted value": shifted(lambda h: centred(h**3)),
    "absolute value of a shifted value": shifted(lambda h: centred(jnp.abs(h))),
    "sign of a shifted value": shifted(jnp.sign),
    "comparison of a shifted value": shifted(lambda h: jnp.where(h > 0, 1.0, 2.0)),
    "rounding": entry(lambda x, w: rms(whole(3 * w).astype(float))),
    "minus a stopped value": entry(lambda x, w: rms(x @ w - lax.stop_gradient(x @ w).max())),
    "product and quotient": entry(unlike, "wu"),
    "no target": Entry(lambda eps: m.Problem(lambda w: jnp.sum(w**2), jnp.ones(3), ())),
    # signs
    "signed sum": entry(
        lambda x, w, u: jnp.sign(differing(x, w, u).sum(1)), "wu", joint=(frozenset("wu"),),
        dims=(1, 0),
    ),
    "sum of cubes": along(lambda h: jnp.sign((h**3).sum(1))),
    "sum with one sign": entry(
        lambda x, w, u: jnp.sign((jnp.abs(x @ w) + x @ u).sum(1)), "wu", joint=(frozenset("wu"),),
        dims=(1, 0),
    ),
    "product with one sign": entry(
        lambda x, w, u: jnp.sign((jnp.abs(x @ w) * (x @ u)).sum(1)), "wu", invariant=("w", "u"),
        dims=(2, 3),
    ),
    "log with a sign": entry(
        lambda x, w: jnp.sign((jnp.log(x**2)[:, :4] * jnp.abs(w)).sum(1)), w=(4,),
        invariant=("w",), dims=(1, 0),
    ),
    "two sums": entry(both_sums, "wu", w=(5, 5), u=(5,), invariant=("w", "u"), dims=(2, 0)),
    "sums of squares": along(lambda h: (s := (h**2).sum(1)) / s.mean()),
    # choices
    "maximum of a shifted value": entry(
        lambda x, w, u, b: centred(jnp.maximum(x @ w + b, x @ u)), "wub", joint=TRIPLE, dims=(1, 3)
    ),
    "choice by sin": entry(lambda x, w: jnp.where(jnp.sin(x @ w) > 0, 1.0, 2.0)),
    "choice by a row": entry(
        lambda x, w, b: centred(x @ w + jnp.where(x[:, :1] > 0, b, 0.0)), "wb", joint=PAIR,
        dims=(1, 3),
    ),
    "comparison with a number": entry(lambda x, w: jnp.where(x @ w > 1.0, 1.0, 2.0)),
    "comparison with an epsilon": entry(lambda x, w: jnp.where(jnp.sum(w**2) > 1e-4, x, -x)),
    "bound of one": entry(lambda x, w: jnp.minimum(x @ w, 1.0)),
    "added epsilon": entry(lambda x, w: x / jnp.sqrt(jnp.sum(w**2) + 1e-5) * w.sum()),
    "guard": entry(lambda x, w: x / jnp.maximum(jnp.sum(w**2), 1e-4) * w.sum() ** 2),
    "clamp to itself": entry(
        clamped_to_itself, note="w is invariant by value, but the gradient is not orthogonal to it"
    ),
    # entries that are moved, cut, joined and picked
    "rows apart": entry(
        lambda x, w: in_rows(w[::2]), invariant=("w",), units={"w": 1}, dims=(1, 5)
    ),
    "alternate rows": entry(
        lambda x, w: w[::2] / w[1::2], w=(6, 4), invariant=("w",), units={"w": 1}, dims=(1, 5)
    ),
    "two orders": entry(
        lambda x, w: w.reshape(6) / w.T.reshape(6), w=(2, 3), invariant=("w",), dims=(1, 0)
    ),
    "slice across a reshape": entry(
        lambda x, w: rms(w.reshape(2, 3), axis=0) * rms(w[1:5]).sum(), w=(6,), invariant=("w",),
        dims=(1, 0),
    ),
    "uneven slices of an inner factor": entry(uneven, w=(5, 6)),
    "slices of an inner factor": entry(
        lambda x, w: (h := w.reshape(2, 3))[:, 0] / h[:, 1], w=(6,), invariant=("w",),
        units={"w": ((0,), (2, 3))}, dims=(1, 3)
    ),
    "rows in another order": entry(
        lambda x, w: in_rows(w[jnp.array([2, 0, 4, 1, 3])]), invariant=("w",), units={"w": 1},
        dims=(1, 3),
    ),
    "halves of channels": signal((4,), lambda h: rms(h[:, :2] - h[:, 2:], axis=0), x=(8, 4)),
    "lookup by sin": entry(lambda x, w: x[:, jnp.argmax(jnp.sin(w))]),
    "lookup that varies": entry(
        lambda x, w: centred(x @ w + x[whole(x[:, 0]), :4])
    ),
    "argmax": entry(
        lambda x, w: x * jnp.argmax(w, 1), invariant=("w",), units={"w": 0}, dims=(1, 4)
    ),
    "argmax of sin": entry(lambda x, w: x * jnp.argmax(jnp.sin(w), 1)),
    "write": entry(
        lambda x, w, b: in_rows(w.at[0].set(b)), "wb", joint=PAIR, dims=(1, 3)
    ),
    "write by sin": entry(lambda x, w: x.at[0, jnp.argmax(jnp.sin(w))].set(9.0)),
    "rows from two leaves": entry(
        lambda x, w, u: jnp.sort(jnp.concatenate([w, u]), 0).sum(1) / w.sum(), "wu",
        joint=(frozenset("wu"),), dims=(1, 0),
    ),
    "keys of a fused bias": entry(
        fused_attention, "wb", w=(5, 12), b=(12,), no_effect=("b[4:8]",), dims=(0, 7)
    ),
    "single rows": entry(single_rows, "wu", (5, 5)),
    # along axes
    "extreme": along(lambda h: rms(h.max(1))),
    "sort": along(lambda h: rms(jnp.sort(h, 1), axis=0)),
    "running sum": along(lambda h: rms(jnp.cumsum(h, 1), axis=0)),
    "top 2": along(lambda h: rms(lax.top_k(h, 2)[0], axis=0)),
    "sort by keys": entry(lambda x, w: lax.sort((x @ w, x[:, :4]), dimension=1)[0]),
    "running sum of a shifted value": shifted(lambda h: centred(jnp.cumsum(h, 0))),
    "product over rows": entry(lambda x, w: jnp.prod(w, 0) / w.sum(0)),
    "product of shifted values": signal((), lambda h: centred(jnp.prod(h, 1))),
    "product of a varying shift": shifted(lambda h: centred(jnp.prod(h, 1))),
    "convolution": entry(
        lambda x, w: centred(convolved(x, w)), w=(3, 1, 4), invariant=("w",), units={"w": 2},
        dims=(1, 3),
    ),
    "windows over a scale": entry(
        lambda x, w: rms(pooled(x * w, "VALID"), axis=0), w=(5,), invariant=("w",), dims=(1, 0)
    ),
    "convolution over edges": signal((), lambda h: centred(filtered(h), axis=(0, 1))),
    "convolution of a varying shift": signal((5,), lambda h: centred(filtered(h), axis=(0, 1))),
    "pooling over edges": signal((), lambda h: centred(pooled(h, "SAME"), axis=(0, 1))),
    "window of one": signal((), lambda h: rms(3 * h - pooled(h, "SAME"), axis=0), x=(8, 1)),
    # programs within the program
    "branch by sin": entry(lambda x, w: lax.cond(jnp.sin(w).sum() > 0, jnp.sin, jnp.cos, x)),
    "branches": entry(
        lambda x, w: rms(x @ w + lax.cond(x.sum() > 0, jnp.square, jnp.abs, x @ w), axis=0)
    ),
    "loop until sin": entry(lambda x, w: x * doubled_until(4 * jnp.sin(w).sum())),
    "sum of steps": entry(
        lambda x, w: rms(lax.scan(lambda c, u: (c + u * x, None), 0 * x, w)[0]), w=(3,),
        invariant=("w",), dims=(1, 0),
    ),
    "results of steps": entry(
        lambda x, w: centred(lax.scan(lambda c, u: (c, u * x), 0.0, w)[1]), w=(3,),
        invariant=("w",), dims=(1, 0),
    ),
    "results that vary": entry(stepwise, w=(5, 5)),
    "shifted carry": shifted(
        lambda h: rms(lax.scan(lambda c, t: (c * t, None), h, jnp.arange(1.0, 4.0))[0], axis=0)
    ),
}  # fmt: skip

EXCUSES: dict[str, Entry] = {
    "epsilon without a root": entry(lambda x, w: rms(jax.nn.relu((x @ w) ** 2 + 1e-5), axis=0)),
    "bound under a root": entry(lambda x, w: root_of(x @ w, lambda v: jnp.minimum(v, 1.0))),
    "guard by data": entry(
        lambda x, w: root_of(x @ w, lambda v: jnp.where(x[0, :4] > 0, v, 1.0))
    ),
    "guard by a sign": entry(
        lambda x, w: root_of(h := x @ w, lambda v: jnp.where(h.sum(0) > 0, v, 1.0))
    ),
    "softmax up to epsilon": SPECIAL["softmax with an epsilon"],
}  # fmt: skip
