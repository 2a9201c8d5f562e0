"""The loop over combinations and chunks: compute, write, remember, tell."""

import contextlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bnrate.results import Part
from bnrate.results.assembly import STATUS
from bnrate.sweep import callbacks as told
from bnrate.sweep import programs, tuning
from bnrate.sweep.progress import Progress, pace
from bnrate.sweep.runs import storable

Stop = Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]

_UNFINISHED, _FINISHED, _DIVERGED, _STOPPED = range(len(STATUS))


class Rows(NamedTuple):
    """Which runs lie where, and which of them go on; all on the host.

    Attributes:
      owner: the run of each row, -1 for a filler.
      stopped_at: of each run, the step before which it was stopped, or -1.
    """

    owner: np.ndarray
    stopped_at: np.ndarray

    def of_runs(self, values: Any) -> np.ndarray:
        """Rows of values, in the order of the runs."""
        rows = np.asarray(values)
        runs = np.empty((len(self.stopped_at), *rows.shape[1:]), storable(rows.dtype))
        runs[self.owner[self.owner >= 0]] = rows[self.owner >= 0]
        return runs


class Sweep(NamedTuple):
    """A sweep ready to be executed.

    Attributes:
      work: of each combination.
      choose: compiles one of them.
      part: where the rows go, and whence a sweep is resumed.
      callbacks: told after each chunk.
      stop: tells which runs need not go on.
    """

    work: Sequence[tuning.Work]
    choose: Callable[[int], tuning.Chosen]
    part: Part
    callbacks: Sequence[Any]
    stop: Stop | None


def execute(sweep: Sweep) -> None:
    """Compute what is not there yet."""
    if sweep.part.done:
        return
    there = sweep.part.position()
    position = dict(there or {"combination": 0, "chunk": 0})
    pacer = _Pacer(sweep, position)
    told.call(sweep.callbacks, "on_start", pacer.progress(position, {}, None))
    with _interruptible(sweep.part) as interrupted:
        for combination in range(position["combination"], len(sweep.work)):
            first = position["chunk"] if there and combination == there["combination"] else None
            _execute_combination(sweep, combination, first, pacer, interrupted)


def _execute_combination(
    sweep: Sweep, number: int, first: int | None, pacer: "_Pacer", interrupted: Callable[[], None]
) -> None:
    work, part, plan = sweep.work[number], sweep.part, sweep.part.plan
    chosen = sweep.choose(number)
    run = programs.programs(work.traced, chosen.place)
    state, rows = _start(sweep, number, first, run, chosen.place)
    starts = range(0, plan.records, plan.chunk)
    for chunk in range(first or 0, len(starts)):
        start, records = starts[chunk], min(plan.chunk, plan.records - starts[chunk])
        going = _going(run, state, rows).reshape(chosen.place.mesh.size, -1)
        chosen = tuning.narrowed(work, chosen, int(going.sum(1).max()))
        begun = time.perf_counter()
        state, rows, going = _compacted(run, chosen.place, state, rows, going)
        state, trace = chosen.advance(state, going, jnp.int32(records))
        trace = {name: _cut(rows, values, records) for name, values in trace.items()}
        part.write(number, trace, start)
        alive = rows.of_runs(run.alive(state))
        rows = _stopped(sweep, number, start + records, rows, alive)
        _checkpoint(part, number, chunk + 1, rows, state)
        at = {"combination": number, "chunk": chunk + 1}
        pacer.seconds += time.perf_counter() - begun
        progress = pacer.progress(at, trace, alive)
        if sweep.stop is not None:
            progress = progress._replace(stopped=rows.stopped_at >= 0)
        told.call(sweep.callbacks, "on_chunk", progress)
        interrupted()
    _finish(part, number, run, state, rows)


def _start(
    sweep: Sweep, number: int, first: int | None, run: programs.Programs, place: programs.Layout
) -> tuple[PyTree, Rows]:
    """The states at the start of a chunk: those of the checkpoint, or new ones."""
    work, part = sweep.work[number], sweep.part
    rows = Rows(place.owner, np.full(work.runs, -1))
    if first is not None:
        like = {"rows": rows, "state": place.like(work.traced.state)}
        checkpoint = part.restore(like)
        for skipped in checkpoint.skipped:
            warnings.warn(f"a damaged checkpoint is left out: {skipped}", stacklevel=2)
        return checkpoint.state["state"], Rows(*checkpoint.state["rows"])
    state = run.init(place.points(work.points))
    _checkpoint(part, number, 0, rows, state)
    return state, rows


def _checkpoint(part: Part, number: int, chunk: int, rows: Rows, state: PyTree) -> None:
    part.checkpoint({"combination": number, "chunk": chunk}, {"rows": rows, "state": state})


def _going(run: programs.Programs, state: PyTree, rows: Rows) -> np.ndarray:
    """Which rows go on: those of runs that have neither diverged nor been stopped."""
    going = np.asarray(run.alive(state)) & (rows.owner >= 0)
    return going & (rows.stopped_at[np.maximum(rows.owner, 0)] < 0)


