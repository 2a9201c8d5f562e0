"""What is printed of a result: one table, or one for each setting."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bnrate import results
from bnrate.cli import bounds

if TYPE_CHECKING:
    import xarray as xr

THRESHOLD = 0.2  # the final loss up to which a rate counts as good


def report(ds: "xr.Dataset") -> str:
    """What an experiment found, for a terminal of 100 columns."""
    return "\n".join(_LINES.get(ds.attrs["experiment"], _one_table_a_setting)(ds))


def _one_table_a_setting(ds: "xr.Dataset") -> Iterator[str]:
    """A table per setting, and how far off the rate may be."""
    ds = results.curves(ds)
    rate = results.rate_dim(ds)
    loss, accuracy = (results.over_seeds(ds, name) for name in ("final_loss", "test_accuracy"))
    seeds = ds.sizes["seed"]
    yield (
        f"{ds.attrs['experiment']}, {_seeds(ds)}: final training loss (median, lowest, highest) "
        "and test accuracy (median)"
    )
    for rule in ds["rule"].values:
        setting = ds.sel(rule=rule)
        yield ""
        yield f"setting {setting['setting'].item()}: {setting['title'].item()}"
        yield f"  {rate:>14}  {'loss':>9}  {'lowest':>9}  {'highest':>9}  accuracy  diverged"
        for value in ds[rate].values:
            at, hit = (table.sel({"rule": rule, rate: value}) for table in (loss, accuracy))
            numbers = "  ".join(f"{at[name].item():9.3g}" for name in ("median", "low", "high"))
            accurate, diverged = hit["median"].item(), at["diverged"].item()
            yield f"  {value:>14.4g}  {numbers}  {accurate:8.1%}  {diverged:>4}/{seeds}"
    yield ""
    yield from _freedom(ds)


def _freedom(ds: "xr.Dataset") -> Iterator[str]:
    freedom = results.tuning_freedom(ds, THRESHOLD)
    yield (
        f"tuning freedom: decades of rates with a final loss of at most {THRESHOLD} "
        f"(of {_decades(ds):.2f} swept)"
    )
    for rule in ds["rule"].values:
        one = freedom.sel(rule=rule)
        title = ds["title"].sel(rule=rule).item()
        mean, low, high = (one[f"decades_{of}"].item() for of in ("mean", "min", "max"))
        spread = f"{mean:.2f}  (seeds: {low:.2f} to {high:.2f})"
        yield f"  {title:26} {'no rate' if one['low'].isnull().all() else spread}"


def _one_line_a_rule(ds: "xr.Dataset") -> Iterator[str]:
    """Tuning freedom, and what each rule reaches at its best rate; the most tolerant rule first."""
    ds = results.curves(ds)
    best = _at_best(ds)
    least = best["loss"].min().item()
    limit = max(THRESHOLD, 2 * least) if np.isfinite(least) else THRESHOLD
    freedom = results.tuning_freedom(ds, limit)
    yield (
        f"rules, {_seeds(ds)}: decades of rates with a final training loss of at most {limit:.3g} "
        f"(of {_decades(ds):.2f} swept);"
    )
    yield "the least loss (median, lowest, highest), the rate it needs, and the test accuracy there"
    yield ""
    yield (
        f"  {'rule':22} decades  {'loss':>9}  {'lowest':>9}  {'highest':>9}  {'at rate':>8}  "
        "accuracy  diverged"
    )
    # One rate alone is zero decades wide, and yet more than none.
    wide = freedom["decades_mean"].where(freedom["low"].notnull().any("seed"), -1).values
    for row in np.lexsort((best["loss"].values, -wide)):
        one, tuned = best.isel(rule=row), bool(ds["tuned"].values[row])
        decades = "none" if wide[row] < 0 else f"{wide[row]:.2f}" if tuned else "any"
        numbers = "  ".join(f"{one[name].item():9.3g}" for name in ("loss", "low", "high"))
        rate = f"{one['rate'].item():.3g}" if tuned else "none"
        failed = f"{one['diverged'].item()}/{ds['diverged'][row].size}"
        yield (
            f"  {one['title'].item():22} {decades:>7}  {numbers}  {rate:>8}  "
            f"{one['accuracy'].item():8.1%}  {failed:>8}"
        )


def _at_best(ds: "xr.Dataset") -> "xr.Dataset":
    """Of each rule: the rate with the least median loss, what it reaches, all diverged runs."""
    dim = results.rate_dim(ds)
    loss, accuracy = (results.over_seeds(ds, name) for name in ("final_loss", "test_accuracy"))
    where = loss["median"].fillna(np.inf).argmin(dim)
    there = {name: loss[name].isel({dim: where}) for name in ("median", "low", "high")}
    return loss.drop_vars([*loss.data_vars, dim, "seed"]).assign(
        loss=there["median"],
        low=there["low"],
        high=there["high"],
        rate=ds[dim].isel({dim: where}).drop_vars(dim),
        accuracy=accuracy["median"].isel({dim: where}),
        diverged=loss["diverged"].sum(dim),
    )


def _against_theory(ds: "xr.Dataset") -> Iterator[str]:
    """Angle and norm of each group, and by how much they differ from what is predicted."""
    ds = results.curves(ds)
    steps = int(ds["step"].values[-1]) + 1
    yield f"equilibrium, {_seeds(ds)}: measured from the step on by which it should be reached,"
    yield "the mean over the seeds; and by how much that is more than predicted"
    for rule, rate in itertools.product(ds["rule"].values, ds[results.rate_dim(ds)].values):
        one = ds.sel({"rule": rule, results.rate_dim(ds): rate})
        yield ""
        yield f"{one['title'].item()}, rate {rate:.4g}, decay {one['decay'].item():.4g}"
        yield f"  {'group':26} {'from step':>9}  {'angle':>9}  {'':>7}  {'norm2':>9}"
        for group in ds["group"].values:
            of = one.sel(group=group)
            start = of["reached"].max().item()
            line = f"  {group!s:26} {start:9.0f}"
            for name in ("angle", "norm2"):
                off = of[f"{name}_residual"].mean("seed", skipna=False).item()
                measured = of[f"predicted_{name}"].mean("seed").item() * (1 + off)
                line += f"  {measured:9.3g}  {off:+7.1%}"
            yield line if start < steps else f"{line[:40]}  not reached in {steps} steps"


def _seeds(ds: "xr.Dataset") -> str:
    seeds = ds.sizes["seed"]
    return f"{seeds} seed{'s' * (seeds > 1)}"


_LINES = {
    "rules": _one_line_a_rule,
    "equilibrium": _against_theory,
    "gd-rate": bounds.gd_rate,
    "sgd-rate": bounds.sgd_rate,
    "psgd-fails": bounds.psgd_fails,
    "lower-bound": bounds.lower_bound,
    "gdnp": bounds.gdnp,
    "certificate": bounds.certificate,
    "smoothness": bounds.smoothness,
}


def _decades(ds: "xr.Dataset") -> float:
    swept = ds[results.rate_dim(ds)].values
    return float(np.log10(swept.max() / swept.min()))
