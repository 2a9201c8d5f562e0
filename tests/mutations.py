"""The rules of the certifier broken one by one, each in a way that makes it claim too much.

How a rule is broken is written in the words of `syntax`: `In(function)`, and what is changed in it.

Of these nothing was found that tells; by argument (A), or only by trial (T) on the zoo, `special`
and 500 random programs:

- A: conditions and indices checked for constraints but not for scale: tests, roundings and argmax
  leave none; a square's coefficients 2 and k: tokens of one name carry them in proportion; a slice
  that keeps its name: blocks have their own; `sort` joining one operand, `_one_factor` demanding
  constancy, a carry losing its name, number and sign: the next or last step demands it anyway; the
  factor of a shifted sum of squares: it is positive all the same.
- T: a token's extent without the positions of scales; scanned operands and joint unit axes of
  unequal structure; scales kept by a split factor or a reshape across axes, and factors dealt out
  in reverse (these mostly raise an error).
"""

from mutants import Mutation
from syntax import In

MUTATIONS: dict[str, Mutation] = {
    "terms that scale differently are added": Mutation(
        In("arithmetic.add").assign("met", "0"), caught="BN MLP, L2"
    ),
    "a token's extent forgets where the smaller operand varies": Mutation(
        In("arithmetic.add").replace("second.varies | reach", "reach"), caught="product of a bias"
    ),
    "an added epsilon counts as nothing": Mutation(
        In("arithmetic.with_epsilon").replace("ledger.epsilon(...)", "(0, 0)"),
        caught="added epsilon",
    ),
    "a product forgets the second scale": Mutation(
        In("arithmetic.multiply").replace("fields.add(a.scale, b.scale)", "a.scale"),
        caught="minus half the mean",
    ),
    "a product drops tokens": Mutation(
        In("arithmetic.multiply").delete("result = result.demanding(...)"), caught="log of a scale"
    ),
    "a token times a value does not vary like the value": Mutation(
        In("arithmetic.multiply").replace("other.varies", "set()"),
        caught="product of a shifted value",
    ),
    "a token times a number stays": Mutation(
        In("arithmetic._times").keyword(
            "shift", "fields.scaled(a.shift, Fraction(1 if k > 0 else -1))"
        ),
        caught="minus twice",
    ),
    "a division adds scales": Mutation(
        In("arithmetic._reciprocal").replace("Fraction(-1)", "Fraction(1)"), caught="quotient"
    ),
    "a power does not scale": Mutation(
        In("arithmetic._power").replace("fields.scaled(a.scale, exponent)", "a.scale"),
        caught="difference of a root",
    ),
    "a square scales once": Mutation(
        In("arithmetic._square").replace("fields.scaled(a.scale, 2)", "a.scale"),
        caught="quotient of a square",
    ),
    "cross tokens have one name": Mutation(
        In("arithmetic._square").replace("name", "None"),
        caught="difference of squares",
    ),
    "a multiple of a square is the square": Mutation(
        In("arithmetic.multiply").replace("linear.ratio(...)", "1"),
        caught="half of a square",
    ),
    "any product of like factors is a square": Mutation(
        In("arithmetic.multiply").replace("a.facts.symbol[1] == b.facts.symbol[1]", "True"),
        caught="product with a transpose",
    ),
    "exp of a value that scales": Mutation(
        In("arithmetic.exp").assign("cons", "a.cons"), caught="exp of a scale"
    ),
    "exp forgets the shift": Mutation(
        In("arithmetic.exp").replace("a.shift", "{}"), caught="exp of a shift"
    ),
    "log forgets the scale": Mutation(
        In("arithmetic.log").replace("a.scale", "{}"), caught="log of a scale"
    ),
    "a choice of different scales": Mutation(
        In("choices.either").replace("ledger.vanish(...)", "0"), caught="write"
    ),
    "a choice of different shifts": Mutation(
        In("choices.either").replace("b.shift != bounded[0].shift", "False"),
        caught="maximum of a shifted value",
    ),
    "a choice does not vary like the condition": Mutation(
        In("choices.select").replace("predicate.varies", "()"), caught="choice by a row"
    ),
    "a comparison of different scales": Mutation(
        In("choices.compare").replace("ledger.vanish(...)", "0", every=True),
        caught="comparison with a number",
    ),
    "a comparison of different shifts": Mutation(
        In("choices.compare").replace("a.shift != b.shift", "False"),
        caught="comparison of a logarithm",
    ),
    "a comparison with an epsilon counts as nothing": Mutation(
        In("choices.compare").replace("ledger.epsilon(...)", "(0, 0)"),
        caught="comparison with an epsilon",
    ),
    "a clamp has a gradient": Mutation(
        In("choices.clamp").replace("ledger.gradient", "False"), caught="clamp to itself"
    ),
    "sign of a shifted value": Mutation(
        In("choices.sign").replace("settle(...)", "a"), caught="sign of a logarithm"
    ),
    "absolute value of a shifted value": Mutation(
        In("choices.absolute").delete("a = settle(...)"),
        caught="absolute value of a shifted value",
    ),
    "a power of a shifted value": Mutation(
        In("arithmetic._power").replace("settle(...)", "a._replace(shift={})"),
        caught="power of a shifted value",
    ),
    "a logarithm of a shifted value": Mutation(
        In("arithmetic.log").replace("settle(...)", "excused(a)"), caught="log of a shifted value"
    ),
    "a rounding is unchecked": Mutation(
        In("choices.convert").replace("fixed(...)", "a", every=True), caught="rounding"
    ),
    "stop_gradient passes the gradient": Mutation(
        In("choices.stop_gradient").returns("a"), caught="stopped norm"
    ),
    "unknown functions are unchecked": Mutation(
        In("pointwise.invariant").replace("fixed(ledger, b, ...)", "b"), caught="plain tanh"
    ),
    "a derived token that can never cancel is dropped": Mutation(
        In("arithmetic.derived").delete("cons |= ..."), caught="difference of squares"
    ),
    "derived tokens stay where they were": Mutation(
        In("arithmetic.derived").replace("where(...)", "placed[1]"),
        caught="product of a shifted value",
    ),
    "a negative multiple is non-negative": Mutation(
        In("arithmetic._times").keyword("nonnegative", "a.facts.nonnegative"), caught="signed sum"
    ),
    "a sum is non-negative like either term": Mutation(
        In("arithmetic._both_nonnegative").replace(
            "_ and _", "a.facts.nonnegative or b.facts.nonnegative"
        ),
        caught="sum with one sign",
    ),
    "a cube is non-negative": Mutation(
        In("arithmetic._power").keyword("nonnegative", "True"), caught="sum of cubes"
    ),
    "a product is non-negative like either factor": Mutation(
        In("arithmetic._product_facts").keyword(
            "nonnegative", "a.facts.nonnegative or b.facts.nonnegative"
        ),
        caught="product with one sign",
    ),
    "results forget an operand's constraints": Mutation(
        In("pointwise.made").replace("cons_of(*operands)", "operands[0].cons"), caught="lax.map"
    ),
    "results vary like their first operand": Mutation(
        In("pointwise.made").replace("varies | block.varies", "varies"), caught="product of a bias"
    ),
    "numbers are rounded to simple fractions": Mutation(
        In("arithmetic._rational").replace(
            "_ if _ else _", "Fraction(number).limit_denominator(40)"
        ),
        caught="minus nearly the mean",
    ),
    "signs survive log": Mutation(
        In("arithmetic.log").replace("Block(...)", "_.knowing(nonnegative=a.facts.nonnegative)"),
        caught="log with a sign",
    ),
    # entries moved and picked
    "a strided slice keeps scales": Mutation(
        In("shapes.slices").replace("joined(...)", "a"), caught="alternate rows"
    ),
    "one segment of different scales": Mutation(
        In("shapes._one_segment").replace("either(...)", "blocks[0]"), caught="write by sin"
    ),
    "joined parts scale alike": Mutation(
        In("shapes.joined").replace("either(...)", "blocks[0]"), caught="rows from two leaves"
    ),
    "an index of a lookup is unchecked": Mutation(
        In("shapes._picked").delete("cons |= ..."), caught="lookup by sin"
    ),
    "a lookup across scales": Mutation(
        In("shapes._picked").replace("joined(...)", "a"), caught="rows in another order"
    ),
    "a lookup does not vary": Mutation(
        In("shapes._picked").replace("b.positions", "()"), caught="lookup that varies"
    ),
    "argmax across scales": Mutation(
        In("shapes.argument").replace("joined(...)", "a"), caught="argmax"
    ),
    "argmax forgets constraints": Mutation(
        In("shapes._place_of").replace("block.cons", "0"), caught="lookup by sin"
    ),
    "a write of different scales": Mutation(In("writes.replace").returns("old"), caught="write"),
    "an index of a write is unchecked": Mutation(
        In("writes._written").delete("cons |= ..."), caught="write by sin"
    ),
    "the default rule demands nothing": Mutation(
        In("shapes.uniform").replace("invariant(...)", "block"), caught="custom gradient"
    ),
    # along axes
    "sums of entries that scale differently": Mutation(
        In("sums._common_scale").replace("block.demanding(met, ...)", "block._replace(scale=rest)"),
        caught="minus half the mean",
    ),
    "sums of signed entries have a positive factor": Mutation(
        In("sums._common_scale").replace("not block.facts.nonnegative", "False"),
        caught="sum with one sign",
    ),
    "a positive factor of a sum is constant": Mutation(
        In("sums._common_scale").replace("ledger.token(met, _, _)", "ledger.token(met, (), True)"),
        caught="sums of squares",
    ),
    "a summed token counts once": Mutation(
        In("sums.total").replace("((atom, at), count)", "((atom, at), 1)"), caught="minus the sum"
    ),
    "a sum drops tokens that vary": Mutation(
        In("sums.total").replace("derived(...)", "({}, 0)"), caught="plain tanh"
    ),
    "sums over any axes have one name": Mutation(
        In("names.Names.of_sum").replace(
            "self.of('sum', name, removed, sizes)", "self.of('sum', name, None, sizes)"
        ),
        caught="difference of mean squares",
    ),
    "an extreme across scales": Mutation(
        In("sums.extreme").replace("joined(...)", "a"), caught="extreme"
    ),
    "a product over entries scales once": Mutation(
        In("sums.reduce_product").replace("count", "1"),
        caught="product over rows",
    ),
    "a product over entries of shifted values": Mutation(
        In("sums.reduce_product").delete("block = settle(...)"), caught="product of shifted values"
    ),
    "a convolution mixes kernel positions that scale differently": Mutation(
        In("sums.convolution").replace("joined(...)", "kernel"), caught="convolution"
    ),
    "windows mix positions that scale differently": Mutation(
        In("sums._mixed").assign("met", "0"), caught="windows over a scale"
    ),
    "edges do not change shifts": Mutation(
        In("sums._mixed").assign("moving", "fields.on(block.shift, along)"),
        caught="convolution over edges",
    ),
    "edges of pooling windows do not change shifts": Mutation(
        In("sums.window_sum").replace("settle(...)", "b"), caught="window of one"
    ),
    "a token counts once in a window": Mutation(
        In("sums.window_sum").assign("count", "1"), caught="minus a window's sum"
    ),
    "windows drop tokens that vary": Mutation(
        In("sums._mixed").replace("derived(...)", "({}, 0)"), caught="pooling over edges"
    ),
    "a running sum keeps tokens": Mutation(
        In("sums.running").replace("settle(...)", "b"), caught="running sum of a shifted value"
    ),
    "running operations across scales": Mutation(
        In("sums.running").replace("joined(...)", "a"), caught="running sum"
    ),
    "top_k across scales": Mutation(In("sums.top_k").replace("joined(...)", "a"), caught="top 2"),
    # programs within the program
    "foreign derivatives are trusted": Mutation(
        In("control.custom").replace("ledger.gradient", "False"), caught="custom gradient"
    ),
    "a loop condition is unchecked": Mutation(
        In("control.while_loop").assign("cons", "0"), caught="loop until sin"
    ),
    "a carry is read once": Mutation(
        In("control._steady").replace("joint == carry", "True"), caught="RNN ReLU"
    ),
    "a carry is not compared": Mutation(
        In("control._steady").replace("either(...)", "a"), caught="RNN ReLU"
    ),
    "a carry may vary with the step": Mutation(
        In("control._same_each_step").delete("block = still(...)"), caught="sum of steps"
    ),
    "a carry drops tokens": Mutation(
        In("control._anonymous").replace("settle(...)", "block._replace(shift={})"),
        caught="shifted carry",
    ),
    "results of steps scale alike": Mutation(
        In("control._left").replace("((0, j),)", "()"), caught="results of steps"
    ),
    "results of steps do not vary": Mutation(
        In("control._left").replace("block.along([0])", "()"), caught="results that vary"
    ),
    # values, and the constraints of a proof
    "settling drops tokens": Mutation(
        In("values.settle").returns("block._replace(shift={})"), caught="plain tanh"
    ),
    "what must be constant is not": Mutation(
        In("values.still").replace("ledger.vanish(scale, what)", "0"), caught="rows apart"
    ),
    "what must be constant keeps its shift": Mutation(
        In("values.still").replace("ledger.vanish(shift, what)", "0"),
        caught="product of a varying shift",
    ),
    "what must be invariant may scale": Mutation(
        In("values.fixed").replace("block.demanding(...)", "block._replace(scale={})"),
        caught="plain tanh",
    ),
    "one is wild": Mutation(
        In("values.is_wild").replace("number == 0", "number in (0, 1)"),
        caught="comparison with a number",
    ),
    "tall literals are infinite": Mutation(
        In("values").assign("_HUGE", "2.0"), caught="softmax filled with fives"
    ),
    "ranges of a token are alike": Mutation(
        In("axes._restricted").replace("atom._replace(...)", "atom"),
        caught="halves of channels",
    ),
    "ranges of an exponent are alike": Mutation(
        In("axes._restricted").replace("Cut(...)", "Cut(line, 0, (0, 1), ())"),
        caught="halves of channels",
    ),
    "exponents on a slice have no obligations": Mutation(
        In("ledger.Ledger.tokens").assign("met", "0"),
        caught="uneven slices of an inner factor",
    ),
    "a slice across factors varies along the first only": Mutation(
        In("axes._parts").replace("not outer", "False"), caught="part of a tile"
    ),
    "data does not vary": Mutation(In("values.data").drop("varies"), caught="sums of squares"),
    "flattened factors keep scales": Mutation(
        In("axes.flattened").delete("block = still(...)"), caught="two orders"
    ),
    "merged segments are constant": Mutation(
        In("axes.merge").replace("[(axis, 0)]", "()"), caught="single rows"
    ),
    "merged segments keep scales": Mutation(
        In("axes.merge").delete("block = still(...)"), caught="alternate rows"
    ),
    "a token vanishes with any of its obligations": Mutation(
        In("ledger.Ledger.tidy").replace("not atom.obligations & ~mask", "atom.obligations & mask"),
        caught="WeightNorm",
    ),
    "what vanishes somewhere vanishes everywhere": Mutation(
        In("ledger.Ledger.tidy").replace("self._zero.get(...) & mask", "self._zero.get(atom, 0)"),
        caught="stopped norm",
    ),
    "tokens have no obligations": Mutation(
        In("ledger._rows").delete("mask |= ..."), caught="minus half the mean"
    ),
    "only the first placement is demanded": Mutation(
        In("ledger._rows").replace("rows.values()", "list(rows.values())[:1]"), caught="BN MLP"
    ),
    "epsilons forget the obligations of tokens": Mutation(
        In("ledger.Ledger.epsilon").delete("rows = ..."), caught="comparison with an epsilon"
    ),
    "epsilons excuse leaves without effect": Mutation(
        In("ledger.Ledger.marked").returns("False"), caught="softmax up to epsilon"
    ),
    "constraints are named by their words": Mutation(
        In("ledger.key").keyword("row", "frozenset(constraint.row)"), caught="product and quotient"
    ),
    # the solution
    "leaves that are not held have no effect": Mutation(
        In("solution.Solution.without_effect").replace(
            "{leaf for leaf, _ in self._felt}", "{leaf for row in self.by_leaf for leaf in row}"
        ),
        caught="Rayleigh quotient",
    ),
    "only the first part of a leaf is marked": Mutation(
        In("reading.leaf").replace("ledger.mark(...)", "ledger.mark(number, (0,) * len(index))"),
        caught="keys of a fused bias",
    ),
    "epsilons never count": Mutation(
        In("solution.Solution.constraints").replace("self.strict", "False"), caught="added epsilon"
    ),
    "unit axes are unchecked": Mutation(
        In("units.Units.alone").returns("True"), caught="Rayleigh quotient"
    ),
    "held leaves are free": Mutation(
        In("solution.Solution.invariant").assign("held", "()"), caught="plain tanh"
    ),
    "the loss may scale": Mutation(
        In("reading._Reader.loss").replace("fixed(ledger, _, LOSS)", "loss.blocks[()]"),
        caught="no target",
    ),
    "the gradient is not read": Mutation(
        In("reading._Reader.loss").keyword("gradient", "False"), caught="stopped norm"
    ),
    "a stopped value scales along to the gradient": Mutation(
        In("ledger.Ledger.vanish").replace("mask | _", "mask"), caught="minus a stopped value"
    ),
    "what the gradient alone demands is left out": Mutation(
        In("reading._without_repeated").replace("rows.isdisjoint(_line(c.row))", "False"),
        caught="stopped norm",
    ),
}
