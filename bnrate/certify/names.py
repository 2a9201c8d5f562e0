"""Names of values: one for each way in which it was computed, as far as that was noted.

What is computed twice has one name, so that the mean which a program subtracts is recognised in
the variance by which it divides.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from bnrate.certify import linear
from bnrate.certify.facts import Position, Ref

# A multiple of a named value, whose positions lie at some of the positions of a sum.
Term = tuple[linear.Number, int, tuple[int, ...]]


class _Part(NamedTuple):
    """A sum over some positions of a named value, all of whose positions have these sizes."""

    of: int
    removed: frozenset[int]
    sizes: tuple[int, ...]

    @property
    def number(self) -> int:
        """How many entries there are of each sum."""
        return math.prod(self.sizes[i] for i in self.removed)


class Names:
    """Names as they are given while a program is read."""

    def __init__(self) -> None:
        self._of: dict[Hashable, int] = {}
        self._meaning: list[Any] = []

    def fresh(self) -> int:
        """A name that no other value has."""
        self._meaning.append(())
        return len(self._meaning)

    def of(self, *meaning: Hashable) -> int:
        """The name of what was computed in this way."""
        found = self._of.get(meaning)
        if found is None:
            self._meaning.append(meaning)
            found = self._of[meaning] = len(self._meaning)
        return found

    def meaning(self, name: int) -> tuple:
        """How a value was computed; nothing, if that is not known."""
        return self._meaning[name - 1]

    def of_sum(self, name: int, removed: frozenset[int], sizes: tuple[int, ...]) -> int:
        """The name of a sum over some positions of a value, all of which have these sizes.

        A sum of a sum is one sum.
        """
        match self.meaning(name):
            case ("sum", inner, before, all_sizes):
                left = [i for i in range(len(all_sizes)) if i not in before]
                if tuple(all_sizes[i] for i in left) == sizes:
                    return self.of("sum", inner, before | {left[i] for i in removed}, all_sizes)
        return self.of("sum", name, removed, sizes)

    def of_combination(
        self, terms: Iterable[Term], sizes: tuple[int, ...]
    ) -> tuple[linear.Number, int]:
        """A coefficient and a name of a sum of terms, whose positions have these sizes."""
        (k, name, at), *others = sorted(terms, key=lambda term: term[1:])
        rest = tuple((linear.ratio(m, k), n, where) for m, n, where in others)
        return k, self.of("combination", name, at, rest, sizes)

    def is_centred(
        self, value: Ref, mean: Ref, ratio: linear.Number, lengths: Mapping[Position, int]
    ) -> bool:
        """Whether value + ratio * mean is a value less its mean over two entries or more."""
        removed = frozenset(i for i, p in enumerate(value.at) if p not in mean.at)
        left = tuple(p for p in value.at if p in mean.at)
        if not removed or left != mean.at:
            return False
        sizes = tuple(p if isinstance(p, int) else lengths[p] for p in value.at)
        count = math.prod(sizes[i] for i in removed)
        return ratio == Fraction(-1, count) and mean.name == self.of_sum(value.name, removed, sizes)

    def spread(
        self, squares: Ref, squared: Ref, ratio: linear.Number
    ) -> tuple[list[Ref], list[tuple[int, int]]] | None:
        """If this is a multiple of E[x^2] - E[x]^2: the refs x - E[x], and x's name and how many.

        x may be made of parts that were joined, of which each is summed for itself; then the refs,
        names and numbers are those of the parts.  It is zero where all of the refs are.
        """
        match self.meaning(squared.name):
            case ("square", total) if squares.at == squared.at:
                sums = [self._sum_of_squares(name) for name in self._summands(squares.name)]
                parts = [part for part in sums if part]
                count = sum(part.number for part in parts)
                means = sorted(self.of_sum(p.of, p.removed, p.sizes) for p in parts)
                if (
                    len(parts) == len(sums)
                    and means == sorted(self._summands(total))
                    and ratio == Fraction(-1, count)
                    and all(len(p.sizes) - len(p.removed) == len(squares.at) for p in parts)
                ):
                    centred = [self._centred(part, total, count, squares) for part in parts]
                    return centred, [(part.of, part.number) for part in parts]
        return None

    def _summands(self, name: int) -> list[int]:
        """The names of which a value is the plain sum, index by index; itself, if it is none."""
        match self.meaning(name):
            case ("combination", first, at, rest, sizes):
                terms = [(1, first, at), *rest]
                if all((k, where) == (1, tuple(range(len(sizes)))) for k, _, where in terms):
                    return [inner for _, term, _ in terms for inner in self._summands(term)]
        return [name]

    def _sum_of_squares(self, name: int) -> _Part | None:
        match self.meaning(name):
            case ("sum", inner, removed, sizes):
                match self.meaning(inner):
                    case ("square", x):
                        return _Part(x, removed, sizes)
        return None

    def _centred(self, part: _Part, total: int, count: int, place: Ref) -> Ref:
        every = tuple(range(len(part.sizes)))
        left = tuple(i for i in every if i not in part.removed)
        terms: list[Term] = [(1, part.of, every), (Fraction(-1, count), total, left)]
        _, name = self.of_combination(terms, part.sizes)
        at = iter(place.at)
        return Ref(name, tuple(part.sizes[i] if i in part.removed else next(at) for i in every))
