"""Where to look closer: new points for a sweep that is done, which `results.join` adds to it.

more = sweep.run(make, sweep.refine_rates(ds, add=4), steps=1000)
ds = results.join(ds, more)
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from bnrate import results

if TYPE_CHECKING:
    import xarray as xr


def refine_rates(ds: "xr.Dataset", add: int, value: str = "final_loss") -> dict[str, Any]:
    """The grid of new rates where the curve of a final value over the rates bends most.

    One after the other they halve (on a logarithmic scale) the interval next to the sharpest bend,
    weighted by its length; the median over the seeds counts, of all rules together.  Ends where
    every run diverged lie as far off as the worst finite value.

    Args:
      ds: a sweep over rates, crossed with other axes.
      add: how many rates.
      value: of `results.counted`.

    Raises:
      ValueError: fewer than three rates, or nothing finite; add below 1.
    """
    dim = results.rate_dim(ds)
    _check(ds, add, dim, 3)
    median = results.over_seeds(_seeded(ds), value)["median"].sortby(dim)
    x = np.log(median[dim].values.astype(float))
    curves = _logs(median.transpose(dim, ...).values.reshape(len(x), -1).astype(float))
    known = set(x)
    for _ in range(add):
        at = _sharpest(x, curves)
        middle = (x[at] + x[at + 1]) / 2
        curves = np.insert(curves, at + 1, (curves[at] + curves[at + 1]) / 2, axis=0)
        x = np.insert(x, at + 1, middle)
    return _grid(ds, {dim: np.exp([value for value in x if value not in known])})


def refine_seeds(
    ds: "xr.Dataset", add: int, value: str = "final_loss", share: float = 0.25
) -> dict[str, Any]:
    """The grid of new seeds, at those rates where a final value spreads most over the seeds.

    Args:
      ds: a sweep over rates and whole-numbered seeds, crossed with other axes.
      add: how many seeds.
      value: of `results.counted`.
      share: of the rates, those with the widest spread.

    Raises:
      ValueError: fewer than two seeds; add below 1; a share not in (0, 1].
    """
    dim = results.rate_dim(ds)
    _check(ds, add, "seed", 2)
    if not 0 < share <= 1:
        raise ValueError(f"the share of the rates must lie in (0, 1], got {share}")
    summary = results.over_seeds(ds, value)
    ends = [_logs(summary[end].transpose(dim, ...).values.astype(float)) for end in ("low", "high")]
    spread = np.abs(ends[1] - ends[0]).reshape(ds.sizes[dim], -1).max(1)
    widest = np.argsort(-spread, kind="stable")[: max(1, round(share * len(spread)))]
    first = int(ds["seed"].max()) + 1
    return _grid(ds, {dim: ds[dim].values[np.sort(widest)], "seed": np.arange(first, first + add)})


def _sharpest(x: np.ndarray, curves: np.ndarray) -> int:
    """The interval with the largest bend at one of its ends, times its length."""
    slopes = np.diff(curves, axis=0) / np.diff(x)[:, None]
    bends = np.pad(np.abs(np.diff(slopes, axis=0)).max(1), 1)
    return int(np.argmax(np.maximum(bends[:-1], bends[1:]) * np.diff(x) ** 2))


def _logs(values: np.ndarray) -> np.ndarray:
    """Logarithms; what is not finite lies as far off as the worst that is."""
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("every run diverged, so there is no curve to refine")
    values = np.where(finite, values, values[finite].max())
    return np.log(np.maximum(values, np.finfo(np.float32).tiny))


def _seeded(ds: "xr.Dataset") -> "xr.Dataset":
    return ds if "seed" in ds.dims else ds.expand_dims("seed")


def _check(ds: "xr.Dataset", add: int, dim: str, least: int) -> None:
    if add < 1:
        raise ValueError(f"add must be at least 1, got {add}")
    if ds.sizes.get(dim, 0) < least:
        raise ValueError(
            f"there must be {least} values of '{dim}' to refine, got {ds.sizes.get(dim, 0)}"
        )


def _grid(ds: "xr.Dataset", new: dict[str, np.ndarray]) -> dict[str, Any]:
    """The axes of a Dataset, some with new values."""
    axes = [str(dim) for dim in ds["status"].dims]
    return {dim: new.get(dim, ds[dim].values) for dim in axes}
