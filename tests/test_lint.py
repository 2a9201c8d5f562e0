"""What an optimiser is told, against groups known by construction."""

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
        Group([Member("conv/kernel", 3)]),
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


ALL = ["conv/kernel", "dense/kernel", "norm/bias", "norm/scale"]
LABELS = {
    "true": (TRUE, []),
    "made by a function": (lambda params: gr.labels(GROUPS, params), []),
    "a rest leaf": ({**TRUE, "head": "invariant"}, ["head/bias", "head/kernel"]),
    "a prefix": ({"conv": "invariant", "dense": "rest", "head": "rest", "norm": "invariant"},
                 ["dense/kernel"]),
    "one of two": ({**TRUE, "norm": {"bias": "invariant", "scale": "rest"}}, ["norm/scale"]),
    "by path": ({"head/kernel": "rest", "conv/kernel": "invariant"}, []),
    "one of two by path": ({"norm/scale": "invariant"}, ["norm/scale"]),
}  # fmt: skip


@pytest.mark.parametrize(("treatment", "paths"), LABELS.values(), ids=LABELS)
def test_labels(treatment, paths):
    assert found(treatment) == [(path, "error") for path in paths]


def test_a_mask_of_invariant_leaves_is_like_labels():
    assert found(tree(), meaning="invariant") == []
    by_rank = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)  # noqa: E731
    assert found(by_rank, meaning="invariant") == [
        ("head/kernel", "error"), ("norm/bias", "error"), ("norm/scale", "error"),
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
    message = says(tree(head_kernel=True), meaning="trust_ratio")
    assert "the loss feels its norm" in message["head/kernel"]
    assert "only jointly with 'norm/bias'" in message["norm/scale"]
    assert set(message) == {"head/kernel", "norm/bias", "norm/scale"}


REST = "projecting it changes the function"
PROJECTED = {  # treatment of one leaf, severity, part of the message
    "by channel": ({"conv/kernel": 3}, None, ""),
    "by channel, from the end": ({"conv/kernel": -1}, None, ""),
    "another axis": ({"conv/kernel": 2}, "error", "its units are the indices of axis 3"),
    "coarser": ({"conv/kernel": None}, "note", "each index of axis 3 is a unit"),
    "as a whole": ({"dense/kernel": None}, None, ""),
    "finer, per neuron": ({"dense/kernel": 1}, "error", "as a whole only"),
    "rest": ({"head/kernel": None}, "error", REST),
    "rest, per neuron": ({"head/kernel": 1}, "error", REST),
    "one of two": ({"norm/scale": None}, "error", "only jointly with 'norm/bias'"),
}


@pytest.mark.parametrize(("treatment", "severity", "part"), PROJECTED.values(), ids=PROJECTED)
def test_projection(treatment, severity, part):
    (path,) = treatment
    findings = {f.path: f for f in lint(treatment, GROUPS, PARAMS)}
    unlisted = {"conv/kernel", "dense/kernel"} - {path}
    assert set(findings) == unlisted | ({path} if severity else set())
    assert all(findings[other].severity == "note" for other in unlisted)
    if severity:
        assert findings[path].severity == severity
        assert part in findings[path].message


def test_an_axis_of_length_one_is_no_axis():
    groups = Groups([Group([Member("w")])])
    assert not lint({"w": 1}, groups, {"w": jnp.ones((4, 1))})
    assert lint({"w": 0}, groups, {"w": jnp.ones((4, 1))}).errors


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
    assert found(treatment) == [("head/kernel", "error")]
    assert found({"dense/kernel": True, "conv/kernel": 0}, meaning="decay") == [
        ("conv/kernel", "error"), ("dense/kernel", "note"),
    ]  # fmt: skip


def test_prints_as_a_table():
    lines = str(lint(True, GROUPS, PARAMS, meaning="decay")).splitlines()
    assert lines[0].split() == ["path", "severity", "finding"]
    assert lines[1].startswith("conv/kernel   note      is scale-invariant, so weight decay")
    assert lines[2].startswith("(and 3 more)")
    assert str(lint(TRUE, GROUPS, PARAMS)) == "no findings"


def test_findings_are_a_collection():
    findings = lint({"head/kernel": None}, GROUPS, PARAMS)
    assert isinstance(findings, Findings)
    assert len(findings) == 3
    assert [str(error) for error in findings.errors] == [
        "'head/kernel' has a fixed norm, but it is in no scale-invariant group: projecting it "
        "changes the function"
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
     ('{"a": 0.5}', "leaf 'a' has the treatment 0.5"), ('{"a": [1]}', r"treatment \[1\]")],
)  # fmt: skip
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        treatment_from_json(text)
