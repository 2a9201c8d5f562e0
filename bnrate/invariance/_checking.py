"""Attacking groups that come from elsewhere: a proof, a file, another model."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate.invariance._evaluation import Evaluation, check_tolerance
from bnrate.invariance._formatting import table
from bnrate.invariance._precision import Precision
from bnrate.invariance._verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Report:
    """One verdict per group, in the order of the groups."""

    verdicts: tuple[Verdict, ...]
    tolerance: float
    precision: Precision

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The groups that are not scale-invariant."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passes)

    @property
    def ok(self) -> bool:
        """Whether every group passes."""
        return not self.failures

    def __str__(self) -> str:
        rows = [("group", "units", "silent", "verdict", "euler", "scaling")]
        for v in self.verdicts:
            kind = v.kind if v.passes else "FAILS"
            rows.append((v.group.name, str(v.units), str(v.silent), kind, *v.residuals))
        passed = len(self.verdicts) - len(self.failures)
        summary = f"{passed} of {len(self.verdicts)} groups pass (tolerance {self.tolerance:g})"
        figures = (f"{v.group.name}: {v.figure}" for v in self.failures)
        lines = [table(rows), summary, *figures]
        return "\n".join(lines if self.precision.double else [*lines, str(self.precision)])


def check(
    groups: gr.Groups,
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    batches: Iterable[Sequence[Any]] = (),
    draws: int = 3,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Report:
    """Try to refute that groups are scale-invariant.

    At random points the gradient of each unit is held against the unit; then each group is rescaled
    by 0.5, 2 and 10, and each of its units by a factor of its own.  A pass is no proof, a failure
    is a counterexample.

    Args:
      groups: what to attack.
      loss: (as all below) as in `detect`.
      params: the tree to which the groups belong.
      *args: what the loss takes besides.
      batches: more tuples of such arguments.
      draws: random points per batch.
      seed: of those points.
      tolerance: for both residuals.

    Raises:
      ValueError: a group does not fit the parameters; and as `detect`.
    """
    check_tolerance(tolerance)
    gr.units(groups, params)
    evaluation = Evaluation.at_random_points(loss, params, [args, *batches], draws, seed)
    verdicts = tuple(evaluation.attempt(group, tolerance) for group in groups)
    return Report(verdicts, tolerance, evaluation.precision)
