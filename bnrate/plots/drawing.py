"""What all figures share: styles, names of what is drawn, axes and figures."""

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
RATE_LABELS = {
    "rate": "learning rate of all parameters",
    "rate_invariant": "learning rate of the scale-invariant parameters",
}
FINAL_LABELS = {"final_loss": "final training loss", "test_accuracy": "test accuracy"}
_FLOOR = 1e-8  # losses from here to 1 / here are shown
TRACE_LABELS = {
    "loss": "loss of the batch",
    "norm2": "squared norm $G = |w|^2$",
    "effective_rate": r"effective rate $\eta\,/\,G$",
    "spherical_gradient": r"spherical gradient $|w|\,|\nabla L|$",
    "angle": "angle of the step (radians)",
    "rest_gradient": r"gradient of the rest $|\nabla_g L|$",
    "spherical_gradient_whole": "spherical gradient of the whole",
}


def shades(count: int) -> np.ndarray:
    """Colours from dark to light, for values from low to high."""
    import matplotlib  # noqa: PLC0415

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))


def log_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of a log axis that show all finite positive values, within reason."""
    shown = values[np.isfinite(values) & (values > _FLOOR) & (values < 1 / _FLOOR)]
    if not shown.size:
        return _FLOOR, 1 / _FLOOR
    return float(shown.min()) / 2, 2 * float(shown.max())


def axes_of(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.2)) -> "Axes":
    """The given axes, or those of a new figure."""
    return figure_of(1, 1, size)[1][0, 0] if ax is None else ax


def figure_of(
    rows: int, columns: int, size: tuple[float, float], sharey: Literal["row", "col"] = "row"
) -> tuple["Figure", np.ndarray]:
    """A figure outside pyplot's registry: nothing to close, no backend chosen, no window."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharey=sharey, squeeze=False)
