"""The rules of `special_mixtures` broken."""

from mutants import Mutation
from syntax import In

MIXED_MUTATIONS: dict[str, Mutation] = {
    "a sum forgets an atom that it had": Mutation(
        In("sums.total").replace("fields.add(kept, _)", "{**kept, term: k * times}"),
        caught="roundabout sum of squares",
    ),
    "of two entries one is kept": Mutation(
        In("axes._restricted").replace("found.get(...) + k", "k"), caught="one entry of two axes"
    ),
    "all segments are seen like the first": Mutation(
        In("units.Units._seat").replace("factor >= 0 and _", "False"), caught="parts in two views"
    ),
    "a mask hides a leaf": Mutation(
        In("ledger.Ledger.marked").returns("False"), caught="bias behind a mask"
    ),
    # what is told of numbers
    "all shifts are finite": Mutation(
        In("fields.is_finite").returns("True"), caught="finite or not"
    ),
    "an order has no infinities": Mutation(
        In("shapes.argument").replace("told(...)", "b"), caught="the largest, if any"
    ),
    "keys have no infinities": Mutation(
        In("sums.sort").replace("told(...)", "block"), caught="the order, if any"
    ),
    "the first places have no infinities": Mutation(
        In("sums.top_k").replace("told(...)", "block"), caught="the first places, if any"
    ),
    "a total order has no infinities": Mutation(
        In("choices.in_total_order").delete("a, b = (told(...) for x in (a, b))"),
        caught="the total order, if any",
    ),
    "exponentials have a sign": Mutation(
        In("choices.sign").replace("told(...)", "settle(ledger, a, 'a sign')"),
        caught="sign of an exponential",
    ),
    "exponentials have an angle": Mutation(
        In("choices.angle").delete("a, b = (told(...) for x in (a, b))"),
        caught="angle of exponentials",
    ),
    "what is narrow is known in time": Mutation(
        In("reading._Reader.loss").replace("ledger.narrow and not self.narrow", "False"),
        caught="finite before it is narrow",
    ),
    "exponentials are positive": Mutation(
        In("choices.compare").delete("a, b = (told(...) for x in (a, b))"),
        caught="an exponential or zero",
    ),
    "sixteen bits are enough": Mutation(
        In("ledger._is_narrow").returns("False"), caught="finite in sixteen bits"
    ),
    "small numbers have a sign": Mutation(
        In("ledger._is_narrow").returns("False"), caught="sign in sixteen bits"
    ),
    "five bits of exponent are enough": Mutation(
        In("choices.reduce_precision").delete("ledger.narrow |= ..."),
        caught="finite with fewer bits",
    ),
    # matrices
    "all matrices are symmetric": Mutation(
        In("linalg._is_symmetric").returns("True"), caught="Cholesky factor of a triangle"
    ),
    "any matrix has eigenvectors": Mutation(
        In("linalg._is_symmetric").returns("True"), caught="eigenvectors of a triangle"
    ),
    "one triangle is enough": Mutation(
        In("linalg._is_exact").replace("triangles <= operations", "True"),
        caught="solved by a triangle",
    ),
    # entries with and without an epsilon
    "a choice is no mixture": Mutation(
        In("choices.select").replace("_.mixed(...)", "chosen"), caught="over a choice of signs"
    ),
    "a guarded choice is no mixture": Mutation(
        In("choices._guarded").delete(
            "usual, other = (b.only_knowing(...) for b in (usual, other))"
        ),
        caught="over a guard of some entries",
    ),
    "a join is no mixture": Mutation(
        In("axes.merge").replace(
            "unnamed(block).mixed(...)",
            "unnamed(block)._replace(varies=block.varies | {(axis, 0)})",
        ),
        caught="over every other entry",
    ),
    "a slice is no mixture": Mutation(
        In("shapes._picked").replace(
            "_.mixed(b.positions)", "unnamed(b).demanding(cons, varies=b.varies.union(b.positions))"
        ),
        caught="over a slice of signs",
    ),
    "a pad is no mixture": Mutation(
        In("shapes._one_segment").replace(
            "row.mixed(...)", "row._replace(varies=row.varies.union(blocks[0].along([axis])))"
        ),
        caught="over what a negative pad leaves",
    ),
    "steps are no mixture": Mutation(
        In("control._left").replace(
            "block.mixed(...)", "block._replace(varies=block.varies.union(block.along([0])))"
        ),
        caught="over steps of both signs",
    ),
    "what is usually zero is guarded": Mutation(
        In("choices.select").replace("not usual.facts.wild", "True"),
        caught="one over a guard that is mostly zero",
    ),
    "sums of the same entries do not cancel": Mutation(
        In("arithmetic.add").replace("a.scale and b.scale and _", "False"),
        caught="over a difference of roots",
    ),
}
