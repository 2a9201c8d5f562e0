"""A loss at random points, and the two residuals by which every rescaling is judged."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bnrate import groups as gr

INVARIANT, NO_EFFECT, REST = gr.INVARIANT, "no effect", gr.REST

_FACTORS = (0.5, 2.0, 10.0)
_JITTER = 0.3
_COARSEST = 1e-6  # rounding of the loss above which nothing can be told


class Point(NamedTuple):
    """A batch and parameters drawn at random, with the loss and w * grad (by path) there."""

    params: PyTree
    args: Sequence[Any]
    value: float
    products: dict[str, np.ndarray]


class Trial(NamedTuple):
    """What every leaf or set of leaves is tried against.

    Attributes:
      value: the loss as a compiled function of a point's parameters and arguments.
      points: where it is tried.
      noise: what counts as rounding, relative to the numbers that it is found in.
    """

    value: Callable[..., Any]
    points: list[Point]
    noise: float

    @classmethod
    def at_random_points(
        cls,
        loss: Callable[..., Any],
        params: PyTree,
        batches: list[Sequence[Any]],
        draws: int,
        seed: int,
    ) -> "Trial":
        """Evaluate the loss and its gradient at `draws` points for each batch, in float64.

        Raises:
          ValueError: `draws` is not positive; a leaf is not floating; the loss is not a finite
            scalar of float32 or wider.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        check_floating(params)
        rng = np.random.default_rng(seed)
        value = jax.jit(lambda p, *args: scalar(loss(p, *args)))
        value_and_grad = jax.jit(jax.value_and_grad(value))
        points, eps = [], 0.0
        for _, args in itertools.product(range(draws), [jax.tree.map(double, b) for b in batches]):
            w = jax.tree.map(lambda leaf: jnp.asarray(jitter(rng, leaf)), params)
            L, grad = value_and_grad(w, *args)
            if not np.isfinite(L):
                raise ValueError(f"the loss is {L} near the given parameters; it must be finite")
            grads = gr.leaves(grad)
            products = {path: np.asarray(x * grads[path]) for path, x in gr.leaves(w).items()}
            points.append(Point(w, args, float(L), products))
            eps = rounding(L.dtype)
        return cls(value, points, 100 * eps)

    def without_effect(self, group: gr.Group) -> bool:
        """Neither the gradient nor any displacement is more than rounding."""
        paths = [member.path for member in group.members]
        return all(
            sum(np.abs(p.products[path]).sum() for path in paths) <= self.floor(p)
            and max(self.changes(group, p)) <= self.noise * abs(p.value)
            for p in self.points
        )

    def floor(self, point: Point) -> float:
        """A sum |w * grad| below this is rounding noise."""
        return self.noise * sum(np.abs(product).sum() for product in point.products.values())

    def radial(self, group: gr.Group, point: Point) -> tuple[np.ndarray, np.ndarray]:
        """|<w, grad>| and sum |w * grad| of each unit."""
        products = [(member, point.products[member.path]) for member in group.members]
        total = np.sum([_along(m, product) for m, product in products], axis=0)
        size = np.sum([_along(m, np.abs(product)) for m, product in products], axis=0)
        return np.abs(total), size

    def silent(self, group: gr.Group) -> np.ndarray:
        """Which units have no gradient at any point."""
        sizes = [self.radial(group, point)[1] <= self.floor(point) for point in self.points]
        return np.all(sizes, axis=0)

    def euler(self, group: gr.Group) -> float:
        """The largest |<w, grad>| / sum |w * grad| over points and units; inf if none has one.

        Units without a gradient (behind a dead ReLU) say nothing.
        """
        worst = -np.inf
        for point in self.points:
            total, size = self.radial(group, point)
            felt = size > self.floor(point)
            worst = np.max(total[felt] / size[felt], initial=worst)
        return float(worst) if worst >= 0 else np.inf

    def scaling(self, group: gr.Group) -> float:
        """The largest change of the loss under rescaling, relative to that under displacement.

        Relative to the loss itself, a leaf of little influence would pass for invariant.
        """
        worst = 0.0
        for point in self.points:
            rescaled, displaced = self.changes(group, point)
            if displaced <= self.noise * abs(point.value):
                return np.inf
            worst = np.maximum(worst, rescaled / displaced)  # NaN stays
        return float(worst)

    def changes(self, group: gr.Group, point: Point) -> tuple[float, float]:
        """The largest |L - L(w)| at c w over factors c, and at random points as far from w.

        A loss that is not finite at c w counts; elsewhere it says nothing.
        """
        rng, groups, changes = np.random.default_rng(0), gr.Groups([group]), []
        lengths = jnp.sqrt(gr.norm2(groups, point.params))
        low, high = np.log(min(_FACTORS)), np.log(max(_FACTORS))
        by_unit = [np.exp(rng.uniform(low, high, len(lengths)))] if len(lengths) > 1 else []
        for factors in (*(np.full(len(lengths), c) for c in _FACTORS), *by_unit):
            scaled = gr.rescale(groups, point.params, jnp.asarray(factors))
            noise = jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape)), point.params)
            step = gr.rescale(
                groups, gr.unit_vectors(groups, noise), jnp.abs(factors - 1) * lengths
            )
            moved = gr.combine(groups, jax.tree.map(jnp.add, point.params, step), point.params)
            values = [float(self.value(w, *point.args)) for w in (scaled, moved)]
            changes.append(np.abs(np.array(values) - point.value))
        rescaled, displaced = np.transpose(changes)
        return float(np.max(rescaled)), float(
            np.max(displaced, where=np.isfinite(displaced), initial=0)
        )


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError unless the tolerance lies between 0 and 1."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")


