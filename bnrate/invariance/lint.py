"""What an optimiser is told about each leaf, held against the scale-invariant groups.

The *treatment* of a leaf is one of

- "invariant" or "rest": a label, as `groups.labels` writes it and `optax.partition` takes it;
- a bool, in a mask whose `meaning` is given: "invariant" (True: treated as scale-invariant),
  "decay" (True: weight decay, as in `optax.adamw(mask=...)`) or "trust_ratio" (True: its update is
  scaled by |w| / |update|, as in `optax.lars(trust_ratio_mask=...)`);
- an int or None: its norm is held fixed by projection (nGPT, hyperball), that of each index of this
  unit axis, or (None) that of the whole leaf;
- `optax.contrib.MuonDimensionNumbers`; in a tree with any of them, None means: left to Adam.

An *error* contradicts the groups: it takes for free what the loss feels, or the reverse.  A *note*
is legitimate, with a consequence worth knowing.  A true and unremarkable treatment yields nothing.

    >>> import jax.numpy as jnp
    >>> from bnrate.groups import Group, Groups, Member
    >>> params = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "head": jnp.ones((2, 3))}
    >>> groups = Groups([Group([Member("norm/bias"), Member("norm/scale")])])
    >>> print(lint({"norm/scale": None, "head": 1}, groups, params))
    path        severity  finding
    head        error     has a fixed norm, but it is in no scale-invariant group: projecting it
                          changes the function
    norm/scale  error     has a fixed norm, but it is scale-invariant only jointly with
                          'norm/bias': scale them by one factor
"""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from bnrate import groups as gr
from bnrate.invariance.table import table

Meaning = Literal["invariant", "decay", "trust_ratio"]
Severity = Literal["error", "note"]

_FORM = '{"layer/kernel": 1, "norm/scale": "invariant", "head/kernel": false, "embedding": null}'
_LEGAL = (
    '"invariant" or "rest"; true or false; a unit axis or null; optax.contrib.MuonDimensionNumbers'
)
_WIDTH = 72


@dataclasses.dataclass(frozen=True)
class Finding:
    """One disagreement: the leaf's path, "error" or "note", and a sentence of which it is subject.

    `str` gives the whole sentence.
    """

    path: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"'{self.path}' {self.message}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """All findings, in the tree's order; iterable, and empty if there is nothing to say."""

    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that contradict the groups."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def __str__(self) -> str:
        """A table in which leaves with the same finding share a row."""
        if not self.findings:
            return "no findings"
        shared: dict[tuple[Severity, str], list[str]] = {}
        for finding in self.findings:
            shared.setdefault((finding.severity, finding.message), []).append(finding.path)
        rows = [("path", "severity", "finding")]
        for (severity, message), paths in shared.items():
            more = [f"(and {len(paths) - 1} more)"] if len(paths) > 1 else []
            lines, names = textwrap.wrap(message, _WIDTH), [paths[0], *more]
            for i in range(max(len(lines), len(names))):
                cells = [cell[i] if i < len(cell) else "" for cell in (names, [severity], lines)]
                rows.append((cells[0], cells[1], cells[2]))
        return table(rows)


def lint(
    treatment: PyTree | Callable[[PyTree], PyTree],
    groups: gr.Groups,
    params: PyTree,
    *,
    meaning: Meaning | None = None,
) -> Findings:
    """List where what an optimiser is told disagrees with what is scale-invariant.

    Args:
      treatment: of each leaf, as this module's docstring lists them: a tree like the parameters or
        a prefix of it, as optax takes masks; or a function that makes one of the parameters; or a
        mapping from the paths of some leaves.
      groups: the truth, from `detect` or a certificate.
      params: the tree to which both belong; only its structure and shapes matter.
      meaning: of the bools, which could mean anything.

    Returns:
      At most one finding per leaf, in the order of the parameters.

    Raises:
      ValueError: a treatment is none of the legal ones or has no such axis; bools have no meaning,
        or a meaning has no bools; the treatment or the groups do not fit the parameters.
    """
    if meaning not in (None, *get_args(Meaning)):
        raise ValueError(f"meaning must be one of {get_args(Meaning)}, got {meaning!r}")
    leaves = _leaves(groups, params)
    values = _by_path(treatment(params) if callable(treatment) else treatment, params)
    if meaning and not any(isinstance(value, bool | np.bool_) for value in values.values()):
        raise ValueError(f"meaning={meaning!r} is that of bools, and the treatment has none")
    muon = any(isinstance(value, MuonDimensionNumbers) for value in values.values())
    told: dict[str, dict[str, Any]] = {kind: {} for kind in _RULES}
    for path, value in values.items():
        kind, value = _parse(leaves[path], value, meaning, muon)
        told[kind][path] = value
    found = []
    for path, leaf in leaves.items():
        for kind, rule in _RULES.items():
            if path in told[kind] and (verdict := rule(leaf, told[kind])):
                found.append(Finding(path, *verdict))
        if told["projected"] and path not in values and leaf.member and not leaf.partners:
            found.append(Finding(path, "note", "is scale-invariant, but its norm is not fixed"))
    return Findings(tuple(found))


