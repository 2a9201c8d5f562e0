"""Broken certifiers: in each a piece of the program is changed, which makes a rule unsound.

Each names the loss (of `ZOO`, `EXACT` or `EXCUSED`) of which it then claims too much.  What is
changed is located by its syntax (see `syntax`), so that a mutation whose rule is gone fails.  The
certifier itself is left alone: mutants are of a copy, another package.
"""

import ast
import contextlib
import functools
import importlib
import math
import sys
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from special import EXCUSES, SPECIAL
from special_families import FAMILIES
from special_found import FOUND, FOUND_EXCUSES
from special_mixtures import MIXED_EXCUSES, MIXTURES
from special_names import NAME_EXCUSES, NAMES
from special_zeros import ZERO_EXCUSES, ZEROS
from syntax import In, copied, rebuilt
from zoo import ZOO, units

import bnrate
from bnrate import groups as gr

ROOT = Path(bnrate.__file__).parent / "certify"
PACKAGE = "mutant"
EXACT = SPECIAL | FOUND | FAMILIES | ZEROS | NAMES | MIXTURES
EXCUSED = EXCUSES | FOUND_EXCUSES | ZERO_EXCUSES | NAME_EXCUSES | MIXED_EXCUSES


class Mutation(NamedTuple):
    """A change of the certifier, and the loss that catches it."""

    change: In
    caught: str


# --- copies of the certifier


@functools.cache
def parsed(module):
    path = ROOT / f"{module}.py"
    if not path.exists():
        raise ValueError(f"the certifier has no module '{module}'")
    return ast.parse(path.read_text().replace("bnrate.certify", PACKAGE))


@functools.cache
def compiled(module):
    return code_of(module, parsed(module))


def code_of(module, tree):
    return compile(tree, str(ROOT / f"{module}.py"), "exec")


class Copy(MetaPathFinder, InspectLoader):
    """Finds and loads the modules of a package, one of them perhaps from other code."""

    def __init__(self, codes):
        self.codes = codes

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE:
            return None
        file = ROOT / f"{stem(name)}.py"
        inside = [] if name == PACKAGE else None
        return spec_from_file_location(name, file, loader=self, submodule_search_locations=inside)

    def is_package(self, name):
        return name == PACKAGE

    def get_source(self, name):
        return None

    def get_code(self, name):
        return self.codes.get(stem(name)) or compiled(stem(name))


def stem(name):
    return name.partition(".")[2] or "__init__"


def modules(codes=None) -> dict[str, ModuleType]:
    """The modules of a fresh copy of the certifier, as it is or with other code for some."""
    finder = Copy(codes or {})
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(PACKAGE)
        return {stem(name): module for name, module in sys.modules.items() if is_copied(name)}
    finally:
        sys.meta_path.remove(finder)
        for name in list(filter(is_copied, sys.modules)):
            del sys.modules[name]


def is_copied(name):
    return name.partition(".")[0] == PACKAGE


def copy() -> ModuleType:
    """A fresh copy of the certifier."""
    return modules()["__init__"]


# --- mutants
#
# Nearly all of them differ from the copy in one function, which is given other code for a while:
# to make all modules anew takes as long as most proofs.


class Shared(NamedTuple):
    """A copy for all mutants.

    Attributes:
      modules: by name.
      used: the code that ran while they were made, of which something may have been kept.
      caches: its cached functions, which are emptied after each mutant.
      tables: its module-level containers, which no mutant may change.
    """

    modules: dict[str, ModuleType]
    used: set[CodeType]
    caches: list[Any]
    tables: list[Any]


@functools.cache
def shared() -> Shared:
    used, before = set(), sys.getprofile()
    sys.setprofile(lambda frame, event, argument: used.add(frame.f_code))
    try:
        made = modules()
    finally:
        sys.setprofile(before)
    found = [x for module in made.values() for x in vars(module).values()]
    classes = {x for x in found if isinstance(x, type) and is_copied(x.__module__)}
    found += [x for cls in classes for x in vars(cls).values()]
    caches = [x for x in found if hasattr(x, "cache_clear") and is_copied(x.__module__)]
    tables = [x for x in found if isinstance(x, MutableMapping | MutableSequence | MutableSet)]
    return Shared(made, used, caches, tables)


@contextlib.contextmanager
def mutant(mutation: Mutation) -> Iterator[Callable[..., Any]]:
    """The `certify` of a mutant."""
    change = mutation.change
    *outer, node = change.path(parsed(change.module))
    new = change.edited(node)
    inside = next((i for i, n in enumerate(outer) if isinstance(n, ast.FunctionDef)), len(outer))
    # The outermost function, and the classes that it is in.
    *around, old = [*outer, node][: inside + 1]
    new = rebuilt(old, lambda n: n is node, lambda _: new)
    function = live(change, around, old, new)
    if function is None:
        tree = rebuilt(parsed(change.module), lambda n: n is old, lambda _: new)
        yield modules({change.module: code_of(change.module, tree)})["__init__"].certify
        return
    for scope in reversed(around):  # the code of a method is made within its class
        new = copied(scope, body=[new])
    code = inner(code_of(change.module, new), function.__code__.co_qualname)
    with replaced(function, code):
        yield shared().modules["__init__"].certify


