"""In which floating-point numbers a loss is tried: float64, or its own where that breaks it."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from bnrate import objective
from bnrate.invariance import _program

COARSEST = 1e-6  # the rounding of float32 is finer, that of bfloat16 is not


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes in which a loss was tried, and what that leaves to be seen.

    Attributes:
      double: whether all that is floating was float64; else everything had its own dtype.
      rounding: the coarsest relative rounding inside the program (it may cast to less).
      reason: why not float64; empty if it was.
    """

    double: bool
    rounding: float
    reason: str = ""

    @property
    def noise(self) -> float:
        """What counts as rounding, relative to the numbers that it is found in."""
        return (100 if self.rounding <= COARSEST else 10) * self.rounding

    @property
    def tolerance(self) -> float:
        """The smallest residual that can be told from rounding."""
        return min(1000 * self.rounding, 0.5)

    def __str__(self) -> str:
        if self.double:
            return f"in float64, with a rounding of {self.rounding:.1e}"
        return (
            f"in the program's own dtypes, with a rounding of {self.rounding:.1e}: float64 breaks "
            f"it ({self.reason})"
        )

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Where to compute in these dtypes."""
        return jax.enable_x64(True) if self.double else contextlib.nullcontext()

    def like(self, leaf: Any, values: np.ndarray) -> Array:
        """New values for a leaf, in its dtype."""
        return jnp.asarray(values, self.dtype(leaf))

    def dtype(self, leaf: Any) -> Any:
        """The dtype in which a leaf is tried."""
        return jnp.float64 if self.double else jax.dtypes.canonicalize_dtype(leaf.dtype)

    def arguments(self, args: PyTree) -> PyTree:
        """Arguments of the loss in these dtypes."""
        return jax.tree.map(_double, args) if self.double else args


def choose(
    loss: Callable[..., Any], params: PyTree, args: Sequence[Any]
) -> tuple[Precision, ClosedJaxpr]:
    """Trace a loss in float64 or, where that fails, in its own dtypes.

    Raises:
      ValueError: it can be traced in neither; it is too coarse to tell anything.
    """
    for place in jax.tree.leaves(args):
        if isinstance(place, jax.ShapeDtypeStruct):
            raise ValueError(f"an argument of the loss is only a shape ({place}); give values")
    leaves = objective.parameters(params).values()
    own = max(float(jnp.finfo(jax.dtypes.canonicalize_dtype(leaf.dtype)).eps) for leaf in leaves)
    double, reason = Precision(True, 0.0), ""
    try:
        with double.context():
            shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float64), params)
            program = objective.trace(loss, shapes, double.arguments(tuple(args)))
    except ValueError as error:
        program = objective.trace(loss, params, args)
        reason = str(error).removeprefix(objective.UNTRACED).split(". ")[0]
    dtype = program.out_avals[0].dtype
    if float(jnp.finfo(dtype).eps) > COARSEST:
        raise ValueError(f"the loss is {dtype}; compute it in float32 or wider")
    rounding = max(_program.rounding(program, len(leaves)), own if reason else 0.0)
    return Precision(not reason, rounding, reason), program


def _double(leaf: Any) -> Any:
    """Floating arrays in float64, anything else as it is."""
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    # By way of numpy, which need not compile a conversion.
    return jnp.asarray(np.asarray(leaf, np.float64)) if floating else leaf
