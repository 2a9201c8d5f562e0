import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate import groups as gr
from bnrate.groups import Group, Groups, Member

# One leaf as a whole, one by columns, two leaves jointly index by index, two jointly as a whole; a
# stack by layer and channel, jointly with its transpose; of (5, 3 * 2 * 4), where the middle axis
# has parts, the first by heads, the second as a whole, and the third in no group.
PARAMS = {
    "a": {"kernel": (3, 4)},
    "b": {"kernel": (3, 4), "bias": (4,)},
    "c": {"scale": (5,), "bias": (5,)},
    "d": [(2, 5, 3), (5,)],
    "stack": {"kernel": (3, 5, 6), "transposed": (6, 3)},
    "qkv": (5, 24),
    "free": (2,),
}
GROUPS = Groups(
    [
        Group([Member("a/kernel")]),
        Group([Member("b/kernel", 1)]),
        Group([Member("c/bias"), Member("c/scale")]),
        Group([Member("d/0", 1), Member("d/1", 0)]),
        Group([Member("stack/kernel", (0, 2)), Member("stack/transposed", (1, 0))]),
        Group([Member("qkv", 2, (5, 3, 2, 4), [(1, 0, 1)])]),
        Group([Member("qkv", (), (5, 3, 8), [(1, 1, 2)])]),
    ]
)
UNITS = 1 + 4 + 1 + 5 + 18 + 2 + 1


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
        *(
            np.append(t["stack"]["kernel"][i, :, j], t["stack"]["transposed"][j, i])
            for i in range(3)
            for j in range(6)
        ),
        *(t["qkv"][:, 4 * i : 4 * i + 4].ravel() for i in range(2)),
        t["qkv"][:, 8:16].ravel(),
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
        *(f"stack/kernel+stack/transposed[{i}, {j}]" for i in range(3) for j in range(6)),
        "qkv[:, 0:1][0]",
        "qkv[:, 0:1][1]",
        "qkv[:, 1:2]",
    )
    assert gr.units(GROUPS.whole(), draw(0)) == (
        "a/kernel",
        "b/kernel",
        "c/bias+c/scale",
        "d/0+d/1",
        "stack/kernel+stack/transposed",
        "qkv[:, 0:1]",
        "qkv[:, 1:2]",
    )


def test_the_entries_of_units_are_counted():
    assert gr.dims(GROUPS, draw(0)).tolist() == [len(x) for x in by_hand(draw(0))]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.lists(st.floats(0.1, 10), min_size=UNITS, max_size=UNITS))
def test_rescale_multiplies_each_unit_and_nothing_else(seed, factors):
    tree = draw(seed)
    scaled = gr.rescale(GROUPS, tree, jnp.asarray(factors, jnp.float32))
    for old, new, factor in zip(by_hand(tree), by_hand(scaled), factors, strict=True):
        np.testing.assert_allclose(new, factor * old, rtol=1e-5)
    np.testing.assert_array_equal(scaled["free"], tree["free"])
    np.testing.assert_array_equal(scaled["b"]["bias"], tree["b"]["bias"])
    np.testing.assert_array_equal(scaled["qkv"][:, 16:], tree["qkv"][:, 16:])


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
    np.testing.assert_array_equal(t["qkv"][:, 16:], v["qkv"][:, 16:])


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
        "qkv": "rest",
        "stack/kernel": "invariant",
        "stack/transposed": "invariant",
    }
    assert list(gr.rest(GROUPS, draw(0))) == ["b/bias", "free", "qkv"]


def test_members_and_rest_add_up_to_the_tree():
    tree = draw(0)
    inside, outside = gr.members(GROUPS, tree), gr.rest(GROUPS, tree)
    for path, leaf in gr.leaves(tree).items():
        np.testing.assert_array_equal(inside.get(path, 0) + outside.get(path, 0), leaf)
    np.testing.assert_array_equal(inside["qkv"][:, 16:], 0)
    np.testing.assert_array_equal(outside["qkv"][:, :16], 0)


