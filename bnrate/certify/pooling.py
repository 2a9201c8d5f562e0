"""The rule for derivatives of max pooling, which a loss holds if it holds a gradient."""

from bnrate.certify.equations import Equation
from bnrate.certify.ledger import Ledger
from bnrate.certify.shapes import joined, resized
from bnrate.certify.sums import varying, windows
from bnrate.certify.values import Value, settle


def window_gradient(ledger: Ledger, eqn: Equation, a: Value, compared: Value) -> Value:
    """Gradients of max pooling: of entries picked by comparison some are added, or passed on."""
    cons, shape = 0, eqn.outvars[0].aval.shape
    what = "a comparison of entries that scale differently"
    for axis in windows(eqn):
        a, compared = joined(ledger, a, axis), joined(ledger, compared, axis, what)
        a = resized(a, axis, shape[axis])
    for block in compared.blocks.values():
        cons |= block.cons
    a = a.each(lambda b: settle(ledger, b, "a choice of a shifted value"))
    return a.each(lambda b: varying(b, range(len(b.axes))).demanding(cons))
