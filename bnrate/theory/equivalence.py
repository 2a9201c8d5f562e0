"""Settings of one rule into those of another that trains the same functions.

On scale-invariant weights, weight decay only changes the effective rate.  So it can be traded for
a rate that grows (Li & Arora, "An exponential learning rate schedule for deep learning", 2020):

    >>> exponential = exponential_rate(0.02, decay=0.1, momentum=0.9)
    >>> round(float(exponential.alpha), 5), round(float(exponential(10)), 5)
    (0.97352, 0.03514)

and then `optax.sgd(exponential, momentum=0.9)`, with a corrected first buffer, walks through the
same functions as SGD with decay 0.1.  `advance` does the same for rates that vary, and without
ever overflowing; `rotation` trades decay for an angle per step.

`gap` trains both sides of such a claim and measures how far apart they come.  Parameters that are
not scale-invariant are outside of all this: they keep their rate and decay (`optax.partition`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from bnrate import groups as gr
from bnrate.ranges import in_range

_POSITIVE, _DECAY, _MOMENTUM = "(0, inf)", "[0, inf)", "[0, 1)"

# ---- weight decay and rates that grow


class ExponentialRate(NamedTuple):
    """A rate that grows by `alpha ** -2` per step; called with a step, it is an optax schedule.

    Attributes:
      initial: of step 0.
      log_alpha: alpha is the factor by which the decayed weights fall behind, per step.
      momentum: unchanged by the exchange.
      buffer: to the momentum buffer at the start, add this times the weights.
    """

    initial: Float[Array, "..."]
    log_alpha: Float[Array, "..."]
    momentum: Float[Array, "..."]
    buffer: Float[Array, "..."]

    @property
    def alpha(self) -> Float[Array, "..."]:
        """After t steps the weights are `alpha ** -t` times those with decay."""
        return jnp.exp(self.log_alpha)

    def __call__(self, step: ArrayLike) -> Float[Array, "..."]:
        """The rate of a step; it overflows in the end, which `advance` does not."""
        steps = jnp.asarray(step).astype(self.log_alpha.dtype)
        return self.initial * jnp.exp(-2 * steps * self.log_alpha)


class WeightDecay(NamedTuple):
    """Constant rate, decay and momentum.

    Attributes:
      rate: eta.
      decay: lambda, of `v = momentum v + grad + lambda w; w = w - eta v`.
      momentum: mu.
      buffer: to the momentum buffer at the start, add this times the weights.
    """

    rate: Float[Array, "..."]
    decay: Float[Array, "..."]
    momentum: Float[Array, "..."]
    buffer: Float[Array, "..."]


def exponential_rate(
    rate: ArrayLike, decay: ArrayLike, momentum: ArrayLike = 0.0
) -> ExponentialRate:
    """The exponential rate that does, without decay, what a constant rate with decay does.

    Exact (Li & Arora 2020, in the convention of optax and PyTorch): with the larger root alpha of
    a^2 - (1 + mu - eta lambda) a + mu = 0, the rate of step t is eta alpha^(-2t-1), and the buffer
    v starts at v - (1 - alpha) / (eta alpha) w.

    Args:
      rate: eta > 0.
      decay: lambda, added to the gradient before the momentum.
      momentum: mu; the buffer is `v = mu v + grad + lambda w`, not dampened.

    Raises:
      ValueError: rate * decay is above (1 - sqrt(mu))^2, where alpha is not real, or is 1 and
        more.  Inside a compiled program the result is NaN.
    """
    rate, decay = in_range("rate", rate, _POSITIVE), in_range("decay", decay, _DECAY)
    momentum = in_range("momentum", momentum, _MOMENTUM)
    product, root = rate * decay, jnp.sqrt(momentum)
    limit = (1 - root) ** 2
    _check_product(product, limit)
    # 1 - alpha, without the cancellation that loses all digits of a small decay in float32.
    spread = jnp.sqrt((limit - product) * ((1 + root) ** 2 - product))
    fall = 2 * product / (1 - momentum + product + spread)
    fall = jnp.where((product < 1) & (product <= limit), fall, jnp.nan)
    return ExponentialRate(
        rate / (1 - fall), jnp.log1p(-fall), momentum, -fall / (rate * (1 - fall))
    )


def weight_decay(initial: ArrayLike, alpha: ArrayLike, momentum: ArrayLike = 0.0) -> WeightDecay:
    """The constant rate and decay that do what the rates `initial * alpha ** (-2 t)` do.

    The inverse of `exponential_rate`, and as exact.

    >>> decayed = weight_decay(initial=0.1, alpha=0.995)
    >>> round(float(decayed.rate), 5), round(float(decayed.decay), 5)
    (0.0995, 0.05025)

    Args:
      initial: the rate of step 0.
      alpha: the rate grows by alpha ** -2 per step.
      momentum: mu.

    Raises:
      ValueError: alpha is not in (0, 1], or is below the momentum: the decay would be negative.
    """
    initial = in_range("initial rate", initial, _POSITIVE)
    alpha = in_range("alpha", alpha, "(0, 1]")
    momentum = in_range("momentum", momentum, _MOMENTUM)
    rate = initial * alpha
    decay = (1 - alpha) * (1 - momentum / alpha) / rate
    in_range("the decay", decay, _DECAY, "alpha must be at least the momentum")
    return WeightDecay(rate, decay, momentum, (1 - alpha) / (rate * alpha))


class Balance(NamedTuple):
    """What the exchange of decay for rates has to remember from step to step.

    Attributes:
      buffer: the buffer without decay is that with decay plus `buffer` times the weights, but for
        the scale.
      scale: the weights with decay are `scale` times those without; between 1/2 and 1.
    """

    buffer: Float[Array, "..."]
    scale: Float[Array, "..."]


class Step(NamedTuple):
    """One step without decay: `u = momentum u + grad; w = w - rate u`, then rescaled.

    Attributes:
      rate: of the step.
      factor: afterwards, multiply w by it and divide u by it; 1 but for rare steps, and always a
        power of 2, so that nothing is rounded.
    """

    rate: Float[Array, "..."]
    factor: Float[Array, "..."]


def balanced(buffer: ArrayLike = 0.0) -> Balance:
    """Before the first step, both sides having the same weights.

    With 0 both start from the same momentum buffer as well.  `ExponentialRate.buffer` gives rates
    that are exponential from the first step, and asks for a corrected buffer instead.
    """
    buffer = jnp.asarray(buffer)
    return Balance(buffer, jnp.ones_like(buffer))


def advance(
    balance: Balance, rate: ArrayLike, decay: ArrayLike, momentum: ArrayLike = 0.0
) -> tuple[Balance, Step]:
    """What a step with decay is without: exact for rates and decays that vary, with momentum too.

    Let s be `balance.buffer` and u = v + s w.  A step with decay, v' = mu v + grad + lambda w and
    w' = w - eta v', is w' = a w - eta U and u' = U / a, where U = mu u + grad, d = mu s - lambda,
    a = 1 + eta d and s' = d / a.  In the weights w / (a_0 a_1 ...), whose gradients are longer as
    much as these weights are, the factors a disappear.  Weights and rates stay as small as those
    with decay, since powers of 2 are taken out as they come up.

    >>> balance, step = advance(balanced(), 0.5, decay=1.0)
    >>> float(step.rate), float(step.factor)   # half of the weights would have decayed
    (1.0, 0.5)

    Args:
      balance: of the step before, or `balanced()`.
      rate: eta of this step; it may be 0.
      decay: lambda of this step.
      momentum: mu, always the same.

    Returns:
      The next balance, and the step.  Both are NaN where there is no such step, from a <= 0 on:
      for a momentum of 0 where rate * decay >= 1.
    """
    rate, decay, momentum = jnp.asarray(rate), jnp.asarray(decay), jnp.asarray(momentum)
    change = momentum * balance.buffer - decay
    fall = rate * change
    fall = jnp.where(fall > -1, fall, jnp.nan)
    scale = balance.scale + balance.scale * fall  # not times (1 + fall), which rounds the decay
    step_rate = rate / (balance.scale * scale)
    mantissa, exponent = jnp.frexp(scale)
    factor = jnp.ldexp(jnp.ones_like(scale), jnp.where(mantissa == 0.5, exponent - 1, exponent))
    return Balance(change / (1 + fall), scale / factor), Step(step_rate, factor)


def undecayed(rates: ArrayLike, decays: ArrayLike, momentum: ArrayLike = 0.0) -> Step:
    """All steps of a run without decay, for rates and decays that vary.

    Start with the same weights and the same buffer.  See `advance`, which this repeats.

    Args:
      rates: eta of each step, shape (steps,).
      decays: lambda, one for all steps or shape (steps,).
      momentum: mu.

    Raises:
      ValueError: a rate or decay is negative, or no such run exists from some step on.
    """
    rates, decays = in_range("rates", rates, _DECAY), in_range("decays", decays, _DECAY)
    if rates.ndim != 1 or decays.shape not in ((), rates.shape):
        raise ValueError(
            f"rates must have shape (steps,), and decays that or (); got {rates.shape} and "
            f"{decays.shape}"
        )
    momentum = in_range("momentum", momentum, _MOMENTUM).astype(rates.dtype)
    decays = jnp.broadcast_to(decays, rates.shape).astype(rates.dtype)
    _, steps = jax.lax.scan(
        lambda balance, now: advance(balance, *now, momentum),
        balanced(jnp.zeros((), rates.dtype)),
        (rates, decays),
    )
    if not isinstance(steps.rate, Tracer) and np.isnan(steps.rate).any():
        t = int(np.argmax(np.isnan(steps.rate)))
        raise ValueError(
            f"step {t}, of rate * decay = {float(rates[t] * decays[t]):g}, cannot be done without "
            "decay; the product must be below 1 and, with a momentum, should be at most "
            "(1 - sqrt(momentum))^2, and the rate rise slowly: lower the rates or decays"
        )
    return steps


def without_rescaling(steps: Step) -> Float[Array, " steps"]:
    """The rates of the same run if nothing is ever rescaled: eta_t / (P_t P_{t+1}).

    P_t is the factor by which the decayed weights have fallen behind.  These rates overflow when
    the weights are 1e-19 (float32) of what they would be.
    """
    taken = jnp.cumprod(steps.factor)
    before = jnp.concatenate([jnp.ones(1, taken.dtype), taken[:-1]])
    return steps.rate / before**2


# ---- weight decay and the effective rate


def effective_rate(rate: ArrayLike, decay: ArrayLike, norm2: ArrayLike) -> Float[Array, "..."]:
    """The effective rate of one step of SGD with decay: eta / ((1 - eta lambda) G), exact.

    On the sphere the step is v - (effective rate) D, put back to length 1: the step that SGD
    without decay takes with this rate at norm 1, and `arctan(effective rate * |D|)` is its angle.

    Args:
      rate: eta.
      decay: lambda.
      norm2: G = |w|^2 before the step.

    Raises:
      ValueError: rate * decay is 1 or more.
    """
    rate, decay = in_range("rate", rate, _POSITIVE), in_range("decay", decay, _DECAY)
    product = in_range("rate * decay", rate * decay, "[0, 1)")
    return rate / ((1 - product) * in_range("norm2", norm2, _POSITIVE))


def rate_of(effective: ArrayLike, decay: ArrayLike, norm2: ArrayLike) -> Float[Array, "..."]:
    """The rate with which SGD with decay steps at this effective rate; undoes `effective_rate`."""
    effective = in_range("effective rate", effective, _POSITIVE)
    decay = in_range("decay", decay, _DECAY)
    rate = effective * in_range("norm2", norm2, _POSITIVE)
    return rate / (1 + rate * decay)


def wngrad_initial(rate: ArrayLike, norm2: ArrayLike) -> Float[Array, "..."]:
    """The accumulator with which WNGrad starts, to train a unit as SGD with this rate does.

    Exact: b_t = G_t / eta, the inverse of the effective rate, obeys b' = b + |D|^2 / b, which is
    WNGrad's accumulator (Wu, Ward & Bottou 2018).  The step v - D / b, put back to length 1, must
    use the b from before its own gradient, where implementations of WNGrad add that one first.

    Args:
      rate: eta > 0, without decay or momentum.
      norm2: G = |w|^2 at the start.
    """
    return in_range("norm2", norm2, _POSITIVE) / in_range("rate", rate, _POSITIVE)


def rate_of_wngrad(initial: ArrayLike, norm2: ArrayLike) -> Float[Array, "..."]:
    """The rate with which SGD trains a unit as this WNGrad does; undoes `wngrad_initial`."""
    initial = in_range("initial accumulator", initial, _POSITIVE)
    return in_range("norm2", norm2, _POSITIVE) / initial


# ---- measured


class Task(NamedTuple):
    """Something to train.

    Attributes:
      loss: (parameters, step) -> scalar, pure; the step (int32) may choose the batch.
      params: at the start.
      groups: the parameters that the loss does not change with when scaled.
    """

    loss: Callable[[PyTree, Int[Array, ""]], Float[Array, ""]]
    params: PyTree
    groups: gr.Groups


class Gap(NamedTuple):
    """The largest differences along two trajectories; NaN if one diverges.

    Attributes:
      loss: of the losses, relative to the largest loss of either.
      units: the norm of the difference of unit vectors, over all units.
      rest: the norm of the difference of all other parameters, relative to their norm.
    """

    loss: Float[Array, ""]
    units: Float[Array, ""]
    rest: Float[Array, ""]


def gap(
    rule_a: optax.GradientTransformation,
    rule_b: optax.GradientTransformation,
    task: Task,
    steps: int,
    *,
    state_a: optax.OptState | None = None,
    state_b: optax.OptState | None = None,
) -> Gap:
    """Train with two rules side by side and measure how far apart the functions come.

    Rules that are the same in real arithmetic differ by rounding, which training can amplify:
    choose as many steps as tell one from the other.

    >>> from bnrate.groups import Group, Groups, Member
    >>> def loss(params, step):  # a Rayleigh quotient
    ...     w = params["w"]
    ...     return jnp.sum(jnp.array([0., 1., 3.]) * w**2) / jnp.sum(w**2)
    >>> task = Task(loss, {"w": jnp.ones(3)}, Groups([Group([Member("w")])]))
    >>> decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.2))
    >>> float(gap(decayed, optax.sgd(exponential_rate(0.2, 0.1)), task, 50).units) < 1e-5
    True
    >>> float(gap(decayed, optax.sgd(0.2), task, 50).units) > 1e-3
    True

    Args:
      rule_a: one rule; both start from the same parameters.
      rule_b: the other.
      task: what they train.
      steps: how many.
      state_a: of the first rule at the start; by default what its `init` says.
      state_b: of the second.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    a = task.params, rule_a.init(task.params) if state_a is None else state_a
    b = task.params, rule_b.init(task.params) if state_b is None else state_b

    def step(both: tuple[Any, Any], t: Array) -> tuple[tuple[Any, Any], Any]:
        loss_a, a = _trained(rule_a, task, both[0], t)
        loss_b, b = _trained(rule_b, task, both[1], t)
        return (a, b), (loss_a, loss_b, *_apart(task.groups, a[0], b[0]))

    @jax.jit
    def run(both: tuple[Any, Any]) -> Gap:
        _, (losses_a, losses_b, units, rest) = jax.lax.scan(step, both, jnp.arange(steps))
        largest = jnp.max(jnp.maximum(jnp.abs(losses_a), jnp.abs(losses_b)))
        loss = _ratio(jnp.max(jnp.abs(losses_a - losses_b)), largest)
        return Gap(loss, jnp.max(units), jnp.max(rest))

    return run((a, b))


