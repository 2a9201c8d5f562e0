"""Which rule reads which primitive.  What is not named here gets the sound default, `uniform`."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from bnrate.certify import (
    arithmetic,
    choices,
    collectives,
    complexes,
    control,
    linalg,
    pointwise,
    pooling,
    ragged,
    shapes,
    stacking,
    sums,
    writes,
)
from bnrate.certify.values import Value

# (ledger, equation, *operands) -> the value of its result, or a list of values
Rule = Callable[..., Value | list[Value]]

# Rules that need nothing but the blocks: (ledger, *blocks) -> block
_PLAIN: dict[str, Callable[..., Any]] = {
    "add": arithmetic.add,
    "add_any": arithmetic.add,
    "sub": arithmetic.subtract,
    "neg": arithmetic.negate,
    "mul": arithmetic.multiply,
    "div": arithmetic.divide,
    "square": arithmetic.square,
    "pow": arithmetic.power,
    "sqrt": arithmetic.root(Fraction(1, 2)),
    "rsqrt": arithmetic.root(Fraction(-1, 2)),
    "cbrt": arithmetic.root(Fraction(1, 3)),
    "log": arithmetic.log,
    "exp": arithmetic.exp,
    "abs": choices.absolute,
    "sign": choices.sign,
    "max": choices.maximum,
    "min": choices.minimum,
    "select_n": choices.select,
    "rem": choices.remainder,
    "atan2": choices.angle,
    "is_finite": choices.is_finite,
    "stop_gradient": choices.stop_gradient,
    "complex": complexes.join,
}
_PLAIN |= dict.fromkeys(("real", "imag", "conj"), complexes.part)
# The same numbers, under a name or elsewhere.
_PLAIN |= dict.fromkeys(
    ("copy", "copy_p", "name", "sharding_constraint", "mesh_cast", "layout_constraint", "reshard",
     "pvary", "reduced_vary_cast_p"),
    choices.keep,
)  # fmt: skip

# Rules that need the equation too.
_POINTWISE: dict[str, Callable[..., Any]] = {
    "integer_pow": arithmetic.integer_power,
    "clamp": choices.clamp,
    "reduce_precision": choices.reduce_precision,
    "convert_element_type": choices.convert,
    "not": choices.negation,
    "and": choices.both,
    "or": choices.both,
}
_POINTWISE |= dict.fromkeys(("eq", "ne", "gt", "ge", "lt", "le"), choices.compare)
_POINTWISE |= dict.fromkeys(("eq_to", "lt_to", "le_to"), choices.in_total_order)
_POINTWISE |= dict.fromkeys(
    (
        "tanh", "logistic", "erf", "erfc", "erf_inv", "log1p", "expm1", "sin", "cos", "tan",
        "floor", "ceil", "round", "sinh", "cosh", "asinh", "acosh", "atanh", "atan",
        "exp2", "nextafter", "xor", "lgamma", "digamma",
        "acos", "asin", "bessel_i0e", "bessel_i1e", "clz", "igamma", "igamma_grad_a", "igammac",
        "mulhi", "polygamma", "population_count", "regularized_incomplete_beta", "shift_left",
        "shift_right_arithmetic", "shift_right_logical", "zeta", "random_gamma_grad",
    ),
    pointwise.invariant,
)  # fmt: skip

_SHAPES: dict[str, Rule] = {
    "broadcast_in_dim": shapes.broadcast,
    "squeeze": shapes.squeeze,
    "expand_dims": shapes.expand,
    "transpose": shapes.transpose,
    "reshape": shapes.reshape,
    "slice": shapes.slices,
    "split": shapes.split,
    "concatenate": shapes.concatenate,
    "pad": shapes.pad,
    "gather": shapes.gather,
    "dynamic_slice": shapes.dynamic_slice,
    "dynamic_update_slice": writes.write_slice,
    "scatter-add": writes.scatter(writes.accumulate),
    "scatter-sub": writes.scatter(writes.deduct),
    "scatter-mul": writes.scatter(writes.scale),
    "argmax": shapes.argument,
    "argmin": shapes.argument,
    "device_put": shapes.same,
    "optimization_barrier": shapes.same,
    "stack": stacking.stack,
    "unstack": stacking.unstack,
    "tile": stacking.tile,
}
_SHAPES |= dict.fromkeys(("scatter", "scatter-max", "scatter-min"), writes.scatter(writes.replace))

_SUMS: dict[str, Rule] = {
    "reduce_sum": sums.reduce_sum,
    "reduce_max": sums.extreme,
    "reduce_min": sums.extreme,
    "reduce_prod": sums.reduce_product,
    "dot_general": sums.dot_general,
    "conv_general_dilated": sums.convolution,
    "convolve": sums.convolution,  # of `bnrate.conv`, whose derivatives are tested against JAX
    "reduce_window_sum": sums.window_sum,
    "reduce_window_max": sums.window_extreme,
    "reduce_window_min": sums.window_extreme,
    "cumsum": sums.running,
    "cummax": sums.running,
    "cummin": sums.running,
    "rev": sums.running,
    "sort": sums.sort,
    "top_k": sums.top_k,
    "cumlogsumexp": sums.running_logarithm,
    "ragged_dot_general": ragged.ragged_dot,
    "select_and_scatter_add": pooling.window_gradient,
    "select_and_gather_add": pooling.window_gradient,
    "fft": complexes.fourier,
}

_LINALG: dict[str, Rule] = {
    "cholesky": linalg.of_triangle(Fraction(1, 2)),
    "qr": linalg.factors(0, 1),
    "eigh": linalg.of_triangle(0, 1),
    "eig": linalg.factors(1),
    "svd": linalg.factors(1),
    "lu": linalg.lu,
    "triangular_solve": linalg.triangular_solve,
}

_SHARDS: dict[str, Rule] = {
    "psum": collectives.psum,
    "psum_invariant": collectives.psum,
    "pmax": collectives.extreme,
    "pmin": collectives.extreme,
    "all_gather": collectives.all_gather,
    "all_gather_invariant": collectives.all_gather,
    "reduce_scatter": collectives.reduce_scatter,
    "all_to_all": collectives.all_to_all,
    "ppermute": collectives.permute,
    "axis_index": collectives.axis_index,
}


def table(read: control.Read) -> dict[str, Rule]:
    """All rules by the name of their primitive; `read` reads a program within the program."""
    loops: dict[str, Rule] = {
        "cond": control.cond(read),
        "while": control.while_loop(read),
        "scan": control.scan(read),
        "custom_linear_solve": linalg.linear_solve(read),
    }
    calls: dict[str, Rule] = {
        "shard_map": collectives.shard_map(read),
        "custom_vmap_call": control.call(read, "call"),
        "custom_jvp_call": control.custom(read, "call_jaxpr"),
        "custom_vjp_call": control.custom(read, "call_jaxpr"),
        "custom_vjp_call_jaxpr": control.custom(read, "fun_jaxpr"),
    }
    calls |= dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint", "composite"),
                           control.call(read, "jaxpr"))  # fmt: skip
    calls |= dict.fromkeys(("closed_call", "core_call"), control.call(read, "call_jaxpr"))
    simple = {name: pointwise.pointwise(_without_equation(rule)) for name, rule in _PLAIN.items()}
    simple |= {name: pointwise.pointwise(rule) for name, rule in _POINTWISE.items()}
    local = simple | _SHAPES | _SUMS | _LINALG | loops
    alone = {name: collectives.on_each_shard(rule) for name, rule in local.items()}
    return alone | _SHARDS | calls


def _without_equation(rule: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ledger, eqn, *blocks: rule(ledger, *blocks)
