"""Which rule reads which primitive.  What is not named here gets the sound default, `uniform`."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from bnrate.certify import arithmetic, choices, control, pointwise, shapes, sums
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
    "is_finite": choices.is_finite,
    "stop_gradient": choices.stop_gradient,
}
_PLAIN |= dict.fromkeys(
    ("copy", "copy_p", "reduce_precision", "sharding_constraint", "mesh_cast"), choices.keep
)

# Rules that need the equation too.
_POINTWISE: dict[str, Callable[..., Any]] = {
    "integer_pow": arithmetic.integer_power,
    "clamp": choices.clamp,
    "convert_element_type": choices.convert,
    "not": choices.negation,
    "and": choices.both,
    "or": choices.both,
}
_POINTWISE |= dict.fromkeys(("eq", "ne", "gt", "ge", "lt", "le"), choices.compare)
_POINTWISE |= dict.fromkeys(
    (
        "tanh", "logistic", "erf", "erfc", "erf_inv", "log1p", "expm1", "sin", "cos", "tan",
        "floor", "ceil", "round", "sinh", "cosh", "asinh", "acosh", "atanh", "atan", "atan2",
        "exp2", "rem", "nextafter", "xor", "lgamma", "digamma",
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
    "psum": sums.collective_sum,
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
    simple = {name: pointwise.pointwise(_without_equation(rule)) for name, rule in _PLAIN.items()}
    simple |= {name: pointwise.pointwise(rule) for name, rule in _POINTWISE.items()}
    return simple | _SHAPES | _SUMS | inside


def _without_equation(rule: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ledger, eqn, *blocks: rule(ledger, *blocks)
