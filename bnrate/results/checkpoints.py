"""Checkpoints: a pytree of arrays and a position on disk, whole or not there, checked when read.

The folder holds `checkpoint-00000007` and the one before it.  Each is an orbax checkpoint of one
array, the bytes of all leaves one after the other (orbax takes half a millisecond a leaf, and knows
neither keys nor empty arrays), and a manifest: the position, what the leaves are, the digest of
every file.  It is written beside its place, flushed to the disk and then renamed.  One process may
write at a time: take `locking.locked` first.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_NAME = "checkpoint-"
_SCRATCH = ".writing-"
_MANIFEST = "manifest"
_STATE, _LEAF = "state", "bytes"
_KEPT = 2
_ADVICE = "free some space, or choose another folder (--out)"


class Checkpoint(NamedTuple):
    """What `restore` returns; `skipped` says which newer checkpoints are damaged, and how."""

    position: dict[str, Any]
    state: Any
    skipped: tuple[str, ...]


def save(folder: str | Path, position: Mapping[str, Any], state: Any) -> None:
    """Add a checkpoint to a folder, which is created if need be; only the last two are kept.

    Whenever the process is killed, the folder holds the checkpoint whole or not at all, and always
    the one before it.  In a job of several processes each saves its own, in its own folder.

    Args:
      folder: of the checkpoints, and of nothing else.
      position: how far the state has come; JSON.
      state: a pytree of JAX arrays (any dtype, typed keys, sharded over the devices of this
        process) and numpy arrays.

    Raises:
      ValueError: it cannot be written, and all is as before; the position is not JSON; a leaf is
        not an array, or lies on devices of other processes.
    """
    folder = Path(folder)
    described, arrays = _to_host(state)
    try:
        manifest = {"position": dict(position), "leaves": described}
        json.dumps(manifest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the position {position!r} is not JSON: {error}") from error
    try:
        with _scratch(folder) as scratch:
            _write(scratch, manifest, _packed(arrays))
            last = max((_number(path) for path in _checkpoints(folder)), default=0)
            scratch.rename(folder / f"{_NAME}{last + 1:08d}")
        _sync(folder)
    except Exception as error:  # whatever orbax, its storage and the file system come up with
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write a checkpoint to '{folder}': {reason}; {_ADVICE}") from error
    for path in _checkpoints(folder)[_KEPT:]:
        _remove(path)


def latest(folder: str | Path) -> dict[str, Any] | None:
    """The position of the checkpoint that `restore` would take; None if there is none.

    Raises:
      ValueError: there are checkpoints, and all are damaged.
    """
    found = _newest(Path(folder))
    return found and found[1]["position"]


def restore(folder: str | Path, like: Any) -> Checkpoint | None:
    """The newest undamaged checkpoint, bit for bit; None if there is no checkpoint at all.

    Args:
      folder: that `save` wrote to.
      like: a pytree of the state's structure; its leaves are arrays, or `jax.ShapeDtypeStruct`.
        The state has its structure, dtypes and shardings (numpy arrays where it has them; on the
        default device where it names none); weakly typed arrays come back strongly typed.

    Raises:
      ValueError: all checkpoints are damaged; or the newest good one does not fit `like`.
    """
    import jax  # noqa: PLC0415

    found = _newest(Path(folder))
    if found is None:
        return None
    path, manifest, skipped = found
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    described = [_described(*leaf) for leaf in leaves]
    _check_fit(path, manifest["leaves"], described)
    data, restored = _read_state(path / _STATE), []
    for (_, leaf), (name, _, _, impl) in zip(leaves, manifest["leaves"], strict=True):
        stored = _stored(leaf)
        piece, data = np.split(data, [stored.size * stored.dtype.itemsize])
        value = piece.copy().view(stored.dtype).reshape(stored.shape)
        restored.append(_like(leaf, value, impl, name))
    return Checkpoint(manifest["position"], jax.tree.unflatten(structure, restored), skipped)


def clear(folder: str | Path) -> None:
    """Remove all checkpoints of a folder, and what a killed process left of one.

    Raises:
      ValueError: one cannot be removed.
    """
    folder = Path(folder)
    # The oldest first, so that a killed process leaves the newest.
    for path in [*reversed(_checkpoints(folder)), *folder.glob(f"{_SCRATCH}*")]:
        _remove(path)
        if path.exists():
            raise ValueError(f"cannot remove '{path}'; remove it, or choose another folder (--out)")


# The leaves as bytes.


def _to_host(state: Any) -> tuple[list[list[Any]], list[np.ndarray]]:
    """What the leaves are, and their values."""
    import jax  # noqa: PLC0415

    leaves = jax.tree_util.tree_leaves_with_path(state)
    described = [_described(*leaf) for leaf in leaves]
    for (name, *_), (_, leaf) in zip(described, leaves, strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or (
            getattr(leaf.dtype, "hasobject", False)
        ):
            raise ValueError(f"leaf {name} is {leaf!r}; only arrays of numbers can be saved")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"leaf {name} lies on devices of other processes too ({leaf.sharding}); "
                "save what this process computes"
            )
    bare = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for _, leaf in leaves]
    return described, [np.asarray(leaf) for leaf in jax.device_get(bare)]


def _described(path: Any, leaf: Any) -> list[Any]:
    """Path, dtype, shape and, of an array of keys, the name of their implementation."""
    import jax  # noqa: PLC0415

    name = jax.tree_util.keystr(path) or "(the state itself)"
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        raise ValueError(f"leaf {name} is {leaf!r}, not an array; make it one")
    impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) and isinstance(leaf, jax.Array) else None
    return [name, str(leaf.dtype), list(leaf.shape), impl]


def _is_key(leaf: Any) -> bool:
    import jax  # noqa: PLC0415

    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """Something with the shape and dtype of what is stored of a leaf: of keys, their data."""
    import jax  # noqa: PLC0415

    if not _is_key(leaf):
        return leaf
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def _packed(arrays: list[np.ndarray]) -> np.ndarray:
    """All bytes one after the other, and one more, since no file holds an empty array."""
    pieces = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    return np.concatenate([*pieces, np.zeros(1, np.uint8)])


def _like(leaf: Any, value: np.ndarray, impl: str | None, name: str) -> Any:
    """A stored value as what `leaf` is: an array of numpy, or of JAX with its sharding."""
    import jax  # noqa: PLC0415

    if isinstance(leaf, np.ndarray | np.generic):
        return value if isinstance(leaf, np.ndarray) else value[()]
    array = value if impl is None else jax.random.wrap_key_data(jax.numpy.asarray(value), impl=impl)
    # An array that is committed to the default device could not be used on another one.
    array = jax.device_put(array, leaf.sharding if getattr(leaf, "committed", True) else None)
    if array.dtype != leaf.dtype:
        raise ValueError(f"leaf {name} is {leaf.dtype}, which JAX has only with jax_enable_x64")
    return array


def _check_fit(path: Path, saved: list[list[Any]], wanted: list[list[Any]]) -> None:
    """Refuse a state that is not what is wanted, and say where they differ."""
    advice = "resume what was saved with the same configuration, or start anew in another folder"
    old, new = [leaf[0] for leaf in saved], [leaf[0] for leaf in wanted]
    if old != new:
        strange = next((f"has a leaf {name} too many" for name in old if name not in new), None)
        lacking = next((f"lacks the leaf {name}" for name in new if name not in old), None)
        fault = lacking or strange or "has its leaves in another order"
        raise ValueError(f"the checkpoint '{path}' does not fit: it {fault}; {advice}")
    for (name, *was, _), (_, *now, _) in zip(saved, wanted, strict=True):
        if was != now:
            raise ValueError(
                f"the checkpoint '{path}' does not fit: leaf {name} is {was[0]} of shape "
                f"{tuple(was[1])} in it, not {now[0]} of shape {tuple(now[1])}; {advice}"
            )


# Files.


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which is gone or renamed at the end; removes those of the dead."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
    scratch = folder / f"{_SCRATCH}new"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob(f"{_NAME}{'[0-9]' * 8}"), reverse=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_NAME))


def _remove(path: Path) -> None:
    """Remove a folder, if that is possible, so that it is not for an instant there in part."""
    doomed = path.with_name(f"{_SCRATCH}{path.name}")
    with contextlib.suppress(OSError):
        path = path.rename(doomed)
    shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, manifest: dict[str, Any], data: np.ndarray) -> None:
    """Put a checkpoint into an empty folder, and on the disk."""
    (folder / _STATE).mkdir()
    _write_state(folder / _STATE, data)
    files = {name: _digest(folder / name) for name in _files(folder)}
    text = json.dumps({**manifest, "files": files}).encode()
    (folder / _MANIFEST).write_bytes(hashlib.blake2b(text).hexdigest().encode() + b"\n" + text)
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _newest(folder: Path) -> tuple[Path, dict[str, Any], tuple[str, ...]] | None:
    """The newest undamaged checkpoint, its manifest, and what is wrong with those after it."""
    skipped = []
    for path in _checkpoints(folder):
        try:
            return path, _checked(path), tuple(skipped)
        except (OSError, ValueError) as error:
            skipped.append(f"'{path}' is damaged: {error}")
    if skipped:
        raise ValueError(f"{'; '.join(skipped)}; remove '{folder}' to start anew")
    return None


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, of which every file is as it was written.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, missing, or too many.
    """
    digest, _, text = (folder / _MANIFEST).read_bytes().partition(b"\n")
    if hashlib.blake2b(text).hexdigest().encode() != digest:
        raise ValueError(f"its file {_MANIFEST} has changed")
    manifest = json.loads(text)
    if sorted(manifest["files"]) != _files(folder):
        raise ValueError(f"it has files {_files(folder)}, not {sorted(manifest['files'])}")
    for name, expected in manifest["files"].items():
        if _digest(folder / name) != expected:
            raise ValueError(f"its file {name} has changed")
    return manifest


