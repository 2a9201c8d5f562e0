"""A loss with all that is known of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member
from bnrate.ranges import in_range
from bnrate.theory.constants import Constants, Noise

Data = PyTree

W = Groups([Group([Member("w")])])
"""The vector `w` as one unit."""


class Problem(NamedTuple):
    """Something to train whose minimum, gradient and constants are known.

    The first four are arguments of `train.make_run`, to which the data are what a model keeps
    besides its parameters.  All are pure functions, and `vmap` over instances.

    Attributes:
      init: key -> parameters, and the data that define this instance.
      loss: (parameters, data, batch) -> loss on that batch, data.
      batch: (key, step) -> batch; always the same where nothing is random.
      groups: what the loss lets one scale.
      mean: (parameters, data) -> the mean of the loss over the batches: what theorems speak of.
      gradient: (parameters, data) -> the gradient of that mean; in closed form, but for networks.
      minimizer: data -> parameters at which the mean is least; None if unknown.
      constants: (parameters, data, rate of the rest) -> bounds on all that gradient descent, or SGD
        on these batches, visits from there, at that rate of the rest or lower ones; the blocks are
        the units of `groups`, in their order; None if unknown.
      noise: (parameters, data, rate of the rest) -> bounds of single batches' gradients there; None
        if there is one batch only, or if unknown.
    """

    init: Callable[[Array], tuple[PyTree, Data]]
    loss: Callable[[PyTree, Data, Any], tuple[Float[Array, ""], Data]]
    batch: Callable[[Array, Int[Array, ""]], Any]
    groups: Groups
    mean: Callable[[PyTree, Data], Float[Array, ""]]
    gradient: Callable[[PyTree, Data], PyTree]
    minimizer: Callable[[Data], PyTree] | None = None
    constants: Callable[[PyTree, Data, ArrayLike], Constants] | None = None
    noise: Callable[[PyTree, Data, ArrayLike], Noise] | None = None


def full_batch(**fields: Any) -> Problem:
    """A problem without batches: its loss is the mean."""
    mean = fields["mean"]
    return Problem(
        loss=lambda params, data, batch: (mean(params, data), data),
        batch=lambda key, step: (),
        **fields,
    )


def one_of_many(value: Callable[[PyTree, Data], Array], **fields: Any) -> Problem:
    """A problem whose loss is the value of one part of the data, drawn at each step, uniformly.

    The parts stand along the first axis of every leaf of the data.
    """
    data = jax.eval_shape(fields["init"], jax.random.key(0))[1]
    parts = jax.tree.leaves(data)[0].shape[0]
    return Problem(
        loss=lambda params, data, i: (value(params, jax.tree.map(lambda d: d[i], data)), data),
        batch=lambda key, step: jax.random.randint(jax.random.fold_in(key, step), (), 0, parts),
        **fields,
    )


def drawn(check: Callable[..., Data], *values: Any) -> Callable[[Array], Data]:
    """Key -> check(*values), with a key of its own for each value that is a function of one."""
    if not any(map(callable, values)):
        fixed = check(*values)
        return lambda key: fixed

    def draw(key: Array) -> Data:
        keys = jax.random.split(key, len(values))
        pairs = zip(values, keys, strict=True)
        return check(*(value(key) if callable(value) else value for value, key in pairs))

    return draw


def starting(
    data: Callable[[Array], Data],
    default: Callable[[Array, Data], dict[str, Array]],
    start: Any,
    groups: Groups = W,
) -> Callable[[Array], tuple[PyTree, Data]]:
    """The `init` of a problem: key -> parameters, data.

    Args:
      data: key -> data.
      default: (key, data) -> parameters.
      start: other values for some of them, by name; an array stands for `w`; or a function of the
        key to either.
      groups: which of them must not be zero.

    Raises (when it is called):
      ValueError: there are no such parameters, or they have another shape, or are zero.
    """

    def init(key: Array) -> tuple[PyTree, Data]:
        of_data, of_default, of_start = jax.random.split(key, 3)
        instance = data(of_data)
        params = default(of_default, instance)
        given = start(of_start) if callable(start) else {} if start is None else start
        given = given if isinstance(given, Mapping) else {"w": given}
        shapes = gr.leaves(params)
        checked = {
            name: _checked(name, value, shapes[name], name in groups.paths)
            for name, value in given.items()
            if name in shapes
        }
        return gr.replace(params, {**given, **checked}), instance

    return init


def normal(key: Array, like: Float[Array, "*batches d"]) -> Float[Array, " d"]:
    """A normal vector of that many entries, and of that dtype."""
    return jax.random.normal(key, like.shape[-1:], like.dtype)


def floats(what: str, value: Any, rank: int) -> Float[Array, "..."]:
    """An array of finite floats.

    Raises:
      ValueError: it has another rank; its last axis has one entry, so that the sphere would be two
        points; an entry is not finite.
    """
    array = in_range(what, value, "(-inf, inf)")
    if array.ndim != rank or array.shape[-1] < 2:
        raise ValueError(
            f"{what} must be an array of rank {rank} whose last axis, that of w, has two entries "
            f"or more; got shape {array.shape}"
        )
    return jnp.asarray(array, array.dtype)  # no longer weakly typed


def symmetric(what: str, value: Any, rank: int = 2) -> Float[Array, "*batches d d"]:
    """The symmetric part of a matrix, or of each of several: all that its quadratic form sees.

    Raises:
      ValueError: as `floats` does; it is not square.
    """
    matrix = floats(what, value, rank)
    if matrix.shape[-2] != matrix.shape[-1]:
        raise ValueError(f"{what} must be square, got shape {matrix.shape}")
    return (matrix + jnp.swapaxes(matrix, -1, -2)) / 2


def times(matrix: Float[Array, "*batches m n"], vector: Float[Array, " n"]) -> Array:
    """Matrix times vector, entry by entry: XLA's CPU is slow at products of many small matrices."""
    return jnp.sum(matrix * vector.reshape([1] * (matrix.ndim - 1) + [-1]), axis=-1)


def _checked(name: str, value: Any, like: Array, sphere: bool) -> Array:
    array = in_range(f"start of {name}", value, "(-inf, inf)")
    if array.shape != like.shape:
        raise ValueError(f"start of {name} must have shape {like.shape}, got {array.shape}")
    if sphere and not isinstance(value, Tracer) and not np.any(np.asarray(value)):
        raise ValueError(f"start of {name} is zero, which has no direction; give another vector")
    return jnp.asarray(array, like.dtype)
