"""Why no rate does better: a loss on which every method needs as many steps as the chain is long.

The radius is 46 sqrt(n), so that the spherical gradient is proved to stay above half of it for the
first n steps, at any rate.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import optax

from bnrate import losses, train
from bnrate.experiments import known
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import chain as theory

if TYPE_CHECKING:
    import xarray as xr

_RATES = tuple(10.0**power for power in range(-8, 2))
_EXTENT = Extent(_RATES, seeds=1, steps=4_000)
LENGTHS = {f"chain-{length}": length for length in (10, 20, 40, 80, 160)}


def lower_bound(config: Config, **options: Any) -> "xr.Dataset":
    """Steps until the gradient is small on chains: at best as many as a chain is long."""
    asked = known.asked("lower-bound", config, _EXTENT)

    def make(problem: str) -> train.Run:
        chain = losses.chain(LENGTHS[problem])
        return known.run_of(chain, lambda rates: optax.sgd(rates.invariant))

    axes = {"problem": tuple(LENGTHS), "rate": asked.rates, "seed": range(asked.seeds)}
    labels = {"length": ("problem", list(LENGTHS.values()))}
    ds = known.swept("lower-bound", config, asked, make, axes, asked.steps, options, labels)
    return against_floor(ds)


def against_floor(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with `needed`: after how many steps the gradient is below half of the radius.

    NaN where it never is.

    Args:
      ds: what `lower_bound` recorded; `gradient2` of record t is after t steps.
    """
    small = ds["gradient2"] < (theory.RADIUS * np.sqrt(ds["length"]) / 2) ** 2
    return ds.assign(needed=small.argmax("step").where(small.any("step")))
