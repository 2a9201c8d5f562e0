import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member

# One leaf as a whole, one by columns, two leaves jointly index by index, two jointly as a whole.
PARAMS = {
    "a": {"kernel": (3, 4)},
    "b": {"kernel": (3, 4), "bias": (4,)},
    "c": {"scale": (5,), "bias": (5,)},
    "d": [(2, 5, 3), (5,)],
    "free": (2,),
}
GROUPS = Groups(
    [
        Group([Member("a/kernel")]),
        Group([Member("b/kernel", 1)]),
        Group([Member("c/bias"), Member("c/scale")]),
        Group([Member("d/0", 1), Member("d/1", 0)]),
    ]
)
UNITS = 1 + 4 + 1 + 5


def draw(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def by_hand(tree):
    """The vector of each unit, gathered with plain numpy."""
    t = jax.tree.map(np.asarray, tree)
    return [
        t["a"]["kernel"].ravel(),
        *(t["b"]["kernel"][:, i] for i in range(4)),
        np.concatenate([t["c"]["bias"], t["c"]["scale"]]),
        *(np.append(t["d"][0][:, i, :].ravel(), t["d"][1][i]) for i in range(5)),
    ]


def test_inner_is_the_inner_product_of_each_unit():
    a, b = draw(0), draw(1)
    expected = [x @ y for x, y in zip(by_hand(a), by_hand(b), strict=True)]
    np.testing.assert_allclose(gr.inner(GROUPS, a, b), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gr.norm2(GROUPS, a), [x @ x for x in by_hand(a)], rtol=1e-5)


def test_units_are_named_in_order():
    assert gr.units(GROUPS, draw(0)) == (
        "a/kernel",
        *(f"b/kernel[{i}]" for i in range(4)),
        "c/bias+c/scale",
        *(f"d/0+d/1[{i}]" for i in range(5)),
    )
    assert gr.units(GROUPS.whole(), draw(0)) == (
        "a/kernel",
        "b/kernel",
        "c/bias+c/scale",
        "d/0+d/1",
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.lists(st.floats(0.1, 10), min_size=UNITS, max_size=UNITS))
def test_rescale_multiplies_each_unit_and_nothing_else(seed, factors):
    tree = draw(seed)
    scaled = gr.rescale(GROUPS, tree, jnp.asarray(factors, jnp.float32))
    for old, new, factor in zip(by_hand(tree), by_hand(scaled), factors, strict=True):
        np.testing.assert_allclose(new, factor * old, rtol=1e-5)
    np.testing.assert_array_equal(scaled["free"], tree["free"])
    np.testing.assert_array_equal(scaled["b"]["bias"], tree["b"]["bias"])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_tangent_is_orthogonal_idempotent_and_removes_only_the_radial_part(seed):
    w, v = draw(seed), draw(seed + 1)
    t = gr.tangent(GROUPS, w, v)
    size = jnp.sqrt(gr.norm2(GROUPS, w) * gr.norm2(GROUPS, v))
    assert jnp.all(jnp.abs(gr.inner(GROUPS, w, t)) < 1e-5 * size)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gr.tangent(GROUPS, w, t), t
    )
    for x, y, z in zip(by_hand(w), by_hand(v), by_hand(t), strict=True):
        np.testing.assert_allclose(y - z, x * (x @ y) / (x @ x), atol=1e-4)
    np.testing.assert_array_equal(t["free"], v["free"])


def test_unit_vectors_have_norm_one_and_zero_stays_zero():
    tree = draw(0)
    tree["b"]["kernel"] = tree["b"]["kernel"].at[:, 2].set(0)
    expected = np.ones(UNITS)
    expected[3] = 0
    np.testing.assert_allclose(gr.norm2(GROUPS, gr.unit_vectors(GROUPS, tree)), expected, rtol=1e-5)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gr.tangent(GROUPS, tree, draw(1))))


def test_labels_and_rest_split_the_tree():
    labels = gr.labels(GROUPS, draw(0))
    assert gr.leaves(labels) == {
        "a/kernel": "invariant",
        "b/bias": "rest",
        "b/kernel": "invariant",
        "c/bias": "invariant",
        "c/scale": "invariant",
        "d/0": "invariant",
        "d/1": "invariant",
        "free": "rest",
    }
    assert list(gr.rest(GROUPS, draw(0))) == ["b/bias", "free"]


def test_combine_takes_members_from_one_tree_and_the_rest_from_another():
    a, b = draw(0), draw(1)
    both = gr.leaves(gr.combine(GROUPS, a, b))
    for path, leaf in both.items():
        np.testing.assert_array_equal(leaf, gr.leaves(a if path in GROUPS.paths else b)[path])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_are_kept_and_sums_are_wide(dtype):
    tree, factors = draw(0, dtype), jnp.full(UNITS, 2.0)
    assert gr.norm2(GROUPS, tree).dtype == jnp.float32
    for new in (
        gr.rescale(GROUPS, tree, factors),
        gr.unit_vectors(GROUPS, tree),
        gr.tangent(GROUPS, tree, tree),
    ):
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(new))
    # 4096 ones sum to 256 in bfloat16 arithmetic
    ones = {"w": jnp.ones(4096, dtype)}
    assert gr.norm2(Groups([Group([Member("w")])]), ones) == 4096


