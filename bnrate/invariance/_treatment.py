"""What an optimiser is told about each leaf: read from trees, mappings, functions and JSON."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from bnrate import groups as gr

Meaning = Literal["invariant", "decay", "trust_ratio"]
Treatment = PyTree | Callable[[PyTree], PyTree]

_FORM = '{"layer/kernel": 1, "norm/scale": "invariant", "head/kernel": false, "embedding": null}'
_LEGAL = (
    '"invariant" or "rest"; true or false; a unit axis, several of them in a tuple, or null; '
    "optax.contrib.MuonDimensionNumbers"
)


def read(
    treatment: Treatment, params: PyTree, meaning: Meaning | None
) -> dict[str, tuple[str, Any]]:
    """Return the kind of the treatment of each leaf that has one, and what it says.

    Kinds are "invariant", "decay" and "trust_ratio" (a bool), "projected" (unit axes from the
    front) and "muon" (dimension numbers, or None: left to Adam).

    Raises:
      ValueError: a treatment is none of the legal ones or has no such axis; bools have no meaning,
        or a meaning has no bools; the treatment does not fit the parameters.
    """
    if meaning not in (None, *get_args(Meaning)):
        raise ValueError(f"meaning must be one of {get_args(Meaning)}, got {meaning!r}")
    values = _by_path(treatment(params) if callable(treatment) else treatment, params)
    if meaning and not any(isinstance(value, bool | np.bool_) for value in values.values()):
        raise ValueError(f"meaning={meaning!r} is that of bools, and the treatment has none")
    muon = any(isinstance(value, MuonDimensionNumbers) for value in values.values())
    leaves = gr.leaves(params)
    return {
        path: _parse(path, np.shape(leaves[path]), value, meaning, muon)
        for path, value in values.items()
    }


def treatment_from_json(text: str) -> dict[str, Any]:
    """Read a treatment: an object from paths to labels, bools, unit axes (or a list) or null.

    Other than in Python there are no Muon dimensions.

        >>> treatment_from_json('{"kernel": [0, 2], "norm/scale": "invariant", "head": false}')
        {'kernel': (0, 2), 'norm/scale': 'invariant', 'head': False}

    Raises:
      ValueError: the text is not JSON, or not of that form.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected an object like {_FORM}") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected an object from paths to treatments, like {_FORM}")
    for path, value in document.items():
        axes = tuple(value) if isinstance(value, list) else None
        if not (value is None or isinstance(value, str | int) or _are_axes(axes)):  # bools are ints
            raise ValueError(
                f"leaf '{path}' has the treatment {json.dumps(value)}; expected a label, a bool, "
                f"a unit axis, a list of them, or null, like {_FORM}"
            )
    return {path: tuple(v) if isinstance(v, list) else v for path, v in document.items()}


@dataclasses.dataclass(frozen=True)
class _Box:
    """A treatment as a leaf of a tree, even if it is None or a tuple."""

    value: Any


def _by_path(treatment: PyTree, params: PyTree) -> dict[str, Any]:
    """The treatment of each leaf that has one."""
    known = gr.leaves(params)
    if isinstance(treatment, Mapping) and (
        set(treatment) <= set(known) or any("/" in str(key) for key in treatment)
    ):
        for path in treatment:
            if path not in known:
                raise ValueError(f"there is no leaf '{path}'; there are {', '.join(known)}")
        return dict(treatment)
    try:
        boxes = _boxed(treatment, params, lambda node: False)
    except (ValueError, TypeError):
        try:  # a tuple of ints is first of all a tree, like one of parameters
            boxes = _boxed(treatment, params, _are_axes)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "the treatment is neither a mapping from paths nor a tree like the parameters (or "
                f"a prefix of it): {error}"
            ) from error
    return {path: box.value for path, box in gr.leaves(boxes).items()}


def _boxed(treatment: PyTree, params: PyTree, is_leaf: Callable[[Any], bool]) -> PyTree:
    return jax.tree.map(
        lambda value, part: jax.tree.map(lambda _: _Box(value), part),
        treatment,
        params,
        is_leaf=lambda n: n is None or isinstance(n, MuonDimensionNumbers) or is_leaf(n),
    )


def _are_axes(value: Any) -> bool:
    return type(value) is tuple and all(
        isinstance(axis, int | np.integer) and not isinstance(axis, bool) for axis in value
    )


def _parse(
    path: str, shape: tuple[int, ...], value: Any, meaning: Meaning | None, muon: bool
) -> tuple[str, Any]:
    match value:
        case gr.INVARIANT | gr.REST:
            return "invariant", value == gr.INVARIANT
        case bool() | np.bool_():
            if meaning is None:
                raise ValueError(
                    f"leaf '{path}' is told {value}, which could mean anything; give "
                    f"meaning= one of {get_args(Meaning)}"
                )
            return meaning, bool(value)
        case MuonDimensionNumbers():
            return "muon", value
        case None:
            return ("muon", None) if muon else ("projected", ())
        case int() | np.integer():
            return "projected", _axes(path, shape, (int(value),))
        case tuple() if _are_axes(value):
            return "projected", _axes(path, shape, value)
    raise ValueError(f"leaf '{path}' has the treatment {value!r}; legal are {_LEGAL}")


def _axes(path: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Unit axes from the front; one of length 1 is none."""
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"leaf '{path}' has rank {len(shape)}, so it has no axis {axis}; give "
                f"an axis from {-len(shape)} to {len(shape) - 1}, or None"
            )
    return tuple(sorted({axis % len(shape) for axis in axes if shape[axis] > 1}))
