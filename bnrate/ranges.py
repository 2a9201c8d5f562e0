"""Numbers as arguments: refused out of range, turned into arrays of floats otherwise."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


def in_range(what: str, value: Any, legal: str, advice: str = "") -> Float[Array, "..."]:
    """A number or an array of numbers as floats, if all lie in an interval.

    Values that only a compiled program will know are NaN there if they lie outside.

    >>> in_range("momentum", 0.9, "[0, 1)")
    Array(0.9, dtype=float32, weak_type=True)
    >>> in_range("momentum", 1.5, "[0, 1)")
    Traceback (most recent call last):
      ...
    ValueError: momentum must lie in [0, 1), got 1.5

    Args:
      what: names the value in the error.
      value: of any shape.
      legal: the interval, open or closed on each side.
      advice: what to do about it, for the error.

    Raises:
      ValueError: a value lies outside, or is NaN.
    """
    if not isinstance(value, Tracer):
        numbers = _numbers(what, value, legal)
        wrong = numbers[~_inside(numbers, legal)]
        if wrong.size:
            what_to_do = f"; {advice}" if advice else ""
            raise ValueError(f"{what} must lie in {legal}, got {wrong.flat[0]:g}{what_to_do}")
    # A Python number stays weakly typed: it takes the dtype of what it meets.
    array = jnp.asarray(float(value) if isinstance(value, int) else value)
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    if not isinstance(value, Tracer):
        return array
    return jnp.where(_inside(array, legal), array, jnp.nan)


def _numbers(what: str, value: Any, legal: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biufV":  # V: bfloat16 and its like
        raise ValueError(f"{what} must be a number in {legal}, got {value!r}")
    return array.astype(float)


def _inside(numbers: Any, legal: str) -> Any:
    """Which numbers lie in an interval such as "[0, 1)"."""
    low, high = (float(end) for end in legal[1:-1].split(","))
    above = numbers >= low if legal[0] == "[" else numbers > low
    below = numbers <= high if legal[-1] == "]" else numbers < high
    return above & below
