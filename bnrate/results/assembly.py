"""From rows of runs to a Dataset over the grid.

What was not computed is NaN (or 0 where there is none), and says so in `status`.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnrate.results.plans import Combination, Plan

if TYPE_CHECKING:
    import xarray as xr

# What became of a run: the words for the numbers of `status`.
STATUS = ("unfinished", "finished", "diverged", "stopped")
_ABSENT = "absent"

Rows = Mapping[str, np.ndarray]


def dataset(plan: Plan, rows: Sequence[Rows]) -> "xr.Dataset":
    """Put together what the combinations gave.

    Args:
      plan: of the sweep.
      rows: for each combination its variables, the runs on the first axis.
    """
    parts = [
        _of_combination(plan, combination, arrays)
        for combination, arrays in zip(plan.combinations, rows, strict=True)
    ]
    static = {
        dim: _distinct(c.static[dim] for c in plan.combinations)
        for dim in plan.combinations[0].static
    }
    ds = _combine(parts, static).transpose(*plan.dims, "step", ...)
    labels = {name: (dim, values) for name, (dim, values) in plan.labels.items()}
    return ds.assign_coords(labels).assign_attrs(plan.attrs)


def join(one: "xr.Dataset", *others: "xr.Dataset") -> "xr.Dataset":
    """Put Datasets of the same runs at different points together: a sweep and its refinement.

    A point that no Dataset has is NaN, and its `status` is "absent".

    Raises:
      ValueError: a point is in two of them, or they differ in their variables.
    """
    import xarray as xr  # noqa: PLC0415

    for other in others:
        if set(one.data_vars) != set(other.data_vars):
            odd = min(map(str, set(one.data_vars) ^ set(other.data_vars)))
            raise ValueError(
                f"only one of the Datasets has the variable '{odd}'; join like with like"
            )
        fill: Any = {name: _filler(one[name]) for name in one.data_vars}
        every = xr.align(one, other, join="outer", copy=False, fill_value=fill)
        present = [ds["status"] != _ABSENT for ds in every]
        if bool((present[0] & present[1]).any()):
            raise ValueError("a point of the grid is in both Datasets; drop it from one of them")
        joined = xr.where(present[0], *every, keep_attrs=False)
        one = xr.Dataset(
            {n: joined[n].transpose(*one[n].dims).astype(one[n].dtype) for n in one.data_vars},
            attrs=one.attrs,
        )
    return one


def _filler(values: "xr.DataArray") -> object:
    if values.name == "status":
        return _ABSENT
    return {"f": np.nan, "U": "", "T": ""}.get(values.dtype.kind, 0)


def _distinct(values):
    return list(dict.fromkeys(values))


def _of_combination(plan: Plan, combination: Combination, arrays: Rows) -> "xr.Dataset":
    """The rows of a combination over the traced dimensions."""
    import xarray as xr  # noqa: PLC0415

    variables = {}
    for name, variable in combination.variables.items():
        values = arrays[name].reshape(*plan.shape, *arrays[name].shape[1:])
        if name in combination.words:
            values = np.array(combination.words[name])[values]
        record = ("step",) if variable.recorded else ()
        variables[name] = ((*plan.traced, *record, *variable.dims), values)
    coords = {name: np.asarray(entries, str) for name, entries in combination.coords.items()}
    for dim, axis in plan.traced.items():
        coords |= {name: (dim, values) for name, values in axis.items()}
    return xr.Dataset(variables, {**coords, "step": np.arange(0, plan.steps, plan.stride)})


def _combine(parts: Sequence["xr.Dataset"], static: Mapping[str, Sequence[str]]) -> "xr.Dataset":
    """Join the static combinations, which may differ in the entries along the runs' own axes."""
    import xarray as xr  # noqa: PLC0415

    own = [name for name in parts[0].dims if parts[0].coords.get(name) is not None]
    entries = {
        name: _distinct(itertools.chain.from_iterable(part[name].values for part in parts))
        for name in own
    }
    parts = [part.reindex(entries) for part in parts]
    for name, values in reversed(list(static.items())):
        dim = xr.DataArray(list(values), dims=name, name=name)
        batches = [parts[i : i + len(values)] for i in range(0, len(parts), len(values))]
        parts = [
            xr.concat(batch, dim, join="exact", coords="minimal", compat="equals")
            for batch in batches
        ]
    return parts[0]
