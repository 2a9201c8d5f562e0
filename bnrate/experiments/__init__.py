"""The experiments, one function each: the only room that wires the others together.

Each takes a `Config` and the options of `sweep.run` that say where and how: `out`, `callbacks` ...

- `problems`: data, networks, their groups, how a run ends.
- `paper`: the three figures of Arora, Li & Lyu (ICLR 2019).
- `comparison`: all rules on one problem.
- `decay`: weight decay, against what theory says of it.

>>> list(EXPERIMENTS)
['separate-rates', 'unified-rate', 'generalization', 'rules', 'equilibrium']
"""

from bnrate.experiments.comparison import RULES, Rule, rules
from bnrate.experiments.decay import DECAYING, Decaying, against_theory, equilibrium
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

EXPERIMENTS = {
    "separate-rates": separate_rates,
    "unified-rate": unified_rate,
    "generalization": generalization,
    "rules": rules,
    "equilibrium": equilibrium,
}

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
    "against_theory",
    "cross_entropy",
    "equilibrium",
    "extent",
    "find_groups",
    "generalization",
    "initial",
    "network",
    "rules",
    "separate_rates",
    "setting_run",
    "unified_rate",
]
