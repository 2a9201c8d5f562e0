"""What a sweep will compute, as a value that is written to disk before any step is computed."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

_SHOWN = 60  # characters of a value
FORMAT = 1  # of the files of a sweep at work; a newer one is refused
OWN = ("devices",)  # in which machines that share a sweep may differ


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of a combination, one entry a run.

    Attributes:
      dims: the names of its axes, after the run's and the record's.
      shape: along these axes.
      dtype: as NumPy names it.
      recorded: at every record; otherwise a final value.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    recorded: bool


@dataclasses.dataclass(frozen=True)
class Combination:
    """One value of each static dimension, and what its runs give.

    Attributes:
      static: dimension -> value.
      variables: by name.
      coords: the entries along the variables' own axes.
      words: what the numbers of a final value stand for.
    """

    static: Mapping[str, str]
    variables: Mapping[str, Variable]
    coords: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep: its runs, what they record, and what must not change while it is under way.

    Attributes:
      dims: of the grid, in the order of the Dataset.
      traced: dimension -> name -> numbers along it.
      labels: more coordinates, name -> (dimension, values).
      steps: of each run.
      stride: steps from one record to the next.
      chunk: records from one write to the next.
      combinations: of the static dimensions.
      identity: name -> JSON: all that the numbers depend on; two sweeps with different identities
        never share a folder.
      attrs: of the Dataset.
    """

    dims: tuple[str, ...]
    traced: Mapping[str, Mapping[str, np.ndarray]]
    labels: Mapping[str, tuple[str, list[Any]]]
    steps: int
    stride: int
    chunk: int
    combinations: tuple[Combination, ...]
    identity: Mapping[str, Any]
    attrs: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the traced dimensions."""
        return tuple(len(next(iter(axis.values()))) for axis in self.traced.values())

    @property
    def runs(self) -> int:
        """Of each combination."""
        return math.prod(self.shape)

    @property
    def records(self) -> int:
        """Of each run."""
        return self.steps // self.stride


def differences(there: Plan, here: Plan, but: Collection[str] = ()) -> list[str]:
    """What differs between the identities of two sweeps, in words, but for some names."""
    old, new = (_flat(plan.identity, but) for plan in (there, here))
    return [
        f"{name} is {_short(new.get(name))}, there it was {_short(old.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(identity: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
    """Name by name, also those inside the axes and the config."""
    flat = {}
    for name, value in identity.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": of for inner, of in value.items()}
        elif name not in but:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def same_rows(one: Plan, other: Plan) -> bool:
    """Whether two sweeps keep rows of the same runs and records, whatever computes them."""
    documents = [json.loads(to_json(plan)) for plan in (one, other)]
    for document in documents:
        for name in ("labels", "identity", "attrs"):
            del document[name]
    return documents[0] == documents[1]


def to_json(plan: Plan) -> str:
    """The plan as text; numbers come back exactly."""
    document = dataclasses.asdict(plan) | {"format": FORMAT}
    document["traced"] = {
        dim: {name: [str(values.dtype), values.tolist()] for name, values in axis.items()}
        for dim, axis in plan.traced.items()
    }
    return json.dumps(document, indent=1)


def from_json(text: str) -> Plan:
    """Read what `to_json` wrote.

    Raises:
      ValueError: a newer format; no plan.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError("it is not the plan of a sweep")
    if document.pop("format") > FORMAT:
        raise ValueError("it was written by a newer version of bnrate; update to read it")
    document["dims"] = tuple(document["dims"])
    document["traced"] = {
        dim: {name: np.array(values, dtype) for name, (dtype, values) in axis.items()}
        for dim, axis in document["traced"].items()
    }
    document["labels"] = {name: tuple(label) for name, label in document["labels"].items()}
    document["combinations"] = tuple(map(_combination, document["combinations"]))
    return Plan(**document)


def _combination(document: dict[str, Any]) -> Combination:
    variables = {
        name: Variable(tuple(v["dims"]), tuple(v["shape"]), v["dtype"], v["recorded"])
        for name, v in document["variables"].items()
    }
    coords, words = (
        {name: tuple(entries) for name, entries in document[field].items()}
        for field in ("coords", "words")
    )
    return Combination(document["static"], variables, coords, words)
