"""Reading a traced program: from the exponents of its parameters to the constraints of its loss."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import Literal

from bnrate.certify import fields, linear, rules
from bnrate.certify.axes import common
from bnrate.certify.entries import by_entry
from bnrate.certify.equations import Equation
from bnrate.certify.facts import Facts, Ref
from bnrate.certify.fields import Field, Unknown
from bnrate.certify.ledger import Constraint, Ledger, Split, Step, key
from bnrate.certify.pointwise import LOSS
from bnrate.certify.segments import coalesced
from bnrate.certify.shapes import uniform
from bnrate.certify.source import Site, defined_in_jax
from bnrate.certify.uses import first_uses
from bnrate.certify.values import (
    Axis,
    Block,
    Value,
    constant,
    data,
    fixed,
    is_floating,
    place_of,
    whole,
)

# For each axis of a leaf, its segments, each with its factors.
Structure = tuple[tuple[tuple[int, ...], ...], ...]

Factor = tuple[int, int, int, int]  # of a leaf's axis and segment
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

    `constraints` are in program order; if the gradient demands more than the value, what it
    demands alone comes last.  `uses` says when each leaf is used first, from 0 to 1.
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
    found = reader.loss(closed, structures, coupled)
    for _ in range(_MOST_READINGS):
        finer = _refined(structures, found.splits, found.constraints)
        if finer == structures:
            break
        structures = finer
        found = reader.loss(closed, structures, coupled)
    several = tuple(_coupled(structures, found.constraints))
    if several != coupled:
        coupled = several
        found = reader.loss(closed, structures, coupled)
    constraints = _without_repeated(found.constraints)
    if any(c.gradient for c in constraints):
        value = reader.loss(closed, structures, coupled, gradient=False)
        constraints = _value_first(value.constraints, constraints)
    leaves = enumerate(zip(structures, coupled, strict=True))
    every = [u for i, (structure, axes) in leaves for u in unknowns(i, structure, axes)]
    found, columns = by_entry(constraints, every)
    return Reading(structures, columns, found, first_uses(closed.jaxpr, len(shapes)))


def _without_repeated(constraints: Sequence[Constraint]) -> list[Constraint]:
    """The constraints without those of the gradient that the value demands as well."""
    hard = [c for c in constraints if c.kind == "hard"]
    rows = {line for c in hard if not c.gradient for line in _line(c.row)}
    return [c for c in constraints if not c.gradient or rows.isdisjoint(_line(c.row))]


def _line(row: linear.Vector) -> tuple[frozenset[Any], ...]:
    """The shortest whole vectors on the line of a row, one for each sense."""
    found, _ = fields.line(row)
    return found, frozenset((u, -k) for u, k in found)


def _value_first(
    value: Iterable[Constraint], constraints: Iterable[Constraint]
) -> list[Constraint]:
    """All constraints, those that the value does not demand marked as of the gradient."""
    found: dict[Any, Constraint] = {key(c): c for c in value}
    for constraint in (c._replace(gradient=True) for c in constraints):
        found.setdefault(key(constraint._replace(gradient=False)), constraint)
    return list(found.values())


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
        self.pure: dict[int, Any] = {}  # programs that write to no arrays; so their parts live on
        self.sites: dict[int, Site] = {}  # of equations
        self.literals: dict[int, Value] = {}
        self.narrow = False  # whether some number of the program has few bits of exponent

    def loss(
        self,
        closed: Any,
        structures: Sequence[Structure],
        coupled: Sequence[Coupled],
        gradient: bool = True,
    ) -> _Demands:
        """Read a program whose result must be invariant, and its gradient orthogonal."""
        ledger = Ledger(gradient=gradient, sites=self.sites, narrow=self.narrow)
        shapes = zip(structures, coupled, strict=True)
        leaves = [leaf(ledger, i, structure, axes) for i, (structure, axes) in enumerate(shapes)]
        inputs = closed.jaxpr.invars[len(leaves) :]
        others = [_argument(v.aval) for v in inputs]
        consts = [constant(c) for c in closed.consts]
        (loss,) = self.open(ledger, closed.jaxpr, consts, [*leaves, *others])
        ledger.equation, ledger.primitive = None, "loss"
        if ledger.narrow and not self.narrow:  # what was concluded before is not sure
            self.narrow = True
            return self.loss(closed, structures, coupled, gradient)
        mask = fixed(ledger, loss.blocks[()], LOSS).cons
        return _Demands([ledger.constraints[bit] for bit in ledger.bits(mask)], ledger.splits)

    def inner(self, ledger: Ledger, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """Read a program within the program; the lines within JAX's own say nothing to a user."""
        before = ledger.foreign
        ledger.foreign = before or defined_in_jax(jaxpr)
        consts = [constant(c) for c in getattr(jaxpr, "consts", ())]
        outputs = self.open(ledger, getattr(jaxpr, "jaxpr", jaxpr), consts, inputs)
        ledger.foreign = before
        return outputs

    def literal(self, var: Literal) -> Value:
        """A number in the program."""
        if id(var) not in self.literals:
            self.literals[id(var)] = constant(var.val)
        return self.literals[id(var)]

    def open(
        self, ledger: Ledger, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]
    ) -> list[Value]:
        """Read the equations one after the other."""
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        known = {var: _named(ledger, value) for var, value in known.items()}

        def value(var: Any) -> Value:
            return self.literal(var) if isinstance(var, Literal) else known[var]

        if id(jaxpr) not in self.pure:
            _check_pure(jaxpr)
            self.pure[id(jaxpr)] = jaxpr
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
    if not is_floating(dtype):
        return value.each(Block.only_knowing)
    return value.each(_underflowing)


