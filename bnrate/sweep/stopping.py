"""Early stopping of runs that will not win: a judgement, and therefore off unless asked for."""

import math
from collections.abc import Callable, Mapping

import numpy as np


def hopeless(
    variable: str = "loss", *, factor: float, after: int, window: int = 10
) -> Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]:
    """Stop a run whose recent mean of a variable is above `factor` times the best run's.

    A heuristic: a run that starts slowly may be stopped though it would have won.  What was
    stopped, and when, is in the Dataset (`status`, `stopped_at`), and counts as worst.

    Args:
      variable: a scalar that is positive and better when lower.
      factor: above 1.
      after: no run is stopped before this step.
      window: records that are averaged.

    Raises:
      ValueError: a factor, step or window out of range; (in the sweep) no such scalar is recorded.
    """
    if not (math.isfinite(factor) and factor > 1):
        raise ValueError(f"the factor must be a number above 1, got {factor}")
    for name, value, least in (("after", after, 0), ("window", window, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")

    def stop(steps: np.ndarray, trace: Mapping[str, np.ndarray]) -> np.ndarray:
        if variable not in trace or trace[variable].ndim != 2:
            raise ValueError(
                f"no scalar '{variable}' is recorded; choose one of {', '.join(trace)}"
            )
        recent = trace[variable][:, -window:].astype(float).mean(1)
        if steps[-1] < after or not np.isfinite(recent).any():
            return np.zeros(len(recent), bool)
        return recent > factor * np.nanmin(np.where(np.isfinite(recent), recent, np.nan))

    return stop
