"""What a callback is told of a sweep at work, and readings of it.

In all readings a run that has diverged, or was stopped, is NaN: it can never be taken for the best.

    >>> rates = {"rate": np.array([0.1, 1.0, 10.0])}
    >>> loss = np.array([[9.0, 4.0], [9.0, 2.0], [9.0, np.inf]])
    >>> alive = np.array([True, True, False])
    >>> p = Progress({"rule": "sgd"}, rates, np.arange(2), {"loss": loss}, alive, 2, 8, 3, 6.0, 3.0)
    >>> p.names()[1], p.latest().tolist()
    ('rule=sgd,rate=1', [4.0, 2.0, nan])
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


class Progress(NamedTuple):
    """What a callback is told.

    Attributes:
      combination: the static axes of the combination at work, value by name.
      points: the coordinates of the runs of this combination by axis, one entry a run.
      steps: the steps of this chunk's records; none at the start.
      trace: this chunk's records by variable: runs, then records, then the variable's own axes.
      alive: whether each run is still going; one that is not has diverged.
      done: steps done, summed over the combinations, those of earlier calls included.
      total: steps to do, so that `done / total` is the fraction.
      runs: the number of runs of this combination.
      run_steps_per_second: steps times runs a second, in this call; NaN before the first chunk.
      eta: seconds left, an estimate; NaN if unknown.
      stopped: whether each run was stopped for being hopeless; None where none can be.
      unit: what the run calls a step.
    """

    combination: Mapping[str, str]
    points: Mapping[str, Shaped[np.ndarray, " runs"]]
    steps: Int[np.ndarray, " records"]
    trace: Mapping[str, Shaped[np.ndarray, "runs records ..."]]
    alive: Bool[np.ndarray, " runs"]
    done: int
    total: int
    runs: int
    run_steps_per_second: float
    eta: float
    stopped: Bool[np.ndarray, " runs"] | None = None
    unit: str = "step"

    def names(self, *, static: bool = True) -> list[str]:
        """A name for each run, such as `rule=sgd,rate=0.1,seed=0`, with the static axes or not."""
        texts = {axis: _texts(values) for axis, values in self.points.items()}
        before = self.combination if static else {}
        return [name({**before, **row}) for row in _rows(texts)]

    def coordinates(self) -> list[dict[str, Any]]:
        """The point of each run, static axes included, in Python's own numbers and strings."""
        columns = {axis: values.tolist() for axis, values in self.points.items()}
        return [{**self.combination, **row} for row in _rows(columns)]

    def variable(self, wanted: str | None = None) -> str | None:
        """The variable to show: `wanted`, else "loss", else the first; None if there is none.

        Raises:
          ValueError: the wanted one is not recorded, or has no entries.
        """
        recorded = [variable for variable, values in self.trace.items() if values.size]
        if wanted is None:
            return "loss" if "loss" in recorded else next(iter(recorded), None)
        if wanted not in recorded:
            choice = f"choose one of {', '.join(recorded)}" if recorded else "they record nothing"
            raise ValueError(f"the runs record no {wanted!r}; {choice}")
        return wanted

    def latest(self, variable: str | None = None) -> Float[np.ndarray, " runs"]:
        """A variable at the last record (its mean, if it has axes of its own), NaN if out."""
        shown = self.variable(variable)
        values = np.zeros(self.runs) if shown is None else _scalars(self.trace[shown][:, -1:])[:, 0]
        counts = self.alive & np.isfinite(values)
        if self.stopped is not None:
            counts &= ~self.stopped
        return np.where(counts, values, np.nan)

    def diverged(self, variable: str | None = None) -> Bool[np.ndarray, " runs"]:
        """Which runs have: not alive or with a `latest` that is not finite, unless stopped."""
        out = np.isnan(self.latest(variable))
        return out if self.stopped is None else out & ~self.stopped

    def records(self, every: int = 1) -> Iterator[list[tuple[int, dict[str, float]]]]:
        """For each run in turn its records, as pairs of a step and the variables' scalars.

        Of values in a row that are not finite only the first is among them.
        """
        steps = self.steps[::every].tolist()
        trace = {k: _scalars(v[:, ::every]) for k, v in self.trace.items() if v.size}
        told = {k: _finite_or_first(values) for k, values in trace.items()}
        for run in range(self.runs):
            rows = [
                (step, {k: float(v[run, i]) for k, v in trace.items() if told[k][run, i]})
                for i, step in enumerate(steps)
            ]
            yield [(step, values) for step, values in rows if values]


def pace(steps: int, runs: int, seconds: float, left: int) -> tuple[float, float]:
    """Run-steps a second, and the seconds that `left` steps will take, from steps taken so far.

    NaN before the first step.
    """
    if steps <= 0 or seconds <= 0:
        return math.nan, math.nan
    return steps * runs / seconds, left * seconds / steps


def name(coordinates: Mapping[str, str]) -> str:
    """Coordinates as one word, `rule=sgd,rate=0.1`."""
    return ",".join(f"{axis}={value}" for axis, value in coordinates.items())


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _texts(values: np.ndarray) -> list[str]:
    """Values as text, fractions with as few digits (but six) as tell them apart."""
    if values.dtype.kind != "f":
        return [str(value) for value in values.tolist()]
    different, texts = len(np.unique(values)), []
    for digits in range(6, 18):
        texts = [f"{value:.{digits}g}" for value in values.tolist()]
        if len(set(texts)) == different:
            break
    return texts


def _scalars(values: Shaped[np.ndarray, "runs records ..."]) -> Float[np.ndarray, "runs records"]:
    """The mean over the variable's own axes."""
    values = np.asarray(values, float)
    with np.errstate(invalid="ignore", over="ignore"):
        return values.mean(axis=tuple(range(2, values.ndim)))


def _finite_or_first(values: Float[np.ndarray, "runs records"]) -> Bool[np.ndarray, "runs records"]:
    finite = np.isfinite(values)
    before = np.pad(finite[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return finite | before
