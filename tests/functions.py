"""Public functions of JAX that take one array or two, and what is asked of each.

Of a function f of (4, 4) arrays h = x @ w the loss has four parts, each with parameters of its own:
f(h) as it is, normalised along the columns, normalised for positive arguments, and standardised
with a bias.  So functions of degree 0, of other degrees, and those that move with a shift differ.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.signal
import jax.scipy.special
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SIZE = 4
MODULES = {
    "jnp": jnp, "jnp.linalg": jnp.linalg, "jnp.fft": jnp.fft, "nn": jax.nn, "lax": lax,
    "lax.linalg": lax.linalg, "special": jax.scipy.special, "scipy.linalg": jax.scipy.linalg,
}  # fmt: skip
# Of what a program of these tells nothing, they are slow to trace or compile, or they warn.
LEFT_OUT = {
    "scipy.linalg.sqrtm", "scipy.linalg.funm", "lax.linalg.qdwh", "scipy.linalg.polar",
    "special.owens_t", "special.poch", "special.wofz", "special.expn", "special.comb",
    "special.hyp1f1", "lax.DotDimensionNumbers", "lax.stage", "jnp.histogramdd", "lax.dce_sink",
    "scipy.linalg.expm_frechet", "lax.scaled_dot", "special.sici", "special.fresnel",
}  # fmt: skip


class Row(NamedTuple):
    """A function of one array, and the program that it is."""

    call: Callable[..., list]
    program: str


def arrays(function, *operands):
    """All arrays that a function returns."""
    found = jax.tree.leaves(function(*operands))
    if not found or not all(hasattr(x, "dtype") for x in found):
        raise TypeError("no arrays")
    return found


def discovered():
    """All public functions of one array or of two, which then are h and 2 h (or h and h^T)."""
    h = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float64)
    found, programs = {}, set()
    for module, functions in MODULES.items():
        for name in sorted(vars(functions)):
            function = getattr(functions, name)
            path = f"{module}.{name}"
            if name.startswith("_") or isinstance(function, type) or path in LEFT_OUT:
                continue
            if (row := of_arrays(function, h)) and row.program not in programs:
                programs.add(row.program)
                found[path] = row
    return found


def of_arrays(function, h):
    if not callable(function):
        return None
    for call in (lambda h: arrays(function, h), lambda h: arrays(function, h, 2 * h)):
        try:
            return Row(call, str(jax.make_jaxpr(call)(h)))
        except Exception:
            continue
    return None


SEGMENTS = np.array([0, 1, 0, 2])
AT = np.array([0, 2])


def at(name):
    return lambda h: getattr(h.at[AT], name)(2 * h[:2])


def windowed(function, start):
    return lambda h: lax.reduce_window(h, start, function, (2, 1), (1, 1), "VALID")


def solved(h):
    return lax.linalg.triangular_solve(h, h[:, :2], left_side=True)


def turned(h):
    z = lax.complex(h[:, :2], h[:, 2:]) * jnp.exp(1j * jnp.arange(4.0))[:, None]
    return jnp.concatenate([z.real, z.imag], 1)


def grouped_by_batch(h):
    return lax.conv_general_dilated(
        h[..., None], h[:, :2, None], (1,), "VALID", batch_group_count=2,
        dimension_numbers=("NWC", "WOI", "NWC"),
    )  # fmt: skip


def experts(h):
    return lax.ragged_dot(h, jnp.stack([h, 2 * h]), jnp.array([1, 3], jnp.int32))


def pooled_gradient(h):
    return jax.grad(lambda h: jnp.sum(windowed(lax.max, -jnp.inf)(h) ** 2))(h)


def looped(h):
    return lax.fori_loop(0, 3, lambda i, y: y + jnp.roll(y, 1, 0), h)


def until(h):
    return lax.while_loop(lambda y: jnp.sum(y) < 0.0, lambda y: y + h**2, h)


def chosen(h):
    return lax.cond(h[0, 0] > 0, lambda h: 2 * h, lambda h: h, h)


def recurrent(h):
    return lax.scan(lambda c, y: ((c + y) / 2, jnp.maximum(c, y)), jnp.zeros(4), h)[1]


SPEC = PartitionSpec("d")


def mesh():
    return jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))


def on_shards(body, into="d", out_of="d", check=True):
    """A function of two shards, which have halves of the rows (None: all, they have the same)."""
    specs = [PartitionSpec(axis) for axis in (into, out_of)]

    def whole(h):
        return jax.shard_map(
            body, mesh=mesh(), in_specs=specs[0], out_specs=specs[1], check_vma=check
        )(h)

    return whole


def centred_on_shards(h):
    mean = lax.pmean(jnp.mean(h, 0), "d")
    return (h - mean) / jnp.sqrt(lax.pmean(jnp.mean(h**2, 0), "d") - mean**2)


def mapped(h):
    return jax.pmap(lambda h: h / lax.pmax(jnp.max(jnp.abs(h)), "d"), axis_name="d")(
        h.reshape(2, 2, 4)
    )


SHARDED = {
    "psum": on_shards(lambda h: lax.psum(h, "d"), out_of=None),
    "psum of its number": on_shards(lambda h: h + lax.psum(lax.axis_index("d"), "d")),
    "centred by shard": on_shards(lambda h: h - jnp.mean(h, 0)),
    "first shard twice": on_shards(lambda h: h * (1 + lax.axis_index("d"))),
    "pmin": on_shards(lambda h: lax.pmin(h, "d"), out_of=None, check=False), "pmap": mapped,
    "all_gather": on_shards(lambda h: jnp.sum(lax.all_gather(h, "d"), 0)),
    "all_gather, tiled": on_shards(lambda h: lax.all_gather(h, "d", tiled=True)),
    "reduce_scatter": on_shards(lambda h: lax.psum_scatter(h, "d", tiled=True)),
    "all_to_all": on_shards(lambda h: lax.all_to_all(h, "d", 1, 0, tiled=True)),
    "all_to_all, of one axis": on_shards(lambda h: lax.all_to_all(h, "d", 1, 1, tiled=True)),
    "ppermute": on_shards(lambda h: lax.ppermute(h, "d", [(0, 1), (1, 0)])),
    "ppermute to one": on_shards(lambda h: lax.ppermute(h, "d", [(0, 1)])),
    "centred on shards": on_shards(centred_on_shards),
    "centred on shards, unchecked": on_shards(centred_on_shards, check=False),
    "sums of groups of shards": on_shards(
        lambda h: lax.psum(h, "d", axis_index_groups=[[0], [1]]), check=False
    ),
    "two shards' sum of squares": on_shards(lambda h: h / jnp.sqrt(lax.psum(jnp.sum(h**2), "d"))),
    "a shard of its own": on_shards(lambda h: h[:1], out_of=None, check=False),
    "constrained": lambda h: lax.with_sharding_constraint(h, NamedSharding(mesh(), SPEC)),
}  # fmt: skip


@jax.custom_batching.custom_vmap
def doubled_by_hand(h):
    return 2 * h


@doubled_by_hand.def_vmap
def _(_, batched, h):
    return 2 * h, batched[0]


OTHERS = {
    **{f"at.{name}": at(name) for name in ("set", "add", "subtract", "min", "max")},
    "at.multiply": lambda h: h.at[AT].multiply(3.0),
    "at.divide": lambda h: h.at[AT].divide(3.0),
    "at.power": lambda h: h.at[AT].power(2.0),
    "at.apply": lambda h: h.at[AT].apply(jnp.tanh),
    "at.add a number": lambda h: h.at[AT].add(1.0),
    "at.max a number": lambda h: h.at[AT].max(0.3),
    "scatter-mul": lambda h: h.at[AT].multiply(h[:2], unique_indices=True),
    "segment_sum": lambda h: jax.ops.segment_sum(h, SEGMENTS, 3),
    "segment_max": lambda h: jax.ops.segment_max(h, SEGMENTS, 3),
    "segment_prod": lambda h: jax.ops.segment_prod(h, SEGMENTS, 3),
    "dynamic_slice": lambda h: lax.dynamic_slice(h, (1, 0), (2, 4)),
    "dynamic_update_slice": lambda h: lax.dynamic_update_slice(h, 2 * h[:2], (1, 0)),
    "take": lambda h: jnp.take(h, AT, axis=0),
    "tile": lambda h: jnp.tile(h, (2, 1)),
    "repeat": lambda h: jnp.repeat(h, 2, axis=0),
    "roll": lambda h: jnp.roll(h, 1, axis=0),
    "pad": lambda h: jnp.pad(h, ((1, 1), (0, 0))),
    "split": lambda h: jnp.split(h, 2),
    "columns": lambda h: jnp.unstack(h, axis=1),
    "clip": lambda h: jnp.clip(h, -0.1, 0.1),
    "top_k": lambda h: lax.top_k(h.T, 2)[0].T,
    "approx_max_k": lambda h: lax.approx_max_k(h, 2)[0],
    "sort by keys": lambda h: lax.sort((h, 2 * h), dimension=0, num_keys=1)[1],
    "in order": lambda h: jnp.take_along_axis(h, jnp.argsort(h, 0), 0),
    "quantile": lambda h: jnp.quantile(h, 0.3, axis=0),
    "searchsorted": lambda h: jnp.searchsorted(jnp.sort(h[0]), h[1]),
    "interp": lambda h: jnp.interp(h[0], jnp.arange(4.0), h[1]),
    "turned": turned, "complex": lambda h: jnp.abs(lax.complex(h, 2 * h)),
    "abs of fft": lambda h: jnp.abs(jnp.fft.fft(h, axis=0)),
    "irfft": lambda h: jnp.fft.irfft(h, axis=0),
    "rfft along rows": lambda h: jnp.abs(jnp.fft.rfft(h, axis=1)),
    "reduce": lambda h: lax.reduce(h, 0.0, lambda a, b: a * b + a + b, (0,)),
    "reduce_and": lambda h: lax.reduce_and(h > 0, (0,)),
    "reduce_or": lambda h: lax.reduce_or(h > 0, (0,)),
    "reduce_xor": lambda h: lax.reduce_xor(h > 0, (0,)),
    "reduce_prod": lambda h: jnp.prod(h, axis=0), "cumprod": lambda h: jnp.cumprod(h, axis=0),
    "reduce_window": windowed(lambda a, b: a * b + a + b, 0.0),
    "sums of windows": windowed(lax.add, 0.0), "window minima": windowed(lax.min, jnp.inf),
    "gradient of pooling": pooled_gradient,
    "reduce_precision": lambda h: lax.reduce_precision(h, 8, 7),
    "eight bits": lambda h: lax.reduce_precision(h, 4, 3),
    "bfloat16": lambda h: h.astype(jnp.bfloat16).astype(h.dtype),
    "bits": lambda h: lax.bitcast_convert_type(h, jnp.int64),
    "population_count": lambda h: lax.population_count(lax.bitcast_convert_type(h, jnp.int64)),
    "clz": lambda h: lax.clz(lax.bitcast_convert_type(h, jnp.int64)),
    "shifts": lambda h: [
        f(h.astype(jnp.int64), jnp.int64(1))
        for f in (lax.shift_left, lax.shift_right_arithmetic, lax.shift_right_logical)
    ],
    "xor": lambda h: (h > 0) ^ (h.T > 0), "mulhi": lambda h: lax.mulhi(*[h.astype(jnp.int32)] * 2),
    "betainc": lambda h: lax.betainc(h**2, h**2, h**2), "igamma": lambda h: lax.igamma(h, h**2),
    "polygamma": lambda h: lax.polygamma(h, h**2), "zeta": lambda h: lax.zeta(2 + h**2, h**2),
    "random_gamma": lambda h: jax.random.gamma(jax.random.key(0), 1 + h**2),
    "dropout": lambda h: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (4, 4)), h, 0.0),
    "dropout by a key of old": lambda h: h * jax.random.normal(jax.random.PRNGKey(1), (4, 4)),
    "split keys": lambda h: h * jax.random.uniform(jax.random.split(jax.random.key(0))[0], (4, 4)),
    "rng_uniform": lambda h: lax.rng_uniform(0.0 * h[0, 0], 1.0 + 0.0 * h[0, 0], (4, 4)),
    "rng_bit_generator": lambda h: lax.rng_bit_generator(
        jnp.zeros(4, jnp.uint32) + h[0].astype(jnp.uint32), (4,)
    )[1],
    "triangular_solve": solved, "solve": lambda h: jnp.linalg.solve(h, h[:, :2] ** 2),
    "unit triangle": lambda h: lax.linalg.triangular_solve(
        h, h, left_side=True, unit_diagonal=True
    ),
    "cholesky of squares": lambda h: jnp.linalg.cholesky(h @ h.T),
    "cholesky of squares and 1": lambda h: jnp.linalg.cholesky(h @ h.T + jnp.eye(4)),
    "pivoted qr": lambda h: jax.scipy.linalg.qr(h, pivoting=True),
    "tridiagonal_solve": lambda h: lax.linalg.tridiagonal_solve(h[0], h[1], h[2], h[:, :2]),
    "cho_solve": lambda h: jax.scipy.linalg.solve(h @ h.T, h, assume_a="pos"),
    "householder_product": lambda h: lax.linalg.householder_product(h, h[0]),
    "ormqr": lambda h: lax.linalg.ormqr(h, h[0], h),
    "cholesky_update": lambda h: lax.linalg.cholesky_update(h, h[0]),
    "spectral norm": lambda h: h / jnp.linalg.norm(h, 2),
    "conv by batch": grouped_by_batch, "experts": experts,
    "fori_loop": looped, "while_loop": until, "cond": chosen, "scan": recurrent,
    "associative_scan": lambda h: lax.associative_scan(jnp.add, h),
    "dot_product_attention": lambda h: jax.nn.dot_product_attention(*[h[None, :, None]] * 3),
    "checkpoint_name": lambda h: checkpoint_name(h, "h"),
    "remat": lambda h: jax.checkpoint(jnp.tanh)(h),
    "composite": lambda h: lax.composite(lambda h: 2 * h, "bnrate.double")(h),
    "custom_vmap": lambda h: doubled_by_hand(h),
    "callback": lambda h: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4, 4), h.dtype), h),
    "io_callback": lambda h: io_callback(
        np.sin, jax.ShapeDtypeStruct((4, 4), h.dtype), h
    ),
    "debug": lambda h: (jax.debug.callback(lambda h: None, h), h)[1],
    "barrier": lambda h: lax.optimization_barrier(h),
    "tokens": lambda h: (lax.after_all(lax.create_token()), h)[1],
    "linear_call": lambda h: jax.custom_derivatives.linear_call(
        lambda _, h: 2 * h, lambda _, h: 2 * h, (), h
    ),
    "platform": lambda h: lax.platform_dependent(h, cpu=lambda h: 2 * h, default=lambda h: h),
    "device_put": lambda h: jax.device_put(h),
}  # fmt: skip


BY_HAND = OTHERS | SHARDED


def rows():
    """All functions by name."""
    others = {name: Row(functools.partial(arrays, f), "") for name, f in BY_HAND.items()}
    filtering = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")  # takes longer than to call what fails
    try:
        return discovered() | others
    finally:
        jax.config.update("jax_traceback_filtering", filtering)