def _files(folder: Path) -> list[str]:
    """All files but the manifest, at any depth."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    return sorted(path.as_posix() for path in paths if path != Path(_MANIFEST))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():  # Windows does not open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Orbax.


def _write_state(folder: Path, data: np.ndarray) -> None:
    import orbax.checkpoint as ocp  # noqa: PLC0415
    from etils import epath  # noqa: PLC0415

    _handler().save(epath.Path(folder), args=ocp.args.PyTreeSave({_LEAF: data}))


def _read_state(folder: Path) -> np.ndarray:
    from etils import epath  # noqa: PLC0415

    return _handler().restore(epath.Path(folder))[_LEAF]


@functools.cache
def _handler() -> Any:
    """Orbax's handler of pytrees, for a process that is alone with its files.

    In a job of several processes orbax writes a numpy array in the first one only, and refuses a
    JAX array that one process has for itself.  So each writes by itself what stock orbax reads.
    """
    import jax  # noqa: PLC0415
    import orbax.checkpoint as ocp  # noqa: PLC0415
    import tensorstore  # noqa: PLC0415

    types, me = ocp.type_handlers, jax.process_index()

    class Alone(types.NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            whole = {"compressor": None, "fill_value": None}
            for value, info in zip(values, infos, strict=True):
                shape, dtype = value.shape, value.dtype.str
                spec = {
                    "driver": "zarr",
                    "kvstore": {"driver": "file", "path": str(info.parent_dir / info.name)},
                    "metadata": {"shape": shape, "chunks": shape, "dtype": dtype} | whole,
                }
                await (await tensorstore.open(spec, create=True)).write(value)
            return []

    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        # Unused, but orbax warns where it cannot handle JAX arrays.
        type_handler_registry=types.create_type_handler_registry(
            (np.ndarray, Alone()), (jax.Array, types.ArrayHandler())
        ),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}
        ),
    )
