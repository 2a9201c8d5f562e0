import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import data, experiments, results, sweep
from bnrate.experiments import Config
from bnrate.groups import Group, Groups, Member

SMALL = Config(rates=(0.1, 10.0), seeds=2, steps=20, batch=64, width=12, stride=5)


@pytest.fixture(scope="module")
def unified():
    return experiments.unified_rate(SMALL)


def test_the_datasets_axes_and_names(unified):
    assert dict(unified.sizes) == {"rule": 4, "rate": 2, "seed": 2, "step": 4, "group": 5}
    assert list(unified["setting"].values) == ["1", "2", "3", "3b"]
    assert list(unified["group"].values) == [
        "layer0/kernel", "layer1/kernel", "layer2/kernel",
        "norm0/bias+norm0/scale", "norm1/bias+norm1/scale",
    ]  # fmt: skip
    recorded = {
        "loss",
        "norm2",
        "effective_rate",
        "spherical_gradient",
        "angle",
        "spherical_gradient_whole",
    }
    final = {"final_loss", "test_accuracy", "diverged", "diverged_at", "reason", "status"}
    assert set(unified.data_vars) == recorded | final
    assert unified["norm2"].sel(rule=["sgd", "sgd-data-init"]).isnull().all()
    assert unified["norm2"].sel(rule=["sgd-bn", "projected-bn"]).notnull().all()


def test_provenance_is_in_the_attributes(unified):
    assert unified.attrs["experiment"] == "unified-rate"
    assert '"width": 12' in unified.attrs["config"]
    assert unified.attrs["executor"] == "auto"
    assert unified.attrs["chunk"] == 5


@pytest.fixture(scope="module")
def separate():
    return experiments.separate_rates(SMALL)


def test_the_same_command_twice_is_bitwise_equal(separate):
    assert separate.identical(experiments.separate_rates(SMALL))


def test_map_and_vmap_agree_at_stable_rates(separate):
    vmapped = experiments.separate_rates(dataclasses.replace(SMALL, executor="vmap"))
    assert vmapped.attrs["executor"] == "vmap"
    for name in ("loss", "norm2", "angle", "spherical_gradient_whole"):
        one, two = separate[name].sel(rate_invariant=0.1), vmapped[name].sel(rate_invariant=0.1)
        np.testing.assert_allclose(one, two, rtol=1e-3, err_msg=name)


def test_separate_rates_holds_the_rest_at_a_tenth(separate):
    ds = separate
    assert dict(ds.sizes)["rate_rest"] == 1
    assert ds["rate_rest"].item() == 0.1
    assert list(ds["rule"].values) == ["sgd-bn", "projected-bn"]
    rates = (ds["effective_rate"] * ds["norm2"]).isel(rate_rest=0)
    np.testing.assert_allclose(rates.transpose(..., "rate_invariant")[..., 1], 10, rtol=1e-5)


def test_generalization_is_the_unified_rate_with_normalisation(monkeypatch):
    asked = {}

    def run(make, grid, **options):
        asked.update(grid)
        raise InterruptedError

    monkeypatch.setattr(experiments.sweep, "run", run)
    with pytest.raises(InterruptedError):
        experiments.generalization(SMALL)
    assert asked == {"rule": ("sgd-bn", "projected-bn"), "rate": (0.1, 10.0), "seed": range(2)}


def test_norms_grow_under_sgd_and_stay_under_projection(unified):
    G = unified["norm2"]
    assert (G.sel(rule="sgd-bn").diff("step") >= -1e-5 * G.sel(rule="sgd-bn")).all()
    assert (
        G.sel(rule="sgd-bn", rate=10).isel(step=-1)
        > 1.5 * G.sel(rule="sgd-bn", rate=10).isel(step=0)
    ).all()
    still = G.sel(rule="projected-bn")
    np.testing.assert_allclose(still, np.broadcast_to(still[:, :, :1], still.shape), rtol=1e-5)


def test_where_the_settings_start(unified):
    """Settings 1 and 2 begin alike; data-dependent initialisation nearly so, Glorot's not."""
    first = unified["loss"].isel(rate=0, step=0)
    assert (first.sel(rule="sgd-bn") == first.sel(rule="projected-bn")).all()
    assert (abs(first.sel(rule="sgd-data-init") - first.sel(rule="sgd-bn")) < 0.2).all()
    assert (first.sel(rule="sgd") < first.sel(rule="sgd-bn") - 0.2).all()


