"""Many rules in one map."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bnrate import results
from bnrate.plots.drawing import RATE_LABELS, axes_of, figure_of, log_limits

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_map(ds: "xr.Dataset", ax: "Axes | None" = None) -> "Axes":
    """Final training loss of many rules: a row for each, in each cell the median over the seeds.

    The best rate of each rule is framed, and the test accuracy there stands at the right.  A
    hatched cell has no finite median; a dot marks one where some run diverged.  A rule that is not
    `tuned`, if the Dataset says so, has no frame: its rates are all the same.

    Args:
      ds: the result of an experiment.
      ax: where to draw; default a new figure.
    """
    ds = results.curves(ds)
    rate, rules = results.rate_dim(ds), ds.sizes["rule"]
    columns = ds.sizes[rate]
    ax = axes_of(ax, _map_size(rules, columns))
    of_loss, of_accuracy = (results.over_seeds(ds, n) for n in ("final_loss", "test_accuracy"))
    table, diverged, accuracy = (
        values.transpose("rule", rate).values
        for values in (of_loss["median"], of_loss["diverged"], of_accuracy["median"])
    )
    loss = np.where(np.isfinite(table), table, np.nan)
    _shade(ax, loss, diverged)
    tuned = ds["tuned"].values if "tuned" in ds else np.full(rules, True)
    for row in np.flatnonzero(np.isfinite(loss).any(1)).tolist():
        best = int(np.nanargmin(loss[row]))
        if tuned[row]:
            _frame(ax, row, best, ec="#D55E00", lw=1.6, zorder=3)
        ax.text(columns - 0.35, row, f"{accuracy[row, best]:.1%}", va="center", fontsize=8)
    ax.text(columns - 0.35, -0.6, "accuracy", va="bottom", fontsize=8)
    ax.set_xticks(range(columns), [f"{value:.3g}" for value in ds[rate].values], fontsize=8)
    ax.set_yticks(range(rules), [str(title) for title in ds["title"].values], fontsize=8)
    ax.set_xlabel(RATE_LABELS[rate])
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """The map of all rules."""
    ds = results.curves(ds)
    figure, ((ax,),) = figure_of(1, 1, _map_size(ds.sizes["rule"], ds.sizes[results.rate_dim(ds)]))
    plot_map(ds, ax).set_title("final training loss (median), and test accuracy", fontsize="medium")
    return {"rules": figure}


def _map_size(rows: int, columns: int) -> tuple[float, float]:
    return 2.6 + 0.5 * columns, 1.2 + 0.26 * rows


def _shade(ax: "Axes", loss: np.ndarray, diverged: np.ndarray) -> None:
    """The cells of a map: dark where the loss is low, hatched where there is none."""
    low, high = log_limits(loss)
    ax.imshow(np.log(loss), "cividis", vmin=np.log(2 * low), vmax=np.log(high / 2), aspect="auto")
    middle = (np.log(2 * low) + np.log(high / 2)) / 2
    for (row, column), value in np.ndenumerate(loss):
        if not np.isfinite(value):
            _frame(ax, row, column, ec="0.75", lw=0, hatch="////")
            continue
        ink = "white" if np.log(value) < middle else "black"
        ax.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink)
        if diverged[row, column]:
            ax.plot(column + 0.4, row - 0.33, ".", ms=3, color=ink)


def _frame(ax: "Axes", row: int, column: int, **style: Any) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **style))
