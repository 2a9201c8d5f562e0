"""One training run as pure functions of traced rates and a traced seed: one step, one scan.

A run takes any loss, batches and rule, and `sweep.run` places it on a grid of rates and seeds:

    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from bnrate import invariance, results, sweep, transforms
    >>> x = jax.random.normal(jax.random.key(0), (64, 5))
    >>> def init(key):  # parameters, and what the model keeps besides (here nothing)
    ...     a, b = jax.random.split(key)
    ...     return {"w": jax.random.normal(a, (5, 8)), "v": jax.random.normal(b, (8,))}, ()
    >>> def loss(params, extra, batch):
    ...     h = batch @ params["w"]
    ...     h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    ...     return jnp.mean((jnp.tanh(h) @ params["v"] - batch[:, 0]) ** 2), extra
    >>> groups = invariance.detect(loss, *init(jax.random.key(0)), x).groups
    >>> def rule(rates):
    ...     sgd = optax.sgd(rates.invariant), optax.sgd(rates.rest)
    ...     return transforms.by_group(groups, invariant=sgd[0], rest=sgd[1])
    >>> run = make_run(init=init, loss=loss, batch=lambda key, step: x, rule=rule, groups=groups)
    >>> grid = {"rate_invariant": [0.01, 1.0, 100.0], "rate_rest": [0.1], "seed": range(2)}
    >>> ds = sweep.run(lambda: run, grid, steps=200)
    >>> results.tuning_freedom(ds, threshold=0.3)["decades_mean"].item()
    4.0

`totals` makes of a run one that speaks of all its steps with few records; `one_loss` tells whether
all steps see one function.
"""

from bnrate.train.fixed import one_loss
from bnrate.train.runs import REASONS, Rates, Run, State, make_run, rates_of
from bnrate.train.summed import Totals, totals

__all__ = [
    "REASONS",
    "Rates",
    "Run",
    "State",
    "Totals",
    "make_run",
    "one_loss",
    "rates_of",
    "totals",
]
