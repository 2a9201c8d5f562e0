"""All rescalings of small models, against answers known by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import groups as gr
from bnrate.invariance import detect, symmetries
from bnrate.invariance._null_space import null_space


def array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


X, Y, A = array(0, 24, 5), array(1, 24), array(2, 6, 6)


def standardise(h, axis, eps=0.0):
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(((h - mean) ** 2).mean(axis, keepdims=True) + eps)


def mse(prediction):
    return jnp.mean((prediction - Y) ** 2)


def bn_mlp(p, x, eps=0.0):
    h = standardise(x @ p["w1"] + p["b1"][None], 0, eps) * p["g"][None] + p["be"][None]
    return mse(nn.relu(h) @ p["w2"])


def ln_mlp(p, x):
    return mse(nn.relu(standardise(x @ p["w1"] + p["b1"][None], 1)) @ p["w2"])


def mlp(act, cast=lambda a: a):
    def loss(p, x):
        h, p = cast(x), jax.tree.map(cast, p)
        for i in range(2):
            h = act(h @ p[f"w{i}"] + p[f"b{i}"][None])
        return jnp.mean((h @ p["w2"] - cast(jnp.asarray(Y))) ** 2)

    return loss


def squared_relu(h):
    return nn.relu(h) ** 2


def rayleigh(p, x):
    return p["w"] @ A @ p["w"] / (p["w"] @ p["w"])


def behind_a_dead_relu(p, x):
    """The third hidden neuron never fires."""
    return mse(nn.relu(x @ p["w"] - 1e3 * jnp.eye(4)[2][None]) @ p["v"])


def concatenated(p, x):
    """Both halves of the head follow their own factor: by leaf it cannot be scaled at all."""
    h = jnp.concatenate([x @ p["a"], x @ p["b"] + p["c"][None]], axis=1)
    return mse(h @ p["head"])


def attention(p, x):
    q, k, v = (x.reshape(6, 4, 5) @ p[name] for name in "qkv")
    k = k + p["bias"][None, None]  # of all keys alike: no effect
    weights = jax.nn.softmax(jnp.einsum("btc,bsc->bts", q, k), axis=-1)
    return mse((weights @ v @ p["o"]).reshape(24))


BN = {"w1": array(2, 5, 7), "b1": np.zeros(7), "g": np.ones(7), "be": np.zeros(7),
      "w2": array(3, 7)}  # fmt: skip
LN = {name: BN[name] for name in ("w1", "b1", "w2")}
MLP = {"w0": array(2, 5, 7), "b0": np.zeros(7), "w1": array(3, 7, 6), "b1": np.zeros(6),
       "w2": array(4, 6)}  # fmt: skip
HEADS = {name: array(i, 5, 3) for i, name in enumerate("qkv")} | {
    "bias": array(5, 3), "o": array(6, 3, 1),
}  # fmt: skip
HALVES = {"a": array(2, 5, 3), "b": array(3, 5, 4), "c": array(4, 4), "head": array(5, 7)}

CASES = {  # loss, params, dimensions, leaves that may be scaled alone, with axes
    "BN-MLP": (bn_mlp, BN, (3, 18), {"w1": (1,), "b1": (0,)}),
    "with an epsilon": (
        lambda p, x: bn_mlp(p, x, 1e-5), BN, (2, 12), {"b1": (0,)},
    ),
    "with a penalty on all": (
        lambda p, x: bn_mlp(p, x) + sum(jnp.sum(w**2) for w in p.values()), BN, (0, 0), {},
    ),
    "with a penalty on one": (
        lambda p, x: bn_mlp(p, x) + 1e-2 * jnp.sum(p["w1"] ** 2), BN, (2, 12), {"b1": (0,)},
    ),
    "LN-MLP with bias": (ln_mlp, LN, (1, 0), {}),
    "LN-MLP": (
        lambda p, x: ln_mlp({**p, "b1": jnp.zeros(7)}, x),
        {"w1": LN["w1"], "w2": LN["w2"]}, (1, 0), {"w1": ()},
    ),
    "ReLU": (mlp(nn.relu), MLP, (2, 11), {}),
    "squared ReLU": (mlp(squared_relu), MLP, (2, 11), {}),
    "tanh": (mlp(jnp.tanh), MLP, (0, 0), {}),
    "ReLU6": (mlp(nn.relu6), MLP, (0, 0), {}),
    "Rayleigh quotient": (rayleigh, {"w": array(1, 6)}, (1, 0), {"w": ()}),
    "a dead neuron": (behind_a_dead_relu, {"w": array(3, 5, 4), "v": array(4, 4)}, (1, 3), {}),
    "scalars": (
        lambda p, x: mse(p["a"] * p["b"] * x[:, 0]), {"a": np.ones(()), "b": np.ones(())},
        (1, 0), {},
    ),
    "attention": (attention, HEADS, (3, 6), {"bias": (0,)}),
    "halves of one leaf": (concatenated, HALVES, (1, 5), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bn_symmetries():
    return symmetries(bn_mlp, BN, X)


@pytest.mark.parametrize(("loss", "params", "dims", "alone"), CASES.values(), ids=CASES)
def test_finds_what_is_known(loss, params, dims, alone):
    found = symmetries(loss, params, X)
    assert (found.dims, found.alone) == (dims, alone), str(found)
    assert found.clear
    assert found.gap > 100
    for direction in found.whole.basis:
        assert found.contains(found.exponents(direction))


def test_contains_what_it_should_and_nothing_else(bn_symmetries):
    found = bn_symmetries
    index = np.eye(7)[2]
    assert found.contains({"g": 1, "be": 1, "w2": -1})
    assert found.contains({"g": index, "be": index, "w2": -index})
    assert found.contains({"w1": index[None], "b1": array(5, 7)})
    assert found.contains({})
    assert found.contains({"w1": np.outer(np.ones(5), array(6, 7))})
    assert found.residual({"g": 1, "be": 1, "w2": 1}) > 0.1
    assert found.residual({"g": 1, "be": 1}) > 0.1
    assert found.residual({"w1": np.eye(5)[0][:, None]}) > 0.1
    assert found.residual({"w1": array(7, 5, 7)}) > 0.1
    assert not found.contains({"g": index, "be": index, "w2": -np.roll(index, 1)})


def test_an_epsilon_is_a_small_residual():
    found = symmetries(lambda p, x: bn_mlp(p, x, 1e-5), BN, X)
    assert not found.contains({"w1": 1})
    assert found.contains({"w1": 1}, tolerance=1e-2)


def test_leaf_basis_names_the_groups():
    found = symmetries(mlp(squared_relu), MLP, X)
    for b0, b1, w0, w1, w2 in found.leaf.basis:
        np.testing.assert_allclose([w0, w1], [b0, b1 - 2 * b0], atol=1e-8)
        np.testing.assert_allclose(w2, -2 * b1, atol=1e-8)


def test_agrees_with_detection(bn_symmetries):
    verdicts = {v.group.name: v for v in detect(bn_mlp, BN, X).verdicts}
    found = bn_symmetries
    assert found.no_effect == ("b1",)
    assert verdicts["b1"].kind == "no effect"
    assert verdicts["w1"].group == gr.Group([gr.Member("w1", 1)])
    assert {path for path, v in verdicts.items() if v.kind == "rest"} == {"be", "g", "w2"}


def test_exponents_undo_the_columns(bn_symmetries):
    """The exponents of a basis vector that only moves one index of one axis."""
    found = bn_symmetries
    assert found.whole.basis.shape == (21, 39)
    for direction, same in ((np.eye(39)[0], "b1"), (np.eye(39)[21], "w1")):
        exponents = found.exponents(direction)
        assert {path: d.shape for path, d in exponents.items()} == found.shapes
        assert [path for path, d in exponents.items() if d.any()] == [same]
    np.testing.assert_array_equal(exponents["w1"], np.eye(5)[0][:, None] * np.ones((5, 7)))


def test_float32_inside_is_told_apart():
    single = mlp(nn.relu, lambda a: a.astype(jnp.float32))
    found = symmetries(single, MLP, X)
    assert found.dims == (2, 11)
    assert found.clear
    assert found.contains({"b1": 1.0, "w1": 1.0, "w2": -1.0})
    assert not found.contains({"w1": 1.0})
    hidden = symmetries(lambda p, x: single(p, x).astype(jnp.float64), MLP, X)
    assert (hidden.dims, hidden.clear) == ((2, 11), True)


def test_a_blurred_cut_is_flagged():
    found = symmetries(lambda p, x: bn_mlp(p, x, 1e-9), BN, X)
    assert not found.clear
    assert "NOT CLEAR" in str(found)


def test_points_that_are_not_finite_are_dropped():
    loss = lambda p, x: bn_mlp(p, x) * jnp.where(p["g"][0] > 1, jnp.nan, 1.0)  # noqa: E731
    assert symmetries(loss, BN, X, draws=150).dims == (3, 18)
    with pytest.raises(ValueError, match="fewer than the 39 columns; give more draws"):
        symmetries(loss, BN, X, draws=50)


def test_every_batch_counts():
    loss = lambda p, x, on: bn_mlp(p, x) + on * jnp.sum(p["w1"] ** 2)  # noqa: E731
    off, on = np.zeros(()), np.ones(())
    assert symmetries(loss, BN, X, off).dims == (3, 18)
    assert symmetries(loss, BN, X, off, batches=[(X, on)]).dims == (2, 12)


def test_float32_parameters_and_auxiliary_output():
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), BN)
    assert symmetries(lambda p, x: (bn_mlp(p, x), x), params, X).dims == (3, 18)


def test_prints_as_a_table():
    lines = str(symmetries(mlp(squared_relu), {**MLP, "idle": np.ones(2)}, X)).splitlines()
    assert lines[0].split() == ["leaf", "shape", "may", "be", "scaled"]
    assert lines[3].split() == ["idle", "(2,)", "no", "effect"]
    assert sum("only with others" in line for line in lines) == 5
    assert lines[-2] == "dimensions: 3 by leaf, 12 by index, 0 by both"
    assert lines[-1].endswith("(clear)")
    assert sum(line.startswith("together: b0 ") for line in lines) == 2


def test_a_column_of_noise_is_zero():
    rng = np.random.default_rng(0)
    noise = 1e-16 * rng.standard_normal((20, 1))
    signal = rng.uniform(0.5, 1, (20, 1))
    space = null_space(np.hstack([noise, signal]), np.ones((20, 2)), 2e-16)
    np.testing.assert_allclose(space.basis, [[1, 0]], atol=1e-12)
    silent = null_space(np.hstack([0 * noise, signal]), np.hstack([0 * signal, signal]), 2e-16)
    np.testing.assert_allclose(silent.basis, [[1, 0]])


BAD = {
    "too many": (bn_mlp, {"w": np.ones((4000, 3))}, {}, "4002 columns.*make the model narrower"),
    "integers": (bn_mlp, {"w": np.arange(3)}, {}, "leaf 'w' is int64"),
    "no gradient": (lambda p, x: mse(x[:, 0]), BN, {}, "only 0 of 94 draws"),
    "half precision": (
        lambda p, x: bn_mlp(p, x).astype(jnp.bfloat16), BN, {}, "compute it in float32",
    ),
    "few draws": (bn_mlp, BN, {"draws": 5}, "only 5 of 5 draws"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "params", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(loss, params, options, message):
    with pytest.raises(ValueError, match=message):
        symmetries(loss, params, X, **options)


def test_bad_exponents():
    found = symmetries(rayleigh, {"w": array(1, 6)}, X)
    with pytest.raises(ValueError, match=r"no leaf 'v'; there are w"):
        found.contains({"v": 1})
    with pytest.raises(ValueError, match=r"shape \(5,\), which does not broadcast"):
        found.contains({"w": np.ones(5)})
