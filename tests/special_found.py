"""More losses for `special`: those of which a reviewer found that too much was claimed.

`FOUND` is exact like `SPECIAL`, and `FOUND_EXCUSES` is like `EXCUSES`.  Some are here because the
certifier once failed on them with an error.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from special import PAIR, along, centred, entry, rms, signal, whole
from zoo import Entry

KEY = jax.random.key(0)
TALL = np.array([True, False, True, True])
STEPS = (5, 8, 3)
STEPPED = {"x": STEPS, "w": (3, 4), "joint": PAIR, "dims": (1, 3)}
BY_VALUE = "w is invariant by value, but the gradient is not orthogonal to it"


# --- loops


def results(step, init, xs):
    return lax.scan(step, init, xs)[1]


def stepped(bias, b=(4,)):
    """A bias that `bias(b, x, i)` makes of b at step i, which no mean over the steps removes."""

    def net(x, w, b):
        def step(carry, at):
            return carry, at[0] @ w + bias(b, *at)

        return centred(results(step, 0.0, (x, jnp.arange(len(x)))))

    return entry(net, "wb", **STEPPED, b=b)


def halved_bias(x, w, b):
    return centred(results(lambda c, at: (c / 2, at @ w + c), b, x))


def after_a_loop(b, x, i):
    """The bias times where a running sum over the rows of x is largest."""
    return b * jnp.argmax(results(lambda c, row: (c + row[0], c), 0.0, x))


def factor_of_a_carry(x, w):
    """Each step's result has a positive factor of its own."""
    ys = results(lambda c, at: (jnp.cos(c) * c, jnp.sum((c * w) ** 2) * at[0]), x[0, 0], x)
    return ys / jnp.sqrt((ys**2).sum(0, keepdims=True))


def squares(x, w, b):
    """The cross terms 2 b (x @ w) are not the same at each step."""
    ys = results(lambda c, at: (c, (h := at @ w + b) * h), 0.0, x)
    return rms(ys - ys.mean(0), axis=0)


# --- entries that are moved, cut and named


def peeled(x, w):
    """Cuts off one row after the other, which takes as many readings."""
    total, rest = 0.0, w
    for i in range(26):
        total, rest = total + jnp.sum(rest[:1]) * (i + 1), rest[1:]
    return (total + jnp.sum(rest)) / jnp.sqrt(jnp.sum(w**2))


def lookup(h, fill):
    return h.at[jnp.array([0, 3, 99])].get(mode="fill", fill_value=fill)


def written_by_tanh(x, w):
    """To the gradient the entries that a function writes are constants."""
    written = lax.stop_gradient(w.at[0].apply(jnp.tanh))
    return rms(x @ w) * jnp.sum(written / jnp.sqrt(jnp.sum(written**2)))


def two_parts(h):
    return rms(h.reshape(8, 2, 6)[:, 1, :2] - h.reshape(8, 4, 3)[:, 1, :2], axis=0)


def two_sums(h):
    """Sums over other entries, though over as many and along axes of the same numbers."""
    return h.reshape(8, 2, 3, 4).sum((1, 3)), h.reshape(8, 4, 3, 2).sum((1, 3))


def sums_of_squares(h):
    first, second = two_sums(h * h)
    return rms(first - second, axis=0)


def products_of_sums(h):
    first, second = two_sums(h)
    return rms(first * second - first * first, axis=0)


# --- windows


def convolve(a, kernel, padding="VALID"):
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(a, kernel, (1,), padding, dimension_numbers=numbers)


def minus_window_sums(h):
    return rms(convolve(h[..., None], jnp.ones((3, 1, 1)))[..., 0] - h[:, 1:-1], axis=0)


def literal_input(x, w, b):
    kernel = (x[0] * w + b)[:, None, None]
    return rms((convolve(jnp.ones((1, 5, 1)), kernel) - kernel[0])[0, :, 0])


def spread(a):
    """A row of three, made of one entry: each is another multiple of it."""
    return convolve(a[..., None], jnp.array([1.0, 2.0, 4.0])[:, None, None], [(2, 2)])[..., 0]


def spread_bias(x, w, b):
    return centred(x * w + spread(b.reshape(1, 1)), axis=1)


def spread_minus_mean(h):
    row = spread(h)
    return rms(row - row.mean(1, keepdims=True), axis=0)


def window_of_one(stride, padding, reduce=lax.add, start=0.0):
    """Windows of one entry, which still take entries elsewhere."""

    def net(x, w):
        h = x * w
        moved = lax.reduce_window(h, start, reduce, (1, 1), (1, stride), ((0, 0), padding))
        return jnp.tanh(moved / jnp.sqrt((h**2).sum(0)))

    return net