def _underflowing(block: Block) -> Block:
    """The block of numbers that may become 0 where real ones would not."""
    facts = block.facts.unnamed().rounded()
    return block.only_knowing(facts._replace(nonnegative=False, factors=block.factors))


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


def _refined(
    structures: tuple[Structure, ...], splits: Iterable[Split], constraints: Iterable[Constraint]
) -> tuple[Structure, ...]:
    """The structures after all wishes that fit, also for factors that are tied to those named."""
    wishes: dict[Factor, list[Split]] = collections.defaultdict(list)
    tied = _tied(constraints)
    for split in splits:
        for factor in tied.get(split[:4], (split[:4],)):
            wishes[factor].append(split)
    new = [[list(axis) for axis in structure] for structure in structures]
    # From the last factor to the first: what is cut or split leaves the places before it alone.
    for (number, axis, segment, j), wanted in sorted(wishes.items(), reverse=True):
        factors = new[number][axis][segment]
        new[number][axis][segment : segment + 1] = _split(factors, j, wanted)
    return tuple(tuple(tuple(axis) for axis in structure) for structure in new)


def _tied(constraints: Iterable[Constraint]) -> dict[Factor, list[Factor]]:
    """For each factor those along which exponents must fit: they will be split like it."""
    rows = [
        {(u.leaf, axis, u.block[axis], j): 1 for u in c.row for axis, j in u.at if len(u.at) == 1}
        for c in constraints
    ]
    tied: dict[Factor, list[Factor]] = {}
    for component in linear.components(rows):
        factors = list(dict.fromkeys(factor for row in component for factor in row))
        tied |= dict.fromkeys(factors, factors)
    return tied


def _split(factors: Axis, j: int, wanted: Sequence[Split]) -> list[Axis]:
    """The segments that a segment becomes: cut at its outermost factor, or with finer factors."""
    length = factors[j]
    here = [w for w in wanted if not w.inside]
    ends = sorted({0, length, *(p for w in here for p in w.points if p < length)})
    lengths = [high - low for low, high in itertools.pairwise(ends)]
    if j == 0 and len(lengths) > 1:
        pieces = []
        for low, high in itertools.pairwise(ends):
            if high - low == 1:
                pieces.append(factors[1:])
            else:
                inner = _inside(wanted, ("cut", (low, high)))
                pieces += _split((high - low, *factors[1:]), 0, inner)
        return pieces
    step = math.gcd(*lengths)  # an inner factor is folded, so that its points are between steps
    finer: Axis = (length // step, step) if 1 < step < length else (length,)
    for sizes in (w.sizes for w in here if math.prod(w.sizes) == length):
        finer = common(finer, sizes) or finer
    segments = [(*factors[:j], *finer, *factors[j + 1 :])]
    for m in reversed(range(len(finer))):
        if inner := _inside(wanted, ("fold", finer, m)):
            segments = _split(segments[0], j + m, inner)
    return segments


def _inside(wanted: Iterable[Split], step: Step) -> list[Split]:
    """What is wished for inside of a step."""
    return [w._replace(inside=w.inside[1:]) for w in wanted if w.inside[:1] == (step,)]
