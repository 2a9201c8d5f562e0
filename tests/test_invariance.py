"""The numeric witness against answers known by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate import groups as gr
from bnrate import models
from bnrate.groups import Group, Groups, Member
from bnrate.invariance import detect


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, Y = array(0, 24, 5), array(1, 24)


def standardise(h, axis, eps=0.0):
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(((h - mean) ** 2).mean(axis, keepdims=True) + eps)


def mse(prediction):
    return jnp.mean((prediction - Y.astype(prediction.dtype)) ** 2)


def batch_norm_net(p, x, axis=0, eps=0.0):
    h = standardise(x @ p["kernel"], axis, eps)
    return mse(jnp.tanh(h) @ p["head"])


def shift_net(p, x):
    """A bias in front of BatchNorm: no effect."""
    h = standardise(x @ p["kernel"] + p["bias"][None], 0)
    return mse(jnp.tanh(h) @ p["head"])


def two_norms(p, x):
    """BN -> ReLU -> Dense -> BN -> head: the first (scale, bias) is invariant jointly."""
    h = standardise(x @ p["a"]["kernel"], 0) * p["a"]["scale"][None] + p["a"]["bias"][None]
    h = standardise(nn.relu(h) @ p["b"]["kernel"], 0) * p["b"]["scale"][None] + p["b"]["bias"][None]
    return mse(jnp.tanh(h) @ p["head"])


def per_channel(p, x):
    """(scale, bias) -> ReLU -> normalisation of each channel by itself: invariant by index."""
    h = standardise(x, 0) * p["n"]["scale"][None] + p["n"]["bias"][None]
    return mse(jnp.tanh(standardise(nn.relu(h), 0)) @ p["head"])


def plain(p, x):
    return mse(nn.relu(x @ p["kernel"]) @ p["head"])


def decayed(p, x):
    return batch_norm_net(p, x) + 1e-2 * jnp.sum(p["kernel"] ** 2)


def unnormalised_sum(p, x):
    """The quotient of two norms of one leaf; the other leaf only through a tiny share."""
    return mse(x @ (p["v"] / jnp.linalg.norm(p["v"]))) + 1e-6 * jnp.sum(p["w"] ** 2)


def locally(p, x):
    """Euler's identity holds near the parameters, where the ReLU is off; far away it does not."""
    return batch_norm_net(p, x) + jnp.sum(nn.relu(jnp.sum(p["kernel"] ** 2) - 500.0))


def triple(p, x):
    """Kernel, bias and shift before a normalisation over the features: together only."""
    h = x @ p["m"]["kernel"] + p["m"]["bias"][None] + p["m"]["shift"][:, None]
    h = standardise(jnp.concatenate([h, jnp.tanh(h * 0) + h * 2], axis=1), 1)
    return mse(jnp.tanh(h[:, :7]) @ p["head"])


def layer_scale(p, x):
    """A residual branch of little influence: the loss hardly moves, but it is not invariant."""
    h = x + 1e-5 * nn.relu(jnp.tanh(x) @ p["w1"]) @ p["w2"]
    return mse(h @ p["head"])


def two_axes(p, x):
    """A stack of two kernels: each channel of each may be scaled, and the stack by kernel too."""
    h = standardise(jnp.einsum("bi,kio->bko", x, p["kernels"]), 0)
    return mse(jnp.tanh(h).sum(1) @ p["head"])


def layers_only(p, x):
    """A stack of two kernels, each normalised as a whole."""
    h = jnp.einsum("bi,kio->kbo", x, p["kernels"])
    h = h / jnp.sqrt((h**2).mean((1, 2), keepdims=True))
    return mse(jnp.tanh(h).sum(0) @ p["head"])


def stacked_norms(p, x):
    """Scales and biases of three layers, each channel of which is normalised again."""
    h = standardise(x, 0)[None] * p["n"]["scale"][:, None] + p["n"]["bias"][:, None]
    return mse(jnp.tanh(standardise(jnp.abs(h), 1)).sum(0) @ p["head"])


def float32_net(p, x):
    """Computes in float32 whatever it is given."""
    p, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (p, x))
    return shift_net(p, x)


def overlapping(p, x):
    """(a, b) may be scaled, and (b, c) too, but a leaf belongs to one group."""
    a, b, c = (jnp.linalg.norm(p[name]) for name in "abc")
    return (a * c / b - 2) ** 2


def margin(p, x):
    """Exactly zero near the parameters."""
    return nn.relu(batch_norm_net(p, x) - 1e6)


def ones(*paths, axis=None):
    return [Group(Member(path, () if axis is None else axis) for path in paths)]


