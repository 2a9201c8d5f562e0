"""The experiments, one function each: the only room that wires the others together.

Each takes a `Config` and the options of `sweep.run` that say where and how: `out`, `callbacks` ...

- `problems`: data, networks, their groups, how a run ends.
- `paper`: the three figures of Arora, Li & Lyu (ICLR 2019).
- `comparison`: all rules on one problem.
- `decay`: weight decay, against what theory says of it.
- `descent`: the bounds of gradient descent and of SGD, on the losses drawn by `instances`.
- `projection`, `chain`, `least_squares`: where a theorem is attained, and what happens without it.
- `certifying`: a bound for a network, from its trace.
- `known`: what these share.
- `smoothing`: how smooth a loss is with and without BatchNorm, in the weights and on the spheres.

>>> list(EXPERIMENTS)
['separate-rates', 'unified-rate', 'generalization', 'rules', 'equilibrium', 'gd-rate', 'sgd-rate',
'psgd-fails', 'lower-bound', 'gdnp', 'certificate', 'smoothness']
"""

from typing import TYPE_CHECKING

from bnrate.experiments.certifying import certificate, certified
from bnrate.experiments.chain import against_floor, lower_bound
from bnrate.experiments.comparison import RULES, Rule, rules
from bnrate.experiments.decay import DECAYING, Decaying, against_theory, equilibrium
from bnrate.experiments.descent import against_gd, against_sgd, gd_rate, sgd_rate
from bnrate.experiments.least_squares import against_contraction, gdnp
from bnrate.experiments.paper import (
    SETTINGS,
    Setting,
    generalization,
    separate_rates,
    setting_run,
    unified_rate,
)
from bnrate.experiments.problems import (
    Config,
    Extent,
    cross_entropy,
    extent,
    find_groups,
    initial,
    network,
)
from bnrate.experiments.projection import against_orbit, psgd_fails
from bnrate.experiments.smoothing import smoothness

if TYPE_CHECKING:
    import xarray as xr

EXPERIMENTS = {
    "separate-rates": separate_rates,
    "unified-rate": unified_rate,
    "generalization": generalization,
    "rules": rules,
    "equilibrium": equilibrium,
    "gd-rate": gd_rate,
    "sgd-rate": sgd_rate,
    "psgd-fails": psgd_fails,
    "lower-bound": lower_bound,
    "gdnp": gdnp,
    "certificate": certificate,
    "smoothness": smoothness,
}

_COMPLETE = {
    "equilibrium": against_theory,
    "gd-rate": against_gd,
    "sgd-rate": against_sgd,
    "psgd-fails": against_orbit,
    "lower-bound": against_floor,
    "gdnp": against_contraction,
    "certificate": certified,
}


def completed(ds: "xr.Dataset") -> "xr.Dataset":
    """A result from a folder, with what its experiment says of the records besides.

    Args:
      ds: the result of any experiment.
    """
    complete = _COMPLETE.get(ds.attrs.get("experiment", ""))
    return ds if complete is None else complete(ds)


__all__ = [
    "DECAYING",
    "EXPERIMENTS",
    "RULES",
    "SETTINGS",
    "Config",
    "Decaying",
    "Extent",
    "Rule",
    "Setting",
    "against_contraction",
    "against_floor",
    "against_gd",
    "against_orbit",
    "against_sgd",
    "against_theory",
    "certificate",
    "certified",
    "completed",
    "cross_entropy",
    "equilibrium",
    "extent",
    "find_groups",
    "gd_rate",
    "gdnp",
    "generalization",
    "initial",
    "lower_bound",
    "network",
    "psgd_fails",
    "rules",
    "separate_rates",
    "setting_run",
    "sgd_rate",
    "smoothness",
    "unified_rate",
]
