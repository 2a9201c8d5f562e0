"""What resetting the norm after each step destroys, on a Rayleigh quotient in the plane.

The quotient is that of diag(0, 1); with noise, the entries beside the diagonal are 1/2 or -1/2.
Each rate starts from several directions; of the exact runs the first starts on the orbit on which
projected gradient descent stays for ever, if the rate has one.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from bnrate import losses, train, transforms
from bnrate.experiments import known
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import psgd

if TYPE_CHECKING:
    import xarray as xr

_RATES = (0.1, 0.5, 0.9, 1.1, 1.5, 2.0, 5.0, 10.0, 100.0, 1000.0)
_EXTENT = Extent(_RATES, seeds=64, steps=20_000)
_TAIL = 20  # noise is averaged over the last of so many parts of a run


class Way(NamedTuple):
    """How the quotient is minimised."""

    title: str
    projected: bool
    noisy: bool


WAYS = {
    "gd": Way("gradient descent", projected=False, noisy=False),
    "projected-gd": Way("projected gradient descent", projected=True, noisy=False),
    "sgd": Way("SGD", projected=False, noisy=True),
    "projected-sgd": Way("projected SGD", projected=True, noisy=True),
}


def psgd_fails(config: Config, **options: Any) -> "xr.Dataset":
    """Projected (S)GD at rates at which (S)GD converges: an orbit, and a floor of noise."""
    asked = known.asked("psgd-fails", config, _EXTENT, least=2)
    late = asked.steps - max(asked.steps // _TAIL, 1)
    times = sorted({*known.times(asked.steps), late} - {0})

    def make(rule: str) -> train.Run:
        run = _run(WAYS[rule])
        run = run if WAYS[rule].noisy else dataclasses.replace(run, init=_on_orbit(run))
        return train.totals(run, times, sums=("gradient2",), least=("gradient2",))

    labels = {"title": ("rule", [way.title for way in WAYS.values()])}
    axes = {"rule": tuple(WAYS), "rate": asked.rates, "seed": range(asked.seeds)}
    ds = known.swept("psgd-fails", config, asked, make, axes, len(times), options, labels)
    return against_orbit(ds)


def against_orbit(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with the gradient on the orbit: `orbit`, NaN for rates that have none.

    Args:
      ds: what `psgd_fails` recorded.
    """
    rates = ds["rate"].values
    has_one = rates > 1
    with jax.enable_x64(True):
        gradient = np.asarray(psgd.orbit(np.where(has_one, rates, 2.0)).gradient)
    return known.timed(ds).assign(orbit=("rate", np.where(has_one, gradient, np.nan)))


def _run(way: Way) -> train.Run:
    exact, noise = jnp.diag(jnp.array([0.0, 1.0])), jnp.array([[0.0, 0.5], [0.5, 0.0]])
    if way.noisy:
        problem = losses.noisy_rayleigh(jnp.stack([exact + noise, exact - noise]))
    else:
        problem = losses.rayleigh(jnp.diag(exact))

    def rule(rates: train.Rates) -> optax.GradientTransformation:
        plain = optax.sgd(rates.invariant)
        kept = transforms.keep_norm(problem.groups)
        return optax.chain(plain, kept) if way.projected else plain

    def init(key: Array) -> tuple[Any, Any]:
        params, data = problem.init(key)
        return {"w": params["w"] / jnp.linalg.norm(params["w"])}, data

    return known.run_of(problem, rule, init=init)


def _on_orbit(run: train.Run) -> Any:
    """The run's start, but for the first seed: on the orbit of the rate, if it has one."""

    def init(point: Mapping[str, Array]) -> train.State:
        state, rate = run.init(point), point["rate"]
        tangent = psgd.orbit(jnp.where(rate > 1, rate, 2.0)).tangent
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        starts_there = (rate > 1) & (point["seed"] == 0)
        w = jnp.where(starts_there, jnp.stack([cosine, tangent * cosine]), state.params["w"])
        return state._replace(params={"w": w})

    return init
