import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate import results

INF, NAN = np.inf, np.nan
RATES = [0.01, 0.1, 1.0, 10.0]


def dataset(losses, rates=RATES, diverged=None, dim="rate"):
    """Losses of shape (rule, rate, seed)."""
    losses = np.asarray(losses, np.float32)
    rules = ["sgd-bn", "projected-bn", "sgd"][: len(losses)]
    diverged = np.zeros(losses.shape, bool) if diverged is None else np.asarray(diverged)
    return xr.Dataset(
        {
            "final_loss": (("rule", dim, "seed"), losses),
            "test_accuracy": (("rule", dim, "seed"), np.full(losses.shape, 0.9, np.float32)),
            "diverged": (("rule", dim, "seed"), diverged),
            "loss": (("rule", dim, "seed", "step"), np.zeros((*losses.shape, 3), np.float32)),
        },
        coords={
            "rule": rules,
            "title": ("rule", [rule.upper() for rule in rules]),
            dim: rates,
            "seed": np.arange(losses.shape[2]),
            "step": [0, 10, 20],
        },
        attrs={"experiment": "unified-rate", "devices": 2, "bnrate": "0.1.0"},
    )


DS = dataset([[[0.1, 0.2], [0.1, 0.1], [0.3, 0.1], [0.1, 0.4]]])


def test_saved_and_loaded_is_identical(tmp_path):
    folder = tmp_path / "deep" / "result"
    with results.writing(folder) as scratch:
        results.save(DS, scratch)
    xr.testing.assert_identical(results.load(folder), DS)
    assert results.load(folder).sel(rule="sgd-bn").title.item() == "SGD-BN"
    assert [path.name for path in folder.parent.iterdir()] == ["result"]


def test_nothing_is_half_written(tmp_path):
    folder = tmp_path / "result"

    def fail(overwrite=False):
        with results.writing(folder, overwrite) as scratch:
            results.save(DS, scratch)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []

    with results.writing(folder) as scratch:
        results.save(DS, scratch)
    with pytest.raises(RuntimeError):
        fail(overwrite=True)
    xr.testing.assert_identical(results.load(folder), DS)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_result_is_replaced_only_when_told(tmp_path):
    folder, other = tmp_path / "result", dataset([[[1.0]] * 4])
    with results.writing(folder) as scratch:
        results.save(DS, scratch)
    refused = pytest.raises(ValueError, match=r"is not empty, it has results.zarr; choose another")
    with refused, results.writing(folder):
        raise AssertionError
    xr.testing.assert_identical(results.load(folder), DS)
    with results.writing(folder, overwrite=True) as scratch:
        results.save(other, scratch)
    xr.testing.assert_identical(results.load(folder), other)
    assert [path.name for path in folder.iterdir()] == ["results.zarr"]


