"""A convolution whose gradients stay fast inside loops and under vmap over per-run kernels.

A convolution is a trilinear form T(x, w, y) = <conv(x, w), y> of its input x, its kernel w and the
cotangent y of its output.  The derivative of T by one of the three is a bilinear map of the other
two, and of these three *faces* consist the derivatives of any order, forward or reverse: the output
(by y), the input's gradient (by x) and the kernel's gradient (by w).  Each face is a primitive of
its own here, computed in the way that is fastest on its platform:

- XLA's CPU backend is fast in one layout, inputs NHWC and kernels HWIO, and turns others into it at
  the top of a program only.  JAX's gradients have other layouts; inside loops they are slower by
  one or two orders of magnitude.  Here the input's gradient is a convolution in the fast layout,
  and the kernel's gradient a product of matrices.  It is slow as well where the window is larger
  than the image, as in the last layers of a VGG: such images are padded first.
- vmap over runs that share one operand folds the runs into an axis that this operand lacks: into
  the output channels if they share the input, into the batch if they share the kernel.  Of runs
  that share none, the CPU takes one after the other; other platforms do what `jax.vmap` makes of
  `jax.lax` (no GPU was at hand to find a better way).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact

Inputs = Inexact[Array, "batch *space inputs"]
Kernel = Inexact[Array, "*window fan outputs"]  # fan: the inputs of a group
Outputs = Inexact[Array, "batch *places outputs"]

# What a convolution multiplies, in the order of the operands, and the index that two of them share:
# its axis in the one and in the other.
_PLACES = ("input", "kernel", "output")
_SHARED = {
    ("input", "output"): (0, 0),
    ("input", "kernel"): (-1, -2),
    ("kernel", "output"): (-1, -1),
}
# For a kernel's gradient so many places are taken together (whole images): then all that is made
# of them fits the cache.  Below so many input channels it is cheaper to shift the input only.
_TOGETHER = 2048
_MANY = 8


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, but its derivatives stay fast in loops and under vmap.

    For inputs (batch, *space, channels) and kernels (*window, inputs, outputs), which are those of
    flax.  Other layouts, other arguments, and arrays whose types name axes of a mesh are left to
    `jax.lax`.

    >>> x, w = jnp.ones((1, 4, 2)), jnp.ones((3, 2, 5))
    >>> convolve(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0, :, 0]
    Array([4., 6., 6., 4.], dtype=float32)
    """
    n = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    window = {
        "window_strides": tuple(window_strides),
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": tuple(rhs_dilation or (1,) * n),
        "dimension_numbers": numbers,
        "feature_group_count": feature_group_count,
        "precision": precision,
    }
    plain = functools.partial(lax.conv_general_dilated, **window, **others)
    result = jax.eval_shape(plain, lhs, rhs)
    layout = (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec))
    last = tuple(range(1, n + 1))
    ours = layout == ((0, n + 1, *last), (n + 1, n, *range(n)), (0, n + 1, *last))
    inexact = jnp.issubdtype(result.dtype, jnp.inexact)
    if others or not (ours and inexact) or _on_mesh(lhs) or _on_mesh(rhs):
        return plain(lhs, rhs)
    if isinstance(padding, str):
        extents = _dilated(rhs.shape[:-2], window["rhs_dilation"])
        padding = lax.padtype_to_pads(lhs.shape[1:-1], extents, window_strides, padding)
    window["padding"] = tuple((int(low), int(high)) for low, high in padding)
    window["lhs_dilation"] = tuple(lhs_dilation or (1,) * n)
    return _FACES["output"].bind(
        lhs, rhs, shape=result.shape, runs=False, batch_group_count=1, **window
    )


def multiply(
    lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, **others: Any
) -> Array:
    """`jax.lax.dot_general`, but the gradient of a matrix on the right is faster on a CPU.

    A matrix product is a convolution without a window.  What is not (..., inputs) times (inputs,
    outputs), as in a layer, is left to `jax.lax`.

    >>> multiply(jnp.ones((4, 2)), jnp.ones((2, 3)), (((1,), (0,)), ((), ())))[0]
    Array([2., 2., 2.], dtype=float32)
    """
    layer = (((lhs.ndim - 1,), (0,)), ((), ()))
    given = tuple(tuple(map(tuple, axes)) for axes in dimension_numbers)
    unusual = any(value is not None for value in others.values())
    if given != layer or rhs.ndim != 2 or lhs.dtype != rhs.dtype or unusual:
        return lax.dot_general(lhs, rhs, dimension_numbers, precision, **others)
    y = convolve(
        lhs.reshape(-1, lhs.shape[-1]), rhs, (), (), dimension_numbers=("NC", "IO", "NC"),
        precision=precision,
    )  # fmt: skip
    return y.reshape(*lhs.shape[:-1], rhs.shape[-1])


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
"""flax's `Conv`, computed by `convolve`: the same parameters, names and results."""

