"""Where an equation of a traced program comes from: the user's line, the library's, the module.

JAX keeps a Python traceback with every equation.  It promises nothing about its form, so all that
is read of it is read here, and what cannot be read is left out.
"""

import dataclasses
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_JAX = str(Path(jax.__file__).parent)
_LIBRARIES = tuple(
    {str(Path(__file__).parent.parent), *(sysconfig.get_paths()[k] for k in ("stdlib", "purelib"))}
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in the program: `user` and `library` as "file:line" ("" if unknown)."""

    user: str = ""
    library: str = ""
    module: str = ""

    def __str__(self) -> str:
        at = f"at {self.user}" if self.user else "at an unknown line"
        inside = f" (in {self.library})" if self.library else ""
        return at + inside + (f" [{self.module}]" if self.module else "")


def site(eqn: Any) -> Site:
    """The place of one equation: the innermost line of the user's, and of a library's below it."""
    info = getattr(eqn, "source_info", None)
    user, library = "", ""
    for file, line in _frames(info):
        if file.startswith(_JAX) or file.startswith("<frozen"):
            continue
        if not _is_library(file):
            user = f"{Path(file).name}:{line}"
            break
        library = library or f"{Path(file).name}:{line}"
    return Site(user, library, str(getattr(info, "name_stack", "")))


def defined_in_jax(jaxpr: Any) -> bool:
    """Whether a called function is JAX's own: then its traceback may be of an earlier call."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    origin = str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))
    return f" at {_JAX}" in origin


def _frames(info: Any) -> Iterator[tuple[str, int]]:
    """File and line of each frame, innermost first."""
    for frame in getattr(getattr(info, "traceback", None), "frames", ()):
        yield str(getattr(frame, "file_name", "")), int(getattr(frame, "line_num", 0))


@functools.cache
def _is_library(file: str) -> bool:
    return "site-packages" in file or file.startswith(_LIBRARIES)
