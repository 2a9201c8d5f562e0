"""Where units are, as values that hold no arrays: Member, Group, Groups."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

import jax

Range = tuple[int, int, int]  # (axis, start, stop)


@dataclasses.dataclass(frozen=True, repr=False)
class Member:
    """A leaf of a group, or a part of one, and the axes whose indices are units.

    Axes count from the front, and are those of the view if there is one.

        >>> Member("stack/kernel", axes=(0, 2))  # each output channel of each layer
        Member('stack/kernel', axes=(0, 2))
        >>> Member("qkv", axes=2, shape=(512, 3, 8, 64), part=[(1, 0, 1)])  # each head of q
        Member('qkv', axes=(2,), shape=(512, 3, 8, 64), part=((1, 0, 1),))

    Attributes:
      path: `jax.tree_util.keystr(path, simple=True, separator="/")`, for example
        `"Dense_0/kernel"`.
      axes: each index of the product of these axes is a unit, row-major in the order given; none:
        all of it is one unit.
      shape: to view the leaf in, row-major; None for its own.
      part: the ranges (axis, start, stop) that belong to it, all of an axis that is not named.

    Raises:
      ValueError: an axis is negative, repeated or not in the shape; a length is not positive; a
        range is empty or leaves its axis.
    """

    path: str
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    part: tuple[Range, ...] = ()

    def __init__(
        self,
        path: str,
        axes: SupportsIndex | Iterable[SupportsIndex] = (),
        shape: Iterable[SupportsIndex] | None = None,
        part: Iterable[Iterable[SupportsIndex]] = (),
    ):
        set_field = functools.partial(object.__setattr__, self)
        set_field("path", path)
        several = axes if isinstance(axes, Iterable) else (axes,)
        set_field("axes", _whole("unit axes", path, several))
        set_field("shape", None if shape is None else _whole("the shape", path, shape))
        set_field("part", tuple(sorted(_range(path, one) for one in part)))
        self._check()
        if self.shape is not None:
            check_fit(self, self.shape)

    def _check(self) -> None:
        """Refuse what no leaf can have."""
        for what, axes in (("unit ", self.axes), ("part's ", [axis for axis, *_ in self.part])):
            if any(axis < 0 for axis in axes):
                raise ValueError(
                    f"{what}axis {min(axes)} of leaf '{self.path}' is negative; count from the "
                    "front"
                )
            if len(set(axes)) < len(axes):
                raise ValueError(
                    f"the {what}axes {tuple(axes)} of leaf '{self.path}' repeat an axis; name each "
                    "once"
                )
        if self.shape is not None and any(length < 1 for length in self.shape):
            raise ValueError(
                f"the shape {self.shape} of leaf '{self.path}' has a length below 1; give the "
                "lengths of all axes"
            )
        for axis, start, stop in self.part:
            if not 0 <= start < stop:
                raise ValueError(
                    f"the part {start}:{stop} of axis {axis} of leaf '{self.path}' is empty or "
                    "begins before 0; give (axis, start, stop) with 0 <= start < stop"
                )

    def __repr__(self) -> str:
        fields = [repr(self.path)]
        fields += [f"axes={self.axes}"] if self.axes else []
        fields += [f"shape={self.shape}"] if self.shape is not None else []
        fields += [f"part={self.part}"] if self.part else []
        return f"Member({', '.join(fields)})"

    @property
    def name(self) -> str:
        """The path, and the part as an index of the view: `qkv[:, 0:1]`."""
        ranges = {axis: f"{start}:{stop}" for axis, start, stop in self.part}
        index = ", ".join(ranges.get(axis, ":") for axis in range(max(ranges, default=-1) + 1))
        return f"{self.path}[{index}]" if index else self.path


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that are scaled together, unit by unit, so that all have units of one shape."""

    members: tuple[Member, ...]

    def __init__(self, members: Iterable[Member]):
        object.__setattr__(self, "members", tuple(members))
        if not self.members:
            raise ValueError("a group needs at least one member")
        counts = {len(member.axes) for member in self.members}
        if len(counts) > 1:
            mixed = "with and without unit axes" if 0 in counts else "of different numbers of axes"
            raise ValueError(
                f"group '{self.name}' mixes members {mixed}; its members are scaled index by index "
                "together, or as a whole: give all of them as many unit axes"
            )

    @property
    def name(self) -> str:
        """The names of the members, joined by `+`."""
        return "+".join(member.name for member in self.members)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Groups:
    """All scale-invariant groups of one loss: immutable, hashable, static under `jax.jit`.

    Raises:
      ValueError: a leaf, or an entry of it, stands in two groups.
    """

    groups: tuple[Group, ...]

    def __init__(self, groups: Iterable[Group] = ()):
        object.__setattr__(self, "groups", tuple(groups))
        for path, members in self.by_path.items():
            if len(members) > 1 and not all(member.part for member in members):
                raise ValueError(
                    f"leaf '{path}' is named {len(members)} times; a leaf belongs to one group "
                    "only, or each of its parts to one"
                )
            for a, b in itertools.combinations(members, 2):
                if a.shape == b.shape:
                    refuse_overlap(a, b, boxes_meet(a, b))

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @functools.cached_property
    def by_path(self) -> dict[str, tuple[Member, ...]]:
        """The members of each leaf, which are several if they are parts of it."""
        found: dict[str, tuple[Member, ...]] = {}
        for member in itertools.chain.from_iterable(group.members for group in self):
            found[member.path] = (*found.get(member.path, ()), member)
        return found

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all members, each once, in order."""
        return tuple(self.by_path)

    @property
    def in_parts(self) -> bool:
        """Whether some member is only a part of its leaf."""
        return any(member.part for group in self for member in group.members)

    def whole(self) -> "Groups":
        """The same groups without unit axes: each group is one unit."""
        return Groups(
            Group(Member(m.path, (), m.shape, m.part) for m in group.members) for group in self
        )


def check_fit(member: Member, shape: tuple[int, ...]) -> None:
    """Refuse axes and parts that an array of this shape does not have."""
    viewed = "" if member.shape is None else f" is viewed as {member.shape}, which"
    rank = f"leaf '{member.path}'{viewed} has rank {len(shape)}"
    legal = f"give axes from 0 to {len(shape) - 1}, or none" if shape else "give none"
    for what, axes in (("unit", member.axes), ("part's", [axis for axis, *_ in member.part])):
        if axes and max(axes) >= len(shape):
            raise ValueError(f"{rank}, so it has no {what} axis {max(axes)}; {legal}")
    for axis, start, stop in member.part:
        if stop > shape[axis]:
            raise ValueError(
                f"the part {start}:{stop} of axis {axis} of leaf '{member.path}' leaves the axis, "
                f"which has length {shape[axis]}; give a range within 0:{shape[axis]}"
            )


def boxes_meet(a: Member, b: Member) -> bool:
    """Whether two parts of one view have an entry in common."""
    ranges = {axis: (start, stop) for axis, start, stop in a.part}
    both = [(ranges[axis], (start, stop)) for axis, start, stop in b.part if axis in ranges]
    return all(max(one[0], two[0]) < min(one[1], two[1]) for one, two in both)


def refuse_overlap(a: Member, b: Member, meet: bool) -> None:
    """Refuse two members that have an entry in common."""
    if meet:
        raise ValueError(
            f"the parts {a.name} and {b.name} of leaf '{a.path}' overlap; each entry belongs to "
            "one group only: give disjoint ranges"
        )


def _whole(what: str, path: str, numbers: Iterable[SupportsIndex]) -> tuple[int, ...]:
    given = tuple(numbers)
    try:
        return tuple(operator.index(number) for number in given)
    except TypeError:
        raise ValueError(
            f"{what} {given} of leaf '{path}' must be whole numbers, counted from the front"
        ) from None


def _range(path: str, one: Iterable[SupportsIndex]) -> Range:
    found = _whole("the part's range", path, one)
    if len(found) != 3:
        raise ValueError(f"a part of leaf '{path}' has the range {found}; give (axis, start, stop)")
    return found
