"""Losses that float64 breaks are tried in their own dtypes; rounding is not taken for effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate.groups import Group, Groups, Member
from bnrate.invariance import check, detect, symmetries


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X = array(0, 24, 5)
NET = {"w": array(1, 5, 7), "idle": jnp.zeros(7), "v": array(2, 7)}


def scanned(p, x, eps=0.0):
    """A batch normalisation, then a scan with a carry of float32: float64 breaks it."""
    h = x @ p["w"] + p["idle"][None]
    h = h - h.mean(0, keepdims=True)
    h = h / jnp.sqrt((h**2).mean(0, keepdims=True) + eps)
    step = lambda t, r: (t + jnp.tanh(r @ p["v"] - 1) ** 2, None)  # noqa: E731
    return jax.lax.scan(step, jnp.float32(0), h)[0]


def first_channel(p, x):
    h = x @ p["w"]
    h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    return jax.lax.scan(lambda t, r: (t + jnp.tanh(r[0] - 1) ** 2, None), jnp.float32(0), h)[0]


def plain(p, x):
    """The same without the normalisation."""
    h = x @ p["w"] + p["idle"][None]
    step = lambda t, r: (t + jnp.tanh(r @ p["v"] - 1) ** 2, None)  # noqa: E731
    return jax.lax.scan(step, jnp.float32(0), h)[0]


COLUMNS = Groups([Group([Member("w", 1)])])


def test_detection_falls_back():
    found = detect(scanned, NET, X)
    assert found.groups == COLUMNS, str(found)
    kinds = {v.group.name: v.kind for v in found.verdicts}
    assert kinds == {"idle": "no effect", "v": "rest", "w": "invariant"}
    assert not found.precision.double
    assert found.precision.rounding == jnp.finfo(jnp.float32).eps
    assert str(found).splitlines()[-1].startswith("in the program's own dtypes, with a rounding of")
    assert "float64 breaks it (TypePromotionError: Input dtypes" in str(found)


def test_one_channel_is_enough():
    params = {"w": NET["w"]}
    assert detect(first_channel, params, X).groups == COLUMNS


@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
def test_checks_fall_back_with_a_tolerance_that_rounding_allows(tolerance):
    assert check(COLUMNS, scanned, NET, X, tolerance=tolerance).ok
    assert not check(COLUMNS, plain, NET, X, tolerance=tolerance).ok
    report = check(Groups([Group([Member("w", 0)]), Group([Member("v")])]), scanned, NET, X)
    assert len(report.failures) == 2
    assert "float64 breaks it" in str(report)


def test_symmetries_fall_back():
    found = symmetries(scanned, NET, X)
    assert (found.dims, found.clear) == ((2, 12), True), str(found)
    assert found.no_effect == ("idle",)
    assert "float64 breaks it" in str(found)
    assert symmetries(plain, NET, X).dims == (1, 6)  # w and idle against v


def test_float64_where_it_can_be():
    assert detect(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])), NET, X).precision.double


def halves(p, x):
    """In bfloat16 inside, with a loss of float32."""
    h = (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32)
    h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    return jnp.mean((jnp.tanh(h) @ p["v"].astype(jnp.float32)) ** 2)


def test_bfloat16_inside_refutes_nothing_true():
    assert check(COLUMNS, halves, NET, X).ok
    report = check(Groups([Group([Member("v")]), Group([Member("idle")])]), halves, NET, X)
    assert [v.kind for v in report.verdicts] == ["rest", "not known"]
    with pytest.raises(ValueError, match="hides all symmetries; compute it in float32"):
        symmetries(halves, NET, X)


def test_a_loss_that_breaks_in_both_says_so():
    with pytest.raises(ValueError, match=r"could not be traced .*TypeError: dot_general"):
        detect(lambda p, x: x @ p["v"], NET, X)
    with pytest.raises(ValueError, match="an argument of the loss is only a shape"):
        detect(plain, NET, jax.eval_shape(lambda: X))


def test_the_tried_claims_of_a_detection():
    found = detect(scanned, NET, X)
    verdict = found.attempt(Group([Member("v")]))
    assert not verdict.passes
    assert verdict.figure.startswith("the loss moves by ")
    with pytest.raises(ValueError, match="has rank 1"):
        found.attempt(Group([Member("v", 1)]))