def _trained(
    rule: optax.GradientTransformation, task: Task, one: tuple[PyTree, Any], t: Array
) -> tuple[Array, tuple[PyTree, Any]]:
    """The loss before a step, and parameters and state after it."""
    params, state = one
    loss, grads = jax.value_and_grad(task.loss)(params, t)
    updates, state = optax.with_extra_args_support(rule).update(
        grads, state, params, value=loss, value_fn=lambda params: task.loss(params, t)
    )
    return loss, (optax.apply_updates(params, updates), state)


def _apart(groups: gr.Groups, a: PyTree, b: PyTree) -> tuple[Array, Array]:
    """How far apart the unit vectors are, and the rest."""
    vectors = [gr.unit_vectors(groups, tree) for tree in (a, b)]
    units = jnp.sqrt(gr.norm2(groups, optax.tree.sub(*vectors)))
    rest_a, rest_b = gr.rest(groups, a), gr.rest(groups, b)
    rest = _ratio(optax.tree.norm(optax.tree.sub(rest_a, rest_b)), optax.tree.norm(rest_a))
    return jnp.max(units, initial=0), jnp.asarray(rest)


def _ratio(part: ArrayLike, whole: ArrayLike) -> Array:
    """Part of a whole; nothing is no part of nothing."""
    part, whole = jnp.asarray(part), jnp.asarray(whole)
    return jnp.where(part == 0, 0, part / whole)


def _check_product(product: Array, limit: Array) -> None:
    if isinstance(product, Tracer) or isinstance(limit, Tracer):
        return
    products, limits = np.broadcast_arrays(product, limit)
    wrong = (products > limits) | (products >= 1)
    if wrong.any():
        raise ValueError(
            f"rate * decay is {products[wrong].flat[0]:g}, and must be below 1 and at most "
            f"(1 - sqrt(momentum))^2 = {limits[wrong].flat[0]:g}: beyond, no rates without decay "
            "do the same; lower the rate, the decay or the momentum"
        )
