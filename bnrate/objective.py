"""A loss and its parameters as users bring them: what is asked of both, and what to do about it.

Every witness looks at `loss(params, *args)` through this module, so that bad input is refused in
one place and in one wording.

    >>> import jax.numpy as jnp
    >>> program = trace(lambda params, x: jnp.sum(params["w"] * x), {"w": jnp.ones(3)}, (2.0,))
    >>> program.out_avals
    [ShapedArray(float32[])]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from bnrate import groups as gr

UNTRACED = "the loss could not be traced for these parameters and arguments: "
_BIND = "bind it with functools.partial, as in functools.partial(loss, train=True)"


def parameters(params: PyTree) -> dict[str, Any]:
    """Return the leaves by path, after a check that they are arrays of floats.

    Shapes (`jax.ShapeDtypeStruct`) do as well.

    Raises:
      ValueError: there are none; or one is of integers, bools, complex numbers, or no array.
    """
    found = gr.leaves(params)
    if not found:
        raise ValueError("there are no parameters")
    for path, leaf in found.items():
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise ValueError(
                f"leaf '{path}' is {getattr(leaf, 'dtype', type(leaf).__name__)}; parameters must "
                f"be arrays of floats: {_remedy(leaf)}"
            )
    return found


def finite(params: PyTree) -> dict[str, Any]:
    """Return the leaves by path, after a check that they are finite arrays of floats.

    Raises:
      ValueError: as `parameters`; or a leaf is only a shape; or it is not finite.
    """
    found = parameters(params)
    for path, leaf in found.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"leaf '{path}' is only a shape; numbers are tried at values")
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(f"leaf '{path}' is not finite")
    return found


def scalar(output: Any) -> Array:
    """Return the loss in what a loss function returned: a scalar, or the first of a tuple.

    Raises:
      ValueError: that is neither a floating scalar nor a tuple that begins with one.
    """
    value: Any = output[0] if isinstance(output, tuple) and output else output
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", type(value).__name__)
    if shape == () and jnp.issubdtype(dtype, jnp.floating):
        return value
    vector = bool(shape) and jnp.issubdtype(dtype, jnp.floating)
    raise _NotScalarError(
        "the loss must return a floating scalar, or a tuple that begins with one; "
        f"got {dtype} of shape {shape}" + (": reduce it, by jnp.mean say" if vector else "")
    )


def trace(loss: Callable[..., Any], params: PyTree, args: Sequence[Any]) -> ClosedJaxpr:
    """Trace a loss; its inputs are the leaves of the parameters, then those of the arguments.

    Raises:
      ValueError: an argument is no array; the loss cannot be traced for these shapes; it does not
        return what `scalar` asks for.
    """
    for place, leaf in _arguments(args):
        if not _is_array(leaf):
            what = repr(leaf) if isinstance(leaf, str) else f"a {type(leaf).__name__}"
            raise ValueError(f"{place} of the loss is {what}, which is no array: {_BIND}")
    try:
        return jax.make_jaxpr(lambda params, *args: scalar(loss(params, *args)))(params, *args)
    except _NotScalarError as error:
        raise ValueError(str(error)) from None  # without JAX's remark on its own frames
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{UNTRACED}{type(error).__name__}: {lines[0].rstrip(':') if lines else ''}"
            f"{_hint(error, args)}"
        ) from error


class _NotScalarError(ValueError):
    """The loss is no floating scalar."""


def _remedy(leaf: Any) -> str:
    if isinstance(leaf, float):
        return "make it one with jnp.asarray, or pass it as an argument of the loss"
    return (
        "take it out of the tree of parameters (equinox.partition does) and pass it as an argument "
        "of the loss"
    )


def _arguments(args: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of the arguments, each with where it stands."""
    for number, argument in enumerate(args, 1):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(argument):
            inside = jax.tree_util.keystr(keys)
            yield f"argument {number} after the parameters{inside and f' (at {inside})'}", leaf


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSU"
    return (
        hasattr(leaf, "dtype")
        or hasattr(leaf, "__jax_array__")
        or isinstance(leaf, complex | float | int)
    )


def _hint(error: Exception, args: Sequence[Any]) -> str:
    """What to do, if the loss wants a named axis, or to know a value while it is traced."""
    if "unbound axis name" in str(error):
        return (
            " (a normalisation with an axis_name works within a mapped function: wrap the loss of "
            "one example, as in jax.vmap(one, axis_name=...)(batch).mean())"
        )
    if not (isinstance(error, jax.errors.JAXTypeError) or "Tracer" in str(error)):
        return ""
    for place, leaf in _arguments(args):
        if isinstance(leaf, bool | int):
            return f" ({place} is {leaf!r}: {_BIND})"
    return (
        " (it looks at a value that is known only when it runs: use jnp.where or jax.lax.cond; if "
        "it is an argument that never changes, bind it with functools.partial)"
    )
