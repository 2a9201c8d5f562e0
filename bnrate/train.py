"""One training run as pure functions of traced rates and a traced seed: one step, one scan.

A run takes any loss, batches and rule, and `sweep.run` places it on a grid of rates and seeds:

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
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from bnrate import groups as gr
from bnrate import measure


class Rates(NamedTuple):
    """The traced hyperparameters of a rule: learning rates of the two sides of the split."""

    invariant: Float[Array, ""]
    rest: Float[Array, ""]


class State(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
      params: the trained parameters.
      extra: what the model keeps besides (running moments).
      opt_state: of the rule.
      key: of the batches; step t uses `fold_in(key, t)`.
      rates: constant over the run.
      step: steps taken.
      diverged_at: the first step whose loss or resulting parameters are not finite, or -1.
    """

    params: PyTree
    extra: PyTree
    opt_state: optax.OptState
    key: Array
    rates: Rates
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that `sweep` can place anywhere on a grid: pure functions and static descriptions.

    Attributes:
      init: from a point of the grid, {"rate" or "rate_invariant" and "rate_rest", "seed"}.
      advance: `(state, records) -> (state, trace)`, `records * stride` steps in one scan; `records`
        is static.
      finish: the final values, with `diverged` and `diverged_at`.
      stride: steps from one record to the next.
      dims: the dimensions of each traced variable beyond the record.
      coords: the names along these dimensions.
    """

    init: Callable[[Mapping[str, Array]], State]
    advance: Callable[[State, int], tuple[State, dict[str, Array]]]
    finish: Callable[[State], dict[str, Array]]
    stride: int
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[str, ...]]


def make_run(
    *,
    init: Callable[[Array], tuple[PyTree, PyTree]],
    loss: Callable[[PyTree, PyTree, Any], tuple[Array, PyTree]],
    batch: Callable[[Array, Int[Array, ""]], Any],
    rule: Callable[[Rates], optax.GradientTransformation],
    groups: gr.Groups = gr.Groups(),  # noqa: B008 (an immutable value)
    evaluate: Callable[[PyTree, PyTree], dict[str, Array]] | None = None,
    stride: int = 1,
) -> Run:
    """Put a loss, batches and a rule together.

    Args:
      init: key -> parameters, extra; extra is what the model keeps besides, such as flax's
        `batch_stats`, or ().
      loss: (parameters, extra, batch) -> loss, extra.
      batch: (key, step) -> batch.
      rule: rates -> optax transformation.
      groups: what to measure on the spheres at each record, one entry per unit.
      evaluate: (parameters, extra) -> final values by name; `results` and `plots` read `final_loss`
        and `test_accuracy`.  By default `final_loss` is the loss on the next batch.
      stride: record every so many steps, the first step included.

    Raises:
      ValueError: stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1 step, got {stride}")

    def start(point: Mapping[str, Array]) -> State:
        params_key, batch_key = jax.random.split(jax.random.key(point["seed"]))
        params, extra = init(params_key)
        rates, zero = rates_of(point), jnp.zeros((), jnp.int32)
        return State(params, extra, rule(rates).init(params), batch_key, rates, zero, zero - 1)

    def step(state: State) -> tuple[State, dict[str, Array]]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (L, extra), grads = value_and_grad(state.params, state.extra, batch(state.key, state.step))
        updates, opt_state = rule(state.rates).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        fails_now = ~_finite((L, params)) & (state.diverged_at < 0)
        diverged_at = jnp.where(fails_now, state.step, state.diverged_at)
        spheres = measure.on_spheres(groups, state.params, grads, updates, state.rates.invariant)
        state = State(params, extra, opt_state, state.key, state.rates, state.step + 1, diverged_at)
        return state, {"loss": L, **spheres}

    def window(state: State, _: None) -> tuple[State, dict[str, Array]]:
        state, record = step(state)
        return jax.lax.fori_loop(1, stride, lambda _, s: step(s)[0], state), record

    def advance(state: State, records: int) -> tuple[State, dict[str, Array]]:
        return jax.lax.scan(window, state, length=records)

    def finish(state: State) -> dict[str, Array]:
        if evaluate is None:
            next_batch = batch(state.key, state.step)
            values = {"final_loss": loss(state.params, state.extra, next_batch)[0]}
        else:
            values = evaluate(state.params, state.extra)
        diverged = (state.diverged_at >= 0) | ~_finite(values)
        return {**values, "diverged": diverged, "diverged_at": state.diverged_at}

    shapes = jax.eval_shape(init, jax.random.key(0))[0]
    names = {"group": gr.units(groups, shapes)}
    return Run(start, advance, finish, stride, {"loss": (), **measure.DIMS}, names)


def rates_of(point: Mapping[str, Array]) -> Rates:
    """The rates at a point of a grid: `rate` for both sides, or one for each.

    Raises:
      ValueError: the point has other axes.
    """
    if set(point) == {"rate", "seed"}:
        return Rates(point["rate"], point["rate"])
    if set(point) == {"rate_invariant", "rate_rest", "seed"}:
        return Rates(point["rate_invariant"], point["rate_rest"])
    raise ValueError(
        "a run needs the axes seed and rate, or seed, rate_invariant and rate_rest; "
        f"the grid has {', '.join(point) or 'none'}"
    )


def _finite(tree: PyTree) -> Bool[Array, ""]:
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, finite, jnp.array(True))
