"""Least squares behind a normalisation: GDNP is linearly fast, as proved, without a rate to set.

The loss is -(b'w)^2 / (w'Sw), S with eigenvalues from 1 / kappa to 1, b and the start at random.
Plain gradient descent is swept over rates; GDNP has none, and is the same at each.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bnrate import losses, train, transforms
from bnrate.experiments import known
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import gdnp as theory

if TYPE_CHECKING:
    import xarray as xr

_EXTENT = Extent((0.01, 0.1, 1.0, 10.0, 100.0), seeds=16, steps=300)
_DIMS = 20
CONDITIONS = {f"kappa-{kappa}": float(kappa) for kappa in (3, 10, 30)}
_ROUNDING = 1e-9  # distances below are too near to rounding for ratios
RULES = {"gdnp": "GDNP", "gd": "gradient descent"}


def gdnp(config: Config, **options: Any) -> "xr.Dataset":
    """GDNP against gradient descent at several rates, and the contraction that is proved."""
    asked = known.asked("gdnp", config, _EXTENT, least=2)

    def make(problem: str, rule: str) -> train.Run:
        S = _covariance(CONDITIONS[problem])
        quotient = _problem(CONDITIONS[problem])

        def build(rates: train.Rates) -> optax.GradientTransformation:
            return _gdnp(quotient, S) if rule == "gdnp" else optax.sgd(rates.invariant)

        def above(state: train.State) -> dict[str, Array]:
            numerator, _ = state.extra
            lowest = jnp.trace(jnp.linalg.solve(S, numerator))  # of rank 1: its eigenvalue
            return {"above": quotient.mean(state.params, state.extra) - lowest}

        return known.run_of(quotient, build, measures=above)

    axes = {
        "problem": tuple(CONDITIONS),
        "rule": tuple(RULES),
        "rate": asked.rates,
        "seed": range(asked.seeds),
    }
    labels = {
        "kappa": ("problem", list(CONDITIONS.values())),
        "title": ("rule", list(RULES.values())),
    }
    ds = known.swept("gdnp", config, asked, make, axes, asked.steps, options, labels)
    return against_contraction(ds)


def against_contraction(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with the factor that GDNP is proved to gain per step, and the worst one measured.

    Adds `contraction`, and `worst`: the largest ratio of successive distances from the minimum, as
    long as they are not rounding.

    Args:
      ds: what `gdnp` recorded; `above` is the distance of the loss from its minimum.
    """
    with jax.enable_x64(True):
        factors = [theory.contraction(_covariance(kappa)) for kappa in ds["kappa"].values.tolist()]
    above = ds["above"]
    ratio = above.shift(step=-1) / above.where(above > _ROUNDING)
    return ds.assign(
        contraction=("problem", np.array([float(factor) for factor in factors])),
        worst=ratio.max("step"),
    )


def _problem(kappa: float) -> losses.Problem:
    def numerator(key: Array) -> Float[Array, "d d"]:
        b = jax.random.normal(key, (_DIMS,)) / jnp.sqrt(_DIMS)
        return -jnp.outer(b, b)

    return losses.generalized_rayleigh(numerator, _covariance(kappa))


def _covariance(kappa: float) -> Float[Array, "d d"]:
    return jnp.diag(jnp.geomspace(1 / kappa, 1, _DIMS))


def _gdnp(problem: losses.Problem, S: Array) -> optax.GradientTransformationExtraArgs:
    """The transformation with the variances that it asks for."""
    scale = transforms.gdnp(problem.groups, jnp.max(jnp.linalg.eigvalsh(S)))

    def update(
        updates: PyTree, state: PyTree, params: Any = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        w = params["w"]
        return scale.update(updates, state, params, value=extra["value"], variance=w @ S @ w)

    with_variance = optax.GradientTransformationExtraArgs(scale.init, update)
    return optax.chain(with_variance, optax.scale(-1.0))
