"""All rescalings of a small model at once, by linear algebra.

A rescaling multiplies each element of a leaf by exp(t d), d being its *exponent*.  The loss does
not feel it if sum(grad * w * d) = 0 wherever we look: one linear equation for d per random point.
The exponents tried are those that are separable over the axes of each leaf,

    d = s + v_0[i_0] + v_1[i_1] + ...,   each v summing to zero,

so that s scales the leaf as a whole and v its indices; this split is unique.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate import objective
from bnrate.invariance import _precision
from bnrate.invariance._evaluation import spread
from bnrate.invariance._formatting import table
from bnrate.invariance._null_space import ROUNDINGS, NullSpace, null_space
from bnrate.invariance._precision import Precision

_MOST_COLUMNS = 4000
_SPREAD = 0.5  # log of the random factor on each leaf: so that all sizes are looked at, not one
_AT_A_TIME = 64
_REMEMBERED = 4_000_000  # numbers w * grad kept for `residual`: 32 MB
_TOLERANCE = 1e-9
_VISIBLE = 1e-4  # a smaller exponent of a leaf is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetries:
    """All separable rescalings that a loss does not feel, infinitesimally.

    Attributes:
      shapes: the shape of each leaf, by path, in the tree's order.
      leaf: the null space in which each leaf is scaled as a whole; one column per leaf.
      whole: the null space of all exponents; `exponents` says what its columns mean.
      products: w * grad at some of the points, leaf after leaf, each of shape (points, *leaf);
        relative to the sum of their absolute values at that point.
      precision: in which dtypes the loss was tried.
    """

    shapes: dict[str, tuple[int, ...]]
    leaf: NullSpace
    whole: NullSpace
    products: dict[str, np.ndarray]
    precision: Precision

    @property
    def noise(self) -> float:
        """What counts as rounding in the products."""
        return ROUNDINGS * self.precision.rounding

    @functools.cached_property
    def dims(self) -> tuple[int, int]:
        """How many rescalings of leaves as a whole (v = 0), and how many by index only (s = 0).

        `whole` has more dimensions than both together if some rescalings need both: parts of a
        leaf, whose factors are tied to those of other leaves.
        """
        exponents = [self.exponents(direction) for direction in self.whole.basis]
        s = [[d.mean() if d.size else 0.0 for d in direction.values()] for direction in exponents]
        needing_s = np.linalg.matrix_rank(np.array(s), tol=_VISIBLE) if s else 0
        return self.leaf.dimension, self.whole.dimension - int(needing_s)

    @property
    def gap(self) -> float:
        """The narrower of the two gaps on which the dimensions rest."""
        return min(self.leaf.gap, self.whole.gap)

    @property
    def clear(self) -> bool:
        """Whether both dimensions can be trusted.

        If not, a tiny epsilon or float32 inside the loss blurs them, or there are too few draws.
        """
        return self.leaf.clear and self.whole.clear

    @functools.cached_property
    def no_effect(self) -> tuple[str, ...]:
        """The leaves without any gradient."""
        return tuple(
            path
            for path, p in self.products.items()
            if _flat(np.abs(p)).sum(axis=1).max() <= self.noise
        )

    @functools.cached_property
    def alone(self) -> dict[str, tuple[int, ...]]:
        """The leaves that may be scaled alone, each with the axes of which each index may be.

        Those without effect are among them.
        """
        return {
            path: tuple(
                axis
                for axis in range(len(shape))
                if shape[axis] > 1 and self._by_index(path, axis) <= _TOLERANCE
            )
            for path, shape in self.shapes.items()
            if self.contains({path: 1.0})
        }

    def exponents(self, direction: np.ndarray) -> dict[str, np.ndarray]:
        """The exponent of every element, by path, for a row of `whole.basis`."""
        ends = np.cumsum([_width(shape) for shape in self.shapes.values()])
        parts = np.split(direction, ends[:-1])
        return {
            path: _spread_out(part, shape)
            for (path, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def residual(self, exponents: Mapping[str, Any]) -> float:
        """The largest |sum(grad * w * d)| / sum |grad * w * d| over the points.

        Args:
          exponents: d by path, each broadcastable to its leaf, separable or not; 0 elsewhere.

        Returns:
          0 if there is nothing but rounding.

        Raises:
          ValueError: there is no such leaf, or an exponent does not broadcast to it.
        """
        total, size, largest = 0.0, 0.0, 0.0
        for path, exponent in exponents.items():
            d = self._broadcast(path, exponent)
            terms = _flat(self.products[path] * d)
            total, size = total + terms.sum(axis=1), size + np.abs(terms).sum(axis=1)
            largest = max(largest, float(np.abs(d).max(initial=0)))
        return self._worst(np.asarray(total), np.asarray(size), largest)

    def contains(self, exponents: Mapping[str, Any], tolerance: float = _TOLERANCE) -> bool:
        """Whether a rescaling is not felt: its `residual` is within the tolerance."""
        return self.residual(exponents) <= tolerance

    def __str__(self) -> str:
        rows = [("leaf", "shape", "may be scaled")]
        jointly = np.any(np.abs(self.leaf.basis) > _VISIBLE, axis=0)
        for (path, shape), some in zip(self.shapes.items(), jointly, strict=True):
            axes = "".join(f", each index of axis {axis}" for axis in self.alone.get(path, ()))
            alone = "no effect" if path in self.no_effect else f"alone{axes}"
            joint = "only with others" if some else "no"
            rows.append((path, str(shape), alone if path in self.alone else joint))
        joint = [f"together: {text}" for text in self._joint()]
        by_leaf, by_index = self.dims
        mixed = self.whole.dimension - by_leaf - by_index
        certain = "clear" if self.clear else "NOT CLEAR: the dimensions are a guess"
        narrow = min(self.leaf, self.whole, key=lambda space: space.gap)
        values = f"kept {narrow.kept:.0e}, dropped {narrow.dropped:.0e}"
        return "\n".join(
            [
                table(rows),
                *joint,
                f"dimensions: {by_leaf} by leaf, {by_index} by index, {mixed} by both",
                f"singular values: {values} ({certain})",
                *([] if self.precision.double else [str(self.precision)]),
            ]
        )

    def _joint(self) -> Iterator[str]:
        """The rescalings of several leaves, as formulas."""
        for row in self.leaf.basis:
            terms = {path: x for path, x in zip(self.shapes, row, strict=True) if abs(x) > _VISIBLE}
            unit = min(terms.values(), key=abs, default=1.0)
            unit = abs(unit) * np.sign(next(iter(terms.values()), 1.0))
            parts = [
                f"{'-' if x / unit < 0 else '+'} {_times(x / unit)}{p}" for p, x in terms.items()
            ]
            if len(parts) > 1:
                yield " ".join(parts).removeprefix("+ ")

    def _broadcast(self, path: str, exponent: Any) -> np.ndarray:
        if path not in self.shapes:
            raise ValueError(f"there is no leaf '{path}'; there are {', '.join(self.shapes)}")
        d = np.asarray(exponent, np.float64)
        try:
            return np.broadcast_to(d, self.shapes[path])
        except ValueError as error:
            raise ValueError(
                f"the exponent of leaf '{path}' has shape {d.shape}, which does not broadcast to "
                f"the leaf's {self.shapes[path]}"
            ) from error

    def _by_index(self, path: str, axis: int) -> float:
        """The residual of scaling one index of an axis, the worst of all."""
        products = self.products[path]
        return self._worst(_along(products, axis), _along(np.abs(products), axis))

    def _worst(self, total: np.ndarray, size: np.ndarray, largest: float = 1.0) -> float:
        """The largest |total| / size, with what may be rounding taken off the total."""
        excess = np.maximum(np.abs(total) - self.noise * largest, 0)
        return float(np.max(excess / np.where(size > 0, size, 1), initial=0))


def symmetries(
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    batches: Iterable[Sequence[Any]] = (),
    draws: int | None = None,
    seed: int = 0,
) -> Symmetries:
    """Find every separable rescaling of the parameters that the loss does not feel.

    For small models: it needs more gradients than there are columns, one per leaf and index of an
    axis.  Exact to rounding, so an epsilon in a normalisation counts as a break.  Blind to what
    does not happen at the points, such as a clamp that is never reached.

    Args:
      loss: (as all below) as in `detect`.
      params: where to look: mostly near them, each leaf then multiplied by a random factor.
      *args: what the loss takes besides.
      batches: more tuples of such arguments, taken in turn.
      draws: random points; by default twice as many as columns and some.
      seed: of those points.

    Raises:
      ValueError: there are more than 4000 columns; fewer finite draws than columns; and as
        `detect`.
    """
    objective.finite(params)
    shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(params).items()}
    columns = sum(map(_width, shapes.values()))
    if columns > _MOST_COLUMNS:
        raise ValueError(
            f"the parameters have {columns} columns (leaves and indices of their axes), and more "
            f"than {_MOST_COLUMNS} take too long; make the model narrower, or use `detect`"
        )
    draws = 2 * columns + 16 if draws is None else draws
    chunks, kept = [], []
    precision, _ = _precision.choose(loss, params, args)
    eps = precision.rounding
    if eps > _precision.COARSEST:
        raise ValueError(
            f"a rounding of {eps:.0e} inside the loss hides all symmetries; compute it in float32 "
            "or wider"
        )
    with precision.context():
        gradients = _compile(loss, params, precision)
        points = _points(gradients, params, [args, *batches], draws, seed, precision)
        for rows in _in_chunks(points):
            chunks.append(_reduce(rows, shapes))
            if sum(chunk.size for chunk in kept) + rows.size <= _REMEMBERED or not kept:
                kept.append(rows)
    count = sum(len(chunk.by_leaf) for chunk in chunks)
    if count < columns:
        raise ValueError(
            f"only {count} of {draws} draws gave a sound gradient (finite, not zero, not "
            f"noise), fewer than the {columns} columns; give more draws, or parameters where the "
            "loss is finite"
        )
    sums = _Sums(*map(np.concatenate, zip(*chunks, strict=True)))
    leaf = null_space(sums.by_leaf, sums.by_leaf_size, eps)
    whole = null_space(sums.by_index, sums.by_index_size, eps)
    return Symmetries(shapes, leaf, whole, _by_path(np.concatenate(kept), shapes), precision)


class _Sums(NamedTuple):
    """Sums of w * grad and of its absolute values, at some points."""

    by_leaf: np.ndarray
    by_leaf_size: np.ndarray
    by_index: np.ndarray
    by_index_size: np.ndarray


def _reduce(products: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> _Sums:
    sums = []
    for array in (products, np.abs(products)):
        leaves = _by_path(array, shapes).values()
        sums.append(np.stack([_flat(leaf).sum(axis=1) for leaf in leaves], axis=1))
        sums.append(np.concatenate([_columns(leaf) for leaf in leaves], axis=1))
    return _Sums(sums[0], sums[2], sums[1], sums[3])


def _compile(loss: Callable[..., Any], params: PyTree, precision: Precision) -> Callable[..., Any]:
    """The function w * grad of flat w."""
    leaves, tree = jax.tree.flatten(params)
    ends = list(itertools.accumulate(np.size(leaf) for leaf in leaves))

    def value(w, *args):
        parts = jnp.split(w, ends[:-1])
        shaped = [
            part.reshape(np.shape(leaf)).astype(precision.dtype(leaf))
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        return objective.scalar(loss(jax.tree.unflatten(tree, shaped), *args))

    return jax.jit(lambda w, *args: w * jax.grad(value)(w, *args))


def _points(
    gradients: Callable[..., Any],
    params: PyTree,
    batches: list[Sequence[Any]],
    draws: int,
    seed: int,
    precision: Precision,
) -> Iterator[np.ndarray]:
    """Yield w * grad at random points, relative to its sum, where that is a sound number.

    One compiled call per point: as fast as a batched one for a small model, whose time goes into
    compilation, and any loss can do it.
    """
    eps = precision.rounding
    rng, leaves = np.random.default_rng(seed), list(gr.leaves(params).values())
    center = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])
    sizes, spreads = [np.size(leaf) for leaf in leaves], [spread(leaf) for leaf in leaves]
    batches = [precision.arguments(tuple(batch)) for batch in batches]
    for _, args in zip(range(draws), itertools.cycle(batches), strict=False):
        near, factors = np.exp([[1.0], [_SPREAD]] * rng.standard_normal((2, len(leaves))))
        offset = np.repeat(spreads * near, sizes) * rng.standard_normal(center.shape)
        w = (center + offset) * np.repeat(factors, sizes)
        # What is left of a second difference is noise: after a normalisation of a constant (all
        # ReLUs before it are off) there is nothing else.
        step = eps**0.6 * w * rng.uniform(-1, 1, w.shape)
        below, products, above = (
            np.asarray(gradients(v, *args), np.float64) for v in (w - step, w, w + step)
        )
        total = np.abs(products).sum()
        if not 0 < total < np.inf:
            continue
        with np.errstate(invalid="ignore"):
            noise = np.abs(below - 2 * products + above).sum()
        if noise <= ROUNDINGS * eps * total:
            yield products / total


def _in_chunks(rows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while chunk := list(itertools.islice(rows, _AT_A_TIME)):
        yield np.stack(chunk)


def _by_path(products: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Rows of all leaves, one after another, as one array per leaf."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(products, ends[:-1], axis=1)
    return {
        path: part.reshape(-1, *shape)
        for (path, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _width(shape: tuple[int, ...]) -> int:
    """The dimension of the separable exponents of a leaf."""
    return 1 + sum(length - 1 for length in shape) if math.prod(shape) else 0


def _columns(leaf: np.ndarray) -> np.ndarray:
    """Sums over each index of the first axis, and over each but the first of every other.

    The index that is left out is a difference of the others; so the columns are independent.
    """
    if leaf.ndim == 1 or not leaf.size:
        return leaf.reshape(len(leaf), -1)
    return np.concatenate(
        [_along(leaf, axis)[:, min(axis, 1) :] for axis in range(leaf.ndim - 1)], axis=1
    )


def _spread_out(direction: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The exponent of each element of a leaf, from those of `_columns`."""
    exponents = np.zeros(shape)
    if not shape or not exponents.size:
        return np.full(shape, direction.sum())
    parts = np.split(direction, np.cumsum([shape[0], *(length - 1 for length in shape[1:])])[:-1])
    for axis, part in enumerate(parts):
        ends = (slice(None),) + (None,) * (len(shape) - axis - 1)
        exponents += (part if axis == 0 else np.concatenate([[0.0], part]))[ends]
    return exponents


def _along(leaf: np.ndarray, axis: int) -> np.ndarray:
    """Sums over all axes of a leaf but one, at each point: shape (points, length)."""
    return leaf.sum(axis=tuple(i for i in range(1, leaf.ndim) if i != axis + 1))


def _flat(leaf: np.ndarray) -> np.ndarray:
    return leaf.reshape(len(leaf), -1)


def _times(x: float) -> str:
    """The coefficient in front of a leaf; 1 is not written."""
    return "" if abs(abs(x) - 1) < _VISIBLE else f"{abs(x):.3g} "
