"""The three figures of Arora, Li & Lyu (ICLR 2019)."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array, PyTree

from bnrate import data as datasets
from bnrate import groups as gr
from bnrate import models, train, transforms
from bnrate.experiments import problems
from bnrate.experiments.problems import Config, Extent

if TYPE_CHECKING:
    import xarray as xr

_RATES = tuple(float(f"{10**e:.4g}") for e in np.linspace(-2, 2, 17))
_EXTENT = Extent(_RATES, seeds=3, steps=1200)


class Setting(NamedTuple):
    """One line of a figure: the paper's number of it, a title, and what it trains how."""

    number: str
    title: str
    normalised: bool
    projected: bool = False
    data_init: bool = False


SETTINGS = {
    "sgd-bn": Setting("1", "SGD, BN", normalised=True),
    "projected-bn": Setting("2", "projected SGD, BN", normalised=True, projected=True),
    "sgd": Setting("3", "SGD, no normalisation", normalised=False),
    "sgd-data-init": Setting("3b", "SGD, data-dependent init", normalised=False, data_init=True),
}


def separate_rates(config: Config, **options: Any) -> "xr.Dataset":
    """Figure 1: rate 0.1 for the rest, the swept one for the scale-invariant parameters."""
    rules = ("sgd-bn", "projected-bn")
    return _run("separate-rates", config, rules, "rate_invariant", {"rate_rest": (0.1,)}, options)


def unified_rate(config: Config, **options: Any) -> "xr.Dataset":
    """Figure 2: one rate for all parameters, with and without normalisation."""
    return _run("unified-rate", config, tuple(SETTINGS), "rate", {}, options)


def generalization(config: Config, **options: Any) -> "xr.Dataset":
    """Figure 3: test accuracy against the one rate for all parameters."""
    return _run("generalization", config, ("sgd-bn", "projected-bn"), "rate", {}, options)


def _run(
    experiment: str,
    config: Config,
    rules: Sequence[str],
    swept: str,
    fixed: dict[str, tuple[float, ...]],
    options: dict[str, Any],
) -> "xr.Dataset":
    """Sweep the settings over the rates and seeds."""
    asked = problems.extent(config, _EXTENT)
    data = problems.load(config)
    groups = functools.cache(lambda normalised: problems.find_groups(config, data, normalised))

    def make(rule: str) -> train.Run:
        return setting_run(config, data, rule, groups(SETTINGS[rule].normalised))

    labels = {
        rule: {"setting": SETTINGS[rule].number, "title": SETTINGS[rule].title} for rule in rules
    }
    axes = {swept: asked.rates, **fixed}
    return problems.swept(experiment, config, asked, make, labels, axes, options)


def setting_run(config: Config, data: datasets.Data, rule: str, groups: gr.Groups) -> train.Run:
    """The run of one setting: its network, its initialisation and its rule."""
    setting = SETTINGS[rule]
    model = problems.network(config, data.classes, setting.normalised)
    first, _ = problems.first_batch(config, data)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        if setting.data_init:
            return models.data_dependent(model, key, first), {}
        return problems.initial(model, key, first)

    rule_of = functools.partial(_sgd, groups, setting.projected)
    return problems.run_of(config, data, model, rule_of, groups, init=init)


def _sgd(groups: gr.Groups, projected: bool, rates: train.Rates) -> optax.GradientTransformation:
    plain = transforms.by_group(
        groups,
        invariant=optax.sgd(rates.invariant),
        rest=optax.sgd(rates.rest),
        allow_empty=True,  # one setting has no normalisation
    )
    return optax.chain(plain, transforms.keep_norm(groups)) if projected else plain
