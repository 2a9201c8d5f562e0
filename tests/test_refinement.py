import numpy as np
import pytest
import xarray as xr
from test_results import dataset
from test_sweep import Quadratic

from bnrate import results, sweep

RATES = np.logspace(-2, 2, 9)


def curve(losses, rates=RATES, seeds=1):
    """A Dataset whose final loss is a function of the rate, the same for all seeds."""
    values = np.repeat(np.asarray(losses, np.float32)[None, :, None], seeds, 2)
    ds = dataset(values, rates=rates)
    return ds.assign(status=xr.full_like(ds["diverged"], "finished", "U10"))


def test_rates_are_added_where_the_curve_bends():
    knee = curve(np.where(RATES < 1, 1.0, RATES**2))  # flat, then steep: a bend at 1
    new = sweep.refine_rates(knee, add=4)
    assert set(new) == {"rule", "rate", "seed"}
    assert len(new["rate"]) == 4
    assert np.all((new["rate"] > 0.3) & (new["rate"] < 3.2))
    assert not np.isin(new["rate"], RATES).any()


def test_a_straight_curve_has_no_preferred_place_but_new_rates_all_the_same():
    new = sweep.refine_rates(curve(RATES), add=8)["rate"]
    assert len(np.unique(np.r_[new, RATES])) == 8 + len(RATES)


def test_the_edge_of_divergence_is_a_bend():
    losses = np.where(RATES < 10, 0.1, np.inf)
    with pytest.raises(ValueError, match="every run diverged"):
        sweep.refine_rates(curve(np.full(9, np.nan)), add=1)
    # infinity is taken for the worst finite value, 5, so the steepest bends are those beside 10
    losses[1] = losses[0] = 5.0
    new = sweep.refine_rates(curve(losses), add=2)["rate"]
    assert np.all(((new > 10**-1.5) & (new < 1)) | ((new > 1) & (new < 10**1.5)))


def test_seeds_are_added_where_they_spread():
    ds = curve(np.ones(9), seeds=3)
    loss = ds["final_loss"].copy()
    loss[0, 4, :] = [0.1, 1, 10]
    loss[0, 7, :] = [0.5, 1, 2]
    new = sweep.refine_seeds(ds.assign(final_loss=loss), add=2, share=2 / 9)
    np.testing.assert_allclose(new["rate"], RATES[[4, 7]])
    assert new["seed"].tolist() == [3, 4]
    assert new["rule"].tolist() == ["sgd-bn"]


def test_what_is_done_is_used_again():
    """A refined sweep is the sweep over all points, where there are any."""

    class Steep(Quadratic):
        def finish(self, state):
            final = super().finish(state)
            return {"final_loss": state["w"][0] ** 2, "diverged": final["final"] > 1e3}

    grid = {"rule": ["plain", "double"], "rate": [0.1, 0.5, 0.8, 3.0], "start": [1, 2]}
    ds = sweep.run(Steep, grid, steps=5, executor="map")
    at_one = ds.sel(start=1)
    rates = sweep.refine_rates(at_one, add=2)["rate"]
    more = sweep.run(Steep, {**grid, "rate": rates}, steps=5, executor="map")
    joined = results.join(ds, more)
    whole = sweep.run(Steep, {**grid, "rate": np.r_[grid["rate"], rates]}, steps=5, executor="map")
    for name in whole.data_vars:
        xr.testing.assert_equal(joined[name].sortby("rate"), whole[name].sortby("rate"))
        assert joined[name].dtype == whole[name].dtype
    corner = sweep.run(Steep, {**grid, "rate": [7.0], "start": [9]}, steps=5, executor="map")
    holes = results.join(ds, corner)
    assert (holes["status"] == "absent").sum() == 2 * (5 * 3) - 2 * (4 * 2) - 2
    absent = results.counted(holes, "final_loss").where(holes["status"] == "absent", drop=True)
    assert np.isnan(absent.sel(rate=7.0, start=1)).all()
    with pytest.raises(ValueError, match="a point of the grid is in both"):
        results.join(ds, ds)
    with pytest.raises(ValueError, match="only one of the Datasets has the variable 'loss'"):
        results.join(ds, more.drop_vars("loss"))


BAD = {
    "no rates": (lambda ds: sweep.refine_rates(ds.isel(rate=[0, 1]), add=1), "must be 3 values of"),
    "add": (lambda ds: sweep.refine_rates(ds, add=0), "add must be at least 1, got 0"),
    "one seed": (lambda ds: sweep.refine_seeds(ds, add=1), "there must be 2 values of 'seed'"),
    "share": (
        lambda ds: sweep.refine_seeds(xr.concat([ds, ds], "seed"), add=1, share=0.0),
        r"must lie in \(0, 1\], got 0",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(curve(RATES))
