"""A grid of runs in one compiled program per static combination, on all devices.

A sweep takes any run (see `Run`) and knows nothing of training.  Axes of numbers are traced: no
compilation per rate or seed.  Axes of strings are static: the run is made anew for each value.

    >>> class Quadratic:
    ...     stride, dims, coords = 1, {"loss": ()}, {}
    ...     def init(self, point): return {"w": 1 + 0 * point["rate"], "rate": point["rate"]}
    ...     def advance(self, s, records):
    ...         def step(s, _): return {**s, "w": s["w"] * (1 - s["rate"])}, {"loss": s["w"] ** 2}
    ...         return jax.lax.scan(step, s, length=records)
    ...     def finish(self, s): return {"final": s["w"] ** 2}
    >>> ds = run(Quadratic, {"rate": [0.5, 1.0, 3.0]}, steps=4)
    >>> ds["loss"].dims, ds["final"].values.tolist()
    (('rate', 'step'), [0.00390625, 0.0, 256.0])
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

EXECUTORS = ("map", "vmap")
_CHUNKS = 10
_AUTO = jax.sharding.AxisType.Auto


@runtime_checkable
class Run(Protocol):
    """What a sweep asks of a run: pure functions for one point of the grid, and static names."""

    @property
    def init(self) -> Callable[[dict[str, Any]], Any]:
        """From a point, a scalar by axis, to a state."""
        ...

    @property
    def advance(self) -> Callable[[Any, int], tuple[Any, dict[str, Any]]]:
        """From a state and a number of records, over `records * stride` steps, to state and trace.

        The trace is a dict of arrays whose first axis is the record.
        """
        ...

    @property
    def finish(self) -> Callable[[Any], dict[str, Any]]:
        """From a state to the final values by name."""
        ...

    @property
    def stride(self) -> int:
        """Steps from one record to the next."""
        ...

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the axes of each traced array, after the record's."""
        ...

    @property
    def coords(self) -> Mapping[str, tuple[str, ...]]:
        """The entries along these axes."""
        ...


