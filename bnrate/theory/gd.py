"""Gradient descent with any rate: what bounds its gradients, whatever the rate of the blocks.

With b = G / rate, the inverse effective rate of a block, a step adds n / b to b, where n is the
squared gradient on the sphere.  The path between two iterates is joined by arcs of great circles,
along which the loss falls by what the angles theta earn less C theta^2.  All of the theta^2 of a
run sum up to no more than log(b_T / b_0), all that it earns to no less than b_T - b_0 - E, so that
b cannot grow for ever, and neither can the sum of the squared gradients:

    >>> from bnrate.theory.constants import Constants
    >>> one, zero = jnp.ones(1), jnp.zeros(())   # a Rayleigh quotient of eigenvalues from 0 to 1
    >>> constants = Constants(2 * one[None], 2 * one[None], one, 0 * one, zero, lowest=zero)
    >>> for rate in (0.1, 1.0, 1000.0):
    ...     found = bound(constants, loss=0.5, norm2=one, rate=rate)
    ...     print(f"{found.total:.4g}, and after 1e5 steps {least(found, 100_000):.2g}")
    5.722, and after 1e5 steps 5.7e-05
    4.195, and after 1e5 steps 4.2e-05
    1.454e+04, and after 1e5 steps 0.15

The rates are those of Arora, Li & Lyu, "Theoretical analysis of auto rate-tuning by batch
normalization" (ICLR 2019); constants and proof are our own, and are written out in `docs/gd.md`.

What is assumed of the loss, here called A1 to A4:

- A1: each block may be scaled by a number of its own, and the loss is twice continuously
  differentiable along the curves that join successive iterates; a ReLU is not.
- A2: `Constants` hold on these curves.
- A3: the blocks take plain steps with one fixed rate > 0, the rest with one below 2 / `rest`;
  no momentum, no decay, and the gradient is that of one loss, not of batches.
- A4: the loss does not fall below `lowest` on these curves.

Units and whole groups are both blocks in this sense, with their own constants each.

All is rounded up, by a few units in the last place and one for each block, so that what holds of
numbers holds of floats too, also where next to nothing is left to descend.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bnrate.ranges import in_range
from bnrate.theory.constants import Constants
from bnrate.theory.filling import largest, root, rounded_up

_POSITIVE, _KNOWN_OR_INFINITE = "(0, inf)", "[0, inf]"


class Bound(NamedTuple):
    """What holds after any number of steps.

    Attributes:
      inverse_rate: [i] b = norm2 / rate is never above.
      norm2: [i] G is never above.
      descent: the sum over all steps of angle times gradient, in all blocks, and of
        safety * rate_rest / 2 times the squared gradient in the rest, is never above.
      total: the sum over all steps of the squared gradient, on all spheres and in the rest.
      trivial: no single squared gradient is above: the sum of B^2; infinite with a rest.
    """

    inverse_rate: Float[Array, " blocks"]
    norm2: Float[Array, " blocks"]
    descent: Float[Array, ""]
    total: Float[Array, ""]
    trivial: Float[Array, ""]

    @property
    def vacuous_until(self) -> Float[Array, "..."]:
        """For fewer steps, `total` says less about the least gradient than `trivial` does."""
        plain = (self.total > 0) & (self.total < jnp.inf)
        return jnp.where(plain, self.total / self.trivial, self.total)


class Restart(NamedTuple):
    """The best bound that starts at an iterate of a run, with what was measured before.

    Attributes:
      total: the sum over all steps of the squared gradient is never above.
      step: where the bound starts.
    """

    total: Float[Array, ""]
    step: Int[Array, ""]


def safety(constants: Constants, rate_rest: ArrayLike | None = None) -> Float[Array, ""]:
    """What the rate of the rest leaves of its descent: c = 1 - rate_rest * rest / 2, rounded down.

    Args:
      constants: of the loss.
      rate_rest: eta_g; None if there is no rest, and c is 1.

    Raises:
      ValueError: the rate is not positive, or so large that c is not: no bound is known.  Without
        a rate: the constants know a rest.
    """
    if rate_rest is None:
        advice = "these constants are of a loss with a rest: give rate_rest"
        return 1 - in_range("constants.rest", constants.rest, "[0, 0]", advice)
    product = in_range("rate_rest", rate_rest, _POSITIVE) * constants.rest
    product = product * (1 + jnp.finfo(product.dtype).eps)
    advice = "take a rate_rest below 2 / constants.rest"
    return 1 - in_range("rate_rest * constants.rest", product, "[0, 2)", advice) / 2


def cost(constants: Constants, rate_rest: ArrayLike | None = None) -> Float[Array, " blocks"]:
    """What turning costs: C, where turning the blocks by theta costs at most sum C theta^2.

    C_i = sum_j tangent_ij / 2 + mixed_i sum_k mixed_k rate_rest / (2 c), c being the safety: the
    second derivative along the joining curve, in which what is mixed is shared out between the
    angles and the descent in the rest.

    Raises:
      ValueError: see `safety`.
    """
    c, turning = safety(constants, rate_rest), jnp.sum(constants.tangent, axis=1) / 2
    if rate_rest is None:
        mixed = in_range("constants.mixed", constants.mixed, "[0, 0]", "give rate_rest")
        return turning + mixed + (1 - c)  # plus 0; NaN in a program that lacks the rate
    mixed = constants.mixed * jnp.sum(constants.mixed)
    mixed = jnp.where(constants.mixed == 0, 0, mixed)  # also where another block's is infinite
    return turning + mixed * jnp.asarray(rate_rest) / (2 * c)


def excess(gradient: ArrayLike, inverse_rate: ArrayLike) -> Float[Array, "..."]:
    """By how much b can grow beyond what the descent pays for: E = psi(x) B^2 / b, x = (B / b)^2.

    psi(x) = (1 + x) / (3 + x).  Steps of large angle lengthen a block by |D| tan(theta), and earn
    |D| theta only; as they also lengthen it, few of them fit in a run.

    Args:
      gradient: B, which bounds |D|.
      inverse_rate: b at the start.

    Raises:
      ValueError: the gradient is negative, or b is not positive.
    """
    B = in_range("gradient", gradient, _KNOWN_OR_INFINITE)
    ratio = B / in_range("inverse rate", inverse_rate, _POSITIVE)
    return (1 - 2 / (3 + ratio**2)) * ratio * B


def height(loss: ArrayLike, lowest: ArrayLike) -> Float[Array, "..."]:
    """How far each loss lies above the lowest value, which it may miss by rounding alone.

    Args:
      loss: of any shape.
      lowest: no loss lies below.

    Raises:
      ValueError: a loss lies below by more than a few units in the last place, or is NaN; `lowest`
        is infinite and not -inf.
    """
    loss, lowest = jnp.asarray(loss), jnp.asarray(lowest)
    above = loss - lowest
    rounding = 8 * jnp.finfo(above.dtype).eps * (jnp.abs(loss) + jnp.abs(lowest))
    above = jnp.where(jnp.isfinite(above) & (above >= -rounding), jnp.maximum(above, 0), above)
    return in_range("loss - constants.lowest", above, "[0, inf]", "these constants are not its")


def solve_z(s: ArrayLike) -> Float[Array, "..."]:
    """The larger root z of z - log z = s, which is -W(-exp(-s)) on the lower branch of Lambert's W.

    Newton's method from 1 + (s - 1) + sqrt(2 (s - 1)), which lies above.  The derivative in s
    is infinite at 1.

    >>> round(float(solve_z(3.0)), 4)
    4.5052

    Args:
      s: at least 1.

    Raises:
      ValueError: s lies below 1, where there is no root.
    """
    return 1 + root(in_range("s", s, "[1, inf)") - 1)


def geodesic(
    constants: Constants,
    *,
    loss: ArrayLike,
    norm2: ArrayLike,
    rate: ArrayLike,
    rate_rest: ArrayLike | None = None,
) -> Bound:
    """The GD bound along arcs of great circles: of order log(rate) above the least for large rates.

    Under A1 to A4, and with A = loss - lowest + sum E, a run that starts at b_0 obeys at every step
    sum_i (b_i - b_0i - C_i log(b_i / b_0i)) <= A, which bounds each b, and sum C log(b / b_0).

    Args:
      constants: of the loss; where one is infinite, so is the bound.
      loss: at the start.
      norm2: G of each block at the start, shape (blocks,).
      rate: eta of the blocks.
      rate_rest: eta of the rest; None if there is no rest.

    Raises:
      ValueError: a rate or norm2 is not positive and finite; the loss is below `lowest`; a constant
        is negative; `rate_rest` is 2 / rest or more, or missing; norm2 is not one per block.
        Inside a compiled program the bound is NaN.
    """
    start = _start(constants, loss, norm2, rate, rate_rest)
    return _bound(start, _by_arcs(start))


def straight(
    constants: Constants,
    *,
    loss: ArrayLike,
    norm2: ArrayLike,
    rate: ArrayLike,
    rate_rest: ArrayLike | None = None,
) -> Bound:
    """The GD bound along straight segments: a little better for small rates, hopeless for large.

    Under A1 to A4, where the constants hold on the segments between iterates, moved to unit norm,
    and with `ambient` in place of `tangent`.  Arguments and errors as in `geodesic`.
    """
    start = _start(constants, loss, norm2, rate, rate_rest)
    return _bound(start, _by_segments(start))


def bound(
    constants: Constants,
    *,
    loss: ArrayLike,
    norm2: ArrayLike,
    rate: ArrayLike,
    rate_rest: ArrayLike | None = None,
) -> Bound:
    """The best of what `geodesic` and `straight` know together.

    Under the assumptions of both, as of constants that hold everywhere.  Where `ambient` is
    infinite it is `geodesic`.  Arguments and errors as there.
    """
    start = _start(constants, loss, norm2, rate, rate_rest)
    return _bound(start, jax.tree.map(jnp.minimum, _by_arcs(start), _by_segments(start)))


def least(found: Bound, steps: ArrayLike) -> Float[Array, "..."]:
    """A bound of the least squared gradient among the first `steps`.

    It falls as 1 / steps, so the gradient as 1 / sqrt(steps).

    Raises:
      ValueError: there are no steps.
    """
    steps = in_range("steps", steps, "[1, inf)").astype(found.total.dtype)
    return jnp.minimum(found.total / steps, found.trivial)


def restart(
    constants: Constants,
    *,
    loss: ArrayLike,
    norm2: ArrayLike,
    squared_gradient: ArrayLike,
    rate: ArrayLike,
    rate_rest: ArrayLike | None = None,
) -> Restart:
    """The best bound that a run itself allows: of all that start at one of its iterates.

    What came before is measured, what comes after is bounded; all steps are covered, also those
    that were not taken.  As rigorous as `bound`, but known only after the run.

    Args:
      constants: of the loss.
      loss: before each step, and after the last, shape (steps + 1,).
      norm2: likewise, of each block, shape (steps + 1, blocks).
      squared_gradient: of each step, on all spheres and in the rest, shape (steps,).
      rate: eta of the blocks.
      rate_rest: eta of the rest; None if there is no rest.

    Raises:
      ValueError: as `geodesic`; the shapes do not fit.
    """
    squares = in_range("squared gradient", squared_gradient, "[0, inf)")
    records, shapes = squares.size + 1, (jnp.shape(loss), jnp.shape(norm2)[:-1])
    if shapes != ((records,),) * 2:
        raise ValueError(
            f"loss and norm2 must have {records} records for {records - 1} squared gradients, got "
            f"shapes {jnp.shape(loss)} and {jnp.shape(norm2)}; give those after the last step too"
        )
    start = _start(constants, loss, norm2, rate, rate_rest)

    def total(height: Array, inverse_rate: Array) -> Array:
        at = start._replace(height=height, inverse_rate=inverse_rate)
        return _bound(at, jax.tree.map(jnp.minimum, _by_arcs(at), _by_segments(at))).total

    measured = jnp.cumulative_sum(squares, include_initial=True)
    totals = measured + jax.vmap(total)(start.height, start.inverse_rate)
    return Restart(jnp.min(totals), jnp.argmin(totals))


class _Start(NamedTuple):
    """Where a run starts, all in range: height = loss - lowest, inverse_rate = b."""

    constants: Constants
    height: Array
    inverse_rate: Array
    rate: Array
    rate_rest: ArrayLike | None


class _Limits(NamedTuple):
    """Of b - b_0 in each block, and of the descent."""

    growth: Array
    descent: Array


def _start(
    constants: Constants,
    loss: ArrayLike,
    norm2: ArrayLike,
    rate: ArrayLike,
    rate_rest: ArrayLike | None,
) -> _Start:
    """Check the arguments; loss and norm2 may have an axis of records in front."""
    blocks = constants.gradient.shape
    if jnp.shape(norm2)[-1:] != blocks:
        raise ValueError(
            f"norm2 must have one entry per block, {blocks[0]} by the constants, got shape "
            f"{jnp.shape(norm2)}"
        )
    checked = {
        name: in_range(f"constants.{name}", getattr(constants, name), _KNOWN_OR_INFINITE)
        for name in ("tangent", "ambient", "gradient", "mixed", "rest")
    }
    rate, norm2 = in_range("rate", rate, _POSITIVE), in_range("norm2", norm2, _POSITIVE)
    above = height(loss, constants.lowest)
    inverse_rate = in_range("norm2 / rate", norm2 / rate, _POSITIVE)
    return _Start(constants._replace(**checked), above, inverse_rate, rate, rate_rest)


def _by_arcs(start: _Start) -> _Limits:
    C, b = cost(start.constants, start.rate_rest), start.inverse_rate
    excesses = jnp.sum(excess(start.constants.gradient, b))
    growth, turning = largest(start.height + excesses, C, b)
    return _Limits(growth, start.height + turning)


def _by_segments(start: _Start) -> _Limits:
    """Segments cost C tan(theta)^2; their sum exceeds log(b_T / b_0) by at most X."""
    constants, b = start.constants, start.inverse_rate
    C = cost(constants._replace(tangent=constants.ambient), start.rate_rest)
    x = (constants.gradient / b) ** 2
    X = x * (1 - 1 / (2 + x)) ** 2
    paid = jnp.where(jnp.isinf(C), C + X, C * X)  # without 0 * inf
    budget = start.height + jnp.sum(jnp.where((C == 0) & jnp.isinf(X), 0, paid))
    growth, turning = largest(budget, C, b)
    return _Limits(growth, budget + turning)


def _bound(start: _Start, limits: _Limits) -> Bound:
    """From limits to squared gradients: n <= (2 b + b+) / 3 theta |D|, and n <= (b+^2 - b^2) / 2.

    In the rest the squared gradient is 2 / (c rate_rest) times its share of the descent.
    """
    up, gradient = partial(rounded_up, blocks=limits.growth.size), start.constants.gradient
    growth, descent = up(limits.growth), up(limits.descent)
    inverse_rate = up(start.inverse_rate + growth)
    longest = jnp.max(inverse_rate)
    if start.rate_rest is None:
        by_growth = jnp.sum(growth * (start.inverse_rate + growth / 2))
        total, trivial = jnp.minimum(longest * descent, by_growth), up(jnp.sum(gradient**2))
    else:
        share = 2 / (safety(start.constants, start.rate_rest) * start.rate_rest)
        total, trivial = jnp.maximum(longest, share) * descent, jnp.full_like(descent, jnp.inf)
    return Bound(inverse_rate, up(inverse_rate * start.rate), descent, up(total), trivial)
