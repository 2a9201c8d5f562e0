"""Operations of the random programs: pointwise, reductions, normalisations and structure.

An operation is a function of a step (see `programs.Step`) and of a first value; it draws its
variant by `step.choose` and takes further values from the step. It raises `Unfit` where the value
does not suit it. Several variants are near misses: almost a normalisation, but not one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.tiny import tiny

OPERATIONS = {}
LIMIT = 400  # entries of a value


class Unfit(Exception):
    """The value does not suit the operation."""


def operation(weight=1.0, rank=0):
    """Register a function of (step, value) for values of at least this rank."""

    def register(function):
        def checked(step, x):
            need(x.ndim >= rank)
            out = function(step, x)
            need(all(y.size <= LIMIT and y.ndim <= 5 for y in jax.tree.leaves(out)))
            return out

        OPERATIONS[function.__name__.strip("_")] = (weight, checked)
        return function

    return register


def need(condition):
    if not condition:
        raise Unfit


def drawn(*variants):
    """An operation that applies one of these functions."""
    return lambda step, x: step.choose(variants)(x)


def register_all(weight, functions, rank=0):
    for name, function in functions.items():
        function = partial(lambda f, step, x: f(x), function)
        function.__name__ = name
        operation(weight, rank)(function)


# Pointwise.

HOMOGENEOUS = {
    "relu": jax.nn.relu,
    "maximum_zero": lambda x: jnp.maximum(x, 0.0),
    "abs": jnp.abs,
    "neg": jnp.negative,
    "leaky_relu": jax.nn.leaky_relu,
    "where_positive": lambda x: jnp.where(x > 0, x, 0.25 * x),
    "square": jnp.square,
    "self_product": lambda x: x * x,
    "cube": lambda x: x**3,
    "sqrt_abs": lambda x: jnp.sqrt(jnp.abs(x)),
    "root_of_square": lambda x: jnp.sqrt(x * x),
    "cbrt": jnp.cbrt,
    "power": lambda x: jnp.abs(x) ** 0.7,
    "times_sign": lambda x: x * jnp.sign(x),
    "negative_part": lambda x: jnp.clip(x, max=0.0),
    "clamp_above_zero": lambda x: lax.clamp(0.0, x, jnp.inf),
    "exp_log": lambda x: jnp.exp(0.5 * jnp.log(jnp.abs(x))),
    "nan_to_num": jnp.nan_to_num,
    "where_finite": lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    "magnitude": lambda x: jnp.abs(lax.complex(x, 2 * x)),
    "complex_parts": lambda x: jnp.real(lax.complex(x, x) * lax.complex(x, -x)),
    "barrier": lambda x: lax.optimization_barrier(x),
}
RARE = {
    "sign": jnp.sign,
    "reciprocal": lambda x: 1.0 / x,
    "inverse_square": lambda x: x**-2,
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x)),
    "log": lambda x: jnp.log(jnp.abs(x)),
    "log_difference": lambda x: jnp.log(jnp.abs(x)) - jnp.log(jnp.abs(x).sum()),
    "guarded_division": lambda x: x / jnp.where(jnp.abs(x) > 0, jnp.abs(x), 1.0),
}
BREAKING = {
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "erf": lax.erf,
    "sin": jnp.sin,
    "exp": lambda x: jnp.exp(x - jnp.max(jnp.abs(x))),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "expm1": lambda x: jnp.expm1(-jnp.abs(x)),
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu6": jax.nn.relu6,
    "floor": jnp.floor,
    "round": jnp.round,
    "to_integer": lambda x: x.astype(int).astype(float),
    "to_boolean": lambda x: (x - 0.2).astype(bool).astype(float),
    "add_one": lambda x: x + 1.0,
    "maximum_one": lambda x: jnp.maximum(jnp.abs(x), 1.0),
    "clip": lambda x: jnp.clip(x, -1.0, 1.0),
    "above_half": lambda x: jnp.where(x > 0.5, x, 0.0),
    "remainder": lambda x: lax.rem(x, 0.75),
    "guard_one": lambda x: jnp.where(x > 0, x, 1.0),
    "bits": lambda x: lax.bitcast_convert_type(
        lax.bitcast_convert_type(x, jnp.uint64) & np.uint64(0x7FFF000000000000), x.dtype
    ),
}
register_all(1.0, HOMOGENEOUS)
register_all(0.4, RARE)
register_all(0.3, BREAKING)


@operation(1.5)
def times_literal(step, x):
    return x * step.choose([2.0, -1.0, 0.5, 1 / 3, 3.0, 1e-5, 7, -0.1, 0.0])


@operation(1.0)
def divided_by_literal(step, x):
    return step.choose([lambda y: y / 7, lambda y: y / 0.3, lambda y: 3.0 / y])(x)


@operation(3.0)
def scale(step, x):
    """Times a leaf that is constant along some axes."""
    return x * step.leaf(*step.collapsed(x))


@operation(3.0, rank=1)
def bias(step, x):
    return x + step.leaf(*step.collapsed(x))


@operation(1.0)
def traced_power(step, x):
    return jnp.abs(x) ** step.data()


@operation(2.0)
def combine(step, x):
    y = step.other(x)
    kinds = [jnp.add, jnp.subtract, jnp.maximum, jnp.minimum, jnp.multiply, jnp.divide, jnp.arctan2]
    return step.choose([*kinds, jnp.hypot, lax.rem, jnp.logaddexp, jnp.copysign])(x, y)


@operation(2.0)
def residual(step, x):
    return step.choose([x, 0.5 * x, -x]) + step.other(x)


@operation(1.0)
def ratio_of_equals(step, x):
    y = step.choose([jnp.abs, lambda y: jnp.roll(y, 1), lambda y: step.other(x)])(x)
    ratios = [lambda: x / y, lambda: y / x, lambda: x * y / (y * y), lambda: (x > y).astype(float)]
    return step.choose(ratios)()


@operation(1.5)
def select(step, x):
    y = step.other(x)
    tests = [lambda: y > 0, lambda: y > step.other(x), lambda: y >= jnp.abs(x), lambda: y < 0.3]
    other = step.choose([lambda: y, lambda: step.other(x), lambda: -x, lambda: 0.0, lambda: 1.0])
    return jnp.where(step.choose(tests)(), x, other())


@operation(0.5)
def clamp_between(step, x):
    y = jnp.abs(step.other(x))
    return lax.clamp(-y, x, step.choose([y, 2 * y, jnp.square(y)]))


# Reductions.


def reduction(weight, rank=1):
    """An operation on the axes drawn, kept or not."""

    def register(function):
        def on_axes(step, x):
            return function(step, x, step.axes(x), step.flag())

        on_axes.__name__ = function.__name__
        operation(weight, rank)(on_axes)
        return function

    return register


@reduction(2.0)
def reduce(step, x, axes, keep):
    kinds = [jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.prod, jnp.var, jnp.std]
    kinds += [jax.nn.logsumexp, partial(jnp.var, ddof=1), jnp.linalg.norm]
    kind = step.choose(kinds)
    need(kind is not jnp.linalg.norm or len(axes) < 2)
    return kind(x, axis=axes[0] if len(axes) == 1 else axes, keepdims=keep)


@operation(0.7, rank=1)
def median(step, x):
    return jnp.median(x, axis=step.axis(x), keepdims=step.flag())


@operation(0.5, rank=1)
def reduce_custom(step, x):
    body = step.choose([lambda a, b: a + 2 * b, lambda a, b: jnp.maximum(a, b), lambda a, b: a * b])
    return lax.reduce(x, step.choose([0.0, 1.0, -np.inf]), body, step.axes(x))


@reduction(1.0)
def logic(step, x, axes, keep):
    mask = step.choose([x > 0, x > step.other(x), x > x.mean()])
    return step.choose([jnp.any, jnp.all])(mask, axis=axes, keepdims=keep).astype(float)


@operation(1.0, rank=1)
def arg(step, x):
    """A position, as a number or one-hot, or the value there."""
    axis = step.axis(x)
    at = step.choose([jnp.argmax, jnp.argmin])(x, axis=axis)
    hot = jax.nn.one_hot(at, x.shape[axis], axis=axis, dtype=x.dtype)
    taken = jnp.take_along_axis(x, jnp.expand_dims(at, axis), axis)
    return step.choose([at.astype(float), hot, hot * x, taken, step.other(x) * hot])


@operation(1.0, rank=1)
def accumulate(step, x):
    kinds = [lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp]
    return step.choose([*kinds, lax.cumsum])(x, axis=step.axis(x), reverse=step.flag())


@operation(0.5, rank=1)
def associative_scan(step, x):
    return lax.associative_scan(step.choose([jnp.add, jnp.maximum]), x, axis=step.axis(x))


@operation(1.0, rank=1)
def order(step, x):
    axis, y = step.axis(x), step.other(x)
    kinds = [
        lambda: jnp.sort(x, axis=axis),
        lambda: jnp.take_along_axis(y, jnp.argsort(x, axis=axis), axis=axis),
        lambda: lax.sort((x, y), dimension=axis, num_keys=1)[1],
        lambda: lax.sort((x, y), dimension=axis, num_keys=2)[1],
        lambda: lax.top_k(x, min(2, x.shape[-1]))[0],
        lambda: lax.top_k(x, min(2, x.shape[-1]))[1].astype(float),
        lambda: jnp.argsort(x, axis=axis).astype(float),
    ]
    return step.choose(kinds)()


# Normalisations, and near misses of them.


@reduction(3.0)
def unit(step, x, axes, _):
    """Divided by a norm; the last ones are not of degree 1."""
    kinds = [
        lambda: jnp.sqrt((x**2).sum(axes, keepdims=True)),
        lambda: jnp.abs(x).sum(axes, keepdims=True),
        lambda: jnp.abs(x).max(axes, keepdims=True),
        lambda: (jnp.abs(x) ** 3).mean(axes, keepdims=True) ** (1 / 3),
        lambda: jnp.std(x, axes, keepdims=True),
        lambda: jnp.sqrt(tiny() + (x**2).mean(axes, keepdims=True)),
        lambda: jnp.exp(jnp.log(jnp.abs(x)).mean(axes, keepdims=True)),
        lambda: (x**2).sum(axes, keepdims=True),
        lambda: jnp.sqrt((step.other(x) ** 2).sum(axes, keepdims=True)),
    ]
    return step.choose([lambda n: x / n, lambda n: x * (1 / n), lambda n: x * lax.rsqrt(n * n)])(
        step.choose(kinds)()
    )


@reduction(2.5)
def centre(step, x, axes, _):
    count = np.prod([x.shape[a] for a in axes])
    others = step.axes(x) if step.rng.random() < 0.2 else axes
    kinds = [
        lambda: x.mean(axes, keepdims=True),
        lambda: x.max(axes, keepdims=True),
        lambda: x.sum(axes, keepdims=True) / count,
        lambda: jnp.take(x, jnp.array([0]), axis=axes[0]),
        lambda: x.sum(axes, keepdims=True) / (count - 1),
        lambda: x.sum(axes, keepdims=True),
        lambda: 0.999 * x.mean(axes, keepdims=True),
        lambda: x.mean(others, keepdims=True),
        lambda: step.other(x).mean(axes, keepdims=True),
        lambda: lax.stop_gradient(x.max(axes, keepdims=True)),
    ]
    weights = [5, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    return x - kinds[step.rng.choice(10, p=np.divide(weights, 16))]()


@reduction(4.0)
def standardise(step, x, axes, _):
    """Slow or fast variance, the latter also with wrong means, axes and coefficients."""
    wrong = step.axes(x) if step.rng.random() < 0.15 else axes
    mean = x.mean(axes, keepdims=True)
    square, power = (x * x).mean(axes, keepdims=True), (x**2).mean(wrong, keepdims=True)
    variances = [
        lambda: ((x - mean) ** 2).mean(axes, keepdims=True),
        lambda: square - mean**2,
        lambda: jnp.maximum(0.0, power - jnp.square(mean)),
        lambda: jnp.var(x, axes, keepdims=True),
        lambda: jnp.var(x, axes, keepdims=True, ddof=1),
        lambda: square - mean * mean,
        lambda: jnp.abs(square - 0.5 * mean**2),
        lambda: jnp.abs(square - step.other(x).mean(axes, keepdims=True) ** 2),
        lambda: jnp.abs(2 * square - mean**2),
    ]
    weights = np.array([4, 4, 3, 3, 1, 2, 1, 1, 1]) / 20
    variance = variances[step.rng.choice(9, p=weights)]() + step.choose([0.0, 0.0, 0.0, tiny()])
    return step.choose([lambda v: lax.rsqrt(v), lambda v: 1 / jnp.sqrt(v)])(variance) * (x - mean)


@operation(2.0, rank=1)
def standardise_parts(step, x):
    """The fast variance of two values that are joined, also with wrong sums and numbers."""
    axis, parts = step.axis(x), [x, step.other(x)]
    joined = jnp.concatenate(parts, axis)
    sums, squares = (
        [p.sum(axis, keepdims=True) for p in q] for q in (parts, [p * p for p in parts])
    )
    number = joined.shape[axis]
    totals = [lambda: joined.sum(axis, keepdims=True), lambda: sums[0] + sums[1]]
    total = step.choose([*totals, *totals, *totals, lambda: sums[0] + 2 * sums[1]])()
    of_squares = [lambda: (joined**2).sum(axis, keepdims=True), lambda: squares[0] + squares[1]]
    wrong = [lambda: squares[0] + 2 * squares[1], lambda: squares[0], lambda: squares[1] * 2]
    square = step.choose([*of_squares, *of_squares, *of_squares, *wrong])()
    variance = (square - total**2 / step.choose([number, number, number, number - 1])) / number
    variance = step.choose([lambda v: v, lambda v: jnp.maximum(0.0, v), jnp.abs])(variance)
    return (joined - total / number) * lax.rsqrt(variance + step.choose([0.0, tiny()]))


@operation(1.5, rank=2)
def group_norm(step, x):
    need(x.shape[-1] % 2 == 0 and x.shape[-1] > 2)
    y = x.reshape(*x.shape[:-1], *step.choose([(2, x.shape[-1] // 2), (x.shape[-1] // 2, 2)]))
    axes = step.choose([(-1,), (-2,), (*range(1, y.ndim - 2), -1), (0, -1)])
    y = y - y.mean(axes, keepdims=True) if step.flag() else y
    return (y / jnp.sqrt((y * y).mean(axes, keepdims=True))).reshape(x.shape)


@operation(2.0, rank=1)
def softmax(step, x):
    kinds = [jax.nn.softmax, jax.nn.log_softmax, lambda y, axis: jnp.exp(y - y.max(axis))]
    need(x.ndim > 0)
    axis = step.axis(x)
    return step.choose(kinds[:2])(x, axis=axis)


@operation(1.0, rank=1)
def power_softmax(step, x):
    """A log-sum-exp of logarithms: homogeneous."""
    logs = step.choose([1.0, 2.0]) * jnp.log(jnp.abs(x))
    kinds = [jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp]
    return step.choose([*kinds, lambda y, axis: jnp.exp(jax.nn.logsumexp(y, axis))])(
        logs, axis=step.axis(x)
    )