Dense = functools.partial(nn.Dense, dot_general=multiply)
"""flax's `Dense`, computed by `multiply`: the same parameters, names and results."""


def _on_mesh(x: Array) -> bool:
    """Whether an array's type says more than shape and dtype, which the primitives here drop.

    How it varies over a mesh (`shard_map` with `check_vma=True`) or lies on it (explicit axes).
    """
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # before jax 0.10 there was `vma` only
    varies = bool(getattr(kind, "vma", ())) if manual is None else manual != type(manual)()
    return varies or any(axis is not None for axis in kind.sharding.spec)


def _dilated(sizes: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, d * (n - 1) + 1) for n, d in zip(sizes, dilations, strict=True))


def _wide(dtype: Any) -> Any:
    """In which sums are kept."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


# The three faces, for one run.  Each takes the other two of its places.


def _output(x: Inputs, w: Kernel, *, shape: tuple[int, ...], **window: Any) -> Outputs:
    if len(shape) == 2 and window["feature_group_count"] == 1:
        return _product(x, w, window)
    return _convolved(x, w, **window)


def _input_gradient(w: Kernel, y: Outputs, *, shape: tuple[int, ...], **window: Any) -> Inputs:
    """As a convolution of y, spread out by the strides, with the kernel turned round."""
    groups, dilations = window["feature_group_count"], window["rhs_dilation"]
    if len(shape) == 2 and groups == 1:
        return _product(y, w.T, window)
    extents = _dilated(w.shape[:-2], dilations)
    padding = []
    sizes = zip(
        _dilated(shape[1:-1], window["lhs_dilation"]), extents,
        _dilated(y.shape[1:-1], window["window_strides"]), window["padding"], strict=True,
    )  # fmt: skip
    for n, extent, places, (low, _) in sizes:
        before = extent - 1 - low
        padding.append((before, n + extent - 1 - places - before))
    turned = lax.rev(w, range(w.ndim - 2))
    turned = turned.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)
    turned = jnp.moveaxis(turned, (-3, -1), (-1, -3))  # (*window, outputs of a group, groups, in)
    turned = turned.reshape(*w.shape[:-2], w.shape[-1] // groups, groups * w.shape[-2])
    strides = {"window_strides": window["lhs_dilation"], "lhs_dilation": window["window_strides"]}
    return _convolved(y, turned, **{**window, **strides, "padding": padding})


def _kernel_gradient(x: Inputs, y: Outputs, *, shape: tuple[int, ...], **window: Any) -> Kernel:
    """As products of matrices, over a few images at a time."""
    groups = window["feature_group_count"]
    if not y.size or not x.size:
        return jnp.zeros(shape, x.dtype)
    if len(shape) == 2 and groups == 1:
        return _kernel_gradient_of_layer(x, y, window)
    few = _most_images(x.shape[0], math.prod(y.shape[1:-1]))
    if groups > 1:
        x = x.reshape(*x.shape[:-1], groups, -1)
        y = y.reshape(*y.shape[:-1], groups, -1)
    product = functools.partial(_of_few, window=shape[:-2], **window)
    product = product if groups == 1 else jax.vmap(product, in_axes=-2, out_axes=-2)

    def add(total: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        return total + product(*images), None

    batches = jax.tree.map(lambda a: a.reshape(-1, few, *a.shape[1:]), (x, y))
    each = (*shape[:-1], groups, -1) if groups > 1 else shape
    total = lax.scan(add, jnp.zeros(shape, _wide(x.dtype)).reshape(each), batches)[0]
    return total.reshape(shape).astype(x.dtype)


def _convolved(
    x: Inputs,
    w: Kernel,
    *,
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    **window: Any,
) -> Outputs:
    """A convolution in the fast layout.

    If the window is larger than the image, XLA has no fast way, and takes twenty times as long; so
    the image is padded first.  The barrier keeps XLA from seeing that this is the same.
    """
    sizes, extents = _dilated(x.shape[1:-1], lhs_dilation), _dilated(w.shape[:-2], rhs_dilation)
    if any(size < extent for size, extent in zip(sizes, extents, strict=True)):
        edges = [(*edge, d - 1) for edge, d in zip(padding, lhs_dilation, strict=True)]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        x = lax.optimization_barrier(x)
        padding, lhs_dilation = [(0, 0)] * len(edges), (1,) * len(edges)
    return lax.conv_general_dilated(
        x, w, padding=padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, **window
    )


def _product(a: Array, b: Array, window: dict[str, Any]) -> Array:
    """Of matrices: what there is to do without a window."""
    wide = {"precision": window["precision"], "preferred_element_type": _wide(a.dtype)}
    return lax.dot(a, b, **wide).astype(a.dtype)


def _kernel_gradient_of_layer(x: Array, y: Array, window: dict[str, Any]) -> Array:
    """A product that is several times faster with its short side, the outputs, in front.

    The barriers keep XLA from turning it round again.
    """
    if y.shape[-1] >= x.shape[-1]:
        return _product(x.T, y, window)
    turned = _product(lax.optimization_barrier(y.T), x, window)
    return lax.optimization_barrier(turned).T


def _most_images(images: int, places: int) -> int:
    """As many as divide them evenly and have few enough places together, at least one."""
    most = max(1, _TOGETHER // places)
    return max(n for n in range(1, min(images, most) + 1) if images % n == 0)


def _of_few(
    x: Inputs,
    y: Outputs,
    *,
    window: tuple[int, ...],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    precision: Any,
    **_: Any,
) -> Kernel:
    """The kernel's gradient as products of matrices (entries and inputs, places) (places, outputs).

    Entry (i, j) of the window is the sum over places of x shifted by (i, j) times y.  Shifts of x
    are copies; for one axis y is shifted instead, the other way, where that saves copies.  The
    products are fastest if the places are the last axis of the one and the first of the other, so
    x is transposed.
    """
    apart = y.ndim > 3 and window_strides[0] == lhs_dilation[0] == 1 and x.shape[-1] >= _MANY
    sizes, entries, shifted = list(y.shape[1:-1]), list(window), [y]
    edges = [(*edge, d - 1) for edge, d in zip(padding, lhs_dilation, strict=True)]
    if apart:
        shifted = _shifted(y, x.shape[1], padding[0][0], window[0], rhs_dilation[0])
        sizes[0], edges[0], entries[0] = x.shape[1], (0, 0, 0), 1
    x = lax.pad(jnp.moveaxis(x, -1, 0), jnp.zeros((), x.dtype), [(0, 0, 0)] * 2 + edges)
    limits = [s * (n - 1) + 1 for s, n in zip(window_strides, sizes, strict=True)]

    def at(entry: tuple[int, ...]) -> Array:
        starts = [i * d for i, d in zip(entry, rhs_dilation, strict=True)]
        ends = [start + limit for start, limit in zip(starts, limits, strict=True)]
        return lax.slice(x, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *window_strides))

    left = jnp.stack([at(entry) for entry in itertools.product(*map(range, entries))])
    left = left.reshape(-1, x.shape[1] * math.prod(sizes))
    products = [
        lax.dot(
            left,
            right.reshape(-1, y.shape[-1]),
            precision=precision,
            preferred_element_type=_wide(x.dtype),
        )
        for right in shifted
    ]
    return jnp.stack(products).reshape(*window, x.shape[0], y.shape[-1])


def _shifted(y: Array, rows: int, low: int, entries: int, dilation: int) -> list[Array]:
    """For each entry of the window's first axis, y as seen from the rows of x; zero beyond."""
    before = max(0, dilation * (entries - 1) - low)
    after = max(0, rows + low - y.shape[1])
    y = jnp.pad(y, [(0, 0), (before, after), *[(0, 0)] * (y.ndim - 2)])
    starts = [before + low - i * dilation for i in range(entries)]
    return [lax.slice_in_dim(y, start, start + rows, axis=1) for start in starts]