def test_a_leaf_whose_parts_are_all_in_groups_is_invariant():
    heads = Member("qkv", 1, (5, 6, 4), [(1, 4, 6)])
    groups = Groups([*GROUPS, Group([heads])])
    assert gr.labels(groups, draw(0))["qkv"] == "invariant"
    assert "qkv" not in gr.rest(groups, draw(0))
    np.testing.assert_array_equal(gr.members(groups, draw(0))["qkv"], draw(0)["qkv"])
    assert gr.units(groups, draw(0))[-2:] == ("qkv[:, 4:6][0]", "qkv[:, 4:6][1]")


def test_combine_takes_members_from_one_tree_and_the_rest_from_another():
    a, b = draw(0), draw(1)
    both = gr.leaves(gr.combine(GROUPS, a, b))
    for path, leaf in both.items():
        expected = gr.leaves(a if path in GROUPS.paths else b)[path]
        if path == "qkv":
            expected = jnp.concatenate([a["qkv"][:, :16], b["qkv"][:, 16:]], 1)
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("vmapped", [False, True])
def test_what_is_no_number_outside_a_part_stays_there(vmapped):
    tree = draw(0)
    tree["qkv"] = tree["qkv"].at[:, 16:].set(jnp.nan)

    def doubled(factors):
        return gr.rescale(GROUPS, gr.unit_vectors(GROUPS, tree), factors)

    factors = jnp.full((1, UNITS), 2.0)
    new = (
        jax.tree.map(lambda x: x[0], jax.vmap(doubled)(factors)) if vmapped else doubled(factors[0])
    )
    np.testing.assert_allclose(gr.norm2(GROUPS, new), np.full(UNITS, 4.0), rtol=1e-5)
    assert jnp.all(jnp.isnan(new["qkv"][:, 16:]))
    chex.assert_tree_all_finite(gr.members(GROUPS, new))


STACK = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=20)
@given(STACK, st.integers(0, 2**31))
def test_a_stack_is_as_its_layers_alone(shape, seed):
    rng = np.random.default_rng(seed)
    w, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    stack = Groups([Group([Member("w", (0, 2))])])
    layers = Groups(Group([Member(str(i), 1)]) for i in range(shape[0]))
    apart = [{str(i): x[i] for i in range(shape[0])} for x in (w, v)]
    for use in (lambda g, a, b: gr.norm2(g, a), gr.inner):
        expected = use(layers, *apart)
        np.testing.assert_allclose(use(stack, {"w": w}, {"w": v}), expected, rtol=1e-4, atol=1e-5)
    for one, each in (
        (gr.unit_vectors(stack, {"w": w}), gr.unit_vectors(layers, apart[0])),
        (gr.tangent(stack, {"w": w}, {"w": v}), gr.tangent(layers, *apart)),
    ):
        stacked = np.stack([each[str(i)] for i in range(shape[0])])
        np.testing.assert_allclose(one["w"], stacked, rtol=1e-5, atol=1e-5)


def test_one_axis_and_none_need_no_reshaping():
    """What is written for parts costs those nothing who have none."""
    groups = Groups([Group([Member("w", 1)]), Group([Member("v")])])
    tree = {"w": jnp.ones((3, 4)), "v": jnp.ones((2, 2))}
    program = str(jax.make_jaxpr(lambda t: gr.rescale(groups, t, gr.norm2(groups, t)))(tree))
    assert not any(word in program for word in ("transpose", "select_n", "pad", "gather"))
    assert program.count("reshape") <= 2  # of a vector of factors for each leaf


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
    assert '    [{"path": "b/kernel", "axes": [1]}],\n' in text
    assert '    [{"path": "c/bias"}, {"path": "c/scale"}],\n' in text
    part = '{"path": "qkv", "axes": [2], "shape": [5, 3, 2, 4], "part": [[1, 0, 1]]}'
    assert f"    [{part}],\n" in text


def test_members_read_well():
    assert [repr(Member("w")), repr(Member("w", 1))] == ["Member('w')", "Member('w', axes=(1,))"]
    for member in (member for group in GROUPS for member in group.members):
        assert eval(repr(member)) == member
    assert Member("w", 1) == Member("w", axes=[np.int64(1)])


