"""What a Dataset of runs says.

In every reducer a run that has diverged, or was stopped early, counts as worst: its loss is
infinite, its accuracy zero, so that it can never be the best.  A run that is not there (`status` is
"absent" or "unfinished") is NaN and does not count at all.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_WORST = {"final_loss": np.inf, "test_accuracy": 0.0}
_RATE_DIMS = ("rate", "rate_invariant")


def counted(ds: "xr.Dataset", name: str) -> "xr.DataArray":
    """A final value of each run, with the worst possible value for the diverged and stopped ones.

    Raises:
      ValueError: not a final value of which the worst is known, or not in the Dataset.
    """
    if name not in _WORST:
        raise ValueError(f"unknown final value {name!r}; choose one of {', '.join(_WORST)}")
    if name not in ds:
        raise ValueError(f"the Dataset has no {name!r}; the runs' `evaluate` must return it")
    good = np.isfinite(ds[name]) & ~ds["diverged"]
    if "status" not in ds:
        return ds[name].where(good, _WORST[name])
    there = ~ds["status"].isin(["absent", "unfinished"])
    return ds[name].where(good & (ds["status"] != "stopped"), _WORST[name]).where(there)


def over_seeds(ds: "xr.Dataset", name: str) -> "xr.Dataset":
    """Median, lowest and highest of a final value over the seeds, and how many runs diverged.

    Of an even number of seeds the median is the worse one of the two in the middle, so that a value
    that half of the runs do not reach is not shown as typical.
    """
    values = counted(ds, name)
    worse = "higher" if _WORST[name] > 0 else "lower"
    return values.to_dataset(name="median").assign(
        median=values.quantile(0.5, "seed", method=worse).drop_vars("quantile"),
        low=values.min("seed"),
        high=values.max("seed"),
        diverged=ds["diverged"].sum("seed"),
    )


def curves(ds: "xr.Dataset") -> "xr.Dataset":
    """The same over exactly rule, rate and seed, with a title for each rule: what is shown.

    Other axes of one entry are dropped; a missing rule or seed is one entry.

    Raises:
      ValueError: there is another axis, with several entries.
    """
    if "diverged" not in ds:
        raise ValueError("the Dataset has no 'diverged'; it is not the result of a sweep of runs")
    shown = ("rule", rate_dim(ds), "seed")
    others = [str(dim) for dim in ds["diverged"].dims if dim not in shown]
    wide = [dim for dim in others if ds.sizes[dim] > 1]
    if wide:
        raise ValueError(f"the Dataset varies {', '.join(wide)} too; take one entry with ds.sel")
    ds = ds.squeeze(others, drop=True)
    for dim, only in (("rule", "run"), ("seed", 0)):
        if dim not in ds.dims:
            ds = ds.expand_dims(dim if dim in ds.coords else {dim: [only]})
    if "title" not in ds.coords or "rule" not in ds["title"].dims:
        ds = ds.assign_coords(title=("rule", [str(rule) for rule in ds["rule"].values]))
    return ds


def rate_dim(ds: "xr.Dataset") -> str:
    """The dimension of the rates that were swept: `rate`, or `rate_invariant`."""
    for name in _RATE_DIMS:
        if name in ds.dims:
            return name
    raise ValueError(f"the Dataset has dimensions {tuple(ds.dims)}, none of {_RATE_DIMS}")


def tuning_freedom(
    ds: "xr.Dataset", threshold: float | None = None, *, factor: float | None = None
) -> "xr.Dataset":
    """How far the rate may be off: the widest contiguous range of rates that train well enough.

    A run is good enough if its final loss is at most `threshold`, or at most `factor` times the
    best final loss of the Dataset.  One rate alone has width 0.

    Args:
      ds: the result of a sweep over rates and seeds.
      threshold: an absolute loss.
      factor: above 1; give this or `threshold`.

    Returns:
      For each remaining dimension and seed `decades`, the width of the range as a power of ten, and
      its ends `low` and `high` (NaN, and width 0, where no rate is good enough); over the seeds
      `decades_mean`, `decades_min` and `decades_max`.

    Raises:
      ValueError: not exactly one of threshold and factor, or one out of range.
    """
    import xarray as xr  # noqa: PLC0415

    ds = ds if "seed" in ds.dims else ds.expand_dims("seed")
    loss, dim = counted(ds, "final_loss"), rate_dim(ds)
    limit = _limit(float(loss.min()), threshold, factor)
    good = (loss <= limit).sortby(dim)
    rates = good[dim].values
    low, high = xr.apply_ufunc(
        lambda row: _widest(row, rates),
        good,
        input_core_dims=[[dim]],
        output_core_dims=[[], []],
        vectorize=True,
        output_dtypes=[float, float],
    )
    decades = np.log10(high / low).fillna(0.0)
    return xr.Dataset(
        {
            "decades": decades,
            "low": low,
            "high": high,
            "decades_mean": decades.mean("seed"),
            "decades_min": decades.min("seed"),
            "decades_max": decades.max("seed"),
        },
        attrs={"limit": limit},
    )


def _limit(best: float, threshold: float | None, factor: float | None) -> float:
    if threshold is not None and factor is None:
        if not 0 < threshold < np.inf:
            raise ValueError(f"the threshold must be a positive loss, got {threshold}")
        return float(threshold)
    if factor is not None and threshold is None:
        if not 1 <= factor < np.inf:
            raise ValueError(f"the factor must be at least 1, got {factor}")
        if not np.isfinite(best):
            raise ValueError("every run diverged, so there is no best loss to take a factor of")
        return float(factor) * best
    raise ValueError(f"give a threshold or a factor, one of them; got {threshold} and {factor}")


def _widest(good: np.ndarray, rates: np.ndarray) -> tuple[float, float]:
    """The ends of the widest run of True, by the ratio of its ends."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]])))
    ranges = [(float(rates[i]), float(rates[j - 1])) for i, j in edges.reshape(-1, 2)]
    return max(ranges, key=lambda ends: ends[1] / ends[0], default=(np.nan, np.nan))
