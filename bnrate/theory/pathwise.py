"""The GD bound for one run, from its trace alone: no constants of the loss, no Hessian.

The bound of `gd` asks of the loss only that turning the blocks by angles theta costs at most
C sum theta^2, and only on the way that the run took.  What a step did cost is in its trace: the
loss after it, less the loss before, plus what its angles earned.  So for any C that one tries,
what all steps cost beyond C theta^2 is a number, which is added to the height of the start, and
the theorem holds for this run with that C, whatever the network:

    >>> A, w, rate, rows = np.diag([0.0, 1.0]), np.array([0.6, 0.8]), 2.0, []
    >>> for _ in range(6):   # gradient descent on w'Aw / w'w
    ...     loss = w @ A @ w / (w @ w)
    ...     gradient = 2 * (A @ w - loss * w) / (w @ w)
    ...     rows.append((loss, [w @ w], [np.sqrt(w @ w) * np.linalg.norm(gradient)], 0.0))
    ...     w = w - rate * gradient
    >>> loss, norm2, spherical_gradient, rest_gradient = map(np.array, zip(*rows))
    >>> trace = Trace(loss, norm2, spherical_gradient[:-1], rest_gradient[:-1])
    >>> print(certificate(trace, rate=rate, full_batch=True, smooth=True))
    valid (5 steps)
                                       measured  certified
      sum of squared gradients            1.028      6.763
      descent                             1.092       1.92
      norm2 at the end, block 0           4.777      7.423
      turning by angles costs at most 0.6352 angle^2 in a step, and 0.0064 besides in all

The smaller C, the less is certified, down to C = 0 and the mere sum of all costs.  But C is what
lasts: certified is also what any longer run does, while its steps cost no more than C theta^2, its
loss does not fall below the least so far, and no gradient exceeds the largest so far.  So C is the
least whose surplus is a small part of the height.

A certificate says nothing of another start, rate or seed.  That a run is gradient descent on its
blocks is not believed but checked: then, and hardly otherwise, norm2 grows at each step by
rate^2 |D|^2 / norm2, where |D| is the spherical gradient.  The ledger knows the length of a step,
not its sign, which is inferred from the losses: they fall where steps are small.  All claims are
about the recorded losses and gradients, and about the norms that follow from these by that ledger.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnrate.ranges import in_range
from bnrate.theory import gd
from bnrate.theory.constants import Constants
from bnrate.theory.ledger import (
    SHARE,
    TOLD,
    Ledger,
    Trace,
    followed,
    narrow,
    numbers,
    refusal,
    residual,
)

Label = Literal["valid", "estimate", "refused"]


class Claim(NamedTuple):
    """Two sides of an inequality; NaN where there is none.

    Attributes:
      measured: in the trace.
      certified: what it cannot exceed.
    """

    measured: float | np.ndarray
    certified: float | np.ndarray


_NO_CLAIM = Claim(np.nan, np.nan)


class Certificate(NamedTuple):
    """What is known of a run.

    Attributes:
      label: "valid" for this run; an "estimate" where the theorem does not quite apply; "refused"
        where it does not, and there are no numbers.
      reasons: for any label but "valid", sentences.
      steps: of the trace.
      total: sum of the squared gradients, on all spheres and in the rest.
      descent: sum of angle times spherical gradient, and of safety * rate_rest / 2 times the
        squared gradient in the rest.
      norm2: of each block at the end, as its gradients make it.
      curvature: C, the least whose surplus is within the allowance.
      surplus: what the steps cost beyond C theta^2, rounding included; part of what is certified.
      realised: the largest cost of any step, over its theta^2.  For comparison with constants and
        Hessians; near convergence it may be that of the rounding of losses.
      slack: (max(b_T, 2 / (c rate_rest)) descent - total) / total, with both as measured.  It is
        no less than -1e-12, or this module is wrong.
    """

    label: Label
    reasons: tuple[str, ...]
    steps: int
    total: Claim = _NO_CLAIM
    descent: Claim = _NO_CLAIM
    norm2: Claim = _NO_CLAIM
    curvature: float = np.nan
    surplus: float = np.nan
    realised: float = np.nan
    slack: float = np.nan

    def __str__(self) -> str:
        return "\n".join(_table(self))


def certificate(
    trace: Trace,
    *,
    rate: float,
    full_batch: bool,
    smooth: bool,
    rate_rest: float | None = None,
    safety: float = 0.5,
    allowance: float = 0.01,
    every: int = 1,
) -> Certificate:
    """Certify a run from its trace.

    Computed in float64 on the host.  Refused are traces whose norms do not follow from their
    gradients (to 1e-9 in float64, to 1e-4 in less, and to a thousandth of what they grow by): runs
    with decay, momentum, projections, other rules or rates, losses that are not scale-invariant;
    what is not finite, and what rounding leaves no digits of.  An estimate are float32 runs, whose
    losses are not known well enough; runs on losses that are not smooth, which may cost any amount
    in the next step; runs whose norms grow too little to tell plain steps from others, or whose
    losses do not fall where steps are small, as in gradient ascent; and runs on changing batches:
    their losses are not of one function, and all that is claimed of them is that the squared batch
    gradients on the spheres sum up to (b_T^2 - b_0^2) / 2 at most.

    The blocks must take plain steps; the rest may follow any rule: its steps are among the costs.
    Losses fall by what blocks and rest earn together, so ascent in a block that earns little beside
    the others, or beside the rest, goes unnoticed.

    Args:
      trace: of every step.
      rate: eta of the blocks.
      full_batch: whether all steps use the same batch, and the loss is that on this batch.
      smooth: whether the loss is twice continuously differentiable, as the theorem assumes; with a
        ReLU it is not.  `curvature.smoothness_residual` is the witness.
      rate_rest: eta of the rest; for a rule other than plain steps, any number of its order: a
        weight.  None if there is no rest.
      safety: c, in (0, 1]; c * rate_rest / 2 is the descent that a squared gradient in the rest
        should earn.
      allowance: how much of the height, loss at the start less the least, the surplus may come to.
        With 0, C is `realised`; with much, C is 0, and what is certified is little more than the
        sum of what the steps cost.
      every: steps from one record to the next; only 1 can be certified.

    Raises:
      ValueError: the shapes of the trace do not fit, it has no steps or blocks, or a norm of zero,
        or is not of real numbers; a rate, the safety or the allowance is out of range; the rest has
        gradients, and `rate_rest` is missing.
    """
    with jax.enable_x64(True), np.errstate(all="ignore"):  # what overflows is refused
        in_range("rate", rate, "(0, inf)")
        in_range("allowance", allowance, "[0, inf)")
        weight, (trace, dtype) = _weight(rate_rest, safety), numbers(trace)
        if rate_rest is None and np.any(trace.rest_gradient != 0):
            raise ValueError(
                "the trace has gradients in the rest; give rate_rest, a rate or a weight"
            )
        ledger = followed(trace, rate)
        wrong = refusal(trace, ledger, rate, every, dtype)
        if wrong:
            return Certificate("refused", (wrong,), len(trace.rest_gradient))
        if full_batch:
            found = _certified(trace, ledger, rate, weight, allowance)
        else:
            found = _of_batches(trace, ledger)
        reasons = tuple(_doubts(trace, ledger, rate, weight, dtype, full_batch, smooth))
        return _consistent(found, reasons)


def _weight(rate_rest: float | None, safety: float) -> float:
    """What a squared gradient in the rest should earn; 0 without a rest."""
    in_range("safety", safety, "(0, 1]")
    if rate_rest is None:
        return 0.0
    in_range("rate_rest", rate_rest, "(0, inf)")
    in_range("safety * rate_rest / 2", safety * rate_rest / 2, "(0, inf)")
    return safety * rate_rest / 2


def _doubts(
    trace: Trace,
    ledger: Ledger,
    rate: float,
    weight: float,
    dtype: np.dtype,
    full_batch: bool,
    smooth: bool,
) -> Iterator[str]:
    """Why a certificate is an estimate only."""
    if not full_batch:
        yield (
            "the losses are of different batches, of which the theorem does not speak: the total "
            "is of squared batch gradients on the spheres, and bounded by the growth of norm2"
        )
    if narrow(dtype):
        yield f"the trace is in {dtype}: the rounding of its losses is not accounted for"
    if not smooth:
        yield (
            "the loss is not twice continuously differentiable: the sums are right for these "
            "steps, but no curvature bounds what further ones may cost"
        )
    growth = rate * ledger.growth.sum(0)
    unseen = growth < TOLD * np.finfo(dtype).eps * trace.norm2[0]
    unseen |= residual(trace.norm2, rate * ledger.growth) > SHARE * growth
    unseen &= np.any(trace.spherical_gradient != 0, axis=0)
    if unseen.any():
        yield (
            f"norm2 of block {np.argmax(unseen)} grew too little to tell plain steps from others: "
            f"by {growth[np.argmax(unseen)]:.3g}, by its gradients"
        )
    if full_batch and not _descends(trace, ledger, weight):
        yield (
            "the losses do not fall where the steps are smallest and can be told from rounding: "
            "this may be gradient ascent"
        )


def _descends(trace: Trace, ledger: Ledger, weight: float) -> bool:
    """Whether the sign of the steps is that of descent, or there are none.

    The smaller an angle, the closer is the change of the loss to what it earned, with a minus for
    descent and a plus for ascent.  Of the steps that can be told from rounding, and if there are
    such, from what the rest does, the tenth that turn least decides.
    """
    turned, earned = _steps(trace, ledger, weight)
    told = (turned > 0) & (earned > TOLD * _rounding(trace.loss, earned))
    by_blocks = told & (earned > 8 * weight * trace.rest_gradient**2)
    told = np.flatnonzero(by_blocks if by_blocks.any() else told)
    smallest = told[np.argsort(turned[told])][: -(-len(told) // 10)]
    still = not trace.spherical_gradient.any()
    return still or float(np.sum(np.diff(trace.loss)[smallest])) < 0


def _consistent(found: Certificate, reasons: tuple[str, ...]) -> Certificate:
    """With its label; refused if its own claims do not hold, or are infinite or NaN."""
    for claim in (found.total, found.descent, found.norm2):
        holds = (claim.measured <= claim.certified) & np.isfinite(claim.certified)
        if claim is not _NO_CLAIM and not np.all(holds):
            reason = "the numbers of this trace are too large, or lose too many digits, for float64"
            return Certificate("refused", (reason,), found.steps)
    return found._replace(label="estimate" if reasons else "valid", reasons=reasons)


def _of_batches(trace: Trace, ledger: Ledger) -> Certificate:
    """b_T^2 - b_0^2 = sum 2 D^2 + growth^2 holds for any gradients."""
    squares = trace.spherical_gradient**2
    total = Claim(float(np.sum(squares)), float(np.sum(squares + ledger.growth**2 / 2)))
    return Certificate("estimate", (), len(squares), total=total)


def _certified(
    trace: Trace, ledger: Ledger, rate: float, weight: float, allowance: float
) -> Certificate:
    """The GD bound for what the steps cost."""
    D, rest = trace.spherical_gradient, trace.rest_gradient
    turned, earned = _steps(trace, ledger, weight)
    rounding = _rounding(trace.loss, earned)
    # Else, where nothing turns any more, the last digits of the losses would look like cost.
    costs = np.maximum(np.diff(trace.loss) + earned - rounding, 0)
    height = trace.loss[0] - np.min(trace.loss)
    C = _curvature(costs, turned, allowance * height)
    surplus = float(np.sum(rounding) + np.sum(np.maximum(costs - C * turned, 0)))
    bound = _bound(trace, C, height + surplus, rate, weight)
    total, descent = float(np.sum(D**2) + np.sum(rest**2)), float(np.sum(earned))
    factor = max(np.max(ledger.inverse_rate[-1]), np.divide(1, weight) if weight else 0)
    return Certificate(
        label="valid",
        reasons=(),
        steps=len(rest),
        total=Claim(total, float(bound.total)),
        descent=Claim(descent, float(bound.descent)),
        norm2=Claim(rate * ledger.inverse_rate[-1], np.asarray(bound.norm2)),
        curvature=C,
        surplus=surplus,
        realised=_curvature(costs, turned, 0.0),
        slack=float((factor * descent - total) / total) if total else 0.0,
    )


def _steps(trace: Trace, ledger: Ledger, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each step, the sum of theta^2, and what it earns."""
    D = trace.spherical_gradient
    angle = np.arctan2(D, ledger.inverse_rate[:-1])
    return np.sum(angle**2, axis=1), np.sum(angle * D, axis=1) + weight * trace.rest_gradient**2


