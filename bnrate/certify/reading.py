"""Reading a traced program: from the exponents of its parameters to the constraints of its loss."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import Literal

from bnrate.certify import linear, rules
from bnrate.certify.entries import by_entry
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts, Ref
from bnrate.certify.fields import Field, Unknown
from bnrate.certify.ledger import Constraint, Ledger, Split, key
from bnrate.certify.pointwise import LOSS
from bnrate.certify.segments import coalesced
from bnrate.certify.shapes import uniform
from bnrate.certify.source import Site, defined_in_jax
from bnrate.certify.uses import first_uses
from bnrate.certify.values import Block, Value, constant, data, fixed, place_of, unnamed, whole

# For each axis of a leaf, its segments, each with its factors.
Structure = tuple[tuple[tuple[int, ...], ...], ...]

Coupled = frozenset[int]  # axes whose exponents need not be sums of one part along each

_MOST_READINGS = 24
_MOST_COUPLED = 3
_SURE = (jnp.float32, jnp.float64, jnp.bfloat16, jnp.bool_)
# These do no arithmetic, hence keep whatever is known of numbers of any dtype.
_MOVES = (
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p",
    "convert_element_type", "jit", "pjit", "optimization_barrier",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reading:
    """All that the loss demands: the structure of each leaf, its unknowns, the constraints.

    `constraints` are in program order, those of the value before those of the gradient alone;
    `uses` says when each leaf is used first, from 0 to 1.
    """

    structures: tuple[Structure, ...]
    unknowns: tuple[Unknown, ...]
    constraints: tuple[Constraint, ...]
    uses: tuple[float, ...]


def read(closed: Any, shapes: Sequence[tuple[int, ...]]) -> Reading:
    """Read a program whose first inputs are the leaves of these shapes and whose output is a loss.

    Where an axis of a leaf turns out to be made of parts that scale differently, the program is
    read once more with finer unknowns.
    """
    reader = _Reader()
    _check_pure(closed.jaxpr)
    structures = tuple(tuple((whole(n),) for n in shape) for shape in shapes)
    coupled: tuple[Coupled, ...] = (frozenset(),) * len(shapes)
    value = reader.loss(closed, structures, coupled, gradient=False)
    for _ in range(_MOST_READINGS):
        finer = _refined(structures, value.splits)
        if finer == structures:
            break
        structures = finer
        value = reader.loss(closed, structures, coupled, gradient=False)
    several = tuple(_coupled(structures, value.constraints))
    if several != coupled:
        coupled = several
        value = reader.loss(closed, structures, coupled, gradient=False)
    # Of the structures that were read last, whether or not that asked for more.
    gradient = reader.loss(closed, structures, coupled, gradient=True)
    constraints: dict[Any, Constraint] = {}
    for constraint in (*value.constraints, *gradient.constraints):
        constraints.setdefault(key(constraint._replace(gradient=False)), constraint)
    leaves = enumerate(zip(structures, coupled, strict=True))
    every = [u for i, (structure, axes) in leaves for u in unknowns(i, structure, axes)]
    found, columns = by_entry(list(constraints.values()), every)
    return Reading(structures, columns, found, first_uses(closed.jaxpr, len(shapes)))


class _Demands(NamedTuple):
    """What one reading found: the loss's constraints, and the finer structure it asks for."""

    constraints: list[Constraint]
    splits: Iterable[Split]


def leaf(ledger: Ledger, number: int, structure: Structure, coupled: Coupled) -> Value:
    """A parameter: each of its blocks scales by unknown exponents."""
    cuts = tuple(tuple(math.prod(factors) for factors in axis) for axis in structure)
    blocks = {}
    for index in itertools.product(*(range(len(axis)) for axis in structure)):
        axes = tuple(axis[i] for axis, i in zip(structure, index, strict=True))
        scale: Field = {(u, u.at): 1 for u in _block_unknowns(number, index, axes, coupled)}
        block = Block(axes, scale, {}, ledger.mark(number, index), frozenset())
        block = block._replace(varies=frozenset(block.positions))
        blocks[index] = block.only_knowing(_free(ledger, block))
    return Value(cuts, blocks)