NET = {"kernel": array(2, 5, 7), "head": array(3, 7)}
TWO = {
    "a": {"kernel": array(2, 5, 7), "scale": jnp.ones(7), "bias": jnp.zeros(7)},
    "b": {"kernel": array(3, 7, 6), "scale": jnp.ones(6), "bias": jnp.zeros(6)},
    "head": array(4, 6),
}
CASES = {
    "batch norm: each output channel": (batch_norm_net, NET, ones("kernel", axis=1)),
    "layer norm: only the whole matrix": (
        lambda p, x: batch_norm_net(p, x, axis=1), NET, ones("kernel"),
    ),
    "eps 1e-5: forgiven": (
        lambda p, x: batch_norm_net(p, x, eps=1e-5), NET, ones("kernel", axis=1),
    ),
    "eps 1: not": (lambda p, x: batch_norm_net(p, x, eps=1.0), NET, []),
    "bias without effect": (shift_net, {**NET, "bias": jnp.zeros(7)}, ones("kernel", axis=1)),
    "two norms: the first jointly, the last not": (
        two_norms, TWO,
        [*ones("a/kernel", axis=1), *ones("b/kernel", axis=1), *ones("a/bias", "a/scale")],
    ),
    "jointly, index by index": (
        per_channel, {"n": {"scale": jnp.ones(5), "bias": jnp.zeros(5)}, "head": array(4, 5)},
        ones("n/bias", "n/scale", axis=0),
    ),
    "only near by": (locally, NET, []),
    "three leaves jointly": (
        triple, {"m": {"kernel": array(2, 5, 7), "bias": array(5, 7), "shift": array(6, 24)},
                 "head": array(3, 7)},
        ones("m/bias", "m/kernel", "m/shift"),
    ),
    "little influence": (
        layer_scale, {"w1": array(2, 5, 6), "w2": array(3, 6, 5), "head": array(4, 5)}, [],
    ),
    "huge and of little influence": (
        lambda p, x: batch_norm_net(p, x) + 1e-3 * jnp.mean(p["big"]),
        {**NET, "big": array(9, 1_000_000)}, ones("kernel", axis=1),
    ),
    "each channel of each layer": (
        two_axes, {"kernels": array(2, 2, 5, 7), "head": array(3, 7)},
        ones("kernels", axis=(0, 2)),
    ),
    "the finest of three axes": (
        layers_only, {"kernels": array(2, 2, 5, 7), "head": array(3, 7)}, ones("kernels", axis=0),
    ),
    "jointly, each channel of each layer": (
        stacked_norms,
        {"n": {"scale": array(2, 3, 5), "bias": array(3, 3, 5)}, "head": array(4, 5)},
        ones("n/bias", "n/scale", axis=(0, 1)),
    ),
    "float32 inside": (float32_net, {**NET, "bias": jnp.zeros(7)}, ones("kernel", axis=1)),
    "overlapping": (
        overlapping, {"a": array(2, 4), "b": array(3, 4), "c": array(4, 4)}, ones("a", "b"),
    ),
    "nothing to see": (margin, NET, []),
    "a joint group around a submodule": (
        lambda p, x: two_norms(
            {**p, "a": {"kernel": p["k"], "scale": p["a"]["scale"], "bias": p["a"]["bias"]},
             "b": {**p["b"], "kernel": p["a"]["mid"]["kernel"]}}, x,
        ),
        {"k": array(2, 5, 7), "head": array(4, 6),
         "b": {"scale": jnp.ones(6), "bias": jnp.zeros(6)},
         "a": {"bias": jnp.zeros(7), "mid": {"kernel": array(3, 7, 6)}, "scale": jnp.ones(7)}},
        [*ones("a/mid/kernel", axis=1), *ones("k", axis=1), *ones("a/bias", "a/scale")],
    ),
    "no normalisation": (plain, NET, []),
    "weight decay": (decayed, NET, []),
    "small influence is influence": (
        unnormalised_sum, {"v": array(2, 5), "w": array(3, 9)}, ones("v"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "params", "expected"), CASES.values(), ids=CASES)
def test_finds_what_is_known(loss, params, expected):
    found = detect(loss, params, X)
    assert found.groups == Groups(expected), str(found)
    for verdict in found.verdicts:
        if verdict.kind == "invariant":
            assert verdict.euler < 1e-3
            assert verdict.scaling < 1e-3
        if verdict.kind == "rest":
            assert verdict.euler > 1e-3 or verdict.scaling > 1e-3


def test_exact_invariance_is_exact_and_epsilon_is_not():
    exact = detect(batch_norm_net, NET, X, tolerance=1e-9)
    assert exact.groups == Groups(ones("kernel", axis=1))
    assert exact.verdicts[1].euler < 1e-13
    assert exact.verdicts[1].scaling < 1e-13
    assert (
        detect(lambda p, x: batch_norm_net(p, x, eps=1e-5), NET, X, tolerance=1e-9).groups
        == Groups()
    )


def test_joint_groups_are_not_single_ones():
    kinds = {v.group.name: v.kind for v in detect(two_norms, TWO, X).verdicts}
    assert kinds["a/scale"] == kinds["a/bias"] == kinds["b/scale"] == kinds["b/bias"] == "rest"
    assert kinds["a/bias+a/scale"] == "invariant"
    assert "b/bias+b/scale" not in kinds
    assert kinds["head"] == "rest"


def test_a_bias_of_zero_does_not_pass():
    # At zero <b, grad> = 0 and L(c b) = L(b); the random points see through it.
    loss = lambda p, x: mse(x @ p["w"] + p["b"])  # noqa: E731
    assert detect(loss, {"w": array(2, 5), "b": jnp.zeros(())}, X).groups == Groups()


@pytest.mark.parametrize("loss", [shift_net, float32_net])
def test_without_effect_is_said(loss):
    verdicts = {
        v.group.name: v.kind for v in detect(loss, {**NET, "bias": jnp.zeros(7)}, X).verdicts
    }
    assert verdicts == {"bias": "no effect", "head": "rest", "kernel": "invariant"}


def test_every_batch_must_agree():
    """Invariant on one batch, not on another."""
    loss = lambda p, x, on: batch_norm_net(p, x) + on * jnp.sum(p["kernel"] ** 2)  # noqa: E731
    off, on = jnp.zeros(()), jnp.ones(())
    assert detect(loss, NET, X, off).groups == Groups(ones("kernel", axis=1))
    assert detect(loss, NET, X, off, batches=[(X, on)]).groups == Groups()


@pytest.mark.parametrize(
    "model", [models.MLP((8, 6), 4), models.VGG(4, width=4)], ids=["mlp", "vgg"]
)
def test_networks(model, key):
    """With BatchNorm each kernel by output channel, all (scale, bias) but the last; else none."""
    images, labels = array(5, 8, 4, 4, 1), jnp.arange(8) % 4

    def groups_of(model):
        variables = jax.jit(lambda: dict(model.init(key, images, train=True)))()
        params = variables.pop("params")

        def loss(params, extra, x, y):
            logits, extra = model.apply(
                {"params": params, **extra}, x, train=True, mutable=list(extra)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), extra

        return detect(loss, params, variables, images, labels).groups, params

    groups, params = groups_of(model.clone(norm=models.BatchNorm))
    last = max(int(layer.removeprefix("norm")) for layer in params if layer.startswith("norm"))
    kernels = {path for path in gr.leaves(params) if path.endswith("kernel")}
    assert {g.name for g in groups} == kernels | {
        f"norm{i}/bias+norm{i}/scale" for i in range(last)
    }
    for group in groups:
        for member in group.members:
            rank = gr.leaves(params)[member.path].ndim
            assert member.axes == ((rank - 1,) if member.path in kernels else ())
    assert groups_of(model)[0] == Groups()


def test_flax_batch_norm_with_its_default_epsilon(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(1)(nn.relu(x))[:, 0]

    net = Net()
    variables = net.init(key, X)

    def loss(params, x):
        out, _ = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return mse(out)

    with jax.numpy_dtype_promotion("standard"):
        found = detect(loss, variables["params"], X)
    assert found.groups == Groups(ones("Dense_0/kernel", axis=1))
    assert {v.group.name for v in found.verdicts if v.kind == "no effect"} == {"Dense_0/bias"}


def test_prints_as_a_table():
    lines = str(detect(two_norms, TWO, X)).splitlines()
    assert lines[0].split() == ["leaves", "unit", "axes", "verdict", "euler", "scaling"]
    assert lines[-1].split()[:3] == ["a/bias+a/scale", "-", "invariant"]
    assert sum("only jointly" in line for line in lines) == 2


BAD = {
    "integers": (plain, {"n": jnp.arange(3)}, {}, "leaf 'n' is int32"),
    "vector": (
        lambda p, x: p["w"] * x[0],
        {"w": array(0, 5)},
        {},
        r"got float\d\d of shape \(5,\): reduce",
    ),
    "nan": (lambda p, x: jnp.log(-jnp.sum(p["w"] ** 2)), {"w": array(0, 5)}, {}, "the loss is nan"),
    "half precision": (
        lambda p, x: plain(p, x).astype(jnp.bfloat16),
        NET,
        {},
        "the loss is bfloat16",
    ),
    "no loss": (lambda p, x: None, NET, {}, "the loss must return a floating scalar"),
    "no parameters": (plain, {}, {}, "there are no parameters"),
    "text": (plain, {"n": "x"}, {}, "leaf 'n' is str"),
    "nan parameter": (plain, {"n": jnp.array([jnp.nan])}, {}, "leaf 'n' is not finite"),
    "draws": (plain, NET, {"draws": 0}, "draws must be at least 1, got 0"),
    "tolerance": (plain, NET, {"tolerance": 0.0}, "between 0 and 1, got 0.0"),
}


@pytest.mark.parametrize(("loss", "params", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(loss, params, options, message):
    with pytest.raises(ValueError, match=message):
        detect(loss, params, X, **options)