def treatment_from_json(text: str) -> dict[str, Any]:
    """Read a treatment: an object from paths to labels, bools, unit axes or null.

    Other than in Python there are no Muon dimensions.

        >>> treatment_from_json('{"layer/kernel": 1, "norm/scale": "invariant", "head": false}')
        {'layer/kernel': 1, 'norm/scale': 'invariant', 'head': False}

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
        if not (value is None or isinstance(value, str | int)):  # a bool is an int
            raise ValueError(
                f"leaf '{path}' has the treatment {json.dumps(value)}; expected a label, a bool, "
                f"a unit axis or null, like {_FORM}"
            )
    return document


class _Leaf(NamedTuple):
    """A leaf and what is true of it: its place in a group, if any, and who else is in there."""

    path: str
    shape: tuple[int, ...]
    member: gr.Member | None
    partners: tuple[str, ...]

    @property
    def jointly(self) -> str:
        return "jointly with " + ", ".join(f"'{path}'" for path in self.partners)

    @property
    def unit_axis(self) -> int | None:
        return self.axis(self.member.axes[0]) if self.member and self.member.axes else None

    def axis(self, axis: int | None) -> int | None:
        """A unit axis from the front; one of length 1 has the whole leaf as its only unit."""
        if axis is None:
            return None
        if not -len(self.shape) <= axis < len(self.shape):
            raise ValueError(
                f"leaf '{self.path}' has rank {len(self.shape)}, so it has no axis {axis}; give "
                f"an axis from {-len(self.shape)} to {len(self.shape) - 1}, or None"
            )
        return axis % len(self.shape) if self.shape[axis] > 1 else None


_Verdict = tuple[Severity, str] | None


def _leaves(groups: gr.Groups, params: PyTree) -> dict[str, _Leaf]:
    gr.units(groups, params)  # the groups fit
    owner = {m.path: (m, group) for group in groups for m in group.members}
    leaves = {}
    for path, leaf in gr.leaves(params).items():
        member, group = owner.get(path, (None, None))
        others = tuple(m.path for m in group.members if m is not member) if group else ()
        leaves[path] = _Leaf(path, tuple(leaf.shape), member, others)
    return leaves


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
        boxes = jax.tree.map(
            lambda value, part: jax.tree.map(lambda _: _Box(value), part),
            treatment,
            params,
            is_leaf=lambda node: node is None or isinstance(node, MuonDimensionNumbers),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "the treatment is neither a mapping from paths nor a tree like the parameters (or a "
            f"prefix of it): {error}"
        ) from error
    return {path: box.value for path, box in gr.leaves(boxes).items()}


def _parse(leaf: _Leaf, value: Any, meaning: Meaning | None, muon: bool) -> tuple[str, Any]:
    """The kind of a treatment, a key of `_RULES`, and what it says."""
    match value:
        case gr.INVARIANT | gr.REST:
            return "invariant", value == gr.INVARIANT
        case bool() | np.bool_():
            if meaning is None:
                raise ValueError(
                    f"leaf '{leaf.path}' is told {value}, which could mean anything; give "
                    f"meaning= one of {get_args(Meaning)}"
                )
            return meaning, bool(value)
        case MuonDimensionNumbers():
            return "muon", value
        case None:
            return ("muon", None) if muon else ("projected", None)
        case int() | np.integer():
            return "projected", leaf.axis(int(value))
    raise ValueError(f"leaf '{leaf.path}' has the treatment {value!r}; legal are {_LEGAL}")


def _invariant(leaf: _Leaf, told: Mapping[str, bool]) -> _Verdict:
    unsaid = [path for path in leaf.partners if path not in told]
    match told[leaf.path], leaf.member:
        case True, None:
            return "error", "is treated as scale-invariant, but it is in no scale-invariant group"
        case True, _ if unsaid:
            return "error", (
                f"is treated as scale-invariant, but it is so only {leaf.jointly}, and nothing is "
                f"said of '{unsaid[0]}'"
            )
        case False, gr.Member():
            jointly = f" {leaf.jointly}" if leaf.partners else ""
            return "error", f"is treated as rest, but it is scale-invariant{jointly}"
    return None


def _decay(leaf: _Leaf, told: Mapping[str, bool]) -> _Verdict:
    if leaf.member is None:
        return None  # decay of the rest is a regulariser like any other
    decays = told[leaf.path]
    if not all(told.get(path, decays) == decays for path in leaf.partners):
        message = (
            f"decays, but it is scale-invariant only {leaf.jointly}, and not all of them decay: "
            "that changes the function"
        )
        return ("note", message) if decays else None
    if decays:
        return "note", (
            "is scale-invariant, so weight decay does not regularise it: it sets the equilibrium "
            "of its norm, hence its effective rate"
        )
    return "note", (
        "is scale-invariant and does not decay: its norm keeps growing, and its effective rate "
        "falls for ever"
    )


def _trust_ratio(leaf: _Leaf, told: Mapping[str, bool]) -> _Verdict:
    match told[leaf.path], leaf.member:
        case True, None:
            return "note", (
                "has a trust ratio, but the loss feels its norm: the length of its steps follows "
                "the norm, not the gradient"
            )
        case True, _ if leaf.partners:
            return "note", (
                f"has a trust ratio of its own, but it is scale-invariant only {leaf.jointly}"
            )
        case False, gr.Member():
            return "note", (
                "is scale-invariant, but without a trust ratio: its relative update falls as its "
                "norm grows"
            )
    return None


def _projected(leaf: _Leaf, told: Mapping[str, int | None]) -> _Verdict:
    axis, unit_axis = told[leaf.path], leaf.unit_axis
    if leaf.member is None:
        return "error", (
            "has a fixed norm, but it is in no scale-invariant group: projecting it changes the "
            "function"
        )
    if leaf.partners:
        return "error", (
            f"has a fixed norm, but it is scale-invariant only {leaf.jointly}: scale them by one "
            "factor"
        )
    if axis is None and unit_axis is not None:
        return "note", (
            f"has one fixed norm, but each index of axis {unit_axis} is a unit: their norms still "
            "drift against each other, and so do their effective rates"
        )
    if axis is not None and unit_axis is None:
        return "error", (
            f"has a fixed norm at each index of axis {axis}, but it is scale-invariant as a whole "
            "only (as under LayerNorm or RMSNorm): projecting an index alone changes the function"
        )
    if axis != unit_axis:
        return "error", (
            f"has a fixed norm at each index of axis {axis}, but its units are the indices of axis "
            f"{unit_axis}: projecting along the wrong axis changes the function"
        )
    return None


def _muon(leaf: _Leaf, told: Mapping[str, MuonDimensionNumbers | None]) -> _Verdict:
    dims, rank = told[leaf.path], len(leaf.shape)
    if dims is None:
        matrix = leaf.member is not None and not leaf.partners and rank >= 2
        return ("note", "is a scale-invariant matrix that Muon leaves to Adam") if matrix else None
    if rank < 2:
        return "error", f"is given to Muon, but it is no matrix: its shape is {leaf.shape}"
    reduction, output = _axes(dims.reduction_axis), _axes(dims.output_axis)
    if not all(-rank <= axis < rank for axis in (*reduction, *output)):
        return "error", (
            f"has Muon reduction axes {reduction} and output axes {output}, but only {rank} axes"
        )
    reduction, output = ({axis % rank for axis in axes} for axes in (reduction, output))
    if reduction & output:
        return "error", f"has axis {min(reduction & output)} as reduction and output axis of Muon"
    if leaf.unit_axis in reduction:
        return "error", (
            f"has axis {leaf.unit_axis} as a reduction axis of Muon, but its indices are the units "
            "(output channels): reduction and output axes look swapped"
        )
    return None


def _axes(axes: Sequence[int] | int) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


_RULES: dict[str, Callable[[_Leaf, Mapping[str, Any]], _Verdict]] = {
    "invariant": _invariant,
    "decay": _decay,
    "trust_ratio": _trust_ratio,
    "projected": _projected,
    "muon": _muon,
}
