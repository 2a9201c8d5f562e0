"""Scale-invariant losses of which the minimum, the gradient and the constants are known.

Each function makes a `Problem`: what `train.make_run` needs, and what theorems speak of.

- `rayleigh`, `noisy_rayleigh`, `generalized_rayleigh`: quotients of quadratic forms.
- `bn_least_squares`, `noisy_bn_least_squares`: one normalised feature, with scale and bias.
- `bn_halfspace`: classification behind a normalisation.
- `coupled_blocks`: two spheres and a number that couples them.
- `bn_network`: a small smooth network under BatchNorm.
- `chain`: a loss that no rate makes easy.

Training one of them is as training a network:

    >>> import jax, optax
    >>> from bnrate import sweep, train
    >>> problem = rayleigh([0.0, 0.3, 1.0])
    >>> run = train.make_run(
    ...     init=problem.init, loss=problem.loss, batch=problem.batch, groups=problem.groups,
    ...     rule=lambda rates: optax.sgd(rates.invariant),
    ... )
    >>> ds = sweep.run(lambda: run, {"rate": [0.1, 10.0], "seed": range(2)}, steps=1000)
    >>> bool((ds.final_loss < 1e-3).all())
    True

and the constants feed the bounds:

    >>> params, data = problem.init(jax.random.key(0))
    >>> problem.constants(params, data, 0.1).gradient
    Array([1.], dtype=float32)

Where an argument defines the instance or its start, a function from a key will do as well: then
each seed of a sweep draws its own.
"""

from bnrate.losses.coupling import Coupled, coupled_blocks
from bnrate.losses.halfspace import bn_halfspace
from bnrate.losses.least_squares import (
    Moments,
    bn_least_squares,
    moments,
    noisy_bn_least_squares,
)
from bnrate.losses.network import Examples, bn_network
from bnrate.losses.problem import Problem
from bnrate.losses.quotients import generalized_rayleigh, noisy_rayleigh, rayleigh
from bnrate.losses.replication import replicas
from bnrate.losses.zero_chain import chain

__all__ = [
    "Coupled",
    "Examples",
    "Moments",
    "Problem",
    "bn_halfspace",
    "bn_least_squares",
    "bn_network",
    "chain",
    "coupled_blocks",
    "generalized_rayleigh",
    "moments",
    "noisy_bn_least_squares",
    "noisy_rayleigh",
    "rayleigh",
    "replicas",
]
