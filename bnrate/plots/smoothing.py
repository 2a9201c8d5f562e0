"""Probes along the gradient, as Santurkar et al. (2018) drew them, and the top of the spectrum."""

from typing import TYPE_CHECKING

from bnrate.plots.drawing import STYLES, axes_of, figure_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PROBED = {  # title: rule, place
    "BN, on the spheres": ("sgd-bn", "sphere"),
    "BN, in the weights": ("sgd-bn", "raw"),
    "no normalisation": ("sgd", "raw"),
}
_MEASURES = {
    "loss": "loss along the step",
    "gradient_change": "change of the gradient",
    "smoothness": "effective smoothness",
    "highest": "top eigenvalue",
}


def plot_probes(ds: "xr.Dataset", name: str, rate: float, ax: "Axes | None" = None) -> "Axes":
    """What probes found at each record: a band over their steps, or a line; means over the seeds.

    Args:
      ds: the result of `smoothness`.
      name: `loss` or `gradient_change` (bands), `smoothness` or `highest` (lines).
      rate: of training.
      ax: where to draw; default a new figure.
    """
    ax = axes_of(ax)
    for (color, _), (title, (rule, place)) in zip(STYLES, _PROBED.items(), strict=False):
        of = ds[f"{place}_{name}"].sel(rule=rule, rate=rate).mean("seed")
        if "multiple" in of.dims:
            low, high = of.min("multiple"), of.max("multiple")
            ax.fill_between(of["step"], low, high, color=color, alpha=0.3, lw=0, label=title)
            ax.plot(of["step"], high, color=color, lw=0.8)
        else:
            ax.plot(of["step"], of.where(of > 0), color=color, lw=1.2, label=title)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.grid(alpha=0.25)
    return ax


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """A row for each rate, a column for each measure."""
    rates = ds["rate"].values
    figure, axes = figure_of(len(rates), 4, (12.0, 2.6 * len(rates)), sharey="col")
    for row, rate in zip(axes, rates, strict=True):
        for ax, (name, title) in zip(row, _MEASURES.items(), strict=True):
            plot_probes(ds, name, rate, ax).set_title(f"{title}, rate {rate:.3g}", fontsize="small")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return {"smoothness": figure}
