"""Chains and least squares: how many steps a method needs, and how it gets there."""

from typing import TYPE_CHECKING

import numpy as np

from bnrate.plots.drawing import STYLES, axes_of, figure_of, shades

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_lower_bound(ds: "xr.Dataset", ax: "Axes | None" = None) -> "Axes":
    """Steps that gradient descent needs on a chain against its length, and the proved least.

    Args:
      ds: the result of `lower-bound`.
      ax: where to draw; default a new figure.
    """
    ax, needed = axes_of(ax), ds["needed"].isel(seed=0)
    lengths = ds["length"].values
    rates = needed["rate"].values[needed.notnull().sum("problem").values > 1]
    # Rates that need equally many steps are rings around one another.
    sizes = np.linspace(12, 3, len(rates))
    for color, size, rate in zip(shades(len(rates)), sizes, rates, strict=True):
        style = {"color": color, "ms": size, "mfc": "none", "lw": 1}
        ax.plot(lengths, needed.sel(rate=rate), "o-", **style, label=f"rate {rate:.0e}")
    ax.plot(lengths, lengths, "k--", lw=1.2, label="no fewer at any rate (proved)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("length of the chain")
    ax.set_ylabel("steps until the gradient is small")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_gdnp(ds: "xr.Dataset", problem: str, ax: "Axes | None" = None) -> "Axes":
    """The distance from the minimum: GDNP, what is proved of it, and gradient descent.

    Medians over the instances; what is proved starts where GDNP does.

    Args:
      ds: the result of `gdnp`.
      problem: which condition number.
      ax: where to draw; default a new figure.
    """
    ax, one = axes_of(ax), ds.sel(problem=problem)
    above = one["above"].median("seed")
    steps = above["step"].values
    left = above.sel(rule="gdnp").isel(rate=0)
    ax.plot(
        steps,
        left.where(left > 0),
        color=STYLES[1][0],
        lw=2,
        label=str(one["title"].sel(rule="gdnp").item()),
    )
    proved = left[0].item() * one["contraction"].item() ** steps
    ax.plot(steps, proved, "--", color=STYLES[1][0], lw=1.2, label="GDNP, proved")
    rates = above["rate"].values
    for color, rate in zip(shades(len(rates)), rates, strict=True):
        plain = above.sel(rule="gd", rate=rate)
        ax.plot(steps, plain.where(plain > 0), color=color, lw=1, label=f"GD, rate {rate:.3g}")
    ax.set_yscale("log")
    ax.set_ylim(1e-12, 10 * above.max().item())
    ax.set_xlabel("steps")
    ax.set_ylabel("loss above its minimum")
    ax.set_title(f"condition number {one['kappa'].item():.4g}", fontsize="medium")
    ax.grid(alpha=0.25)
    return ax


def lower_bound(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """The figure of `lower-bound`."""
    figure, ((ax,),) = figure_of(1, 1, (7.4, 4.2))
    plot_lower_bound(ds, ax)
    return {"lower-bound": figure}


def gdnp(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """A panel for each condition number."""
    problems = ds["problem"].values
    figure, axes = figure_of(1, len(problems), (3.2 * len(problems) + 1.6, 3.4))
    for ax, problem in zip(axes[0], problems, strict=True):
        plot_gdnp(ds, problem, ax).label_outer()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize="small")
    return {"gdnp": figure}
