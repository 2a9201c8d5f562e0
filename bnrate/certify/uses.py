"""When a program uses its parameters first, which tells equal joint sets of them apart."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from jax.extend.core import Literal

from bnrate.certify.equations import Equation

# What only moves, cuts, names or converts its first operand does not use it yet.
_MOVES = frozenset((
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "device_put", "dynamic_slice",
    "expand_dims", "layout_constraint", "mesh_cast", "name", "optimization_barrier", "pvary",
    "reduce_precision", "reduced_vary_cast_p", "reshape", "reshard", "sharding_constraint", "slice",
    "split", "squeeze", "transpose", "unstack",
))  # fmt: skip


def first_uses(jaxpr: Any, leaves: int) -> tuple[float, ...]:
    """When each of the first inputs is used first, as a share of all equations.

    An equation that only moves a leaf gives it another name, within other programs as well.
    """
    found: dict[int, int] = {}
    clock = itertools.count()

    def walk(jaxpr: Any, held: Mapping[Any, int]) -> list[int | None]:
        """Note the uses of what variables hold, by number; what the results hold."""
        numbers = dict(held)

        def holds(variables: list[Any]) -> list[int | None]:
            return [None if isinstance(v, Literal) else numbers.get(v) for v in variables]

        for eqn in jaxpr.eqns:
            time, used = next(clock), holds(eqn.invars)
            results: list[int | None] = []
            if inside := _inside(eqn):
                for part in inside:
                    inputs = zip(part.invars, used, strict=True)
                    results = walk(part, {v: i for v, i in inputs if i is not None})
            elif _only_moves(eqn):
                count = len(eqn.outvars)
                results = used if len(used) == count else used[:1] * count
            else:
                for i in used:
                    if i is not None:
                        found.setdefault(i, time)
            moved = zip(eqn.outvars, results, strict=False)
            numbers |= {v: i for v, i in moved if i is not None}
        return holds(jaxpr.outvars)

    walk(jaxpr, {v: i for i, v in enumerate(jaxpr.invars[:leaves])})
    total = max(next(clock), 1)
    return tuple(found.get(i, 0) / total for i in range(leaves))


def _only_moves(eqn: Equation) -> bool:
    """Whether an equation's results are its first operand, or parts of it: a layer of a stack."""
    if eqn.primitive.name == "gather":
        return math.prod(eqn.invars[1].aval.shape[:-1]) == 1
    return eqn.primitive.name in _MOVES


def _inside(eqn: Equation) -> list[Any]:
    """The programs within an equation that take its operands one by one."""
    parts = [
        getattr(p, "jaxpr", p)
        for p in eqn.params.values()
        if hasattr(p, "jaxpr") or hasattr(p, "eqns")
    ]
    return [p for p in parts if len(p.invars) == len(eqn.invars)]
