"""Theorems over what was measured: bounds as lines, measurements as points."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bnrate.plots.drawing import RATE_LABELS, STYLES, axes_of, figure_of, shades

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = r"least $|\nabla L|^2$ so far, at unit norm"
_BELOW = 1e-6  # of the least bound: where the axis ends


def plot_bound(
    ds: "xr.Dataset", at: Mapping[str, Any], ax: "Axes | None" = None, *, lines: int = 4
) -> "Axes":
    """The least squared gradient so far over the steps: measured (points) and its bound (lines).

    Both are medians over the instances; `violations` speaks of each.

    Args:
      ds: the result of `gd-rate` or `sgd-rate`.
      at: which problem, and of `sgd-rate` which alpha.
      ax: where to draw; default a new figure.
      lines: how many rates, evenly chosen.
    """
    ax, one = axes_of(ax), ds.sel(at)
    rates = one["rate_invariant"].values
    chosen = np.unique(np.linspace(0, len(rates) - 1, lines).round().astype(int))
    for color, rate in zip(shades(len(chosen)), rates[chosen], strict=True):
        of = one.sel(rate_invariant=rate).median("instance")
        ax.plot(of["time"], of["bound_least"], color=color, lw=1.2, label=f"{rate:.3g}")
        measured = of["gradient2_least"].where(of["gradient2_least"] > 0)
        ax.plot(of["time"], measured, "o", ms=3, color=color)
    ax.set_xscale("log")
    ax.set_yscale("log")
    # Where gradients vanish much faster than the bound, the bound would be all at the top.
    bound = one["bound_least"].median("instance")
    ax.set_ylim(min(bound.min().item(), 1.0) * _BELOW, 10 * bound.max().item())
    ax.set_xlabel("steps")
    ax.set_ylabel(_LEAST)
    ax.grid(alpha=0.25)
    return ax


def plot_tightness(ds: "xr.Dataset", ax: "Axes | None" = None) -> "Axes":
    """How many times more the bound allows than was measured, against the rate.

    For each problem the median over the instances (markers) and the least (thin line).

    Args:
      ds: the result of `gd-rate` or `sgd-rate`.
      ax: where to draw; default a new figure.
    """
    ax = axes_of(ax)
    ratio = ds["tightness"]
    others = [dim for dim in ratio.dims if dim not in ("problem", "rate_invariant")]
    styles = itertools.product("-:", STYLES)
    for (line, (color, marker)), problem in zip(styles, ds["problem"].values, strict=False):
        of, title = ratio.sel(problem=problem), str(ds["title"].sel(problem=problem).item())
        rates = ds["rate_invariant"]
        ax.plot(rates, of.median(others), line + marker, ms=4, lw=1.2, color=color, label=title)
        ax.plot(rates, of.min(others), line, lw=0.6, color=color)
    ax.axhline(1, color="0.3", lw=0.8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(RATE_LABELS["rate_invariant"])
    ax.set_ylabel("bound / measured")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """A panel for each problem (and alpha), and the tightness."""
    problems = ds["problem"].values
    if "alpha" in ds.dims:
        panels = [
            [{"problem": p, "alpha": alpha} for alpha in ds["alpha"].values] for p in problems
        ]
    else:
        rows = np.array_split(problems, range(4, len(problems), 4))
        panels = [[{"problem": p} for p in row] for row in rows]
    columns = max(map(len, panels))
    figure, axes = figure_of(len(panels), columns, (3.1 * columns, 2.6 * len(panels)))
    for (row, column), ax in np.ndenumerate(axes):
        if column >= len(panels[row]):
            ax.axis("off")
            continue
        at = panels[row][column]
        title = str(ds["title"].sel(problem=at["problem"]).item())
        title += f", alpha = {at['alpha']}" if "alpha" in at else ""
        plot_bound(ds, at, ax).set_title(title, fontsize="small")
        _label_outer(axes, row, column, len(panels[row + 1]) if row + 1 < len(panels) else 0)
    legend = {"title": "rate (line: bound)", "frameon": False, "fontsize": "small"}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", **legend)
    tight, ((ax,),) = figure_of(1, 1, (8.0, 4.2))
    plot_tightness(ds, ax)
    return {"bounds": figure, "tightness": tight}


def _label_outer(axes: np.ndarray, row: int, column: int, below: int) -> None:
    """Labels at the left of a row, and where nothing stands below."""
    ax = axes[row, column]
    if column:
        ax.set_ylabel("")
        ax.tick_params(labelleft=False)
    if column < below:
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)


def plot_certificate(ds: "xr.Dataset", ax: "Axes | None" = None) -> "Axes":
    """The least squared gradient so far of each run (points), and what is certified (lines).

    A run whose certificate is refused has no line, one that has an estimate a dashed one.

    Args:
      ds: the result of `certificate`; of its seeds the first is drawn.
      ax: where to draw; default a new figure.
    """
    ax, one = axes_of(ax), ds.isel(seed=0, rate_rest=0)
    rates, steps = one["rate_invariant"].values, one["step"].values + 1
    steps = steps[:-1]  # the last record is of where the steps lead
    shown = np.unique(np.geomspace(1, len(steps), 30).astype(int)) - 1
    for color, rate in zip(shades(len(rates)), rates, strict=True):
        of = one.sel(rate_invariant=rate)
        least = np.minimum.accumulate(of["gradient2"].values)
        ax.plot(steps[shown], least[shown], "o", ms=3, color=color)
        style = "-" if of["label"].item() == "valid" else "--"
        bound = of["certified_sum"].item() / steps
        ax.plot(steps, bound, style, lw=1.2, color=color, label=f"{rate:.3g}: {of['label'].item()}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("steps")
    ax.set_ylabel(_LEAST)
    ax.grid(alpha=0.25)
    legend = {"title": "rate (line: certified)", "frameon": False, "fontsize": "small"}
    ax.legend(**legend, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def certificate(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """The figure of `certificate`."""
    figure, ((ax,),) = figure_of(1, 1, (7.4, 4.2))
    plot_certificate(ds, ax)
    return {"certificate": figure}
