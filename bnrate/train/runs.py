"""One training run: how it starts, a step, how it ends."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from bnrate import groups as gr
from bnrate import measure

# Why a run diverged; the first entry is that of a run that did not.
REASONS = (
    "",
    "the loss is not finite",
    "the parameters are not finite",
    "a final value is not finite",
)


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
      reason: why: an index into `REASONS`.
    """

    params: PyTree
    extra: PyTree
    opt_state: optax.OptState
    key: Array
    rates: Rates
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]
    reason: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that `sweep` can place anywhere on a grid: pure functions and static descriptions.

    Attributes:
      init: from a point of the grid, {"rate" or "rate_invariant" and "rate_rest", "seed"}.
      advance: `state -> (state, record)`, `stride` steps; the record is of the first of them.
      finish: the final values, with `diverged`, `diverged_at` and `reason`.
      alive: whether the run has not diverged.
      stride: steps from one record to the next.
      dims: the dimensions of each recorded variable.
      coords: the names along these dimensions.
      words: what the numbers of a final value stand for.
      unit: what a step is called while a sweep is at work.
    """

    init: Callable[[Mapping[str, Array]], State]
    advance: Callable[[State], tuple[State, dict[str, Array]]]
    finish: Callable[[State], dict[str, Array]]
    alive: Callable[[State], Bool[Array, ""]]
    stride: int
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]
    unit: str = "step"


def make_run(
    *,
    init: Callable[[Array], tuple[PyTree, PyTree]],
    loss: Callable[[PyTree, PyTree, Any], tuple[Array, PyTree]],
    batch: Callable[[Array, Int[Array, ""]], Any],
    rule: Callable[[Rates], optax.GradientTransformation],
    groups: gr.Groups = gr.Groups(),  # noqa: B008 (an immutable value)
    evaluate: Callable[[PyTree, PyTree], dict[str, Array]] | None = None,
    measures: Callable[[State], dict[str, Array]] | None = None,
    stride: int = 1,
) -> Run:
    """Put a loss, batches and a rule together.

    Args:
      init: key -> parameters, extra; extra is what the model keeps besides, such as flax's
        `batch_stats`, or ().
      loss: (parameters, extra, batch) -> loss, extra.
      batch: (key, step) -> batch.
      rule: rates -> optax transformation.  Its update is also given what optax's line searches ask
        for: `value`, the loss of this batch, `grad`, its gradient, and `value_fn`, from parameters
        to the loss of this batch.  A rule that does not call it does not pay for it.
      groups: what to measure on the spheres at each record, one entry per unit.
      evaluate: (parameters, extra) -> final values by name; `results` and `plots` read `final_loss`
        and `test_accuracy`.  By default `final_loss` is the loss on the next batch.
      measures: what else to record: state -> arrays by name, of the state before the step.
      stride: record every so many steps, the first step included.

    Raises:
      ValueError: stride is below 1; `measures` fails on a state, returns anything but numeric
        arrays by name, or takes a name that is in use.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1 step, got {stride}")

    def start(point: Mapping[str, Array]) -> State:
        params_key, batch_key = jax.random.split(jax.random.key(point["seed"]))
        params, extra = init(params_key)
        rates, zero = rates_of(point), jnp.zeros((), jnp.int32)
        opt_state = rule(rates).init(params)
        return State(params, extra, opt_state, batch_key, rates, zero, zero - 1, zero)

    def step(i: Array | int, carry: tuple[State, Any]) -> tuple[State, Any]:
        state, record = carry
        examples = batch(state.key, state.step)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (L, extra), grads = value_and_grad(state.params, state.extra, examples)
        updates, opt_state = optax.with_extra_args_support(rule(state.rates)).update(
            grads,
            state.opt_state,
            state.params,
            value=L,
            grad=grads,
            value_fn=lambda params: loss(params, state.extra, examples)[0],
        )
        params = optax.apply_updates(state.params, updates)

        def measured() -> dict[str, Array]:
            rate = state.rates.invariant
            spheres = measure.on_spheres(groups, state.params, grads, updates, rate)
            return {"loss": L, **spheres, **({} if measures is None else measures(state))}

        # Only the first of `stride` steps is measured; its number is the same for all runs.
        record = measured() if record is None else jax.lax.cond(i == 0, measured, lambda: record)
        at, why = _divergence(state, L, params)
        after = State(params, extra, opt_state, state.key, state.rates, state.step + 1, at, why)
        return after, record

    def advance(state: State) -> tuple[State, dict[str, Array]]:
        if stride == 1:
            return step(0, (state, None))
        shapes = jax.eval_shape(lambda s: step(0, (s, None))[1], state)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, stride, step, (state, blank))

    def finish(state: State) -> dict[str, Array]:
        if evaluate is None:
            next_batch = batch(state.key, state.step)
            values = {"final_loss": loss(state.params, state.extra, next_batch)[0]}
        else:
            values = evaluate(state.params, state.extra)
        diverged = (state.diverged_at >= 0) | ~_finite(values)
        why = jnp.where(diverged & (state.reason == 0), len(REASONS) - 1, state.reason)
        return {**values, "diverged": diverged, "diverged_at": state.diverged_at, "reason": why}

    shapes = jax.eval_shape(init, jax.random.key(0))[0]
    names = {"group": gr.units(groups, shapes)}
    dims = {"loss": (), **measure.DIMS}
    if measures is not None:
        _check_measures(measures, jax.eval_shape(start, _point()), dims)
    return Run(start, advance, finish, _alive, stride, dims, names, {"reason": REASONS})


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


def _alive(state: State) -> Bool[Array, ""]:
    return state.diverged_at < 0


def _divergence(state: State, loss: Array, params: PyTree) -> tuple[Array, Array]:
    """The first step that failed, and why; this step's verdict if none has yet."""
    why = jnp.where(~_finite(loss), 1, jnp.where(~_finite(params), 2, 0)).astype(jnp.int32)
    fails_now = (why > 0) & _alive(state)
    return (
        jnp.where(fails_now, state.step, state.diverged_at),
        jnp.where(fails_now, why, state.reason),
    )


def _point() -> dict[str, Array]:
    return {"rate": jnp.ones(()), "seed": jnp.zeros((), jnp.int32)}


def _check_measures(
    measures: Callable[[State], dict[str, Array]], state: State, taken: Mapping[str, Any]
) -> None:
    """Try the user's measures on the shapes of a state."""
    try:
        values = jax.eval_shape(measures, state)
    except Exception as error:
        raise ValueError(f"`measures` fails on a state: {type(error).__name__}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`measures` must return arrays by name, got {type(values).__name__}")
    for name, value in values.items():
        if not hasattr(value, "dtype") or jnp.issubdtype(value.dtype, jax.dtypes.extended):
            raise ValueError(f"`measures` must return numeric arrays by name; '{name}' is {value}")
        if name in taken:
            raise ValueError(f"`measures` returns '{name}', which is recorded already; rename it")


def _finite(tree: PyTree) -> Bool[Array, ""]:
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(_all_finite, tree), jnp.array(True))


def _all_finite(leaf: Array) -> Bool[Array, ""]:
    """Whether 0 times all entries is 0.

    Summed over one axis after another, for which a CPU has vector instructions: three times as fast
    as `jnp.isfinite(leaf).all()`, a twelfth of a small step.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    total = leaf * 0
    while total.ndim:
        total = total.sum(axis=0)
    return total == 0
