"""A loss at random points, and the two residuals by which every rescaling is judged."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate import objective
from bnrate.invariance import _moves, _precision
from bnrate.invariance._precision import Precision
from bnrate.invariance._verdict import INVARIANT, NO_EFFECT, NOT_KNOWN, REST, Verdict, units_text

_FACTORS = {2.0: "doubled", 0.5: "halved", 10.0: "multiplied by 10"}
_JITTER = 0.3
_FINE = 1e-12  # a rounding that need not be measured


class Point(NamedTuple):
    """A batch and parameters drawn at random, with the loss and w * grad (by path) there.

    Of the loss, what is below `noise` is rounding.
    """

    params: PyTree
    args: Sequence[Any]
    value: float
    noise: float
    products: dict[str, np.ndarray]
    sums: dict[gr.Member, np.ndarray]  # of products and of their absolute values, remembered


class Change(NamedTuple):
    """The loss at c w, and how far it moves from w to a random point as far from w."""

    factors: np.ndarray
    rescaled: float
    felt: float


class Evaluation(NamedTuple):
    """What every claim is tried against.

    Attributes:
      value: the loss as a compiled function of a point's parameters and arguments.
      program: the loss as it was traced.
      points: where claims are tried.
      precision: in which dtypes.
    """

    value: Callable[..., Any]
    program: ClosedJaxpr
    points: list[Point]
    precision: Precision

    @classmethod
    def at_random_points(
        cls,
        loss: Callable[..., Any],
        params: PyTree,
        batches: Sequence[Sequence[Any]],
        draws: int,
        seed: int,
    ) -> "Evaluation":
        """Evaluate the loss and its gradient at `draws` points for each batch.

        Raises:
          ValueError: `draws` is not positive; a leaf is not floating; the loss is not a finite
            scalar of float32 or wider.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        objective.finite(params)
        precision, program = _precision.choose(loss, params, batches[0])
        rng, points = np.random.default_rng(seed), []
        value = jax.jit(lambda p, *args: objective.scalar(loss(p, *args)))
        value_and_grad = jax.jit(jax.value_and_grad(value))
        with precision.context():
            converted = [precision.arguments(tuple(batch)) for batch in batches]
            for _, args in itertools.product(range(draws), converted):
                w = jax.tree.map(lambda leaf: precision.like(leaf, jitter(rng, leaf)), params)
                L, grad = value_and_grad(w, *args)
                if not np.isfinite(L):
                    raise ValueError(
                        f"the loss is {L} near the given parameters; it must be finite"
                    )
                grads = gr.leaves(grad)
                products = {
                    path: np.asarray(x, np.float64) * np.asarray(grads[path], np.float64)
                    for path, x in gr.leaves(w).items()
                }
                noise = precision.noise * abs(float(L))
                if precision.rounding > _FINE:
                    noise = max(noise, 10 * _rounding(value, w, args, float(L)))
                points.append(Point(w, args, float(L), noise, products, {}))
        return cls(value, program, points, precision)

    def attempt(self, claim: gr.Group, tolerance: float) -> Verdict:
        """Try a claim; rescaling is tried everywhere only if the gradient is orthogonal."""
        tolerance = max(tolerance, self.precision.tolerance)
        with self.precision.context():
            silent = self.silent(claim)
            counts, euler = (len(silent), int(silent.sum())), self.euler(claim)
            if euler > tolerance:
                figures = (self._telling(claim, point) for point in self.points)
                figure = next(filter(None, figures), _radial(euler))
                return Verdict(claim, REST, *counts, euler, np.nan, figure)
            scaling, figure, moved = self.scaling(claim, tolerance)
        if figure:
            return Verdict(claim, REST, *counts, euler, scaling, figure)
        if silent.all() or np.isnan(scaling):
            sure = silent.all() and not moved and self.precision.rounding <= _precision.COARSEST
            return Verdict(claim, NO_EFFECT if sure else NOT_KNOWN, *counts, euler, scaling)
        return Verdict(claim, INVARIANT, *counts, euler, scaling)

    def floor(self, point: Point) -> float:
        """A sum |w * grad| below this is rounding noise."""
        total = sum(np.abs(product).sum() for product in point.products.values())
        return self.precision.noise * total

    def radial(self, group: gr.Group, point: Point) -> tuple[np.ndarray, np.ndarray]:
        """|<w, grad>| and sum |w * grad| of each unit."""
        for member in group.members:
            if member not in point.sums:
                product = point.products[member.path]
                both = [_moves.by_unit(member, array) for array in (product, np.abs(product))]
                point.sums[member] = np.stack(both)
        total, size = np.sum([point.sums[member] for member in group.members], axis=0)
        return np.abs(total), size

    def silent(self, group: gr.Group) -> np.ndarray:
        """Which units have no gradient at any point."""
        sizes = [self.radial(group, point)[1] <= self.floor(point) for point in self.points]
        return np.all(sizes, axis=0)

    def euler(self, group: gr.Group) -> float:
        """The largest |<w, grad>| / sum |w * grad| over points and units; NaN if none has one.

        Units without a gradient (behind a dead ReLU) say nothing.
        """
        worst = np.nan
        for point in self.points:
            total, size = self.radial(group, point)
            floor = self.floor(point)
            felt = size > floor
            excess = np.maximum(total[felt] - floor, 0) / size[felt]
            worst = np.fmax(worst, np.max(excess, initial=-np.inf) if felt.any() else np.nan)
        return float(worst)

    def scaling(self, group: gr.Group, tolerance: float) -> tuple[float, str, bool]:
        """The largest change of the loss under rescaling, relative to that under displacement.

        Relative to the loss itself, a leaf of little influence would pass for invariant.  NaN if
        the loss is not finite at c w, or if no displacement moves it enough to tell.

        Returns:
          That; what is more than the tolerance, in words, if anything is; whether anything at all
          moves the loss.
        """
        worst, moved = np.nan, False
        for point in self.points:
            changes = list(self.changes(group, point))
            felt = max((c.felt for c in changes if np.isfinite(c.felt)), default=0.0)
            rescaled = float(np.max(np.abs([c.rescaled - point.value for c in changes])))
            ratio = max(rescaled - point.noise, 0) / felt if felt else np.inf
            losses = ((c.factors, c.rescaled) for c in changes)
            if figure := _figure(group, point, losses, tolerance * felt + point.noise):
                return float(ratio), figure, True
            moved = moved or felt > point.noise
            if felt > 10 * point.noise:
                worst = np.fmax(worst, ratio)
        return float(worst), "", moved

    def changes(self, group: gr.Group, point: Point) -> Iterator[Change]:
        """Yield the loss at c w over factors c, and how far it moves at random points as far."""
        rng, lengths = np.random.default_rng(0), _moves.norms(group, point.params)
        for factors, rescaled in self._rescaled(group, point):
            far = _moves.displace(group, point.params, np.abs(factors - 1) * lengths, rng)
            yield Change(factors, rescaled, abs(float(self.value(far, *point.args)) - point.value))

    def _telling(self, group: gr.Group, point: Point) -> str:
        """A figure for a claim that the gradient has refuted; empty if no rescaling is felt.

        The first change that is not much smaller than others: scaling all units alike may change
        the loss by no more than an epsilon.
        """
        losses = list(self._rescaled(group, point))
        largest = max((abs(L - point.value) for _, L in losses if np.isfinite(L)), default=0.0)
        return _figure(group, point, losses, max(point.noise, 1e-3 * largest))

    def _rescaled(self, group: gr.Group, point: Point) -> Iterator[tuple[np.ndarray, float]]:
        """Factors for all units, alike and then each its own, and the loss there."""
        units = len(self.radial(group, point)[0])
        tried = [np.full(units, c) for c in _FACTORS]
        if units > 1:
            low, high = np.log(min(_FACTORS)), np.log(max(_FACTORS))
            tried.append(np.exp(np.random.default_rng(0).uniform(low, high, units)))
        for factors in tried:
            scaled = _moves.rescale(group, point.params, factors)
            yield factors, float(self.value(scaled, *point.args))


