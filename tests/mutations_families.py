"""The rules of `special_families` broken: writes, order, complex numbers, matrices, shards."""

from mutants import Mutation
from syntax import In

FAMILY_MUTATIONS: dict[str, Mutation] = {
    "a write counts shifts once": Mutation(
        In("writes.accumulate").replace("settle(...)", "b"), caught="rows added to a bias"
    ),
    "an addition of different scales": Mutation(
        In("writes.accumulate").replace("either(...)", "old"), caught="added number"
    ),
    "a maximum written of different scales": Mutation(
        In("writes.replace").returns("old"), caught="maximum with a number"
    ),
    "a factor that is written scales": Mutation(
        In("writes.scale").replace("fixed(...)", "new"), caught="factor written"
    ),
    "keys are unchecked": Mutation(
        In("sums.sort").delete("cons |= ..."), caught="in order of sines"
    ),
    "parts of different scales": Mutation(
        In("complexes.join").replace("either(...)", "real"), caught="phase with a number"
    ),
    "a transform of different scales": Mutation(
        In("complexes.fourier").replace("joined(...)", "a"), caught="transform along"
    ),
    "a transform keeps tokens": Mutation(
        In("complexes.fourier").replace("functools.partial(...)", "lambda b: b"),
        caught="transform of a bias",
    ),
    "a remainder of different scales": Mutation(
        In("choices._of_pair").assign("met", "0"), caught="remainder of a number"
    ),
    "ones on a diagonal scale": Mutation(
        In("linalg.triangular_solve").replace('params["unit_diagonal"]', "False"),
        caught="triangle of ones",
    ),
    "factors have degree one": Mutation(
        In("linalg._factor").keyword("scale", "b.scale"), caught="roots of squares"
    ),
    "L and U scale alike": Mutation(
        In("linalg.lu").replace("fixed(...)", "b"), caught="both factors"
    ),
    "a solution scales like the right side": Mutation(
        In("linalg._quotient").replace("fields.add(...)", "b.scale"), caught="solution"
    ),
    "all solvers of JAX are exact": Mutation(
        In("linalg._is_exact").returns("defined_in_jax(solve)"),
        caught="one step of conjugate gradients",
    ),
    "experts of different scales": Mutation(
        In("ragged.ragged_dot").replace("joined(...)", "b"), caught="two experts"
    ),
    "shards never differ": Mutation(
        In("collectives._differing").returns("value"), caught="bias of a shard"
    ),
    "shards that nobody sends to have tokens": Mutation(
        In("collectives.permute").assign("complete", "True"), caught="bias sent to one"
    ),
}
