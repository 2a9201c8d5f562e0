"""Figures of a result: `plot_*(ds, ax=None) -> Axes`, drawn from the Dataset as it is.

Colours are from Okabe & Ito's palette, which colour-blind readers can tell apart; each rule keeps
its colour and marker in every figure.  Nothing global is changed and no window is opened.
"""

from typing import TYPE_CHECKING

from bnrate.plots import bounds, comparison, decay, paper, projection, smoothing, speed
from bnrate.plots.bounds import plot_bound, plot_certificate, plot_tightness
from bnrate.plots.comparison import plot_map
from bnrate.plots.decay import plot_equilibrium
from bnrate.plots.paper import plot_final, plot_trace
from bnrate.plots.projection import plot_projection
from bnrate.plots.smoothing import plot_probes
from bnrate.plots.speed import plot_gdnp, plot_lower_bound

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "figures",
    "plot_bound",
    "plot_certificate",
    "plot_equilibrium",
    "plot_final",
    "plot_gdnp",
    "plot_lower_bound",
    "plot_map",
    "plot_probes",
    "plot_projection",
    "plot_tightness",
    "plot_trace",
]

# What is drawn of an experiment; of any other sweep of runs, what is drawn of the paper's.
_FIGURES = {
    "rules": comparison.figures,
    "equilibrium": decay.figures,
    "gd-rate": bounds.figures,
    "sgd-rate": bounds.figures,
    "psgd-fails": projection.figures,
    "lower-bound": speed.lower_bound,
    "gdnp": speed.gdnp,
    "certificate": bounds.certificate,
    "smoothness": smoothing.figures,
}


def figures(ds: "xr.Dataset") -> dict[str, "Figure"]:
    """The figures of a result, by name.

    Args:
      ds: the result of an experiment, or of any sweep of `train` runs.
    """
    return _FIGURES.get(ds.attrs.get("experiment", ""), paper.figures)(ds)
