"""Finding groups by trying leaves, sets of leaves, and the indices of their axes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate.invariance._evaluation import Evaluation, check_tolerance
from bnrate.invariance._formatting import table
from bnrate.invariance._precision import Precision
from bnrate.invariance._verdict import INVARIANT, REST, Verdict, axes_text

_LARGEST_SET = 3
_MANY_LEAVES = 16  # a module with more leaves is searched for pairs only


@dataclasses.dataclass(frozen=True)
class Detection:
    """Groups, and the evidence.

    Attributes:
      groups: those that were found.
      verdicts: one per leaf, then one per joint group found.
      tolerance: for the residuals.
      precision: in which dtypes the loss was tried.
    """

    groups: gr.Groups
    verdicts: tuple[Verdict, ...]
    tolerance: float
    precision: Precision
    _evaluation: Evaluation = dataclasses.field(repr=False, compare=False)

    def attempt(self, claim: gr.Group) -> Verdict:
        """Try one more claim, at the same points.

        Raises:
          ValueError: the claim does not fit the parameters.
        """
        gr.units(gr.Groups([claim]), self._evaluation.points[0].params)
        return self._evaluation.attempt(claim, self.tolerance)

    def __str__(self) -> str:
        rows = [("leaves", "unit axes", "verdict", "euler", "scaling")]
        for v in self.verdicts:
            jointly = v.kind == REST and v.group.name in self.groups.paths
            kind = "only jointly" if jointly else v.kind
            rows.append((v.group.name, axes_text(v.group) or "-", kind, *v.residuals))
        return table(rows) + ("" if self.precision.double else f"\n{self.precision}")


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
    scale-invariant.  All is computed in float64 or, where that breaks the program, in its own
    dtypes: `precision` says which.  A model that sets its own dtype computes in that, with its
    rounding: in bfloat16 much may come out as not known, so try a float32 copy.

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
      The groups and the residuals on which each verdict rests: single leaves first, then minimal
      joint sets within one module of at most three leaves; each with the largest set of unit axes
      of which each index may be scaled alone.

    Raises:
      ValueError: a leaf is not floating; the loss is not a finite scalar of float32 or wider.
    """
    check_tolerance(tolerance)
    evaluation = Evaluation.at_random_points(loss, params, [args, *batches], draws, seed)
    shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(params).items()}
    singles = [_judge(evaluation, {path: shapes[path]}, tolerance) for path in shapes]
    alone = {v.group.name: shapes[v.group.name] for v in singles if v.kind == REST}
    joint = _joint(evaluation, alone, tolerance)
    found = gr.Groups(v.group for v in (*singles, *joint) if v.kind == INVARIANT)
    return Detection(found, (*singles, *joint), tolerance, evaluation.precision, evaluation)


def _judge(
    evaluation: Evaluation, shapes: Mapping[str, tuple[int, ...]], tolerance: float
) -> Verdict:
    """Try the leaves together: as finely as Euler's identity allows, or as a whole.

    What holds of each unit holds of their sums, so that axes can only go together if each does by
    itself, and none does if the whole does not.  An axis of which one index is felt (the middle of
    a convolution's kernel that meets one pixel) makes nothing finer.
    """
    allowed = max(tolerance, evaluation.precision.tolerance)

    def holds(axes: tuple[tuple[int, ...], ...]) -> bool:
        return evaluation.euler(_group(shapes, axes)) <= allowed

    whole = ((),) * len(shapes)
    if holds(whole):
        single = [axes for axes in _unit_axes(shapes) if holds(axes)]
        finer = [axes for axes in single if np.sum(~evaluation.silent(_group(shapes, axes))) > 1]
        for axes in [*_products(finer, shapes), *_products(single, shapes, most=1)]:
            if holds(axes):
                verdict = evaluation.attempt(_group(shapes, axes), tolerance)
                if verdict.kind == INVARIANT:
                    return verdict
    return evaluation.attempt(_group(shapes, whole), tolerance)


def _group(shapes: Iterable[str], axes: Sequence[tuple[int, ...]]) -> gr.Group:
    return gr.Group(itertools.starmap(gr.Member, zip(shapes, axes, strict=True)))


def single_axes(shapes: Mapping[str, tuple[int, ...]]) -> list[gr.Group]:
    """Return the claims that leaves may be scaled at each index of one axis each, together."""
    return [_group(shapes, axes) for axes in _unit_axes(shapes)]


def _unit_axes(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """The choices of one unit axis per leaf, all of one length above 1."""
    choices = itertools.product(*(range(len(shape)) for shape in shapes.values()))
    return [
        tuple((axis,) for axis in axes)
        for axes in choices
        if len(found := {s[axis] for s, axis in zip(shapes.values(), axes, strict=True)}) == 1
        and max(found) > 1
    ]


def _products(
    single: list[tuple[tuple[int, ...], ...]],
    shapes: Mapping[str, tuple[int, ...]],
    most: int | None = None,
) -> list[tuple[tuple[int, ...], ...]]:
    """The choices of at `most` so many unit axes per leaf, those of the most units first."""
    found = []
    for count in range(1, (len(single) if most is None else most) + 1):
        for chosen in itertools.combinations(single, count):
            axes = tuple(tuple(itertools.chain(*one)) for one in zip(*chosen, strict=True))
            if all(len(set(one)) == count for one in axes):
                found.append(axes)
    first = next(iter(shapes.values()), ())
    return sorted(found, key=lambda axes: math.prod(first[i] for i in axes[0]), reverse=True)


def _joint(
    evaluation: Evaluation, shapes: Mapping[str, tuple[int, ...]], tolerance: float
) -> list[Verdict]:
    """Minimal sets of two or three leaves of one module that are invariant together only."""
    found, taken = [], set()
    for subset in _sets(shapes):
        if taken.isdisjoint(subset):
            group = _group(subset, ((),) * len(subset))
            if evaluation.euler(group) <= max(tolerance, evaluation.precision.tolerance):
                verdict = _judge(evaluation, {path: shapes[path] for path in subset}, tolerance)
                if verdict.kind == INVARIANT:
                    found.append(verdict)
                    taken.update(subset)
    return found


def _sets(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Pairs and triples of leaves of one module, the small ones first."""
    modules: dict[str, list[str]] = {}
    for path in paths:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    for inside in modules.values():
        largest = _LARGEST_SET if len(inside) <= _MANY_LEAVES else 2
        for size in range(2, largest + 1):
            yield from itertools.combinations(inside, size)
