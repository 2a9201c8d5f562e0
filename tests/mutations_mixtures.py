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
        In("ledger.Ledger.marks").returns("0"), caught="bias behind a mask"
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
        In("choices.select").replace(
            "blurred(...)", "made((predicate, chosen), chosen.scale, facts=chosen.facts)"
        ),
        caught="over a choice of signs",
    ),
    "a join is no mixture": Mutation(
        In("facts.Facts.blurred").returns("self"), caught="over every other entry"
    ),
    "a slice is no mixture": Mutation(
        In("facts.Facts.blurred").returns("self"), caught="over a slice of signs"
    ),
    "a pad is no mixture": Mutation(
        In("facts.Facts.blurred").returns("self"), caught="over what a negative pad leaves"
    ),
    "steps are no mixture": Mutation(
        In("facts.Facts.blurred").returns("self"), caught="over choices of steps"
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
