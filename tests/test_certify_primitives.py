"""Every primitive of the installed JAX has a rule or a reason; functions are held against numbers.

Of public functions of one or two arrays (see `functions`) losses are made, and all that is proven
of them is tried on their values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import BY_HAND, SIZE, rows
from jax import lax
from jax.extend.core import primitives
from primitives import RULES, primitives_of
from witnesses import UNCHECKED

from bnrate.certify.unread import WITHOUT_RULE

# In newer or older versions of JAX, or not made by any function here.
ELSEWHERE = {
    "checkpoint", "convolve", "copy_p", "core_call", "custom_vjp_call_jaxpr", "expand_dims",
    "ffi_call", "mesh_cast", "random_gamma_grad", "pallas_call", "pjit", "remat", "reshard",
    "layout_constraint", "reduced_vary_cast_p", "all_gather_invariant",
}  # fmt: skip
POINTS = 3
PARTS = "raw", "normal", "positive", "shifted"
IN_CHUNKS = 40
# Of functions made of the same primitives but for these, one is tried.
PLAIN = {
    "add", "and", "broadcast_in_dim", "convert_element_type", "copy", "div", "eq", "gt", "ge",
    "integer_pow", "iota", "jit", "le", "lt", "max", "min", "mul", "ne", "neg", "or", "reshape",
    "select_n", "sqrt", "square", "squeeze", "sub", "transpose", "pow", "is_finite", "not",
}  # fmt: skip
# Their values change, but that is no matter of scales: of roundings, or at each call.
UNSTEADY = {"reduce_precision", "bfloat16", "rng_uniform"}
# Outside of this thread, hence in single precision; and what this platform cannot compile.
NOT_RUN = {"callback", "io_callback", "mulhi", "reduce", "reduce_window", "reduce_xor"}
# Homogeneous, but collectives of some shards only are not followed.
NOT_PROVEN = {"sums of groups of shards", "all_to_all, of one axis"}
# Entire functions, of which nothing is proven, are traced only.
TRACED_ONLY = "special.", "scipy."


@pytest.fixture(autouse=True, scope="module")
def doubles():
    with (
        jax.enable_x64(True), jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):  # fmt: skip
        yield


@pytest.fixture(scope="module")
def functions(doubles):
    return rows()


@pytest.fixture(scope="module")
def met(functions):
    """The primitives that JAX names, and those that programs are made of."""
    public = {getattr(p, "name", "") for p in vars(primitives).values()} - {primitives.__name__, ""}
    h = jnp.ones((SIZE, SIZE))
    traced = [primitives_of(jax.make_jaxpr(row.call)(h)) for row in functions.values()]
    return public.union(*traced)


def test_each_primitive_has_a_rule_or_a_reason(met):
    assert met - {*RULES} - {*WITHOUT_RULE} == set()
    assert {*RULES} & {*WITHOUT_RULE} == set()


def test_each_rule_and_each_reason_is_of_a_primitive(met):
    assert {*RULES} | {*WITHOUT_RULE} <= met | ELSEWHERE


# --- losses


def flat(y, numpy=jnp):
    y = numpy.asarray(y)
    if numpy.iscomplexobj(y):
        y = numpy.concatenate([y.real, y.imag])
    return y.astype(float)


def felt(y, numpy=jnp):
    """A number that feels every entry."""
    return numpy.sum(numpy.cos(y + numpy.arange(y.size).reshape(y.shape)))


def as_it_is(y, numpy=jnp):
    return y


def in_columns(y, numpy=jnp):
    if y.ndim < 2:
        return y / numpy.sqrt(numpy.sum(y**2))
    return y / numpy.sqrt(numpy.sum(y**2, 0))


def standardised(y, numpy=jnp):
    if y.ndim == 0:
        return y
    y = y - numpy.mean(y, 0)
    return y / numpy.sqrt(numpy.mean(y**2, 0))


HEADS = as_it_is, in_columns, in_columns, standardised  # of the parts


def arguments(params, x):
    """What a row's function is called with, for each part with parameters of its own."""
    raw, normal, positive = (x @ params[k] for k in PARTS[:3])
    return raw, normal, positive**2, x @ params["shifted"] + params["bias"]


def part(head, results, numpy=jnp):
    return sum(felt(head(flat(y, numpy), numpy), numpy) for y in results)


def filled(seed):
    """Parameters and data, for all rows alike."""
    rng = np.random.default_rng(seed)
    params = {k: rng.standard_normal((SIZE, SIZE)) / 2 for k in PARTS}
    return params | {"bias": rng.standard_normal(SIZE)}, rng.standard_normal((SIZE, SIZE))


def scaled(params, direction):
    return {k: w * np.exp(direction.get(k, 0.0)) for k, w in params.items()}


