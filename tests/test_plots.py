"""Figures without a display: what is drawn is what the Dataset holds."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from test_results import INF, NAN, RATES, dataset

from bnrate import plots

LOSSES = np.array(
    [
        [[0.3, 0.1, 0.2], [0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.5, 0.4, 0.6]],
        [[0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [2.0, INF, 3.0], [NAN, NAN, NAN]],
    ]
)


@pytest.fixture
def ds():
    ds = dataset(LOSSES, diverged=~np.isfinite(LOSSES))
    shape = (2, 4, 3, 3, 2)
    names = ("rule", "rate", "seed", "step", "group")
    G = np.arange(1, np.prod(shape) + 1, dtype=float).reshape(shape)
    return ds.assign(norm2=(names, G), effective_rate=(names, 1 / G)).assign_coords(
        group=["k", "n"]
    )


def line(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found


def crosses(ax):
    lines = [line for line in ax.get_lines() if line.get_marker() == "x" and len(line.get_xdata())]
    return [list(line.get_xdata()) for line in lines]


def test_the_line_is_the_median(ds):
    ax = plots.plot_final(ds)
    np.testing.assert_allclose(line(ax, "SGD-BN").get_xdata(), RATES)
    np.testing.assert_allclose(line(ax, "SGD-BN").get_ydata(), [0.2, 0.1, 0.2, 0.5], rtol=1e-6)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_the_band_reaches_from_lowest_to_highest(ds):
    band = plots.plot_final(ds).collections[0].get_paths()[0].vertices
    at_first = band[np.isclose(band[:, 0], RATES[0])][:, 1]
    np.testing.assert_allclose([at_first.min(), at_first.max()], [0.1, 0.3], rtol=1e-6)


def test_diverged_runs_are_marked_and_end_the_line(ds):
    ax = plots.plot_final(ds)
    np.testing.assert_allclose(
        line(ax, "PROJECTED-BN").get_ydata(), [0.3, 0.2, 3.0, NAN], rtol=1e-6
    )
    assert crosses(ax) == [[1.0, 10.0]]
    assert "a run diverged" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_without_divergence_nothing_is_marked(ds):
    ax = plots.plot_final(ds.isel(rule=[0]))
    assert crosses(ax) == []
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["SGD-BN"]


def test_accuracy_is_on_a_linear_axis_from_0_to_1(ds):
    ax = plots.plot_final(ds, "test_accuracy")
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim() == (0, 1)


def test_a_trace_is_drawn_for_a_few_rates(ds):
    ax = plots.plot_trace(ds, "norm2", "sgd-bn", group="n", seed=1, lines=3)
    drawn = ax.get_lines()
    assert [line.get_label() for line in drawn] == ["0.01", "1", "10"]
    expected = ds["norm2"].sel(rule="sgd-bn", group="n", seed=1, rate=1.0)
    np.testing.assert_allclose(drawn[1].get_ydata(), expected)
    np.testing.assert_allclose(drawn[1].get_xdata(), [1, 11, 21])


@pytest.mark.parametrize("experiment", ["unified-rate", "separate-rates", "generalization"])
def test_each_experiment_has_its_figures(ds, experiment, tmp_path):
    if experiment == "separate-rates":
        ds = ds.rename(rate="rate_invariant").expand_dims(rate_rest=[0.1], axis=2)
    figures = plots.figures(ds.assign_attrs(experiment=experiment))
    final = "test_accuracy" if experiment == "generalization" else "final_loss"
    assert set(figures) == {final, "spheres"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    assert {path.name for path in tmp_path.iterdir()} == {f"{final}.png", "spheres.png"}
    assert (tmp_path / "spheres.png").read_bytes().startswith(b"\x89PNG")


def test_everything_lost_can_still_be_drawn(ds, tmp_path):
    lost = ds.assign(final_loss=ds["final_loss"] * NAN, diverged=ds["diverged"] | True)
    plots.figures(lost)["final_loss"].savefig(tmp_path / "x.png")


def test_nothing_global_is_changed(ds):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    plots.figures(ds)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_one_rate_one_seed_one_record(ds, tmp_path):
    smallest = ds.isel(rate=[0], seed=[0], step=[0], rule=[0], group=[0])
    for name, figure in plots.figures(smallest).items():
        figure.savefig(tmp_path / f"{name}.png")


def test_it_draws_where_it_is_told(ds):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plots.plot_final(ds, ax=ax) is ax
    assert plots.plot_trace(ds, "norm2", "sgd-bn", ax) is ax


def many(ds):
    """Three rules: one with a best rate, one that diverges at some, one that is lost."""
    lost = ds.isel(rule=[0]).assign_coords(rule=["lost"], title=("rule", ["LOST"]))
    lost["final_loss"], lost["diverged"] = lost["final_loss"] * NAN, lost["diverged"] | True
    return xr.concat([ds, lost], "rule").assign_attrs(experiment="rules")


def frames(ax):
    """The cells that are framed, and those that are hatched: (row, column)."""
    cells = [patch for patch in ax.patches if isinstance(patch, matplotlib.patches.Rectangle)]
    at = {(patch.get_y() + 0.5, patch.get_x() + 0.5): bool(patch.get_hatch()) for patch in cells}
    return {cell for cell in at if not at[cell]}, {cell for cell in at if at[cell]}


def test_a_map_says_the_median_and_frames_the_best_rate(ds):
    ax = plots.plot_map(many(ds))
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert [texts[column, 0] for column in range(4)] == ["0.2", "0.1", "0.2", "0.5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "SGD-BN", "PROJECTED-BN", "LOST",
    ]  # fmt: skip
    best, hatched = frames(ax)
    assert best == {(0, 1), (1, 1)}
    assert hatched == {(1, 3), (2, 0), (2, 1), (2, 2), (2, 3)}
    assert [text for text in texts.values() if "%" in text] == ["90.0%", "90.0%"]
    # a dot where one of three runs diverged, and the median is still finite
    assert [line.get_xdata().tolist() for line in ax.get_lines()] == [[2.4]]


def test_a_rule_without_a_rate_has_no_best_rate(ds):
    untuned = many(ds).assign_coords(tuned=("rule", [False, True, True]))
    assert frames(plots.plot_map(untuned))[0] == {(1, 1)}


@pytest.fixture
def settling(ds):
    measured = {
        f"predicted_{name}": ds["norm2"].isel(step=0, drop=True) * 0 + value
        for name, value in (("angle", 0.01), ("norm2", 7.0))
    }
    return ds.assign(angle=ds["norm2"] / 1000, **measured).assign_attrs(experiment="equilibrium")


def test_predictions_are_dashed(settling):
    ax = plots.plot_equilibrium(settling, "norm2", "sgd-bn")
    dashed = [one for one in ax.get_lines() if one.get_linestyle() == "--"]
    assert [list(one.get_ydata()) for one in dashed] == [[7.0, 7.0]] * 2
    expected = settling["norm2"].sel(rule="sgd-bn", group="n").isel(rate=0, seed=0)
    np.testing.assert_allclose(line(ax, "n").get_ydata(), expected)


def test_rules_and_equilibrium_have_one_figure_each(ds, settling, tmp_path):
    for made, name in ((many(ds), "rules"), (settling, "equilibrium")):
        figures = plots.figures(made)
        assert list(figures) == [name]
        figures[name].savefig(tmp_path / f"{name}.png")