# --- numbers


def turned(x, w):
    """A direction in the complex plane, of squares that are not positive there."""
    z = w * (x[0] + 1j * x[1])
    square = jnp.sum(z * z)
    return jnp.real(square / jnp.abs(square)) ** 3


def waves(x, s):
    total = jnp.exp((x + s) * 1j).sum(1)
    return jnp.real(total / jnp.abs(total))


def whole_quotient(h):
    """Minus a sixth of the sum of seven, for 7 // 2 * 2 = 6."""
    count = lax.div(lax.full((), 7), lax.full((), 2)) * 2
    return rms(h - h.sum(1, keepdims=True) / count.astype(float), axis=0)


def wrapped_sum(h):
    """Minus a sixth of the sum of seven, for 200 + 62 = 6 in eight bits."""
    count = lax.add(lax.full((), 200, jnp.uint8), lax.full((), 62, jnp.uint8))
    return rms(h - h.sum(1, keepdims=True) / count.astype(float), axis=0)


# --- derivative rules


@jax.custom_gradient
def skewed(a):
    return a, lambda ct: ct * jnp.arange(a.size * 1.0).reshape(a.shape)


flat_abs = jax.custom_jvp(jnp.abs)
flat_abs.defjvp(lambda primals, tangents: (flat_abs(*primals), 0 * tangents[0]))


def rootless(a):
    """The root of v - a; its derivative is said to be zero."""
    nothing = jnp.zeros_like(a)
    solve, tangent_solve = lambda f, v: v - f(v), lambda g, y: 0 * y
    return lax.custom_root(lambda v: v - a, nothing, solve, tangent_solve)


def by_value(rule):
    """Of a function that is homogeneous, unlike its derivative."""
    return entry(lambda x, w: x[0] @ rule(w) / jnp.sqrt(jnp.sum(w**2)), note=BY_VALUE)


def clamped_from_below(x, w):
    h = x @ w
    return lax.clamp(h, h, jnp.full_like(h, jnp.inf)) / jnp.sqrt(jnp.sum(h**2))


# --- guards


def guarded_exponentials(x, w):
    """Masked entries are exactly zero, and then fall under the guard."""
    e = jnp.exp(jnp.where(jnp.arange(5) % 3 == 0, -jnp.inf, jnp.log(w**2)))
    return jnp.log(jnp.where(e > 0, e, 1.0)).sum() - 5 * jnp.log(jnp.sum(w**2))


def guarded_by(test):
    """Of a root that is guarded where some test of the data fails, which it often does."""
    return lambda x, w: w / jnp.where(test(x[:5, :4]), jnp.sqrt(jnp.sum(w**2)), 1.0)


def guarded_by_share(test):
    """Of a root that is guarded where some test fails of the first row's share of the squares."""
    return lambda x, w: (
        w / jnp.where(test(jnp.sum(w[0] ** 2) / jnp.sum(w**2)), jnp.sqrt(jnp.sum(w**2)), 1.0)
    )


def guarded_relu(x, w):
    """The sum is zero wherever all units are off."""
    n = jnp.sum(jax.nn.relu(h := x @ w) ** 2, -1, keepdims=True)
    return jnp.tanh(h / jnp.sqrt(jnp.where(n > 0, n, 1.0)))


