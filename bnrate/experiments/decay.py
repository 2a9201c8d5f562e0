"""Weight decay on the scale-invariant groups: are angle and norm as predicted?

The predictions are about gradients that are noise, for ever.  So four labels of five are drawn anew
at every step: the digits are still learned, and never fitted.  The groups have the swept rate, and
a decay; the rest is trained by the same rule at rate 0.0005, without decay.

For SGD little more than orthogonality is needed.  AdamW's prediction also asks that each gradient
has nothing to do with those before it, and a network answers its own steps, the more so the larger
the batch.  Hence small batches, and a rate and a decay so small that it takes long.  A norm of few
entries, as of BatchNorm's scales and biases, fluctuates besides: by sqrt(2 / entries) of itself,
over 1 / (2 rate decay) steps.  Hence several seeds.  The rectifiers leak, because the entries of a
unit that has died are counted but never updated.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from bnrate import data as datasets
from bnrate import groups as gr
from bnrate import train, transforms
from bnrate.experiments import problems
from bnrate.experiments.problems import Config, Extent
from bnrate.theory import equilibrium as theory

if TYPE_CHECKING:
    import xarray as xr

_EXTENT = Extent((0.002,), seeds=8, steps=90_000)
_REST = 0.0005
_RANDOM_LABELS = 0.8
_WIDTH = {"mlp": 32, "vgg": 4}
_BATCH = 16
_MOMENTUM = 0.9
_TOLERANCE = 0.05  # how near its equilibrium the average of a norm begins


class Decaying(NamedTuple):
    """A rule with weight decay.

    Attributes:
      title: in figures.
      decay: lambda.
      build: (rate, lambda) -> optax transformation.
      predict: (rate, lambda, root mean square of the spherical gradient, entries) -> equilibrium.
    """

    title: str
    decay: float
    build: Callable[[Array, float], optax.GradientTransformation]
    predict: Callable[[float, float, Array, Array], theory.Equilibrium]


def _sgd(rate: Array, decay: float, momentum: float = 0.0) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum))


DECAYING = {
    "sgd": Decaying("SGD", 0.15, _sgd, lambda rate, decay, n, dims: theory.sgd(rate, decay, n)),
    "momentum": Decaying(
        "SGD, momentum",
        0.015,
        functools.partial(_sgd, momentum=_MOMENTUM),
        lambda rate, decay, n, dims: theory.sgd(rate, decay, n, _MOMENTUM),
    ),
    "adamw": Decaying(
        "AdamW",
        0.04,
        lambda rate, decay: optax.adamw(rate, weight_decay=decay),
        lambda rate, decay, n, dims: theory.adamw(rate, decay, dims),
    ),
}


def equilibrium(config: Config, **options: Any) -> "xr.Dataset":
    """Angle and norm of each group under weight decay, against the prediction."""
    asked = problems.extent(config, _EXTENT)
    for rate, rule in itertools.product(asked.rates, DECAYING.values()):
        rule.predict(rate, rule.decay, jnp.ones(1), jnp.ones(1))  # refuses what cannot settle
    width, batch = config.width or _WIDTH[config.model], config.batch or _BATCH
    config = dataclasses.replace(config, width=width, batch=batch)
    data = problems.load(config)
    model = problems.network(config, data.classes, True, nn.leaky_relu)
    groups = problems.find_groups(config, data, True, nn.leaky_relu)

    def make(rule: str) -> train.Run:
        def build(rates: train.Rates) -> optax.GradientTransformation:
            one = DECAYING[rule]
            decayed, rest = one.build(rates.invariant, one.decay), one.build(rates.rest, 0.0)
            return transforms.by_group(groups, invariant=decayed, rest=rest)

        noisy = functools.partial(_noisy_batch, data, batch)
        return problems.run_of(config, data, model, build, groups, batch=noisy)

    first = problems.first_batch(config, data)[0]
    params, _ = jax.eval_shape(lambda key: problems.initial(model, key, first), jax.random.key(0))
    labels = {name: {"title": rule.title, "decay": rule.decay} for name, rule in DECAYING.items()}
    entries = {"entries": ("group", gr.dims(groups.whole(), params).tolist())}
    axes = {"rate_invariant": asked.rates, "rate_rest": (_REST,)}
    ds = problems.swept("equilibrium", config, asked, make, labels, axes, options, entries)
    return against_theory(ds)


def against_theory(ds: "xr.Dataset") -> "xr.Dataset":
    """The result with what is predicted, and by how much the runs differ.

    Adds for each rule, rate, seed and group `predicted_angle`, `predicted_norm2`, the step
    `reached` by which theory expects the norm near its equilibrium, and `angle_residual` and
    `norm2_residual`: measured from then on / predicted - 1, NaN if the run is too short.

    Args:
      ds: what `equilibrium` recorded.
    """
    import xarray as xr  # noqa: PLC0415

    names = "predicted_angle", "predicted_norm2", "reached", "angle_residual", "norm2_residual"
    stride = int(ds["step"][1] - ds["step"][0]) if ds.sizes["step"] > 1 else 1
    over, along = ["group"], ["group", "step"]
    values = xr.apply_ufunc(
        functools.partial(_compared, stride),
        ds["rule"], ds["rate_invariant"], ds["decay"], ds["entries"],
        ds["angle"], ds["norm2"], ds["spherical_gradient"],
        input_core_dims=[[], [], [], over, along, along, along],
        output_core_dims=[over] * len(names),
        vectorize=True,
    )  # fmt: skip
    return ds.assign(dict(zip(names, values, strict=True)))


def _compared(
    stride: int,
    rule: str,
    rate: float,
    decay: float,
    entries: Int[np.ndarray, " groups"],
    angle: Float[np.ndarray, "groups records"],
    norm2: Float[np.ndarray, "groups records"],
    gradient: Float[np.ndarray, "groups records"],
) -> tuple[np.ndarray, ...]:
    """Prediction and residuals of one run; NaN where it diverged or is not computed yet."""
    steps = stride * np.arange(angle.shape[1])
    late = steps >= steps[-1] / 2
    if not np.all(np.isfinite(gradient).all(1) & gradient[:, late].any(1)):
        return (np.full(len(entries), np.nan),) * 5

    def hold(late: np.ndarray) -> tuple[theory.Equilibrium, theory.Residual]:
        n = jnp.sqrt(jnp.mean(jnp.asarray(gradient) ** 2, axis=1, where=late))
        dims = jnp.asarray(entries, n.dtype)
        predicted = DECAYING[str(rule)].predict(float(rate), float(decay), n, dims)
        records = jnp.asarray(angle.T), jnp.asarray(norm2.T)
        return predicted, theory.residual(predicted, *records, stride=stride, tolerance=_TOLERANCE)

    # The gradients that matter are those after it is reached, and when that is depends on them.
    reached = steps >= np.asarray(hold(late)[1].start)[:, None]
    predicted, off = hold(np.where(reached.any(1, keepdims=True), reached, late))
    values = predicted.angle, predicted.norm2, off.start, off.angle, off.norm2
    return tuple(np.broadcast_to(value, len(entries)) for value in values)


def _noisy_batch(
    data: datasets.Data, size: int, key: Array, step: Int[Array, ""]
) -> tuple[Array, Array]:
    """A batch, most of whose labels are random, and others at every step."""
    x, y = datasets.batch(data, key, step, size)
    which, what = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), step))
    random = jax.random.randint(what, y.shape, 0, data.classes, y.dtype)
    return x, jnp.where(jax.random.bernoulli(which, _RANDOM_LABELS, y.shape), random, y)
