"""Groups from elsewhere under attack: true ones stand, false ones fall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate.groups import Group, Groups, Member
from bnrate.invariance import check


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X = array(0, 16, 5)
NET = {"kernel": array(2, 5, 7), "bias": jnp.zeros(7), "head": array(3, 7), "scale": jnp.ones(7)}


def net(p, x, axis=0, eps=0.0):
    """A bias without effect, a normalisation, a scale, and a ReLU."""
    h = x @ p["kernel"] + (p["bias"][None] if axis == 0 else 0)
    h = h - h.mean(axis, keepdims=True)
    h = h / jnp.sqrt((h**2).mean(axis, keepdims=True) + eps) * p["scale"][None]
    return jnp.mean((jnp.maximum(h, 0) @ p["head"] - x[:, 0]) ** 2)


def half_dead(p, x):
    """Columns 0 to 2 of the kernel stand before a ReLU that never fires."""
    h = x @ p["kernel"]
    h = h / jnp.linalg.norm(h, axis=0, keepdims=True)
    return jnp.mean(jnp.maximum(h - jnp.where(jnp.arange(7) < 3, 9, 0)[None], 0) @ p["head"])


def plain(p, x):
    return jnp.mean((jnp.tanh(x @ p["kernel"]) @ p["head"]) ** 2)


def value_only(p, x):
    """L(c w) = L(w) is not enough: through the stopped norm no gradient flows."""
    return jnp.sum(
        p["head"] / jax.lax.stop_gradient(jnp.linalg.norm(p["head"]))
    ) ** 2 + 0 * jnp.sum(x)


def ratio(p, x):
    return jnp.mean((jnp.linalg.norm(p["head"]) / jnp.linalg.norm(p["scale"]) - x) ** 2)


def layer_norm(p, x):
    return net(p, x, axis=1)


def far_away(p, x):
    """Not finite once the kernel is ten times as large."""
    return net(p, x) + jnp.where(jnp.sum(p["kernel"] ** 2) > 500, jnp.nan, 0.0)


def group(*paths, axis=None):
    return Groups([Group(Member(path, () if axis is None else axis) for path in paths)])


CASES = {  # groups, loss, the verdict on each group
    "each column under BN": (group("kernel", axis=1), net, ["invariant"]),
    "the whole kernel under BN": (group("kernel"), net, ["invariant"]),
    "the wrong axis": (group("kernel", axis=0), net, ["rest"]),
    "the whole kernel under LN": (group("kernel"), layer_norm, ["invariant"]),
    "each column under LN": (group("kernel", axis=1), layer_norm, ["rest"]),
    "with an epsilon": (
        group("kernel", axis=1), lambda p, x: net(p, x, eps=1e-5), ["invariant"],
    ),
    "jointly": (group("head", "scale"), ratio, ["invariant"]),
    "one of two": (group("scale"), ratio, ["rest"]),
    "without effect": (group("bias", axis=0), net, ["no effect"]),
    "without normalisation": (group("kernel"), plain, ["rest"]),
    "in value only": (group("head"), value_only, ["rest"]),
    "not finite far away": (group("kernel"), far_away, ["rest"]),
    "several": (
        Groups([*group("kernel", axis=1), *group("bias"), *group("scale", "head")]), net,
        ["invariant", "no effect", "rest"],
    ),
    "none": (Groups(), net, []),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "loss", "kinds"), CASES.values(), ids=CASES)
def test_verdicts(groups, loss, kinds):
    report = check(groups, loss, NET, X)
    assert [outcome.kind for outcome in report.verdicts] == kinds, str(report)
    assert report.ok == ("rest" not in kinds)
    assert [o.group for o in report.failures] == [
        g for g, kind in zip(groups, kinds, strict=True) if kind == "rest"
    ]


def test_silent_units_are_counted():
    outcome = check(group("kernel", axis=1), half_dead, NET, X).verdicts[0]
    assert (outcome.kind, outcome.units, outcome.silent) == ("invariant", 7, 3)


def test_value_is_told_from_gradient():
    """Euler's identity fails alone, or rescaling alone."""
    outcome = check(group("head"), value_only, NET, X).verdicts[0]
    assert outcome.euler > 1e-3
    assert outcome.figure.startswith("its gradient is not orthogonal to it: <w, grad> is ")
    outcome = check(group("kernel"), far_away, NET, X).verdicts[0]
    assert outcome.euler < 1e-6
    assert np.isnan(outcome.scaling)
    assert outcome.figure == "the loss is not finite when it is multiplied by 10"


def test_the_tolerance_decides_on_an_epsilon():
    loss = lambda p, x: net(p, x, eps=1e-5)  # noqa: E731
    groups = group("kernel", axis=1)
    assert check(groups, loss, NET, X).ok
    assert not check(groups, loss, NET, X, tolerance=1e-9).ok
    assert check(groups, net, NET, X, tolerance=1e-9).ok


def test_every_batch_must_agree():
    loss = lambda p, x, on: net(p, x) + on * jnp.sum(p["kernel"] ** 2)  # noqa: E731
    off, on = jnp.zeros(()), jnp.ones(())
    assert check(group("kernel"), loss, NET, X, off).ok
    assert not check(group("kernel"), loss, NET, X, off, batches=[(X, on)]).ok


def test_prints_as_a_table():
    groups = Groups([*group("kernel", axis=1), *group("bias"), *group("scale", "head")])
    lines = str(check(groups, net, NET, X)).splitlines()
    assert lines[0].split() == ["group", "units", "silent", "verdict", "euler", "scaling"]
    assert lines[1].split()[:4] == ["kernel", "7", "0", "invariant"]
    assert lines[2].split() == ["bias", "1", "1", "no", "effect"]
    assert lines[3].split()[:4] == ["scale+head", "1", "0", "FAILS"]
    assert lines[4] == "2 of 3 groups pass (tolerance 0.001)"
    assert lines[5].startswith("scale+head: the loss moves ")
    assert lines[5].endswith(" when they are doubled")
    assert str(check(Groups(), net, NET, X)).endswith("0 of 0 groups pass (tolerance 0.001)")


BAD = {
    "unknown leaf": (group("kernal"), {}, "leaf 'kernal' of a group is not in the tree"),
    "no such axis": (group("head", axis=1), {}, "leaf 'head' has rank 1"),
    "draws": (group("kernel"), {"draws": 0}, "draws must be at least 1, got 0"),
    "tolerance": (group("kernel"), {"tolerance": 1.0}, "between 0 and 1, got 1.0"),
}


@pytest.mark.parametrize(("groups", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(groups, options, message):
    with pytest.raises(ValueError, match=message):
        check(groups, net, NET, X, **options)
