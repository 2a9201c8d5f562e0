"""A sweep at work: each process keeps the rows of its own runs, and lets go of nothing it has.

A part is a folder `.sweep/part-i-of-n` in that of the result: the plan, the rows as Zarr arrays
(runs, records, ...) in which every write fills whole chunks, and checkpoints.  Rows are written
first and the checkpoint after, so that whatever is lost is computed again, to the same bits.
Without a folder a part is arrays in memory.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from bnrate.results import checkpoints, folders, locking, plans
from bnrate.results.plans import Combination, Plan

_PLAN, _WAYS, _ROWS, _CHECKPOINTS, _DONE = (
    "plan.json",
    "ways.json",
    "rows.zarr",
    "checkpoints",
    "done",
)
_CHUNK_BYTES = 32 * 2**20
RESUMED = "resumed_anyway"  # what had changed, in the attributes of the result
_RESUME = "what was finished before is safe: make room, then run the same again to resume"
_REPLACE = f"{folders.ADVICE.capitalize()}, or replace it (--overwrite)"


@dataclasses.dataclass(frozen=True, order=True)
class Share:
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
                self._flush(combination, f"{name}/c/*/{start // self.plan.chunk}")

    def write_final(self, combination: int, values: Mapping[str, np.ndarray]) -> None:
        """Put the final values of all runs in their place."""
        with self.readable_errors():
            for name, array in values.items():
                self.rows[combination][name][:] = array
                self._flush(combination, f"{name}/c/*")

    def read(self, combination: int) -> dict[str, np.ndarray]:
        """All rows of a combination, as far as they are written."""
        return {
            name: np.asarray(self.rows[combination][name][:])
            for name in self.plan.combinations[combination].variables
        }

    def recorded(self, combination: int, records: int) -> dict[str, np.ndarray]:
        """The first records of a combination."""
        return {
            name: np.asarray(self.rows[combination][name][:, :records])
            for name, variable in self.plan.combinations[combination].variables.items()
            if variable.recorded
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

    @property
    def done(self) -> bool:
        """Whether all is computed and written."""
        return self.folder is not None and (self.folder / _DONE).exists()

    def finish(self) -> None:
        """Note that it is."""
        assert self.folder is not None
        with self.readable_errors():
            (self.folder / _DONE).touch()

    def readable_errors(self) -> contextlib.AbstractContextManager[None]:
        """Say of a failed write what is safe and what to do."""
        return _readable_errors(self.folder, _RESUME)

    def _flush(self, combination: int, pattern: str) -> None:
        """Wait until rows are on the disk, as the checkpoint will be that says so."""
        if self.folder is None:
            return
        for path in (self.folder / _ROWS / str(combination)).glob(pattern):
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())


def in_memory(plan: Plan, share: Share = Share()) -> Part:
    """A part that is not kept."""
    runs = len(share.runs(plan.runs))
    rows = [blank(plan, combination, runs) for combination in plan.combinations]
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
        for there in found(out):
            _settle(there, folder, plan, resume, overwrite)
        if not (folder / _PLAN).exists():
            _create(folder, plan, share)
        part = taken(folder)
        try:
            yield part
        except BaseException:
            if part.position() is None:  # nothing is lost, and the folder is free for another try
                discard(folder)
            raise


def _settle(there: Path, mine: Path, plan: Plan, resume: bool | str, overwrite: bool) -> None:
    """Keep, discard or refuse a part that is in the folder already.

    Each process discards what is in its own place; parts of another split fall to the first.
    """
    split, own = share_of(there).count != share_of(mine).count, there == mine
    if overwrite and not own and (not split or share_of(mine).index > 0):
        return
    try:
        old = read_plan(there)
    except ValueError:
        if not overwrite:
            raise
        changed, alike = ["it cannot be read"], False
    else:
        changed = plans.differences(old, plan, but=() if own else plans.OWN)
        if split:
            changed.append(
                f"it runs in {share_of(mine).count} parts, there it was in {share_of(there).count}"
            )
        # A checkpoint's rows are dealt to so many devices.
        dealt = [one.identity.get("devices") for one in (old, plan)]
        alike = not split and plans.same_rows(old, plan) and dealt[0] == dealt[1]
    if not changed and (resume or not own):
        return
    if resume == "anyway" and alike:
        if own:
            _take_over(there, plan, changed)
        return
    if not overwrite:
        raise ValueError(_refusal(there.parent.parent, changed, alike))
    with contextlib.nullcontext() if own else locking.locked(there):
        discard(there)


def _refusal(out: Path, changed: list[str], alike: bool) -> str:
    """Why a folder's unfinished sweep is not taken up, and what to do."""
    if not changed:
        return f"'{out}' holds this sweep, unfinished; resume it, or replace it (--overwrite)"
    regardless = ", or go on regardless (--resume-anyway)" * alike
    return f"'{out}' holds another sweep, unfinished: {'; '.join(changed)}. {_REPLACE}{regardless}"


