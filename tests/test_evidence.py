"""Three answers of two witnesses: proven, refuted with a figure, or not known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import evidence, invariance
from bnrate.evidence import gather
from bnrate.groups import Group, Member


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X = array(0, 16, 5)


def standardise(h, axis, eps=0.0):
    h = h - h.mean(axis, keepdims=True)
    return h / jnp.sqrt((h**2).mean(axis, keepdims=True) + eps)


def batch_norm(p, x):
    return jnp.mean((jnp.tanh(standardise(x @ p["w"] + p["b"][None], 0)) @ p["v"] - 1) ** 2)


def layer_norm(p, x):
    return jnp.mean((jnp.tanh(standardise(x @ p["w"], 1)) @ p["v"] - 1) ** 2)


def hidden(p, x):
    """A division by a norm that is written so that no proof sees it."""
    n = jnp.exp(0.5 * jnp.log(jnp.sum(p["w"] ** 2)))
    return jnp.mean((jnp.tanh(x @ (p["w"] / jnp.where(n > 0, n, 1.0))) @ p["v"] - 1) ** 2)


def epsilon(p, x):
    """An epsilon as large as the variances: proven for 0, and the numbers feel it."""
    return jnp.mean((jnp.tanh(standardise(1e-2 * x @ p["w"], 0, 5e-4)) @ p["v"] - 1) ** 2)


def twice(p, x):
    """A scale and a bias that a second normalisation follows, channel by channel."""
    h = standardise(x, 0) * p["n"]["scale"][None] + p["n"]["bias"][None]
    return jnp.mean((jnp.tanh(standardise(jnp.abs(h), 0)) @ p["v"] - 1) ** 2)


NET = {"w": array(1, 5, 7), "v": array(2, 7)}
CASES = {  # loss, params, answers by leaves and axes
    "batch norm": (
        batch_norm, {**NET, "b": jnp.zeros(7)},
        {"w by (1,)": "proven", "b no effect": "proven", "v": "refuted", "w by (0,)": "refuted"},
    ),
    "layer norm": (
        layer_norm, NET,
        {"w": "proven", "v": "refuted", "w by (0,)": "refuted", "w by (1,)": "refuted"},
    ),
    "a norm in disguise": (
        hidden, NET,
        {"w": "not known", "v": "refuted", "w by (0,)": "refuted", "w by (1,)": "refuted"},
    ),
    "an epsilon that is felt": (
        epsilon, NET, {"w by (1,)": "refuted", "v": "refuted"},
    ),
    "jointly": (
        twice, {"n": {"scale": array(1, 5), "bias": array(2, 5)}, "v": array(3, 5)},
        {"n/bias+n/scale by (0,)": "proven", "n/bias": "refuted", "n/scale": "refuted",
         "v": "refuted"},
    ),
}  # fmt: skip


def answers(found):
    rows = {}
    for claim in found.claims:
        axes = claim.group.members[0].axes
        how = " no effect" if claim.kind == "no effect" else f" by {axes}" if axes else ""
        rows["+".join(sorted(m.path for m in claim.group.members)) + how] = claim.answer
    return rows


@pytest.mark.parametrize(("loss", "params", "expected"), CASES.values(), ids=CASES)
def test_answers(loss, params, expected):
    found = gather(loss, params, X)
    assert answers(found) == expected, str(found)
    assert found.ok
    for claim in found.of("refuted"):
        assert "the loss moves" in claim.reason
    assert max(map(len, str(found).splitlines())) <= 100


def test_what_is_not_known_says_where_the_proof_stops():
    (claim,) = gather(hidden, NET, X).of("not known")
    assert "test_evidence.py" in claim.reason


def test_an_epsilon_is_named():
    claims = gather(epsilon, NET, X).of("refuted")
    assert claims[0].reason.endswith("; proven for epsilons of 0")
    assert not gather(epsilon, NET, X, eps="strict").certificate.groups


def test_a_contradiction_is_shouted():
    """The numbers refute a claim that is taken for proven."""
    found = gather(layer_norm, NET, X)
    wrong = Group([Member("w", 1)])
    claim = evidence.Claim(wrong, "invariant", "proven", found.detection.attempt(wrong))
    idle = evidence.Claim(Group([Member("v")]), "no effect", "proven", found.detection.verdicts[0])
    found = dataclasses.replace(found, claims=(*found.claims, claim, idle))
    assert found.of("contradiction") == (claim, idle)
    assert not found.ok
    assert str(found).startswith("PROVEN, BUT THE NUMBERS REFUTE IT")


def test_layers_of_a_stack():
    def loss(p, x):
        step = lambda h, w: (jnp.tanh(standardise(h @ w, 0)), None)  # noqa: E731
        return jnp.mean((jax.lax.scan(step, x, p["w"])[0] - 1) ** 2)

    found = gather(loss, {"w": array(1, 3, 5, 5)}, X)
    assert answers(found).pop("w by (1,)") == "refuted"
    assert found.detection.groups.groups == (Group([Member("w", (0, 2))]),)
    assert {answer for claim, answer in answers(found).items() if claim != "w by (1,)"} <= {
        "proven", "not known",
    }  # fmt: skip


def test_layers_that_are_alike_share_a_row():
    def loss(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    lines = str(gather(loss, [array(i, 5, 5) for i in range(4)], X)).splitlines()
    assert lines[0] == "Refuted: 4 claims"
    assert lines[1].startswith("  0, and 3 more alike  as a whole  the loss moves by ")


def test_json():
    document = json.loads(gather(batch_norm, {**NET, "b": jnp.zeros(7)}, X).to_json())
    assert document["tried"].startswith("in float64")
    first = document["claims"][0]
    assert first["members"] == [{"path": "w", "axes": [1]}]
    assert (first["claim"], first["answer"]) == ("invariant", "proven")
    assert first["euler"] < 1e-9
    assert document["claims"][1]["euler"] is None


def test_parts_of_a_leaf_are_claims_of_their_own():
    """Whatever the proof says of parts, the numbers are asked about them."""

    def loss(p, x):
        a, b = p["w"][:, :3], p["w"][:, 3:]
        h = jnp.concatenate([standardise(x @ a, 0), standardise(x @ b, 1)], axis=1)
        return jnp.mean((jnp.tanh(h) @ p["v"] - 1) ** 2)

    found = gather(loss, NET, X)
    assert found.ok, str(found)
    part = found.detection.attempt(Group([Member("w", 1, part=[(1, 0, 3)])]))
    assert (part.kind, part.units) == (invariance.INVARIANT, 3)
    assert not found.detection.attempt(Group([Member("w", 1, part=[(1, 3, 7)])])).passes
    assert found.detection.attempt(Group([Member("w", part=[(1, 3, 7)])])).passes
