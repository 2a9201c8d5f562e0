"""Which way to execute runs is the fastest here: measured, not guessed.

A way is timed on a few records of the very runs.  The search starts from what is usually best on
the platform and tries the compiler's options and other widths as long as they gain, but spends no
more than a tenth of what the sweep will take.  The choice is remembered in the user's cache folder.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import bnrate
from bnrate.sweep import caching, programs
from bnrate.sweep.programs import Layout, Way
from bnrate.sweep.runs import Traced

_BUDGET = 0.1  # of the time that the sweep will take
_GAIN = 0.95  # another way must take less than this share of the time
# Beyond its caches a CPU gains nothing from more width: these bytes, and so many times what the
# start needs.
_CACHE, _MEMORY = 2**20, 2
_SECONDS, _REPEATS = 0.1, 5
_OPTIONS = {
    # Elementwise work around matrix products and convolutions on all threads of the device.
    "cpu": (("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_ELTWISE"),),
}


class Chosen(NamedTuple):
    """A way, the program compiled in it, and how it was found, in words."""

    way: Way
    place: Layout
    advance: Any
    how: str


class Work(NamedTuple):
    """What there is to execute: the runs of one combination on the devices of this process.

    Attributes:
      traced: the run.
      points: of all runs, by name.
      devices: that share them.
      chunk: records of a chunk.
      records: of a run.
    """

    traced: Traced
    points: Mapping[str, np.ndarray]
    devices: Sequence[Any]
    chunk: int
    records: int

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(next(iter(self.points.values())))

    @property
    def share(self) -> int:
        """Runs of each device."""
        return -(-self.runs // len(self.devices))


def compiled(work: Work, way: Way, how: str = "as asked for") -> Chosen:
    """Compile the runs in one way.

    Raises:
      ValueError: they do not fit in the memory.
    """
    chosen = _compiled(work, way, how)
    needed, free = programs.needed_bytes(chosen.advance), programs.free_bytes(work.devices[0])
    if needed > free:
        raise ValueError(
            f"{work.share} runs, {way}, need {needed / 2**30:.2f} GiB on each device, and "
            f"{free / 2**30:.2f} GiB are free; make the network, the batch or the width smaller, "
            "record less at a time (chunk), or spread the runs over more devices or shards"
        )
    return chosen


def narrowed(work: Work, chosen: Chosen, going: int) -> Chosen:
    """The same with half the width, or a quarter ..., where `going` runs on a device still fit.

    The rows stay where they are; one batch is enough for those that go on.
    """
    width = chosen.place.width
    while width // 2 >= max(1, going):
        width //= 2
    if width == chosen.place.width:
        return chosen
    place, way = chosen.place._replace(width=width), Way(width, chosen.way.options)
    advance = programs.compiled_advance(work.traced, place, way, work.chunk)
    return Chosen(way, place, advance, chosen.how)


def widest(work: Work) -> Chosen:
    """Compile for as many runs at a time as fit in the memory.

    Raises:
      ValueError: not even one at a time does.
    """
    width, free = work.share, programs.free_bytes(work.devices[0])
    while width > 1:
        try:
            chosen = _compiled(work, Way(width), "all that fit in the memory")
            needed = programs.needed_bytes(chosen.advance)
        except jax.errors.JaxRuntimeError as error:  # some compilers say so themselves
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = math.inf
        else:
            if needed <= free:
                return chosen
        width = max(1, min(width // 2, int(width * free / needed)))
    return compiled(work, Way(1), "all that fit in the memory")


def fastest(work: Work) -> Chosen:
    """Measure, within the budget, and take the fastest way that fits in the memory.

    Raises:
      ValueError: not even one run at a time fits.
    """
    key = _key(work)
    known = caching.ways().get(key)
    if known is not None:
        # It may not fit any more: then measure again.
        with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):
            return compiled(work, Way.from_json(known), "the fastest when measured before")
    search = _Search(work)
    chosen = search.run()
    if search.complete and search.tried:
        caching.remember_way(key, chosen.way.to_json())
    return chosen


class _Search:
    """Climb from one way to the next as long as it gains and the budget lasts."""

    def __init__(self, work: Work):
        self.work = work
        self.complete = True
        self.tried: list[str] = []
        self.start = time.perf_counter()
        on_cpu = work.devices[0].platform == "cpu"
        self.best = compiled(work, Way(1)) if on_cpu else widest(work)
        needed = programs.needed_bytes(self.best.advance)
        self.most = max(_CACHE, _MEMORY * needed) if on_cpu else math.inf
        self.compiling = time.perf_counter() - self.start
        # One batch on each device, which is repeated where more rows are wanted.
        place = self.best.place
        self.state = _laid_out(place.mesh, place.width)(_state(work, place))
        self.records = self._enough()
        # What the sweep takes, and what it costs to compare another way.
        once = self._seconds(self.best)
        self.total = once / self.records * work.share * work.records
        self.comparing = 2 * _REPEATS * once * self.best.way.width

    def run(self) -> Chosen:
        """The best way found."""
        for option in _options(self.work.devices):
            self._try(Way(self.best.way.width, (option,)))
        for narrower in (False, True):
            while self._try(Way(self._next(narrower), self.best.way.options)):
                pass
        others = f", against {'; '.join(self.tried)}" if self.tried else ""
        if not self.complete:
            how = "the usual; measuring would cost more"
        else:
            how = "the fastest measured" if self.tried else "the usual; no other promises more"
        return self.best._replace(how=how + others)

    def _next(self, narrower: bool) -> int:
        width = self.best.way.width
        return max(1, width // 4) if narrower else min(self.work.share, 4 * width)

    def _try(self, way: Way) -> bool:
        """Whether another way is better; it is then the best."""
        if way == self.best.way or str(way) in self.tried or not self.complete:
            return False
        if self._expected_bytes(way.width) > self.most:
            return False
        spent = time.perf_counter() - self.start
        if spent + self.compiling + self.comparing > _BUDGET * self.total:
            self.complete = False
            return False
        self.tried.append(str(way))
        try:
            other = compiled(self.work, way)
        except (jax.errors.JaxRuntimeError, ValueError):  # an unknown option; too little memory
            return False
        times = [(self._seconds(self.best), self._seconds(other)) for _ in range(_REPEATS)]
        old, new = map(min, zip(*times, strict=True))
        if new >= _GAIN * old:
            return False
        self.tried[-1] = str(self.best.way)
        self.best = other
        return True

    def _expected_bytes(self, width: int) -> float:
        """What another width will need: as many times the scratch memory, and the same states."""
        scratch = programs.scratch_bytes(self.best.advance)
        rest = programs.needed_bytes(self.best.advance) - scratch
        return rest + scratch * width / self.best.way.width

    def _enough(self) -> int:
        """Records of a batch that take long enough to be timed."""
        self._seconds(self.best, 1)
        once = self._seconds(self.best, 1) * self.best.way.width
        return max(1, min(self.work.chunk, round(_SECONDS / once)))

    def _seconds(self, one: Chosen, records: int | None = None) -> float:
        """Of one run and `records` records, from one batch on each device."""
        rows, width, devices = one.place.rows, one.way.width, one.place.mesh.size
        state = _laid_out(one.place.mesh, rows)(self.state)
        going = jax.device_put(np.tile(np.arange(rows) < width, devices), one.place.sharding)
        bound = jnp.int32(self.records if records is None else records)
        jax.block_until_ready(state)
        start = time.perf_counter()
        jax.block_until_ready(one.advance(state, going, bound))
        return (time.perf_counter() - start) / width


def _options(devices: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """Which may help: a host device for each core has no other threads to give work to."""
    platform = devices[0].platform
    each_a_core = platform == "cpu" and len(devices) >= (os.cpu_count() or 1)
    return () if each_a_core else _OPTIONS.get(platform, ())


def _compiled(work: Work, way: Way, how: str) -> Chosen:
    place = programs.layout(work.runs, way.width, work.devices)
    return Chosen(way, place, programs.compiled_advance(work.traced, place, way, work.chunk), how)


def _state(work: Work, place: Layout) -> PyTree:
    return programs.programs(work.traced, place).init(place.points(work.points))


@functools.cache
def _laid_out(mesh: jax.sharding.Mesh, rows: int) -> Callable[[PyTree], PyTree]:
    """A copy of each device's first states, as many as another layout has rows."""

    def some(leaf: jax.Array) -> jax.Array:
        return leaf[np.arange(rows) % leaf.shape[0]]

    return programs.placed(lambda state: jax.tree.map(some, state), mesh)


def _key(work: Work) -> str:
    """The problem, the devices and the versions."""
    said = [work.traced.fingerprint, work.devices[0].device_kind, len(work.devices), work.share]
    said += [
        work.chunk,
        os.cpu_count(),
        bnrate.__version__,
        jax.__version__,
        importlib.metadata.version("jaxlib"),
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]
