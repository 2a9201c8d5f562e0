"""Which iterate of a run to keep: the theorems for SGD speak of a random one, not of the last.

Ghadimi & Lan, "Stochastic first- and zeroth-order methods for nonconvex stochastic programming"
(2013): the bound on the gradient holds for an iterate drawn at random (their RSG), and with high
probability for the best of a few such draws from independent runs (2-RSG).
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def stopping_weights(rates: np.ndarray, smoothness: float) -> np.ndarray:
    """How likely each step should be the one that is kept: 2 eta - L eta^2, normalised.

    >>> stopping_weights(np.array([0.1, 0.1, 0.2]), smoothness=5.0)
    array([0.3, 0.3, 0.4])

    Args:
      rates: eta of each step, shape (steps,).
      smoothness: L, a bound on the curvature.

    Raises:
      ValueError: a rate is not between 0 and 2 / L, where the theorem says nothing.
    """
    rates = np.asarray(rates, float)
    if not 0 < smoothness < np.inf:
        raise ValueError(f"smoothness must be a positive number, got {smoothness}")
    if not (rates.size and np.all((rates > 0) & (rates < 2 / smoothness))):
        raise ValueError(
            f"rates must lie between 0 and 2 / smoothness = {2 / smoothness:.3g}, got "
            f"{rates if rates.size < 9 else [rates.min(), rates.max()]}"
        )
    weights = 2 * rates - smoothness * rates**2
    return weights / weights.sum()


def random_stop(
    ds: "xr.Dataset", *, seed: int = 0, weights: np.ndarray | None = None
) -> "xr.Dataset":
    """What each run recorded at a step drawn at random, independently for each (RSG).

    Of all runs, those that diverged too: `diverged` stays, and what they did not record is NaN.

    Args:
      ds: the result of a sweep of runs, with a dimension `step`.
      seed: of the draws.
      weights: how likely each record is, shape (steps recorded,), for example `stopping_weights`;
        by default all are, as the theorem has it for a constant rate.

    Returns:
      The Dataset without the dimension `step`, which says of each run at which it stopped.

    Raises:
      ValueError: there are no steps, or the weights do not fit them.
    """
    import xarray as xr  # noqa: PLC0415

    if "diverged" not in ds:
        raise ValueError("the Dataset has no 'diverged'; it is not the result of a sweep of runs")
    if "step" not in ds.dims:
        raise ValueError(f"the Dataset has dimensions {tuple(ds.sizes)} and no step to stop at")
    likely = np.ones(ds.sizes["step"]) if weights is None else np.asarray(weights, float)
    fit = likely.shape == (ds.sizes["step"],) and np.all(likely >= 0) and 0 < likely.sum() < np.inf
    if not fit:
        raise ValueError(
            f"weights must be {ds.sizes['step']} numbers, one for each record, finite, not "
            f"negative and not all 0; got shape {likely.shape}"
        )
    runs = ds["diverged"]
    drawn = np.random.default_rng(seed).choice(likely.size, runs.shape, p=likely / likely.sum())
    return ds.isel(step=xr.DataArray(drawn, dims=runs.dims))


def two_phase(
    ds: "xr.Dataset",
    name: str = "spherical_gradient_whole",
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> "xr.Dataset":
    """Of all seeds the run whose randomly drawn iterate has the smallest gradient (2-RSG).

    The gradient is the recorded one, of one batch: an estimate.  A run that did not finish is taken
    only where none did.

    Args:
      ds: as for `random_stop`, with a dimension `seed` of independent runs.
      name: what to compare, the smaller the better.
      seed: of the draws.
      weights: as for `random_stop`.

    Returns:
      The Dataset without the dimensions `step` and `seed`; both say what was chosen.

    Raises:
      ValueError: there are no seeds, no such record, or one with more dimensions than the runs.
    """
    if "seed" not in ds.dims:
        raise ValueError(
            f"the Dataset has dimensions {tuple(ds.sizes)} and no seeds to choose from"
        )
    if name not in ds or "step" not in ds[name].dims:
        raise ValueError(f"'{name}' is not recorded along the steps of the Dataset")
    stopped = random_stop(ds, seed=seed, weights=weights)
    others = set(stopped[name].dims) - set(ds["diverged"].dims)
    if others:
        raise ValueError(
            f"'{name}' has the dimensions {sorted(map(str, others))} too; choose a scalar"
        )
    valid = np.isfinite(stopped[name]) & ~stopped["diverged"]
    if "status" in stopped:
        valid &= stopped["status"] == "finished"
    chosen = stopped[name].where(valid, np.inf).argmin("seed")
    return stopped.isel(seed=chosen)
