"""More broken certifiers: what a reviewer found, undone."""

from mutants import Mutation

TIMES = """if other.literal is not None and math.isfinite(other.literal):
            return stretched(_times"""

FOUND_MUTATIONS: dict[str, Mutation] = {
    # loops
    "tokens are alike at each step": Mutation(
        "tuple(sorted({*positions, *self.steps}))", "tuple(sorted(positions))", "bias in a carry",
    ),
    "factors are alike at each step": Mutation(
        "tuple(sorted({*positions, *self.steps}))", "tuple(sorted(positions))",
        "factor of a carry",
    ),
    "a scan notes no steps": Mutation(
        "ledger.steps = (*outside, *((hidden, j) for j in range(len(factors))))",
        "ledger.steps = outside", "bias of a step",
    ),
    "nested scans note the inner steps": Mutation(
        "ledger.depth, ledger.steps = ledger.depth - 1, outside",
        "ledger.depth, ledger.steps = ledger.depth - 1, ()", "bias after a loop in a step",
    ),
    # entries moved, cut and named
    "the last reading is of the structures before": Mutation(
        "return Reading(structures, ", "return Reading(_refined(structures, value.splits), ",
        "many slices",
    ),
    "a lookup is filled with nothing": Mutation(
        "if filling != 0:", "if False:", "lookup filled with ones",
    ),
    "zeros are shifted": Mutation(
        'settle(ledger, b, "a lookup in a shifted value, filled with 0")', "b",
        "lookup filled with zeros",
    ),
    "a function writes its operand": Mutation(
        "if not _plain_write(eqn):", "if False:", "write of a function",
    ),
    "parts of any factors have one name": Mutation(
        "placement.index(position), span, sizes))", "placement.index(position), span))",
        "parts of two reshapes",
    ),
    # windows
    "a convolution keeps numbers": Mutation(
        "(v.each(lambda b: b.but(literal=None)) for v in (a, kernel))", "(a, kernel)",
        "convolution with ones",
    ),
    "one entry has no edges": Mutation(
        "if edges and value.shape[axis] != length:", "if False:",
        "convolution of one shifted entry",
    ),
    "what was one entry does not vary": Mutation(
        "lambda b: b.but(varies=b.varies | set(b.along([axis])), literal=None, symbol=None)",
        "lambda b: b.but(literal=None, symbol=None)", "convolution of one entry",
    ),
    "a window of one does nothing": Mutation(
        "if _plain(found) != idle]", "if _plain(found)[0] != 1]", "window of one that moves",
    ),
    "a window of one has no stride": Mutation(
        "if _plain(found) != idle]", "if _plain(found)[0] != 1]", "window of one with a stride",
    ),
    # numbers
    "complex squares are positive": Mutation(
        "sign=max(1, a.sign) if ratio > 0 and ledger.real else 0",
        "sign=max(1, a.sign) if ratio > 0 else 0", "complex squares",
    ),
    "complex exponentials are positive": Mutation(
        "if not ledger.real:", "if False:", "complex exponentials",
    ),
    "whole numbers are like others": Mutation(
        "if fold is not None and not _whole(eqn):", "if fold is not None:", "whole quotient",
    ),
    "tall numbers are infinite": Mutation(
        "return number == 0 or not math.isfinite(number)",
        "return number == 0 or is_boundless(number)", "plus a tall number",
    ),
    "tall factors are infinite": Mutation(
        TIMES, "if other.literal is not None and other.literal >= 1e30:\n"
        "            return made(x, x, other).but(scale={}, wild=True)\n        " + TIMES,
        "times a tall number",
    ),
    "tall factors within are infinite": Mutation(
        TIMES, "if other.literal is not None and other.literal >= 1e30:\n"
        "            return made(x, x, other).but(scale={}, wild=True)\n        " + TIMES,
        "times a tall number and back",
    ),
    # derivative rules
    "a function of JAX has its rule": Mutation(
        "rules = [file for file in found if not file.startswith(_MACHINERY)]\n",
        'return defined_in_jax(eqn.params["call_jaxpr"])\n', "custom_jvp of abs",
    ),
    "what JAX wraps is of JAX": Mutation(
        "rules = [file for file in found if not file.startswith(_MACHINERY)]\n",
        'return defined_in_jax(eqn.params["call_jaxpr"])\n', "custom_gradient",
    ),
    "functions given to lax are trusted": Mutation(
        '("nn", "numpy", "scipy", "ops")', '("nn", "numpy", "scipy", "ops", "lax")', "custom_root",
    ),
    "a clamp has its own bound's gradient": Mutation(
        "b.literal is None for b in (low, high)", "b.literal is None for b in (high,)",
        "clamp at its own bound",
    ),
    # guards
    "exponentials are never zero": Mutation(
        "wild=False, literal=None, symbol=None, sign=1)",
        "wild=False, literal=None, symbol=None, sign=2)", "guard by a masked exponential",
    ),
    "roundings of positive numbers are positive": Mutation(
        "symbol=None, sign=min(a.sign, 1), generic=False", "symbol=None, generic=False",
        "guard by a whole number",
    ),
    "positive numbers exceed any small bound": Mutation(
        "positive.sign == 2 and (number == 0 or positive.scale)", "positive.sign == 2",
        "guard by a bound on a sum",
    ),
    "sums of non-negative numbers are positive": Mutation(
        "block.sign and block.generic and count > 1", "block.sign and count > 1",
        "guard of a sum by ReLU",
    ),
}  # fmt: skip
