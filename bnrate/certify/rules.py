"""Which rule reads which primitive.  What is not named here gets the sound default, `uniform`."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from bnrate.certify import control, pointwise, shapes, sums
from bnrate.certify.values import Value

# (ledger, equation, *operands) -> the value of its result, or a list of values
Rule = Callable[..., Value | list[Value]]

_POINTWISE: dict[str, Callable[..., Any]] = {
    "add": pointwise.add,
    "add_any": pointwise.add,
    "sub": pointwise.subtract,
    "neg": pointwise.negate,
    "mul": pointwise.multiply,
    "div": pointwise.divide,
    "square": pointwise.square,
    "integer_pow": pointwise.integer_power,
    "pow": pointwise.power,
    "sqrt": pointwise.root(Fraction(1, 2)),
    "rsqrt": pointwise.root(Fraction(-1, 2)),
    "cbrt": pointwise.root(Fraction(1, 3)),
    "log": pointwise.log,
    "exp": pointwise.exp,
    "abs": pointwise.absolute,
    "sign": pointwise.sign,
    "max": pointwise.choose("a maximum of values that scale differently"),
    "min": pointwise.choose("a minimum of values that scale differently"),
    "clamp": pointwise.clamp,
    "select_n": pointwise.select,
    "is_finite": pointwise.is_finite,
    "convert_element_type": pointwise.convert,
    "stop_gradient": pointwise.stop_gradient,
}
_POINTWISE |= dict.fromkeys(("eq", "ne", "gt", "ge", "lt", "le"), pointwise.compare)
_POINTWISE |= dict.fromkeys(
    ("copy", "copy_p", "reduce_precision", "sharding_constraint", "mesh_cast"), pointwise.keep
)
_POINTWISE |= dict.fromkeys(
    (
        "tanh", "logistic", "erf", "erfc", "erf_inv", "log1p", "expm1", "sin", "cos", "tan",
        "floor", "ceil", "round", "sinh", "cosh", "asinh", "acosh", "atanh", "atan", "atan2",
        "exp2", "rem", "nextafter", "not", "and", "or", "xor", "lgamma", "digamma",
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
    "dynamic_update_slice": shapes.overwritten,
    "scatter": shapes.overwritten,
    "scatter-add": shapes.overwritten,
    "argmax": shapes.argument,
    "argmin": shapes.argument,
    "device_put": shapes.same,
    "optimization_barrier": shapes.same,
}

_SUMS: dict[str, Rule] = {
    "reduce_sum": sums.reduce_sum,
    "reduce_max": sums.extreme,
    "reduce_min": sums.extreme,
    "reduce_prod": sums.reduce_product,
    "dot_general": sums.dot_general,
    "conv_general_dilated": sums.convolution,
    "reduce_window_sum": sums.window_sum,
    "reduce_window_max": sums.window_extreme,
    "reduce_window_min": sums.window_extreme,
    "cumsum": sums.running,
    "cummax": sums.running,
    "cummin": sums.running,
    "rev": sums.running,
    "sort": sums.sort,
    "top_k": sums.top_k,
}


def table(read: control.Read) -> dict[str, Rule]:
    """All rules by the name of their primitive; `read` reads a program within the program."""
    inside: dict[str, Rule] = {
        "cond": control.cond(read),
        "while": control.while_loop(read),
        "scan": control.scan(read),
        "custom_jvp_call": control.custom(read, "call_jaxpr"),
        "custom_vjp_call": control.custom(read, "call_jaxpr"),
        "custom_vjp_call_jaxpr": control.custom(read, "fun_jaxpr"),
    }
    inside |= dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint"),
                            control.call(read, "jaxpr"))  # fmt: skip
    inside |= dict.fromkeys(("closed_call", "core_call"), control.call(read, "call_jaxpr"))
    simple = {name: pointwise.pointwise(rule) for name, rule in _POINTWISE.items()}
    return simple | _SHAPES | _SUMS | inside
