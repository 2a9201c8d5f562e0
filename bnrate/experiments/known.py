"""What the experiments on losses of known constants share: float64, and records at few times."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from bnrate import groups as gr
from bnrate import losses, sweep, train, transforms
from bnrate.experiments import problems
from bnrate.experiments.problems import Config, Extent

if TYPE_CHECKING:
    import xarray as xr

Rule = Callable[[train.Rates], optax.GradientTransformation]


def asked(
    experiment: str, config: Config, default: Extent, *more_used: str, least: int = 1
) -> Extent:
    """What a config asks of an experiment on known losses.

    Args:
      experiment: its name.
      config: what was given.
      default: the experiment's own extent.
      *more_used: what it reads of a config, besides rates, seeds, steps and executor.
      least: steps that it needs.

    Raises:
      ValueError: the config sets what the experiment has no use for, or cannot be run.
    """
    problems.only(experiment, config, "rates", "seeds", "steps", "executor", *more_used)
    extent = problems.extent(dataclasses.replace(config, stride=1), default)
    if extent.steps < least:
        raise ValueError(f"{experiment} needs {least} steps or more, got {extent.steps}")
    return extent


def times(steps: int) -> tuple[int, ...]:
    """1, 3, 10, 30 ... up to the number of steps."""
    early = (3**odd * 10**power for power in range(10) for odd in range(2))
    return (*(time for time in early if time < steps), steps)


def run_of(problem: losses.Problem, rule: Rule, **changes: Any) -> train.Run:
    """A run on a known loss, which measures `gradient2` at every step."""
    usual: dict[str, Any] = {
        "init": problem.init,
        "loss": problem.loss,
        "batch": problem.batch,
        "groups": problem.groups,
        "measures": lambda state: {"gradient2": gradient2(problem, state.params, state.extra)},
    }
    return train.make_run(rule=rule, **{**usual, **changes})


def plain(problem: losses.Problem) -> Rule:
    """(S)GD with a rate for each side."""
    return lambda rates: transforms.by_group(
        problem.groups, invariant=optax.sgd(rates.invariant), rest=optax.sgd(rates.rest)
    )


def gradient2(problem: losses.Problem, params: PyTree, data: PyTree) -> Float[Array, ""]:
    """The squared norm that theorems bound: of the mean's gradient, on spheres and in the rest."""
    gradient = problem.gradient(params, data)
    spheres = gr.norm2(problem.groups, params) * gr.norm2(problem.groups, gradient)
    rest = [jnp.sum(leaf**2) for leaf in gr.rest(problem.groups, gradient).values()]
    return jnp.sum(spheres) + sum(rest)


def swept(
    experiment: str,
    config: Config,
    extent: Extent,
    make: Callable[..., train.Run],
    axes: Mapping[str, Any],
    records: int,
    options: Mapping[str, Any],
    labels: Mapping[str, tuple[str, Sequence[Any]]] = {},
) -> "xr.Dataset":
    """Sweep in float64, runs side by side: they are small."""
    with jax.enable_x64(True):
        return sweep.run(
            make,
            axes,
            steps=records,
            executor="vmap" if config.executor == "auto" else config.executor,
            config=problems.settings(experiment, config, extent),
            labels=labels,
            attrs={"experiment": experiment},
            **options,
        )


def timed(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with the number of steps before each record as the coordinate `time`."""
    return ds.assign_coords(time=ds["time"].max([dim for dim in ds["time"].dims if dim != "step"]))