def run(
    make: Callable[..., Run],
    grid: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    steps: int,
    chunk: int | None = None,
    executor: str = "map",
    devices: Sequence[Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "xr.Dataset":
    """Run every point of a grid.

    Args:
      make: `make(**static)` returns the run for one combination of the axes of strings.
      grid: axes by name; strings are static, numbers are traced.
      steps: of each run; a multiple of the run's stride.
      chunk: steps from one report of progress to the next; default a tenth.
      executor: "map" takes one run after the other on each device, "vmap" all together.
      devices: the runs are split evenly over them; default all that JAX has.  A CPU is one device,
        unless `jax.config.update("jax_num_cpu_devices", os.cpu_count())` comes before all use of
        JAX; then its cores share the work.
      progress: called on the host after each chunk with the steps done and to do, of all
        combinations.

    Returns:
      A Dataset whose dimensions are the axes of the grid, then `step` for what was recorded, then
      the run's own.  An entry that a combination lacks is NaN.  The attributes say how it was run.

    Raises:
      ValueError: an axis that is empty, repeats a value (as JAX sees it) or mixes kinds; no axis of
        numbers; an unknown executor; steps or a chunk that are not a positive multiple of the
        stride.
    """
    if not callable(make):
        raise ValueError(f"make must be a function that returns a run, got {type(make).__name__}")
    axes = {name: _axis(name, values) for name, values in grid.items()}
    if executor not in EXECUTORS:
        raise ValueError(f"unknown executor {executor!r}; choose one of {', '.join(EXECUTORS)}")
    static = {name: values for name, values in axes.items() if values.dtype.kind == "U"}
    traced = {name: values for name, values in axes.items() if name not in static}
    if "step" in axes:
        raise ValueError("the name 'step' is taken by what is recorded; name the axis differently")
    if not traced:
        raise ValueError(f"the grid needs an axis of numbers, it has {', '.join(axes) or 'none'}")
    devices = list(jax.devices() if devices is None else devices)
    place = _Placement(
        executor, jax.make_mesh((len(devices),), ("runs",), (_AUTO,), devices=devices)
    )

    combinations = [
        make(**dict(zip(static, map(str, values), strict=True)))
        for values in itertools.product(*static.values())
    ]
    strides = {one.stride for one in combinations}
    if len(strides) > 1:
        raise ValueError(f"the runs record with different strides {strides}; use one")
    chunks = _chunks(steps, chunk, combinations[0].stride)
    parts = []
    for number, one in enumerate(combinations):

        def report(done: int, before: int = number * steps) -> None:
            progress(before + done, len(combinations) * steps)

        final, trace = _execute(one, traced, chunks, place, report)
        parts.append(_dataset(one, traced, steps, final, trace))
    ds = _combine(parts, static).transpose(*axes, "step", ...)
    chunk = chunks[0] * combinations[0].stride
    return ds.assign_attrs(executor=executor, devices=len(devices), chunk=chunk)


class _Placement(NamedTuple):
    """How a function of one run becomes one of many: on which devices, and in what way."""

    executor: str
    mesh: jax.sharding.Mesh

    def __call__(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        batched = jax.vmap(f) if self.executor == "vmap" else functools.partial(jax.lax.map, f)
        spec = jax.sharding.PartitionSpec("runs")
        return jax.jit(
            jax.shard_map(
                batched, mesh=self.mesh, in_specs=(spec,), out_specs=spec, check_vma=False
            )
        )


def _execute(
    one: Run,
    traced: Mapping[str, np.ndarray],
    chunks: Sequence[int],
    place: _Placement,
    report: Callable[[int], None],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Final values, and traces with the records on the second axis; runs on the first."""
    mesh = np.meshgrid(*traced.values(), indexing="ij")
    runs = mesh[0].size
    # Runs that do not divide by the devices are filled up with copies of the last one.
    filled = np.minimum(np.arange(-(-runs // place.mesh.size) * place.mesh.size), runs - 1)
    points = {
        name: jnp.asarray(values.ravel()[filled]) for name, values in zip(traced, mesh, strict=True)
    }
    advance = {
        records: place(lambda state, records=records: one.advance(state, records))
        for records in set(chunks)
    }
    state, traces = place(one.init)(points), []
    for number, records in enumerate(chunks, start=1):
        state, trace = advance[records](state)
        traces.append(jax.tree.map(np.asarray, trace))
        report(sum(chunks[:number]) * one.stride)
    final = jax.tree.map(np.asarray, place(one.finish)(state))
    trace = {name: np.concatenate([t[name] for t in traces], axis=1) for name in one.dims}
    return {k: v[:runs] for k, v in final.items()}, {k: v[:runs] for k, v in trace.items()}


def _dataset(
    one: Run,
    traced: Mapping[str, np.ndarray],
    steps: int,
    final: Mapping[str, np.ndarray],
    trace: Mapping[str, np.ndarray],
) -> "xr.Dataset":
    import xarray as xr  # noqa: PLC0415

    shape = tuple(map(len, traced.values()))

    def variable(values: np.ndarray, *more: str):
        return (*traced, *more), values.reshape(*shape, *values.shape[1:])

    variables = {name: variable(values) for name, values in final.items()}
    variables |= {name: variable(trace[name], "step", *dims) for name, dims in one.dims.items()}
    coords = {name: np.asarray(names, str) for name, names in one.coords.items()}
    return xr.Dataset(variables, {**traced, **coords, "step": np.arange(0, steps, one.stride)})


def _combine(parts: Sequence["xr.Dataset"], static: Mapping[str, np.ndarray]) -> "xr.Dataset":
    """Join the static combinations, which may differ in the entries along the runs' own axes."""
    import xarray as xr  # noqa: PLC0415

    entries = {
        name: list(dict.fromkeys(itertools.chain.from_iterable(p[name].values for p in parts)))
        for name in parts[0].coords
    }
    parts = [part.reindex(entries) for part in parts]
    for name, values in reversed(list(static.items())):
        dim = xr.DataArray(values, dims=name, name=name)
        batches = [parts[i : i + len(values)] for i in range(0, len(parts), len(values))]
        parts = [
            xr.concat(batch, dim, join="exact", coords="minimal", compat="equals")
            for batch in batches
        ]
    return parts[0]


def _chunks(steps: int, chunk: int | None, stride: int) -> list[int]:
    """The records of each chunk."""
    if chunk is None:
        chunk = stride * max(1, -(-steps // (_CHUNKS * stride)))
    for name, value in (("steps", steps), ("chunk", chunk)):
        if value < 1 or value % stride:
            raise ValueError(
                f"{name} must be a positive multiple of the stride {stride}, got {value}"
            )
    whole, remainder = divmod(steps, chunk)
    return [chunk // stride] * whole + [remainder // stride] * (remainder > 0)


def _axis(name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The values of an axis, after a check that JAX can tell them apart."""
    axis = np.asarray(values)
    strings = sum(isinstance(value, str) for value in values)
    if axis.ndim != 1 or axis.dtype.kind not in "fiuU" or strings not in (0, axis.size):
        raise ValueError(f"axis '{name}' must be a list of numbers or of strings, got {values!r}")
    if axis.size == 0:
        raise ValueError(f"axis '{name}' must be a list of one value or more, got none")
    if strings:
        seen = axis
    else:
        dtype = jax.dtypes.canonicalize_dtype(axis.dtype)
        with np.errstate(over="ignore"):
            seen = axis.astype(dtype)
        whole = axis.dtype.kind in "iu"
        if not (np.array_equal(seen, axis) if whole else np.isfinite(seen).all()):
            raise ValueError(f"axis '{name}' has values that {dtype} cannot hold: {values!r}")
    if len(np.unique(seen)) < len(axis):
        raise ValueError(f"axis '{name}' repeats a value (as {seen.dtype}): {values!r}")
    return axis
