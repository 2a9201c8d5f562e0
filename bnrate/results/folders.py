"""How a Dataset is kept on disk: a folder that changes whole or not at all."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bnrate
from bnrate.results import locking

if TYPE_CHECKING:
    import xarray as xr

STORE = "results.zarr"
WORK = ".sweep"
_SCRATCH, _NEW, _OLD = ".writing-", "new", ".old"
ADVICE = "choose another folder (--out)"


@contextlib.contextmanager
def writing(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder whose entries move into `folder` when the block ends well, and only then.

    Nothing else in `folder` is touched.  If the block raises, all is as before; an entry moves
    whole or not at all.  What killed processes have left is put back, or removed.

    Raises:
      ValueError: at once, if `folder` cannot be written, is not empty and `overwrite` is not set,
        or has a results.zarr that is none of ours; at the end, if writing failed, or if somebody
        else has written there meanwhile.
    """
    folder = Path(folder).resolve()
    try:
        tidy(folder)
        check_target(folder, overwrite)
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}': {error.strerror}; {ADVICE}") from error
    try:
        with locking.locked(scratch):
            (scratch / _NEW).mkdir()
            yield scratch / _NEW
            check_target(folder, overwrite)
            for entry in sorted((scratch / _NEW).iterdir()):
                _move(entry, folder / entry.name, scratch)
        created = []
    except OSError as error:
        raise ValueError(f"could not write to '{folder}': {error}; {ADVICE}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with anything in it (but work), or to replace what is not ours."""
    inside = folder.iterdir() if folder.exists() else []
    ours = (_SCRATCH, WORK)
    entries = sorted(path.name for path in inside if not path.name.startswith(ours))
    if entries and not overwrite:
        raise ValueError(
            f"'{folder}' is not empty, it has {', '.join(entries[:3])}; {ADVICE}, "
            "or replace the result in it (--overwrite)"
        )
    if STORE in entries and not _is_result(folder / STORE):
        raise ValueError(f"'{folder / STORE}' is not a result of bnrate; {ADVICE}")


def _is_result(store: Path) -> bool:
    try:
        attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return not store.is_symlink() and "bnrate" in attributes


def _move(new: Path, place: Path, aside: Path) -> None:
    """Put a file or folder in its place; what was there goes aside, or back."""
    old = aside / f"{place.name}{_OLD}"
    try:
        if place.is_dir():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise


def tidy(folder: Path) -> None:
    """Remove the scratch folders of the dead; what one of them was about to replace goes back."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        if not locking.is_locked(scratch):
            for old in scratch.glob(f"*{_OLD}"):
                place = folder / old.name.removesuffix(_OLD)
                if not place.exists():
                    old.rename(place)
            shutil.rmtree(scratch, ignore_errors=True)


def save(ds: "xr.Dataset", folder: str | Path) -> None:
    """Store a Dataset as Zarr in a folder; use it inside `writing` to replace a result.

    Raises:
      ValueError: the folder holds a result.
    """
    if (Path(folder) / STORE).exists():
        raise ValueError(f"'{folder}' holds a result; use `results.writing` to replace it")
    # Zarr has no stable form for numpy's strings of fixed width.
    ds = _with_strings(ds, np.dtypes.StringDType()).assign_attrs(bnrate=bnrate.__version__)
    ds.to_zarr(Path(folder) / STORE, mode="w-", consolidated=False)


def load(folder: str | Path) -> "xr.Dataset":
    """Read back, into memory, what `save` stored.

    Raises:
      ValueError: there is no result in the folder, or it is damaged.
    """
    import xarray as xr  # noqa: PLC0415

    store = Path(folder) / STORE
    if not store.is_dir():
        raise ValueError(f"no result in '{folder}': it has no {STORE}")
    try:
        return _with_strings(xr.open_zarr(store, consolidated=False).load(), str)
    except Exception as error:  # whatever zarr, its codecs and the file system come up with
        raise ValueError(
            f"the result in '{folder}' is damaged ({error}); run the experiment again"
        ) from error


def _with_strings(ds: "xr.Dataset", dtype: Any) -> "xr.Dataset":
    """The Dataset with its strings in one of numpy's two ways to hold them."""
    strings = {
        name: (variable.dims, np.array(variable.values.tolist(), dtype))
        for name, variable in ds.variables.items()
        if variable.dtype.kind in "UT"
    }
    return ds.assign(
        {name: strings[name] for name in strings if name in ds.data_vars}
    ).assign_coords({name: strings[name] for name in strings if name in ds.coords})
