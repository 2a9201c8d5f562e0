"""Attacking groups that come from elsewhere: a proof, a file, another model."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate.invariance.table import table
from bnrate.invariance.trial import INVARIANT, NO_EFFECT, REST, Trial, check_tolerance


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one group stood the attack.

    Attributes:
      group: the group.
      kind: "invariant", "no effect" (no unit has a gradient; it passes) or "rest" (it fails).
      units: how many units the group has.
      silent: how many of them have no gradient at any point, so that nothing was learnt of them.
      euler: as in `Verdict`; NaN if all units are silent.
      scaling: as in `Verdict`; NaN if nothing that was tried changes the loss.
    """

    group: gr.Group
    kind: str
    units: int
    silent: int
    euler: float
    scaling: float

    @property
    def passes(self) -> bool:
        """Whether nothing speaks against the group."""
        return self.kind != REST


@dataclasses.dataclass(frozen=True)
class Report:
    """One outcome per group, in the order of the groups."""

    outcomes: tuple[Outcome, ...]
    tolerance: float

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The groups that are not scale-invariant."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passes)

    @property
    def ok(self) -> bool:
        """Whether every group passes."""
        return not self.failures

    def __str__(self) -> str:
        rows = [("group", "units", "silent", "verdict", "euler", "scaling")]
        for o in self.outcomes:
            euler, scaling = ("" if np.isnan(r) else f"{r:.1e}" for r in (o.euler, o.scaling))
            verdict = o.kind if o.passes else "FAILS"
            rows.append((o.group.name, str(o.units), str(o.silent), verdict, euler, scaling))
        passed = len(self.outcomes) - len(self.failures)
        summary = f"{passed} of {len(self.outcomes)} groups pass (tolerance {self.tolerance:g})"
        return f"{table(rows)}\n{summary}"


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

    At random points each group is rescaled by 0.5, 2 and 10, and each of its units by a factor of
    its own, and the gradient of each unit is held against the unit.  A pass is no proof, a failure
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
    with jax.enable_x64(True):
        trial = Trial.at_random_points(loss, params, [args, *batches], draws, seed)
        return Report(tuple(_attack(trial, group, tolerance) for group in groups), tolerance)


def _attack(trial: Trial, group: gr.Group, tolerance: float) -> Outcome:
    silent = trial.silent(group)
    counts = (len(silent), int(silent.sum()))
    if trial.without_effect(group):
        return Outcome(group, NO_EFFECT, *counts, np.nan, np.nan)
    euler = np.nan if silent.all() else trial.euler(group)
    scaling = trial.scaling(group)
    # Not `max`, which would lose a scaling of NaN: a loss that is not finite at c w fails.
    passes = (silent.all() or euler <= tolerance) and scaling <= tolerance
    felt = NO_EFFECT if silent.all() else INVARIANT
    return Outcome(group, felt if passes else REST, *counts, euler, scaling)