FOUND: dict[str, Entry] = {
    "bias in a carry": entry(halved_bias, "wb", **STEPPED),
    "factor of a carry": entry(
        factor_of_a_carry, x=STEPS, w=(3,), invariant=("w",), dims=(1, 0)
    ),
    "bias of a step": stepped(lambda b, x, i: b[i], b=(5, 4)),
    "bias by argmax": stepped(lambda b, x, i: b * jnp.argmax(x[0])),
    "bias by fft": stepped(lambda b, x, i: b * jnp.fft.fft(x[0]).real.sum()),
    "bias by a branch": stepped(
        lambda b, x, i: lax.cond(i > 2, lambda: b, lambda: 2 * b)
    ),
    "bias after a loop in a step": stepped(after_a_loop),
    "squares of steps": entry(squares, "wb", **STEPPED),
    "many slices": entry(peeled, w=(28, 2), invariant=("w",), dims=(1, 0)),
    "lookup filled with ones": entry(lambda x, w: rms(lookup(x @ w, 1.0), axis=0)),
    "lookup filled with zeros": signal((), lambda h: centred(lookup(h, 0.0))),
    "lookup filled with minus infinity": entry(
        lambda x, w: jnp.maximum(lookup(jnp.abs(w), -jnp.inf), -1.0) / jnp.sqrt(jnp.sum(w**2))
    ),
    "write of a function": entry(written_by_tanh),
    "part of a tile": entry(
        lambda x, s: centred(x * s + jnp.tile(jnp.array([0.3, -1.2]), 2)[:3], axis=1), "s", (8, 3)
    ),
    "softmax filled with fives": entry(
        lambda x, s: jax.nn.softmax(jnp.where(x > 0, x + s, 5.0)), "s"
    ),
    # eight of the twelve biases have no part in it
    "parts of two reshapes": signal((12,), two_parts, x=(8, 12))._replace(dims=(1, 7)),
    "sums of squares of two reshapes": signal((), sums_of_squares, x=(8, 24)),
    "squares of sums of two reshapes": signal((), products_of_sums, x=(8, 24)),
    "convolution with ones": signal((), minus_window_sums),
    "convolution of ones": entry(
        literal_input, "wb", w=(), b=(), joint=PAIR, dims=(1, 0)
    ),
    "convolution of one entry": entry(
        spread_bias, "wb", x=(8, 3), w=(), b=(), joint=PAIR, dims=(1, 0)
    ),
    "convolution of one shifted entry": signal((), spread_minus_mean, x=(8, 1)),
    "window of one that moves": entry(
        window_of_one(1, (1, -1)), w=(5,), invariant=("w",), dims=(1, 0)
    ),
    "window of one with a stride": entry(
        window_of_one(2, (0, 2)), x=(8, 3), w=(3,), invariant=("w",), dims=(1, 1)
    ),
    "extreme window of one that moves": entry(
        window_of_one(1, (1, -1), lax.max, -jnp.inf), w=(5,), invariant=("w",), dims=(1, 0)
    ),
    "complex squares": entry(turned, w=(5,), invariant=("w",), dims=(1, 0)),
    "complex exponentials": entry(waves, "s"),
    "whole quotient": signal((), whole_quotient, x=(8, 7)),
    "sum that wraps around": signal((), wrapped_sum, x=(8, 7)),
    "custom_gradient": by_value(skewed),
    "custom_jvp of abs": by_value(flat_abs),
    "custom_root": by_value(rootless),
    "clamp at its own bound": entry(clamped_from_below, note=BY_VALUE),
    "plus a tall number": entry(lambda x, w: (x @ w + 1e30) / jnp.sqrt(jnp.sum(w**2))),
    "times a tall number": entry(lambda x, w: jnp.sum(x * w) * 1e30, w=(5,)),
    "times a tall number and back": entry(
        lambda x, w: jnp.sum(x * w * 1e30) * 1e-30, w=(5,)
    ),
    "nearly a root": entry(lambda x, w: x @ w / jnp.sum(w**2) ** 0.50000012),
    # once an error
    "empty tile": along(lambda h: rms(h).sum() + jnp.tile(h, (0,)).sum()),
    "lookup in complex numbers": entry(
        lambda x, w: rms(jnp.abs(lookup((x @ w) * 1j, 0j)), axis=0), invariant=("w",),
        units={"w": 1}, dims=(1, 3),
    ),
    "pad by NumPy's numbers": entry(
        lambda x, w: rms(jnp.pad(x @ w, np.array([[0, 0], [1, 2]]))).sum(1), invariant=("w",),
        dims=(1, 0),
    ),
    "key from outside": entry(
        lambda x, w: rms((x @ w) * jax.random.normal(KEY, (8, 4)), axis=0), invariant=("w",),
        units={"w": 1}, dims=(1, 3),
    ),
    "complex ones": entry(
        lambda x, w: rms(jnp.abs((x @ w) * jnp.ones(4, complex)), axis=0), invariant=("w",),
        units={"w": 1}, dims=(1, 3),
    ),
}  # fmt: skip

FOUND_EXCUSES: dict[str, Entry] = {
    "guard by a masked exponential": entry(guarded_exponentials, w=(5,)),
    "guard by a whole number": entry(guarded_by_share(lambda v: whole(v) > 0)),
    "guard by a whole exponential": entry(guarded_by(lambda v: whole(jnp.exp(v)) > 0)),
    "guard by a small bound": entry(guarded_by(lambda v: jax.nn.softmax(8 * v) > 5e-4)),
    "guard by a bound on a sum": entry(guarded_by_share(lambda v: v / 5e4 > 1e-4)),
    "choice of a stand-in for infinity": entry(
        lambda x, w: jnp.sum(jnp.where(TALL, w, 1e30) * 1e-30) / jnp.sum(jnp.abs(w)), w=(4,)
    ),
    "guard of a sum by ReLU": entry(guarded_relu, w=(5, 2)),
}
