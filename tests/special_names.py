"""More losses for `special`: different values that look alike, for they are made of the same ones.

`NAMES` is exact like `SPECIAL`: if two values are taken for one, a bias cancels in a difference of
products.  `NAME_EXCUSES` is like `EXCUSES`: a guard then seems to be of what it does not guard.
"""

import jax
import jax.numpy as jnp
from special import PAIR, centred, entry, rms, signal
from zoo import Entry


def mixed_products(pair, x=(8, 6)):
    """The product of two shifted values, less the square of the first."""

    def net(h):
        a, b = pair(h)
        return rms(a * b - a * a, axis=0)

    return signal((), net, x=x)


def with_another(pair, x=(8, 6)):
    """The same of values that are made of two: x * w + b and a function of x times w."""

    def net(x, w, b):
        a, b = pair(x * w + b, jnp.sin(x) * w)
        return rms(a * b - a * a, axis=0)

    return entry(net, "wb", x, w=(), b=(), joint=PAIR, dims=(1, 0))


def scaled_by_rows(pair):
    """The same of square arrays, a row for each step of the data, that are made of rows."""

    def net(x, w, b):
        h = x * w + b
        a, b = pair(h[:, None, :] * jnp.ones((4, 1)), (jnp.sin(x) * w)[:, :4])
        return rms(a * b - a * a, axis=0)

    return entry(net, "wb", (8, 4), w=(), b=(), joint=PAIR, dims=(1, 0))


def logs_unless(pair, w=(5, 4)):
    """Logarithms of a value where another is not zero."""

    def net(x, w):
        a, b = pair(x @ w)
        return centred(jnp.where(a > 0, jnp.log(b + 1e-6), 0.0))

    return entry(net, w=w)


def touching(pair):
    """The same of squared distances from the larger of the last value and another."""

    def differences(h):
        a, b, other = pair(h)
        top = jnp.maximum(b, other)
        return (top - a) ** 2, (top - b) ** 2

    return logs_unless(differences)


def parts_over(norm):
    """Two parts, each under its own leaf, of which one is divided by what is made of the other."""

    def net(x, w, u):
        a, b = jax.nn.relu(x @ w), jax.nn.relu(x @ u)
        both = jnp.concatenate([a, b], axis=1)
        return both / jnp.broadcast_to(norm(a, b) + 1e-6, both.shape)

    return entry(net, "wu")


def spread_of_parts(spread, x=(8, 5)):
    """Two parts less their mean, over the root of what is nearly eight times their variance.

    `spread(sum of a, sum of b, sum of squares, another sum)` is negative here and there.
    """

    def net(x, w, u):
        a, b = x @ w, x @ u
        sums = [jnp.sum(part, -1, keepdims=True) for part in (a, b, a * a, b * b)]
        squares, total = spread(a, b, *sums)
        h = jnp.concatenate([a, b], axis=-1) - total / 8
        return h / jnp.sqrt(jnp.maximum(0, squares - total**2 / 8) / 8 + 1e-6)

    return entry(net, "wu", x)


def turned(sums):
    return jnp.swapaxes(sums, 0, 1)


def sums_of_sums(h):
    inner = h.sum(-1)
    return inner.reshape(8, 2, 2, 8, 3).sum((1, 3)), inner.reshape(8, 4, 2, 4, 3).sum((1, 3))


def two_reshapes(make):
    """Of `make(h, g)` for the same numbers in other shapes, flat again."""

    def flat(h, g):
        a = make(h.reshape(8, 2, 2, 4), g[:, :8].reshape(8, 2, 1, 4))
        b = make(h.reshape(8, 4, 2, 2), g[:, :8].reshape(8, 4, 1, 2))
        return a.reshape(8, 16), b.reshape(8, 16)

    return flat


def relu_pairs(h):
    r = jax.nn.relu(h)
    return r[:4], r[4:]


def outer_products(h):
    """Two products of the same factors, along one axis and the other."""
    a, b = relu_pairs(h)
    return a[:, :, None] * b[:, None, :], a[:, None, :] * b[:, :, None]


def sums_along(h, *lengths):
    """Along two of the three axes that a row of numbers is folded into."""
    return h.reshape(lengths).sum((0, 2))


def divided_by_another(x, w):
    """Sums of some entries, divided by a norm of others."""
    h = jax.nn.relu(x @ w)
    return sums_along(h, 2, 2, 3) / jnp.sqrt(sums_along(h**2, 3, 2, 2) + 1e-6)


