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
from bnrate.certify.units import Piece, Units, blocks_of, member, whole_leaves


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
    def _felt(self) -> set[tuple]:
        """The blocks, each with its leaf, on which the loss depends."""
        return {c.block for c in self.reading.constraints if c.block}

    @functools.cached_property
    def without_effect(self) -> frozenset[int]:
        """The leaves none of whose blocks the loss depends on."""
        return frozenset(range(len(self.names))) - {leaf for leaf, _ in self._felt}

    def no_effect(self) -> list[str]:
        """The names of leaves, and of blocks of other leaves, on which the loss does not depend."""
        found = []
        for i, structure in enumerate(self.reading.structures):
            whole = i in self.without_effect
            idle = [b for b in blocks_of(structure) if not whole and (i, b) not in self._felt]
            found += [self.names[i]] if whole else [self.part(Piece(i, (b,))) for b in idle]
        return found

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
            sets += map(linear.integral, linear.rays(rows, self._late))
        return sorted(sets, key=min)

    def _late(self, leaf: int) -> float:
        """How late in the program a leaf is used first: of equal sets the latest is taken.

        In a residual block that is the projection which writes to the stream.
        """
        return self.reading.uses[leaf]

    @functools.cached_property
    def units(self) -> Units:
        """What the equations allow of single indices."""
        return Units(self.reading, [c.row for c in self.constraints])

    @functools.cached_property
    def sets(self) -> list[list[Piece]]:
        """The sets of pieces that are scaled by one c: of whole leaves, and of parts of others."""
        found: list[list[Piece]] = []
        held = {piece for row in self._by_piece for piece in row}
        for leaves in self.invariant:
            if set(leaves.values()) != {1}:
                continue
            whole = whole_leaves(leaves, self.reading.structures)
            parts = self.units.parts(whole[0].leaf)
            apart = len(whole) == 1 and held.isdisjoint(parts)
            found += [[part] for part in parts] if apart and len(parts) > 1 else [whole]
        return [*found, *self._sets_of_parts({piece.leaf for s in found for piece in s})]

    @functools.cached_property
    def _pieces(self) -> list[Piece]:
        """The finest pieces on which the loss depends."""
        pieces = [p for i in range(len(self.names)) for p in self.units.parts(i)]
        return [p for p in pieces if (p.leaf, p.blocks[0]) in self._felt]

    @functools.cached_property
    def _by_piece(self) -> list[dict[Piece, linear.Number]]:
        """The equations for pieces that are scaled as a whole."""
        exponents = {p: self.units.exponents(p, p.blocks[0]) or {} for p in self._pieces}
        holders: dict[Unknown, list[Piece]] = {}
        for piece, vector in exponents.items():
            for unknown in vector:
                holders.setdefault(unknown, []).append(piece)
        rows = []
        for row in (c.row for c in self.constraints if any(not u.at for u in c.row)):
            touched = dict.fromkeys(p for u in row for p in holders.get(u, ()))
            found = {p: linear.inner(row, exponents[p]) for p in touched}
            rows.append({p: k for p, k in found.items() if k})
        return [row for row in rows if row]

    def _sets_of_parts(self, taken: set[int]) -> list[list[Piece]]:
        """The sets of parts of leaves that may be scaled by one c where the leaf may not."""
        split = {leaf for leaf, count in collections.Counter(
            piece.leaf for piece in self._pieces
        ).items() if count > 1 and leaf not in taken}  # fmt: skip
        if not split:
            return []
        held = {piece for row in self._by_piece for piece in row}
        found = [[p] for p in self._pieces if p.leaf in split and p not in held]
        rows = [{p: k for p, k in row.items() if p.leaf not in taken} for row in self._by_piece]
        for component in linear.components(rows):
            if any(piece.leaf in split for row in component for piece in row):
                for ray in map(linear.integral, linear.rays(component)):
                    if set(ray.values()) == {1} and any(piece.leaf in split for piece in ray):
                        found.append(list(ray))
        return found

    @functools.cached_property
    def covered(self) -> list[str]:
        """The leaves all blocks of which are in sets, or without effect."""
        whole = {piece.leaf for s in self.sets for piece in s if not self._is_part(piece)}
        parts = {piece for s in self.sets for piece in s}
        left = {piece.leaf for piece in self._pieces if piece not in parts} - whole
        return [name for i, name in enumerate(self.names) if i not in left]

    def _is_part(self, piece: Piece) -> bool:
        return bool(piece.taken) or len(piece.blocks) < len(
            blocks_of(self.reading.structures[piece.leaf])
        )

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
        if len(self._pieces) == len(self.names) - len(self.without_effect):
            return []
        parts: dict[int, list[Piece]] = {}
        for piece in self._pieces:
            parts.setdefault(piece.leaf, []).append(piece)
        columns = [i for row in self.by_leaf for i in row]
        leafwise = linear.null_space(self.by_leaf, list(dict.fromkeys([*columns, *parts])))
        known = [{p: k for i, k in v.items() for p in parts.get(i, ())} for v in leafwise]
        known += [dict.fromkeys(pieces, 1) for pieces in self.sets if self._is_part(pieces[0])]
        more = linear.complement(linear.null_space(self._by_piece, self._pieces), known)
        return [{self.part(p): k for p, k in linear.integral(v).items()} for v in more]

    def part(self, piece: Piece) -> str:
        """The name of a piece: the leaf's, with the range of the part of it."""
        name, structure = self.names[piece.leaf], self.reading.structures[piece.leaf]
        found = member(name, structure, piece, ())
        return found.name if found else name

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
        if unknown.whole:
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
    """A pattern over the factors of an unknown, in a shape that broadcasts against its block.

    An entry goes with minus itself at the last index.
    """
    axes = [segments[i] for segments, i in zip(structure, unknown.block, strict=True)]
    sizes = {(a, j): n for a, factors in enumerate(axes) for j, n in enumerate(factors)}
    along = {a for a, _ in (*unknown.at, *(p for p, _ in unknown.taken))}
    shape = [n if p in unknown.at else 1 for p, n in sizes.items()]
    spread = pattern.reshape(shape)
    for position, index in unknown.taken:
        entries = np.zeros(sizes[position])
        entries[index], entries[-1] = 1, -1
        spread = spread * entries.reshape([-1 if p == position else 1 for p in sizes])
    full = [n if p[0] in along else 1 for p, n in sizes.items()]
    merged = [math.prod(f) if a in along else 1 for a, f in enumerate(axes)]
    return np.broadcast_to(spread, full).reshape(merged)
