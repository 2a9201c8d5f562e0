"""How smooth a loss is along its gradient, with and without BatchNorm, while it is trained.

Santurkar et al. (2018) found that along the gradient the loss of a network with BatchNorm changes
less, its gradient less, and that change per distance, the effective smoothness, is smaller.  They
measured in the coordinates of the weights, where all three depend on the norms of weights that the
loss does not see.  So here the same is measured on the unit spheres as well, with the ends of the
spectrum of the Hessian in both.

The steps of the probes are the same for all runs: half to four times a rate of 0.1, which on the
spheres is a rate on the unit sphere.  One rate trains all parameters.  The activation is softplus,
since automatic differentiation sees no curvature where a rectifier kinks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import optax
from jaxtyping import Array

from bnrate import curvature, train
from bnrate import data as datasets
from bnrate import groups as gr
from bnrate.experiments import problems
from bnrate.experiments.problems import Config, Extent

if TYPE_CHECKING:
    import xarray as xr

_EXTENT = Extent((0.01, 0.1, 1.0), seeds=2, steps=200)
_RATE = 0.1
_ITERATIONS = 20
_WIDTH, _BATCH = 64, 128
_RULES = {
    "sgd-bn": {"title": "SGD, BN", "normalised": True},
    "sgd": {"title": "SGD, no normalisation", "normalised": False},
}


def smoothness(config: Config, **options: Any) -> "xr.Dataset":
    """Probes along the gradient, ends of the spectrum: in the weights and on the spheres.

    Records `raw_` and `sphere_` with `loss` and `gradient_change` at each step of a probe,
    `smoothness`, `lowest` and `highest`; those on the spheres are NaN without normalisation.
    """
    asked = problems.extent(config, _EXTENT)
    config = dataclasses.replace(config, width=config.width or _WIDTH, batch=config.batch or _BATCH)
    data = problems.load(config)
    make = functools.partial(_run, config, data)
    labels = {"step_size": ("multiple", [_RATE * multiple for multiple in curvature.MULTIPLES])}
    axes = {"rate": asked.rates}
    return problems.swept("smoothness", config, asked, make, _RULES, axes, options, labels)


def _run(config: Config, data: datasets.Data, rule: str) -> train.Run:
    normalised = bool(_RULES[rule]["normalised"])
    model = problems.network(config, data.classes, normalised, nn.softplus)
    groups = problems.find_groups(config, data, normalised, nn.softplus)
    places = {"raw": gr.Groups(), **({"sphere": groups} if normalised else {})}

    def measures(state: train.State) -> dict[str, Array]:
        batch = datasets.batch(data, state.key, state.step, config.batch or _BATCH)

        def loss(params: Any) -> Array:
            return problems.cross_entropy(model, params, state.extra, batch)[0]

        key = jax.random.fold_in(jax.random.key(0), state.step)
        found = {}
        for place, where in places.items():
            for name, value in _measured(loss, state.params, where, key).items():
                found[f"{place}_{name}"] = value
        return found

    run = problems.run_of(
        config, data, model, lambda rates: optax.sgd(rates.invariant), groups, measures=measures
    )
    along = {
        f"{place}_{name}": ("multiple",) for place in places for name in ("loss", "gradient_change")
    }
    multiples = {"multiple": tuple(map(str, curvature.MULTIPLES))}
    return dataclasses.replace(run, dims={**run.dims, **along}, coords={**run.coords, **multiples})


def _measured(
    loss: Callable[[Any], Array], params: Any, groups: gr.Groups, key: Array
) -> dict[str, Array]:
    """The probe and the ends of the spectrum at one point."""
    probe = curvature.probe(loss, params, groups, _RATE)
    ends = curvature.spectrum(loss, params, groups, key=key, iterations=_ITERATIONS)
    return {
        "loss": probe.loss,
        "gradient_change": probe.gradient_change,
        "smoothness": probe.smoothness,
        "lowest": ends.lowest,
        "highest": ends.highest,
    }