@contextlib.contextmanager
def replaced(function: FunctionType, new: CodeType) -> Iterator[None]:
    """Give a function of the shared copy other code, of which nothing stays behind."""
    code, sizes = function.__code__, list(map(len, shared().tables))
    function.__code__ = new
    try:
        yield
    finally:
        function.__code__ = code
        for cached in shared().caches:
            cached.cache_clear()
        if list(map(len, shared().tables)) != sizes:
            raise RuntimeError("the certifier keeps state, so that its mutants cannot share it")


def live(change: In, around: list[Any], old: Any, new: Any) -> FunctionType | None:
    """The function of the shared copy that stands for a definition, if other code will do."""
    if not isinstance(old, ast.FunctionDef) or head(old) != head(new):
        return None
    found: Any = shared().modules[change.module]
    for node in (*around[1:], old):
        found = vars(found)[node.name]
    for name in ("func", "fget", "__func__", "__wrapped__"):
        found = getattr(found, name, found)
    same = isinstance(found, FunctionType) and found.__code__.co_name == old.name
    return found if same and found.__code__ not in shared().used else None


def head(function: ast.FunctionDef) -> str:
    """What is worked out when the function is defined."""
    return "".join(map(ast.dump, (function.args, *function.decorator_list)))


def inner(module: CodeType, name: str) -> CodeType:
    """The code of a function in that of a module."""
    waiting = [module]
    while waiting:
        code = waiting.pop()
        if code.co_qualname == name:
            return code
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]
    raise ValueError(f"there is no code of {name}")


# --- what is claimed beyond what is true


@functools.cache
def case(name):
    """The expected answers, the problem, and how its epsilons are counted."""
    exact = name in EXACT
    entry = (ZOO | EXCUSED | EXACT)[name]
    problem = entry.build(0.0 if exact else 1e-5)
    traced_once = jax.jit(problem.loss)
    return entry, problem._replace(loss=traced_once), "strict" if exact else "ignore"


def excess(certify, name):
    """What a certifier claims of a loss that is not true of it."""
    entry, (loss, params, args), eps = case(name)
    certificate = certify(loss, params, *args, eps=eps)
    directions = certificate.directions()
    free = {*entry.invariant, *entry.no_effect}
    wrong = [f"{path} has an effect" for path in {*certificate.no_effect} - {*entry.no_effect}]
    for group in certificate.groups:
        members = frozenset(member.name for member in group.members)
        if members not in entry.joint and members - free not in (frozenset(), *entry.joint):
            wrong.append(f"{sorted(members)} may not be scaled")
        elif len(members) == 1 and units(*group.members) not in ((), entry.units.get(*members)):
            wrong.append(f"{group.members[0]} may not be scaled by each index")
    found = dimensions(directions, params)
    wrong += [f"dimensions {found}"] * any(np.greater(found, entry.dims))
    return wrong + ["units are no rescalings"] * (not spans(directions, certificate.groups, params))


def spans(directions, groups, params):
    """Whether all units may be scaled alone, for all that directions say."""
    if not any(member.axes for group in groups for member in group.members):
        return True
    ones = jax.tree.map(np.ones_like, params)
    factors = np.random.default_rng(0).standard_normal(len(gr.units(groups, ones)))
    drawn, zero = (
        matrix([gr.leaves(gr.rescale(groups, ones, jnp.asarray(f, float)))], params)
        for f in (factors, 0 * factors)
    )
    found = matrix(directions, params)
    wanted = (drawn - zero).T
    return np.allclose(found.T @ (np.linalg.pinv(found.T) @ wanted), wanted, atol=1e-4)


def dimensions(directions, params):
    """Of the exponents that are uniform on each leaf, and of those with zero sum on each."""
    if not directions:
        return 0, 0
    shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(params).items()}
    uniform, varying = [], []
    for path, shape in shapes.items():
        rows = np.array([np.ravel(np.broadcast_to(d.get(path, 0.0), shape)) for d in directions])
        uniform.append(rows.mean(1, keepdims=True))
        varying.append(rows - uniform[-1])
    rank = [np.linalg.matrix_rank(np.hstack(part)) for part in (varying, uniform)]
    total = np.linalg.matrix_rank(np.hstack(varying + uniform))
    return tuple(int(total - r) for r in rank)


def matrix(directions, params):
    """Exponents of all entries of the parameters, one row for each direction."""
    shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(params).items()}
    rows = [
        [np.ravel(np.broadcast_to(d.get(path, 0.0), shape)) for path, shape in shapes.items()]
        for d in directions
    ]
    size = sum(map(math.prod, shapes.values()))
    return np.array([np.concatenate(row) for row in rows]).reshape(len(rows), size)
