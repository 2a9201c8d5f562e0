"""Each notebook is built from the percent source beside it, without outputs."""

from pathlib import Path

import jupytext
import pytest

SOURCES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_built_from_its_source_without_outputs(source):
    built = jupytext.read(source.with_suffix(".ipynb"))
    assert cells(built) == cells(jupytext.read(source))
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cells_are_short_and_define_nothing(source):
    for kind, text in cells(jupytext.read(source)):
        if kind == "code":
            assert text.count("\n") < 20
            assert "def " not in text
            assert "class " not in text


def test_there_is_one():
    assert SOURCES
