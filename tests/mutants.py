"""Broken certifiers: in each a piece of the source is replaced, which makes a rule unsound.

Each names the loss (of `ZOO`, `EXACT` or `EXCUSED`) of which it then claims too much.  The rules
are replaced as text, so that a mutation whose rule is gone fails, and compiled into another
package, so that the certifier itself is left alone.
"""

import functools
import importlib
import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from special import EXCUSES, SPECIAL
from special_found import FOUND, FOUND_EXCUSES
from zoo import ZOO

import bnrate
from bnrate import groups as gr

ROOT = Path(bnrate.__file__).parent / "certify"
PACKAGE = "mutant"
EXACT = SPECIAL | FOUND
EXCUSED = EXCUSES | FOUND_EXCUSES


class Mutation(NamedTuple):
    """The text `old`, which occurs once in the certifier, becomes `new`; `caught` by a loss."""

    old: str
    new: str
    caught: str


# --- copies of the certifier


@functools.cache
def sources():
    return {path.stem: path.read_text() for path in sorted(ROOT.glob("*.py"))}


@functools.cache
def compiled(module, source):
    return compile(source.replace("bnrate.certify", PACKAGE), str(ROOT / f"{module}.py"), "exec")


class Copy(MetaPathFinder, InspectLoader):
    """Finds and loads the modules of a package from changed sources."""

    def __init__(self, texts):
        self.texts = texts

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE:
            return None
        file = ROOT / f"{stem(name)}.py"
        inside = [] if name == PACKAGE else None
        return spec_from_file_location(name, file, loader=self, submodule_search_locations=inside)

    def is_package(self, name):
        return name == PACKAGE

    def get_source(self, name):
        return self.texts[stem(name)]

    def get_code(self, name):
        return compiled(stem(name), self.get_source(name))


def stem(name):
    return name.partition(".")[2] or "__init__"


def copy(texts=None) -> ModuleType:
    """A fresh copy of the certifier, of the sources as they are or of changed ones."""
    finder = Copy(texts or sources())
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(PACKAGE)
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def mutant(mutation: Mutation) -> ModuleType:
    """A copy of the certifier with one mutation."""
    found = sum(text.count(mutation.old) for text in sources().values())
    if found != 1:
        raise ValueError(f"the text to replace occurs {found} times: {mutation.old!r}")
    return copy({k: text.replace(mutation.old, mutation.new) for k, text in sources().items()})


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
    free = {*entry.invariant, *entry.no_effect}
    wrong = [f"{path} has an effect" for path in {*certificate.no_effect} - {*entry.no_effect}]
    for group in certificate.groups:
        members = frozenset(member.path for member in group.members)
        if members not in entry.joint and members - free not in (frozenset(), *entry.joint):
            wrong.append(f"{sorted(members)} may not be scaled")
        elif len(members) == 1 and group.members[0].axes not in ((), (entry.units.get(*members),)):
            wrong.append(f"{group.members[0]} may not be scaled by each index")
    found = dimensions(certificate.directions(), params)
    wrong += [f"dimensions {found}"] * any(np.greater(found, entry.dims))
    return wrong


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
