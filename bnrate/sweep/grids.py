"""Which runs there are: axes of numbers (traced) and of strings (static), crossed or zipped.

    >>> grid = read({"rule": ["sgd"], "rate": [0.1, 1.0], "seed": range(2)})
    >>> grid.static, grid.points["rate"].tolist(), grid.points["seed"].tolist()
    ({'rule': ('sgd',)}, [0.1, 0.1, 1.0, 1.0], [0, 1, 0, 1])

Names that vary together share a dimension, here `trial`:

    >>> trials = {"rate": log_uniform(1e-3, 1e1, 64), "momentum": uniform(0.0, 0.99, 64, seed=1)}
    >>> read({"trial": trials, "seed": range(3)}).runs
    192
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

Axis = Sequence[Any] | np.ndarray | Mapping[str, Sequence[Any] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The dimensions of a sweep, in the order given.

    Attributes:
      dims: all of them.
      static: dimension -> its strings; the run is made anew for each combination.
      traced: dimension -> name -> the numbers along it; one name unless several are zipped.
    """

    dims: tuple[str, ...]
    static: Mapping[str, tuple[str, ...]]
    traced: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the traced dimensions."""
        return tuple(len(next(iter(axis.values()))) for axis in self.traced.values())

    @property
    def runs(self) -> int:
        """How many runs each combination has."""
        return math.prod(self.shape)

    @property
    def points(self) -> dict[str, np.ndarray]:
        """Each name's value for each run; the last dimension varies fastest."""
        index = np.unravel_index(np.arange(self.runs), self.shape)
        return {
            name: values[along]
            for along, axis in zip(index, self.traced.values(), strict=True)
            for name, values in axis.items()
        }

    @property
    def combinations(self) -> list[dict[str, str]]:
        """One value of each static dimension, in all ways."""
        names = self.static
        return [
            dict(zip(names, values, strict=True)) for values in itertools.product(*names.values())
        ]


def read(grid: Mapping[str, Axis]) -> Grid:
    """Check the axes and tell the static from the traced.

    Raises:
      ValueError: an axis that is empty, repeats a value (as JAX sees it) or mixes kinds; zipped
        names of unequal lengths; a name used twice; no axis of numbers.
    """
    if not isinstance(grid, Mapping):
        raise ValueError(f"the grid must be a dict of axes by name, got {type(grid).__name__}")
    static, traced = {}, {}
    for dim, axis in grid.items():
        if isinstance(axis, Mapping):
            traced[dim] = _zipped(dim, axis)
            continue
        values = _values(dim, axis)
        _refuse_repeats(dim, {dim: values}, axis)
        if values.dtype.kind == "U":
            static[dim] = tuple(map(str, values))
        else:
            traced[dim] = {dim: values}
    names = [*static, *traced, *(n for d, axis in traced.items() for n in axis if n != d)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"the grid has the name '{min(twice)}' twice; give each axis its own")
    if "step" in names:
        raise ValueError("the name 'step' is taken by what is recorded; name the axis differently")
    if not traced:
        raise ValueError(f"the grid needs an axis of numbers, it has {', '.join(grid) or 'none'}")
    return Grid(tuple(grid), static, traced)


def uniform(low: float, high: float, n: int, *, seed: int = 0) -> np.ndarray:
    """`n` numbers drawn uniformly between two, for a zipped axis; float64.

    Raises:
      ValueError: not low < high, both finite; n below 1.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the range must be two finite numbers, low < high; got {low} and {high}")
    if n < 1:
        raise ValueError(f"draw 1 value or more, got n = {n}")
    return np.random.default_rng(seed).uniform(low, high, n)


def log_uniform(low: float, high: float, n: int, *, seed: int = 0) -> np.ndarray:
    """`n` numbers whose logarithms are drawn uniformly: learning rates, say; float64.

    Raises:
      ValueError: not 0 < low < high, both finite; n below 1.
    """
    if not low > 0:
        raise ValueError(f"a log-uniform range must be positive, got {low} and {high}")
    return np.exp(uniform(math.log(low), math.log(high), n, seed=seed))


def _zipped(dim: str, axis: Mapping[str, Any]) -> dict[str, np.ndarray]:
    values = {name: _values(name, along) for name, along in axis.items()}
    lengths = {name: len(along) for name, along in values.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the names zipped along '{dim}' must be equally long, got {lengths}")
    strings = [name for name, along in values.items() if along.dtype.kind == "U"]
    if strings:
        raise ValueError(f"'{strings[0]}', zipped along '{dim}', must be numbers, not strings")
    _refuse_repeats(dim, values, axis)
    return values


def _values(name: str, axis: Any) -> np.ndarray:
    """The values of an axis, after a check that JAX can hold them."""
    values = np.asarray(axis)
    strings = sum(isinstance(value, str) for value in axis) if values.ndim == 1 else 0
    if values.ndim != 1 or values.dtype.kind not in "fiuU" or strings not in (0, values.size):
        raise ValueError(f"axis '{name}' must be a list of numbers or of strings, got {axis!r}")
    if values.size == 0:
        raise ValueError(f"axis '{name}' must be a list of one value or more, got none")
    if not strings:
        seen = _as_jax_sees(values)
        whole = values.dtype.kind in "iu"
        if not (np.array_equal(seen, values) if whole else np.isfinite(seen).all()):
            raise ValueError(f"axis '{name}' has values that {seen.dtype} cannot hold: {axis!r}")
    return values


def _as_jax_sees(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "U":
        return values
    with np.errstate(over="ignore"):
        return values.astype(jax.dtypes.canonicalize_dtype(values.dtype))


def _refuse_repeats(dim: str, values: Mapping[str, np.ndarray], given: Any) -> None:
    """Refuse two points along a dimension that are the same to JAX."""
    codes = [np.unique(_as_jax_sees(along), return_inverse=True)[1] for along in values.values()]
    if len(np.unique(np.stack(codes), axis=1).T) < len(codes[0]):
        dtypes = ", ".join(str(_as_jax_sees(along).dtype) for along in values.values())
        raise ValueError(f"axis '{dim}' repeats a value (as {dtypes}): {given!r}")
