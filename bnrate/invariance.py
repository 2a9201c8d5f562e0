"""The numeric witness: which parameters of a loss may be rescaled, by trying it.

Two facts hold for a scale-invariant group w and fail for others.  Euler's identity: the gradient
is orthogonal to w, <w, grad> = 0.  And L(c w) = L(w) itself.  `detect` asks for both, in float64,
at several random points near the given parameters, for single leaves, for sets of leaves of one
module, and for each index along an axis.  This is evidence, not a proof.

    >>> import jax.numpy as jnp
    >>> def loss(params, x, y):
    ...     h = x @ params["kernel"]
    ...     h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    ...     return jnp.mean((h @ params["head"] - y) ** 2)
    >>> key = jax.random.key(0)
    >>> params = {"kernel": jax.random.normal(key, (3, 4)), "head": jnp.ones(4)}
    >>> x, y = jax.random.normal(key, (8, 3)), jnp.arange(8.0)
    >>> detect(loss, params, x, y).groups
    Groups(groups=(Group(members=(Member(path='kernel', axis=1),)),))
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bnrate import groups as gr

_FACTORS = (0.5, 2.0, 10.0)
_JITTER = 0.3
_COARSEST = 1e-6  # rounding of the loss above which nothing can be told
_LARGEST_SET = 3
_MANY_LEAVES = 16  # a module with more leaves is searched for pairs only

INVARIANT, NO_EFFECT, REST = gr.INVARIANT, "no effect", gr.REST


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
            axes = ",".join(str(m.axis) for m in v.group.members if m.axis is not None) or "-"
            euler, scaling = ("" if np.isnan(r) else f"{r:.1e}" for r in (v.euler, v.scaling))
            jointly = v.kind == REST and v.group.name in self.groups.paths
            kind = "only jointly" if jointly else v.kind
            rows.append((v.group.name, axes, kind, euler, scaling))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


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
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
    _check_floating(params)
    with jax.enable_x64(True):
        trial = _Trial.at_random_points(loss, params, [args, *batches], draws, seed, tolerance)
        singles = [trial.judge((path,)) for path in gr.leaves(params)]
        joint = _joint(trial, [v.group.name for v in singles if v.kind == REST])
    found = [v.group for v in (*singles, *joint) if v.kind == INVARIANT]
    return Detection(gr.Groups(found), (*singles, *joint))


class _Point(NamedTuple):
    """A batch and parameters drawn at random, with the loss and w * grad (by path) there."""

    params: PyTree
    args: Sequence[Any]
    value: float
    products: dict[str, np.ndarray]


class _Trial(NamedTuple):
    """What every leaf or set of leaves is tried against."""

    value: Callable[..., Any]
    points: list[_Point]
    noise: float
    tolerance: float

    @classmethod
    def at_random_points(
        cls,
        loss: Callable[..., Any],
        params: PyTree,
        batches: list[Sequence[Any]],
        draws: int,
        seed: int,
        tolerance: float,
    ) -> "_Trial":
        rng = np.random.default_rng(seed)
        value = jax.jit(lambda p, *args: _scalar(loss(p, *args)))
        value_and_grad = jax.jit(jax.value_and_grad(value))
        points, eps = [], 0.0
        for _, args in itertools.product(range(draws), [jax.tree.map(_double, b) for b in batches]):
            w = jax.tree.map(lambda leaf: _jitter(rng, leaf), params)
            L, grad = value_and_grad(w, *args)
            if not np.isfinite(L):
                raise ValueError(f"the loss is {L} near the given parameters; it must be finite")
            grads = gr.leaves(grad)
            products = {path: np.asarray(x * grads[path]) for path, x in gr.leaves(w).items()}
            points.append(_Point(w, args, float(L), products))
            # A loss that is computed in float32 leaves float32's rounding in its gradient.
            eps = float(jnp.finfo(L.dtype).eps)
            if eps > _COARSEST:
                raise ValueError(f"the loss is {L.dtype}; compute it in float32 or wider")
        return cls(value, points, 100 * eps, tolerance)

    def judge(self, paths: tuple[str, ...]) -> Verdict:
        """Try the leaves together: each index along an axis, if there is one, or as a whole."""
        whole = gr.Group(map(gr.Member, paths))
        if self.without_effect(whole):
            return Verdict(whole, NO_EFFECT, np.nan, np.nan)
        for axes in _unit_axes(paths, self.points[0].products):
            by_index = self.attempt(gr.Group(map(gr.Member, paths, axes)))
            if by_index.kind == INVARIANT:
                return by_index
        return self.attempt(whole)

    def attempt(self, group: gr.Group) -> Verdict:
        """Try these units; rescaling is tried only if the gradient is orthogonal."""
        euler = self.euler(group)
        scaling = self.scaling(group) if euler <= self.tolerance else np.nan
        return Verdict(group, INVARIANT if scaling <= self.tolerance else REST, euler, scaling)

    def without_effect(self, group: gr.Group) -> bool:
        """Neither the gradient nor any displacement is more than rounding."""
        paths = [member.path for member in group.members]
        return all(
            sum(np.abs(p.products[path]).sum() for path in paths) <= self.floor(p)
            and max(self.changes(group, p)) <= self.noise * abs(p.value)
            for p in self.points
        )

    def floor(self, point: _Point) -> float:
        """A sum |w * grad| below this is rounding noise."""
        return self.noise * sum(np.abs(product).sum() for product in point.products.values())

    def euler(self, group: gr.Group) -> float:
        """The largest |<w, grad>| / sum |w * grad| over points and units; inf if none has one.

        Units without a gradient (behind a dead ReLU) say nothing.
        """
        worst = -np.inf
        for point in self.points:
            products = [(member, point.products[member.path]) for member in group.members]
            total = np.sum([_along(m, product) for m, product in products], axis=0)
            size = np.sum([_along(m, np.abs(product)) for m, product in products], axis=0)
            felt = size > self.floor(point)
            worst = np.max(np.abs(total[felt]) / size[felt], initial=worst)
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

    def changes(self, group: gr.Group, point: _Point) -> tuple[float, float]:
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


def _joint(trial: _Trial, candidates: list[str]) -> list[Verdict]:
    """Minimal sets of two or three leaves of one module that are invariant together only."""
    found, taken, modules = [], set(), {}
    for path in candidates:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    for paths in modules.values():
        largest = _LARGEST_SET if len(paths) <= _MANY_LEAVES else 2
        for size in range(2, largest + 1):
            for subset in itertools.combinations(paths, size):
                if taken.isdisjoint(subset):
                    verdict = trial.judge(subset)
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


def _along(member: gr.Member, product: np.ndarray | np.float64) -> np.ndarray:
    """Sum over all axes but the unit axis."""
    others = tuple(axis for axis in range(product.ndim) if axis != member.axis)
    return np.atleast_1d(product.sum(axis=others))


def _jitter(rng: np.random.Generator, leaf: Any) -> Array:
    w = np.asarray(leaf, np.float64)
    size = np.sqrt(np.mean(w**2)) if w.any() else 1.0
    return jnp.asarray(w + _JITTER * size * rng.standard_normal(w.shape))


def _double(leaf: Any) -> Any:
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if floating else leaf


def _scalar(output: Any) -> Array:
    value: Any = output[0] if isinstance(output, tuple) and output else output
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", type(value).__name__)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "the loss must return a floating scalar, or a tuple that begins with one; "
            f"got {dtype} of shape {shape}"
        )
    return value


def _check_floating(params: PyTree) -> None:
    found = gr.leaves(params)
    if not found:
        raise ValueError("there are no parameters")
    for path, leaf in found.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(f"leaf '{path}' is {dtype}; parameters must be arrays of floats")
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(f"leaf '{path}' is not finite")
