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
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Var
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
    """

    init: Callable[[Mapping[str, Array]], State]
    advance: Callable[[State], tuple[State, dict[str, Array]]]
    finish: Callable[[State], dict[str, Array]]
    alive: Callable[[State], Bool[Array, ""]]
    stride: int
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]


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


class Totals(NamedTuple):
    """What a run of `totals` carries.

    Attributes:
      state: of the run itself.
      record: its last.
      sums: over all records so far, by name.
      least: of all records so far, by name.
      made: records of totals.
    """

    state: State
    record: dict[str, Array]
    sums: dict[str, Array]
    least: dict[str, Array]
    made: Int[Array, ""]


def totals(run: Run, times: Sequence[int], *, sums: Sequence[str], least: Sequence[str]) -> Run:
    """The same run with few records, each after some number of steps, that speak of every step.

    Theorems bound sums over all steps, and the least of them, and speak of long times: here no step
    is left out and none is stored.  In `sweep`, `steps` is then the number of records.

    Args:
      run: recorded at every step.
      times: the steps after which to record, ascending.
      sums: which records to sum over all steps so far, as `NAME_sum`.
      least: of which to keep the least so far, as `NAME_least`.

    Returns:
      A run whose records are those of the last step taken, with sums, least values and `time`.

    Raises:
      ValueError: the run does not record every step, or the times do not ascend from 1 or more;
        (when it starts) it has no such record.
    """
    if run.stride != 1:
        raise ValueError(f"totals need a run that records every step, not one in {run.stride}")
    if not times or times[0] < 1 or any(a >= b for a, b in itertools.pairwise(times)):
        raise ValueError(f"the times of records must ascend from 1 or more, got {tuple(times)}")
    edges = jnp.asarray([0, *times], jnp.int32)

    def start(point: Mapping[str, Array]) -> Totals:
        state = run.init(point)
        shapes = jax.eval_shape(run.advance, state)[1]
        if unknown := {*sums, *least} - set(shapes):
            raise ValueError(f"the run has no record '{min(unknown)}' to take totals of")
        blank = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        nothing = {name: blank[name] for name in sums}
        highest = {name: jnp.full_like(blank[name], jnp.inf) for name in least}
        return Totals(state, blank, nothing, highest, jnp.zeros((), jnp.int32))

    def step(_: Array, now: Totals) -> Totals:
        state, record = run.advance(now.state)
        return Totals(
            state,
            record,
            {name: total + record[name] for name, total in now.sums.items()},
            {name: jnp.minimum(lowest, record[name]) for name, lowest in now.least.items()},
            now.made,
        )

    def advance(now: Totals) -> tuple[Totals, dict[str, Array]]:
        now = jax.lax.fori_loop(edges[now.made], edges[now.made + 1], step, now)
        summed = {f"{name}_sum": total for name, total in now.sums.items()}
        lowest = {f"{name}_least": value for name, value in now.least.items()}
        now = now._replace(made=now.made + 1)
        return now, {**now.record, **summed, **lowest, "time": edges[now.made]}

    named = [(name, f"{name}_sum") for name in sums] + [(name, f"{name}_least") for name in least]
    dims = {**run.dims, **{new: run.dims[name] for name, new in named if name in run.dims}}
    return dataclasses.replace(
        run,
        init=start,
        advance=advance,
        finish=lambda now: run.finish(now.state),
        alive=lambda now: run.alive(now.state),
        dims=dims,
    )


def one_batch(batch: Callable[[Array, Int[Array, ""]], Any]) -> bool:
    """Whether all batches are the same, as the traced program shows: it uses neither key nor step.

    The bounds of gradient descent, and certificates, are about runs on one batch.

    >>> one_batch(lambda key, step: jnp.ones(3)), one_batch(lambda key, step: jnp.ones(3) * step)
    (True, False)
    """
    traced = jax.make_jaxpr(batch)(jax.random.key(0), jnp.zeros((), jnp.int32)).jaxpr
    moving = set(traced.invars)
    for equation in traced.eqns:
        if any(isinstance(read, Var) and read in moving for read in equation.invars):
            moving.update(equation.outvars)
    return not any(isinstance(out, Var) and out in moving for out in traced.outvars)


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
