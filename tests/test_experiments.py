import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from bnrate import data, experiments, results, sweep
from bnrate.experiments import Config, Extent, comparison, decay
from bnrate.groups import Group, Groups, Member
from bnrate.theory import equilibrium
from bnrate.train import Rates

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
        "rest_gradient",
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

    monkeypatch.setattr(sweep, "run", run)
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


SPHERE = Groups([Group([Member("w", axes=1)])])


def small_problem(rule, steps=60):
    """Final loss over rates of a normalised regression with a gain, trained by one rule."""
    x = jax.random.normal(jax.random.key(0), (64, 4))
    y = jnp.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 3]], axis=1)

    def loss(params):
        h = x @ params["w"]
        h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
        return jnp.mean((params["gain"][None] * h - y) ** 2)

    def train_at(rate):
        tx = rule.build(SPHERE, Rates(rate, rate))
        params = {"w": jax.random.normal(jax.random.key(1), (4, 2)), "gain": jnp.ones(2)}

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optax.with_extra_args_support(tx).update(
                grads, state, params, value=value, value_fn=loss
            )
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return losses[0], loss(params), jnp.linalg.norm(params["w"], axis=0)

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        return jax.jit(jax.vmap(train_at))(jnp.array([0.003, 0.03, 0.3]))


@pytest.mark.parametrize("rule", experiments.RULES.values(), ids=experiments.RULES)
def test_each_rule_trains_at_one_rate_for_all(rule):
    """Rates are traced; some rate learns; only a rule without a rate is the same at all."""
    first, last, norms = small_problem(rule)
    assert last.min() < 0.3 * first[0]
    assert rule.title
    alike = bool((last == last[0]).all())
    assert alike != rule.tuned
    start = jnp.linalg.norm(jax.random.normal(jax.random.key(1), (4, 2)), axis=0)
    kept = bool(jnp.allclose(norms, start[None], rtol=1e-4))
    assert kept == any(
        word in rule.title for word in ("kept", "bounded", "riem", "grass", "rot", "set")
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two of the rules on a small network."""
    with pytest.MonkeyPatch.context() as patch:
        few = {name: experiments.RULES[name] for name in ("auto", "sgd")}
        patch.setattr(comparison, "RULES", few)
        return experiments.rules(dataclasses.replace(SMALL, seeds=1))


def test_rules_are_compared_at_the_same_rates(compared):
    assert dict(compared.sizes) == {"rule": 2, "rate": 2, "seed": 1, "step": 4, "group": 0}
    assert list(compared["title"].values) == ["auto: no rate", "SGD"]
    assert list(compared["tuned"].values) == [False, True]
    loss = compared["final_loss"].isel(seed=0)
    assert loss.sel(rule="auto", rate=0.1) == loss.sel(rule="auto", rate=10.0)
    assert loss.sel(rule="sgd", rate=0.1) != loss.sel(rule="sgd", rate=10.0)
    assert compared["loss"].isel(seed=0, step=0).std() == 0  # all start alike


def test_what_is_not_given_is_the_experiments_own():
    own = Extent((1.0, 2.0), seeds=3, steps=40)
    assert experiments.extent(Config(), own) == own
    given = Config(rates=(0.5,), seeds=1, steps=20)
    assert experiments.extent(given, own) == Extent((0.5,), 1, 20)


def test_most_labels_are_random_and_others_at_every_step():
    digits = data.load("digits")
    key = jax.random.key(3)
    same, noisy = [], []
    for step in range(20):
        x, y = data.batch(digits, key, step, 64)
        same_x, random_y = decay._noisy_batch(digits, 64, key, jnp.int32(step))
        assert (same_x == x).all()
        same.append(np.asarray(random_y == y))
        noisy.append(np.asarray(random_y))
    # four of five are drawn anew, and one of ten of these is right by chance
    np.testing.assert_allclose(np.mean(same), 0.2 + 0.8 / 10, atol=0.04)
    assert not (noisy[0] == noisy[1]).all()


def settled(angle_off=1.0, norm2_off=1.0, steps=400):
    """A recording of AdamW in equilibrium from the first step on, or off it by two factors."""
    rate, decay, entries = 0.1, 0.05, np.array([40, 8])
    theirs = equilibrium.adamw(rate, decay, jnp.asarray(entries, float))
    over = ("rule", "rate_invariant", "seed", "group", "step")
    values = {
        "angle": angle_off * np.broadcast_to(theirs.angle, (2,)),
        "norm2": norm2_off * np.asarray(theirs.norm2),
        "spherical_gradient": np.ones(2),
    }
    return xr.Dataset(
        {
            name: (over, np.tile(value[None, None, None, :, None], (1, 1, 1, 1, steps)))
            for name, value in values.items()
        },
        coords={
            "rule": ["adamw"],
            "decay": ("rule", [decay]),
            "rate_invariant": [rate],
            "seed": [0],
            "entries": ("group", entries),
            "step": 10 * np.arange(steps),
        },
    )


@pytest.mark.parametrize(("angle_off", "norm2_off"), [(1.0, 1.0), (1.2, 1.0), (1.0, 0.7)])
def test_a_run_is_held_against_theory(angle_off, norm2_off):
    ds = experiments.against_theory(settled(angle_off, norm2_off))
    np.testing.assert_allclose(ds["angle_residual"], angle_off - 1, atol=1e-5)
    np.testing.assert_allclose(ds["norm2_residual"], norm2_off - 1, atol=1e-5)
    # leading order: eta d / (2 lambda), and an angle that does not know the size of a group
    np.testing.assert_allclose(ds["predicted_norm2"].squeeze(), [40, 8], rtol=0.06)
    assert np.ptp(ds["predicted_angle"].values) == 0


def test_what_is_too_short_or_lost_has_no_residual():
    short = settled(norm2_off=100.0, steps=4)
    assert experiments.against_theory(short)["norm2_residual"].isnull().all()
    lost = settled()
    lost["spherical_gradient"][..., -1] = np.nan
    assert experiments.against_theory(lost)["predicted_angle"].isnull().all()


@pytest.mark.slow
def test_equilibrium_predicts_sgd_with_decay(monkeypatch):
    """A larger rate than its own needs fewer steps; within a tenth of what is predicted."""
    monkeypatch.setattr(decay, "DECAYING", {"sgd": experiments.DECAYING["sgd"]})
    ds = experiments.equilibrium(Config(rates=(0.005,), seeds=1, steps=8000, width=16))
    assert (abs(ds["angle_residual"]) < 0.1).all()
    assert (abs(ds["norm2_residual"]) < 0.1).all()
    assert ds["test_accuracy"].min() > 0.8


def test_a_rate_at_which_nothing_settles_is_refused():
    with pytest.raises(ValueError, match=r"rate \* decay must lie in"):
        experiments.equilibrium(dataclasses.replace(SMALL, rates=(100.0,)))
