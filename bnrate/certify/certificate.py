"""What a proof says, in the words of the user's parameters and of the user's lines."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from bnrate import groups as gr
from bnrate.certify import linear
from bnrate.certify.fields import Unknown
from bnrate.certify.ledger import Constraint
from bnrate.certify.pointwise import ENTRIES, EXPONENTIAL, FIXED, LOSS, PENALTY
from bnrate.certify.report import table
from bnrate.certify.solution import Solution, on_leaves
from bnrate.certify.source import Site
from bnrate.certify.units import Piece, Place, whole_leaves


@dataclasses.dataclass(frozen=True)
class EpsSite:
    """An epsilon of the program: the claims hold exactly once this literal is 0."""

    value: float
    what: str
    site: Site

    def __str__(self) -> str:
        return f"{self.value:.3g} {self.site}"


@dataclasses.dataclass(frozen=True)
class Break:
    """A constraint that stops leaves from being scaled together, and what to do about it.

    Attributes:
      what: what the program does there, in words; `primitive`: by which operation of JAX.
      needs: the equation that the degrees d(path), the exponents of c, would have to meet.
      site: the user's line, the library's, and the module.
      advice: what to do about it.
      kind: "hard"; "eps": it fails by an epsilon only; "gradient": the value would be invariant.
    """

    what: str
    primitive: str
    needs: str
    site: Site
    advice: str
    kind: Literal["hard", "eps", "gradient"]

    def __str__(self) -> str:
        return f"{self.what} [{self.primitive}] {self.site}: {self.needs}. {self.advice}"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What may be rescaled, proven for one traced loss: its shapes and its static arguments.

    Attributes:
      groups: the scale-invariant leaves and minimal joint groups, each leaf in one at most, with
        a unit axis where each index along it may be scaled alone.
      no_effect: leaves, and parts of other leaves ("path[8:16]"), on whose value the loss does not
        depend.
      rescalings: further symmetries, {path: whole exponent}; part of a leaf is "path[:, 0:8]".
        Together with `groups` and `no_effect` they span all that is proven of whole leaves.
      eps_sites: where an epsilon breaks exact invariance.
      strict: whether the epsilons count as what they are, rather than as 0.
    """

    groups: gr.Groups
    no_effect: tuple[str, ...]
    rescalings: tuple[Mapping[str, int], ...]
    eps_sites: tuple[EpsSite, ...]
    strict: bool
    _solution: Solution = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, solution: Solution) -> "Certificate":
        """The certificate of a solved program."""
        sites = {
            (c.value, c.site): EpsSite(float(c.value or 0), c.what, c.site)
            for c in solution.reading.constraints if c.kind == "eps"
        }  # fmt: skip
        return cls(
            groups=solution.groups(),
            no_effect=tuple(solution.no_effect()),
            rescalings=tuple(solution.rescalings()),
            eps_sites=tuple(sites.values()),
            strict=solution.strict,
            _solution=solution,
        )

    @property
    def rest(self) -> tuple[str, ...]:
        """The paths of all leaves that are not, or not wholly, in groups and have an effect."""
        taken = {*self._solution.covered, *self.no_effect}
        return tuple(path for path in self._solution.names if path not in taken)

    def why(self, paths: str | Iterable[str], axis: int | None = None) -> tuple[Break, ...]:
        """What stops these leaves from being scaled together by one c, in program order.

        What fails by an epsilon only comes last.

        With an `axis`: what stops each index along it from being scaled alone.  Empty if nothing
        does.  Epsilons are listed whether or not they count.

        Raises:
          ValueError: there is no such leaf, or a leaf has no such axis.
        """
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        leaves = [self._number(path) for path in paths]
        if axis is None:
            wanted, rows = [dict.fromkeys(leaves, 1)], self._touching(leaves)
        else:
            wanted = self._spikes(leaves, axis)
            rows = [(c, c.row) for c in self._solution.reading.constraints]
        broken = [(c, row, n) for c, row in rows for v in wanted if (n := linear.inner(row, v))]
        # An epsilon that met no excuse stands in the list twice; one reason a place is enough.
        hard = {(c.site, frozenset(c.row)) for c, _, _ in broken if c.kind == "hard"}
        first: dict[object, tuple] = {}
        for c, row, n in broken:
            if c.kind == "hard" or (c.site, frozenset(c.row)) not in hard:
                first.setdefault((c.what, c.primitive, c.site, c.kind), (c, row, n))
        alone = all(c.kind == "eps" for c, _, _ in first.values())
        ordered = sorted(first.values(), key=lambda found: found[0].kind == "eps")
        return tuple(self._break(c, row, n, paths, alone) for c, row, n in ordered)

    def _spikes(self, leaves: list[int], axis: int) -> list[linear.Vector]:
        """All scalings of single indices along an axis of leaves."""
        for i in leaves:
            shape = self._solution.shapes[i]
            if not 0 <= axis < len(shape):
                raise ValueError(
                    f"leaf '{self._solution.names[i]}' has shape {shape}, so it has no axis "
                    f"{axis}; give an axis from 0 to {len(shape) - 1}"
                )
        pieces = whole_leaves(leaves, self._solution.reading.structures)
        return self._solution.units.spikes(pieces, [(Place(axis),) * len(leaves)]) or []

    def _touching(self, leaves: Iterable[int]) -> list[tuple[Constraint, Mapping]]:
        """The constraints that hold any of the leaves as a whole, in program order."""
        found = {i for leaf in leaves for i in self._solution.holders.get(leaf, ())}
        constraints = self._solution.reading.constraints
        return [(constraints[i], on_leaves(constraints[i].row)) for i in sorted(found)]

    def _number(self, path: str) -> int:
        if path not in self._solution.names:
            known = ", ".join(f"'{name}'" for name in self._solution.names[:8])
            raise ValueError(f"there is no leaf '{path}'; the leaves are {known}, ...")
        return self._solution.names.index(path)

    def _break(
        self,
        c: Constraint,
        row: Mapping,
        value: linear.Number,
        paths: tuple[str, ...],
        alone: bool,
    ) -> Break:
        if max(row.values()) < 0:
            row, value = {column: -k for column, k in row.items()}, -value
        ordered = sorted(row.items(), key=lambda item: (item[1] < 0, str(item[0])))
        terms = " ".join(
            f"{'+' if k > 0 else '-'} {'' if abs(k) == 1 else f'{abs(k)} '}d({self._name(column)})"
            for column, k in ordered
        ).removeprefix("+ ")
        return Break(
            what=c.what if c.value is None else f"{c.what} ({c.value:.3g})",
            primitive=c.primitive,
            needs=f"{terms} = 0, it is {value}",
            site=c.site,
            advice=self._advice(c, paths, alone),
            kind="gradient" if c.gradient else "eps" if c.kind == "eps" else "hard",
        )

    def _name(self, column: int | Unknown) -> str:
        if isinstance(column, int):
            return self._solution.names[column]
        axes = dict.fromkeys(str(axis) for axis, _ in column.at)
        along = f" along axis {', '.join(axes)}" if axes else ""
        return self._solution.part(Piece(column.leaf, (column.block,), column.taken)) + along

    def _advice(self, c: Constraint, paths: tuple[str, ...], alone: bool) -> str:
        """One sentence on what to do, the most helpful that applies."""
        if c.kind == "eps":
            return "Scale-invariant up to this epsilon." if alone else "Met up to this epsilon."
        if joint := [g for g in self.groups if {m.path for m in g.members} > set(paths)]:
            return f"Only jointly: {' + '.join(m.path for m in joint[0].members)}."
        if c.gradient:
            return "The value is invariant; the gradient is not proven orthogonal."
        if c.what == FIXED and "norm" in f"{c.site.library}{c.site.module}".lower():
            return f"{_ADVICE[FIXED]} (In evaluation mode: use the statistics of the batch.)"
        return _ADVICE.get(c.what, "Normalise before it, or leave this leaf to the rest.")

    def directions(self) -> list[dict[str, np.ndarray]]:
        """A basis of all that is proven: the exponents of all entries, w -> c^exponent w.

        One mapping per dimension, from path to an array of the leaf's shape; other leaves stay.
        There are as many as dimensions: meant for small models and for tests.
        """
        return self._solution.directions()

    def to_json(self) -> str:
        """The certificate as JSON, with the first break of every leaf that is not invariant."""
        document = {
            "groups": json.loads(gr.to_json(self.groups))["groups"],
            "no_effect": self.no_effect,
            "rescalings": [dict(r) for r in self.rescalings],
            "rest": {path: [str(b) for b in self.why(path)[:1]] for path in self.rest},
            "strict": self.strict,
            "eps_sites": [dataclasses.asdict(e) for e in self.eps_sites],
        }
        return json.dumps(document, indent=2) + "\n"

    def __str__(self) -> str:
        return "\n".join(table(self))


_UNNORMALISED = "No normalisation stands between this leaf and here."

_ADVICE = {
    PENALTY: "A regulariser, perhaps: leave this leaf out of it, or accept it in the rest.",
    FIXED: "Nothing normalises it before.",
    ENTRIES: "The entries along this axis are coupled here: scale them together.",
    EXPONENTIAL: _UNNORMALISED,
    LOSS: _UNNORMALISED,
}