# What JAX makes of them, for platforms on which that is good.


def _plain_output(x: Inputs, w: Kernel, *, shape: tuple[int, ...], **window: Any) -> Outputs:
    if len(shape) == 2:  # there is no window
        return _output(x, w, shape=shape, **window)
    return lax.conv_general_dilated(x, w, **window)


def _plain_input_gradient(
    w: Kernel, y: Outputs, *, shape: tuple[int, ...], **window: Any
) -> Inputs:
    like = jax.ShapeDtypeStruct(shape, w.dtype)
    return jax.linear_transpose(lambda x: lax.conv_general_dilated(x, w, **window), like)(y)[0]


def _plain_kernel_gradient(
    x: Inputs, y: Outputs, *, shape: tuple[int, ...], **window: Any
) -> Kernel:
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda w: lax.conv_general_dilated(x, w, **window), like)(y)[0]


# The three faces as primitives.


def _operands(face: str) -> list[str]:
    return [place for place in _PLACES if place != face]


def _derivative(face: str, by: str) -> Callable[..., Array]:
    """The cotangent of one operand: that operand's face, of the cotangent and the other operand."""

    def rule(cotangent: Array, *operands: Any, **params: Any) -> Array:
        values = dict(zip(_operands(face), operands, strict=True))
        shape = values[by].aval.shape[1 if params["runs"] else 0 :]
        values[face] = cotangent
        others = [values[place] for place in _operands(by)]
        return _FACES[by].bind(*others, **{**params, "shape": shape})

    return rule


