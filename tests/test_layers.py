"""The rooms of the house: who may import whom, how large a module may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bnrate"
LONGEST = 450

# A module may import those listed, and itself (a package).
MAY_IMPORT = {
    "__init__": set(),
    "groups": set(),
    "objective": {"groups"},
    "normalize": set(),
    "conv": set(),
    "lanczos": set(),
    "ranges": set(),
    "data": set(),
    "results": {"__init__"},
    "invariance": {"groups", "objective"},
    "certify": {"groups", "objective"},
    "theory": {"groups", "ranges"},
    "losses": {"groups", "normalize", "ranges", "theory"},
    "curvature": {"groups", "lanczos", "ranges"},
    "transforms": {"groups", "lanczos", "ranges", "theory"},
    "measure": {"groups"},
    "evidence": {"groups", "invariance", "certify"},
    "models": {"groups", "normalize", "conv"},
    "train": {"groups", "measure"},
    "sweep": {"__init__", "results"},
    "plots": {"results"},
    "experiments": {
        "groups", "normalize", "data", "results", "invariance", "certify", "transforms", "measure",
        "models", "train", "sweep", "theory", "losses", "curvature",
    },
    "cli": {
        "experiments", "sweep", "plots", "results", "certify", "evidence", "groups", "invariance",
        "models",
    },
}  # fmt: skip


def imports(source: str) -> list[str]:
    """All modules that a source imports, dotted, with the names taken from packages."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def faults(room: str, source: str) -> list[str]:
    """What is wrong with one module of a room."""
    wrong = []
    for name in imports(source):
        top, _, inner = name.partition(".")
        if top == "bnrate":
            wanted = inner.split(".")[0]
            wanted = wanted if wanted in MAY_IMPORT else "__init__"
            if wanted not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{room} imports {wanted}")
        if top == "":
            wrong.append(f"{room} imports {name} relatively")
        if "_src" in name.split("."):
            wrong.append(f"{room} imports private {name}")
    if source.count("\n") > LONGEST:
        wrong.append(f"{room} has a module of {source.count(chr(10))} lines, over {LONGEST}")
    return wrong


def modules() -> dict[Path, str]:
    """The room of every file."""
    return {
        path: path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")
    }


def test_table_lists_the_rooms_that_exist():
    assert set(modules().values()) == set(MAY_IMPORT)


def test_there_is_no_room_for_odds_and_ends():
    assert not [path for path in ROOT.rglob("*.py") if path.stem in ("utils", "util", "common")]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert not faults(modules()[path], path.read_text())


PLANTED = [
    ("groups", "from bnrate import train", "groups imports train"),
    ("sweep", "import bnrate.train", "sweep imports train"),
    ("sweep", "def f():\n    from bnrate.measure import DIMS", "sweep imports measure"),
    ("models", "from bnrate.invariance import detect", "models imports invariance"),
    ("data", "from . import groups", "data imports ..groups relatively"),
    ("groups", "from jax._src import core", "groups imports private jax._src.core"),
    ("groups", "\n" * 451, "groups has a module of 451 lines, over 450"),
]


@pytest.mark.parametrize(("room", "source", "fault"), PLANTED)
def test_planted_violation_is_caught(room, source, fault):
    assert faults(room, source) == [fault]


def test_importing_bnrate_imports_nothing_heavy():
    source = (ROOT / "__init__.py").read_text()
    assert imports(source) == []
