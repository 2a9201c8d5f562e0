"""Where an equation of a traced program comes from: the user's line, the library's, the module.

JAX keeps a Python traceback with every equation.  It promises nothing about its form, so all that
is read of it is read here, and what cannot be read is left out.
"""

import dataclasses
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import jax

from bnrate.certify.equations import Equation

_JAX = str(Path(jax.__file__).parent) + os.sep
# Where JAX keeps what carries a derivative rule about, rather than a rule.
_MACHINERY = tuple(
    os.path.join(_JAX, "_src", part)
    for part in ("interpreters", "linear_util", "custom_derivatives", "api_util", "tree_util")
)
# Where its rules are true derivatives (those of lax take functions, whose results they trust).
_RULES = tuple(
    os.path.join(_JAX, "_src", part) for part in ("nn", "numpy", "scipy", "ops", "lax/other")
)
_LIBRARIES = tuple(
    {str(Path(__file__).parent.parent), *(sysconfig.get_paths()[k] for k in ("stdlib", "purelib"))}
)

# Where a call keeps its derivative rule.
RULE_PARAMETERS = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
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


def site(eqn: Equation) -> Site:
    """The place of one equation: the innermost line of the user's, and of a library's below it."""
    info = getattr(eqn, "source_info", None)
    user, library = _lines(getattr(info, "traceback", None))
    return Site(user, library, str(getattr(info, "name_stack", "")))


def defined_in_jax(jaxpr: Any) -> bool:
    """Whether a called function is JAX's own: then its traceback may be of an earlier call."""
    return f" at {_JAX}" in _origin(getattr(jaxpr, "jaxpr", jaxpr))


def is_lambda_of_jax(jaxpr: Any) -> bool:
    """Whether a called function is nameless in JAX: nobody else can have passed it."""
    return _origin(getattr(jaxpr, "jaxpr", jaxpr)).startswith(f"<lambda> at {_JAX}")


def differentiated_by_jax(eqn: Equation) -> bool:
    """Whether a custom call is one of JAX's own functions with its own derivative rule, like relu.

    The function is looked up where JAX defines it, and the rule in the call must be that of the
    function found there: other functions of JAX, put together by a user, may be no derivative.
    """
    known = _rule_at(_origin(getattr(eqn.params.get("call_jaxpr"), "jaxpr", None)))
    return bool(known) and known == _code_of(eqn.params.get("jvp_jaxpr_fun"))


def _origin(jaxpr: Any) -> str:
    """Which function a program was traced from: "name at file:line", as far as JAX says."""
    return str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))


@functools.cache
def _rule_at(origin: str) -> frozenset[Any]:
    """The code of the derivative rule of JAX's own function from there; nothing, if it has none."""
    name, _, place = origin.partition(" at ")
    file = place.rpartition(":")[0]
    if not file.startswith(_RULES):
        return frozenset()
    modules = (m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file)
    found = getattr(next(modules, None), name, None)
    while found is not None and not isinstance(found, jax.custom_jvp):
        found = getattr(found, "__wrapped__", None)
    return _code_of(found.jvp) if found else frozenset()


def _code_of(rule: Any) -> frozenset[Any]:
    """The code of all functions in a rule, without what only carries rules about."""
    found = {getattr(f, "__code__", f) for f in functions_in([rule])}
    return frozenset(c for c in found if not getattr(c, "co_filename", "").startswith(_MACHINERY))


def rules_in(parts: Iterable[Any]) -> list[Any]:
    """The functions that JAX's machinery carries about, but not those in their closures."""
    return [f for f in functions_in(parts, enter=_is_machinery) if not _is_machinery(f)]


def _is_machinery(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_MACHINERY)


def functions_in(
    parts: Iterable[Any], enter: Callable[[Any], bool] = lambda function: True
) -> list[Any]:
    """All functions in the closures of objects, and what is called and cannot be looked into."""
    found, seen, waiting = [], set(), list(parts)
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, types.FunctionType):
            found.append(part)
            if not enter(part):
                continue
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
            found.append(part)
    return found


@functools.lru_cache(1024)  # the layers of a network have few tracebacks
def _lines(traceback: Any) -> tuple[str, str]:
    """The innermost line of the user's in a traceback, and of a library's below it."""
    library = ""
    for frame in getattr(traceback, "frames", ()):  # innermost first
        file = str(getattr(frame, "file_name", ""))
        line = f"{os.path.basename(file)}:{getattr(frame, 'line_num', 0)}"
        whose = _whose(file)
        if whose == "user":
            return line, library
        if whose == "library":
            library = library or line
    return "", library


@functools.cache
def _whose(file: str) -> Literal["jax", "library", "user"]:
    if file.startswith((_JAX, "<frozen")):
        return "jax"
    library = "site-packages" in file or file.startswith(_LIBRARIES)
    return "library" if library else "user"
