"""NumPy evaluation of a jaxpr: no compilation, so that thousands of small programs run quickly.

A primitive without a rule here is evaluated by JAX itself. Control flow is run in Python.
"""

import math
from functools import partial

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal
from scipy import special

RULES = {}


def rule(*names):
    def register(function):
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def evaluate(closed, *arguments):
    """The outputs of a closed jaxpr at these flat arguments, as arrays."""
    with np.errstate(all="ignore"):
        return run(closed.jaxpr, closed.consts, arguments)


def run(jaxpr, consts, arguments):
    values = dict(zip(jaxpr.constvars, map(plain, consts), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        known = RULES.get(eqn.primitive.name)
        out = known(*operands, **eqn.params) if known else by_jax(eqn, operands)
        values.update(
            zip(eqn.outvars, out if isinstance(out, (list, tuple)) else [out], strict=True)
        )
    return [read(atom) for atom in jaxpr.outvars]


def plain(value):
    """A NumPy array of an array; random keys stay as they are."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def by_jax(eqn, operands):
    params = eqn.primitive.get_bind_params(eqn.params)
    operands = [jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x for x in operands]
    out = eqn.primitive.bind(*operands, **params)
    return [plain(x) for x in out] if eqn.primitive.multiple_results else plain(out)


# Elementwise.

POINTWISE = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "abs": np.abs, "sign": np.sign, "square": np.square,
    "sqrt": np.sqrt, "cbrt": np.cbrt, "exp": np.exp, "exp2": np.exp2, "log": np.log,
    "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "logistic": special.expit, "erf": special.erf, "erf_inv": special.erfinv, "pow": np.power,
    "floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite, "atan2": np.arctan2,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.invert, "rem": np.fmod, "real": np.real, "imag": np.imag, "conj": np.conj,
    "stop_gradient": np.asarray, "copy": np.asarray, "copy_p": np.asarray,
    "complex": lambda x, y: x + 1j * y, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


def bare(function):
    """The function without the parameters of the primitive."""
    return lambda *operands, **_: function(*operands)


RULES.update({name: bare(function) for name, function in POINTWISE.items()})


@rule("div")
def div(x, y):
    return x / y if np.issubdtype(x.dtype, np.inexact) else np.trunc(x / y).astype(x.dtype)


@rule("integer_pow")
def integer_pow(x, y):
    return x**y if y >= 0 else 1 / x**-y


@rule("select_n")
def select_n(which, *cases):
    out = cases[0]
    for k, case in enumerate(cases[1:], 1):
        out = np.where(np.equal(which, k), case, out)
    return out


@rule("clamp")
def clamp(low, x, high):
    return np.minimum(np.maximum(x, low), high)


@rule("convert_element_type")
def convert(x, new_dtype, **_):
    return np.asarray(x).astype(new_dtype)


@rule("iota")
def iota(*, dtype, shape, dimension, **_):
    ones = [n if k == dimension else 1 for k, n in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(ones), shape)


# Structure.


@rule("broadcast_in_dim")
def broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    sizes = dict(zip(broadcast_dimensions, np.shape(x), strict=True))
    return np.broadcast_to(np.reshape(x, [sizes.get(k, 1) for k in range(len(shape))]), shape)


RULES |= {
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "expand_dims": lambda x, dimensions: np.expand_dims(x, tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "split": lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "optimization_barrier": lambda *xs: list(xs),
}


@rule("reshape")
def reshape(x, *, new_sizes, dimensions, **_):
    return np.reshape(x if dimensions is None else np.transpose(x, dimensions), new_sizes)


@rule("slice")
def slice_(x, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))]


@rule("pad")
def pad(x, fill, padding_config):
    """Edges, which may be negative, and holes."""
    sizes = [
        n + max(0, n - 1) * hole for n, (_, _, hole) in zip(x.shape, padding_config, strict=True)
    ]
    whole = [
        max(0, low) + n + max(0, high)
        for n, (low, high, _) in zip(sizes, padding_config, strict=True)
    ]
    out = np.full(whole, fill, x.dtype)
    spots = zip(sizes, padding_config, strict=True)
    out[tuple(slice(max(0, lo), max(0, lo) + n, hole + 1) for n, (lo, _, hole) in spots)] = x
    edges = [
        slice(max(0, -lo), n - max(0, -hi))
        for n, (lo, hi, _) in zip(whole, padding_config, strict=True)
    ]
    return out[tuple(edges)]


def window_start(start, sizes, shape):
    return [min(max(0, int(s)), n - k) for s, k, n in zip(start, sizes, shape, strict=True)]


@rule("dynamic_slice")
def dynamic_slice(x, *start, slice_sizes):
    return window(x, window_start(start, slice_sizes, x.shape), slice_sizes)


@rule("dynamic_update_slice")
def dynamic_update_slice(x, update, *start):
    out = np.array(x)
    window(out, window_start(start, update.shape, x.shape), update.shape)[...] = update
    return out


def window(x, start, sizes):
    return x[tuple(slice(s, s + k) for s, k in zip(start, sizes, strict=True))]


def places(indices, dims, batching, sizes, shape, mode):
    """Each window's place among the indices, with its start (None: outside, left out)."""
    operand_batching, indices_batching = batching
    for place in np.ndindex(indices.shape[:-1]):
        start = [0] * len(shape)
        for axis, value in zip(dims, indices[place], strict=True):
            start[axis] = int(value)
        for axis, at in zip(operand_batching, indices_batching, strict=True):
            start[axis] = place[at]
        inside = window_start(start, sizes, shape)
        drop = mode == lax.GatherScatterMode.FILL_OR_DROP and inside != start
        yield place, None if drop else inside


@rule("gather")
def gather(x, indices, *, dimension_numbers, slice_sizes, mode, fill_value, **_):
    d = dimension_numbers
    gone = tuple(sorted({*d.collapsed_slice_dims, *d.operand_batching_dims}))
    kept = [n for axis, n in enumerate(slice_sizes) if axis not in gone]
    empty = np.nan if fill_value is None and x.dtype.kind == "f" else fill_value or 0
    out = np.full((*indices.shape[:-1], *kept), empty, x.dtype)
    batching = d.operand_batching_dims, d.start_indices_batching_dims
    for place, start in places(indices, d.start_index_map, batching, slice_sizes, x.shape, mode):
        if start is not None:
            out[place] = np.squeeze(window(x, start, slice_sizes), gone)
    return np.moveaxis(out, range(indices.ndim - 1, out.ndim), d.offset_dims)


@rule("scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max")
def scatter(x, indices, updates, *, dimension_numbers, mode, combine=None, **_):
    d = dimension_numbers
    gone = tuple(sorted({*d.inserted_window_dims, *d.operand_batching_dims}))
    first = len(indices.shape) - 1
    updates = np.moveaxis(updates, d.update_window_dims, range(first, updates.ndim))
    kept = iter(updates.shape[first:])
    sizes = [1 if axis in gone else next(kept) for axis in range(x.ndim)]
    batching = d.operand_batching_dims, d.scatter_indices_batching_dims
    spots = places(indices, d.scatter_dims_to_operand_dims, batching, sizes, x.shape, mode)
    out = np.array(x)
    for place, start in spots:
        if start is not None:
            part = window(out, start, sizes)
            new = np.expand_dims(updates[place], gone)
            part[...] = combine(part, new) if combine else new
    return out


for _names, _combine in {
    ("scatter-add", "scatter_add"): np.add,
    ("scatter_mul",): np.multiply,
    ("scatter_min",): np.minimum,
    ("scatter_max",): np.maximum,
}.items():
    rule(*_names)(partial(scatter, combine=_combine))


# Products.


@rule("dot_general")
def dot_general(x, y, *, dimension_numbers, **_):
    (left, right), (left_batch, right_batch) = dimension_numbers
    xs = list(range(x.ndim))
    ys = [x.ndim + k for k in range(y.ndim)]
    for a, b in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        ys[b] = xs[a]
    free = [xs[k] for k in range(x.ndim) if k not in (*left, *left_batch)]
    free += [ys[k] for k in range(y.ndim) if k not in (*right, *right_batch)]
    return np.einsum(x, xs, y, ys, [*(xs[k] for k in left_batch), *free])


@rule("conv_general_dilated")
def conv(x, w, *, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **groups):
    x, w = x.transpose(dimension_numbers.lhs_spec), w.transpose(dimension_numbers.rhs_spec)
    holes = [(low, high, d - 1) for (low, high), d in zip(padding, lhs_dilation, strict=True)]
    x = pad(x, 0.0, [(0, 0, 0), (0, 0, 0), *holes])
    w = pad(w, 0.0, [(0, 0, 0), (0, 0, 0), *((0, 0, d - 1) for d in rhs_dilation)])
    n = len(window_strides)
    x = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], range(2, 2 + n))
    x = x[(slice(None), slice(None), *(slice(None, None, s) for s in window_strides))]
    batched, featured = groups["batch_group_count"], groups["feature_group_count"]
    group = max(batched, featured)
    x = x.reshape(batched, -1, featured, x.shape[1] // featured, *x.shape[2:])
    x = x.swapaxes(1, 2).reshape(group, *x.shape[1:2], *x.shape[3:])
    w = w.reshape(group, -1, *w.shape[1:])
    out, window = [*range(4, 4 + n)], [*range(4 + n, 4 + 2 * n)]
    y = np.einsum(x, [0, 1, 2, *out, *window], w, [0, 3, 2, *window], [1, 0, 3, *out])
    return y.reshape(y.shape[0], -1, *y.shape[3:]).transpose(np.argsort(dimension_numbers.out_spec))


# Reductions.

REDUCTIONS = {
    "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod,
    "reduce_and": np.all, "reduce_or": np.any,
}  # fmt: skip
ACCUMULATIONS = {
    "cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum,
    "cumlogsumexp": np.logaddexp,
}  # fmt: skip


def reduce(x, axes, *, function, **_):
    return function(x, tuple(axes))


def accumulate(x, axis, reverse, *, ufunc):
    turn = partial(np.flip, axis=axis) if reverse else np.asarray
    return turn(ufunc.accumulate(turn(x), axis))


RULES.update({name: partial(reduce, function=function) for name, function in REDUCTIONS.items()})
RULES.update({name: partial(accumulate, ufunc=ufunc) for name, ufunc in ACCUMULATIONS.items()})
RULES |= {
    "argmax": lambda x, axes, index_dtype: np.argmax(x, axes[0]).astype(index_dtype),
    "argmin": lambda x, axes, index_dtype: np.argmin(x, axes[0]).astype(index_dtype),
}


def reduce_window(x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation,
                  start, reduce):  # fmt: skip
    edges = [(low, high, d - 1) for (low, high), d in zip(padding, base_dilation, strict=True)]
    spans = [(k - 1) * d + 1 for k, d in zip(window_dimensions, window_dilation, strict=True)]
    x = np.lib.stride_tricks.sliding_window_view(pad(x, start, edges), spans)
    strides = [slice(None, None, s) for s in (*window_strides, *window_dilation)]
    return reduce(x[tuple(strides)], tuple(range(len(spans), 2 * len(spans))))


RULES |= {
    "reduce_window_sum": partial(reduce_window, start=0.0, reduce=np.sum),
    "reduce_window_max": partial(reduce_window, start=-math.inf, reduce=np.max),
    "reduce_window_min": partial(reduce_window, start=math.inf, reduce=np.min),
}


@rule("sort")
def sort(*operands, dimension, num_keys, **_):
    order = np.lexsort(operands[:num_keys][::-1], dimension)
    return [np.take_along_axis(x, order, dimension) for x in operands]


@rule("top_k")
def top_k(x, *, k, axis, **_):
    order = np.take(np.argsort(-x, axis, kind="stable"), range(k), axis)
    return [np.take_along_axis(x, order, axis), order.astype(np.int32)]


# Calls and control flow.


@rule("jit", "pjit", "closed_call", "core_call")
def call(*operands, jaxpr, **_):
    return run(jaxpr.jaxpr, jaxpr.consts, operands)


@rule("custom_jvp_call", "custom_vjp_call")
def custom(*operands, call_jaxpr, **_):
    return run(call_jaxpr.jaxpr, call_jaxpr.consts, operands)


@rule("remat2", "checkpoint")
def remat(*operands, jaxpr, **_):
    return run(jaxpr, (), operands)


@rule("cond")
def cond(index, *operands, branches, **_):
    return call(*operands, jaxpr=branches[min(max(0, int(index)), len(branches) - 1)])


@rule("while")
def while_(*operands, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts):
    cond_consts, rest = operands[:cond_nconsts], operands[cond_nconsts:]
    body_consts, state = rest[:body_nconsts], rest[body_nconsts:]
    for _ in range(200):
        if not call(*cond_consts, *state, jaxpr=cond_jaxpr)[0]:
            return list(state)
        state = call(*body_consts, *state, jaxpr=body_jaxpr)
    return [np.full_like(x, np.nan if x.dtype.kind == "f" else 0) for x in state]


@rule("scan")
def scan(*operands, jaxpr, length, reverse, num_consts, num_carry, **_):
    consts, rest = operands[:num_consts], operands[num_consts:]
    carry, xs = rest[:num_carry], rest[num_carry:]
    outputs = [None] * length
    for k in range(length)[:: -1 if reverse else 1]:
        out = call(*consts, *carry, *(x[k] for x in xs), jaxpr=jaxpr)
        carry, outputs[k] = out[:num_carry], out[num_carry:]
    return [*carry, *(np.stack(ys) for ys in zip(*outputs, strict=True))]