def _batched(
    face: str, operands: Sequence[Array], dims: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    """The face for many runs: folded into an axis if one operand is shared, or run by run."""
    places, shape, runs = _operands(face), params["shape"], params["runs"]
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    fronted = [
        x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)
    ]
    mapped = [place for place, d in zip(places, dims, strict=True) if d is not None]
    first, second = (place for place in _PLACES if place in (face, mapped[0]))
    axes = dict(zip((first, second), _SHARED[first, second], strict=True))
    if len(mapped) == 1 and not runs and (axes[face] == 0 or params["feature_group_count"] == 1):
        fold = functools.partial(_fold, axis=axes[mapped[0]])
        folded = [fold(x) if p in mapped else x for p, x in zip(places, fronted, strict=True)]
        axis = axes[face] % len(shape)
        split = (*shape[:axis], size, *shape[axis:])
        shape = (*shape[:axis], size * shape[axis], *shape[axis + 1 :])
        result = _FACES[face].bind(*folded, **{**params, "shape": shape})
        return result.reshape(split), axis
    spread = [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else x
        for x, d in zip(fronted, dims, strict=True)
    ]
    if not runs:
        return _FACES[face].bind(*spread, **{**params, "runs": True}), 0
    merged = [x.reshape(-1, *x.shape[2:]) for x in spread]
    result = _FACES[face].bind(*merged, **params)
    return result.reshape(size, -1, *shape), 0


def _fold(x: Array, axis: int) -> Array:
    """The leading axis as the outer part of an axis of the rest."""
    axis %= x.ndim - 1
    sizes = x.shape[1:]
    merged = (*sizes[:axis], x.shape[0] * sizes[axis], *sizes[axis + 1 :])
    return jnp.moveaxis(x, 0, axis).reshape(merged)


def _many(one: Callable[..., Array], each: Callable[..., Any]) -> Callable[..., Array]:
    """A face for one run or, by `each`, for many."""

    def way(a: Array, b: Array, *, runs: bool, **params: Any) -> Array:
        face = functools.partial(one, **params)
        return each(face, a, b) if runs else face(a, b)

    return way


def _one_by_one(face: Callable[..., Array], a: Array, b: Array) -> Array:
    return lax.map(lambda operands: face(*operands), (a, b))


def _together(face: Callable[..., Array], a: Array, b: Array) -> Array:
    return jax.vmap(face)(a, b)


@functools.cache
def _compiled(face: str, **params: Any) -> Callable[..., Array]:
    return jax.jit(functools.partial(_FACES[face].bind, **params))


def _abstract(a: Any, b: Any, *, shape: tuple[int, ...], runs: bool, **_: Any) -> Any:
    del b
    return ShapedArray((*a.shape[:1], *shape) if runs else shape, a.dtype)


def _made(face: str, on_cpu: Callable[..., Array], elsewhere: Callable[..., Array]) -> Primitive:
    made = Primitive("convolve" if face == "output" else f"convolve_{face}")
    made.def_impl(lambda *operands, **params: _compiled(face, **params)(*operands))
    made.def_abstract_eval(_abstract)
    ad.defbilinear(made, *(_derivative(face, by) for by in _operands(face)))
    batching.primitive_batchers[made] = functools.partial(_batched, face)
    elsewhere, on_cpu = _many(elsewhere, _together), _many(on_cpu, _one_by_one)
    mlir.register_lowering(made, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(made, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return made


_FACES = {
    "output": _made("output", _output, _plain_output),
    "input": _made("input", _input_gradient, _plain_input_gradient),
    "kernel": _made("kernel", _kernel_gradient, _plain_kernel_gradient),
}
