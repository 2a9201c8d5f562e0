"""Solving the constraints of a loss: which leaves may be scaled, alone, jointly, index by index."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from bnrate import groups as gr
from bnrate.certify import linear
from bnrate.certify.fields import Unknown
from bnrate.certify.ledger import Constraint
from bnrate.certify.reading import Reading, Structure


@dataclasses.dataclass(frozen=True)
class Solution:
    """All exponents that meet the constraints of a reading, for leaves with these names.

    Leaves are named by number in the vectors here.  `strict`: epsilons count.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    reading: Reading
    strict: bool

    @functools.cached_property
    def constraints(self) -> list[Constraint]:
        """The equations that count."""
        kinds = ("hard", "eps") if self.strict else ("hard",)
        return [c for c in self.reading.constraints if c.kind in kinds]

    @functools.cached_property
    def without_effect(self) -> frozenset[int]:
        """The leaves none of whose blocks the loss depends on."""
        felt = {c.block[0] for c in self.reading.constraints if c.block}
        return frozenset(range(len(self.names))) - felt

    @functools.cached_property
    def by_leaf(self) -> list[linear.Vector]:
        """The equations for leaves that are scaled as a whole."""
        rows = (on_leaves(c.row) for c in self.constraints)
        return [row for row in rows if row]

    @functools.cached_property
    def holders(self) -> dict[int, list[int]]:
        """For each leaf the numbers of the constraints that hold it as a whole."""
        found: dict[int, list[int]] = collections.defaultdict(list)
        for i, constraint in enumerate(self.reading.constraints):
            for leaf in on_leaves(constraint.row):
                found[leaf].append(i)
        return found

    @functools.cached_property
    def basis(self) -> list[dict]:
        """A basis of all solutions, in the unknowns; each is of one kind (leaf, axis)."""
        rows = [c.row for c in self.constraints]
        return linear.null_space(rows, self.reading.unknowns)

    @functools.cached_property
    def invariant(self) -> list[dict[int, int]]:
        """Disjoint minimal sets of leaves that may be scaled, by whole positive powers."""
        held = {leaf for row in self.by_leaf for leaf in row}
        felt = [i for i in range(len(self.names)) if i not in self.without_effect]
        sets = [{i: 1} for i in felt if i not in held]
        for rows in linear.components(self.by_leaf):
            sets += map(linear.integral, linear.rays(rows))
        return sorted(sets, key=min)

    def groups(self) -> gr.Groups:
        """The sets of leaves that are scaled by one c, with their unit axes."""
        return gr.Groups(
            self.group(list(leaves)) for leaves in self.invariant if set(leaves.values()) == {1}
        )

    def group(self, leaves: Sequence[int]) -> gr.Group:
        """A set of leaves with the longest axes each of whose indices may be scaled alone."""
        first = self.shapes[leaves[0]]
        for axis in sorted(range(len(first)), key=lambda a: first[a], reverse=True):
            axes = self._joined_axes(leaves, axis)
            if first[axis] > 1 and axes and self._alone(leaves, axes):
                return gr.Group(
                    gr.Member(self.names[i], a) for i, a in zip(leaves, axes, strict=True)
                )
        return gr.Group(gr.Member(self.names[i]) for i in leaves)

    def _joined_axes(self, leaves: Sequence[int], axis: int) -> list[int]:
        """The axes of a set of leaves that equations tie to an axis of its first; or nothing."""
        found, waiting = {leaves[0]: axis}, [(leaves[0], axis)]
        while waiting:
            for unknown in self._unknowns_on[waiting.pop()]:
                for row in self._rows_with.get(unknown, ()):
                    others = {u for u in row if u.leaf in leaves and u.leaf not in found}
                    if len({u.leaf for u in others}) == 1:
                        (other, along), *_ = {(u.leaf, u.axis) for u in others}
                        found[other] = along
                        waiting.append((other, along))
        return [found[i] for i in leaves] if len(found) == len(leaves) else []

    def _alone(self, leaves: Sequence[int], axes: Sequence[int]) -> bool:
        """Whether each index along these axes may be scaled alone, in all leaves together."""
        if len({self.reading.structures[i][a] for i, a in zip(leaves, axes, strict=True)}) > 1:
            return False
        return not any(
            linear.inner(row, spike)
            for spike in self.spikes(leaves, axes)
            for unknown in spike for row in self._rows_with.get(unknown, ())
        )  # fmt: skip

    def spikes(self, leaves: Sequence[int], axes: Sequence[int]) -> list[linear.Vector]:
        """Vectors that together span all scalings of single indices along axes of leaves.

        One for each segment of the axes and each set of its factors.
        """
        vectors: dict[tuple, dict] = {}
        for leaf, axis in zip(leaves, axes, strict=True):
            for u in (*self._unknowns_on[leaf, -1], *self._unknowns_on[leaf, axis]):
                kind = u.block[axis], u.factors if u.axis >= 0 else None, u.sizes
                vectors.setdefault(kind, {})[u] = 1
        return list(vectors.values())

    @functools.cached_property
    def _rows_with(self) -> dict[Unknown, list[linear.Vector]]:
        found: dict[Unknown, list[linear.Vector]] = {}
        for constraint in self.constraints:
            for unknown in constraint.row:
                found.setdefault(unknown, []).append(constraint.row)
        return found

    @functools.cached_property
    def _unknowns_on(self) -> dict[tuple[int, int], list[Unknown]]:
        """The unknowns of each axis of each leaf; those of its blocks at axis -1."""
        found: dict[tuple[int, int], list[Unknown]] = collections.defaultdict(list)
        for unknown in self.reading.unknowns:
            found[unknown.leaf, unknown.axis].append(unknown)
        return found

    def rescalings(self) -> list[dict[str, int]]:
        """What is proven of leaves and blocks besides the groups: whole exponents by name."""
        groups = [dict.fromkeys(s, 1) for s in self.invariant if set(s.values()) == {1}]
        found = [s for s in self.invariant if set(s.values()) != {1}]
        for rows in linear.components(self.by_leaf):
            columns = list(dict.fromkeys(i for row in rows for i in row))
            columns = [i for i in columns if i not in self.without_effect]
            known = [g for g in (*groups, *found) if not g.keys().isdisjoint(columns)]
            found += linear.complement(linear.null_space(rows, columns), known)
        named = [{self.names[i]: k for i, k in linear.integral(v).items()} for v in found]
        return named + self._parts()

    def _parts(self) -> list[dict[str, int]]:
        """Solutions that scale parts of a leaf differently."""
        scalar = [u for u in self.reading.unknowns if u.axis < 0]
        if len(scalar) == len(self.names):
            return []
        rows = [c.row for c in self.constraints if any(u.axis < 0 for u in c.row)]
        blocks: dict[int, list[Unknown]] = {}
        for unknown in scalar:
            blocks.setdefault(unknown.leaf, []).append(unknown)
        columns = [i for row in self.by_leaf for i in row]
        leafwise = linear.null_space(self.by_leaf, list(dict.fromkeys([*columns, *blocks])))
        whole = [{u: k for i, k in v.items() for u in blocks[i]} for v in leafwise]
        felt = [u for u in scalar if u.leaf not in self.without_effect]
        more = linear.complement(linear.null_space(rows, felt), whole)
        return [{self.part(u): k for u, k in linear.integral(v).items()} for v in more]

    def part(self, unknown: Unknown) -> str:
        """The name of an unknown's block: the leaf's, with the block's range if it is cut."""
        structure, shape = self.reading.structures[unknown.leaf], self.shapes[unknown.leaf]
        spans = spans_of(structure, unknown.block)
        if all(len(segments) == 1 for segments in structure):
            return self.names[unknown.leaf]
        parts = (
            ":" if (s.start, s.stop) == (0, n) else f"{s.start}:{s.stop}"
            for s, n in zip(spans, shape, strict=True)
        )
        return f"{self.names[unknown.leaf]}[{', '.join(parts)}]"

    def directions(self) -> list[dict[str, np.ndarray]]:
        """The basis as exponents of the entries of each leaf, one for each free dimension."""
        return [direction for vector in self.basis for direction in self._directions(vector)]

    def _directions(self, vector: linear.Vector) -> list[dict[str, np.ndarray]]:
        sizes = next(iter(vector)).sizes
        found = []
        for chosen in itertools.product(*(range(n - 1) for n in sizes)):
            pattern = functools.reduce(
                np.multiply.outer,
                (np.eye(n)[i] - np.eye(n)[n - 1] for i, n in zip(chosen, sizes, strict=True)),
                np.ones(()),
            )
            direction: dict[str, np.ndarray] = {}
            for unknown, k in vector.items():
                zero = np.zeros(self.shapes[unknown.leaf])
                leaf = direction.setdefault(self.names[unknown.leaf], zero)
                structure = self.reading.structures[unknown.leaf]
                leaf[spans_of(structure, unknown.block)] += float(k) * _spread(
                    structure, unknown, pattern
                )
            found.append(direction)
        return found


def on_leaves(row: linear.Vector) -> dict[int, linear.Number]:
    """An equation in the exponents of whole leaves (nothing, if it is about single indices)."""
    total: dict = {}
    for unknown, k in row.items():
        if unknown.axis < 0:
            total = linear.add(total, {unknown.leaf: k})
    return total


def spans_of(structure: Structure, block: Iterable[int]) -> tuple[slice, ...]:
    """The range of a block along each axis."""
    spans = []
    for segments, i in zip(structure, block, strict=True):
        ends = [0, *itertools.accumulate(math.prod(factors) for factors in segments)]
        spans.append(slice(ends[i], ends[i + 1]))
    return tuple(spans)


def _spread(structure: Structure, unknown: Unknown, pattern: np.ndarray) -> np.ndarray:
    """A pattern over the factors of an unknown, in a shape that broadcasts against its block."""
    if unknown.axis < 0:
        return pattern
    factors = structure[unknown.axis][unknown.block[unknown.axis]]
    shape = [n if j in unknown.factors else 1 for j, n in enumerate(factors)]
    along = np.broadcast_to(pattern.reshape(shape), factors).reshape(-1)
    return along.reshape([-1 if a == unknown.axis else 1 for a in range(len(structure))])
