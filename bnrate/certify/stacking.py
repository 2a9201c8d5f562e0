"""Rules for operations that put arrays on a new axis, take them apart, and repeat them."""

from typing import Any

from bnrate.certify.axes import relabel
from bnrate.certify.equations import Equation
from bnrate.certify.ledger import Ledger
from bnrate.certify.shapes import chained, joined, reach, resized
from bnrate.certify.values import Value, data, moved, replaced

_MOST_TAKEN = 64  # entries of an axis that are told apart


def stack(ledger: Ledger, eqn: Equation, *parts: Value) -> Value:
    """`stack`: the arrays one behind the other along a new axis."""
    axis = int(eqn.params["axis"]) % (len(parts[0].cuts) + 1)
    shape = (*parts[0].shape[:axis], 1, *parts[0].shape[axis:])
    to = {old: old + (old >= axis) for old in range(len(parts[0].cuts))}
    return chained(ledger, [relabel(part, shape, to) for part in parts], axis)


def unstack(ledger: Ledger, eqn: Equation, a: Value) -> list[Value]:
    """`unstack`: the entries along an axis, each for itself."""
    axis, count = int(eqn.params["axis"]) % len(a.cuts), len(eqn.outvars)
    if count > _MOST_TAKEN:
        a = joined(ledger, a, axis)
        entries = [resized(a, axis, 1)] * count
    else:
        entries = [reach(ledger, a, axis, i, i + 1) for i in range(count)]
    to = {old: old - (old > axis) for old in range(len(a.cuts)) if old != axis}
    return [relabel(e, (*a.shape[:axis], *a.shape[axis + 1 :]), to) for e in entries]


def tile(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """`tile`: copies one behind the other; an axis becomes the product of copies and axis."""
    if 0 in eqn.outvars[0].aval.shape:
        return data(eqn.outvars[0].aval.shape)
    for axis, times in enumerate(map(int, eqn.params["reps"])):
        if times > 1 and a.shape[axis]:
            a = _repeated(ledger, a, axis, times)
    return a if a.shape == eqn.outvars[0].aval.shape else relabel(a, eqn.outvars[0].aval.shape, {})


def _repeated(ledger: Ledger, value: Value, axis: int, times: int) -> Value:
    if len(value.cuts[axis]) > 1:
        return chained(ledger, [value] * times, axis)

    def rule(block: Any) -> Any:
        axes = replaced(block.axes, axis, (times, *block.axes[axis]))
        return moved(block, axes, {(axis, j): ((axis, j + 1),) for _, j in block.along([axis])})

    length = times * value.shape[axis]
    return Value(replaced(value.cuts, axis, (length,)), value.each(rule).blocks)