def products_of_reshapes(h):
    h = jax.nn.relu(h)
    return two_reshapes(lambda a, b: a * b)(h, h[:, 8:])


NAMES: dict[str, Entry] = {
    "sums of a sum along unlike axes": mixed_products(
        lambda h: (h.sum(1).sum(-1), h.sum(2).sum(-1)), x=(8, 3, 3, 3)
    ),
    "sums of a sum of two reshapes": mixed_products(sums_of_sums, x=(8, 4, 8, 3, 2)),
    "sums of unlike multiples": with_another(lambda h, g: (h + g, h + 2 * g)),
    "sums of multiples": with_another(lambda h, g: (h + g, 2 * h + 2 * g)),
    "sums of two reshapes": with_another(
        two_reshapes(lambda h, g: h + g), x=(8, 16)
    ),
    "plus a row, plus a column": scaled_by_rows(
        lambda h, g: (h + g[:, None, :], h + g[:, :, None])
    ),
    "a row or a column plus another": scaled_by_rows(
        lambda h, g: (g[:, None, :] + h, g[:, :, None] + h)
    ),
    "plus its transpose": mixed_products(
        lambda h: (2 * h, h + jnp.swapaxes(h, 1, 2)), x=(8, 3, 3)
    ),
    "halves": mixed_products(lambda h: (h[:, :3], h[:, 3:])),
    "alternate columns": mixed_products(lambda h: (h[:, ::2], h[:, 1::2])),
    "two orders of entries": mixed_products(
        lambda h: (h.reshape(8, 6, 6), jnp.swapaxes(h, 1, 2).reshape(8, 6, 6)), x=(8, 4, 9)
    ),
    "reversed": mixed_products(lambda h: (h, h[:, ::-1])),
}  # fmt: skip

NAME_EXCUSES: dict[str, Entry] = {
    "log unless another is zero": logs_unless(relu_pairs),
    "log unless an outer product is zero": logs_unless(outer_products),
    "log unless a product of reshapes is zero": logs_unless(products_of_reshapes, w=(5, 16)),
    "sum divided by one of another reshape": entry(divided_by_another, x=(12, 5), w=(5,)),
    "root unless an inverse is zero": logs_unless(
        lambda h: ((r := jax.nn.relu(h)) ** -1, r**0.5)
    ),
    "divided by another half": entry(
        lambda x, w: (r := jax.nn.relu(x * w))[:, :2] / (r + 1e-6)[:, 2:4], w=()
    ),
    "parts over the norm of one": parts_over(lambda a, b: a.sum(1, keepdims=True)),
    "parts over each other": parts_over(lambda a, b: jnp.concatenate([b, a], axis=1)),
    "spread about a larger mean": spread_of_parts(
        lambda a, b, s, t, ss, tt: (ss + tt, s + (jnp.abs(a) + jnp.abs(b)).sum(-1, keepdims=True))
    ),
    "spread about a mean that counts a part twice": spread_of_parts(
        lambda a, b, s, t, ss, tt: (ss + tt, s + 2 * t)
    ),
    "spread of a part that counts half": spread_of_parts(
        lambda a, b, s, t, ss, tt: (ss + tt / 2, s + t)
    ),
    "spread of fewer": spread_of_parts(lambda a, b, s, t, ss, tt: (0.7 * (ss + tt), s + t)),
    "spread with a product": spread_of_parts(
        lambda a, b, s, t, ss, tt: (ss + tt + (a * b).sum(-1, keepdims=True), s + t)
    ),
    "spread of a part turned": spread_of_parts(
        lambda a, b, s, t, ss, tt: (ss + turned(tt), s + t), x=(4, 4, 5)
    ),
    "distances from multiples of products": touching(
        lambda h: ((a := jnp.abs(h[:, :1])) * (2 * jnp.abs(h)), a * jnp.abs(h), 2 * h[:, 3:] ** 2)
    ),
    "distances from multiples of squares": touching(
        lambda h: ((2 * h) ** 2, h**2, h[:, ::-1] ** 2)
    ),
    "distances from roots of multiples": touching(
        lambda h: (jnp.sqrt(2 * h**2), jnp.sqrt(h**2), jnp.abs(h[:, ::-1]))
    ),
}  # fmt: skip
