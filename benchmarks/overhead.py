"""What each rule adds to a training step, against plain `optax.sgd`; a JSON line for each.

python benchmarks/overhead.py --cases mlp:1:128:100 vgg8:1:32:10 --rules projected wngrad

The rules of the experiment `rules`, on the units that `certify` finds, one run at a time on one
device; `cost` is the part that a step takes longer, the median over rounds in which all take turns.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import problems
from workers import Case, parser, report

from bnrate.experiments.comparison import RULES

CASES = ("mlp:1:128:100", "vgg8:1:32:10")
NORMS = ("projected", "bounded-norm", "effective-rate", "hyperball")
WANTED = 0.1  # of the cost of the rules in NORMS, at most


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, cases=CASES)
    flags.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    options = flags.parse_args(arguments)
    for case in map(Case.parse, options.cases):
        report("overhead", measured(case, options.rules, options.repeats))


def measured(case: Case, rules: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    """A line for each rule; the first is plain SGD."""
    assert set(NORMS) <= set(RULES)
    programs = {name: program(case, name) for name in ("sgd", *rules)}
    losses = {name: float(run()[0]) for name, run in programs.items()}
    assert np.isfinite(list(losses.values())).all(), losses
    seconds = in_turns(programs, repeats)
    for name, turns in seconds.items():
        pairs = zip(turns, seconds["sgd"], strict=True)
        cost = round(median(one / plain - 1 for one, plain in pairs), 3)
        line = case._asdict() | {"rule": name, "step": median(turns) / case.steps, "cost": cost}
        wanted = {"wanted": WANTED, "met": cost <= WANTED} if name in NORMS else {}
        yield line | {"repeats": repeats} | wanted


def in_turns(programs: Mapping[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each turn of each program."""
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def program(case: Case, rule: str) -> Callable[[], Any]:
    """Train by one rule at a small rate for the steps of a turn; the loss at the end, compiled."""
    problem = problems.problem(case.problem, case.batch)
    run = problem.run(case.steps, rule=RULES[rule].build)
    point = {"rate": jnp.float32(1e-3), "seed": jnp.int32(0)}

    def trained(point: dict[str, Any]) -> Any:
        state, _ = run.advance(run.init(point))
        return run.finish(state)["final_loss"], state.params

    compiled = jax.jit(trained).lower(point).compile()
    return lambda: compiled(point)


if __name__ == "__main__":
    main()