def check_floating(params: PyTree) -> None:
    """Raises ValueError unless the parameters are finite arrays of floats, at least one."""
    found = gr.leaves(params)
    if not found:
        raise ValueError("there are no parameters")
    for path, leaf in found.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(f"leaf '{path}' is {dtype}; parameters must be arrays of floats")
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(f"leaf '{path}' is not finite")


def jitter(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """A random point near a leaf, in float64."""
    w = np.asarray(leaf, np.float64)
    return np.asarray(w + spread(w) * rng.standard_normal(w.shape))


def spread(leaf: Any) -> float:
    """How far away random points lie: 0.3 of a leaf's size (of 1, if it is zero)."""
    w = np.asarray(leaf, np.float64)
    return _JITTER * float(np.sqrt(np.mean(w**2)) if w.any() else 1.0)


def double(leaf: Any) -> Any:
    """Floating arrays in float64, anything else as it is."""
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    # By way of numpy, which need not compile a conversion.
    return jnp.asarray(np.asarray(leaf, np.float64)) if floating else leaf


def scalar(output: Any) -> Array:
    """The loss in what a loss function returned.

    Raises:
      ValueError: that is neither a floating scalar nor a tuple that begins with one.
    """
    value: Any = output[0] if isinstance(output, tuple) and output else output
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", type(value).__name__)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "the loss must return a floating scalar, or a tuple that begins with one; "
            f"got {dtype} of shape {shape}"
        )
    return value


def rounding(dtype: Any) -> float:
    """The relative rounding of a loss of this dtype, and of its gradient.

    Raises:
      ValueError: it is too coarse to tell anything.
    """
    eps = float(jnp.finfo(dtype).eps)
    if eps > _COARSEST:
        raise ValueError(f"the loss is {dtype}; compute it in float32 or wider")
    return eps


def _along(member: gr.Member, product: np.ndarray | np.float64) -> np.ndarray:
    """Sum over all axes but the unit axes."""
    others = tuple(axis for axis in range(product.ndim) if axis not in member.axes)
    return np.atleast_1d(product.sum(axis=others))