def _free(ledger: Ledger, block: Block) -> Facts:
    """What is known of numbers that are independent of each other and of all else."""
    name = ledger.names.fresh()
    ledger.free.add(name)
    return Facts(symbol=(1, Ref(name, tuple(block.positions))), nonzero=True)


def unknowns(number: int, structure: Structure, coupled: Coupled) -> Iterable[Unknown]:
    """The unknown exponents of a leaf."""
    for index in itertools.product(*(range(len(axis)) for axis in structure)):
        axes = tuple(axis[i] for axis, i in zip(structure, index, strict=True))
        yield from _block_unknowns(number, index, axes, coupled)


def _block_unknowns(
    number: int, index: tuple[int, ...], axes: Sequence[tuple[int, ...]], coupled: Coupled
) -> Iterable[Unknown]:
    """One for the block, and one for each set of factors of one axis, or of the coupled axes."""
    yield Unknown(number, index)
    positions = [(axis, j) for axis, factors in enumerate(axes) for j in range(len(factors))]
    for size in range(1, len(positions) + 1):
        for at in itertools.combinations(positions, size):
            along = {axis for axis, _ in at}
            if len(along) == 1 or along <= coupled:
                yield Unknown(number, index, at, tuple(axes[axis][j] for axis, j in at))


def _coupled(structures: Sequence[Structure], constraints: Iterable[Constraint]) -> list[Coupled]:
    """Of each leaf the axes along which single indices may be invariant, if there are several."""
    single = [
        {u for u in unknowns(i, structure, frozenset()) if len(u.at) == 1}
        for i, structure in enumerate(structures)
    ]
    rows = [c.row for c in constraints if c.kind == "hard" and any(len(u.at) == 1 for u in c.row)]
    free = linear.perhaps_positive(rows, dict.fromkeys(u for found in single for u in found))
    axes = [frozenset(u.at[0][0] for u in found if u in free) for found in single]
    return [along if 1 < len(along) <= _MOST_COUPLED else frozenset() for along in axes]


def _argument(aval: Any) -> Value:
    """An argument of the loss, which is data; it may well be zero here and there."""
    return data(getattr(aval, "shape", ()))


class _Reader:
    """Reads jaxprs with one table of rules, and remembers where their equations come from."""

    def __init__(self):
        self.rules = rules.table(self.inner)
        self.sites: dict[int, Site] = {}
        self.pure: set[int] = set()  # the programs that write to no arrays

    def loss(
        self,
        closed: Any,
        structures: Sequence[Structure],
        coupled: Sequence[Coupled],
        gradient: bool,
    ) -> _Demands:
        """Read a program whose result must be invariant (and its gradient orthogonal)."""
        ledger = Ledger(gradient=gradient, sites=self.sites)
        shapes = zip(structures, coupled, strict=True)
        leaves = [leaf(ledger, i, structure, axes) for i, (structure, axes) in enumerate(shapes)]
        inputs = closed.jaxpr.invars[len(leaves) :]
        others = [_argument(v.aval) for v in inputs]
        consts = [constant(c) for c in closed.consts]
        (loss,) = self.open(ledger, closed.jaxpr, consts, [*leaves, *others])
        ledger.equation, ledger.primitive = None, "loss"
        mask = fixed(ledger, loss.blocks[()], LOSS).cons
        demanded = [ledger.constraints[bit] for bit in ledger.bits(mask)]
        return _Demands([c._replace(gradient=gradient) for c in demanded], ledger.splits)

    def inner(self, ledger: Ledger, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """Read a program within the program; the lines within JAX's own say nothing to a user."""
        before = ledger.foreign
        ledger.foreign = before or defined_in_jax(jaxpr)
        consts = [constant(c) for c in getattr(jaxpr, "consts", ())]
        outputs = self.open(ledger, getattr(jaxpr, "jaxpr", jaxpr), consts, inputs)
        ledger.foreign = before
        return outputs

    def open(
        self, ledger: Ledger, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]
    ) -> list[Value]:
        """Read the equations one after the other."""
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        known = {var: _named(ledger, value) for var, value in known.items()}

        def value(var: Any) -> Value:
            return constant(var.val) if isinstance(var, Literal) else known[var]

        if id(jaxpr) not in self.pure:
            _check_pure(jaxpr)
            self.pure.add(id(jaxpr))
        for eqn in jaxpr.eqns:
            before = ledger.equation
            ledger.enter(eqn)
            rule = self.rules.get(eqn.primitive.name, uniform)
            results = rule(ledger, eqn, *map(value, eqn.invars))
            results = [results] if isinstance(results, Value) else results
            for var, result in zip(eqn.outvars, results, strict=True):
                known[var] = _named(ledger, _within(eqn, var, result))
            ledger.equation = before
        return [value(var) for var in jaxpr.outvars]