def _figure(
    group: gr.Group, point: Point, losses: Iterable[tuple[np.ndarray, float]], allowed: float
) -> str:
    """What refutes a claim at a point, in words; empty if no change is more than allowed."""
    it = "it is" if len(group.members) == 1 else "they are"
    for factors, rescaled in losses:
        if not abs(rescaled - point.value) <= allowed:
            alike = _FACTORS.get(factors[0]) if np.ptp(factors) == 0 else None
            own = f"{units_text(group)} is scaled by a factor of its own"
            when = f"{it} {alike}" if alike else own
            return f"the loss {_moves_text(point.value, rescaled)} when {when}"
    return ""


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError unless the tolerance lies between 0 and 1."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")


def jitter(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """A random point near a leaf, in float64."""
    w = np.asarray(leaf, np.float64)
    return np.asarray(w + spread(w) * rng.standard_normal(w.shape))


def spread(leaf: Any) -> float:
    """How far away random points lie: 0.3 of a leaf's size (of 1, if it is zero)."""
    w = np.asarray(leaf, np.float64)
    return _JITTER * float(np.sqrt(np.mean(w**2)) if w.any() else 1.0)


def _rounding(value: Callable[..., Any], w: PyTree, args: Sequence[Any], L: float) -> float:
    """How rough the loss is: what is left of a second difference over tiny steps is rounding."""
    rng = np.random.default_rng(0)
    step = jax.tree.map(lambda x: x * jnp.asarray(1e-4 * rng.uniform(-1, 1, x.shape), x.dtype), w)
    below, above = (
        float(value(jax.tree.map(move, w, step), *args)) for move in (jnp.subtract, jnp.add)
    )
    return abs(below - 2 * L + above)


def _moves_text(before: float, after: float) -> str:
    """How far the loss moves, in words."""
    if not np.isfinite(after):
        return "is not finite"
    share = abs(after - before) / abs(before) if before else np.inf
    if share > 10:
        return f"moves from {before:.2g} to {after:.2g}"
    return f"moves by {100 * share:.2g} %" if share < 1 else f"moves by {100 * share:.0f} %"


def _radial(euler: float) -> str:
    return f"its gradient is not orthogonal to it: <w, grad> is {euler:.2g} of sum |w * grad|"
