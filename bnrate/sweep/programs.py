"""How functions of one run become compiled programs of many, on all devices of this process.

Every device holds the states of its runs, row by row, and takes them in batches of `width`.  In a
batch, a loop over the records ends as soon as none of its runs is alive.  How many batches and
records there are is traced: one compilation serves every chunk, short or long.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bnrate.sweep.runs import Traced

_RUNS = jax.sharding.PartitionSpec("runs")
_AUTO = jax.sharding.AxisType.Auto


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to execute runs: it changes the speed, and the last digits.

    Attributes:
      width: runs that a device computes together (vmapped); 1 is one after the other.
      options: of the compiler, name and value.
    """

    width: int
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As the user reads it."""
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        together = "one at a time" if self.width == 1 else f"{self.width} at a time"
        return together + (f" ({options})" if options else "")

    def to_json(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Way":
        """What `to_json` gave."""
        return Way(document["width"], tuple((name, value) for name, value in document["options"]))


class Layout(NamedTuple):
    """Where the runs lie: row r of the state belongs to run `owner[r]`.

    Neighbouring runs, alike in their rates and their fate, are dealt to different devices.  Rows
    that are left over are filled with copies, and `owner` is -1 there.
    """

    mesh: jax.sharding.Mesh
    width: int
    owner: np.ndarray

    @property
    def rows(self) -> int:
        """Rows of each device."""
        return len(self.owner) // self.mesh.size

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """Of every leaf of the state."""
        return jax.sharding.NamedSharding(self.mesh, _RUNS)

    def points(self, points: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """The points of the grid, row by row, on their devices."""
        row = np.maximum(self.owner, 0)
        cast = {n: v.astype(jax.dtypes.canonicalize_dtype(v.dtype)) for n, v in points.items()}
        return {name: jax.device_put(v[row], self.sharding) for name, v in cast.items()}

    def like(self, state: PyTree) -> PyTree:
        """The shapes and places of the states of all rows, from those of one run."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (len(self.owner), *leaf.shape), leaf.dtype, sharding=self.sharding
            ),
            state,
        )


