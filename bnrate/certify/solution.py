"""Solving the constraints of a loss: which leaves may be scaled, alone, jointly, index by index."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable

import numpy as np

from bnrate import groups as gr
from bnrate.certify import linear
from bnrate.certify.fields import Unknown
from bnrate.certify.ledger import Constraint
from bnrate.certify.reading import Reading, Structure
from bnrate.certify.units import Piece, Units, whole_leaves


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

    @functools.cached_property
    def units(self) -> Units:
        """What the equations allow of single indices."""
        return Units(self.reading, [c.row for c in self.constraints])

    @functools.cached_property
    def sets(self) -> list[list[Piece]]:
        """The sets of pieces that are scaled by one c: of whole leaves, and of parts of others."""
        found: list[list[Piece]] = []
        held = {u for row in self._by_block for u in row}
        for leaves in self.invariant:
            if set(leaves.values()) != {1}:
                continue
            whole = whole_leaves(leaves, self.reading.structures)
            blocks = [Piece(p.leaf, (block,)) for p in whole for block in p.blocks]
            apart = len(whole) == 1 and not any(Unknown(p.leaf, *p.blocks) in held for p in blocks)
            found += [[block] for block in blocks] if apart else [whole]
        return [*found, *self._sets_of_parts({leaf for s in found for leaf, _ in s}, held)]

    @functools.cached_property
    def _by_block(self) -> list[linear.Vector]:
        """The equations for blocks of leaves that are scaled as a whole."""
        return [c.row for c in self.constraints if any(not u.at for u in c.row)]

    def _sets_of_parts(self, taken: set[int], held: set[Unknown]) -> list[list[Piece]]:
        """The sets of blocks of cut leaves that may be scaled by one c where the leaf may not."""
        felt = {c.block for c in self.reading.constraints if c.block}
        cut = {
            i for i, structure in enumerate(self.reading.structures)
            if i not in taken and any(len(segments) > 1 for segments in structure)
        }  # fmt: skip
        columns = [
            u
            for u in self.reading.unknowns
            if not u.at and u.leaf not in taken and (u.leaf, u.block) in felt
        ]
        free = [[Piece(u.leaf, (u.block,))] for u in columns if u.leaf in cut and u not in held]
        rows = [{u: k for u, k in row.items() if u in set(columns)} for row in self._by_block]
        for component in linear.components(rows) if cut else []:
            if not any(u.leaf in cut for row in component for u in row):
                continue
            for ray in map(linear.integral, linear.rays(component)):
                if set(ray.values()) == {1} and any(u.leaf in cut for u in ray):
                    free.append([Piece(u.leaf, (u.block,)) for u in ray])
        return free

    def groups(self) -> gr.Groups:
        """The sets of leaves, or of parts of leaves, that are scaled by one c, with their units."""
        return gr.Groups(self.units.group(pieces, self.names) for pieces in self.sets)

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
        scalar = [u for u in self.reading.unknowns if not u.at]
        if len(scalar) == len(self.names):
            return []
        rows = self._by_block
        blocks: dict[int, list[Unknown]] = {}
        for unknown in scalar:
            blocks.setdefault(unknown.leaf, []).append(unknown)
        columns = [i for row in self.by_leaf for i in row]
        leafwise = linear.null_space(self.by_leaf, list(dict.fromkeys([*columns, *blocks])))
        whole = [{u: k for i, k in v.items() for u in blocks[i]} for v in leafwise]
        whole += [
            {Unknown(p.leaf, block): 1 for p in pieces for block in p.blocks}
            for pieces in self.sets
        ]
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
        if not unknown.at:
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
    axes = [segments[i] for segments, i in zip(structure, unknown.block, strict=True)]
    shape = [
        n if (axis, j) in unknown.at else 1
        for axis, factors in enumerate(axes) for j, n in enumerate(factors)
    ]  # fmt: skip
    along = {axis for axis, _ in unknown.at}
    spread = [
        n if axis in along else 1
        for axis, factors in enumerate(axes) for n in factors
    ]  # fmt: skip
    merged = [math.prod(f) if axis in along else 1 for axis, f in enumerate(axes)]
    return np.broadcast_to(pattern.reshape(shape), spread).reshape(merged)
