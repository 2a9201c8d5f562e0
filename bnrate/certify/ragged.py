"""The rule for products of rows with the matrices of their groups (mixtures of experts)."""

from bnrate.certify.axes import relabel
from bnrate.certify.equations import Equation
from bnrate.certify.ledger import Ledger
from bnrate.certify.pointwise import ENTRIES
from bnrate.certify.shapes import bare_block, bilinear, joined, resized
from bnrate.certify.sums import contracted, framed, varying
from bnrate.certify.values import Value, fixed, settle


def ragged_dot(
    ledger: Ledger, eqn: Equation, a: Value, b: Value, sizes: Value, *more: Value
) -> Value:
    """`ragged_dot`: each row is multiplied by the matrix of its group, or by none, which gives 0.

    All matrices scale alike.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (sum_a, sum_b), (batch_a, batch_b) = numbers.dot_dimension_numbers
    groups, (ragged,) = list(numbers.rhs_group_dimensions), numbers.lhs_ragged_dimensions
    cons = 0
    for value in (sizes, *more):
        cons |= fixed(ledger, bare_block(ledger, value), "a size of a group").cons
    if ragged in (*sum_a, *batch_a) or len(groups) != 1:
        return bilinear(ledger, eqn, a, b).each(lambda block: block.demanding(cons))
    what = "matrices that scale differently"
    b = joined(ledger, b, groups[0], what)
    free_a = [d for d in range(len(a.cuts)) if d not in (*sum_a, *batch_a)]
    free_b = [d for d in range(len(b.cuts)) if d not in (*sum_b, *batch_b, *groups)]
    order_a = [*batch_a, *free_a, *([None] * len(free_b)), *sum_a]
    order_b = [*batch_b, *([None] * len(free_a)), *free_b, *sum_b]
    a, b = (v.each(lambda x: settle(ledger, x, ENTRIES).only_knowing()) for v in (a, b))
    b = framed(resized(b, groups[0], 1), [*order_b, *groups])
    b = relabel(b, b.shape[:-1], {d: d for d in range(len(order_b))})
    frame = tuple(range(len(order_a) - len(sum_a), len(order_a)))
    product = contracted(ledger, framed(a, order_a), b, frame)
    return product.each(lambda x: varying(x, range(len(x.axes))).demanding(cons))
