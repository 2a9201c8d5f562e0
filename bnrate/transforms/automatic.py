"""The rule that needs no rate: any for the invariant groups, a measured one for the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from bnrate import groups as gr
from bnrate import lanczos
from bnrate.transforms.units import Scalar, at_step, check_range, incremented, widened

Loss = Callable[[optax.Params], Float[Array, ""]]


class AutoState(NamedTuple):
    """What `auto` remembers.

    Attributes:
      steps: taken so far.
      curvature: the largest curvature of the loss in the rest that was seen, an estimate.
    """

    steps: Int[Array, ""]
    curvature: Float[Array, ""]


def auto(
    groups: gr.Groups,
    rate: optax.ScalarOrSchedule = 0.3,
    *,
    steady: Scalar = 100.0,
    safety: Scalar = 0.5,
    every: int = 20,
    iterations: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """SGD with no rate to set: any fixed one on the groups, 2 (1 - safety) / L on the rest.

    The rates of the theorems of Arora, Li & Lyu (2019): `rate` on the invariant groups is fixed and
    may be anything; that of the rest falls as t^-1/2 where batches are noisy, and needs L, the
    largest curvature of the loss in the rest alone.  Here L is an estimate: the largest
    eigenvalue, with its residual, of the present batch's Hessian of the rest, by Lanczos iterations
    at each of the first `every` steps and every so many steps after; the largest so far counts, so
    that the rate never rises when the loss becomes flat.  The theorems ask for a bound over all
    that is visited.  Nothing guards against a curvature that grows beyond what `safety` covers
    before it is seen: a run may jump, and then settle at the smaller rate.  Until the loss first
    curves upwards, the rest takes `rate`.

    An update needs the loss of the batch as an extra argument, `value_fn`, a function of the
    parameters (`train.make_run` gives it).  Each estimate costs about as much as one step, and a
    product with the rest's Hessian per iteration; under `vmap`, where all branches are taken, at
    every step.  It decides about all leaves itself, so it cannot stand inside `optax.partition`.

        >>> from bnrate.groups import Group, Groups, Member
        >>> def loss(params):
        ...     w = params["w"] / jnp.linalg.norm(params["w"])
        ...     return (w[0] * params["scale"] - 2.0) ** 2
        >>> tx = auto(Groups([Group([Member("w")])]), steady=jnp.inf)
        >>> params = {"w": jnp.array([0.6, 0.8]), "scale": jnp.array(1.0)}
        >>> updates, state = tx.update(
        ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss
        ... )
        >>> state.curvature.round(3)  # 2 w[0]^2
        Array(0.72, dtype=float32)

    Args:
      groups: the invariant ones; all other entries are the rest.
      rate: of the invariant groups.
      steady: that many steps pass before the rate of the rest falls much: it is that above times
        (1 + t / steady)^-1/2.  Infinity where a batch is all that is minimised, without noise.
      safety: the theorems' c, between 0 and 1: how far below 2 / L the rate of the rest stays.
      every: steps from one estimate to the next, after as many with one each.
      iterations: Hessian-vector products per estimate, at most.

    Raises:
      ValueError: a number is out of range; (in init) a group does not fit, or a leaf of the rest is
        not of floats; (in the update) the parameters or `value_fn` are missing.
    """
    check_range("auto", "rate", rate, "[0, inf)", schedule=True)
    check_range("auto", "steady", steady, "(0, inf]")
    check_range("auto", "safety", safety, "(0, 1)")
    for name, count in (("every", every), ("iterations", iterations)):
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"{name} of auto must be a whole number of at least 1, got {count!r}")

    def init(params: optax.Params) -> AutoState:
        gr.members(groups, params)
        masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
        if any(map(masked, jax.tree.leaves(params, is_leaf=masked))):
            raise ValueError("auto needs all parameters; use it outside optax.partition or masked")
        flat, _ = ravel_pytree(_rest(groups, params))
        return AutoState(jnp.zeros((), jnp.int32), jnp.zeros((), flat.dtype))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value_fn: Loss | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AutoState]:
        del extra_args
        if params is None or value_fn is None:
            raise ValueError(
                "auto needs the parameters and the loss: call update(grads, state, params, "
                "value_fn=lambda params: loss(params, batch))"
            )

        def measured() -> Array:
            found = _curvature(groups, params, value_fn, iterations, state.steps)
            # What is not finite does not count, unless nothing else is known: then it is seen.
            counts = jnp.isfinite(found) | (state.curvature <= 0)
            return jnp.where(counts, jnp.maximum(state.curvature, found), state.curvature)

        due = (state.steps < every) | (state.steps % every == 0)
        curvature = jax.lax.cond(due, measured, lambda: state.curvature)
        of_groups = at_step(rate, state.steps, curvature)
        known = jnp.where(curvature <= 0, 1, curvature)
        of_rest = jnp.where(curvature <= 0, of_groups, 2 * (1 - safety) / known)
        of_rest = of_rest * jax.lax.rsqrt(1 + state.steps.astype(of_rest.dtype) / steady)

        inside, outside = (
            jax.tree.map(lambda leaf, by=by: leaf * -by.astype(leaf.dtype), updates)
            for by in (of_groups, of_rest)
        )
        return gr.combine(groups, inside, outside), AutoState(incremented(state.steps), curvature)

    return optax.GradientTransformationExtraArgs(init, update)


def _curvature(
    groups: gr.Groups, params: optax.Params, loss: Loss, iterations: int, seed: Array
) -> Array:
    """An estimate of the largest eigenvalue of the loss's Hessian in the rest, from a random start.

    The largest Ritz value is never above it; with the residual, it is near one or above.
    """
    flat, unravel = ravel_pytree(_rest(groups, params))
    if not flat.size:
        return jnp.zeros((), flat.dtype)

    def of_rest(x: Array) -> Array:
        given = gr.rest(groups, params)
        moved = {path: leaf.astype(given[path].dtype) for path, leaf in unravel(x).items()}
        return loss(gr.combine(groups, params, gr.replace(params, moved)))

    _, product = jax.linearize(jax.grad(of_rest), flat)
    start = jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), flat.shape, flat.dtype)
    if groups.in_parts:  # their entries in leaves of the rest do not count
        start = start * ravel_pytree(_rest(groups, jax.tree.map(jnp.ones_like, params)))[0]
    found = lanczos.ritz(product, start, iterations)
    return found.values[-1] + found.residuals[-1]


def _rest(groups: gr.Groups, params: optax.Params) -> dict[str, Array]:
    """The leaves outside the groups, in float32 or wider; zero where entries are inside."""
    found = {}
    for path, leaf in gr.rest(groups, params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf '{path}' of the rest must be an array of floats, got {leaf.dtype}"
            )
        found[path] = widened(leaf)
    return found
