"""SGD with any fixed rate on spheres: what bounds its gradients, and how its norms grow.

The step eta_t / G_t on the sphere is fixed by past gradients, so the mean of what a step gains is
exactly (eta_t / G_t) |grad L|^2, as for a rate set beforehand.  What it costs is the square of an
angle, and the squares of all angles sum up to the logarithm of the growth of the norm at most.  And
norms grow slowly, whatever the gradients: below an `envelope` that behaves as t^(1/2 - alpha) for
rates eta_t = eta (t + 1)^-alpha.

    >>> from bnrate.theory.constants import rayleigh
    >>> quotient = rayleigh(jnp.array([0.0, 1.0]))
    >>> noise = Noise(gradient=jnp.ones(1), rest=jnp.zeros(()))
    >>> for rate in (0.1, 1.0, 10.0):
    ...     found = bound(quotient, noise, loss=0.5, norm2=jnp.ones(1), rate=rate, steps=100_000)
    ...     print(f"vacuous until {found.vacuous_until:.0f}, in the end {found.least[-1]:.4f}")
    vacuous until 7, in the end 0.0099
    vacuous until 4, in the end 0.0159
    vacuous until 70, in the end 0.0418

It bounds the least mean, over t, of the squared gradient (not the mean of the least, and not the
last), of the mean loss L = E F.  With batch normalisation that is the mean loss of a batch, not the
loss of all data normalised together.

Assumed throughout: every batch's loss F is scale-invariant in every block; given the past, its
gradient has mean grad L; and `Constants` and `Noise` hold on all that is visited, the joining
curves of `gd` included.  Own constants; the rates are those of Arora, Li & Lyu, "Theoretical
analysis of auto rate-tuning by batch normalization" (2019).  docs/sgd.md derives them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate.ranges import in_range
from bnrate.theory import gd
from bnrate.theory.constants import Constants, Noise


class Bound(NamedTuple):
    """A bound for each number of steps T = 1 ... steps.

    Attributes:
      descent: what T steps can gain and cost in all: R_T.
      weights: the sum of the weights omega_t, t < T.
      least: descent / weights, the bound.
      envelope: bounds G_t, t = 0 ... steps, as the function that made it says.
      vacuous_until: the first T from which the bound says more than that the blocks' gradients are
        at most `Constants.gradient`; infinite if that takes more steps.
    """

    descent: Float[Array, " steps"]
    weights: Float[Array, " steps"]
    least: Float[Array, " steps"]
    envelope: Float[Array, "records blocks"]
    vacuous_until: Float[Array, ""]


def bound(
    constants: Constants,
    noise: Noise,
    *,
    loss: ArrayLike,
    norm2: Float[Array, " blocks"],
    rate: ArrayLike,
    alpha: ArrayLike = 0.0,
    rate_rest: ArrayLike | None = None,
    steps: int,
) -> Bound:
    """Bounds min over t < T of E|grad L|^2 at unit norm, the rest's included.

    R_T / sum_t<T omega_t, with the weights of `weights` and
    R_T = gap + (1 - c/2) eta_g sigma^2 H_T + sum_i C_i log(U_T,i / G_0,i) + E_i, where
    E_i = psi eta B_i B'_i / G_0,i is paid for first steps that turn a block by large angles.  The
    mean of E|grad L|^2 with these weights obeys the same bound; so does an iterate drawn with them
    (Ghadimi & Lan 2013).  O(log T / sqrt T) for alpha < 1/2, with one more sqrt(log T) for 1/2.

    Args:
      constants: of the mean loss.
      noise: of the batches; its `gradient` bounds every single one.
      loss: the mean loss at the start.
      norm2: G_0.
      rate: eta; step t has rate eta (t + 1)^-alpha.
      alpha: from 0 to 1/2.
      rate_rest: eta_g, below 2 / constants.rest; step t has eta_g (t + 1)^-1/2.  None: no rest.
      steps: the largest T.

    Returns:
      The bound; its envelope holds for every G_t, surely.

    Raises:
      ValueError: a value is out of range; steps is below 1; there is a rest without a rate.
    """
    U = envelope(noise.gradient, norm2=norm2, rate=rate, alpha=alpha, steps=steps)
    R = _descent(constants, noise, loss, U, rate, rate_rest)
    if rate_rest is not None:
        c, sigma = gd.safety(constants, rate_rest), in_range("noise.rest", noise.rest, "[0, inf)")
        R = R + (1 - c / 2) * rate_rest * sigma**2 * jnp.cumsum(_falling(1, steps, U.dtype))
    omega = _weights(constants, U, rate, alpha, rate_rest)
    return _bound(constants, noise, R, omega, U)


def second_moment(
    constants: Constants,
    noise: Noise,
    moment: ArrayLike,
    *,
    loss: ArrayLike,
    norm2: Float[Array, " blocks"],
    rate: ArrayLike,
    alpha: ArrayLike = 0.0,
    steps: int,
) -> Bound:
    """Bounds min over t < T of (E|grad L|)^2 at unit norm, for one block without a rest.

    Smaller than `bound` where most gradients are far shorter than the longest; and it bounds the
    square of a mean, not the mean of a square.  E G_t is below both the envelope U_t and M_t, where
    M_t^2 = G_0^2 + 2 s^2 sum_u<t eta_u^2 + q (log(U_t / G_0) + q / G_0^2) and q = (eta B)^2; so the
    bound is (gap + C log(min(M, U)_T / G_0) + E) / sum_t<T eta_t / min(M, U)_t, by Cauchy-Schwarz
    on |grad L| = (|grad L| / sqrt(G)) sqrt(G).

    Args:
      constants: of the mean loss.
      noise: of the batches; its `gradient` bounds every single one.
      moment: s; s^2 bounds E|grad F|^2 given the past, at unit norm.
      loss: the mean loss at the start.
      norm2: G_0.
      rate: eta; step t has rate eta (t + 1)^-alpha.
      alpha: from 0 to 1/2.
      steps: the largest T.

    Returns:
      The bound; its envelope holds for every mean E G_t.

    Raises:
      ValueError: there are more blocks than one, or a rest; a value is out of range; steps is
        below 1.
    """
    if constants.gradient.shape != (1,):
        raise ValueError(
            f"second_moment is proved for one block, got {constants.gradient.shape[0]}; use bound"
        )
    s, B = in_range("moment", moment, "[0, inf)"), noise.gradient
    U = envelope(B, norm2=norm2, rate=rate, alpha=alpha, steps=steps)
    eta = _rates(rate, alpha, steps, U.dtype)[:, None]
    squares, q = jnp.cumsum(eta**2, axis=0), (rate * B[None]) ** 2
    G = U[:1]
    M2 = G**2 + 2 * s**2 * squares + q * (jnp.log(U[1:] / G) + q / G**2)
    M = jnp.concatenate([G, jnp.minimum(jnp.sqrt(M2), U[1:])])
    R = _descent(constants, noise, loss, M, rate, None)
    return _bound(constants, noise, R, _weights(constants, M, rate, alpha, None), M)


def weights(
    constants: Constants,
    noise: Noise,
    *,
    norm2: Float[Array, " blocks"],
    rate: ArrayLike,
    alpha: ArrayLike = 0.0,
    rate_rest: ArrayLike | None = None,
    steps: int,
) -> Float[Array, " steps"]:
    """The weights omega_t of the mean that `bound` is about, not normalised.

    The least of all effective rates eta_t / U_t,i, and of c eta_g (t + 1)^-1/2 / 2 if there is a
    rest.  Known before training.

    Args:
      constants: of the mean loss.
      noise: of the batches.
      norm2: G_0.
      rate: eta; step t has rate eta (t + 1)^-alpha.
      alpha: from 0 to 1/2.
      rate_rest: as in `bound`.
      steps: how many.

    Raises:
      ValueError: a value is out of range; steps is below 1; there is a rest without a rate.
    """
    U = envelope(noise.gradient, norm2=norm2, rate=rate, alpha=alpha, steps=steps)
    return _weights(constants, U, rate, alpha, rate_rest)


def envelope(
    gradient: Float[Array, " blocks"],
    *,
    norm2: Float[Array, "..."],
    rate: ArrayLike,
    alpha: ArrayLike = 0.0,
    steps: int,
) -> Float[Array, "records blocks"]:
    """No norm2 grows faster than this: U_0 = G_0, U_t+1 = U_t + (eta_t B)^2 / U_t.

    Attained where all gradients have the norm B.

    Args:
      gradient: B; no batch's spherical gradient is longer.
      norm2: G_0.
      rate: eta; step t has rate eta (t + 1)^-alpha.
      alpha: from 0 to 1/2.
      steps: how many.

    Returns:
      U_t for t = 0 ... steps: one entry more than steps.

    Raises:
      ValueError: a value is out of range; steps is below 1.
    """
    if norm2.shape != gradient.shape:
        raise ValueError(
            f"norm2 must have one entry per block, like the gradient's {gradient.shape}, got "
            f"shape {norm2.shape}"
        )
    B, G = in_range("gradient", gradient, "[0, inf)"), in_range("norm2", norm2, "(0, inf)")
    dtype = jnp.result_type(B, G, rate, alpha)

    def step(carry: tuple[Array, Array], eta: Array) -> tuple[tuple[Array, Array], Array]:
        grown, lost = carry
        added = (eta * B) ** 2 / (G + grown) + lost
        total = grown + added
        return (total, added - (total - grown)), total

    # What has been added is summed up apart: rounding would lose it in a large G_0.  So are the
    # digits that small steps lose in that sum (Kahan 1965), without which it would come to a halt.
    start = jnp.zeros(B.shape, dtype)
    _, grown = jax.lax.scan(step, (start, start), _rates(rate, alpha, steps, dtype))
    return G[None] + jnp.concatenate([start[None], grown])


def growth(
    rate: ArrayLike, moment: ArrayLike, alpha: ArrayLike, steps: int
) -> Float[Array, " records"]:
    """What G_t tends to under persistent noise: eta s sqrt(2 sum_u<t (u + 1)^-2 alpha).

    Asymptotic, no bound: the ratio goes to 1 if E|grad F|^2 at unit norm settles at s^2, from when
    this is large against G_0 and the first jump (eta |grad F|)^2 / G_0.  It grows as
    t^(1/2 - alpha), for alpha = 1/2 as sqrt(log t).

    Args:
      rate: eta; step t has rate eta (t + 1)^-alpha.
      moment: s, the root mean square of the batches' spherical gradients.
      alpha: from 0 to 1/2.
      steps: how many.

    Returns:
      For t = 0 ... steps: one entry more than steps, the first of them 0.

    Raises:
      ValueError: a value is out of range; steps is below 1.
    """
    s = in_range("moment", moment, "[0, inf)")
    eta = _rates(rate, alpha, steps, jnp.result_type(rate, s, alpha))
    return s * jnp.sqrt(2 * jnp.cumsum(jnp.concatenate([jnp.zeros(1, eta.dtype), eta**2])))


def _descent(
    constants: Constants,
    noise: Noise,
    loss: ArrayLike,
    G: Array,
    rate: ArrayLike,
    rate_rest: ArrayLike | None,
) -> Array:
    """The gap, sum_i C_i log(G_T / G_0), and sum_i psi(x) eta B B' / G_0, x = (eta B / G_0)^2."""
    gap = gd.height(loss, constants.lowest)
    mixed = in_range("constants.mixed", constants.mixed, "[0, inf]")
    cost = gd.cost(constants._replace(mixed=mixed), rate_rest)
    C = in_range("cost of turning", cost, "[0, inf]")
    angles = jnp.sum(C[None] * jnp.log(G[1:] / G[:1]), axis=1)
    tan = rate * noise.gradient / G[0]
    psi = 1 - 2 / (3 + tan**2)  # (1 + x) / (3 + x), without overflow
    return gap + angles + jnp.sum(psi * tan * _mean_gradient(constants, noise))


