"""Figures of a result: `plot_*(ds, ax=None) -> Axes`, drawn from the Dataset as it is.

Colours are from Okabe & Ito's palette, which colour-blind readers can tell apart; each rule keeps
its colour and marker in every figure.  Nothing global is changed and no window is opened.
"""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from bnrate import results

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
_RATE_LABELS = {
    "rate": "learning rate of all parameters",
    "rate_invariant": "learning rate of the scale-invariant parameters",
}
_FINAL_LABELS = {"final_loss": "final training loss", "test_accuracy": "test accuracy"}
_FLOOR = 1e-8  # losses from here to 1 / here are shown
_TRACE_LABELS = {
    "loss": "loss of the batch",
    "norm2": "squared norm $G = |w|^2$",
    "effective_rate": r"effective rate $\eta\,/\,G$",
    "spherical_gradient": r"spherical gradient $|w|\,|\nabla L|$",
    "angle": "angle of the step (radians)",
    "spherical_gradient_whole": "spherical gradient of the whole",
}


def plot_final(ds: "xr.Dataset", name: str = "final_loss", ax: "Axes | None" = None) -> "Axes":
    """A final value against the rate: the median over the seeds, in a band from lowest to highest.

    A cross above the axes marks each rate at which a run of that rule diverged; there is no band.

    Args:
      ds: the result of an experiment.
      name: `final_loss` (on a log axis) or `test_accuracy`.
      ax: where to draw; default a new figure.
    """
    ax, ds = _axes(ax), results.curves(ds)
    rate = results.rate_dim(ds)
    values = results.over_seeds(ds, name)
    bottom, top = (0.0, 1.0) if name == "test_accuracy" else _log_limits(ds[name].values)
    rows_above = itertools.count()
    for (color, marker), rule in zip(itertools.cycle(_STYLES), ds["rule"].values, strict=False):
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
    ax.set_xlabel(_RATE_LABELS[rate])
    ax.set_ylabel(_FINAL_LABELS[name])
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
    import matplotlib  # noqa: PLC0415

    ax, ds = _axes(ax), results.curves(ds)
    rate = results.rate_dim(ds)
    of = {"rule": rule, "seed": ds["seed"].values[0] if seed is None else seed}
    title = str(ds["title"].sel(rule=rule).item())
    if "group" in ds[name].dims:
        of["group"] = ds["group"].values[0] if group is None else group
        title += f": {of['group']}"
    chosen = np.unique(np.linspace(0, ds.sizes[rate] - 1, lines).round().astype(int))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(chosen)))
    for one, color in zip(chosen, shades, strict=True):
        trace = ds[name].sel(of).isel({rate: one})
        value = float(ds[rate][one])
        ax.plot(ds["step"] + 1, trace, ".-", ms=3, lw=1.2, color=color, label=f"{value:.3g}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("step, counted from 1")
    ax.set_ylabel(_TRACE_LABELS[name])
    ax.set_title(title, fontsize="medium")
    ax.grid(alpha=0.25)
    ax.legend(
        title="rate", frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )
    return ax


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
    ax = _axes(ax, _map_size(rules, columns))
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
    ax.set_xlabel(_RATE_LABELS[rate])
    return ax


def plot_equilibrium(ds: "xr.Dataset", name: str, rule: str, ax: "Axes | None" = None) -> "Axes":
    """A measure of each group over the steps, and where it is predicted to settle (dashed).

    Args:
      ds: the result of the experiment `equilibrium`; of its rates and seeds the first is drawn.
      name: `angle` or `norm2`.
      rule: which rule.
      ax: where to draw; default a new figure.
    """
    ax, ds = _axes(ax), results.curves(ds)
    one = ds.sel(rule=rule).isel({results.rate_dim(ds): 0, "seed": 0})
    for (color, _), group in zip(itertools.cycle(_STYLES), ds["group"].values, strict=False):
        of = one.sel(group=group)
        ax.plot(of["step"] + 1, of[name], lw=0.8, alpha=0.5, color=color, label=str(group))
        settles = of["step"].values[-1] + 1
        ax.plot([1, settles], [of[f"predicted_{name}"]] * 2, "--", lw=1.5, color=color)
    ax.set_yscale("log")
    ax.locator_params("x", nbins=4)
    ax.set_xlabel("step, counted from 1")
    ax.set_ylabel(_TRACE_LABELS[name])
    ax.set_title(str(one["title"].item()), fontsize="medium")
    ax.grid(alpha=0.25)
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """The figures of an experiment, by name: final values, and the spheres of normalised rules.

    Of many rules there is a map in place of curves; of an equilibrium, what was predicted.

    Args:
      ds: the result of a sweep of `train` runs.
    """
    ds = results.curves(ds)
    match ds.attrs.get("experiment"):
        case "rules":
            return {"rules": _rules(ds)}
        case "equilibrium":
            return {"equilibrium": _equilibrium(ds)}
    name = "test_accuracy" if ds.attrs.get("experiment") == "generalization" else "final_loss"
    final, ((ax,),) = _figure(1, 1, (6.4, 4.2))
    plot_final(ds, name, ax)
    measured = ds["norm2"].notnull().any(["group", "step", results.rate_dim(ds), "seed"])
    normalised = list(ds["rule"].values[measured])
    if not normalised:
        return {name: final}
    spheres, axes = _figure(2, len(normalised), (4.0 * len(normalised), 6.0))
    for row, measure in zip(axes, ("norm2", "effective_rate"), strict=True):
        for ax, rule in zip(row, normalised, strict=True):
            plot_trace(ds, measure, rule, ax)
            ax.label_outer()
            if ax is not axes[0, -1]:
                ax.get_legend().remove()
    return {name: final, "spheres": spheres}


def _rules(ds: "xr.Dataset") -> "Figure":
    figure, ((ax,),) = _figure(1, 1, _map_size(ds.sizes["rule"], ds.sizes[results.rate_dim(ds)]))
    plot_map(ds, ax).set_title("final training loss (median), and test accuracy", fontsize="medium")
    return figure


def _equilibrium(ds: "xr.Dataset") -> "Figure":
    rules = ds["rule"].values
    figure, axes = _figure(2, len(rules), (3.6 * len(rules), 6.0))
    for row, name in zip(axes, ("angle", "norm2"), strict=True):
        for ax, rule in zip(row, rules, strict=True):
            plot_equilibrium(ds, name, rule, ax).label_outer()
    axes[0, -1].plot([], [], "--", lw=1.5, color="0.4", label="predicted")
    axes[0, -1].legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _map_size(rows: int, columns: int) -> tuple[float, float]:
    return 2.6 + 0.5 * columns, 1.2 + 0.26 * rows


def _shade(ax: "Axes", loss: np.ndarray, diverged: np.ndarray) -> None:
    """The cells of a map: dark where the loss is low, hatched where there is none."""
    low, high = _log_limits(loss)
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


def _log_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of a log axis that show all finite positive values, within reason."""
    shown = values[np.isfinite(values) & (values > _FLOOR) & (values < 1 / _FLOOR)]
    if not shown.size:
        return _FLOOR, 1 / _FLOOR
    return float(shown.min()) / 2, 2 * float(shown.max())


def _axes(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.2)) -> "Axes":
    return _figure(1, 1, size)[1][0, 0] if ax is None else ax


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", np.ndarray]:
    """A figure outside pyplot's registry: nothing to close, no backend chosen, no window."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharey="row", squeeze=False)
