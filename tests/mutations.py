"""The rules of the certifier broken one by one, each in a way that makes it claim too much.

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

MUTATIONS: dict[str, Mutation] = {
    "terms that scale differently are added": Mutation(
        "met = ledger.vanish(difference, _sum_of(a, b))", "met = 0", "BN MLP, L2",
    ),
    "a token's extent forgets where the smaller operand varies": Mutation(
        "depends = _sorted(b.varies | reach)", "depends = _sorted(reach)", "product of a bias",
    ),
    "an added epsilon counts as nothing": Mutation(
        'pending = x.pending | ledger.epsilon(x.scale, number, "an epsilon is added")',
        "pending = x.pending", "added epsilon",
    ),
    "a product forgets the second scale": Mutation(
        "scale, sign = fields.add(a.scale, b.scale), min", "scale, sign = a.scale, min",
        "minus half the mean",
    ),
    "a product drops tokens": Mutation(
        "result = result.but(shift=fields.add(result.shift, shift), cons=result.cons | cons)",
        "pass", "log of a scale",
    ),
    "a token times a value does not vary like the value": Mutation(
        "reach = other.varies | {p for", "reach = {p for", "product of a shifted value",
    ),
    "a token times a number stays": Mutation(
        "shift=fields.scaled(a.shift, k),",
        "shift=fields.scaled(a.shift, Fraction(1 if k > 0 else -1)),", "minus twice",
    ),
    "a division adds scales": Mutation(
        "return _power(ledger, a, Fraction(-1))", "return _power(ledger, a, Fraction(1))",
        "quotient",
    ),
    "a power does not scale": Mutation(
        "scale=fields.scaled(a.scale, exponent), literal", "scale=a.scale, literal",
        "difference of a root",
    ),
    "a square scales once": Mutation(
        "scale=fields.scaled(a.scale, 2), shift", "scale=a.scale, shift", "quotient of a square",
    ),
    "cross tokens have one name": Mutation(
        'Token(("times", name, atom,', 'Token(("times", None, atom,', "difference of squares",
    ),
    "a multiple of a square is the square": Mutation(
        "return _square(ledger, a, b.symbol[0] / a.symbol[0])",
        "return _square(ledger, a, Fraction(1))", "half of a square",
    ),
    "any product of like factors is a square": Mutation(
        "if a.symbol and b.symbol and a.symbol[1] == b.symbol[1] and a.axes == b.axes:",
        "if a.symbol and b.symbol and a.axes == b.axes:", "product with a transpose",
    ),
    "exp of a value that scales": Mutation(
        "cons = a.cons | ledger.vanish(a.scale, EXPONENTIAL)", "cons = a.cons", "exp of a scale",
    ),
    "exp forgets the shift": Mutation(
        "scale=a.shift, shift={}, cons=cons", "scale={}, shift={}, cons=cons", "exp of a shift",
    ),
    "log forgets the scale": Mutation(
        "a.but(shift=a.scale, scale={}", "a.but(shift={}, scale={}", "log of a scale",
    ),
    "a choice of different scales": Mutation(
        "cons |= ledger.vanish(fields.add(block.scale, first.scale, -1), what)", "cons |= 0",
        "write",
    ),
    "a choice of different shifts": Mutation(
        "if any(b.shift != bounded[0].shift for b in bounded):", "if False:",
        "maximum of a shifted value",
    ),
    "any literal guards": Mutation(
        "abs(number) > TINY and usual in (None, i) and not is_boundless(number)", "False",
        "bound under a root",
    ),
    "a guard counts as nothing": Mutation(
        'pending |= ledger.epsilon(first.scale, number, "a guard against zero")', "pending |= 0",
        "guard",
    ),
    "an unknown condition has a usual value": Mutation(
        "usual = None if predicate.usual is None else int(predicate.usual)",
        "usual = int(predicate.usual is not False)", "guard by data",
    ),
    "a choice forgets the condition's constraints": Mutation(
        "cons=chosen.cons | predicate.cons", "cons=chosen.cons", "comparison with an epsilon",
    ),
    "a choice does not vary like the condition": Mutation(
        "varies=chosen.varies | predicate.varies", "varies=chosen.varies", "choice by a row",
    ),
    "a comparison of different scales": Mutation(
        'cons |= ledger.vanish(difference, "a comparison of values that scale differently")',
        "cons |= 0", "comparison with a number",
    ),
    "a comparison of different shifts": Mutation(
        "if a.shift != b.shift:", "if False:", "comparison of a shifted value",
    ),
    "a comparison with an epsilon counts as nothing": Mutation(
        'cons |= x.cons | ledger.epsilon(x.scale, number or 0.0, "a comparison with an epsilon")',
        "cons |= x.cons", "comparison with an epsilon",
    ),
    "any comparison with zero has a usual answer": Mutation(
        "if tiny and positive.sign == 2 and (", "if tiny and (", "guard by data",
    ),
    "a clamp has a gradient": Mutation(
        "if ledger.gradient and any(not b.wild", "if False and any(not b.wild", "clamp to itself",
    ),
    "sign of a shifted value": Mutation(
        'a = settle(ledger, firm(ledger, a), "the sign of a shifted value")',
        "a = firm(ledger, a).but(shift={})", "sign of a shifted value",
    ),
    "absolute value of a shifted value": Mutation(
        'a = settle(ledger, a, "the absolute value of a shifted value")\n', "pass\n",
        "absolute value of a shifted value",
    ),
    "a power of a shifted value": Mutation(
        'firm(ledger, a), "a power of a shifted value")',
        'firm(ledger, a), "").but(shift=a.shift, cons=a.cons)', "added epsilon",
    ),
    "a logarithm of a shifted value": Mutation(
        'a = settle(ledger, _excused(a), "the logarithm of a shifted value")', "a = _excused(a)",
        "log of a shifted value",
    ),
    "a rounding is unchecked": Mutation(
        'return fixed(ledger, a, "a rounding").but(', "return a.but(", "rounding",
    ),
    "stop_gradient passes the gradient": Mutation(
        "if not ledger.gradient:", "if True:", "stopped norm",
    ),
    "unknown functions are unchecked": Mutation(
        "blocks = tuple(fixed(ledger, b, what) for b in blocks)\n", "pass\n", "plain tanh",
    ),
    "a derived token that can never cancel is dropped": Mutation(
        "cons |= met\n        else", "cons |= 0\n        else", "difference of squares",
    ),
    "derived tokens stay where they were": Mutation(
        "groups.setdefault(_sorted(where(placed[1])), {})[placed] = k",
        "groups.setdefault(_sorted(placed[1]), {})[placed] = k", "product of a shifted value",
    ),
    "a negative multiple is non-negative": Mutation(
        "sign=a.sign if k > 0 else 0,", "sign=a.sign,", "signed sum",
    ),
    "a sum is non-negative like either term": Mutation(
        "return max(a.sign, b.sign) if min(a.sign, b.sign) else 0", "return max(a.sign, b.sign)",
        "sum with one sign",
    ),
    "a cube is non-negative": Mutation(
        "sign=max(a.sign, int(even or exponent.denominator % 2 == 0)) if", "sign=max(a.sign, 1) if",
        "sum of cubes",
    ),
    "a product is non-negative like either factor": Mutation(
        "fields.add(a.scale, b.scale), min(a.sign, b.sign)",
        "fields.add(a.scale, b.scale), max(a.sign, b.sign)", "product with one sign",
    ),
    "epsilons excuse leaves without effect": Mutation(
        "if isinstance(atom, Token) and ledger.marked(atom.obligations)", "if False",
        "softmax with an epsilon",
    ),
    "results forget an operand's constraints": Mutation(
        "axes=axes_of(*operands), cons=cons_of(*operands), symbol",
        "axes=axes_of(*operands), cons=base.cons, symbol", "lax.map",
    ),
    "results vary like their first operand": Mutation(
        "pending=0,\n        varies=frozenset(p for b in operands for p in b.varies),",
        "pending=0,", "product of a bias",
    ),
    "numbers are rounded to simple fractions": Mutation(
        "near = Fraction(number).limit_denominator(10**6)\n    return (",
        "return Fraction(number).limit_denominator(40)\n    return (", "minus nearly the mean",
    ),
    "signs survive log": Mutation(
        "literal=None, symbol=None, sign=0)", "literal=None, symbol=None)", "log with a sign",
    ),
    # entries moved and picked
    "a strided slice keeps scales": Mutation(
        "a = resized(joined(ledger, a, axis), axis, len(range(low, high, stride)))",
        "a = resized(a, axis, len(range(low, high, stride)))", "alternate rows",
    ),
    "one segment of different scales": Mutation(
        "rows[index] = either(ledger, _MIXED, *blocks).but(", "rows[index] = blocks[0].but(",
        "write by sin",
    ),
    "joined parts scale alike": Mutation(
        "lambda *blocks: either(ledger, what, *blocks), what)", "lambda *blocks: blocks[0], what)",
        "rows from two leaves",
    ),
    "an index of a lookup is unchecked": Mutation(
        '        cons |= fixed(ledger, block, "an index").cons\n    picked',
        "        cons |= 0\n    picked", "lookup by sin",
    ),
    "a lookup across scales": Mutation(
        "if axis not in kept:\n            a = resized(joined(ledger, a, axis), axis, 1)",
        "if axis not in kept:\n            a = resized(a, axis, 1)", "rows in another order",
    ),
    "a lookup does not vary": Mutation(
        "kept})\n    return picked",
        "kept})\n    return picked.each(lambda b: b.but(cons=b.cons | cons)) or picked",
        "lookup that varies",
    ),
    "argmax across scales": Mutation(
        'map(int, eqn.params["axes"]):\n        a = joined(ledger, a, axis)\n',
        'map(int, eqn.params["axes"]):\n        pass\n',
        "argmax",
    ),
    "argmax forgets constraints": Mutation(
        "return Block(block.axes, cons=cons, varies", "return Block(block.axes, varies",
        "lookup by sin",
    ),
    "a write of different scales": Mutation(
        '*(settle(ledger, b, "a write of a shifted value") for b in bare))', "bare[0])", "write",
    ),
    "an index of a write is unchecked": Mutation(
        '            cons |= fixed(ledger, block, "an index").cons\n    bare',
        "            cons |= 0\n    bare", "write by sin",
    ),
    "the default rule demands nothing": Mutation(
        "cons |= invariant(ledger, eqn, block).cons", "cons |= block.cons", "custom gradient",
    ),
    # along axes
    "sums of entries that scale differently": Mutation(
        "return block.but(scale=rest, cons=block.cons | met)", "return block.but(scale=rest)",
        "minus half the mean",
    ),
    "sums of signed entries have a positive factor": Mutation(
        "if block.shift or not block.sign:", "if block.shift:", "sum with one sign",
    ),
    "a positive factor of a sum is constant": Mutation(
        "factor = ledger.token(met, at - gone)", "factor = ledger.token(met, ())",
        "sums of squares",
    ),
    "a summed token counts once": Mutation(
        "kept[atom, at] = k * count", "kept[atom, at] = k", "minus the sum",
    ),
    "a sum drops tokens that vary": Mutation(
        "derived(ledger, varying, lambda at", "derived(ledger, {}, lambda at", "plain tanh",
    ),
    "sums over any axes have one name": Mutation(
        'return "sum", name, frozenset(gone), block.sizes', 'return "sum", name, block.sizes',
        "difference of mean squares",
    ),
    "an extreme across scales": Mutation(
        "    for axis in axes:\n        a = joined(ledger, a, axis, what)\n", "", "extreme",
    ),
    "a product over entries scales once": Mutation(
        "block.scale, Fraction(count))", "block.scale, Fraction(1))", "product over rows",
    ),
    "a product over entries of shifted values": Mutation(
        'block = settle(ledger, firm(ledger, block), "a product of shifted values")',
        "block = firm(ledger, block)", "product of shifted values",
    ),
    "a convolution mixes kernel positions that scale differently": Mutation(
        "kernel = resized(joined(ledger, kernel, axis, what), axis, 1)",
        "kernel = resized(kernel, axis, 1)", "convolution",
    ),
    "windows mix positions that scale differently": Mutation(
        "        met = ledger.vanish(across, what)\n        moving",
        "        met = 0\n        moving", "windows over a scale",
    ),
    "edges do not change shifts": Mutation(
        "moving = block.shift if edges else fields.on(block.shift, along)",
        "moving = fields.on(block.shift, along)", "convolution over edges",
    ),
    "edges of pooling windows do not change shifts": Mutation(
        'a = a.each(lambda b: settle(ledger, b, "a sum over windows of a shifted value"))', "pass",
        "window of one",
    ),
    "a token counts once in a window": Mutation(
        'count = Fraction(math.prod(eqn.params["window_dimensions"]))', "count = Fraction(1)",
        "minus a window's sum",
    ),
    "windows drop tokens that vary": Mutation(
        "made, cons = derived(ledger, moving, along.union, block)", "made, cons = {}, 0",
        "pooling over edges",
    ),
    "a running sum keeps tokens": Mutation(
        "a = a.each(lambda b: settle(ledger, firm(ledger, b), what))",
        "a = a.each(lambda b: firm(ledger, b))", "running sum of a shifted value",
    ),
    "running operations across scales": Mutation(
        "    for axis in _along(eqn):\n        a = joined(ledger, a, axis)\n", "", "running sum",
    ),
    "a sort by several keys is unchecked": Mutation(
        'cons |= fixed(ledger, block, "a sort by several keys").cons', "cons |= block.cons",
        "sort by keys",
    ),
    "top_k across scales": Mutation(
        "a = resized(joined(ledger, a, axis), axis, shape[axis])",
        "a = resized(a, axis, shape[axis])", "top 2",
    ),
    # programs within the program
    "foreign derivatives are trusted": Mutation(
        "if ledger.gradient and not differentiated_by_jax(eqn):", "if False:", "custom gradient",
    ),
    "a branch index is unchecked": Mutation(
        'cons = _fixed_all(ledger, index, "a branch")', "cons = 0", "branch by sin",
    ),
    "branches of different scales": Mutation(
        "lambda *bs: either(ledger, what, *bs)", "lambda *bs: bs[0]", "branches",
    ),
    "a loop condition is unchecked": Mutation(
        "cons = _fixed_all(ledger, test, \"a loop's condition\")", "cons = 0", "loop until sin",
    ),
    "a carry is read once": Mutation(
        "if joint == carry:", "if True:", "RNN ReLU",
    ),
    "a carry is not compared": Mutation(
        "either(ledger, _CARRY, a, b)", "a", "RNN ReLU",
    ),
    "a carry may vary with the step": Mutation(
        "block = still(ledger, block, positions, _CARRY)\n", "pass\n", "sum of steps",
    ),
    "a carry drops tokens": Mutation(
        "block = settle(ledger, block, \"a loop's carry that is shifted\")",
        "block = block.but(shift={})", "shifted carry",
    ),
    "results of steps scale alike": Mutation(
        "moves |= {(hidden, j): ((0, j),) for", "moves |= {(hidden, j): () for", "results of steps",
    ),
    "results of steps do not vary": Mutation(
        "return block.but(varies=block.varies | set(block.along([0])), literal=None)",
        "return block.but(literal=None)", "results that vary",
    ),
    # values, and the constraints of a proof
    "settling drops tokens": Mutation(
        "return block.but(shift={}, cons=cons) if block.shift else block",
        "return block.but(shift={})", "plain tanh",
    ),
    "firm drops epsilons": Mutation(
        "return block.but(cons=block.cons | ledger.hardened(block.pending), pending=0)",
        "return block.but(pending=0)", "epsilon without a root",
    ),
    "what must be constant is not": Mutation(
        "return block\n    cons = block.cons | ledger.vanish(scale, what) |",
        "return block\n    cons = block.cons |", "rows apart",
    ),
    "what must be constant keeps its shift": Mutation(
        "return block\n    cons = block.cons | ledger.vanish(scale, what) |",
        "return block\n    cons = block.cons | ledger.vanish(scale, what) | 0 &",
        "product of a varying shift",
    ),
    "what must be invariant may scale": Mutation(
        "return block.but(scale={}, cons=block.cons | ledger.vanish(block.scale, what))",
        "return block.but(scale={})", "plain tanh",
    ),
    "one is wild": Mutation(
        "return number == 0 or", "return number in (0, 1) or", "comparison with a number",
    ),
    "tall literals are infinite": Mutation(
        "_HUGE = 1e30", "_HUGE = 2.0", "softmax filled with fives",
    ),
    "a slice keeps per-index scales": Mutation(
        'block = _unknowns_still(ledger, block, [first], "a slice of a per-index scaling")', "pass",
        "slices of an inner factor",
    ),
    "ranges of a token are alike": Mutation(
        'return atom._replace(name=("part", atom, placement.index(position), span, sizes))',
        "return atom", "halves of channels",
    ),
    "a slice across factors keeps scales": Mutation(
        'block = still(ledger, block, touched, "a slice across a per-index scaling")', "pass",
        "slice across a reshape",
    ),
    "a transpose keeps the name": Mutation(
        "ordered = places == sorted(places)", "ordered = True", "product with a transpose",
    ),
    "a broadcast keeps the name": Mutation(
        "same = ordered and sum(map(len, axes)) == len(block.positions)", "same = ordered",
        "outer product",
    ),
    "data does not vary": Mutation(
        "{(0,) * len(shape): block.but(varies=frozenset(block.positions))}",
        "{(0,) * len(shape): block}", "sums of squares",
    ),
    "flattened factors keep scales": Mutation(
        'block = still(ledger, block, block.along([axis]), "axes that do not fit")', "pass",
        "two orders",
    ),
    "merged segments are constant": Mutation(
        "block.but(varies=block.varies | position, literal=None, symbol=None)",
        "block.but(literal=None, symbol=None)", "single rows",
    ),
    "merged segments keep scales": Mutation(
        "block = still(ledger, block, block.along([axis]), what)", "pass", "alternate rows",
    ),
    "epsilons are always excused": Mutation(
        "return pending << 1", "return pending", "epsilon without a root",
    ),
    "epsilons without an excuse count as nothing": Mutation(
        "return pending << 1", "return 0", "epsilon without a root",
    ),
    "a token vanishes with any of its obligations": Mutation(
        "not atom.obligations & ~mask", "atom.obligations & mask", "WeightNorm",
    ),
    "what vanishes somewhere vanishes everywhere": Mutation(
        "else self._zero.get(atom, 0) & mask", "else self._zero.get(atom, 0)", "stopped norm",
    ),
    "tokens have no obligations": Mutation(
        "mask |= atom.obligations\n        else", "mask |= 0\n        else", "minus half the mean",
    ),
    "placements share an equation": Mutation(
        "rows[placement] = linear.add(rows.get(placement, {}), {atom: k})",
        "rows[()] = linear.add(rows.get((), {}), {atom: k})", "quotient by a transpose",
    ),
    "epsilons forget the obligations of tokens": Mutation(
        "rows = [*rows, *(self.constraints[bit].row for bit in self.bits(mask))]\n", "pass\n",
        "comparison with an epsilon",
    ),
    "no leaf is marked": Mutation(
        'return any(self.constraints[bit].kind == "leaf" for bit in self.bits(mask))',
        "return False", "softmax with an epsilon",
    ),
    "constraints are named by their words": Mutation(
        "return constraint._replace(row=frozenset(constraint.row.items()))",
        "return constraint._replace(row=frozenset(constraint.row))", "product and quotient",
    ),
    # the solution
    "leaves that are not held have no effect": Mutation(
        "felt = {c.block[0] for c in self.reading.constraints if c.block}",
        "felt = {leaf for row in self.by_leaf for leaf in row}", "Rayleigh quotient",
    ),
    "epsilons never count": Mutation(
        '("hard", "eps") if self.strict else ("hard",)', '("hard",)', "added epsilon",
    ),
    "unit axes are unchecked": Mutation(
        "if first[axis] > 1 and axes and self._alone(leaves, axes):",
        "if first[axis] > 1 and axes:", "Rayleigh quotient",
    ),
    "held leaves are free": Mutation(
        "sets = [{i: 1} for i in felt if i not in held]", "sets = [{i: 1} for i in felt]",
        "plain tanh",
    ),
    "the loss may scale": Mutation(
        "mask = fixed(ledger, loss.blocks[()], LOSS).cons", "mask = loss.blocks[()].cons",
        "no target",
    ),
    "the gradient is not read": Mutation(
        "for demands in (value, reader.loss(closed, structures, gradient=True)):",
        "for demands in (value,):", "stopped norm",
    ),
}  # fmt: skip
