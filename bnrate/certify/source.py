"""Where an equation of a traced program comes from: the user's line, the library's, the module.

JAX keeps a Python traceback with every equation.  It promises nothing about its form, so all that
is read of it is read here, and what cannot be read is left out.
"""

import dataclasses
import functools
import os
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_JAX = str(Path(jax.__file__).parent) + os.sep
# Where JAX keeps what carries a derivative rule about, rather than a rule.
_MACHINERY = tuple(
    os.path.join(_JAX, "_src", part)
    for part in ("interpreters", "linear_util", "custom_derivatives", "api_util", "tree_util")
)
# Where its rules are true derivatives (those of lax take functions, whose results they trust).
_RULES = tuple(os.path.join(_JAX, "_src", part) for part in ("nn", "numpy", "scipy", "ops"))
_LIBRARIES = tuple(
    {str(Path(__file__).parent.parent), *(sysconfig.get_paths()[k] for k in ("stdlib", "purelib"))}
)

_HOLDERS = ("f", "f_transformed", "transforms", "fun", "jvp", "fwd", "bwd", "__wrapped__")


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in the program: `user` and `library` as "file:line" ("" if unknown)."""

    user: str = ""
    library: str = ""
    module: str = ""

    def __str__(self) -> str:
        line = self.user or self.library or "the end"
        inside = f" (in {self.library})" if self.user and self.library else ""
        return f"at {line}{inside}" + (f" [{self.module}]" if self.module else "")


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


def differentiated_by_jax(eqn: Any) -> bool:
    """Whether the derivative rule of a custom call is one of JAX's own, as that of relu is.

    The rule is somewhere in the closures of the equation's parameters.  It is JAX's if all the
    functions found there are, and one of them is more than what carries rules about.
    """
    found, seen = [], set()
    waiting = [eqn.params.get(name) for name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, types.FunctionType):
            found.append(part.__code__.co_filename)
            waiting += [cell.cell_contents for cell in part.__closure__ or ()]
            waiting += [*(part.__defaults__ or ()), getattr(part, "__wrapped__", None)]
        elif isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, types.MethodType):
            waiting += [part.__func__, part.__self__]
        elif isinstance(part, tuple | list):
            waiting += part
        elif type(part).__module__.split(".")[0] in ("jax", "jaxlib"):
            waiting += [getattr(part, name, None) for name in _HOLDERS]
        elif callable(part) and not isinstance(part, type):
            return False  # a rule that cannot be looked into
    rules = [file for file in found if not file.startswith(_MACHINERY)]
    return bool(rules) and all(file.startswith(_RULES) for file in rules)


def _frames(info: Any) -> Iterator[tuple[str, int]]:
    """File and line of each frame, innermost first."""
    for frame in getattr(getattr(info, "traceback", None), "frames", ()):
        yield str(getattr(frame, "file_name", "")), int(getattr(frame, "line_num", 0))


@functools.cache
def _is_library(file: str) -> bool:
    return "site-packages" in file or file.startswith(_LIBRARIES)
