"""Every primitive of the installed JAX has a rule or a reason; functions are held against numbers.

Of public functions of one or two arrays (see `functions`) losses are made, and all that is proven
of them is tried on their values.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import BY_HAND, SIZE, rows
from jax.extend.core import primitives
from test_certify_rules import RULES, primitives_of
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


def flat(y):
    y = jnp.asarray(y)
    if jnp.iscomplexobj(y):
        y = jnp.concatenate([y.real, y.imag])
    return y.astype(float)


def felt(y):
    """A number that feels every entry."""
    return jnp.sum(jnp.cos(y + jnp.arange(y.size).reshape(y.shape)))


def in_columns(y):
    if y.ndim < 2:
        return y / jnp.sqrt(jnp.sum(y**2))
    return y / jnp.sqrt(jnp.sum(y**2, 0))


def standardised(y):
    if y.ndim == 0:
        return y
    y = y - jnp.mean(y, 0)
    return y / jnp.sqrt(jnp.mean(y**2, 0))


def parts(row, params, x):
    """The parts of a row's loss, each with parameters of its own."""
    raw, normal, positive = (x @ params[k] for k in PARTS[:3])
    shifted = x @ params["shifted"] + params["bias"]
    heads = [(raw, lambda y: y), (normal, in_columns), (positive**2, in_columns),
             (shifted, standardised)]  # fmt: skip
    return jnp.stack([sum(felt(head(flat(y))) for y in row.call(h)) for h, head in heads])


def filled(seed):
    """Parameters and data, for all rows alike."""
    rng = np.random.default_rng(seed)
    params = {k: rng.standard_normal((SIZE, SIZE)) / 2 for k in PARTS}
    return params | {"bias": rng.standard_normal(SIZE)}, rng.standard_normal((SIZE, SIZE))


def scaled(params, direction):
    return {k: w * np.exp(direction.get(k, 0.0)) for k, w in params.items()}


def proven(row):
    params, x = filled(0)
    certificate = UNCHECKED(lambda p, x: jnp.sum(parts(row, p, x)), params, x, eps="strict")
    return [{k: np.asarray(v, float) for k, v in d.items()} for d in certificate.directions()]


def refuted(chunk, claims):
    """Those functions of which something proven is false of the numbers."""

    def values(params, x):
        return jnp.stack([parts(row, p, x) for row, p in zip(chunk.values(), params, strict=True)])

    compiled, found = jax.jit(values), set()
    for seed in range(POINTS):
        params, x = filled(seed)
        rng = np.random.default_rng(seed)
        before = np.asarray(compiled([params] * len(chunk), x))
        mixed = [scaled(params, mixture(claims[name], rng)) for name in chunk]
        after = np.asarray(compiled(mixed, x))
        found |= {
            name for name, bad in zip(chunk, differ(before, after).any(1), strict=True) if bad
        }
    return found


def normalised_alike(chunk):
    """Those functions that are homogeneous, or look like it at two points."""

    def values(params, x):
        return jnp.stack([parts(row, params, x)[1] for row in chunk.values()])

    compiled, same = jax.jit(values), np.ones(len(chunk), bool)
    for seed in range(2):
        params, x = filled(seed)
        before = np.asarray(compiled(params, x))
        after = np.asarray(compiled(scaled(params, {"normal": 0.4}), x))
        same &= np.isfinite(before) & ~differ(before, after)
    return set(itertools.compress(chunk, same))


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


def holds_all_ones(vectors):
    """Whether the ones are a combination of the vectors."""
    if not vectors:
        return False
    ones = np.ones(SIZE * SIZE)
    left = ones - np.stack(vectors, 1) @ np.linalg.lstsq(np.stack(vectors, 1), ones)[0]
    return np.abs(left).max() < 1e-6


def batches(names):
    return [names[i : i + IN_CHUNKS] for i in range(0, len(names), IN_CHUNKS)]


def test_numbers_hold_all_that_is_proven(functions):
    claims = {name: proven(functions[name]) for name in kinds(functions)}
    claimed = [name for name, directions in claims.items() if directions]
    assert len(claimed) > 100
    for names in batches(claimed):
        assert refuted({name: functions[name] for name in names}, claims) == set()


def test_what_is_homogeneous_is_proven_so_or_has_a_reason(functions):
    """Functions that are made of primitives with rules, that is."""
    h = jnp.ones((SIZE, SIZE))
    chunk = {name: functions[name] for name in BY_HAND if name not in UNSTEADY | NOT_RUN}
    lost = []
    for name in normalised_alike(chunk):
        known = holds_all_ones(
            [
                np.ravel(np.broadcast_to(d.get("normal", 0.0), (SIZE, SIZE)))
                for d in proven(functions[name])
            ]
        )
        reasons = primitives_of(jax.make_jaxpr(chunk[name].call)(h)) & {*WITHOUT_RULE}
        lost += [] if known or reasons else [name]
    assert {*lost} == NOT_PROVEN
