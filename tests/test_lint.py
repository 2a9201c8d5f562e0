"""What an optimiser is told, against groups known by construction."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member
from bnrate.invariance import Findings, lint, treatment_from_json

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4))},  # before BatchNorm: each output channel
    "dense": {"kernel": jnp.ones((4, 5))},  # before LayerNorm: as a whole
    "head": {"bias": jnp.ones(3), "kernel": jnp.ones((5, 3))},
    "norm": {"bias": jnp.ones(4), "scale": jnp.ones(4)},  # jointly
}
GROUPS = Groups(
    [
        Group([Member("conv/kernel", axes=3)]),
        Group([Member("dense/kernel")]),
        Group([Member("norm/bias"), Member("norm/scale")]),
    ]
)
TRUE = gr.labels(GROUPS, PARAMS)


def tree(**changes):
    """A tree of bools that is true where the groups are, but for `layer_leaf=` changes."""
    flat = {path: label == "invariant" for path, label in gr.leaves(TRUE).items()}
    flat |= {name.replace("_", "/"): value for name, value in changes.items()}
    return jax.tree.unflatten(jax.tree.structure(PARAMS), list(flat.values()))


def found(treatment, **options):
    return [(f.path, f.severity) for f in lint(treatment, GROUPS, PARAMS, **options)]


def says(treatment, **options):
    return {f.path: f.message for f in lint(treatment, GROUPS, PARAMS, **options)}


X, Y = (jnp.asarray(np.random.default_rng(i).standard_normal((16, n)), "float32")
        for i, n in enumerate((4, 3)))  # fmt: skip


def loss(p, x, y):
    """A loss to which GROUPS belong, and more that they leave out: the head is normalised too."""
    kernel = p["conv"]["kernel"]
    scale = p["norm"]["scale"] / jnp.linalg.norm(jnp.concatenate(list(p["norm"].values())))
    kernel = kernel / jnp.sqrt((kernel**2).sum((0, 1, 2), keepdims=True))
    h = x @ kernel.sum((0, 1, 2))
    h = jnp.tanh(h[:, None] * x * scale[None]) @ p["dense"]["kernel"]
    h = h / jnp.linalg.norm(h, keepdims=True)
    head = p["head"]["kernel"]
    head = head / jnp.linalg.norm(head, axis=0, keepdims=True)
    return jnp.mean((h @ head + p["head"]["bias"][None] - y) ** 2)


TRIED = {"loss": loss, "args": (X, Y)}
ALL = ["conv/kernel", "dense/kernel", "norm/bias", "norm/scale"]
LABELS = {  # treatment, severities without the loss, and with it
    "true": (TRUE, {}, {}),
    "made by a function": (lambda params: gr.labels(GROUPS, params), {}, {}),
    "a rest leaf": (
        {**TRUE, "head": "invariant"},
        {"head/bias": "unknown", "head/kernel": "unknown"},
        {"head/bias": "error", "head/kernel": "note"},
    ),
    "a prefix": (
        {"conv": "invariant", "dense": "rest", "head": "rest", "norm": "invariant"},
        {"dense/kernel": "error"}, {"dense/kernel": "error"},
    ),
    "one of two": (
        {**TRUE, "norm": {"bias": "invariant", "scale": "rest"}},
        {"norm/scale": "error"}, {"norm/scale": "error"},
    ),
    "by path": ({"head/kernel": "rest", "conv/kernel": "invariant"}, {}, {}),
    "one of two by path": (
        {"norm/scale": "invariant"}, {"norm/scale": "unknown"}, {"norm/scale": "error"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("treatment", "untried", "tried"), LABELS.values(), ids=LABELS)
def test_labels(treatment, untried, tried):
    assert dict(found(treatment)) == untried
    assert dict(found(treatment, **TRIED)) == tried


def test_a_mask_of_invariant_leaves_is_like_labels():
    assert found(tree(), meaning="invariant") == []
    by_rank = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)  # noqa: E731
    assert found(by_rank, meaning="invariant") == [
        ("head/kernel", "unknown"), ("norm/bias", "error"), ("norm/scale", "error"),
    ]  # fmt: skip
    assert found(jax.tree.map(np.bool_, tree()), meaning="invariant") == []


def test_decay_is_noted_on_invariant_leaves_only():
    assert found(True, meaning="decay") == [(path, "note") for path in ALL]
    assert found(False, meaning="decay") == [(path, "note") for path in ALL]
    assert "equilibrium" in says(True, meaning="decay")["conv/kernel"]
    assert "falls for ever" in says(False, meaning="decay")["conv/kernel"]


def test_decay_of_some_members_changes_the_function():
    message = says(tree(norm_bias=False), meaning="decay")
    assert "'norm/bias', and not all of them decay" in message["norm/scale"]
    assert "norm/bias" not in message


def test_trust_ratio():
    assert found(tree(norm_bias=False, norm_scale=False), meaning="trust_ratio") == [
        ("norm/bias", "note"), ("norm/scale", "note"),
    ]  # fmt: skip
    mask = tree(head_bias=True)
    message = says(mask, meaning="trust_ratio", **TRIED)
    assert "follows the norm, not the gradient: the loss moves by" in message["head/bias"]
    assert "only jointly with 'norm/bias'" in message["norm/scale"]
    assert set(message) == {"head/bias", "norm/bias", "norm/scale"}
    assert dict(found(mask, meaning="trust_ratio"))["head/bias"] == "unknown"


CHANGES = "projecting it changes the function: the loss moves "
AGREE = "more is not proven, nor do numbers refute it"
PROJECTED = {  # treatment of one leaf; severity without the loss and with it; part of the message
    "by channel": ({"conv/kernel": 3}, None, None, ""),
    "by channel, in a tuple": ({"conv/kernel": (3,)}, None, None, ""),
    "by channel, from the end": ({"conv/kernel": -1}, None, None, ""),
    "another axis": ({"conv/kernel": 2}, "unknown", "error", CHANGES),
    "finer than channels": ({"conv/kernel": (2, 3)}, "unknown", "error", CHANGES),
    "coarser": ({"conv/kernel": None}, "note", "note", "each index of axis 3 is a unit"),
    "as a whole": ({"dense/kernel": None}, None, None, ""),
    "finer, per neuron": ({"dense/kernel": 1}, "unknown", "error", "as a whole only"),
    "rest": ({"head/bias": None}, "unknown", "error", CHANGES),
    "truer than proven": ({"head/kernel": None}, "unknown", "note", AGREE),
    "truer than proven, per neuron": ({"head/kernel": 1}, "unknown", "note", AGREE),
    "along the wrong axis": ({"head/kernel": 0}, "unknown", "error", "each index of axis 0 is"),
    "one of two": ({"norm/scale": None}, "unknown", "error", "only jointly with 'norm/bias'"),
}


@pytest.mark.parametrize(
    ("treatment", "untried", "tried", "part"), PROJECTED.values(), ids=PROJECTED
)
def test_projection(treatment, untried, tried, part):
    (path,) = treatment
    unlisted = {"conv/kernel", "dense/kernel"} - {path}
    for severity, options in ((untried, {}), (tried, TRIED)):
        findings = {f.path: f for f in lint(treatment, GROUPS, PARAMS, **options)}
        assert set(findings) == unlisted | ({path} if severity else set())
        assert all(findings[other].severity == "note" for other in unlisted)
        assert not severity or findings[path].severity == severity
        if severity == "unknown":
            assert "is not known; have it tried (loss=, or --numeric)" in findings[path].message
    if tried:
        assert part in findings[path].message


def test_the_figure_is_that_of_the_claim():
    """Doubling each index of an axis alike is scaling the whole; only factors of their own tell."""
    message = says({"dense/kernel": 1}, **TRIED)["dense/kernel"]
    assert re.search(r"moves by [\d.]+ % when each index of axis 1 is scaled by a factor", message)
    message = says({"head/bias": None}, **TRIED)["head/bias"]
    assert re.search(r"the loss moves by [\d.]+ % when it is doubled$", message)


def test_what_has_no_effect_is_said():
    params = {**PARAMS, "idle": jnp.ones(3)}
    ((finding),) = lint({"idle": "invariant"}, GROUPS, params, **TRIED)
    assert (finding.severity, finding.message.partition("; ")[2]) == (
        "note", "nothing that was tried on it changes the loss",
    )  # fmt: skip


def test_an_axis_of_length_one_is_no_axis():
    groups = Groups([Group([Member("w")])])
    assert not lint({"w": 1}, groups, {"w": jnp.ones((4, 1))})
    assert lint({"w": 0}, groups, {"w": jnp.ones((4, 1))}).unknown


STACK = {"w": jnp.ones((3, 4, 5)), "s": jnp.ones((3, 5))}


def test_units_on_two_axes():
    groups = Groups([Group([Member("w", (0, 2))]), Group([Member("s", 0)])])
    assert not lint({"w": (0, 2), "s": 0}, groups, STACK)
    assert not lint({"w": [(0, 2)][0], "s": -2}, groups, STACK)
    (one,) = lint({"w": 0, "s": 0}, groups, STACK)
    assert "a fixed norm at each index of axis 0, but each index of axes (0, 2) is a" in str(one)
    assert not lint({"net": {"w": (0, 2), "s": 0}}, *inside(groups))
    (two,) = lint({"w": (0, 2), "s": (0, 1)}, groups, STACK)
    assert two.severity == "unknown"
    assert "its known units are the indices of axis 0" in two.message


def inside(groups):
    """The same groups and parameters one level down."""
    renamed = [Group(Member(f"net/{m.path}", m.axes) for m in g.members) for g in groups]
    return Groups(renamed), {"net": STACK}


def test_parts_of_a_leaf():
    parts = [Member("w", 2, part=[(0, i, i + 1)]) for i in range(2)]
    groups = Groups([Group([part]) for part in parts])
    (one,) = lint({"w": "invariant", "s": "rest"}, groups, STACK)
    assert (one.severity, "only w[0:1], w[1:2]:" in one.message) == ("unknown", True)
    assert not lint({"w": "rest", "s": "rest"}, groups, STACK)
    groups = Groups([*groups, Group([Member("w", part=[(0, 2, 3)])])])
    assert not lint({"w": "invariant", "s": "rest"}, groups, STACK)
    assert lint({"w": "rest"}, groups, STACK).errors


NORMED = {
    "layers": {"scale": jnp.ones((3, 5)), "shift": jnp.zeros((3, 5)), "w": jnp.ones((3, 5, 5))},
    "positions": jnp.ones((16, 5)),
    "gates": jnp.ones((4, 5)),
    "bias": jnp.zeros(5),
}


def stacked(p, x):
    """Layers in a scan: a normalisation with scale and shift, then a kernel."""

    def layer(h, one):
        n = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
        n = n * (1 + one["scale"])[None] + one["shift"][None]
        return h + jnp.tanh(n @ one["w"]), None

    h = jnp.tile(x, (1, 2))[:, :5] + p["positions"] + p["bias"][None]
    h, _ = jax.lax.scan(layer, h, p["layers"])
    return jnp.mean((h.reshape(4, 4, 5) * p["gates"][None]) ** 2)


def by_rank(params):
    return jax.tree.map(lambda w: w.ndim >= 2, params)


def test_a_mask_by_rank_takes_stacked_scales_for_matrices():
    options = {"meaning": "decay", "loss": stacked, "args": (X,)}
    findings = {f.path: f for f in lint(by_rank, Groups(), NORMED, **options)}
    assert {f.severity for f in findings.values()} == {"note"}
    assert set(findings) == {"gates", "layers/scale", "layers/shift"}
    assert "it is used in slices of one axis only" in findings["layers/shift"].message
    assert "multiplies entry by entry" in findings["gates"].message
    without = lint(by_rank, Groups(), NORMED, meaning="decay")
    assert [(f.path, f.severity) for f in without] == [
        ("layers/scale", "unknown"), ("layers/shift", "unknown"),
    ]  # fmt: skip


def test_who_decays_vectors_too_is_not_told():
    assert not lint(True, Groups(), NORMED, meaning="decay", loss=stacked, args=(X,))


M = MuonDimensionNumbers
MUON = {
    "as it should be": ({"conv/kernel": M((0, 1, 2), 3), "dense/kernel": M()}, {}),
    "from the end": ({"conv/kernel": M((0, 1, -2), -1)}, {}),
    "channels as a batch": ({"conv/kernel": M(0, 1)}, {}),
    "swapped": ({"conv/kernel": M(3, (0, 1, 2))}, {"conv/kernel": "look swapped"}),
    "swapped without harm": ({"dense/kernel": M(1, 0)}, {}),
    "both": ({"dense/kernel": M(0, (0, 1))}, {"dense/kernel": "axis 0 as reduction and output"}),
    "no such axis": ({"dense/kernel": M(0, 2)}, {"dense/kernel": "but only 2 axes"}),
    "left to Adam": ({"head/kernel": M(), "dense/kernel": None, "norm/scale": None},
                     {"dense/kernel": "leaves to Adam"}),
    "everything": (M((0,), (1,)), dict.fromkeys(("head/bias", "norm/bias", "norm/scale"),
                                                "it is no matrix")),
}  # fmt: skip


@pytest.mark.parametrize(("treatment", "parts"), MUON.values(), ids=MUON)
def test_muon(treatment, parts):
    message = says(treatment)
    assert set(message) == set(parts)
    assert all(part in message[path] for path, part in parts.items())


def test_muon_trees_as_optax_takes_them():
    numbers = jax.tree.map(lambda w: M(0, 1) if w.ndim == 2 else None, PARAMS)
    optax.contrib.muon(0.1, muon_weight_dimension_numbers=numbers).init(PARAMS)
    assert found(numbers) == [("conv/kernel", "note")]


def test_kinds_may_mix_by_path():
    treatment = treatment_from_json(
        '{"conv/kernel": 3, "dense/kernel": "invariant", "head/bias": "rest", "head/kernel": null}'
    )
    assert found(treatment) == [("head/kernel", "unknown")]
    assert found({"dense/kernel": True, "conv/kernel": 0}, meaning="decay") == [
        ("conv/kernel", "unknown"), ("dense/kernel", "note"),
    ]  # fmt: skip


def test_prints_as_a_table():
    lines = str(lint(True, GROUPS, PARAMS, meaning="decay")).splitlines()
    assert lines[0].split() == ["path", "severity", "finding"]
    assert lines[1].startswith("conv/kernel   note      is scale-invariant, so weight decay")
    assert lines[2].startswith("(and 3 more)")
    assert str(lint(TRUE, GROUPS, PARAMS)) == "no findings"


def test_findings_are_a_collection():
    findings = lint({"dense/kernel": "rest", "head/kernel": None}, GROUPS, PARAMS)
    assert isinstance(findings, Findings)
    assert len(findings) == 3
    assert [str(error) for error in findings.errors] == [
        "'dense/kernel' is treated as rest, but it is scale-invariant"
    ]
    assert [str(one) for one in findings.unknown] == [
        "'head/kernel' has a fixed norm, but it is in no scale-invariant group: whether projecting "
        "it changes the function is not known; have it tried (loss=, or --numeric)"
    ]
    assert not lint(TRUE, GROUPS, PARAMS)


def test_shapes_are_enough():
    assert not lint(TRUE, GROUPS, jax.eval_shape(lambda: PARAMS))


BAD = {
    "label": ({**TRUE, "head": "other"}, {}, "leaf 'head/bias' has the treatment 'other'; legal"),
    "float": ({"head/bias": 0.5}, {}, 'legal are "invariant" or "rest"'),
    "bools without meaning": (tree(), {}, "could mean anything; give meaning= one of"),
    "meaning without bools": (TRUE, {"meaning": "decay"}, "the treatment has none"),
    "path": ({"head/kernal": "rest"}, {}, "no leaf 'head/kernal'; there are conv/kernel"),
    "structure": ({"conv": "rest", "tail": "rest"}, {}, "nor a tree like the parameters"),
    "an axis of two": ({"head/kernel": (0, 2)}, {}, "rank 2, so it has no axis 2"),
    "tolerance": (TRUE, {"tolerance": 2.0}, "between 0 and 1"),
    "untraceable": ({"head/bias": 0}, {"loss": lambda p: p["head"]["bias"]}, "reduce it"),
    "axis": ({"head/kernel": 2}, {}, "rank 2, so it has no axis 2; give an axis from -2 to 1"),
}


@pytest.mark.parametrize(("treatment", "options", "message"), BAD.values(), ids=BAD)
def test_bad_treatment(treatment, options, message):
    with pytest.raises(ValueError, match=message):
        lint(treatment, GROUPS, PARAMS, **options)


def test_groups_must_fit():
    with pytest.raises(ValueError, match="leaf 'x' of a group is not in the tree"):
        lint(TRUE, Groups([Group([Member("x")])]), PARAMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "expected an object from paths"),
     ('{"a": 0.5}', "leaf 'a' has the treatment 0.5"),
     ('{"a": [1, "b"]}', r"treatment \[1, \"b\"\]"),
     ('{"a": [true]}', r"treatment \[true\]")],
)  # fmt: skip
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        treatment_from_json(text)
