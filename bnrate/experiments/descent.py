"""The bounds for GD and SGD against what happens, at any rate, on losses of known constants.

A bound of the theorems fails on an instance where more was measured than it allows, be it at the
first record or at the last; `violations` counts the records, and must be 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bnrate import groups as gr
from bnrate import losses, train, transforms
from bnrate.experiments import instances, known
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import gd, sgd

if TYPE_CHECKING:
    import xarray as xr

_RATES = tuple(10.0**power for power in range(-3, 4))
_GD_EXTENT = Extent(_RATES, seeds=36, steps=100_000)
_SGD_EXTENT = Extent(_RATES, seeds=12, steps=10_000)
_RESTS = 0.25, 0.5  # rates of the rest, where there is one, by turns
_ALPHAS = 0.0, 0.25, 0.5
_REPLICAS = 32
_CLAIMS = {
    "gradient2_sum": "bound_sum",
    "gradient2_least": "bound_least",
    "weighted_sum": "bound_weighted",
    "norm2": "bound_norm2",
}
_ROUNDING = 1e-9  # of sums over many steps, where a bound is attained


def gd_rate(config: Config, **options: Any) -> "xr.Dataset":
    """The GD bound against measured gradients, at any rate, on losses of known constants."""
    asked = known.asked("gd-rate", config, _GD_EXTENT)
    times = known.times(asked.steps)

    def make(problem: str) -> train.Run:
        run = _gd_run(instances.GD[problem].build())
        return train.totals(run, times, sums=("gradient2",), least=("gradient2",))

    axes = {"problem": tuple(instances.GD), **_axes(asked)}
    labels = {"title": ("problem", [family.title for family in instances.GD.values()])}
    ds = known.swept("gd-rate", config, asked, make, axes, len(times), options, labels)
    return against_gd(ds)


def against_gd(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with the GD bound.

    Adds `bound_sum` of the sum over all steps of squared gradients, `bound_least` of the least of
    them at each record, `bound_norm2`, the `tightness` of the sum (bound / measured), and
    `violations`.

    Args:
      ds: what `gd_rate` recorded.
    """
    ds = known.timed(ds)
    with jax.enable_x64(True):
        parts = [_gd_bounds(ds, str(problem)) for problem in ds["problem"].values]
    return _with_violations(ds.assign(_together(parts, ds).data_vars))


def _gd_bounds(ds: "xr.Dataset", problem: str) -> "xr.Dataset":
    one = instances.GD[problem].build()
    assert one.constants  # known of every family
    run, times, constants = _gd_run(one), jnp.asarray(ds["time"].values, float), one.constants

    def at(rate: Array, seed: Array, rest: Array) -> dict[str, Array]:
        state = run.init({"rate_invariant": rate, "rate_rest": rest, "seed": seed})
        bound = gd.bound(
            constants(state.params, state.extra, rest),
            loss=one.mean(state.params, state.extra),
            norm2=gr.norm2(one.groups, state.params),
            rate=rate,
            rate_rest=rest if gr.rest(one.groups, state.params) else None,
        )
        least = gd.least(bound, times)
        return {"bound_sum": bound.total, "bound_least": least, "bound_norm2": bound.norm2}

    over = jax.vmap(jax.vmap(at, (None, 0, 0)), (0, None, None))
    arrays = jax.jit(over)(*(ds[name].values for name in ("rate_invariant", "seed", "rate_rest")))
    dims = "rate_invariant", "instance"
    more = {"bound_sum": (), "bound_least": ("step",), "bound_norm2": ("group",)}
    return (
        _dataset(arrays, {name: (*dims, *last) for name, last in more.items()})
        .assign_coords(group=list(run.coords["group"]))
        .reindex(group=ds["group"])
    )


def _together(parts: "list[xr.Dataset]", ds: "xr.Dataset") -> "xr.Dataset":
    import xarray as xr  # noqa: PLC0415

    return xr.concat(parts, ds["problem"])


def _with_violations(ds: "xr.Dataset") -> "xr.Dataset":
    """How often more was measured than a bound allows, and how much less after all steps."""
    claims = [
        _exceeds(ds[measured], ds[bound]) for measured, bound in _CLAIMS.items() if bound in ds
    ]
    if "bound_sum" in ds:
        tightness = ds["bound_sum"] / ds["gradient2_sum"].isel(step=-1, drop=True)
    else:
        tightness = (ds["bound_weighted"] / ds["weighted_sum"]).isel(step=-1, drop=True)
    computed = ~ds["status"].isin(["absent", "unfinished"])
    violations = sum(claim.sum("step") for claim in claims) * computed
    return ds.assign(violations=violations, tightness=tightness)


def _exceeds(measured: "xr.DataArray", bound: "xr.DataArray") -> "xr.DataArray":
    """Where any block has more than its bound, or a number that is none."""
    within = (abs(measured) < np.inf) & (measured <= (1 + _ROUNDING) * bound)
    if "group" not in measured.dims:
        return ~within
    absent = measured.isnull() & bound.isnull()  # a block of another problem
    return (~(within | absent)).any("group") | absent.all("group")


def _gd_run(problem: losses.Problem) -> train.Run:
    return known.run_of(problem, known.plain(problem))


