"""A sweep at work: each process keeps the rows of its own runs, and lets go of nothing it has.

A part is a folder `.sweep/part-i-of-n` in that of the result: the plan, the rows as Zarr arrays
(runs, records, ...) in which every write fills whole chunks, and checkpoints.  Rows are written
first and the checkpoint after, so that whatever is lost is computed again, to the same bits.
Without a folder a part is arrays in memory.
"""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from bnrate.results import assembly, checkpoints, folders, locking, plans
from bnrate.results.plans import Combination, Plan

if TYPE_CHECKING:
    import xarray as xr

_PLAN, _WAYS, _ROWS, _CHECKPOINTS, _DONE = (
    "plan.json",
    "ways.json",
    "rows.zarr",
    "checkpoints",
    "done",
)
_CHUNK_BYTES = 32 * 2**20
_POLL_SECONDS = 0.2
_START_SECONDS = 60  # until the other processes of a job have begun


class Share(NamedTuple):
    """Which of `count` equal shares of the runs: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1

    def runs(self, of: int) -> np.ndarray:
        """The numbers of the runs in this share."""
        return np.arange(self.index, of, self.count)

    def __str__(self) -> str:
        """The name of its folder."""
        return f"part-{self.index}-of-{self.count}"


class Part(NamedTuple):
    """The rows of one share, and how far they have come.

    Attributes:
      plan: of the whole sweep.
      share: which runs.
      folder: where; None for a part in memory.
      rows: for each combination its arrays by name, of NumPy or Zarr.
      notes: how the combinations of this call are executed.
    """

    plan: Plan
    share: Share
    folder: Path | None
    rows: list[Any]
    notes: dict[str, Any]

    def write(self, combination: int, trace: Mapping[str, np.ndarray], start: int) -> None:
        """Put the records of a chunk, runs first, in their place."""
        with self.readable_errors():
            for name, values in trace.items():
                self.rows[combination][name][:, start : start + values.shape[1]] = values

    def write_final(self, combination: int, values: Mapping[str, np.ndarray]) -> None:
        """Put the final values of all runs in their place."""
        with self.readable_errors():
            for name, array in values.items():
                self.rows[combination][name][:] = array

    def read(self, combination: int) -> dict[str, np.ndarray]:
        """All rows of a combination, as far as they are written."""
        return {
            name: np.asarray(self.rows[combination][name][:])
            for name in self.plan.combinations[combination].variables
        }

    def checkpoint(self, position: Mapping[str, Any], state: PyTree) -> None:
        """Remember where the sweep is, and the state to go on from."""
        if self.folder is not None:
            checkpoints.save(self.folder / _CHECKPOINTS, position, state)

    def position(self) -> Mapping[str, Any] | None:
        """Where the sweep was when it stopped; None at the start."""
        return None if self.folder is None else checkpoints.latest(self.folder / _CHECKPOINTS)

    def restore(self, like: PyTree) -> PyTree:
        """The state there, in the shapes, dtypes and places of `like`."""
        assert self.folder is not None
        return checkpoints.restore(self.folder / _CHECKPOINTS, like)

    def ways(self) -> dict[str, Any]:
        """How the combinations that were begun are executed, by number."""
        return dict(self.notes) if self.folder is None else _notes(self.folder)

    def remember_way(self, combination: int, way: Mapping[str, Any], words: str) -> None:
        """Note how a combination is executed, before it begins."""
        self.notes[str(combination)] = {**way, "words": words}
        if self.folder is not None:
            with self.readable_errors():
                _write_whole(self.folder / _WAYS, json.dumps({**_notes(self.folder), **self.notes}))

    @contextlib.contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Say of a failed write what is safe and what to do."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"could not write to '{self.folder}': {error}; what was finished before is safe: "
                "make room, then run the same again to resume"
            ) from error


def in_memory(plan: Plan, share: Share = Share()) -> Part:  # noqa: B008 (an immutable value)
    """A part that is not kept."""
    runs = len(share.runs(plan.runs))
    rows = [_blank(plan, combination, runs) for combination in plan.combinations]
    return Part(plan, share, None, rows, {})


@contextlib.contextmanager
def opened(
    out: str | Path, plan: Plan, share: Share, *, resume: bool | str, overwrite: bool
) -> Iterator[Part]:
    """The part in a folder, new or taken up again, locked against a second writer.

    Raises:
      ValueError: the folder cannot be written; another process writes there; it holds another
        result, or another sweep at work, or one of a newer version.
    """
    out = Path(out).resolve()
    folder = out / folders.WORK / str(share)
    try:
        folders.check_target(out, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to '{out}': {error.strerror}; {folders.ADVICE}") from error
    with locking.locked(folder):
        for other in _found(out):
            # Each process clears its own place; those of another split fall to the first.
            split = _share(other).count != share.count and share.index == 0
            if (other == folder or split) and not _continues(other, plan, share, resume, overwrite):
                _discard(other)
        if not (folder / _PLAN).exists():
            _create(folder, plan, share)
        part = _open(folder, read_plan(folder))
        try:
            yield part
        except BaseException:
            if part.position() is None:  # nothing is lost, and the folder is free for another try
                _discard(folder)
            raise


def finished(out: str | Path, plan: Plan) -> "xr.Dataset | None":
    """The result of this very sweep, if the folder has it already; None if it has none.

    Raises:
      ValueError: it has the result of another sweep.
    """
    if not (Path(out) / folders.STORE).is_dir():
        return None
    ds = folders.load(out)
    there = json.loads(ds.attrs.get("identity", "{}"))
    if there == plan.identity:
        return ds
    changed = differences(there, plan.identity) if there else ["it does not say which"]
    raise ValueError(
        f"'{out}' holds the result of another sweep: {'; '.join(changed)}. "
        f"{folders.ADVICE.capitalize()}, or replace it (--overwrite)"
    )


def finish(out: str | Path, part: Part, *, alone: bool, overwrite: bool) -> "xr.Dataset":
    """Mark a part as done; the first process then waits for the others and merges all parts.

    Args:
      out: folder of the result.
      part: whose rows are all there.
      alone: wait for nobody; the parts are to be merged by a later `merge`.
      overwrite: replace a result that is there.

    Returns:
      The whole result; of a part that is alone, its rows, the others unfinished.

    Raises:
      ValueError: another process has stopped before its part was done; the result cannot be
        written.
    """
    assert part.folder is not None
    with part.readable_errors():
        (part.folder / _DONE).touch()
    work, (index, count) = part.folder.parent, part.share
    if alone and count > 1:
        return together(part.plan, [part])
    if index > 0:
        # The first part's process removes them all when the result is in its place.
        _wait(work, Share(0, count), lambda: not (part.folder / _DONE).exists())
        return folders.load(out)
    for other in (Share(i, count) for i in range(1, count)):
        _wait(work, other, functools.partial(_is_done, work / str(other), part.plan))
    return merge([out], out, overwrite=overwrite)


def _is_done(folder: Path, plan: Plan) -> bool:
    """Whether a part of this very sweep is done, not one that will be discarded yet."""
    return (folder / _DONE).exists() and read_plan(folder).identity == plan.identity


def _wait(work: Path, share: Share, ready: Callable[[], bool]) -> None:
    """Wait for what the process of another part does, as long as it lives."""
    began = time.monotonic()
    while not ready():
        starting = time.monotonic() - began < _START_SECONDS and not (work / str(share)).exists()
        if not starting and not locking.is_locked(work / str(share)) and not ready():
            raise ValueError(
                f"process {share.index} of {share.count} stopped before its part was done; what "
                f"it had is safe in '{work / str(share)}': run the same again to resume"
            )
        time.sleep(_POLL_SECONDS)


def merge(
    sources: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> "xr.Dataset":
    """Put the parts of a sweep, in one folder or several, together as the result in `out`.

    The parts are removed where they lie in `out` itself.

    Raises:
      ValueError: no parts, parts of different sweeps, or some that are missing or not done.
    """
    found = [folder for source in sources for folder in _found(Path(source).resolve())]
    if not found:
        raise ValueError(f"there are no parts of a sweep in {', '.join(map(str, sources))}")
    plan, (_, count) = read_plan(found[0]), _share(found[0])
    for folder in found:
        if read_plan(folder).identity != plan.identity or _share(folder).count != count:
            raise ValueError(f"'{folder}' is part of another sweep than '{found[0]}'")
    done = {_share(folder).index: folder for folder in found if (folder / _DONE).exists()}
    missing = sorted(set(range(count)) - set(done))
    if missing:
        raise ValueError(
            f"part {', '.join(map(str, missing))} of {count} is missing or not done; run its shard "
            f"(--shard {missing[0]}/{count}) and merge again"
        )
    ds = together(plan, [_open(folder, plan) for folder in done.values()])
    with folders.writing(out, overwrite) as scratch:
        folders.save(ds, scratch)
    for folder in found:
        if folder.parent == Path(out).resolve() / folders.WORK:
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        (Path(out) / folders.WORK).rmdir()
    return ds


def together(plan: Plan, parts: Sequence[Part]) -> "xr.Dataset":
    """The Dataset of a sweep from all its parts, done or not."""
    rows = []
    for k, combination in enumerate(plan.combinations):
        whole = _blank(plan, combination, plan.runs)
        for part in parts:
            for name, values in part.read(k).items():
                whole[name][part.share.runs(plan.runs)] = values
        rows.append(whole)
    ways = [part.ways() for part in parts]
    executed = sorted({way["words"] for part in ways for way in part.values()})
    about = {"executed": executed, "identity": json.dumps(plan.identity)}
    return assembly.dataset(plan, rows).assign_attrs(about)


def unfinished(out: str | Path) -> "xr.Dataset":
    """What a sweep at work has so far; NaN for the rest, and "unfinished" in `status`.

    Raises:
      ValueError: no sweep is at work in the folder.
    """
    found = _found(Path(out))
    if not found:
        raise ValueError(f"no sweep is at work in '{out}'")
    plan = read_plan(found[0])
    return together(plan, [_open(folder, plan) for folder in found])


def read_plan(folder: Path) -> Plan:
    """The plan of a part.

    Raises:
      ValueError: it is damaged, or of a newer version.
    """
    try:
        return plans.from_json((folder / _PLAN).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the sweep at work in '{folder}': {error}") from error


def _continues(folder: Path, plan: Plan, share: Share, resume: bool | str, overwrite: bool) -> bool:
    """Whether a part that is there belongs to this sweep; if not, it may be discarded."""
    there, out = read_plan(folder), folder.parent.parent
    changed = differences(there.identity, plan.identity)
    split = _share(folder).count
    if split != share.count:
        changed.append(f"it runs in {share.count} parts, there it was in {split}")
    same_rows = (there.shape, there.combinations) == (plan.shape, plan.combinations)
    same_rows &= split == share.count and there.chunk == plan.chunk
    if resume and (not changed or (resume == "anyway" and same_rows)):
        return True
    if overwrite:
        return False
    if not changed:
        raise ValueError(
            f"'{out}' holds this sweep, unfinished; resume it, or replace it (--overwrite)"
        )
    raise ValueError(
        f"'{out}' holds another sweep, unfinished: {'; '.join(changed)}. "
        f"{folders.ADVICE.capitalize()}, or replace it (--overwrite)"
        + (", or go on regardless (resume='anyway')" if same_rows else "")
    )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    return [
        f"{name} is {here.get(name)!r}, there it was {there.get(name)!r}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


def _found(out: Path) -> list[Path]:
    """The parts in a folder, in order."""
    found = [plan.parent for plan in (out / folders.WORK).glob(f"part-*-of-*/{_PLAN}")]
    return sorted(found, key=_share)


def _share(folder: Path) -> Share:
    _, index, _, count = folder.name.split("-")
    return Share(int(index), int(count))


def _write_whole(file: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def _notes(folder: Path) -> dict[str, Any]:
    file = folder / _WAYS
    return json.loads(file.read_text()) if file.exists() else {}


def _discard(folder: Path) -> None:
    """Remove a part, its plan first: without one, what is left is no part."""
    (folder / _PLAN).unlink()
    for name in (_ROWS, _CHECKPOINTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (_DONE, _WAYS):
        (folder / name).unlink(missing_ok=True)


def _create(folder: Path, plan: Plan, share: Share) -> None:
    """Write the blank rows, and the plan last: with it the part is there."""
    import zarr  # noqa: PLC0415

    runs = len(share.runs(plan.runs))
    try:
        for name in (_ROWS, _CHECKPOINTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for k, combination in enumerate(plan.combinations):
            group = zarr.open_group(folder / _ROWS / str(k), mode="w-")
            for name, shape, dtype in _arrays(plan, combination, runs):
                recorded = combination.variables[name].recorded
                chunks = _chunks(shape, np.dtype(dtype).itemsize, plan.chunk if recorded else 0)
                group.create_array(
                    name, shape=shape, chunks=chunks, dtype=dtype, fill_value=_fill(dtype)
                )
        _write_whole(folder / _PLAN, plans.to_json(plan))
    except OSError as error:
        raise ValueError(f"could not write to '{folder}': {error}; {folders.ADVICE}") from error


def _open(folder: Path, plan: Plan) -> Part:
    import zarr  # noqa: PLC0415

    rows = [
        dict(zarr.open_group(folder / _ROWS / str(k), mode="r+").arrays())
        for k in range(len(plan.combinations))
    ]
    return Part(plan, _share(folder), folder, rows, {})


def _arrays(
    plan: Plan, combination: Combination, runs: int
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each array of a combination."""
    for name, variable in combination.variables.items():
        records = (plan.records,) if variable.recorded else ()
        yield name, (runs, *records, *variable.shape), variable.dtype


def _blank(plan: Plan, combination: Combination, runs: int) -> dict[str, np.ndarray]:
    return {
        name: np.full(shape, _fill(dtype), dtype)
        for name, shape, dtype in _arrays(plan, combination, runs)
    }


def _chunks(shape: tuple[int, ...], itemsize: int, records: int) -> tuple[int, ...]:
    """Whole writes are whole chunks: all runs, or as many as a chunk's size allows."""
    inner = (records, *shape[2:]) if records else shape[1:]
    row = max(1, int(np.prod(inner)) * itemsize)
    return (max(1, min(shape[0], _CHUNK_BYTES // row)), *(max(1, n) for n in inner))


def _fill(dtype: str) -> Any:
    return np.nan if np.dtype(dtype).kind == "f" else np.zeros((), dtype).item()
