"""More broken certifiers: what a reviewer found, undone."""

from mutants import Mutation
from syntax import In

TALL = In("arithmetic.multiply").replace(
    "stretched(_times(...), ...)",
    "made((x, x, other), facts=Facts(wild=True)) if other.facts.literal >= 1e30 else _",
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
    "a lookup is filled with nothing": Mutation(
        In("shapes.gather").replace("filling != 0", "False"), caught="lookup filled with ones"
    ),
    "zeros are shifted": Mutation(
        In("shapes.gather").replace("settle(...)", "b"), caught="lookup filled with zeros"
    ),
    "a function writes its operand": Mutation(
        In("writes._plain_write").returns("True"), caught="write of a function"
    ),
    "parts of any factors have one name": Mutation(
        In("axes._restricted").assign("sizes", "()"), caught="parts of two reshapes"
    ),
    "all parts of a value are alike": Mutation(
        In("axes.repeated").returns("True"), caught="divided by another half"
    ),
    # a variance of parts
    "parts have any mean": Mutation(
        In("names.Names.spread").replace("means == _", "True"), caught="spread about a larger mean"
    ),
    "a sum of multiples is plain": Mutation(
        In("names.Names._summands").replace("(k, where) == _", "where == tuple(range(len(sizes)))"),
        caught="spread about a mean that counts a part twice",
    ),
    "parts are of any number": Mutation(
        In("names.Names.spread").replace("ratio == _", "True"), caught="spread of fewer"
    ),
    "all that is summed are squares": Mutation(
        In("names.Names.spread").replace("len(parts) == len(sums)", "True"),
        caught="spread with a product",
    ),
    "parts lie in any order": Mutation(
        In("names.Names._summands").replace("(k, where) == _", "k == 1"),
        caught="spread of a part turned",
    ),
    "what a lookup is filled with has no sign": Mutation(
        In("shapes.gather").assign("above", "True"), caught="lookup filled with minus infinity"
    ),
    "any reshapes have the same positions": Mutation(
        In("facts.meet").replace("length(p) == length(q)", "True"),
        caught="sum divided by one of another reshape",
    ),
    # windows
    "a convolution keeps numbers": Mutation(
        In("sums.convolution").replace("(v.each(Block.only_knowing) for v in _)", "(a, kernel)"),
        caught="convolution with ones",
    ),
    "one entry has no edges": Mutation(
        In("sums._mixed").replace("value.shape[axis] != length", "False"),
        caught="convolution of one shifted entry",
    ),
    "what was one entry does not vary": Mutation(
        In("sums._mixed").replace("_._replace(varies=_)", "b.only_knowing()"),
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
    "complex exponentials are positive": Mutation(
        In("arithmetic.exp").replace("not ledger.real", "False"), caught="complex exponentials"
    ),
    "tall numbers are infinite": Mutation(
        In("values.is_wild").replace("not math.isfinite(number)", "is_boundless(number)"),
        caught="plus a tall number",
    ),
    "tall factors are infinite": Mutation(TALL, caught="times a tall number"),
    "tall factors within are infinite": Mutation(TALL, caught="times a tall number and back"),
    "a stand-in for infinity does not scale": Mutation(
        In("choices.either").replace(
            "ledger.vanish(...)",
            "ledger.epsilon(fields.add(block.scale, first.scale, -1), 0.0, what)[0]"
            " if is_boundless(block.facts.literal) or is_boundless(first.facts.literal) else _",
        ),
        caught="choice of a stand-in for infinity",
    ),
    "numbers are rounded to nearby fractions": Mutation(
        In("arithmetic._rational").replace(
            "ledger.rounded(_) == ledger.rounded(_)", "abs(near - Fraction(number)) <= 3e-7"
        ),
        caught="nearly a root",
    ),
    "zero times anything is zero": Mutation(
        In("arithmetic.multiply").replace("made((x, other), ...)", "stretched(other, x.axes)"),
        caught="guard by zero times infinity",
    ),
    "all numbers have a root": Mutation(
        In("arithmetic._power").assign("real", "True").replace("_ or even", "True"),
        caught="guard by the roots of negative numbers",
    ),
    "small floats do not underflow": Mutation(
        In("reading._underflowing").returns("block"), caught="logarithms of squares in sixteen bits"
    ),
    # derivative rules
    "a function of JAX has its rule": Mutation(JAX_RULE, caught="custom_jvp of abs"),
    "what JAX wraps is of JAX": Mutation(JAX_RULE, caught="custom_gradient"),
    "a clamp has its own bound's gradient": Mutation(
        In("choices.clamp").replace("(low, high)", "(high,)"), caught="clamp at its own bound"
    ),
    # epsilons
    "an epsilon excuses another of its line": Mutation(
        In("sums._facts_of_sum").replace(
            "soft |= p.hard", "soft |= 0 if any(p.hard == q.hard for q in pending) else p.hard"
        ),
        caught="log of a sum of products",
    ),
    "epsilons do not cancel": Mutation(
        In("arithmetic._perhaps_cancelled").returns("0"), caught="divided by a difference"
    ),
    "signs do not cancel": Mutation(
        In("sums._facts_of_sum").replace("z.null and known.nonnegative", "z.null"),
        caught="divided by a sum of both signs",
    ),
    "a bound leaves excuses": Mutation(
        In("choices._firm").returns("a"), caught="divided by what is left of an epsilon"
    ),
    # guards
    "sums of non-negative numbers are positive": Mutation(
        In("sums._facts_of_sum").keyword("nonzero", "known.nonnegative"),
        caught="guard of a sum by ReLU",
    ),
}