def _within(eqn: Equation, var: Any, value: Value) -> Value:
    """The value without the facts that do not hold of numbers that wrap around or overflow."""
    dtype = getattr(var.aval, "dtype", None)
    if dtype is None or dtype in _SURE or eqn.primitive.name in _MOVES:
        return value
    if not jnp.issubdtype(dtype, jnp.floating):
        return value.each(Block.only_knowing)
    return value.each(_underflowing)


def _underflowing(block: Block) -> Block:
    """The block of numbers that may become 0 where real ones would not."""
    factors, block = block.factors, unnamed(block)
    return block.knowing(nonnegative=False, nonzero=False, factors=factors)


def _check_pure(jaxpr: Any) -> None:
    """Arrays that are written to (`jax.Ref`) are not followed."""
    variables = itertools.chain(jaxpr.constvars, jaxpr.invars, *(eqn.outvars for eqn in jaxpr.eqns))
    if any("Ref" in type(var.aval).__name__ for var in variables):
        raise ValueError("the loss writes to mutable arrays (jax.Ref); certify cannot follow them")


def _named(ledger: Ledger, value: Value) -> Value:
    """The value without the atoms that its constraints make vanish, and with a name."""

    def rule(block: Block) -> Block:
        scale, shift = block.scale, block.shift
        if scale or shift:
            scale, shift = ledger.tidy(scale, block.soft), ledger.tidy(shift, block.soft)
        facts = block.facts
        if facts.symbol is not None and scale == block.scale and shift == block.shift:
            return block
        if facts.symbol is None:
            name = ledger.names.fresh()
            facts = facts._replace(symbol=(1, Ref(name, place_of(ledger, block))))
        return Block(block.axes, scale, shift, block.cons, block.varies, facts)

    return coalesced(value).each(rule)


def _refined(structures: tuple[Structure, ...], splits: Iterable[Split]) -> tuple[Structure, ...]:
    """The structures after one wish for each segment, the points of equal wishes together."""
    wishes: dict[tuple[int, int, int], list[Split]] = collections.defaultdict(list)
    for split in splits:
        wishes[split.leaf, split.axis, split.segment].append(split)
    new = [[list(axis) for axis in structure] for structure in structures]
    for (number, axis, segment), wanted in sorted(wishes.items(), reverse=True):
        first = wanted[0]
        points = {p for w in wanted if w.factor == first.factor for p in w.points}
        factors = new[number][axis][segment]
        parts = _split(factors, first._replace(points=tuple(sorted(points))))
        new[number][axis][segment : segment + 1] = parts
    return tuple(tuple(tuple(axis) for axis in structure) for structure in new)


def _split(factors: tuple[int, ...], wish: Split) -> list[tuple[int, ...]]:
    """The segments that a segment becomes: cut at its outermost factor, or with finer factors."""
    j, length = wish.factor, factors[wish.factor]
    if wish.sizes:
        return [(*factors[:j], *wish.sizes, *factors[j + 1 :])]
    ends = [0, *wish.points, length]
    lengths = [high - low for low, high in itertools.pairwise(ends)]
    if j == 0:
        return [tuple(n for n in (n, *factors[1:]) if n != 1) for n in lengths]
    step = math.gcd(*lengths)
    if 1 < step < length:
        return [(*factors[:j], length // step, step, *factors[j + 1 :])]
    return [factors]