def _mean_gradient(constants: Constants, noise: Noise) -> Array:
    """B': the mean of gradients is no longer than the longest."""
    if constants.gradient.shape != noise.gradient.shape:
        raise ValueError(
            "constants and noise must be of the same blocks, got gradients of shapes "
            f"{constants.gradient.shape} and {noise.gradient.shape}"
        )
    return jnp.minimum(
        in_range("constants.gradient", constants.gradient, "[0, inf]"), noise.gradient
    )


def _weights(
    constants: Constants, G: Array, rate: ArrayLike, alpha: ArrayLike, rate_rest: ArrayLike | None
) -> Array:
    steps = len(G) - 1
    omega = _rates(rate, alpha, steps, G.dtype) / jnp.max(G[:-1], axis=1)
    c = gd.safety(constants, rate_rest)
    if rate_rest is None:
        return c * omega  # NaN in a program to which the rate is missing
    return jnp.minimum(omega, c * rate_rest / 2 * _falling(0.5, steps, G.dtype))


def _bound(constants: Constants, noise: Noise, R: Array, omega: Array, G: Array) -> Bound:
    total = jnp.cumsum(omega)
    least = R / total
    says = least < jnp.sum(_mean_gradient(constants, noise) ** 2)
    T = jnp.arange(1, len(least) + 1).astype(least.dtype)
    return Bound(R, total, least, G, vacuous_until=jnp.min(jnp.where(says, T, jnp.inf)))


def _rates(rate: ArrayLike, alpha: ArrayLike, steps: int, dtype: jnp.dtype) -> Array:
    eta, alpha = in_range("rate", rate, "(0, inf)"), in_range("alpha", alpha, "[0, 0.5]")
    return eta * _falling(alpha, steps, dtype)


def _falling(power: ArrayLike, steps: int, dtype: jnp.dtype) -> Array:
    """(t + 1)^-power for t = 0 ... steps - 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    power = jnp.asarray(power)
    return jnp.arange(1, steps + 1).astype(dtype) ** -power + 0 * power  # else 1^NaN is 1