def _axes(asked: Extent) -> dict[str, Any]:
    turns = [_RESTS[seed % len(_RESTS)] for seed in range(asked.seeds)]
    instance = {"seed": range(asked.seeds), "rate_rest": turns}
    return {"rate_invariant": asked.rates, "instance": instance}


def sgd_rate(config: Config, **options: Any) -> "xr.Dataset":
    """The SGD bound against measured gradients, at any rate, constant or falling."""
    asked = known.asked("sgd-rate", config, _SGD_EXTENT)
    times = known.times(asked.steps)

    def make(problem: str) -> train.Run:
        run = _sgd_run(instances.SGD[problem].build())
        return train.totals(run, times, sums=("gradient2",), least=("gradient2",))

    axes = {"problem": tuple(instances.SGD), "alpha": _ALPHAS, **_axes(asked)}
    labels = {"title": ("problem", [family.title for family in instances.SGD.values()])}
    ds = known.swept("sgd-rate", config, asked, make, axes, len(times), options, labels)
    return against_sgd(ds)


def against_sgd(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with the SGD bound.

    Adds `weighted_sum`, no more than the sum of squared gradients times the theorem's weights, and
    what it is proved to stay below, `bound_weighted`; `bound_least` of the least mean squared
    gradient at each record; the envelope `bound_norm2` of the norm; the `tightness` of the weighted
    sum (bound / measured); and `violations`.  Of a mean over replicas the sum is an estimate of the
    expectation without bias; their least over time tends to lie below that of the expectation.

    Args:
      ds: what `sgd_rate` recorded; `gradient2` is the mean over the replicas.
    """
    ds = known.timed(ds)
    with jax.enable_x64(True):
        parts = [_sgd_bounds(ds, str(problem)) for problem in ds["problem"].values]
    ds = ds.assign(_together(parts, ds).data_vars)
    # Weights fall: all steps from one record to the next weigh at least as much as the last.
    between = ds["gradient2_sum"] - ds["gradient2_sum"].shift(step=1, fill_value=0)
    return _with_violations(ds.assign(weighted_sum=(ds["weight"] * between).cumsum("step")))


def _sgd_bounds(ds: "xr.Dataset", problem: str) -> "xr.Dataset":
    one = instances.SGD[problem].build()
    assert one.constants  # known of every family
    assert one.noise
    constants, noise = one.constants, one.noise
    run, times = _sgd_run(one), ds["time"].values.astype(int)

    def at(alpha: Array, rate: Array, seed: Array, rest: Array) -> dict[str, Array]:
        point = {"alpha": alpha, "rate_invariant": rate, "rate_rest": rest, "seed": seed}
        state = run.init(point)
        params = jax.tree.map(lambda leaf: leaf[0], state.params)
        known_of = constants(params, state.extra, rest), noise(params, state.extra, rest)
        how = {
            "norm2": gr.norm2(one.groups, params),
            "rate": rate,
            "alpha": alpha,
            "rate_rest": rest if gr.rest(one.groups, params) else None,
            "steps": int(times[-1]),
        }
        bound = sgd.bound(*known_of, loss=one.mean(params, state.extra), **how)
        found = {
            "bound_weighted": bound.descent,
            "bound_least": bound.least,
            "bound_norm2": bound.envelope[:, 0],  # at the last step before each record
            "weight": sgd.weights(*known_of, **how),
        }
        return {name: values[times - 1] for name, values in found.items()}

    over = jax.vmap(jax.vmap(at, (None, None, 0, 0)), (None, 0, None, None))
    names = "alpha", "rate_invariant", "seed", "rate_rest"
    arrays = jax.jit(jax.vmap(over, (0, None, None, None)))(*(ds[name].values for name in names))
    dims = "alpha", "rate_invariant", "instance", "step"
    return _dataset(arrays, dict.fromkeys(arrays, dims))


class _Falling(NamedTuple):
    """The rates of a run, of which that of the units falls as (t + 1)^-alpha."""

    invariant: Float[Array, ""]
    rest: Float[Array, ""]
    alpha: Float[Array, ""]


def _sgd_run(problem: losses.Problem) -> train.Run:
    many = losses.replicas(problem, _REPLICAS)

    def rule(rates: Any) -> optax.GradientTransformation:
        def units(step: ArrayLike) -> Array:
            return rates.invariant * _time(step) ** -rates.alpha

        def rest(step: ArrayLike) -> Array:
            return rates.rest / jnp.sqrt(_time(step))

        return transforms.by_group(many.groups, invariant=optax.sgd(units), rest=optax.sgd(rest))

    def measured(state: train.State) -> dict[str, Array]:
        return {"gradient2": known.gradient2(many, state.params, state.extra) / _REPLICAS}

    run = known.run_of(many, rule, measures=measured)

    def init(point: Mapping[str, Array]) -> train.State:
        of_run = {name: value for name, value in point.items() if name != "alpha"}
        state = run.init(of_run)
        return state._replace(rates=_Falling(*state.rates, point["alpha"]))

    return dataclasses.replace(run, init=init)


def _time(step: ArrayLike) -> Float[Array, ""]:
    return jnp.asarray(step, float) + 1


def _dataset(arrays: Mapping[str, Array], dims: Mapping[str, tuple[str, ...]]) -> "xr.Dataset":
    import xarray as xr  # noqa: PLC0415

    return xr.Dataset({name: (dims[name], np.asarray(array)) for name, array in arrays.items()})
