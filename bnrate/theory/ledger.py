"""The norms of plain steps, and whether recorded ones are theirs.

A step lengthens b = G / rate by |D|^2 / b, whatever the loss; hardly any other rule does so.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bnrate.ranges import in_range

_TOLERANCE, _TOLERANCE_ELSE = 1e-9, 1e-4  # of norm2, relative; in float64, and in less
SHARE = 1e-3  # of what norm2 grows by: more is not due to rounding, if that can be told
TOLD = 1e3  # times the rounding: what can be told from it


class Trace(NamedTuple):
    """What was recorded of one run at every step, of one loss on one batch; NumPy arrays.

    Attributes:
      loss: before each step, and after the last.
      norm2: G of each block, likewise.
      spherical_gradient: |D| of each block at each step: |w| |gradient|.
      rest_gradient: the norm of the gradient in the rest at each step; 0 without a rest.
    """

    loss: Float[np.ndarray, " records"]
    norm2: Float[np.ndarray, "records blocks"]
    spherical_gradient: Float[np.ndarray, "steps blocks"]
    rest_gradient: Float[np.ndarray, " steps"]


class Ledger(NamedTuple):
    """The inverse rates that follow from the first norms and from the gradients.

    Attributes:
      inverse_rate: b = norm2 / rate of each block, before each step and after the last.
      growth: what each step adds to it: small steps would be lost in a large b.
    """

    inverse_rate: Float[np.ndarray, "records blocks"]
    growth: Float[np.ndarray, "steps blocks"]


def numbers(trace: Trace) -> tuple[Trace, np.dtype]:
    """The trace in float64, and the narrowest of its dtypes."""
    arrays = Trace(*map(np.asarray, trace))
    steps, blocks = (*arrays.spherical_gradient.shape, 0, 0)[:2]
    wanted = [(steps + 1,), (steps + 1, blocks), (steps, blocks), (steps,)]
    shapes = [array.shape for array in arrays]
    if shapes != wanted or not steps * blocks:
        raise ValueError(
            "a trace of T steps and m blocks has loss (T+1,), norm2 (T+1, m), spherical_gradient "
            f"(T, m), rest_gradient (T,), with T and m at least 1; got {shapes}"
        )
    for name, array in arrays._asdict().items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be of real numbers, got dtype {array.dtype}")
    floats = [array.dtype for array in arrays if array.dtype.kind == "f"]
    dtype = min([np.dtype(float), *floats], key=lambda dtype: dtype.itemsize)
    wide = Trace(*(array.astype(float) for array in arrays))
    for name, legal in (("norm2", "(0, inf)"), ("spherical_gradient", "[0, inf)")):
        values = getattr(wide, name)
        in_range(name, values[np.isfinite(values)], legal)
    return wide, dtype


def followed(trace: Trace, rate: float) -> Ledger:
    """The ledger of plain steps from the first norms, with the recorded gradients."""
    start = trace.norm2[0] / rate
    growth, grown = np.zeros_like(trace.spherical_gradient), np.zeros_like(trace.norm2)
    for t, D in enumerate(trace.spherical_gradient):
        growth[t] = D * (D / (start + grown[t]))  # D^2 might underflow
        grown[t + 1] = grown[t] + growth[t]
    return Ledger(start + grown, growth)


def refusal(trace: Trace, ledger: Ledger, rate: float, every: int, dtype: np.dtype) -> str | None:
    """Why the theorem does not speak of this trace."""
    if every != 1:
        return f"one step in {every} was recorded; each step is needed"
    for name, values in trace._asdict().items():
        if not np.all(np.isfinite(values)):
            at = np.argwhere(~np.isfinite(values))[0][0]
            return f"{name} is not finite at record {at}"
    norm2 = rate * ledger.inverse_rate
    largest = np.maximum(norm2, ledger.inverse_rate)  # NaN stays
    least = np.minimum(norm2, ledger.inverse_rate)
    if not np.all((least >= np.finfo(float).tiny) & (largest < np.inf)):
        return "the norms that follow from the gradients are too large, or too small, for float64"
    wrong = _wrong(trace.norm2, norm2, rate * ledger.growth, dtype)
    if not wrong.any():
        return None
    t, block = np.argwhere(wrong)[0]
    return (
        f"norm2 of block {block} is {trace.norm2[t, block]:.12g} after {t} steps, to which plain "
        f"steps at rate {rate:g} would have led it is {norm2[t, block]:.12g}: there is decay, "
        "momentum, a projection, another rule or rate, a step left out, or the loss is not "
        "scale-invariant (the epsilon of a normalisation?)"
    )


def _wrong(
    recorded: np.ndarray, norm2: np.ndarray, growth: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Where recorded norms are none of plain steps: in all, by one step, or at the end."""
    eps = float(np.finfo(dtype).eps)
    tolerance = _TOLERANCE_ELSE if narrow(dtype) else _TOLERANCE
    wrong = np.abs(recorded - norm2) > tolerance * norm2
    by_step = np.abs(np.diff(recorded, axis=0) - growth)
    wrong[1:] |= by_step > SHARE * growth + TOLD * eps * norm2[1:]
    rounding = eps * max(TOLD, len(growth)) * norm2[-1]
    wrong[-1] |= residual(recorded, growth) > np.maximum(SHARE * growth.sum(0), rounding)
    return wrong


def narrow(dtype: np.dtype) -> bool:
    """Whether a dtype has fewer digits than float64."""
    return dtype.itemsize < 8


def residual(recorded: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """What each block grew by, and should not have."""
    return np.abs(recorded[-1] - recorded[0] - growth.sum(0))
