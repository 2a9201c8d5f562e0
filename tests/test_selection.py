"""Which iterate of a run is kept."""

import numpy as np
import pytest
import xarray as xr

from bnrate import results

STEPS = 40


def dataset(gradients, diverged=None):
    """Rules x seeds x steps, each record being its own number."""
    gradients = np.asarray(gradients, float)
    rules, seeds, steps = gradients.shape
    runs = np.zeros((rules, seeds), bool)
    return xr.Dataset(
        {
            "spherical_gradient_whole": (("rule", "seed", "step"), gradients),
            "norm2": (("rule", "seed", "step", "group"), gradients[..., None] + np.zeros(3)),
            "diverged": (("rule", "seed"), runs if diverged is None else diverged),
            "final_loss": (("rule", "seed"), runs + 1.0),
        },
        {"rule": list("abc"[:rules]), "seed": range(seeds), "step": 10 * np.arange(steps)},
    )


def each_step(rules=2, seeds=200, steps=STEPS):
    return dataset(np.broadcast_to(np.arange(steps), (rules, seeds, steps)))


def test_every_run_stops_at_its_own_step_and_every_step_is_as_likely():
    ds = each_step()
    stopped = results.random_stop(ds)
    assert dict(stopped.sizes) == {"rule": 2, "seed": 200, "group": 3}
    drawn = stopped["spherical_gradient_whole"]
    np.testing.assert_array_equal(stopped["step"], 10 * drawn)
    np.testing.assert_array_equal(stopped["norm2"].isel(group=1), drawn)
    counts = np.bincount(drawn.values.astype(int).ravel(), minlength=STEPS)
    assert counts.min() > 0
    assert abs(drawn.mean() - (STEPS - 1) / 2) < 2
    assert not drawn.identical(results.random_stop(ds, seed=1)["spherical_gradient_whole"])
    xr.testing.assert_identical(stopped, results.random_stop(ds))


def test_weights_say_how_likely_a_step_is():
    weights = np.zeros(STEPS)
    weights[[3, 7]] = 3, 1
    drawn = results.random_stop(each_step(), weights=weights)["step"].values
    assert set(drawn.ravel()) == {30, 70}
    np.testing.assert_allclose(np.mean(drawn == 30), 0.75, atol=0.06)


def test_of_the_seeds_the_smallest_gradient_is_kept_and_no_diverged_run():
    gradients = np.array([[[5.0] * 4, [0.1] * 4, [2.0] * 4], [[1.0] * 4, [np.nan] * 4, [3.0] * 4]])
    diverged = np.array([[False, True, False], [False, False, False]])
    kept = results.two_phase(dataset(gradients, diverged))
    assert set(kept.dims) == {"rule", "group"}
    np.testing.assert_array_equal(kept["seed"], [2, 0])
    np.testing.assert_array_equal(kept["spherical_gradient_whole"], [2, 1])


def test_a_run_that_was_stopped_is_not_kept():
    ds = dataset(np.ones((1, 2, 4)) * np.array([1.0, 2.0])[:, None])
    ds["status"] = (("rule", "seed"), [["stopped", "finished"]])
    assert results.two_phase(ds)["seed"] == 1
    assert results.two_phase(ds.drop_vars("status"))["seed"] == 0


def test_the_weights_of_the_theorem():
    np.testing.assert_allclose(results.stopping_weights(np.full(4, 0.1), 3.0), 0.25)
    with pytest.raises(ValueError, match=r"between 0 and 2 / smoothness = 0.2, got .0.1 0.3."):
        results.stopping_weights(np.array([0.1, 0.3]), 10.0)
    with pytest.raises(ValueError, match="smoothness must be a positive number, got 0"):
        results.stopping_weights(np.array([0.1]), 0.0)


BAD = {
    "no steps": (lambda ds: results.random_stop(ds.isel(step=0)), "no step to stop at"),
    "weights": (
        lambda ds: results.random_stop(ds, weights=np.ones(3)),
        "weights must be 40 numbers",
    ),
    "negative": (lambda ds: results.random_stop(ds, weights=-np.ones(STEPS)), "not negative"),
    "no seeds": (lambda ds: results.two_phase(ds.isel(seed=0)), "no seeds to choose from"),
    "final": (lambda ds: results.two_phase(ds, "final_loss"), "'final_loss' is not recorded"),
    "groups": (lambda ds: results.two_phase(ds, "norm2"), r"has the dimensions \['group'\] too"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(each_step(seeds=2))