def _take_over(folder: Path, plan: Plan, changed: list[str]) -> None:
    """Take rows of another identity as those of this one; the result will say so."""
    before = read_plan(folder).attrs.get(RESUMED, [])
    plan = dataclasses.replace(plan, attrs={**plan.attrs, RESUMED: [*before, *changed]})
    with _readable_errors(folder, folders.ADVICE):
        _write_whole(folder / _PLAN, plans.to_json(plan))


def read_plan(folder: Path) -> Plan:
    """The plan of a part.

    Raises:
      ValueError: it is damaged, or of a newer version.
    """
    try:
        return plans.from_json((folder / _PLAN).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the sweep at work in '{folder}': {error}") from error


def found(out: Path) -> list[Path]:
    """The parts in a folder, in order."""
    there = [plan.parent for plan in (out / folders.WORK).glob(f"part-*-of-*/{_PLAN}")]
    return sorted(there, key=share_of)


def share_of(folder: Path) -> Share:
    """The share that a part's folder is named after."""
    _, index, _, count = folder.name.split("-")
    return Share(int(index), int(count))


def taken(folder: Path) -> Part:
    """A part that is there.

    Raises:
      ValueError: it is damaged, or of a newer version.
    """
    import zarr  # noqa: PLC0415

    plan = read_plan(folder)
    try:
        rows = [
            dict(zarr.open_group(folder / _ROWS / str(k), mode="r+").arrays())
            for k in range(len(plan.combinations))
        ]
    except (OSError, ValueError) as error:
        raise ValueError(f"the rows in '{folder}' are damaged: {error}; {_REPLACE}") from error
    return Part(plan, share_of(folder), folder, rows, {})


def discard(folder: Path) -> None:
    """Remove a part, its plan first: what a killed process leaves is no part."""
    with _readable_errors(folder, folders.ADVICE):
        for name in (_PLAN, _DONE, _WAYS):
            (folder / name).unlink(missing_ok=True)
    for name in (_ROWS, _CHECKPOINTS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _write_whole(file: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def _notes(folder: Path) -> dict[str, Any]:
    file = folder / _WAYS
    return json.loads(file.read_text()) if file.exists() else {}


def _create(folder: Path, plan: Plan, share: Share) -> None:
    """Write the blank rows, and the plan last: with it the part is there."""
    import zarr  # noqa: PLC0415

    discard(folder)
    with _readable_errors(folder, folders.ADVICE):
        for k, combination in enumerate(plan.combinations):
            group = zarr.open_group(folder / _ROWS / str(k), mode="w-")
            for name, shape, dtype in _arrays(plan, combination, len(share.runs(plan.runs))):
                recorded = combination.variables[name].recorded
                group.create_array(
                    name,
                    shape=shape,
                    chunks=_chunks(shape, np.dtype(dtype).itemsize, plan.chunk * recorded),
                    dtype=dtype,
                    fill_value=_fill(dtype),
                    # A chunk of NaN keeps their bits.
                    config={"write_empty_chunks": True},
                )
        _write_whole(folder / _PLAN, plans.to_json(plan))


@contextlib.contextmanager
def _readable_errors(folder: Path | None, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"could not write to '{folder}': {error}; {advice}") from error


def _arrays(
    plan: Plan, combination: Combination, runs: int
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each array of a combination."""
    for name, variable in combination.variables.items():
        records = (plan.records,) if variable.recorded else ()
        yield name, (runs, *records, *variable.shape), variable.dtype


def blank(plan: Plan, combination: Combination, runs: int) -> dict[str, np.ndarray]:
    """Rows in which nothing is computed yet."""
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
