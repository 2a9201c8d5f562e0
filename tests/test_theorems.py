"""The experiments that hold theorems against runs, at small sizes: numbers, reports, pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from bnrate import experiments, losses, plots, results
from bnrate.cli.reports import report
from bnrate.experiments import Config, certifying, chain, descent, instances, known
from bnrate.theory import constants, gd

SMALL = {
    "gd-rate": Config(rates=(1e-3, 1.0, 1e3), seeds=3, steps=300),
    "sgd-rate": Config(rates=(0.01, 1.0), seeds=2, steps=100),
    "psgd-fails": Config(rates=(0.5, 1.1, 2.0, 1000.0), seeds=3, steps=20_000),
    "lower-bound": Config(rates=(1e-7, 1e-2), steps=60),
    "gdnp": Config(rates=(1.0,), seeds=3, steps=60),
    "certificate": Config(rates=(0.1, 100.0), steps=60, width=4, batch=32),
    "smoothness": Config(rates=(0.1, 1.0), seeds=1, steps=20, stride=10, width=8, batch=32),
}
FEW = {
    "GD": ("rayleigh-5", "bn-least-squares-5", "coupled-3-5"),
    "SGD": ("noisy-rayleigh-3", "noisy-bn-least-squares-2"),
}
every = pytest.mark.parametrize("name", SMALL)


@functools.cache
def small(name):
    """The result of an experiment, on fewer problems where there are many."""
    with pytest.MonkeyPatch.context() as patch:
        for table, names in FEW.items():
            kept = {key: getattr(instances, table)[key] for key in names}
            patch.setattr(instances, table, kept)
        patch.setattr(chain, "LENGTHS", {"chain-10": 10, "chain-20": 20})
        return experiments.EXPERIMENTS[name](SMALL[name])


@every
def test_the_report_fits_a_terminal(name):
    lines = report(small(name)).splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 100


@every
def test_the_pictures_are_drawn(name, tmp_path):
    figures = plots.figures(small(name))
    assert figures
    for title, figure in figures.items():
        figure.savefig(tmp_path / f"{title}.png")
        assert figure.axes[0].get_lines()


@pytest.mark.parametrize("name", [name for name in SMALL if name != "smoothness"])
def test_what_it_has_no_use_for_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} has no use for model vgg; it takes rates"):
        experiments.EXPERIMENTS[name](Config(model="vgg"))


@every
def test_no_run_diverges(name):
    assert not small(name)["diverged"].any()


@pytest.mark.parametrize("name", ["gd-rate", "sgd-rate"])
def test_no_bound_is_violated(name):
    ds = small(name)
    assert ds["violations"].sum() == 0
    for bound in ("bound_least", "bound_norm2"):
        assert np.isfinite(ds[bound]).any(ds[bound].dims[-1]).all()
    assert (ds["tightness"] >= 1 - 1e-9).all()


@pytest.mark.parametrize("measured", descent._CLAIMS)
def test_a_violation_is_counted(measured):
    """Once for each record at which any block exceeds."""
    ds = small("sgd-rate" if measured == "weighted_sum" else "gd-rate")
    worse = ds.assign({measured: ds[measured].where(ds["step"] < 2, 1e30)})
    counted = descent._with_violations(worse)
    assert (counted["violations"] == ds.sizes["step"] - 2).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", descent._CLAIMS)
def test_what_is_not_a_number_counts_as_a_violation(name, value):
    ds = small("sgd-rate" if name == "weighted_sum" else "gd-rate")
    bound = descent._CLAIMS[name]
    lost = ds.assign({key: ds[key] * np.nan + value for key in (name, bound)})
    lost[name] = lost[name].fillna(value) if np.isinf(value) else lost[name]
    assert (descent._with_violations(lost)["violations"] >= ds.sizes["step"]).all()


@pytest.mark.parametrize("name", ["psgd-fails", "gdnp"])
def test_too_few_steps_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} needs 2 steps or more, got 1"):
        experiments.EXPERIMENTS[name](Config(steps=1))


def test_the_last_row_of_probes_is_labelled():
    axes = plots.figures(small("smoothness"))["smoothness"].axes
    assert [ax.get_xlabel() for ax in axes] == [""] * 4 + ["step"] * 4


def test_one_rate_is_drawn_wherever_it_lies():
    ds = small("psgd-fails").isel(rate=[3])
    axes = plots.figures(ds)["projection"].axes
    assert all(len(ax.get_lines()[0].get_xdata()) for ax in axes)


def test_columns_of_a_report_say_what_they_are():
    ds = small("certificate")
    row = report(ds).splitlines()[4].split()
    one = ds.isel(rate_invariant=0, rate_rest=0, seed=0)
    expected = one["measured_sum"], one["certified_sum"]
    assert row[3:5] == [f"{value.item():.3g}" for value in expected]
    first = small("gd-rate")["tightness"].isel(problem=0, rate_invariant=1)
    lines = report(small("gd-rate")).splitlines()
    shown = [float(line.split()[column]) for line, column in ((lines[4], -2), (lines[5], 1))]
    np.testing.assert_allclose(shown, [first.min(), first.median()], rtol=1e-2)


def test_a_chain_that_is_not_climbed_in_time_is_said_so():
    lines = report(small("lower-bound").isel(rate=[0])).splitlines()
    assert lines[-1].split() == ["20", "-", "-"]


def test_sums_are_those_of_a_plain_loop():
    ds = small("gd-rate").sel(problem="rayleigh-5")
    with jax.enable_x64(True):
        run = descent._gd_run(instances.GD["rayleigh-5"].build())
        point = {
            "rate_invariant": jnp.array(1e3),
            "rate_rest": jnp.array(0.5),
            "seed": jnp.array(1),
        }
        state = run.init(point)
        w, spectrum = np.asarray(state.params["w"]), np.asarray(state.extra)
    total, G0, L0 = 0.0, w @ w, spectrum @ w**2 / (w @ w)
    for _ in range(300):
        gradient = 2 * (spectrum - spectrum @ w**2 / (w @ w)) * w / (w @ w)
        total += gradient @ gradient * (w @ w)
        w = w - 1e3 * gradient
    one = ds.sel(rate_invariant=1e3).isel(instance=1)
    np.testing.assert_allclose(one["gradient2_sum"].isel(step=-1), total, rtol=1e-6)
    with jax.enable_x64(True):
        bound = gd.bound(
            constants.rayleigh(spectrum), loss=L0, norm2=jnp.array([G0]), rate=jnp.array(1e3)
        )
    np.testing.assert_allclose(one["bound_sum"], bound.total, rtol=1e-9)


def test_replicas_are_those_of_a_plain_loop():
    """Each at the falling rate, each with its batches; what is recorded is their mean."""
    ds = small("sgd-rate").sel(problem="noisy-bn-least-squares-2", alpha=0.5, rate_invariant=1.0)
    one, many = instances.SGD["noisy-bn-least-squares-2"].build(), 32
    with jax.enable_x64(True):
        point = {"alpha": 0.5, "rate_invariant": 1.0, "rate_rest": 0.5, "seed": 1}
        state = descent._sgd_run(one).init({k: jnp.asarray(v) for k, v in point.items()})
        drawn = jax.vmap(lambda step: losses.replicas(one, many).batch(state.key, step))
        batches = np.asarray(drawn(jnp.arange(100)))
    S, b, _, mean = (np.asarray(leaf) for leaf in state.extra)
    params = {name: np.array(leaf) for name, leaf in state.params.items()}
    total = 0.0

    def gradients(w, gamma, bias, k):  # of batch k, or of all
        deviation = np.sqrt(np.einsum("i,kij,j->k", w, S[k], w))
        u, sw = b[k] @ w / deviation, np.einsum("kij,j->ki", S[k], w)
        slope = (b[k] - (u / deviation)[:, None] * sw) / deviation[:, None]
        return -2 * gamma * slope.mean(0), 2 * (gamma - u.mean()), 2 * (bias - mean[k].mean())

    for t in range(100):
        for r in range(many):
            here = params["w"][r], params["gamma"][r], params["bias"][r]
            dw, dgamma, dbias = gradients(*here, np.arange(len(S)))
            total += ((dw @ dw) * (here[0] @ here[0]) + dgamma**2 + dbias**2) / many
            dw, dgamma, dbias = gradients(*here, batches[t, r : r + 1])
            params["w"][r] -= dw / np.sqrt(t + 1)
            params["gamma"][r] -= 0.5 * dgamma / np.sqrt(t + 1)
            params["bias"][r] -= 0.5 * dbias / np.sqrt(t + 1)
    recorded = ds["gradient2_sum"].isel(step=-1, instance=1)
    np.testing.assert_allclose(recorded, total, rtol=1e-8)


def test_projected_descent_stays_on_its_orbit_and_descent_converges():
    ds = small("psgd-fails")
    last = ds["gradient2"].isel(step=-1) ** 0.5
    beyond = last.sel(rate=[1.1, 2.0, 1000.0])
    on_orbit = beyond.sel(rule="projected-gd", seed=0)
    np.testing.assert_allclose(on_orbit, np.sqrt(1 - on_orbit["rate"] ** -2.0), atol=1e-10)
    np.testing.assert_allclose(on_orbit, ds["orbit"].sel(rate=beyond["rate"]), atol=1e-10)
    np.testing.assert_allclose(last.sel(rule="projected-gd", rate=2.0), 3**0.5 / 2, atol=1e-8)
    assert (last.sel(rule="gd") < 1e-4).all()
    assert ds["orbit"].sel(rate=0.5).isnull()
    noisy = ds["gradient2"].isel(step=-1).mean("seed")
    assert (noisy.sel(rule="sgd") < 0.1 * noisy.sel(rule="projected-sgd")).all()


def test_no_rate_is_faster_than_the_chain_is_long():
    ds = small("lower-bound")
    needed = ds["needed"].isel(seed=0)
    assert list(needed.sel(rate=1e-2).values) == [10, 20]
    assert not (needed < ds["length"]).any()
    assert needed.sel(rate=1e-7).isnull().all()  # not within these steps


def test_gdnp_contracts_as_proved_and_nearly_no_faster():
    ds = small("gdnp")
    worst = ds["worst"].sel(rule="gdnp").max(["rate", "seed"])
    assert (worst <= ds["contraction"] * (1 + 1e-6)).all()
    assert (worst >= 0.9 * ds["contraction"]).all()
    assert (ds["above"].isel(step=0) > 0.01).all()


def test_a_smooth_network_is_certified():
    ds = small("certificate")
    assert (ds["label"] == "valid").all()
    assert (ds["measured_sum"] <= ds["certified_sum"]).all()
    assert (ds["norm2"].isel(step=-1) <= ds["certified_norm2"] * (1 + 1e-9)).all()
    np.testing.assert_allclose(
        ds["measured_sum"], ds["gradient2"].isel(step=slice(None, -1)).sum("step"), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("changed", "label", "reason"),
    [
        ({"full_batch": False}, "estimate", "different batches"),
        ({"smoothness_residual": 0.1}, "estimate", "not twice continuously differentiable"),
        ({"norm2": np.nan}, "refused", "norm2 is not finite"),
    ],
)
def test_what_the_theorem_does_not_cover_is_said(changed, label, reason):
    ds = small("certificate")
    worse = ds.assign({name: xr.full_like(ds[name], value) for name, value in changed.items()})
    found = certifying.certified(worse)
    assert set(found["label"].values.flat) == {label}
    assert all(reason in text for text in found["reason"].values.flat)


def test_probes_are_in_the_weights_and_on_the_spheres():
    ds = small("smoothness")
    of_bn, of_none = ds.sel(rule="sgd-bn"), ds.sel(rule="sgd")
    for name in ("loss", "gradient_change", "smoothness", "lowest", "highest"):
        assert of_bn[f"sphere_{name}"].notnull().all()
        assert of_none[f"sphere_{name}"].isnull().all()
        assert ds[f"raw_{name}"].notnull().all()
    assert (ds["raw_lowest"] < ds["raw_highest"]).all()
    # The change of the gradient per distance is one of the Hessian, along the way.
    assert (
        of_bn["sphere_smoothness"].isel(step=0) < 3 * of_bn["sphere_highest"].isel(step=0)
    ).all()


def test_an_experiment_is_completed_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "LENGTHS", {"chain-10": 10})
    config = SMALL["lower-bound"]
    ds = experiments.lower_bound(config, out=tmp_path / "run")
    assert experiments.completed(results.load(tmp_path / "run")).identical(ds)


def test_times_are_few_and_end_with_the_last():
    assert known.times(1000) == (1, 3, 10, 30, 100, 300, 1000)
    assert known.times(50) == (1, 3, 10, 30, 50)
    assert known.times(1) == (1,)
