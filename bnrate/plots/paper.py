"""Final values against the rate, and what was recorded on the way: the figures of the paper."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from bnrate import results
from bnrate.plots.drawing import (
    FINAL_LABELS,
    RATE_LABELS,
    STYLES,
    TRACE_LABELS,
    axes_of,
    figure_of,
    log_limits,
    shades,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_final(ds: "xr.Dataset", name: str = "final_loss", ax: "Axes | None" = None) -> "Axes":
    """A final value against the rate: the median over the seeds, in a band from lowest to highest.

    A cross above the axes marks each rate at which a run of that rule diverged; there is no band.

    Args:
      ds: the result of an experiment.
      name: `final_loss` (on a log axis) or `test_accuracy`.
      ax: where to draw; default a new figure.
    """
    ax, ds = axes_of(ax), results.curves(ds)
    rate = results.rate_dim(ds)
    values = results.over_seeds(ds, name)
    bottom, top = (0.0, 1.0) if name == "test_accuracy" else log_limits(ds[name].values)
    rows_above = itertools.count()
    for (color, marker), rule in zip(itertools.cycle(STYLES), ds["rule"].values, strict=False):
        one = values.sel(rule=rule)
        title = str(ds["title"].sel(rule=rule).item())
        median = one["median"].where(np.isfinite(one["median"]))
        ax.plot(one[rate], median, marker=marker, markersize=4, color=color, label=title)
        band = one[["low", "high"]].where(one["diverged"] == 0)
        ax.fill_between(one[rate], band["low"], band["high"], color=color, alpha=0.2, linewidth=0)
        if one["diverged"].any():
            rates = one[rate].values[one["diverged"].values > 0]
            height = np.full(len(rates), 1.025 + 0.03 * next(rows_above))
            above = ax.get_xaxis_transform()
            ax.plot(rates, height, "x", ms=4, color=color, transform=above, clip_on=False)
    if ds["diverged"].any():
        ax.plot([], [], "x", ms=4, color="0.4", label="a run diverged")
    ax.set_yscale("linear" if name == "test_accuracy" else "log")
    ax.set_ylim(bottom, top)
    ax.set_xscale("log")
    ax.set_xlabel(RATE_LABELS[rate])
    ax.set_ylabel(FINAL_LABELS[name])
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_trace(
    ds: "xr.Dataset",
    name: str,
    rule: str,
    ax: "Axes | None" = None,
    *,
    group: str | None = None,
    seed: int | None = None,
    lines: int = 5,
) -> "Axes":
    """A recorded measure over the steps, one line for each of a few rates from low to high.

    Args:
      ds: the result of an experiment.
      name: a recorded variable: `loss`, or one of `measure.DIMS`.
      rule: which rule.
      ax: where to draw; default a new figure.
      group: which group, for a measure of each; default the first.
      seed: which seed; default the first.
      lines: how many rates, evenly chosen.
    """
    ax, ds = axes_of(ax), results.curves(ds)
    rate = results.rate_dim(ds)
    of = {"rule": rule, "seed": ds["seed"].values[0] if seed is None else seed}
    title = str(ds["title"].sel(rule=rule).item())
    if "group" in ds[name].dims:
        of["group"] = ds["group"].values[0] if group is None else group
        title += f": {of['group']}"
    chosen = np.unique(np.linspace(0, ds.sizes[rate] - 1, lines).round().astype(int))
    for one, color in zip(chosen, shades(len(chosen)), strict=True):
        trace = ds[name].sel(of).isel({rate: one})
        value = float(ds[rate][one])
        ax.plot(ds["step"] + 1, trace, ".-", ms=3, lw=1.2, color=color, label=f"{value:.3g}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("step, counted from 1")
    ax.set_ylabel(TRACE_LABELS[name])
    ax.set_title(title, fontsize="medium")
    ax.grid(alpha=0.25)
    ax.legend(
        title="rate", frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """Final values, and the spheres of the normalised rules."""
    ds = results.curves(ds)
    name = "test_accuracy" if ds.attrs.get("experiment") == "generalization" else "final_loss"
    final, ((ax,),) = figure_of(1, 1, (6.4, 4.2))
    plot_final(ds, name, ax)
    measured = ds["norm2"].notnull().any(["group", "step", results.rate_dim(ds), "seed"])
    normalised = list(ds["rule"].values[measured])
    if not normalised:
        return {name: final}
    spheres, axes = figure_of(2, len(normalised), (4.0 * len(normalised), 6.0))
    for row, measure in zip(axes, ("norm2", "effective_rate"), strict=True):
        for ax, rule in zip(row, normalised, strict=True):
            plot_trace(ds, measure, rule, ax)
            ax.label_outer()
            if ax is not axes[0, -1]:
                ax.get_legend().remove()
    return {name: final, "spheres": spheres}
