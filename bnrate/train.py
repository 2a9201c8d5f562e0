"""One training run as pure functions of traced rates and a traced seed: one step, one scan."""

import dataclasses
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
    evaluate: Callable[[PyTree, PyTree], dict[str, Array]] = lambda params, extra: {},
    stride: int = 1,
) -> Run:
    """Put a loss, batches and a rule together.

    Args:
      init: key -> parameters, extra.
      loss: (parameters, extra, batch) -> loss, extra.
      batch: (key, step) -> batch.
      rule: rates -> optax transformation.
      groups: what to measure on the spheres at each record, one entry per unit.
      evaluate: (parameters, extra) -> final values.
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
        values = evaluate(state.params, state.extra)
        diverged = (state.diverged_at >= 0) | ~_finite(values)
        return {**values, "diverged": diverged, "diverged_at": state.diverged_at}

    shapes = jax.eval_shape(init, jax.random.key(0))[0]
    names = {"group": gr.units(groups, shapes)}
    return Run(start, advance, finish, stride, {"loss": (), **measure.DIMS}, names)


def rates_of(point: Mapping[str, Array]) -> Rates:
    """The rates at a point of a grid: `rate` for both sides, or one for each."""
    if "rate" in point:
        return Rates(point["rate"], point["rate"])
    return Rates(point["rate_invariant"], point["rate_rest"])


def _finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
