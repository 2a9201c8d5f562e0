"""Random programs with scale symmetries and near misses of them, to test the certifier."""

from programs import guards, layers, structure, terminals  # noqa: F401 (they register operations)
from programs.interpreter import evaluate
from programs.operations import OPERATIONS
from programs.program import Program, generate, pruned, shrink

__all__ = ["OPERATIONS", "Program", "evaluate", "generate", "pruned", "shrink"]
