"""Early stopping of runs that will not win: a judgement, and therefore off unless asked for."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int, Shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hopeless:
    """Stop a run whose recent mean of a variable is above `factor` times the best run's.

    A heuristic: a run that starts slowly may be stopped though it would have won.  What was
    stopped, and when, is in the Dataset (`status`, `stopped_at`), and counts as worst.  The best
    run is that of the same combination of static axes, and of the same process or shard.

    Attributes:
      factor: above 1.
      after: no run is stopped before this step.
      variable: a scalar that is positive and better when lower.
      window: records that are averaged.

    Raises:
      ValueError: a factor, step or window out of range; (in the sweep) no such scalar is recorded.
    """

    factor: float
    after: int
    variable: str = "loss"
    window: int = 10

    def __post_init__(self):
        if not (math.isfinite(self.factor) and self.factor > 1):
            raise ValueError(f"the factor must be a number above 1, got {self.factor}")
        for name, value, least in (("after", self.after, 0), ("window", self.window, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def __call__(
        self,
        steps: Int[np.ndarray, " records"],
        trace: Mapping[str, Shaped[np.ndarray, "runs records ..."]],
    ) -> Bool[np.ndarray, " runs"]:
        """Which runs need not go on."""
        if self.variable not in trace or trace[self.variable].ndim != 2:
            scalars = ", ".join(name for name, values in trace.items() if values.ndim == 2)
            raise ValueError(f"no scalar '{self.variable}' is recorded; there are {scalars}")
        recent = trace[self.variable][:, -self.window :].astype(float).mean(1)
        finite = np.isfinite(recent)
        if steps[-1] < self.after or not finite.any():
            return np.zeros(len(recent), bool)
        return recent > self.factor * recent[finite].min()