def proven(row):
    def loss(params, x):
        hs = arguments(params, x)
        return jnp.sum(jnp.stack([part(f, row.call(h)) for f, h in zip(HEADS, hs, strict=True)]))

    certificate = UNCHECKED(loss, *filled(0), eps="strict")
    return [{k: np.asarray(v, float) for k, v in d.items()} for d in certificate.directions()]


# --- numbers


def compute(rows, inputs):
    """The parts of each row's loss at all points (parameters and data), which are its `inputs`.

    A function is compiled once, for all parts and points; what is made of its results is not
    compiled at all.
    """

    def results(stacks):
        return [lax.map(row.call, hs) for row, hs in zip(rows, stacks, strict=True)]

    stacks = [np.stack([h for point in points for h in arguments(*point)]) for points in inputs]
    with np.errstate(all="ignore"):
        return [
            np.reshape(
                [part(HEADS[i % len(HEADS)], [y[i] for y in ys], np) for i in range(len(hs))],
                (-1, len(HEADS)),
            )
            for ys, hs in zip(map(as_numpy, jax.jit(results)(stacks)), stacks, strict=True)
        ]


def as_numpy(arrays):
    return [np.asarray(y) for y in arrays]


def points_of(claims):
    """Points, each as it is and rescaled in all ways that are claimed; two also as a whole."""
    points = []
    for seed in range(POINTS):
        params, x = filled(seed)
        points += [(params, x), (scaled(params, mixture(claims, np.random.default_rng(seed))), x)]
    for seed in range(2):
        params, x = filled(seed)
        points += [(scaled(params, {"normal": 0.4}), x)]
    return points


def differ(a, b):
    return np.isfinite(a) & ~(np.abs(a - b) <= 1e-8 * (1 + np.abs(a)))


def mixture(directions, rng):
    total = {}
    for direction in directions:
        factor = rng.uniform(-0.5, 0.5)
        for k, v in direction.items():
            total[k] = total.get(k, 0.0) + factor * v
    return total


# --- what is proven


def kinds(functions):
    """One function for each set of primitives; all of those that are written by hand."""
    h, found = jnp.ones((SIZE, SIZE)), {}
    for name, row in functions.items():
        if not name.startswith(TRACED_ONLY) and name not in UNSTEADY:
            made_of = frozenset(primitives_of(jax.make_jaxpr(row.call)(h)) - PLAIN)
            found.setdefault(made_of if name not in BY_HAND else name, name)
    return [*found.values()]


@pytest.fixture(scope="module")
def claims(functions):
    """The directions that are proven of each function."""
    return {name: proven(functions[name]) for name in kinds(functions)}


@pytest.fixture(scope="module")
def values(functions, claims):
    """The parts of the losses, at `points_of` their claims, of which something is or may be."""
    names = [n for n in claims if claims[n] or n in {*BY_HAND} - NOT_RUN]
    found = {}
    for chunk in (names[i : i + IN_CHUNKS] for i in range(0, len(names), IN_CHUNKS)):
        rows = [functions[name] for name in chunk]
        points = [points_of(claims[name]) for name in chunk]
        found |= dict(zip(chunk, compute(rows, points), strict=True))
    return found


def holds_all_ones(vectors):
    """Whether the ones are a combination of the vectors."""
    if not vectors:
        return False
    ones = np.ones(SIZE * SIZE)
    left = ones - np.stack(vectors, 1) @ np.linalg.lstsq(np.stack(vectors, 1), ones)[0]
    return np.abs(left).max() < 1e-6


def normalised_alike(at):
    """Whether a function is homogeneous, or looks like it at two points."""
    before, after = at[[0, 2], 1], at[-2:, 1]
    return bool(np.all(np.isfinite(before) & ~differ(before, after)))


def test_numbers_hold_all_that_is_proven(claims, values):
    claimed = [name for name, directions in claims.items() if directions]
    assert len(claimed) > 100
    assert {*claimed} <= {*values}
    untrue = [n for n in claimed if differ(values[n][0:-2:2], values[n][1:-2:2]).any()]
    assert untrue == []


def test_what_is_homogeneous_is_proven_so_or_has_a_reason(functions, claims, values):
    """Functions that are made of primitives with rules, that is."""
    h = jnp.ones((SIZE, SIZE))
    lost = []
    for name in {*BY_HAND} & {*values} - NOT_RUN:
        if not normalised_alike(values[name]):
            continue
        known = holds_all_ones(
            [np.ravel(np.broadcast_to(d.get("normal", 0.0), (SIZE, SIZE))) for d in claims[name]]
        )
        reasons = primitives_of(jax.make_jaxpr(functions[name].call)(h)) & {*WITHOUT_RULE}
        lost += [] if known or reasons else [name]
    assert {*lost} == NOT_PROVEN
