"""Units: along which axes, or factors of axes, each index of a set of leaves may be scaled alone.

A *piece* is a leaf, or a part of it: one block, or what lies at one index of a factor.  A *seat*
is an axis, or one factor of an axis, of each piece of a set: index by index these are scaled
together.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from bnrate import groups as gr
from bnrate.certify import linear
from bnrate.certify.facts import Position
from bnrate.certify.fields import Unknown
from bnrate.certify.reading import Reading, Structure

_MOST_SEATS = 4


class Piece(NamedTuple):
    """Some blocks of a leaf: all, or one, or (taken) one at an index of one of its positions."""

    leaf: int
    blocks: tuple[tuple[int, ...], ...]
    taken: tuple[tuple[Position, int], ...] = ()


class Place(NamedTuple):
    """An axis of a piece, or (factor >= 0) one factor of it."""

    axis: int
    factor: int = -1


Seat = tuple[Place, ...]  # a place of each piece


class Units:
    """What a reading's equations allow of single indices."""

    def __init__(self, reading: Reading, rows: Iterable[linear.Vector]):
        self.reading = reading
        self._rows: dict[Unknown, list[linear.Vector]] = {}
        for row in rows:
            for unknown in row:
                self._rows.setdefault(unknown, []).append(row)
        self._unknowns: dict[tuple[int, tuple[int, ...]], list[Unknown]] = {}
        for unknown in reading.unknowns:
            self._unknowns.setdefault((unknown.leaf, unknown.block), []).append(unknown)

    def group(self, pieces: Sequence[Piece], names: Sequence[str]) -> gr.Group:
        """Pieces that are scaled together as a group, with the most units that are free."""
        seats = self.seats(pieces)
        members = [
            member(names[piece.leaf], self.reading.structures[piece.leaf], piece, places)
            for piece, places in zip(
                pieces, zip(*seats, strict=True) if seats else itertools.repeat(()), strict=False
            )
        ]
        if None in members:
            members = [
                member(names[piece.leaf], self.reading.structures[piece.leaf], piece, ())
                for piece in pieces
            ]
        return gr.Group(m for m in members if m)

    def seats(self, pieces: Sequence[Piece]) -> tuple[Seat, ...]:
        """The seats that together have the most indices, each of which may be scaled alone."""
        found: list[Seat] = []
        structure = self.reading.structures[pieces[0].leaf]
        for axis, segments in enumerate(structure):
            factors = segments[pieces[0].blocks[0][axis]]
            one = len({block[axis] for block in pieces[0].blocks}) == 1
            told = {p for p, _ in pieces[0].taken if p[0] == axis}
            places = [] if told else [Place(axis)]
            if one and len(factors) > 1:
                places += [Place(axis, j) for j in range(len(factors)) if (axis, j) not in told]
            for place in places:
                if self.lengths(pieces[0], place) < 2 or Place(axis) in {s[0] for s in found}:
                    continue
                seat = self._seat(pieces, place)
                if seat and self.alone(pieces, [seat]):
                    found.append(seat)
        found.sort(key=lambda seat: -self.lengths(pieces[0], seat[0]))
        choices = [
            choice for size in range(1, min(len(found), _MOST_SEATS) + 1)
            for choice in itertools.combinations(found[:_MOST_SEATS], size)
        ]  # fmt: skip
        choices.sort(key=lambda c: -math.prod(self.lengths(pieces[0], seat[0]) for seat in c))
        free = (c for c in choices if len(c) == 1 or self.alone(pieces, c))
        return tuple(sorted(next(free, ())))

    def lengths(self, piece: Piece, place: Place) -> int:
        """The number of indices of a place."""
        structure = self.reading.structures[piece.leaf]
        if place.factor >= 0:
            return structure[place.axis][piece.blocks[0][place.axis]][place.factor]
        segments = {block[place.axis] for block in piece.blocks}
        return sum(math.prod(structure[place.axis][i]) for i in segments)

    def _seat(self, pieces: Sequence[Piece], place: Place) -> Seat:
        """The places that equations tie to a place of the first piece; or nothing."""
        number = {(p.leaf, block): i for i, p in enumerate(pieces) for block in p.blocks}
        found, waiting = {0: place}, [0]
        while waiting:
            i = waiting.pop()
            for unknown in self._at(pieces[i], found[i]):
                for row in self._rows.get(unknown, ()):
                    others = {u for u in row if number.get((u.leaf, u.block), i) not in found}
                    seats = {
                        (number[u.leaf, u.block], *_place(u, place))
                        for u in others if u.at and len({axis for axis, _ in u.at}) == 1
                    }  # fmt: skip
                    if len({j for j, *_ in seats}) == len(seats) == 1:
                        ((j, axis, factor),) = seats
                        if factor >= 0 and len({block[axis] for block in pieces[j].blocks}) > 1:
                            return ()  # other segments have other factors
                        found[j] = Place(axis, factor)
                        waiting.append(j)
        return tuple(found[i] for i in range(len(pieces))) if len(found) == len(pieces) else ()

    def _at(self, piece: Piece, place: Place) -> list[Unknown]:
        """The unknowns that vary along a place only."""
        return [
            u for block in piece.blocks for u in self._unknowns[piece.leaf, block]
            if u.at and not u.taken and all(_within(place, p) for p in u.at)
        ]  # fmt: skip

    def alone(self, pieces: Sequence[Piece], seats: Sequence[Seat]) -> bool:
        """Whether each index of the seats' product may be scaled alone, in all pieces together."""
        for seat in seats:
            if len({self._structure_at(p, at) for p, at in zip(pieces, seat, strict=True)}) > 1:
                return False
        vectors = self.spikes(pieces, seats)
        return vectors is not None and not any(
            linear.inner(row, spike)
            for spike in vectors for unknown in spike for row in self._rows.get(unknown, ())
        )  # fmt: skip

    def _structure_at(self, piece: Piece, place: Place) -> tuple:
        segments = self.reading.structures[piece.leaf][place.axis]
        if place.factor >= 0:
            return ((segments[piece.blocks[0][place.axis]][place.factor],),)
        return tuple(segments[i] for i in sorted({block[place.axis] for block in piece.blocks}))

    def spikes(self, pieces: Sequence[Piece], seats: Sequence[Seat]) -> list[linear.Vector] | None:
        """Vectors that together span all scalings of single indices of the seats' product.

        One for each segment and set of factors at each seat.  None if some are no unknowns.
        """
        vectors: dict[tuple, dict] = {}
        for i, piece in enumerate(pieces):
            places = [seat[i] for seat in seats]
            first = [min(block[place.axis] for block in piece.blocks) for place in places]
            for block in piece.blocks:
                sets = [self._sets(piece, block, place) for place in places]
                for chosen in itertools.product(*sets):
                    kind = tuple(
                        (block[p.axis] - low, tuple(j if p.factor < 0 else 0 for _, j in part))
                        for p, low, part in zip(places, first, chosen, strict=True)
                    )
                    at = tuple(sorted(itertools.chain.from_iterable(chosen)))
                    vector = self.exponents(piece, block, at)
                    if vector is None:
                        return None
                    vectors[kind] = linear.add(vectors.get(kind, {}), vector)
        return list(vectors.values())

    def exponents(
        self, piece: Piece, block: tuple[int, ...], at: tuple[Position, ...] = ()
    ) -> linear.Vector | None:
        """A block's exponents where a piece is scaled, or a part of it that varies at positions."""
        found = {(u.at, u.taken): u for u in self._unknowns[piece.leaf, block]}
        if (at, ()) not in found:
            return None
        if not piece.taken:
            return {found[at, ()]: 1}
        ((position, index),) = piece.taken
        entries = [u for (a, t), u in found.items() if a == at and t and t[0][0] == position]
        if not entries:
            return None
        share = Fraction(1, len(entries) + 1)
        vector = {found[at, ()]: share}
        for u in entries:
            vector[u] = (u.taken[0][1] == index) - share
        return vector

    def parts(self, leaf: int) -> list[Piece]:
        """The finest pieces of a leaf that have an exponent each."""
        found = []
        for block in blocks_of(self.reading.structures[leaf]):
            taken = {u.taken for u in self._unknowns[leaf, block] if u.taken and not u.at}
            positions = {p for t in taken for p, _ in t}
            if len(positions) == 1:
                (position,) = positions
                found += [Piece(leaf, (block,), ((position, i),)) for i in range(len(taken) + 1)]
            else:
                found.append(Piece(leaf, (block,)))
        return found

    def _sets(
        self, piece: Piece, block: tuple[int, ...], place: Place
    ) -> list[tuple[Position, ...]]:
        """All sets of positions of a block at a place."""
        if place.factor >= 0:
            return [(), ((place.axis, place.factor),)]
        factors = self.reading.structures[piece.leaf][place.axis][block[place.axis]]
        positions = [(place.axis, j) for j in range(len(factors))]
        return [
            chosen for n in range(len(positions) + 1)
            for chosen in itertools.combinations(positions, n)
        ]  # fmt: skip


