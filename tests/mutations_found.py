"""More broken certifiers: what a reviewer found, undone."""

from mutants import Mutation
from syntax import In

TALL = In("arithmetic.multiply").replace(
    "stretched(_times(...), ...)",
    "made(x, x, other).but(scale={}, wild=True) if other.literal >= 1e30 else _",
)
JAX_RULE = In("source.differentiated_by_jax").returns('defined_in_jax(eqn.params["call_jaxpr"])')

FOUND_MUTATIONS: dict[str, Mutation] = {
    # loops
    "tokens are alike at each step": Mutation(
        In("ledger.Ledger.token").replace("self.steps", "()"), caught="bias in a carry"
    ),
    "factors are alike at each step": Mutation(
        In("ledger.Ledger.token").replace("self.steps", "()"), caught="factor of a carry"
    ),
    "a scan notes no steps": Mutation(
        In("control.scan").replace("(*outside, ...)", "outside"), caught="bias of a step"
    ),
    "nested scans note the inner steps": Mutation(
        In("control.scan").replace("(ledger.depth - 1, outside)", "(ledger.depth - 1, ())"),
        caught="bias after a loop in a step",
    ),
    # entries moved, cut and named
    "the last reading is of the structures before": Mutation(
        In("reading.read").replace(
            "Reading(...)", "dataclasses.replace(_, structures=_refined(structures, value.splits))"
        ),
        caught="many slices",
    ),
    "a lookup is filled with nothing": Mutation(
        In("shapes.gather").replace("filling != 0", "False"), caught="lookup filled with ones"
    ),
    "zeros are shifted": Mutation(
        In("shapes.gather").replace("settle(...)", "b"), caught="lookup filled with zeros"
    ),
    "a function writes its operand": Mutation(
        In("shapes._plain_write").returns("True"), caught="write of a function"
    ),
    "parts of any factors have one name": Mutation(
        In("values._restricted").assign("sizes", "()"), caught="parts of two reshapes"
    ),
    # windows
    "a convolution keeps numbers": Mutation(
        In("sums.convolution").replace("b.but(literal=None)", "b"), caught="convolution with ones"
    ),
    "one entry has no edges": Mutation(
        In("sums._mixed").replace("value.shape[axis] != length", "False"),
        caught="convolution of one shifted entry",
    ),
    "what was one entry does not vary": Mutation(
        In("sums._mixed").replace("b.but(..., varies=_)", "b.but(literal=None, symbol=None)"),
        caught="convolution of one entry",
    ),
    "a window of one does nothing": Mutation(
        In("sums.windows").replace("_plain(found) != idle", "_plain(found)[0] != 1"),
        caught="window of one that moves",
    ),
    "a window of one has no stride": Mutation(
        In("sums.windows").replace("_plain(found) != idle", "_plain(found)[0] != 1"),
        caught="window of one with a stride",
    ),
    # numbers
    "complex squares are positive": Mutation(
        In("arithmetic._square").replace("ledger.real", "True"), caught="complex squares"
    ),
    "complex exponentials are positive": Mutation(
        In("arithmetic.exp").replace("not ledger.real", "False"), caught="complex exponentials"
    ),
    "whole numbers are like others": Mutation(
        In("pointwise.pointwise").replace("not _whole(eqn)", "True"), caught="whole quotient"
    ),
    "tall numbers are infinite": Mutation(
        In("values.is_wild").replace("not math.isfinite(number)", "is_boundless(number)"),
        caught="plus a tall number",
    ),
    "tall factors are infinite": Mutation(TALL, caught="times a tall number"),
    "tall factors within are infinite": Mutation(TALL, caught="times a tall number and back"),
    # derivative rules
    "a function of JAX has its rule": Mutation(JAX_RULE, caught="custom_jvp of abs"),
    "what JAX wraps is of JAX": Mutation(JAX_RULE, caught="custom_gradient"),
    "functions given to lax are trusted": Mutation(
        In("source").replace(
            "('nn', 'numpy', 'scipy', 'ops')", "('nn', 'numpy', 'scipy', 'ops', 'lax')"
        ),
        caught="custom_root",
    ),
    "a clamp has its own bound's gradient": Mutation(
        In("choices.clamp").replace("(low, high)", "(high,)"), caught="clamp at its own bound"
    ),
    # guards
    "exponentials are never zero": Mutation(
        In("arithmetic.exp").keyword("sign", "2"), caught="guard by a masked exponential"
    ),
    "roundings of positive numbers are positive": Mutation(
        In("choices.convert").replace("min(a.sign, 1)", "a.sign"),
        caught="guard by a whole number",
    ),
    "positive numbers exceed any small bound": Mutation(
        In("choices.compare").replace("number == 0", "True"),
        caught="guard by a bound on a sum",
    ),
    "sums of non-negative numbers are positive": Mutation(
        In("sums._block_sum").replace("block.generic", "True"), caught="guard of a sum by ReLU"
    ),
}
