"""Certificates as users meet them: what they say of five mistakes, odd losses and bad input."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from bnrate import groups as gr
from bnrate.certify import certify

X, Y = jnp.ones((8, 5)), jnp.zeros(8, int)
BATCH_NORM = functools.partial(nn.BatchNorm, use_running_average=False)


class Net(nn.Module):
    norm: object = BATCH_NORM

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.relu(self.norm()(x)) if self.norm else nn.relu(x)
        return nn.Dense(3)(x)


def network(norm=BATCH_NORM, penalty=0.0):
    """The loss of a small network and its parameters."""
    net = Net(norm)
    with jax.numpy_rank_promotion("allow"):
        variables = net.init(jax.random.key(0), X)

    def loss(params, x, y):
        with jax.numpy_rank_promotion("allow"):
            logits, _ = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()
        squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return nll + penalty * squares if penalty else nll

    return loss, variables["params"]


def whys(problem, axis=None, **options):
    return certify(*problem, X, Y, **options).why("Dense_0/kernel", axis)


def line_of(text):
    source = Path(__file__).read_text().splitlines()
    return f"at test_certify.py:{next(i for i, line in enumerate(source, 1) if text in line)}"


NORM = line_of("self.norm()(x)) if")

MISTAKES = {  # the first break: what, where (their line, the module), advice
    "epsilon": (
        lambda: whys(network(), eps="strict"),
        "an epsilon is added (1e-05)", NORM, "[Net/BatchNorm_0]", "up to this epsilon",
    ),
    "no normalisation": (
        lambda: whys(network(norm=None)),
        "terms that scale differently", line_of("return nn.Dense(3)(x)"), "[Net/Dense_1]",
        "Normalise before it",
    ),
    "penalty": (
        lambda: [b for b in whys(network(penalty=0.1)) if b.kind != "eps"],
        "terms of the loss", line_of("squares = sum("), "", "A regulariser, perhaps",
    ),
    "evaluation mode": (
        lambda: whys(network(functools.partial(nn.BatchNorm, use_running_average=True))),
        "a value that scales is added to one that does not", NORM, "[Net/BatchNorm_0]",
        "use the statistics of the batch",
    ),
    "LayerNorm per neuron": (
        lambda: whys(network(nn.LayerNorm), axis=1),
        "entries that scale differently are summed", NORM, "[Net/LayerNorm_0]",
        "scale them together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_first_break_names_the_line_and_says_what_to_do(mistake):
    breaks, what, line, module, advice = MISTAKES[mistake]
    first = str(breaks()[0])
    assert first.startswith(what)
    assert line in first
    assert module in first
    assert advice in first
    assert "jax/_src" not in first


def test_the_library_line_is_given_too():
    first = whys(network(), eps="strict")[0]
    assert first.site.library.startswith("normalization.py:")


def test_nothing_stops_what_is_invariant():
    certificate = certify(*network(), X, Y)
    assert [b.kind for b in certificate.why("Dense_0/kernel")] == ["eps"]
    assert [b.kind for b in certificate.why("Dense_0/kernel", axis=1)] == ["eps"]
    assert certificate.why("Dense_0/kernel", axis=0)[0].kind == "hard"
    assert certificate.why(["BatchNorm_0/scale", "BatchNorm_0/bias"])


def test_strict_counts_epsilons():
    loss, params = network()
    assert len(certify(loss, params, X, Y, eps="strict").groups) == 0
    certificate = certify(loss, params, X, Y)
    assert certificate.groups == gr.Groups([gr.Group([gr.Member("Dense_0/kernel", 1)])])
    (site,) = certificate.eps_sites
    assert site.value == pytest.approx(1e-5)
    assert NORM in str(site)


def test_table():
    text = str(certify(*network(), X, Y))
    assert text.splitlines()[:2] == [
        "Scale-invariant, proven up to epsilon: 1 group",
        "  Dense_0/kernel  each index along axis 1",
    ]
    assert "Dense_1/kernel  BatchNorm_0/bias^-1  BatchNorm_0/scale^-1" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "0 groups" in str(certify(lambda w: jnp.sum(w), jnp.ones(3)))


def test_json_round_trip():
    certificate = certify(*network(), X, Y)
    document = json.loads(certificate.to_json())
    assert gr.from_json(json.dumps({"groups": document["groups"]})) == certificate.groups
    assert document["rescalings"] == [dict(r) for r in certificate.rescalings]
    assert set(document["rest"]) == set(certificate.rest)
    assert document["eps_sites"][0]["site"]["module"] == "Net/BatchNorm_0"


def test_nothing_is_allocated():
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((10**6, 10**6))})
    x = jax.ShapeDtypeStruct((8, 10**6), jnp.float32)

    def loss(params, x):
        h = x @ params["w"]
        return jnp.sum(jnp.tanh(h / jnp.linalg.norm(h)))

    assert certify(loss, shapes, x).groups.paths == ("w",)


def test_weights_of_a_power():
    def loss(params, x):
        h = x @ params["w"]
        h = jax.nn.relu(h) ** 2 + params["b"][None]
        h = h - h.mean(1, keepdims=True)
        return jnp.sum(jnp.tanh(h / jnp.sqrt(jnp.sum(h**2, 1, keepdims=True))))

    certificate = certify(loss, {"w": jnp.ones((5, 3)), "b": jnp.ones(3)}, X)
    assert {"w": 1, "b": 2} in [dict(r) for r in certificate.rescalings]


def rayleigh(w):
    return jnp.sum(w * jnp.arange(1.0, 4.0) * w) / jnp.sum(w**2)


def called_back(w):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), jnp.float32), w)


def printed(w):
    jax.debug.print("{}", w)
    return rayleigh(w)


def noisy(w):
    return rayleigh(w * jax.random.normal(jax.random.key(0), (3,)))


def attention(params, x):
    """Queries, keys and values in one product; a bias of the keys shifts all logits of a query."""
    with jax.numpy_rank_promotion("allow"):
        q, k, v = jnp.split(x @ params["qkv"] + params["bias"], 3, axis=1)
    return jnp.sum(jnp.tanh(jax.nn.softmax(q @ k.T) @ v))


def test_a_part_of_a_leaf_without_effect():
    certificate = certify(attention, {"qkv": jnp.ones((5, 12)), "bias": jnp.ones(12)}, X)
    assert certificate.no_effect == ("bias[4:8]",)
    assert json.loads(certificate.to_json())["no_effect"] == ["bias[4:8]"]
    assert "Without effect on the loss: 1 part of a leaf\n  bias[4:8]\n" in str(certificate)
    assert certificate.rest == ("bias", "qkv")


def residual(params, x, stacked):
    """Blocks that read by `in` and write by `out`; both are moved about before they are used."""
    names = "out", "in"
    named = {k: checkpoint_name(params[k].astype(float), "input") for k in names}

    def block(h, i):
        normed = h / jnp.sqrt(jnp.sum(h**2, 1, keepdims=True))
        out, read = (jnp.take(named[k], i, axis=0) if stacked else named[k][0].T for k in names)
        return h + jax.nn.relu(normed @ read) @ out, None

    h, _ = jax.lax.scan(block, x @ params["embed"], jnp.arange(3 if stacked else 1))
    return jnp.sum(jnp.tanh(h / jnp.sqrt(jnp.sum(h**2, 1, keepdims=True))))


@pytest.mark.parametrize("stacked", [True, False])
def test_of_equal_joint_groups_that_which_is_used_latest(stacked):
    shapes = {"embed": (5, 4), "in": (3, 4, 4), "out": (3, 4, 4)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    certificate = certify(functools.partial(residual, stacked=stacked), params, X)
    assert sorted(certificate.groups.groups[0].name.split("+")) == ["embed", "out"]


W = {"w": jnp.ones(3)}

ODD = {  # what may be asked: loss, params -> proven groups, without effect
    "one array": (rayleigh, jnp.ones(3), ("",), ()),
    "aux": (lambda p: (rayleigh(p["w"]), {"w": p["w"]}), W, ("w",), ()),
    "tied": (lambda p: rayleigh(p["w"]) + rayleigh(2 * p["w"]), W, ("w",), ()),
    "unused": (lambda p: rayleigh(p["w"]), W | {"u": jnp.ones(2)}, ("w",), ("u",)),
    "nan": (lambda p: rayleigh(p["w"]) + jnp.nan, W, ("w",), ()),
    "huge": (lambda p: rayleigh(p["w"]) * 1e38, W, ("w",), ()),
    "constant": (lambda p: jnp.float32(1.0), W, (), ("w",)),
    "empty leaf": (lambda p: rayleigh(p["w"]), W | {"e": jnp.ones((0, 2))}, ("w",), ("e",)),
    "scalars": (
        lambda p: jnp.tanh(p["a"] / p["b"]), {"a": jnp.ones(()), "b": jnp.ones(())}, ("a", "b"), (),
    ),
    "callback": (lambda p: rayleigh(called_back(p["w"])), W, (), ()),
    "debug": (lambda p: printed(p["w"]), W, ("w",), ()),
    "key": (lambda p: noisy(p["w"]), W, ("w",), ()),
    "half": (
        lambda p: rayleigh(p["w"].astype(float)), {"w": jnp.ones(3, jnp.bfloat16)}, ("w",), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_losses(name):
    loss, params, proven, without = ODD[name]
    certificate = certify(loss, params)
    assert certificate.groups.paths == proven
    assert certificate.no_effect == without
    assert str(certificate)


def mutable(w):
    ref = jax.new_ref(w)
    ref[...] = w * 2
    return jnp.sum(ref[...])


BAD = {
    "no parameters": (lambda p: jnp.sum(X), {}, "no parameters"),
    "integers": (lambda p: 1.0 * jnp.sum(p["n"]), {"n": jnp.arange(3)}, "leaf 'n' is int32"),
    "no array": (lambda p: jnp.sum(X), {"f": jnp.tanh}, "leaf 'f' is"),
    "vector": (lambda p: p["w"], {"w": jnp.ones(3)}, "got float32 of shape \\(3,\\)"),
    "whole": (lambda p: jnp.int32(1), {"w": jnp.ones(3)}, "got int32"),
    "nothing": (lambda p: None, {"w": jnp.ones(3)}, "got NoneType"),
    "other tree": (lambda p: p["v"], {"w": jnp.ones(3)}, "could not be traced.*KeyError"),
    "other shape": (lambda p: X @ p["w"], {"w": jnp.ones(3)}, "could not be traced.*TypeError"),
    "python branch": (
        lambda p: p["w"][0] if p["w"][0] > 0 else 0.0, {"w": jnp.ones(3)}, "could not be traced",
    ),
    "written to": (lambda p: mutable(p["w"]), {"w": jnp.ones(3)}, "mutable arrays"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name):
    loss, params, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        certify(loss, params)


def test_bad_questions():
    certificate = certify(*network(), X, Y)
    with pytest.raises(ValueError, match="there is no leaf 'w'; the leaves are 'BatchNorm_0/bias'"):
        certificate.why("w")
    with pytest.raises(ValueError, match="no axis 2; give an axis from 0 to 1"):
        certificate.why("Dense_0/kernel", axis=2)
    with pytest.raises(Exception, match=r"'ignore'.*'strict'"):
        certify(*network(), X, Y, eps="never")