BAD_TREES = {
    "missing": (
        [Member("a/kernl")],
        "'a/kernl' of a group is not in the tree, which has 'a/kernel'",
    ),
    "rank": (
        [Member("b/bias", 1)],
        "'b/bias' has rank 1, so it has no unit axis 1; give axes from 0 to 0, or none",
    ),
    "lengths": (
        [Member("a/kernel", 0), Member("b/bias", 0)],
        r"differ in length .*'a/kernel': \(3,\)",
    ),
    "lengths of two": (
        [Member("stack/kernel", (0, 2)), Member("stack/transposed", (0, 1))],
        r"'stack/kernel': \(3, 6\), 'stack/transposed': \(6, 3\)",
    ),
    "view": (
        [Member("qkv", shape=(5, 5))],
        r"'qkv' has shape \(5, 24\), so 120 entries, .* viewed as \(5, 5\), which has 25",
    ),
    "part's axis": ([Member("qkv", part=[(2, 0, 1)])], "'qkv' has rank 2, so it has no part's ax"),
    "part": (
        [Member("qkv", part=[(1, 20, 25)])],
        "part 20:25 of axis 1 of leaf 'qkv' leaves the axis, which has length 24; give a range wit",
    ),
    "overlap": (
        [Member("qkv", (), (5, 3, 8), [(1, 0, 1)]), Member("qkv", part=[(1, 7, 9)])],
        r"parts qkv\[:, 0:1\] and qkv\[:, 7:9\] of leaf 'qkv' overlap",
    ),
}  # fmt: skip


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
    with pytest.raises(ValueError, match=r"shape \(32,\), one per unit, got \(3,\)"):
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
    "mixed": (
        lambda: Group([Member("x", 0), Member("y")]),
        r"group 'x\+y' mixes members with and without unit axes",
    ),
    "one and two": (
        lambda: Group([Member("x", 0), Member("y", (0, 1))]),
        r"group 'x\+y' mixes members of different numbers of axes",
    ),
    "negative": (lambda: Member("x", -1), "axis -1 of leaf 'x' is negative; count from the front"),
    "axis twice": (
        lambda: Member("x", (0, 1, 0)),
        r"the unit axes \(0, 1, 0\) of leaf 'x' repeat an axis; name each once",
    ),
    "length 0": (lambda: Member("x", shape=(3, 0)), r"the shape \(3, 0\) of leaf 'x' has a len"),
    "axis of the view": (
        lambda: Member("x", 2, (3, 4)),
        r"'x' is viewed as \(3, 4\), which has rank 2, so it has no unit axis 2; give",
    ),
    "empty part": (lambda: Member("x", part=[(1, 2, 2)]), "part 2:2 of axis 1 of leaf 'x' is em"),
    "early part": (lambda: Member("x", part=[(1, -2, 2)]), "part -2:2 .* begins before 0; give"),
    "part's axis": (lambda: Member("x", part=[(-1, 0, 2)]), "part's axis -1 of leaf 'x' is negat"),
    "part twice": (
        lambda: Member("x", part=[(1, 0, 2), (1, 4, 5)]),
        r"the part's axes \(1, 1\) of leaf 'x' repeat an axis",
    ),
    "part's numbers": (lambda: Member("x", part=[(1, 2)]), r"has the range \(1, 2\); give \(axi"),
    "part beyond": (lambda: Member("x", (), (3, 4), [(1, 2, 5)]), "part 2:5 .* which has length 4"),
    "part and all": (
        lambda: Groups([Group([Member("x", part=[(0, 0, 1)])]), Group([Member("x")])]),
        "leaf 'x' is named 2 times; a leaf belongs to one group only, or each of its parts to one",
    ),
    "overlap": (
        lambda: Groups([Group([Member("x", part=[(i, i, i + 2)]) for i in (0, 1)])]),
        r"parts x\[0:2\] and x\[:, 1:3\] of leaf 'x' overlap; .* give disjoint ranges",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BAD_JSON = ["", "[]", "{}", '{"groups": 3}', '{"groups": [{}]}', '{"groups": [[{"axis": 1}]]}',
            '{"groups": [["x"]]}', '{"groups": [[{"path": "x", "axis": 1}]]}', '{"groups": [[]]}',
            *(f'{{"groups": [[{{"path": "x", "{field}": {value}}}]]}}' for field, value in [
                ("axes", 1), ("axes", "[true]"), ("axes", "[1.5]"), ("axes", "null"),
                ("shape", 3), ("shape", "[[3]]"), ("part", "[1, 0, 2]"), ("part", "[[1, 0, true]]"),
            ])]  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON)
def test_bad_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"expected|must be|at least"):
        gr.from_json(text)