def test_float64_stays_float64(float64):
    assert gr.norm2(GROUPS, draw(0, jnp.float64)).dtype == jnp.float64


def test_a_tree_may_mix_dtypes():
    tree = draw(0)
    tree["d"][1] = tree["d"][1].astype(jnp.bfloat16)
    assert gr.norm2(GROUPS, tree).shape == (UNITS,)
    assert gr.tangent(GROUPS, tree, draw(1))["d"][1].dtype == jnp.float32


def test_no_groups_is_a_value_like_any_other():
    none = Groups()
    assert gr.norm2(none, draw(0)).shape == (0,)
    assert set(jax.tree.leaves(gr.labels(none, draw(0)))) == {"rest"}
    assert gr.from_json(gr.to_json(none)) == none


def test_groups_are_static_under_jit():
    traces = []

    @jax.jit
    def total(groups, tree):
        traces.append(groups)
        return jnp.sum(gr.norm2(groups, tree))

    total(GROUPS, draw(0))
    total(Groups(GROUPS.groups), draw(1))
    assert len(traces) == 1
    total(GROUPS.whole(), draw(0))
    assert len(traces) == 2
    assert len({GROUPS, Groups(GROUPS.groups), GROUPS.whole()}) == 2


def test_json_reads_back_and_reads_well():
    text = gr.to_json(GROUPS)
    assert gr.from_json(text) == GROUPS
    assert '    [{"path": "b/kernel", "axis": 1}],\n' in text
    assert '    [{"path": "c/bias"}, {"path": "c/scale"}],\n' in text


BAD_TREES = {
    "missing": (
        [Member("a/kernl")],
        "'a/kernl' of a group is not in the tree, which has 'a/kernel'",
    ),
    "rank": ([Member("b/bias", 1)], "'b/bias' has rank 1, so it has no unit axis 1"),
    "lengths": ([Member("a/kernel", 0), Member("b/bias", 0)], r"differ in length .*'a/kernel': 3"),
}


@pytest.mark.parametrize(("members", "message"), BAD_TREES.values(), ids=BAD_TREES)
def test_a_group_that_does_not_fit_is_refused_with_its_path(members, message):
    groups = Groups([Group(members)])
    for use in (gr.norm2, gr.labels, gr.units, gr.unit_vectors, gr.rest):
        with pytest.raises(ValueError, match=message):
            use(groups, draw(0))


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="several leaves have the path 'a/b'"):
        gr.leaves({"a/b": jnp.ones(1), "a": {"b": jnp.ones(2)}})


def test_trees_of_different_shapes_are_refused():
    other = draw(0)
    other["a"]["kernel"] = jnp.ones((1, 4))
    for use in (gr.inner, gr.tangent, gr.combine):
        with pytest.raises(ValueError, match=r"'a/kernel' has shape \((3|1), 4\) in one tree"):
            use(GROUPS, draw(0), other)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="'n' must be an array of floats, got int32"):
        gr.norm2(Groups([Group([Member("n")])]), {"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="'n' must be an array of floats, got float"):
        gr.norm2(Groups([Group([Member("n")])]), {"n": 1.0})


def test_factors_must_be_one_per_unit():
    with pytest.raises(ValueError, match=r"shape \(11,\), one per unit, got \(3,\)"):
        gr.rescale(GROUPS, draw(0), jnp.ones(3))


BAD_VALUES = {
    "twice": (
        lambda: Groups([Group([Member("x")]), Group([Member("x", 0)])]),
        "leaf 'x' is named 2 t",
    ),
    "twice in one": (
        lambda: Groups([Group([Member("x"), Member("x")])]),
        "leaf 'x' is named 2 times",
    ),
    "empty": (lambda: Group([]), "at least one member"),
    "mixed": (lambda: Group([Member("x", 0), Member("y")]), r"group 'x\+y' mixes members"),
    "negative": (lambda: Member("x", -1), "axis -1 of leaf 'x' is negative; count from the front"),
}


@pytest.mark.parametrize(("make", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BAD_JSON = ["", "[]", "{}", '{"groups": 3}', '{"groups": [{}]}', '{"groups": [[{"axis": 1}]]}',
            '{"groups": [["x"]]}', '{"groups": [[{"path": "x", "axes": 1}]]}', '{"groups": [[]]}',
            '{"groups": [[{"path": "x", "axis": true}]]}',
            '{"groups": [[{"path": "x", "axis": false}]]}',
            '{"groups": [[{"path": "x", "axis": 1.5}]]}']  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON)
def test_bad_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"expected|must be|at least"):
        gr.from_json(text)
