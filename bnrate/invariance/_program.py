"""What the traced program of a loss says of its rounding, and of leaves that are no matrices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_PRODUCTS = ("dot_general", "ragged_dot_general", "ragged_dot", "conv_general_dilated", "gather")


def rounding(program: ClosedJaxpr, parameters: int) -> float:
    """Return the coarsest relative rounding on the way from the parameters to the loss.

    Args:
      program: the traced loss.
      parameters: so many of its inputs, the first ones, count.
    """
    jaxpr = program.jaxpr
    outputs = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    needed, equations = set(outputs), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            equations.insert(0, eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    sources = set(jaxpr.invars[:parameters])
    return _coarsest(equations, sources, [v.aval.dtype for v in outputs])


def _coarsest(equations: Iterable[Any], sources: set[Any], dtypes: Sequence[Any]) -> float:
    """The coarsest rounding of these dtypes and of all that equations make from the sources."""
    found = max(map(_eps, dtypes), default=0.0)
    for eqn in equations:
        if not any(not isinstance(v, Literal) and v in sources for v in eqn.invars):
            continue
        sources.update(eqn.outvars)
        found = max(found, *(_eps(v.aval.dtype) for v in eqn.outvars if hasattr(v.aval, "dtype")))
        for inner in _inner(eqn.params):
            found = max(found, _coarsest(inner.eqns, set(inner.invars), ()))
    return found


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _inner(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """The programs inside an operation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


class _Piece(NamedTuple):
    """A value that holds the numbers of one leaf, moved about: which axes are the leaf's own."""

    leaf: int
    own: tuple[bool, ...]


class _Uses(NamedTuple):
    """How a program uses a leaf: by how many axes at most; in products; as a factor."""

    rank: int
    contracted: bool
    factor: bool


def scales(program: ClosedJaxpr, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the leaves of two or more axes that the program does not use as matrices, with why.

    A *stack of vectors* is used only in slices of one axis, as `jax.lax.scan` over layers does with
    their biases and scales.  A *scale* multiplies entry by entry, and no product of matrices,
    convolution or lookup takes it.  What is only added, as a table of positions is, is neither.

    Args:
      program: the traced loss.
      shapes: of the leaves, by path, in the order of the program's first inputs.
    """
    pieces, uses = {}, [_Uses(0, False, False)] * len(shapes)
    for i, (var, shape) in enumerate(zip(program.jaxpr.invars, shapes.values(), strict=False)):
        pieces[var] = _Piece(i, tuple(n > 1 for n in shape))
    _follow(program.jaxpr, pieces, uses)
    found = {}
    for (path, shape), use in zip(shapes.items(), uses, strict=True):
        if sum(n > 1 for n in shape) >= 2 and use.rank > 0:
            if use.rank == 1:
                found[path] = "is used in slices of one axis only: it is a stack of vectors"
            elif use.factor and not use.contracted:
                found[path] = (
                    "multiplies entry by entry, and no product of matrices takes it: it is a scale"
                )
    return found


def _follow(jaxpr: Jaxpr, pieces: dict[Any, _Piece], uses: list[_Uses]) -> list[_Piece | None]:
    """Note all uses of pieces in a program; return what its outputs are."""
    for eqn in jaxpr.eqns:
        held = [None if isinstance(v, Literal) else pieces.get(v) for v in eqn.invars]
        if any(held):
            made = _made(eqn, held, uses)
            pieces.update({v: p for v, p in zip(eqn.outvars, made, strict=False) if p})
    return [None if isinstance(v, Literal) else pieces.get(v) for v in jaxpr.outvars]


def _made(eqn: Any, held: list[_Piece | None], uses: list[_Uses]) -> list[_Piece | None]:
    """What an operation makes of pieces: moved ones; or none, and the operation is a use."""
    name, params, shape = eqn.primitive.name, eqn.params, eqn.outvars[0].aval.shape
    inner = list(_inner(params))
    if name == "scan":
        first = params["num_consts"] + params["num_carry"]
        sliced = [p and p._replace(own=p.own[1:]) for p in held[first:]]
        return _entered(inner[0], held[: params["num_consts"]], first, sliced, uses, held)
    if len(inner) == 1 and len(inner[0].invars) == len(eqn.invars):  # jit, custom rules, remat
        return _follow(inner[0], _given(inner[0], held), uses)
    pieces = [p for p in held if p]
    others = [v for v, p in zip(eqn.invars, held, strict=True) if not p]
    if not inner and len(pieces) == 1 and (own := _moved(name, params, pieces[0], eqn)) is not None:
        return [_Piece(pieces[0].leaf, own)]
    plain = not inner and len(pieces) == 1 and all(isinstance(v, Literal) for v in others)
    if plain and shape == eqn.invars[held.index(pieces[0])].aval.shape:
        return [pieces[0]]  # one entry at a time, with constants: exp(w), 1 + w
    alone = len({p.leaf for p in pieces}) == 1
    for piece in pieces:
        old = uses[piece.leaf]
        uses[piece.leaf] = _Uses(
            max(old.rank, sum(piece.own)),
            old.contracted or name in _PRODUCTS or bool(inner),
            old.factor or (name in ("mul", "div") and alone and len(pieces) == 1),
        )
    return []


def _given(jaxpr: Jaxpr, held: Sequence[_Piece | None]) -> dict[Any, _Piece]:
    return {v: p for v, p in zip(jaxpr.invars, held, strict=True) if p}


def _entered(
    jaxpr: Jaxpr,
    consts: list[_Piece | None],
    first: int,
    sliced: list[_Piece | None],
    uses: list[_Uses],
    held: list[_Piece | None],
) -> list[_Piece | None]:
    """Follow pieces into the body of a loop; what is carried from step to step is a use."""
    carried = held[len(consts) : first]
    for piece in filter(None, carried):
        old = uses[piece.leaf]
        uses[piece.leaf] = _Uses(max(old.rank, sum(piece.own)), True, old.factor)
    _follow(jaxpr, _given(jaxpr, [*consts, *[None] * len(carried), *sliced]), uses)
    return []


def _moved(
    name: str, params: Mapping[str, Any], piece: _Piece, eqn: Any
) -> tuple[bool, ...] | None:
    """Which axes are the leaf's own after a movement; None if the operation is something else."""
    own, shape = piece.own, eqn.outvars[0].aval.shape
    match name:
        case "convert_element_type" | "copy" | "rev" | "reduce_precision" | "stop_gradient":
            return own
        case "transpose":
            return tuple(own[axis] for axis in params["permutation"])
        case "squeeze":
            return tuple(x for axis, x in enumerate(own) if axis not in params["dimensions"])
        case "broadcast_in_dim":
            places = dict(zip(params["broadcast_dimensions"], own, strict=True))
            return tuple(places.get(axis, False) for axis in range(len(shape)))
        case "slice" | "dynamic_slice":
            return tuple(x and n > 1 for x, n in zip(own, shape, strict=True))
        case "reshape":
            before = eqn.invars[0].aval.shape
            real = [x for x, n in zip(own, before, strict=True) if n > 1]
            if [n for n in before if n > 1] == [n for n in shape if n > 1]:
                kept = iter(real)
                return tuple(next(kept) if n > 1 else False for n in shape)
    return None
