"""`run`: from a function that makes runs, and a grid, to a Dataset."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import bnrate
from bnrate import results
from bnrate.results import Combination, Part, Plan, Share, Variable
from bnrate.sweep import callbacks as told
from bnrate.sweep import grids, tuning
from bnrate.sweep.execution import Stop, Sweep, execute
from bnrate.sweep.grids import Axis, Grid
from bnrate.sweep.programs import Way
from bnrate.sweep.runs import Run, Traced, dims_of, storable, trace

if TYPE_CHECKING:
    import xarray as xr

EXECUTORS = ("auto", "map", "vmap")
_CHUNKS = 10


def run(
    make: Callable[..., Run],
    grid: Mapping[str, Axis],
    *,
    steps: int,
    chunk: int | None = None,
    executor: str = "auto",
    width: int | None = None,
    devices: Sequence[Any] | None = None,
    out: str | Path | None = None,
    resume: bool | str = True,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    callbacks: Sequence[Any] = (),
    stop: Stop | None = None,
    config: Mapping[str, Any] | None = None,
    labels: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> "xr.Dataset":
    """Run every point of a grid.

    Args:
      make: `make(**static)` returns the run for one combination of the axes of strings.
      grid: axes by name; strings are static, numbers are traced.  A dict of axes, of equal lengths,
        is one dimension along which they vary together.
      steps: of each run; a multiple of the run's stride.
      chunk: steps from one write, checkpoint and report to the next; default a tenth.
      executor: "map" takes one run after the other on each device, "vmap" as many together as fit
        in the memory; "auto" measures which is faster, and with which options of the compiler.
      width: how many runs a device takes together; for "map" and "vmap".
      devices: the runs are dealt to them; default all of this process, or as many as there are
        runs.  A CPU is one device, unless `jax.config.update("jax_num_cpu_devices",
        os.cpu_count())` comes before all use of JAX; then its cores share the work.
      out: folder of the result.  While the sweep is at work its state is there too, under
        `.sweep`, and Ctrl-C waits for the end of the chunk.  A result of this very sweep that is
        there already is returned as it is.  Without a folder all stays in memory.
      resume: take up what is unfinished in `out`: True if it is the same sweep, in the same
        versions and way; "anyway" if only the rows are the same; False never.
      overwrite: replace what else is in `out`: a result once this one is whole, an unfinished
        sweep at once.
      shard: (i, n): only every n-th run, from the i-th on; needs `out`.  Default, in a job of
        several processes (`jax.distributed`), the share of this one.
      callbacks: told on the host what happens; see `bnrate.sweep.callbacks`.
      stop: (steps so far, records so far by name, runs first) -> for each run whether it need not
        go on, asked after each chunk; off by default, since what it stops, it has judged early.
      config: what else the numbers depend on, as JSON: data, sizes.  It is part of the sweep's
        identity and recorded.
      labels: more coordinates, name -> (dimension, values).
      attrs: of the Dataset, besides those that say how and where it was run.

    Returns:
      A Dataset whose dimensions are the axes of the grid, then `step` for what was recorded, then
      the run's own; `status` says what became of each run.  An entry that a combination lacks is
      NaN.  With a `shard`, the rows of the other shards are "unfinished".

    Raises:
      ValueError: bad input of any kind, before any work: the message says what, and what to do;
        too little memory; a folder that holds something else; an impure run; a full disk.
      KeyboardInterrupt: Ctrl-C, after the chunk.
    """
    if not callable(make):
        raise ValueError(f"make must be a function that returns a run, got {type(make).__name__}")
    told.check(callbacks)
    _check_options(executor, width, resume, stop)
    read = grids.read(grid)
    share = _share(shard, out, read.runs)
    mine = share.runs(read.runs)
    devices = _devices(devices, read.runs)[: len(mine)]
    traced = [trace(make(**static), read.points) for static in read.combinations]
    stride = _stride(traced)
    records = _records(steps, chunk, stride)
    points = {name: values[mine] for name, values in read.points.items()}
    work = [tuning.Work(one, points, devices, records, steps // stride) for one in traced]
    asked = {
        "executor": executor,
        "width": width,
        "devices": len(devices),
        "chunk": records * stride,
    }
    about = {"config": config or {}, "labels": labels or {}, "attrs": attrs or {}}
    plan = _plan(read, traced, steps, asked, stop, devices[0], **_json(about))
    _try_out(plan)
    if out is None:
        part = results.in_memory(plan)
        execute(Sweep(work, _chooser(part, work, executor, width), part, callbacks, stop))
        ds = results.together(plan, [part])
    elif resume and not overwrite and (there := results.finished(out, plan)) is not None:
        return there
    else:
        with results.opened(out, plan, share, resume=resume, overwrite=overwrite) as part:
            execute(Sweep(work, _chooser(part, work, executor, width), part, callbacks, stop))
            ds = results.finish(out, part, alone=shard is not None, overwrite=overwrite)
    told.call(callbacks, "on_end", ds)
    return ds


def run_shard(
    index: int, count: int, make: Callable[..., Run], grid: Mapping[str, Axis], **options: Any
) -> str:
    """One shard of a sweep, for a pool of workers or an array of jobs; picklable, if `make` is.

    For example, with submitit: `pool.map_array(functools.partial(sweep.run_shard, make=make,
    grid=grid, steps=1000, out="runs/mine"), range(8), [8] * 8)`, and then `results.merge`.

    Args:
      index: of this shard, from 0.
      count: of all shards.
      make: as `run` has it.
      grid: as `run` has it.
      **options: as `run` has them; `out` is needed.

    Returns:
      The folder of its rows.

    Raises:
      ValueError: as `run` does.
    """
    run(make, grid, shard=(index, count), **options)
    return str(Path(options["out"]).resolve())


def _chooser(
    part: Part, work: Sequence[tuning.Work], executor: str, width: int | None
) -> Callable[[int], tuning.Chosen]:
    """How to execute each combination: as it was begun; otherwise as asked."""

    def choose(number: int) -> tuning.Chosen:
        begun = part.ways().get(str(number))
        if begun is not None:
            return tuning.compiled(work[number], Way.from_json(begun))
        match executor, width:
            case "auto", _:
                chosen = tuning.fastest(work[number])
            case "vmap", None:
                chosen = tuning.widest(work[number])
            case _:
                width_asked = min(width or 1, work[number].share)
                chosen = tuning.compiled(work[number], Way(width_asked))
        part.remember_way(number, chosen.way.to_json(), f"{chosen.way}: {chosen.how}")
        return chosen

    return choose


def _plan(
    grid: Grid,
    traced: Sequence[Traced],
    steps: int,
    asked: Mapping[str, Any],
    stop: Stop | None,
    device: Any,
    *,
    config: Mapping[str, Any],
    labels: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
) -> Plan:
    """What will be computed."""
    stride = traced[0].run.stride
    return Plan(
        dims=grid.dims,
        traced=grid.traced,
        labels={name: (dim, values) for name, (dim, values) in labels.items()},
        steps=steps,
        stride=stride,
        chunk=asked["chunk"] // stride,
        combinations=tuple(
            _combination(static, one, stop is not None)
            for static, one in zip(grid.combinations, traced, strict=True)
        ),
        identity=_identity(grid, steps, asked, traced, config, stop, device),
        attrs={**results.provenance(config), **asked, **attrs},
    )


def _try_out(plan: Plan) -> None:
    """Put an empty Dataset together, so that names which clash are found before any work."""
    try:
        results.together(dataclasses.replace(plan, steps=plan.stride), [])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"these runs do not make a Dataset: {error}; axes, labels, records and final values "
            "must all have names of their own, and none the name 'step'"
        ) from error


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them, arrays as lists.

    Raises:
      ValueError: one that JSON has no form for.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | range):
            return np.asarray(value).tolist()
        raise ValueError(f"cannot be written as JSON: {value!r}, of type {type(value).__name__}")

    written = {}
    for name, value in values.items():
        try:
            written[name] = json.loads(json.dumps(value, default=plain))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` {error}") from error
    return written


def _check_options(executor: str, width: int | None, resume: bool | str, stop: Stop | None) -> None:
    if executor not in EXECUTORS:
        raise ValueError(f"unknown executor {executor!r}; choose one of {', '.join(EXECUTORS)}")
    if width is not None and executor == "auto":
        raise ValueError("the width is measured with executor 'auto'; give it to 'map' or 'vmap'")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1 run, got {width}")
    if resume not in (True, False, "anyway"):
        raise ValueError(f"resume must be True, False or 'anyway', got {resume!r}")
    if stop is not None and (isinstance(stop, type) or not callable(stop)):
        raise ValueError(f"stop must be a function of steps and records, got {stop!r}")


def _share(shard: tuple[int, int] | None, out: str | Path | None, runs: int) -> Share:
    """The share of this process, by shard or by its place in a job of several."""
    several = shard is None and jax.process_count() > 1
    share = (
        Share(jax.process_index(), jax.process_count()) if several else Share(*(shard or (0, 1)))
    )
    if not 0 <= share.index < share.count:
        raise ValueError(f"shard i/n must have 0 <= i < n, got {share.index}/{share.count}")
    if share.count > runs:
        raise ValueError(
            f"{runs} runs cannot be split into {share.count} parts; take {runs} at most"
        )
    if out is None and (several or shard is not None):
        raise ValueError("several processes share a sweep through a folder: give `out`")
    return share


def _devices(devices: Sequence[Any] | None, runs: int) -> list[Any]:
    if devices is None:
        return jax.local_devices()
    if not 1 <= len(devices) <= runs:
        raise ValueError(f"{runs} runs need 1 to {runs} devices, got {len(devices)}")
    return list(devices)


def _stride(traced: Sequence[Traced]) -> int:
    strides = {one.run.stride for one in traced}
    if len(strides) > 1:
        raise ValueError(f"the runs record with different strides {strides}; use one")
    return strides.pop()


def _records(steps: int, chunk: int | None, stride: int) -> int:
    """The records of a chunk."""
    if stride < 1:
        raise ValueError(f"the runs' stride must be at least 1 step, got {stride}")
    for name, value in (("steps", steps), ("chunk", chunk)):
        if value is None:
            continue
        if not isinstance(value, int | np.integer) or value < 1 or value % stride:
            raise ValueError(
                f"{name} must be a positive multiple of the stride {stride}, got {value}"
            )
    if chunk is None:
        chunk = stride * -(-steps // (_CHUNKS * stride))
    return int(min(chunk, steps)) // stride


def _combination(static: Mapping[str, str], one: Traced, stopping: bool) -> Combination:
    dims = dims_of(one.run, one.record)
    recorded = {
        name: Variable(dims[name], leaf.shape, str(storable(leaf.dtype)), True)
        for name, leaf in one.record.items()
    }
    numbered = dims_of(one.run, one.final)
    final = {
        name: Variable(numbered[name], leaf.shape, str(storable(leaf.dtype)), False)
        for name, leaf in one.final.items()
    }
    final["status"] = Variable((), (), "int8", False)
    if stopping:
        final["stopped_at"] = Variable((), (), "int32", False)
    taken = sorted(
        set(recorded) & set(final) | {"status", "stopped_at"} & set(one.record | one.final)
    )
    if taken:
        raise ValueError(
            f"the run gives '{taken[0]}' twice, or takes a name of the sweep; rename it"
        )
    words = {**getattr(one.run, "words", {}), "status": results.STATUS}
    coords = {name: tuple(entries) for name, entries in one.run.coords.items()}
    return Combination(dict(static), recorded | final, coords, words)


def _said(stop: Stop | None) -> str | None:
    """Which rule of stopping it is: a dataclass says its settings, a function its name."""
    if stop is None:
        return None
    if dataclasses.is_dataclass(stop):
        return repr(stop)
    return getattr(stop, "__qualname__", type(stop).__name__)


def _identity(
    grid: Grid,
    steps: int,
    asked: Mapping[str, Any],
    traced: Sequence[Traced],
    config: Mapping[str, Any],
    stop: Stop | None,
    device: Any,
) -> dict[str, Any]:
    """All that the numbers depend on, in JSON."""
    axes = {
        dim: axis[dim].tolist() if [*axis] == [dim] else {n: v.tolist() for n, v in axis.items()}
        for dim, axis in grid.traced.items()
    }
    identity = {
        "axes": {dim: axes[dim] if dim in axes else grid.static[dim] for dim in grid.dims},
        "order of axes": grid.dims,
        "steps": steps,
        "stride": traced[0].run.stride,
        **asked,
        "early stopping": _said(stop),
        "programs": [one.fingerprint for one in traced],
        "config": dict(config),
        "device": device.device_kind,
        "bnrate": bnrate.__version__,
        "jax": jax.__version__,
    }
    return json.loads(json.dumps(identity))
