"""Finding groups by trying leaves, sets of leaves, and the indices along each axis."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate.invariance.table import table
from bnrate.invariance.trial import INVARIANT, NO_EFFECT, REST, Trial, check_tolerance

_LARGEST_SET = 3
_MANY_LEAVES = 16  # a module with more leaves is searched for pairs only


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found for one leaf or one joint set.

    Attributes:
      group: the leaf or leaves, with the unit axis if each index may be scaled alone.
      kind: "invariant", "no effect" (nothing that was tried changes the loss) or "rest".
      euler: the largest |<w, grad>| / sum |w * grad| over points and units.
      scaling: the largest |L(c w) - L(w)| over points and factors, relative to that at random
        points as far from w; NaN if not tried, because Euler's identity had failed already.  Both
        are NaN where there is no effect to measure.
    """

    group: gr.Group
    kind: str
    euler: float
    scaling: float


@dataclasses.dataclass(frozen=True)
class Detection:
    """Groups, and the evidence: one verdict per leaf, then one per joint group found."""

    groups: gr.Groups
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        rows = [("leaves", "unit axis", "verdict", "euler", "scaling")]
        for v in self.verdicts:
            axes = ",".join("x".join(map(str, m.axes)) for m in v.group.members if m.axes) or "-"
            euler, scaling = ("" if np.isnan(r) else f"{r:.1e}" for r in (v.euler, v.scaling))
            jointly = v.kind == REST and v.group.name in self.groups.paths
            kind = "only jointly" if jointly else v.kind
            rows.append((v.group.name, axes, kind, euler, scaling))
        return table(rows)


def detect(
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    batches: Iterable[Sequence[Any]] = (),
    draws: int = 3,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Detection:
    """Find the scale-invariant groups of a loss by trying.

    Give it the loss as it is trained, with batch statistics, but without weight decay, which is not
    scale-invariant.  A model that sets its own dtype computes in that, with its rounding: in
    bfloat16 everything may come out as rest, so try a float32 copy.

    Args:
      loss: `loss(params, *args)`, a scalar or a tuple that begins with one (then the rest is
        ignored).
      params: any tree of floating arrays, the one that the optimiser gets (of flax,
        `variables["params"]`); only their shapes and rough sizes matter.
      *args: what the loss takes besides: a batch, say.
      batches: more tuples of such arguments; every one must agree.
      draws: random points near `params` (each leaf jittered by 0.3 of its size), so that a bias of
        zero does not pass for invariant.
      seed: of those points.
      tolerance: for both residuals.  The default forgives the epsilon of a normalisation (1e-5);
        1e-9 asks for exact invariance of a float64 program.

    Returns:
      The groups (single leaves first, then minimal joint sets within one module of at most three
      leaves) and the residuals on which each verdict rests.

    Raises:
      ValueError: a leaf is not floating; the loss is not a finite scalar of float32 or wider.
    """
    check_tolerance(tolerance)
    with jax.enable_x64(True):
        trial = Trial.at_random_points(loss, params, [args, *batches], draws, seed)
        singles = [_judge(trial, (path,), tolerance) for path in gr.leaves(params)]
        joint = _joint(trial, [v.group.name for v in singles if v.kind == REST], tolerance)
    found = [v.group for v in (*singles, *joint) if v.kind == INVARIANT]
    return Detection(gr.Groups(found), (*singles, *joint))


def _judge(trial: Trial, paths: tuple[str, ...], tolerance: float) -> Verdict:
    """Try the leaves together: each index along an axis, if there is one, or as a whole."""
    whole = gr.Group(map(gr.Member, paths))
    if trial.without_effect(whole):
        return Verdict(whole, NO_EFFECT, np.nan, np.nan)
    for axes in _unit_axes(paths, trial.points[0].products):
        by_index = _attempt(trial, gr.Group(map(gr.Member, paths, axes)), tolerance)
        if by_index.kind == INVARIANT:
            return by_index
    return _attempt(trial, whole, tolerance)


def _attempt(trial: Trial, group: gr.Group, tolerance: float) -> Verdict:
    """Try these units; rescaling is tried only if the gradient is orthogonal."""
    euler = trial.euler(group)
    scaling = trial.scaling(group) if euler <= tolerance else np.nan
    return Verdict(group, INVARIANT if scaling <= tolerance else REST, euler, scaling)


def _joint(trial: Trial, candidates: list[str], tolerance: float) -> list[Verdict]:
    """Minimal sets of two or three leaves of one module that are invariant together only."""
    found, taken, modules = [], set(), {}
    for path in candidates:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    for paths in modules.values():
        largest = _LARGEST_SET if len(paths) <= _MANY_LEAVES else 2
        for size in range(2, largest + 1):
            for subset in itertools.combinations(paths, size):
                if taken.isdisjoint(subset):
                    verdict = _judge(trial, subset, tolerance)
                    if verdict.kind == INVARIANT:
                        found.append(verdict)
                        taken.update(subset)
    return found


def _unit_axes(paths: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    """The choices of one unit axis per leaf, finest first."""
    by_leaf = [range(arrays[path].ndim) for path in paths]
    lengths = {
        axes: {arrays[path].shape[axis] for path, axis in zip(paths, axes, strict=True)}
        for axes in itertools.product(*by_leaf)
    }
    same = [axes for axes, found in lengths.items() if len(found) == 1 and max(found) > 1]
    return sorted(same, key=lambda axes: max(lengths[axes]), reverse=True)
