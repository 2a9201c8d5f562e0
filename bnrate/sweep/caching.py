"""What is kept in the user's cache folder: compiled programs, and which way was the fastest."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


def cache_folder() -> Path:
    """Where the user keeps what can be computed again: `bnrate` in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "bnrate"


def cache_compilations(folder: str | Path | None = None) -> None:
    """Let JAX keep compiled programs on disk, so that a second start need not compile.

    A setting of the whole process, which the command line makes and the library does not; one that
    is made already is left alone.

    Args:
      folder: default `programs` in this package's cache folder.
    """
    set_before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if set_before is not None and folder is None:
        return
    try:
        folder = folder or cache_folder() / "programs"
    except RuntimeError:  # there is no home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def ways() -> dict[str, Any]:
    """The fastest ways that were measured, by problem."""
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, no home: measure again
        return {}
    return known if isinstance(known, dict) else {}


def remember_way(problem: str, way: Mapping[str, Any]) -> None:
    """Keep one for the next time, if there is a folder to keep it in."""
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({**ways(), problem: dict(way)}))
        new.replace(file)
    except (OSError, RuntimeError):  # no home, or no room in it: it is measured the next time
        return


def _file() -> Path:
    return cache_folder() / "ways.json"