def _rounding(loss: np.ndarray, earned: np.ndarray) -> np.ndarray:
    """Of what each step costs: loss after it, less the loss before, plus what it earned."""
    return 8 * np.finfo(float).eps * (np.abs(loss[1:]) + np.abs(loss[:-1]) + earned)


def _curvature(costs: np.ndarray, turned: np.ndarray, allowed: float) -> float:
    """The least C >= 0 at which the sum of (cost - C theta^2)^+ is no more than allowed.

    Of the steps that turn anything; a sum of positive parts is the largest of all partial sums, and
    that is one over the dearest steps.
    """
    turns = turned > np.finfo(float).tiny ** 0.5
    costs, turned = costs[turns], turned[turns]
    dearest = np.argsort(-costs / turned)
    needed = (np.cumsum(costs[dearest]) - allowed) / np.cumsum(turned[dearest])
    return float(np.max(needed, initial=0))


def _bound(trace: Trace, C: float, height: float, rate: float, weight: float) -> gd.Bound:
    """The GD bound for a loss with constants that make C the cost of turning any block.

    In the rest the squared gradient is 1 / weight times its share of the descent.
    """
    B = np.max(trace.spherical_gradient, axis=0)
    if not np.isfinite(C + height):
        return gd.Bound(*(jnp.full(B.shape, jnp.nan),) * 2, *(jnp.array(jnp.nan),) * 3)
    constants = Constants(
        tangent=jnp.asarray(2 * C * np.eye(len(B))),
        ambient=jnp.full((len(B),) * 2, jnp.inf),
        gradient=jnp.asarray(B),
        mixed=jnp.zeros(len(B)),
        rest=jnp.zeros(()),
        lowest=jnp.zeros(()),
    )
    found = gd.geodesic(constants, loss=height, norm2=jnp.asarray(trace.norm2[0]), rate=rate)
    if not weight:
        return found
    share = jnp.maximum(jnp.max(found.inverse_rate), np.divide(1, weight))
    return found._replace(total=share * found.descent)


def _table(found: Certificate) -> Iterator[str]:
    yield f"{found.label} ({found.steps} steps)"
    yield from (f"  {reason}" for reason in found.reasons)
    rows = {"sum of squared gradients": found.total, "descent": found.descent}
    blocks = zip(*map(np.atleast_1d, found.norm2), strict=True)
    rows |= {f"norm2 at the end, block {i}": Claim(*sides) for i, sides in enumerate(blocks)}
    known = {name: claim for name, claim in rows.items() if np.isfinite(claim.measured)}
    if known:
        yield f"  {'':<30} {'measured':>10} {'certified':>10}"
    for name, (measured, certified) in known.items():
        yield f"  {name:<30} {measured:>10.4g} {certified:>10.4g}"
    if np.isfinite(found.curvature):
        yield (
            f"  turning by angles costs at most {found.curvature:.4g} angle^2 in a step, and "
            f"{found.surplus:.2g} besides in all"
        )
