"""The GD bound for a network, from nothing but what was recorded of the run.

A small perceptron under BatchNorm without eps, with softplus for the activation, is trained by
gradient descent on a part of the data, all of it at each step, in float64: as the theorem assumes.
The neurons' weights have the swept rate, and the rest, scales and biases, a rate of 0.1.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bnrate import curvature, losses, train
from bnrate.experiments import known, problems
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import pathwise

if TYPE_CHECKING:
    import xarray as xr

_EXTENT = Extent(tuple(10.0**power for power in range(-2, 4)), seeds=1, steps=2_000)
_REST = 0.1
_WIDTH, _EXAMPLES = 16, 256
_JUMPS = 1e-6  # a residual of smoothness from here on is one of derivatives that jump


def certificate(config: Config, **options: Any) -> "xr.Dataset":
    """A certificate for gradient descent on a small smooth network, at any rate."""
    asked = known.asked("certificate", config, _EXTENT, "data", "width", "batch")
    with jax.enable_x64(True):
        run = _run(_problem(config))
    axes = {"rate_invariant": asked.rates, "rate_rest": (_REST,), "seed": range(asked.seeds)}
    ds = known.swept("certificate", config, asked, lambda: run, axes, asked.steps + 1, options)
    return certified(ds)


def certified(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with a certificate for each run.

    Adds its `label` and `reason`, the `measured_sum` of squared gradients and the `certified_sum`,
    `certified_norm2` of each unit, and the `curvature` that it rests on.

    Args:
      ds: what `certificate` recorded, at every step.
    """
    import xarray as xr  # noqa: PLC0415

    steps, units = ["step"], ["step", "group"]
    inputs = {
        "rate_invariant": [], "rate_rest": [], "full_batch": [], "smoothness_residual": [],
        "loss": steps, "norm2": units, "spherical_gradient": units, "rest_gradient": steps,
    }  # fmt: skip
    outputs = {
        "label": [], "reason": [], "measured_sum": [], "certified_sum": [], "curvature": [],
        "certified_norm2": ["group"],
    }  # fmt: skip
    found = xr.apply_ufunc(
        _certificate,
        *(ds[name] for name in inputs),
        input_core_dims=list(inputs.values()),
        output_core_dims=list(outputs.values()),
        output_dtypes=[object, object, float, float, float, float],
        vectorize=True,
    )
    return ds.assign(dict(zip(outputs, found, strict=True)))


def _certificate(
    rate: float,
    rate_rest: float,
    full_batch: np.bool_,
    smoothness_residual: float,
    loss: np.ndarray,
    norm2: np.ndarray,
    spherical_gradient: np.ndarray,
    rest_gradient: np.ndarray,
) -> tuple[Any, ...]:
    found = pathwise.certificate(
        pathwise.Trace(loss, norm2, spherical_gradient[:-1], rest_gradient[:-1]),
        rate=rate,
        rate_rest=rate_rest,
        full_batch=bool(full_batch),
        smooth=bool(smoothness_residual < _JUMPS),
    )
    norms = np.broadcast_to(found.norm2.certified, norm2.shape[1:])
    total = found.total
    reason = "; ".join(found.reasons)
    return found.label, reason, total.measured, total.certified, found.curvature, norms


def _problem(config: Config) -> losses.Problem:
    data = problems.load(config)
    x = data.train_x[: config.batch or _EXAMPLES].reshape(-1, data.train_x[0].size)
    labels = data.train_y[: len(x)]
    widths = (config.width or _WIDTH, data.classes)
    return losses.bn_network(jnp.asarray(x, float), jnp.asarray(labels), widths)


def _run(problem: losses.Problem) -> train.Run:
    def evaluate(params: PyTree, data: PyTree) -> dict[str, Array]:
        def loss(params: PyTree) -> Array:
            return problem.mean(params, data)

        jumps = curvature.smoothness_residual(loss, params, problem.groups, key=jax.random.key(0))
        return {
            "final_loss": loss(params),
            "smoothness_residual": jnp.max(jumps),
            "full_batch": jnp.array(train.one_loss(problem.init, problem.loss, problem.batch)),
        }

    return known.run_of(problem, known.plain(problem), evaluate=evaluate)
