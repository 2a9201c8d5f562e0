"""Projected gradient descent against gradient descent: orbits and floors."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from bnrate.plots.drawing import STYLES, axes_of, figure_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FLOOR = 1e-17  # shorter gradients are rounding


def plot_projection(
    ds: "xr.Dataset", rule: str, ax: "Axes | None" = None, *, lines: int = 5
) -> "Axes":
    """The gradient over the steps, root mean square over the starts; dashed where it is predicted.

    Args:
      ds: the result of `psgd-fails`.
      rule: `gd`, `projected-gd`, `sgd` or `projected-sgd`.
      ax: where to draw; default a new figure.
      lines: how many rates, evenly chosen.
    """
    ax = axes_of(ax)
    one = ds.sel(rule=rule)
    exact, projected = not rule.endswith("sgd"), rule.startswith("projected")
    chosen = np.unique(np.linspace(0, ds.sizes["rate"] - 1, lines).round().astype(int))
    rates = ds["rate"].values[chosen]
    for (color, marker), rate in zip(itertools.cycle(STYLES), rates, strict=False):
        size = one["gradient2"].sel(rate=rate).mean("seed") ** 0.5
        ax.plot(
            ds["time"],
            size.where(size > _FLOOR),
            marker + "-",
            ms=3,
            lw=1,
            color=color,
            label=f"{rate:.3g}",
        )
        if exact and projected:
            ax.axhline(ds["orbit"].sel(rate=rate).item(), ls="--", lw=1, color=color)
    ax.set_xscale("log")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(ds["time"].values[0] / 1.3, ds["time"].values[-1] * 1.3)
    ax.set_xlabel("steps")
    ax.set_ylabel("gradient at unit norm")
    ax.set_title(str(one["title"].item()), fontsize="medium")
    ax.grid(alpha=0.25)
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """Without and with noise, as it is and projected."""
    figure, axes = figure_of(2, 2, (8.4, 6.4))
    rows = ("gd", "projected-gd"), ("sgd", "projected-sgd")
    for ax, rule in zip(axes.flat, itertools.chain(*rows), strict=True):
        plot_projection(ds, rule, ax).label_outer()
    axes[0, 1].plot([], [], "--", color="0.4", label="orbit, predicted")
    legend = {"title": "rate", "frameon": False, "fontsize": "small"}
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right upper", **legend)
    return {"projection": figure}
