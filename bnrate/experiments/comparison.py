"""All rules on one problem: how far off may the rate of each be, and how well does it train.

One rate for all parameters.  Where a rule is about scale-invariant units alone, the rest is trained
at that same rate by the plain rule it comes from: by SGD (with momentum, if it has some), or by
Adam.  What the rate means on the spheres is the rule's own: a rate for the parameters as they are
(SGD, Adam, AdaGrad and what is built on them), a rate on the unit sphere (riemannian, grassmann,
effective rate), a relative length of the step (trust ratio, hyperball), a length (normalised
gradients).  A rotational rule has the angle at which its plain rule with that rate and a weight
decay of 0.0005 (SGD) or 0.005 (Adam) would settle.  `auto` is the same at every rate: it has none.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array

from bnrate import groups as gr
from bnrate import train, transforms
from bnrate.experiments import problems
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import rotation

if TYPE_CHECKING:
    import xarray as xr

Build = Callable[[gr.Groups, train.Rates], optax.GradientTransformation]

_RATES = tuple(float(f"{10**e:.4g}") for e in np.linspace(-3, 2, 11))
_EXTENT = Extent(_RATES, seeds=2, steps=600)
_MOMENTUM = 0.9
_SGD_DECAY, _ADAM_DECAY = 5e-4, 5e-3  # set the angles of the rotational rules


class Rule(NamedTuple):
    """One line of the table: a title, how to build it, and whether it has a rate to tune."""

    title: str
    build: Build
    tuned: bool = True


def rules(config: Config, **options: Any) -> "xr.Dataset":
    """All rules at one rate for all parameters: tuning freedom, best loss, accuracy."""
    asked = problems.extent(config, _EXTENT)
    data = problems.load(config)
    model = problems.network(config, data.classes)
    groups = problems.find_groups(config, data, normalised=True)

    def make(rule: str) -> train.Run:
        build = functools.partial(RULES[rule].build, groups)
        return problems.run_of(config, data, model, build, gr.Groups())

    labels = {name: {"title": rule.title, "tuned": rule.tuned} for name, rule in RULES.items()}
    return problems.swept("rules", config, asked, make, labels, {"rate": asked.rates}, options)


def _plain(rule: Callable[[Array], optax.GradientTransformation]) -> Build:
    """One rule of optax, on each side at its rate."""
    return lambda groups, rates: transforms.by_group(
        groups, invariant=rule(rates.invariant), rest=rule(rates.rest)
    )


def _before(scale: Callable[[gr.Groups], optax.GradientTransformation], then: Build) -> Build:
    """Gradients of the units scaled first."""
    return lambda groups, rates: optax.chain(scale(groups), then(groups, rates))


def _after(first: Build, norm: Callable[[gr.Groups], optax.GradientTransformation]) -> Build:
    """A decision about norms last."""
    return lambda groups, rates: optax.chain(first(groups, rates), norm(groups))


def _spheres(
    rule: Callable[[gr.Groups, Array], optax.GradientTransformation],
    rest: Callable[[Array], optax.GradientTransformation],
) -> Build:
    """A rule that trains the units alone, and one of optax for the rest."""
    return lambda groups, rates: optax.chain(
        transforms.by_group(groups, invariant=optax.identity(), rest=rest(rates.rest)),
        rule(groups, rates.invariant),
    )


def _rotational(
    direction: optax.GradientTransformation,
    angle: Callable[[Array], Array],
    rest: Callable[[Array], optax.GradientTransformation],
) -> Build:
    """The direction of a plain rule, turned by an angle that depends on the rate."""
    return lambda groups, rates: optax.chain(
        transforms.by_group(groups, invariant=direction, rest=rest(rates.rest)),
        transforms.rotational(groups, angle(rates.invariant)),
    )


def _sgdm(rate: Array | float) -> optax.GradientTransformation:
    return optax.sgd(rate, _MOMENTUM)


def _bounded_sgd(groups: gr.Groups, rate: Array) -> optax.GradientTransformation:
    return transforms.bounded_norm(groups, optax.sgd(rate))


def _sgdm_angle(rate: Array) -> Array:
    return rotation.sgd_angle(rate, _SGD_DECAY, _MOMENTUM)


def _adamw_angle(rate: Array) -> Array:
    return rotation.adamw_angle(rate, _ADAM_DECAY)


_SGD, _SGDM, _ADAM = _plain(optax.sgd), _plain(_sgdm), _plain(optax.adam)
_T = transforms

RULES = {
    "auto": Rule("auto: no rate", lambda groups, rates: _T.auto(groups), tuned=False),
    "sgd": Rule("SGD", _SGD),
    "momentum": Rule("SGD, momentum", _SGDM),
    "adam": Rule("Adam", _ADAM),
    "adagrad": Rule("AdaGrad", _plain(optax.adagrad)),
    "projected": Rule("SGD, norm kept", _after(_SGD, _T.keep_norm)),
    "bounded-norm": Rule("SGD, bounded norm", _spheres(_bounded_sgd, optax.sgd)),
    "effective-rate": Rule("SGD, effective rate", _before(_T.effective_rate, _SGD)),
    "tangent-adam": Rule("Adam, tangent", _after(_ADAM, _T.tangent)),
    "sgdp": Rule("SGDP", _spheres(lambda g, rate: _T.sgdp(g, rate, _MOMENTUM), _sgdm)),
    "adamp": Rule("AdamP", _spheres(_T.adamp, optax.adam)),
    "riemannian-sgd": Rule("riemannian SGD", _spheres(_T.riemannian_sgd, optax.sgd)),
    "riemannian-adam": Rule("riemannian Adam", _spheres(_T.riemannian_adam, optax.adam)),
    "grassmann-sgd": Rule("grassmann SGD", _spheres(_T.grassmann_sgd, _sgdm)),
    "grassmann-adam": Rule("grassmann Adam", _spheres(_T.grassmann_adam, optax.adam)),
    "rotational-sgd": Rule("rotational SGD", _rotational(_sgdm(1.0), _sgdm_angle, _sgdm)),
    "rotational-adam": Rule(
        "rotational Adam", _rotational(optax.adam(1.0), _adamw_angle, optax.adam)
    ),
    "trust-ratio": Rule("trust ratio (LARS)", _before(_T.trust_ratio, _SGD)),
    "hyperball": Rule("trust ratio, norm set", _after(_before(_T.trust_ratio, _SGD), _T.set_norm)),
    "normalized": Rule("normalised gradient", _before(_T.normalized_gradient, _SGD)),
    "wngrad": Rule("WNGrad", _before(_T.wngrad, _SGD)),
    "adagrad-norm": Rule("AdaGrad-Norm", _before(_T.adagrad_norm, _SGD)),
    "delayed-adagrad": Rule("delayed AdaGrad", _before(_T.delayed_adagrad, _SGD)),
    "weighted-adagrad": Rule("AdaGrad, momentum", _before(_T.weighted_adagrad_momentum, _SGD)),
}
