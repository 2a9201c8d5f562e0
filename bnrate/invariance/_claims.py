"""What is proven of a leaf, and what the loss says to a claim that goes beyond it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr
from bnrate import objective
from bnrate.invariance import _program
from bnrate.invariance._evaluation import Evaluation
from bnrate.invariance._findings import Severity
from bnrate.invariance._verdict import NO_EFFECT

Answer = tuple[Severity, str] | None

_DRAWS = 3


class Leaf(NamedTuple):
    """A leaf and what is proven of it.

    Attributes:
      path: of the leaf.
      shape: of the leaf.
      members: its places in groups: none; one; or several, if they are parts of it.
      partners: the other leaves of these groups.
      covered: whether all of it is in groups.
    """

    path: str
    shape: tuple[int, ...]
    members: tuple[gr.Member, ...]
    partners: tuple[str, ...]
    covered: bool

    @property
    def jointly(self) -> str:
        """With whom."""
        return "jointly with " + ", ".join(f"'{path}'" for path in self.partners)

    @property
    def units(self) -> tuple[int, ...]:
        """The axes whose indices are its units, without those of length 1."""
        if len(self.members) == 1 and self.members[0].shape is None and self.covered:
            return tuple(sorted(a for a in self.members[0].axes if self.shape[a] > 1))
        return ()

    def proven(self, axes: tuple[int, ...]) -> bool:
        """Whether each index of these axes may be scaled alone."""
        return self.covered and not self.partners and set(axes) <= set(self.units)

    def limits(self) -> str:
        """Return what is proven instead, in words."""
        if not self.members:
            return "it is in no scale-invariant group"
        if not self.covered:
            return f"scale-invariant is only {', '.join(member.name for member in self.members)}"
        if self.partners:
            return f"it is known to be scale-invariant only {self.jointly}"
        if self.units:
            return f"its known units are the indices of {axes_text(self.units)}"
        if any(member.axes for member in self.members):
            return f"its known units are {', '.join(map(repr, self.members))}"
        return "it is known to be scale-invariant as a whole only (as under LayerNorm or RMSNorm)"


def known_leaves(groups: gr.Groups, params: PyTree) -> dict[str, Leaf]:
    """Return what is proven of each leaf, by path.

    Raises:
      ValueError: the groups do not fit the parameters.
    """
    labels = gr.leaves(gr.labels(groups, params))
    found = {}
    for path, leaf in gr.leaves(params).items():
        members = groups.by_path.get(path, ())
        others = [m.path for g in groups if set(g.members) & set(members) for m in g.members]
        partners = tuple(dict.fromkeys(other for other in others if other != path))
        covered = labels[path] == gr.INVARIANT
        found[path] = Leaf(path, np.shape(leaf), members, partners, covered)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Witness:
    """The loss, if one is given, to be asked about claims."""

    loss: Callable[..., Any] | None
    params: PyTree
    args: tuple[Any, ...]
    tolerance: float

    def ask(
        self, leaf: Leaf, axes: tuple[int, ...], subject: str, harm: str, refuted: Severity
    ) -> Answer:
        """Return what to say of a leaf that is treated as if each index of these axes were a unit.

        Args:
          leaf: of which that is not proven.
          axes: none: the whole leaf.
          subject: how it is treated, a clause.
          harm: what that does if it is no unit, a clause; perhaps empty.
          refuted: how severe that is.
        """
        said = f"{subject}, but {leaf.limits()}"
        if self.loss is None:
            unknown = f"whether {harm}" if harm else "more"
            return "unknown", f"{said}: {unknown} is not known; have it tried (loss=, or --numeric)"
        claim = gr.Group([gr.Member(leaf.path, axes)])
        verdict = self._evaluation.attempt(claim, self.tolerance)
        if not verdict.passes:
            return refuted, f"{said}{harm and f'; {harm}'}: {verdict.figure}"
        if verdict.kind == NO_EFFECT:
            return "note", f"{said}; nothing that was tried on it changes the loss"
        return "note", f"{said}; more is not proven, nor do numbers refute it"

    @functools.cached_property
    def scales(self) -> dict[str, str]:
        """The leaves of two axes or more that the loss does not use as matrices, and why."""
        if self.loss is None:
            return {}
        shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(self.params).items()}
        return _program.scales(objective.trace(self.loss, self.params, self.args), shapes)

    def suspected(self, leaf: Leaf) -> Answer:
        """Return what to say of a decayed leaf that looks like a stack of vectors, without a loss.

        It has two axes, of which the first is as long as that of a leaf of three or more: layers.
        """
        shapes = [np.shape(other) for other in gr.leaves(self.params).values()]
        stacks = {shape[0] for shape in shapes if len(shape) > 2 and shape[0] > 1}
        if len(leaf.shape) != 2 or leaf.shape[0] not in stacks:
            return None
        return "unknown", (
            f"decays; of shape {leaf.shape} it may be a stack of {leaf.shape[0]} vectors, which a "
            "mask by rank, such as ndim >= 2, takes for a matrix; have it looked at (loss=, or "
            "--numeric)"
        )

    def rank(self, path: str) -> int:
        """Return how many axes a leaf has."""
        return np.ndim(gr.leaves(self.params)[path])

    @functools.cached_property
    def _evaluation(self) -> Evaluation:
        assert self.loss is not None
        return Evaluation.at_random_points(self.loss, self.params, [self.args], _DRAWS, seed=0)


def axes_text(axes: tuple[int, ...]) -> str:
    """Return "axis 1", or "axes (0, 2)"."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