def _place(unknown: Unknown, like: Place) -> Place:
    """Where an unknown varies: along an axis, or one factor."""
    axis, factor = unknown.at[0]
    return Place(axis, factor if like.factor >= 0 else -1)


def _within(place: Place, position: Position) -> bool:
    return position[0] == place.axis and place.factor in (-1, position[1])


def member(
    name: str, structure: Structure, piece: Piece, places: Sequence[Place]
) -> gr.Member | None:
    """The member of a group that a piece of a leaf is; None if no view of the leaf shows it.

    Axes of which only a factor matters are shown as their factors.
    """
    part: list[gr.Range] = []
    views: list[tuple[int, ...]] = []  # the lengths that an axis is viewed in
    factored = {place.axis for place in places if place.factor >= 0}
    factored |= {axis for (axis, _), _ in piece.taken}
    for axis, segments in enumerate(structure):
        taken = sorted({block[axis] for block in piece.blocks})
        ends = [0, *itertools.accumulate(math.prod(factors) for factors in segments)]
        low, high, length = ends[taken[0]], ends[taken[-1] + 1], ends[-1]
        view = (length,)
        if axis in factored:
            inner = segments[taken[0]][1:]
            stride = math.prod(inner)
            if low % stride or length % stride or high % stride:
                return None
            view = (length // stride, *inner)
            low, high, length = low // stride, high // stride, length // stride
        start = sum(map(len, views))
        if (low, high) != (0, length):
            part.append((start, low, high))
        part += [(start + j, i, i + 1) for (a, j), i in piece.taken if a == axis]
        views.append(view)
    starts = [0, *itertools.accumulate(map(len, views))]
    axes = [starts[place.axis] + max(place.factor, 0) for place in places]
    viewed = any(len(view) > 1 for view in views)
    shape = tuple(itertools.chain.from_iterable(views)) if viewed else None
    return gr.Member(name, axes, shape, part)


def blocks_of(structure: Structure) -> list[tuple[int, ...]]:
    """The blocks of a leaf."""
    return list(itertools.product(*(range(len(axis)) for axis in structure)))


def whole_leaves(leaves: Iterable[int], structures: Sequence[Structure]) -> list[Piece]:
    """Each leaf as one piece."""
    return [Piece(i, tuple(blocks_of(structures[i]))) for i in leaves]