def layout(runs: int, width: int, devices: Sequence[Any]) -> Layout:
    """Deal the runs to the devices, each a whole number of batches."""
    mesh = jax.make_mesh((len(devices),), ("runs",), (_AUTO,), devices=devices)
    share = -(-runs // len(devices))
    rows = -(-share // width) * width
    dealt = np.arange(rows * len(devices)).reshape(rows, len(devices)).T.ravel()
    return Layout(mesh, width, np.where(dealt < runs, dealt, -1))


class Programs(NamedTuple):
    """The small functions of a combination, compiled when they are called first.

    Attributes:
      init: points -> states.
      finish: states -> final values.
      alive: states -> booleans.
      permute: (states, new order within each device) -> states.  The states given are used up.
    """

    init: Callable[..., Any]
    finish: Callable[..., Any]
    alive: Callable[..., Any]
    permute: Callable[..., Any]


def compiled_advance(traced: Traced, place: Layout, way: Way, records: int) -> Any:
    """Compile the one program that takes the time.

    It takes states, which of them are to go on, and the records; it gives states and records.  The
    states given are used up.

    Raises:
      ValueError: the compiler does not know an option; one batch does not fit in the memory.
    """
    going = jax.ShapeDtypeStruct(place.owner.shape, jnp.bool_, sharding=place.sharding)
    bound = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = jax.jit(
        jax.shard_map(
            functools.partial(_advance_rows, traced, way.width, records),
            mesh=place.mesh,
            in_specs=(_RUNS, _RUNS, jax.sharding.PartitionSpec()),
            out_specs=_RUNS,
            check_vma=False,
        ),
        donate_argnums=0,
    ).lower(place.like(traced.state), going, bound)
    return lowered.compile(dict(way.options) or None)


def programs(traced: Traced, place: Layout) -> Programs:
    """All functions of a combination but `advance`."""

    def one_by_one(f: Callable[[Any], Any]) -> Callable[..., Any]:
        return placed(functools.partial(jax.lax.map, f), place.mesh)

    def permuted(state: PyTree, order: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[order], state)

    return Programs(
        one_by_one(traced.init),
        one_by_one(traced.finish),
        placed(jax.vmap(traced.alive), place.mesh),
        placed(permuted, place.mesh, donate_argnums=0),
    )


def placed(f: Callable[..., Any], mesh: jax.sharding.Mesh, **options: Any) -> Callable[..., Any]:
    """A function of rows, jitted, that each device applies to its own."""
    return jax.jit(
        jax.shard_map(f, mesh=mesh, in_specs=_RUNS, out_specs=_RUNS, check_vma=False), **options
    )


def needed_bytes(advance: Any) -> int:
    """What a compiled program needs on each device, by the compiler's account."""
    account = advance.memory_analysis()
    if account is None:
        return 0
    return (
        account.argument_size_in_bytes
        + account.output_size_in_bytes
        + account.temp_size_in_bytes
        - account.alias_size_in_bytes
    )


def scratch_bytes(advance: Any) -> int:
    """What of it is needed only while a batch is computed."""
    account = advance.memory_analysis()
    return 0 if account is None else account.temp_size_in_bytes


def free_bytes(device: Any) -> float:
    """What a device has left; host devices share the memory of the machine equally."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if device.platform != "cpu" or not meminfo.exists():
        return math.inf
    kib = dict(line.split(":") for line in meminfo.read_text().splitlines())["MemAvailable"]
    return int(kib.split()[0]) * 1024 / len(jax.local_devices(backend="cpu"))


def _advance_rows(
    traced: Traced, width: int, records: int, state: PyTree, going: Array, bound: Array
) -> tuple[PyTree, PyTree]:
    """A device's rows, batch after batch, up to the last that goes on; the rest is blank."""
    rows = jax.tree.leaves(state)[0].shape[0]
    blank = jax.tree.map(
        lambda leaf: _blank((rows, records, *leaf.shape), leaf.dtype), traced.record
    )

    def rows_of(b: Array, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, b * width, width), tree)

    def take(b: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        states, traces = carry
        batch = rows_of(b, states), rows_of(b, going)
        batch, trace = _advance_batch(traced, width, records, *batch, bound)
        return jax.tree.map(
            lambda leaf, part: jax.lax.dynamic_update_slice_in_dim(leaf, part, b * width, 0),
            (states, traces),
            (batch, trace),
        )

    last = jnp.max(jnp.where(going, jnp.arange(1, rows + 1), 0))
    return jax.lax.fori_loop(0, -(-last // width), take, (state, blank))


def _advance_batch(
    traced: Traced, width: int, records: int, state: PyTree, going: Array, bound: Array
) -> tuple[PyTree, PyTree]:
    """Up to `bound` records of a batch, while a run of it lives: is to go on, and is alive.

    The others keep their state and record blanks, so that no run's end depends on its neighbours.

    A batch of one is computed without vmap: its loops and branches stay what they are.
    """

    def batched(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if width > 1:
            return jax.vmap(f)
        return lambda x: jax.tree.map(lambda y: y[None], f(jax.tree.map(lambda y: y[0], x)))

    alive, advance = batched(traced.alive), batched(traced.advance)
    trace = jax.tree.map(
        lambda leaf: _blank((records, width, *leaf.shape), leaf.dtype), traced.record
    )

    def some_live(carry: tuple[Array, PyTree, PyTree]) -> Array:
        i, state, _ = carry
        return (i < bound) & (going & alive(state)).any()

    def record(carry: tuple[Array, PyTree, PyTree]) -> tuple[Array, PyTree, PyTree]:
        i, state, trace = carry
        living = going & alive(state)
        after, now = advance(state)
        if width > 1:  # a batch of one is here only if it lives
            after = jax.tree.map(functools.partial(_where, living), after, state)
            blanks = jax.tree.map(lambda leaf: _blank(leaf.shape, leaf.dtype), now)
            now = jax.tree.map(functools.partial(_where, living), now, blanks)
        trace = jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0), trace, now
        )
        return i + 1, after, trace

    start = jnp.zeros((), jnp.int32)
    _, state, trace = jax.lax.while_loop(some_live, record, (start, state, trace))
    return state, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), trace)


def _where(living: Array, new: Array, old: Array) -> Array:
    """The one for the living, the other for the rest."""
    return jnp.where(living.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _blank(shape: tuple[int, ...], dtype: Any) -> Array:
    """What stands where nothing was computed: NaN, or 0 where there is none."""
    return jnp.full(shape, jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)
