"""Rules for factorisations of matrices and solutions of linear equations.

All are homogeneous in the entries of a matrix that scale alike.  What a factorisation is free to
choose (signs, an order among equals) it chooses in the same way for a matrix and for its positive
multiples, in real arithmetic: LAPACK's comparisons are of ratios, but for those that guard against
overflow.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax

from bnrate.certify import fields
from bnrate.certify.axes import map_blocks, relabel
from bnrate.certify.equations import Equation
from bnrate.certify.ledger import Ledger
from bnrate.certify.shapes import bare_block, joined, resized, uniform
from bnrate.certify.source import defined_in_jax, is_lambda_of_jax
from bnrate.certify.values import Block, Value, data, fixed, settle

_ENTRIES = "a factorisation of entries that scale differently"
_SOLVED = "a system of equations that scale differently"

Read = Callable[..., list[Value]]


def of_triangle(*degrees: Fraction | int) -> Callable[..., list[Value]]:
    """A rule for factors of a symmetric matrix, of which one triangle is read.

    JAX's derivative reads both: it is that of the value only if the matrix is surely symmetric.
    """
    general = factors(*degrees)

    def rule(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
        if ledger.gradient and not _is_symmetric(ledger, a):
            with ledger.of_gradient():
                return uniform(ledger, eqn, a)
        return general(ledger, eqn, a)

    return rule


def _is_symmetric(ledger: Ledger, a: Value) -> bool:
    """Whether a value is the sum of matrices and their transposes, by name."""
    block = a.only
    symbol = block.facts.symbol if block else None
    if block is None or symbol is None or not ledger.real:
        return False
    rows, columns = (block.along([axis]) for axis in (len(a.cuts) - 2, len(a.cuts) - 1))
    if len(rows) != 1 or len(columns) != 1 or symbol[1].at != tuple(block.positions):
        return False
    swapped = {len(symbol[1].at) - 2: len(symbol[1].at) - 1}
    swapped |= {j: i for i, j in swapped.items()}
    match ledger.names.meaning(symbol[1].name):
        case ("combination", name, at, ((1, other, where),), _):
            return other == name and where == tuple(swapped.get(i, i) for i in at)
    return False


def factors(*degrees: Fraction | int) -> Callable[..., list[Value]]:
    """A rule for factors of a matrix, which have these degrees in it, or else degree 0."""

    def rule(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
        a = _matrix(ledger, a, _ENTRIES)
        shapes = [v.aval.shape for v in eqn.outvars]
        each = [*degrees, *[0] * (len(shapes) - len(degrees))]
        return [_factor(a, shape, k) for shape, k in zip(shapes, each, strict=True)]

    return rule


def lu(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
    """One array holds L, which does not scale, and U, which does; the pivots are comparisons."""
    a = _matrix(ledger, a, _ENTRIES)
    both = a.each(lambda b: fixed(ledger, b, "L and U in one array"))
    shapes = [v.aval.shape for v in eqn.outvars]
    return [_factor(both, shapes[0], 1), *(_factor(a, shape, 0) for shape in shapes[1:])]


def triangular_solve(ledger: Ledger, eqn: Equation, a: Value, b: Value) -> Value:
    """The solution x of a x = b, or of x a = b, for a triangular a."""
    params, rank = eqn.params, len(b.cuts)
    a = _matrix(ledger, a, _SOLVED)
    if params["unit_diagonal"]:
        a = a.each(lambda block: fixed(ledger, block, "a triangle with ones on its diagonal"))
    b = _uniform(ledger, b, rank - 2 if params["left_side"] else rank - 1, _SOLVED)
    return map_blocks(ledger, _quotient, b, a).each(_other)


def linear_solve(read: Read) -> Callable[..., Value | list[Value]]:
    """`custom_linear_solve` where it is JAX's own: the solution of A x = b scales like b / A.

    How A scales is read off the program that multiplies by it.
    """

    def rule(ledger: Ledger, eqn: Equation, *operands: Value) -> Value | list[Value]:
        programs, lengths = eqn.params["jaxprs"], eqn.params["const_lengths"]
        right = operands[sum(lengths) :]
        known = defined_in_jax(programs.matvec) and _is_exact(programs.solve)
        if len(right) != 1 or not known:
            return uniform(ledger, eqn, *operands)
        matrix, vectors = operands[: lengths.matvec], data(right[0].shape)
        image, b = (
            settle(ledger, bare_block(ledger, v), _SOLVED)
            for v in (*read(ledger, programs.matvec, [*matrix, vectors]), *right)
        )
        solution = Value((), {(): _quotient(b, image)})
        return relabel(solution, right[0].shape, {}).each(_other)

    return rule


def _is_exact(solve: Any) -> bool:
    """Whether a solver is JAX's own of triangles L and U, the factors of the whole matrix.

    Others iterate, or (Cholesky's) use one triangle of the matrix, while its derivative uses all.
    """
    triangles = {("triangular_solve", True), ("triangular_solve", False)}
    operations = _operations(getattr(solve, "jaxpr", solve))
    known = is_lambda_of_jax(solve) and triangles <= operations
    return known and ("while", False) not in operations


def _operations(jaxpr: Any) -> set[tuple[str, bool]]:
    """The names of all operations of a program, and whether they are of unit diagonal."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add((eqn.primitive.name, bool(eqn.params.get("unit_diagonal"))))
        for part in jax.tree.leaves(list(eqn.params.values())):
            part = getattr(part, "jaxpr", part)
            found |= _operations(part) if hasattr(part, "eqns") else set()
    return found


def _quotient(b: Block, a: Block) -> Block:
    """Something that scales like b / a."""
    return Block(b.axes, fields.add(b.scale, a.scale, -1), {}, b.cons | a.cons, b.varies | a.varies)


def _other(block: Block) -> Block:
    """The statement of a block for other numbers, which vary."""
    return block.only_knowing()._replace(varies=block.varies | {*block.positions})


def _matrix(ledger: Ledger, a: Value, what: str) -> Value:
    """An array of matrices, the entries of each of which scale alike, as an array of numbers."""
    for axis in (len(a.cuts) - 2, len(a.cuts) - 1):
        a = resized(_uniform(ledger, a, axis, what), axis, 1)
    return a


def _uniform(ledger: Ledger, a: Value, axis: int, what: str) -> Value:
    """The array without shifts, scaled alike along an axis."""
    return joined(ledger, a.each(lambda b: settle(ledger, b, what)), axis, what)


def _factor(a: Value, shape: tuple[int, ...], degree: Fraction | int) -> Value:
    """Something of this degree in each of the matrices."""
    stack = {axis: axis for axis in range(len(a.cuts) - 2)}
    base = relabel(a, (*a.shape[:-2], *[1] * (len(shape) - len(stack))), stack)
    base = base.each(lambda b: b._replace(scale=fields.scaled(b.scale, degree)))
    return relabel(base, shape, stack).each(_other)
