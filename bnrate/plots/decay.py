"""Where weight decay settles, predicted and measured."""

import itertools
from typing import TYPE_CHECKING

from bnrate import results
from bnrate.plots.drawing import STYLES, TRACE_LABELS, axes_of, figure_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_equilibrium(ds: "xr.Dataset", name: str, rule: str, ax: "Axes | None" = None) -> "Axes":
    """A measure of each group over the steps, and where it is predicted to settle (dashed).

    Args:
      ds: the result of the experiment `equilibrium`; of its rates and seeds the first is drawn.
      name: `angle` or `norm2`.
      rule: which rule.
      ax: where to draw; default a new figure.
    """
    ax, ds = axes_of(ax), results.curves(ds)
    one = ds.sel(rule=rule).isel({results.rate_dim(ds): 0, "seed": 0})
    for (color, _), group in zip(itertools.cycle(STYLES), ds["group"].values, strict=False):
        of = one.sel(group=group)
        ax.plot(of["step"] + 1, of[name], lw=0.8, alpha=0.5, color=color, label=str(group))
        settles = of["step"].values[-1] + 1
        ax.plot([1, settles], [of[f"predicted_{name}"]] * 2, "--", lw=1.5, color=color)
    ax.set_yscale("log")
    ax.locator_params("x", nbins=4)
    ax.set_xlabel("step, counted from 1")
    ax.set_ylabel(TRACE_LABELS[name])
    ax.set_title(str(one["title"].item()), fontsize="medium")
    ax.grid(alpha=0.25)
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """Angle and norm of all groups and rules."""
    ds = results.curves(ds)
    rules = ds["rule"].values
    figure, axes = figure_of(2, len(rules), (3.6 * len(rules), 6.0))
    for row, name in zip(axes, ("angle", "norm2"), strict=True):
        for ax, rule in zip(row, rules, strict=True):
            plot_equilibrium(ds, name, rule, ax).label_outer()
    axes[0, -1].plot([], [], "--", lw=1.5, color="0.4", label="predicted")
    axes[0, -1].legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return {"equilibrium": figure}
