"""Sums over every step of a run, at few records."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bnrate.train.runs import Run, State


class Totals(NamedTuple):
    """What a run of `totals` carries.

    Attributes:
      state: of the run itself.
      record: its last.
      sums: over all records so far, by name; and what rounding has lost of each.
      least: of all records so far, by name.
      made: records of totals.
    """

    state: State
    record: dict[str, Array]
    sums: dict[str, tuple[Array, Array]]
    least: dict[str, Array]
    made: Int[Array, ""]


def totals(run: Run, times: Sequence[int], *, sums: Sequence[str], least: Sequence[str]) -> Run:
    """The same run with few records, each after some number of steps, that speak of every step.

    Theorems bound sums over all steps, and the least of them, and speak of long times: here no step
    is left out and none is stored.  In `sweep`, `steps` is then the number of records.

    Args:
      run: recorded at every step.
      times: the steps after which to record, ascending.
      sums: which records to sum over all steps so far, as `NAME_sum`; compensated, so that many
        small ones are not lost beside a large one.
      least: of which to keep the least so far, as `NAME_least`.

    Returns:
      A run whose records are those of the last step taken, with sums, least values and `time`;
      NaN where there are more records than times.

    Raises:
      ValueError: the run does not record every step, or the times are not whole numbers that ascend
        from 1 or more; (when it starts) it has no such record, or one that is not of floats in
        float32 or wider, or one that already has such a name.
    """
    if run.stride != 1:
        raise ValueError(f"totals need a run that records every step, not one in {run.stride}")
    times = tuple(times)
    whole = all(isinstance(time, int | np.integer) for time in times)
    if not (whole and times) or times[0] < 1 or any(a >= b for a, b in itertools.pairwise(times)):
        raise ValueError(f"the times of records must ascend from 1 or more, got {times}")
    edges = jnp.asarray([0, *times], jnp.int32)
    added = {f"{name}_sum": name for name in sums} | {f"{name}_least": name for name in least}

    def start(point: Mapping[str, Array]) -> Totals:
        state = run.init(point)
        shapes = jax.eval_shape(run.advance, state)[1]
        _check_totals(shapes, added)
        blank = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        nothing = {name: (blank[name], blank[name]) for name in sums}
        highest = {name: jnp.full_like(blank[name], jnp.inf) for name in least}
        return Totals(state, blank, nothing, highest, jnp.zeros((), jnp.int32))

    def step(_: Array, now: Totals) -> Totals:
        state, record = run.advance(now.state)
        return Totals(
            state,
            record,
            {name: _plus(total, record[name]) for name, total in now.sums.items()},
            {name: jnp.minimum(lowest, record[name]) for name, lowest in now.least.items()},
            now.made,
        )

    def advance(now: Totals) -> tuple[Totals, dict[str, Array]]:
        now = jax.lax.fori_loop(edges[now.made], edges[now.made + 1], step, now)
        known = jnp.where(now.made < len(times), 1.0, jnp.nan)
        summed = {f"{name}_sum": total + lost for name, (total, lost) in now.sums.items()}
        lowest = {f"{name}_least": value for name, value in now.least.items()}
        new = {name: value * known.astype(value.dtype) for name, value in (summed | lowest).items()}
        now = now._replace(made=now.made + 1)
        return now, {**now.record, **new, "time": edges[now.made]}

    dims = {new: run.dims[name] for new, name in added.items() if name in run.dims}
    return dataclasses.replace(
        run,
        init=start,
        advance=advance,
        finish=lambda now: run.finish(now.state),
        alive=lambda now: run.alive(now.state),
        dims={**run.dims, **dims},
        unit="record",
    )


def _check_totals(shapes: Mapping[str, Any], added: Mapping[str, str]) -> None:
    if unknown := set(added.values()) - set(shapes):
        raise ValueError(f"the run has no record '{min(unknown)}' to take totals of")
    if taken := (set(added) | {"time"}) & set(shapes):
        raise ValueError(f"the run records '{min(taken)}' already; rename it")
    for name in added.values():
        dtype = shapes[name].dtype
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
            raise ValueError(f"totals of '{name}' need float32 or wider, got {dtype}; convert it")


def _plus(total: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
    """A sum, and what rounding has lost of it: the exact error of each addition (Knuth)."""
    before, lost = total
    more = value + lost
    after = before + more
    came = after - before
    lost = (before - (after - came)) + (more - came)
    return after, jnp.where(jnp.isfinite(after), lost, 0)
