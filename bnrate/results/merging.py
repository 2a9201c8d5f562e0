"""From the parts of a sweep to its result, which appears whole, before they are removed."""

import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnrate.results import assembly, folders, locking, plans
from bnrate.results.parts import Part, Share, blank, discard, found, read_plan, taken
from bnrate.results.plans import Plan

if TYPE_CHECKING:
    import xarray as xr

_MERGING = "merging"  # in the folder of the parts, to be locked
_POLL_SECONDS = 0.2
# Processes of a job start together; and a network's file system may show a folder late.
_BEGIN_SECONDS, _APPEAR_SECONDS = 10, 60


def finished(out: str | Path, plan: Plan) -> "xr.Dataset | None":
    """The result of this very sweep, if the folder has it already; None if it has none.

    Raises:
      ValueError: it has the result of another sweep.
    """
    if not (Path(out) / folders.STORE).is_dir():
        return None
    ds = folders.load(out)
    there = dataclasses.replace(plan, identity=json.loads(ds.attrs.get("identity", "{}")))
    changed = plans.differences(there, plan, but=plans.OWN)
    if changed:
        said = "; ".join(changed) if there.identity else "it does not say which"
        raise ValueError(
            f"'{out}' holds the result of another sweep: {said}. "
            f"{folders.ADVICE.capitalize()}, or replace it (--overwrite)"
        )
    _remove_leftovers(Path(out).resolve(), plan)
    return ds


def _remove_leftovers(out: Path, plan: Plan) -> None:
    """Remove what a killed process has left besides a result that is in its place."""
    with contextlib.suppress(OSError, ValueError):
        folders.tidy(out)
    work = out / folders.WORK
    for folder in set(work.glob("*")).difference(
        there for there in found(out) if not _is_done(there, plan)
    ):
        with contextlib.suppress(OSError, ValueError), locking.locked(folder):
            _remove(folder)
    with contextlib.suppress(OSError):
        work.rmdir()


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
    part.finish()
    assert part.folder is not None
    work, index, count = part.folder.parent, part.share.index, part.share.count
    if alone and count > 1:
        return together(part.plan, [part])
    if index > 0:
        # The first part's process removes them all when the result is in its place.
        _wait(work, Share(0, count), lambda: not part.done)
        return folders.load(out)
    for other in (Share(i, count) for i in range(1, count)):
        _wait(work, other, functools.partial(_is_done, work / str(other), part.plan))
    return merge([out], out, overwrite=overwrite)


def _is_done(folder: Path, plan: Plan) -> bool:
    """Whether a part of this very sweep is done, not one that will be discarded yet."""
    part = _readable(folder)
    return bool(part and part.done and not plans.differences(part.plan, plan, but=plans.OWN))


def _wait(work: Path, share: Share, ready: Callable[[], bool]) -> None:
    """Wait for what the process of another part does, as long as it lives."""
    folder, began, seen = work / str(share), time.monotonic(), False
    while not ready():
        locked, waited = locking.is_locked(folder), time.monotonic() - began
        seen |= locked
        patience = 0 if seen else _BEGIN_SECONDS if folder.exists() else _APPEAR_SECONDS
        if not locked and waited > patience and not ready():
            raise ValueError(
                f"process {share.index} of {share.count} stopped before its part was done; what "
                f"it had is safe in '{folder}': run the same again to resume"
            )
        time.sleep(_POLL_SECONDS)


def merge(
    sources: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> "xr.Dataset":
    """Put the parts of a sweep, in one folder or several, together as the result in `out`.

    The parts are removed where they lie in `out` itself.

    Raises:
      ValueError: no parts, parts of different sweeps, or some that are missing or not done; another
        process merges them; the result cannot be written.
    """
    out = Path(out).resolve()
    with _alone(out):
        folders_there = [folder for source in sources for folder in found(Path(source).resolve())]
        if not folders_there:
            raise ValueError(f"there are no parts of a sweep in {', '.join(map(str, sources))}")
        ds = together(read_plan(folders_there[0]), _complete(folders_there))
        with folders.writing(out, overwrite) as scratch:
            folders.save(ds, scratch)
        # The first part last: its process is waited for by those of the others.
        for folder in reversed(folders_there):
            if folder.parent == out / folders.WORK:
                _remove(folder)
    return ds


def _complete(there: Sequence[Path]) -> list[Part]:
    """The parts, after a check that they are all of one sweep."""
    parts = [taken(folder) for folder in there]
    first = parts[0]
    for part in parts:
        changed = plans.differences(first.plan, part.plan, but=plans.OWN)
        if part.share.count != first.share.count:
            changed.append(f"it is one of {part.share.count} parts, not {first.share.count}")
        if changed:
            raise ValueError(
                f"'{part.folder}' is part of another sweep than '{first.folder}': "
                f"{'; '.join(changed)}"
            )
    done = {part.share.index: part for part in parts if part.done}
    missing = sorted(set(range(first.share.count)) - set(done))
    if missing:
        raise ValueError(
            f"part {', '.join(map(str, missing))} of {first.share.count} is missing or not done; "
            f"run its shard (--shard {missing[0]}/{first.share.count}) and merge again"
        )
    return list(done.values())


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only one who merges into a folder; if nothing comes of it, all is as before."""
    work = out / folders.WORK
    created = [path for path in (out, *out.parents) if not path.exists()]
    with locking.locked(work / _MERGING):
        try:
            yield
        finally:
            shutil.rmtree(work / _MERGING, ignore_errors=True)
            for path in (work, *created):
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()


def _remove(folder: Path) -> None:
    """Remove a part, which is none from the first moment on."""
    discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _readable(folder: Path) -> Part | None:
    """A part, unless it is damaged or being discarded."""
    try:
        return taken(folder)
    except ValueError:
        return None


def together(plan: Plan, parts: Sequence[Part]) -> "xr.Dataset":
    """The Dataset of a sweep from all its parts, done or not."""
    rows = []
    for k, combination in enumerate(plan.combinations):
        whole = blank(plan, combination, plan.runs)
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
    parts = [taken(folder) for folder in found(Path(out).resolve())]
    if not parts:
        raise ValueError(f"no sweep is at work in '{out}'")
    return together(parts[0].plan, parts)