def _compacted(
    run: programs.Programs, place: programs.Layout, state: PyTree, rows: Rows, going: np.ndarray
) -> tuple[PyTree, Rows, jax.Array]:
    """Runs that go on in front, on each device, if that saves a batch; and which go on."""
    needed = -(-going.sum(1) // place.width)
    last = (going * np.arange(1, going.shape[1] + 1)).max(1)
    if (needed < -(-last // place.width)).any():
        order = np.argsort(~going, axis=1, kind="stable")
        ordered = np.take_along_axis(rows.owner.reshape(going.shape), order, 1).ravel()
        going, rows = np.take_along_axis(going, order, 1), rows._replace(owner=ordered)
        order = jax.device_put(order.astype(np.int32).ravel(), place.sharding)
        state = run.permute(state, order)
    return state, rows, jax.device_put(going.ravel(), place.sharding)


def _stopped(sweep: Sweep, number: int, records: int, rows: Rows, alive: np.ndarray) -> Rows:
    """Ask which runs need not go on; a run that has diverged cannot be stopped any more."""
    if sweep.stop is None:
        return rows
    plan = sweep.part.plan
    recorded = sweep.part.recorded(number, records)
    steps = np.arange(records) * plan.stride
    hopeless = np.asarray(sweep.stop(steps, recorded))
    if hopeless.shape != alive.shape or hopeless.dtype != bool:
        raise ValueError(
            f"`stop` must return a boolean for each of the {len(alive)} runs, got "
            f"{hopeless.dtype} of shape {hopeless.shape}"
        )
    new = hopeless & alive & (rows.stopped_at < 0)
    return rows._replace(stopped_at=np.where(new, records * plan.stride, rows.stopped_at))


def _finish(part: Part, number: int, run: programs.Programs, state: PyTree, rows: Rows) -> None:
    final = {name: rows.of_runs(values) for name, values in run.finish(state).items()}
    diverged = ~rows.of_runs(run.alive(state)) | np.asarray(final.get("diverged", False), bool)
    status = np.where(rows.stopped_at >= 0, _STOPPED, np.where(diverged, _DIVERGED, _FINISHED))
    final |= {"status": status.astype(np.int8), "stopped_at": rows.stopped_at}
    wanted = part.plan.combinations[number].variables
    part.write_final(number, {name: final[name] for name in final if name in wanted})


def _cut(rows: Rows, values: Any, records: int) -> np.ndarray:
    """The records of a chunk, run by run; blank from where a run was stopped."""
    trace = rows.of_runs(values)[:, :records]
    blank = np.nan if trace.dtype.kind == "f" else 0
    trace[rows.stopped_at >= 0] = blank
    return trace


class _Pacer:
    """How fast it goes, and so how long it will take; what is compiled does not count."""

    def __init__(self, sweep: Sweep, position: Mapping[str, int]):
        self.sweep = sweep
        self.plan = sweep.part.plan
        self.before = self._steps(position)
        self.seconds = 0.0

    def _steps(self, position: Mapping[str, int]) -> int:
        """Done, summed over the combinations."""
        within = min(position["chunk"] * self.plan.chunk, self.plan.records) * self.plan.stride
        return position["combination"] * self.plan.steps + within

    def progress(
        self, position: Mapping[str, int], trace: Mapping[str, np.ndarray], alive: Any
    ) -> Progress:
        """What to tell after a chunk."""
        plan, work = self.plan, self.sweep.work[position["combination"]]
        done, total = self._steps(position), plan.steps * len(plan.combinations)
        end = min(position["chunk"] * plan.chunk, plan.records)
        records = next((values.shape[1] for values in trace.values()), 0)
        return Progress(
            plan.combinations[position["combination"]].static,
            work.points,
            np.arange(end - records, end) * plan.stride,
            trace,
            np.ones(work.runs, bool) if alive is None else alive,
            done,
            total,
            work.runs,
            *pace(done - self.before, work.runs, self.seconds, total - done),
            unit=getattr(work.traced.run, "unit", "step"),
        )


@contextlib.contextmanager
def _interruptible(part: Part) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C (or SIGTERM) wait for the end of a chunk, if there is a folder to resume from.

    A second one does not wait.
    """
    pending: list[int] = []

    def remember(number: int, frame: Any) -> None:
        signal.signal(number, old[number])
        pending.append(number)
        print("\nstopping when this chunk is written; again: at once", file=sys.stderr)

    def interrupted() -> None:
        if pending:
            assert part.folder is not None
            raise KeyboardInterrupt(
                f"stopped after a chunk; all until there is safe in '{part.folder.parent.parent}': "
                "run the same again to resume"
            )

    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if on_main and part.folder is not None else ()
    old: dict[int, Any] = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield interrupted
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