def test_final_values_against_a_plain_loop():
    """The loss is the mean over minibatches in training mode, accuracy from the running moments."""
    digits = data.load("digits")
    groups = experiments.find_groups(SMALL, digits, normalised=True)
    run = experiments.setting_run(SMALL, digits, "sgd-bn", groups)
    state = run.init({"rate": jnp.float32(0.5), "seed": jnp.int32(3)})
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: run.advance(s), s, length=4))(state)
    final = run.finish(state)

    def forward(x, stats):
        """The network written out: three dense layers, BN after each, ReLU between."""
        h = np.asarray(x, np.float64).reshape(len(x), -1)
        for i in range(3):
            h = np.maximum(h, 0) if i else h
            h = h @ np.asarray(state.params[f"layer{i}"]["kernel"], np.float64)
            norm = jax.tree.map(np.asarray, state.params[f"norm{i}"])
            mean, var = (h.mean(0), h.var(0)) if stats is None else (
                np.asarray(stats[f"norm{i}"]["mean"]), np.asarray(stats[f"norm{i}"]["var"])
            )  # fmt: skip
            sigma = np.where(var > 1e-12, np.sqrt(var), np.inf)
            h = (h - mean) / sigma * norm["scale"] + norm["bias"]
        return h

    losses = []
    for i in range(len(digits.train_y) // 64):
        x, y = (
            digits.train_x[64 * i : 64 * i + 64],
            np.asarray(digits.train_y[64 * i : 64 * i + 64]),
        )
        z = forward(x, None)
        losses.append(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(64), y]))
    np.testing.assert_allclose(final["final_loss"], np.mean(losses), rtol=1e-4)
    predicted = forward(digits.test_x, state.extra["batch_stats"]).argmax(1)
    np.testing.assert_allclose(
        final["test_accuracy"], np.mean(predicted == np.asarray(digits.test_y)), atol=0.003
    )


@pytest.mark.slow
def test_own_data_and_the_papers_network(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez(
        tmp_path / "mine.npz", x=rng.standard_normal((60, 8, 8, 2)) + y[:, None, None, None], y=y
    )
    own = str(tmp_path / "mine.npz")
    config = Config(own, "vgg", width=1, rates=(0.1,), seeds=1, steps=4, batch=16, stride=2)
    loaded = data.load(own)
    kernels = Groups(Group([Member(f"layer{i}/kernel")]) for i in range(16))
    make = functools.partial(experiments.setting_run, config, loaded, groups=kernels)
    ds = sweep.run(make, {"rule": ["sgd-bn"], "rate": [0.1, 10.0], "seed": [0]}, steps=4)
    assert ds["final_loss"].notnull().all()
    assert ds["norm2"].notnull().all()
    assert ds.sizes["group"] == 16


@pytest.mark.slow
def test_the_papers_shapes():
    """A fifth of the demonstration, at full length: what the figures claim, as numbers."""
    config = Config(rates=(0.01, 0.1, 1.0, 10.0, 100.0), seeds=1)
    separate = experiments.separate_rates(config)
    loss = results.counted(separate, "final_loss").squeeze()
    assert (loss.sel(rule="sgd-bn") < 0.05).all()
    assert loss.sel(rule="projected-bn").isel(rate_invariant=-1) > 0.5
    small = loss.sel(rate_invariant=slice(0, 0.1))
    np.testing.assert_allclose(small.sel(rule="projected-bn"), small.sel(rule="sgd-bn"), rtol=0.05)

    unified = experiments.unified_rate(config)
    loss = results.counted(unified, "final_loss").squeeze()
    assert (loss.sel(rule="sgd-bn") < 0.2).all()
    for rule in ("projected-bn", "sgd", "sgd-data-init"):
        assert (loss.sel(rule=rule, rate=slice(None, 0.1)) < 0.2).all()
        assert (loss.sel(rule=rule, rate=slice(30, None)) > 0.5).all()
    decades = results.tuning_freedom(unified, 0.2)["decades_mean"]
    assert decades.sel(rule="sgd-bn") == 4
    assert (decades.drop_sel(rule="sgd-bn") <= 3).all()


BAD = {
    "no rates": ({"rates": ()}, "rates are empty"),
    "negative rate": ({"rates": (0.1, -1.0)}, "rate -1.0 must be a positive finite number"),
    "zero rate": ({"rates": (0.0,)}, "rate 0.0 must be"),
    "nan rate": ({"rates": (float("nan"),)}, "rate nan must be"),
    "infinite rate": ({"rates": (float("inf"),)}, "rate inf must be"),
    "rate too small for float32": ({"rates": (1e-60,)}, "rate 1e-60 must be"),
    "rate too large for float32": ({"rates": (1e60,)}, r"rate 1e\+60 must be"),
    "repeated rate": ({"rates": (0.1, 0.1 + 1e-12)}, "repeats a value"),
    "no seeds": ({"seeds": 0}, "seeds must be 1 to 1000000, got 0"),
    "no steps": ({"steps": 0}, "steps must be 1 to 2147483647, got 0"),
    "stride": ({"steps": 10, "stride": 3}, "steps 10 must be a multiple of stride 3"),
    "batch of one": ({"batch": 1}, "batch must be 2 to 2147483647, got 1"),
    "batch too large": (
        {"batch": 1439},
        "batch size 1439 must lie between 1 and the 1438 training",
    ),
    "width": ({"width": 0}, "width must be 1 to 100000, got 0"),
    "data": ({"data": "cifar"}, "unknown data 'cifar'"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        experiments.unified_rate(dataclasses.replace(SMALL, **change))