def test_what_is_not_ours_is_never_touched(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    with (
        pytest.raises(ValueError, match=r"not empty, it has thesis.tex"),
        results.writing(tmp_path),
    ):
        raise AssertionError
    with results.writing(tmp_path, overwrite=True) as scratch:
        results.save(DS, scratch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.zarr", "thesis.tex"]
    with pytest.raises(ValueError, match=r"cannot write"), results.writing(thesis, overwrite=True):
        raise AssertionError
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_results_zarr_that_is_not_ours_is_never_replaced(kind, tmp_path):
    precious, folder = tmp_path / "precious", tmp_path / "folder"
    folder.mkdir()
    if kind == "link":
        with results.writing(precious) as scratch:
            results.save(DS, scratch)
        (folder / "results.zarr").symlink_to(precious / "results.zarr")
    else:
        (folder / "results.zarr").mkdir()
        (folder / "results.zarr" / "mine").write_text("mine")
    refused = pytest.raises(ValueError, match=r"results.zarr' is not a result of bnrate")
    with refused, results.writing(folder, overwrite=True):
        raise AssertionError
    assert (folder / "results.zarr").exists()


def test_a_link_to_a_folder_is_followed(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with results.writing(tmp_path / "link") as scratch:
        results.save(DS, scratch)
    assert (tmp_path / "link").is_symlink()
    xr.testing.assert_identical(results.load(tmp_path / "disk"), DS)
    monkeypatch.chdir(tmp_path / "disk")
    with results.writing("../disk", overwrite=True) as scratch:
        results.save(DS, scratch)
    xr.testing.assert_identical(results.load("."), DS)


def test_an_old_result_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "result"
    with results.writing(folder) as scratch:
        results.save(DS, scratch)
    rename = type(tmp_path).rename

    def broken(self, target):
        if self.name == "results.zarr" and self.parent != folder:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", broken)
    with pytest.raises(KeyboardInterrupt), results.writing(folder, overwrite=True) as scratch:
        results.save(dataset([[[1.0]] * 4]), scratch)
    xr.testing.assert_identical(results.load(folder), DS)
    assert [path.name for path in folder.iterdir()] == ["results.zarr"]


def test_a_result_that_appeared_meanwhile_is_not_replaced(tmp_path):
    def late():
        with results.writing(tmp_path) as scratch:
            results.save(dataset([[[1.0]] * 4]), scratch)
            with results.writing(tmp_path) as first:
                results.save(DS, first)

    with pytest.raises(ValueError, match=r"is not empty, it has results.zarr"):
        late()
    xr.testing.assert_identical(results.load(tmp_path), DS)


def test_a_full_disk_is_one_error(tmp_path):
    def fill():
        with results.writing(tmp_path / "a" / "b"):
            raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"could not write to .*No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(ValueError, match=r"cannot write to '.*/file/result': .*; choose")
    with refused, results.writing(tmp_path / "file" / "result"):
        raise AssertionError


@pytest.mark.parametrize("victim", ["zarr.json", "final_loss/zarr.json", "final_loss/c/0/0/0"])
def test_a_damaged_result_is_one_error(victim, tmp_path):
    with results.writing(tmp_path) as scratch:
        results.save(DS, scratch)
    (tmp_path / "results.zarr" / victim).write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*; run the experiment again"):
        results.load(tmp_path)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no result in .*results.zarr"):
        results.load(tmp_path)


def test_provenance_says_what_was_run():
    attrs = results.provenance({"rates": (0.1, 1.0), "data": "digits"})
    assert attrs["config"] == '{"rates": [0.1, 1.0], "data": "digits"}'
    assert attrs["platform"] == "cpu"
    assert attrs["command"] == " ".join(sys.argv)
    assert {"bnrate", "jax", "jaxlib", "flax", "optax", "python", "device", "git"} <= set(attrs)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if revision.returncode == 0:
        assert attrs["git"].removesuffix("-dirty") == revision.stdout.strip()


@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_a_diverged_run_is_never_the_best(bad):
    # a lost run can leave any number behind, even a tiny one
    ds = dataset([[[0.5, bad]] * 4], diverged=[[[False, True]] * 4])
    assert float(results.counted(ds, "final_loss").min()) == 0.5
    assert float(results.counted(ds, "test_accuracy").sel(seed=1).max()) == 0
    summary = results.over_seeds(ds, "final_loss")
    assert np.all(summary["high"] == INF)
    assert np.all(summary["diverged"] == 1)


def test_a_loss_that_is_not_finite_counts_as_worst_even_unmarked():
    assert float(results.counted(dataset([[[NAN]] * 4]), "final_loss").min()) == INF


def test_over_seeds():
    ds = dataset([[[0.3, 0.1, 0.2]] * 4])
    summary = results.over_seeds(ds, "final_loss").isel(rule=0, rate=0)
    np.testing.assert_allclose([summary[n] for n in ("median", "low", "high")], [0.2, 0.1, 0.3])
    # of an even number the worse of the middle two; half diverged is not typical
    even = dataset([[[0.3, 0.1, 0.2, 0.4]] * 4])
    assert results.over_seeds(even, "final_loss")["median"][0, 0] == np.float32(0.3)
    half = dataset([[[0.1, 0.2]] * 4], diverged=[[[False, True]] * 4])
    assert results.over_seeds(half, "final_loss")["median"][0, 0] == INF
    assert results.over_seeds(half, "test_accuracy")["median"][0, 0] == 0
    with pytest.raises(ValueError, match="the Dataset has no 'final_loss'"):
        results.over_seeds(ds.drop_vars("final_loss"), "final_loss")
    with pytest.raises(ValueError, match="unknown final value 'loss'; choose one of final_loss"):
        results.over_seeds(ds, "loss")


FREEDOM = {
    # name: losses by rate, threshold, expected decades, low, high
    "all": ([0.1, 0.1, 0.1, 0.1], 3.0, 0.01, 10),
    "left": ([0.1, 0.1, 0.5, 0.1], 1.0, 0.01, 0.1),
    "middle": ([0.5, 0.2, 0.2, 0.5], 1.0, 0.1, 1),
    "one": ([0.5, 0.5, 0.1, 0.5], 0.0, 1, 1),
    "none": ([0.5, 0.5, 0.5, 0.5], 0.0, NAN, NAN),
    "nan inside": ([0.1, NAN, 0.1, 0.1], 1.0, 1, 10),
    "infinite": ([INF, 0.1, 0.1, 0.1], 2.0, 0.1, 10),
}


@pytest.mark.parametrize("dim", ["rate", "rate_invariant"])
@pytest.mark.parametrize(("losses", "decades", "low", "high"), FREEDOM.values(), ids=FREEDOM)
def test_tuning_freedom(losses, decades, low, high, dim):
    ds = dataset(np.array(losses)[None, :, None], dim=dim)
    got = results.tuning_freedom(ds, 0.2).squeeze()
    np.testing.assert_allclose(got["decades"], decades, atol=1e-6)
    np.testing.assert_allclose([got["low"], got["high"]], [low, high])


def test_tuning_freedom_counts_a_diverged_run_as_bad_whatever_its_loss():
    diverged = np.zeros((1, 4, 1), bool)
    diverged[0, 1] = True
    ds = dataset(np.full((1, 4, 1), 0.1), diverged=diverged)
    assert results.tuning_freedom(ds, 0.2)["low"] == 1


def test_tuning_freedom_spreads_over_seeds():
    got = results.tuning_freedom(DS, 0.2).isel(rule=0)
    np.testing.assert_allclose(got["decades"], [1, 2], atol=1e-6)
    values = [got[f"decades_{name}"] for name in ("mean", "min", "max")]
    np.testing.assert_allclose(values, [1.5, 1, 2], atol=1e-6)


def test_tuning_freedom_by_a_factor_of_the_best():
    losses = np.array([0.4, 0.1, 0.15, 0.3])[None, :, None]
    got = results.tuning_freedom(dataset(losses), factor=2.0)
    np.testing.assert_allclose(got["decades"], 1, atol=1e-6)
    np.testing.assert_allclose(got.attrs["limit"], 0.2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_tuning_freedom_against_brute_force(good, random):
    rates = [10 ** (e / 100) for e in sorted(random.sample(range(-300, 300), len(good)))]
    order = list(range(len(good)))
    random.shuffle(order)  # the order of the axis must not matter
    losses = np.where(good, 0.1, 1.0)[order][None, :, None]
    ds = dataset(losses, rates=np.array(rates)[order])
    ranges = [
        np.log10(rates[j] / rates[i])
        for i in range(len(good))
        for j in range(i, len(good))
        if all(good[i : j + 1])
    ]
    got = float(results.tuning_freedom(ds, 0.2)["decades"].squeeze())
    np.testing.assert_allclose(got, max(ranges, default=0), atol=1e-9)


BAD_LIMITS = [({}, "one of them"), ({"threshold": 1.0, "factor": 2.0}, "one of them"),
              ({"threshold": 0.0}, "positive loss, got 0"), ({"threshold": NAN}, "positive loss"),
              ({"factor": 0.5}, "at least 1, got 0.5")]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), BAD_LIMITS)
def test_bad_limits(given, message):
    with pytest.raises(ValueError, match=message):
        results.tuning_freedom(DS, **given)


def test_no_best_among_the_lost():
    with pytest.raises(ValueError, match="every run diverged"):
        results.tuning_freedom(dataset([[[NAN]] * 4]), factor=2.0)


def test_curves_are_over_rule_rate_and_seed():
    several = xr.concat([DS, DS], xr.DataArray([0.1, 0.2], dims="rate_rest", name="rate_rest"))
    with pytest.raises(ValueError, match="varies rate_rest too; take one entry"):
        results.curves(several)
    for ds in (
        several.isel(rate_rest=[0]),
        DS.isel(seed=0),
        DS.isel(rule=0),
        DS.drop_vars("title"),
    ):
        got = results.curves(ds)
        assert got["diverged"].dims == DS["diverged"].dims or set(got["diverged"].dims) == {
            "rule", "rate", "seed",
        }  # fmt: skip
        assert got["title"].dims == ("rule",)


def test_a_dataset_without_rates_is_refused():
    with pytest.raises(ValueError, match="none of"):
        results.rate_dim(DS.rename(rate="other"))
