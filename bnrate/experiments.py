"""The paper's experiments, one function per figure (Arora, Li & Lyu, ICLR 2019).

Each takes a `Config` and the options of `sweep.run` that say where and how: `out`, `callbacks` ...

>>> list(EXPERIMENTS)
['separate-rates', 'unified-rate', 'generalization']
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from bnrate import certify, invariance, models, sweep, train, transforms
from bnrate import data as datasets
from bnrate import groups as gr

if TYPE_CHECKING:
    import xarray as xr

_DEFAULT_WIDTH = {"mlp": 128, "vgg": 64}
_LIMITS = {
    "width": (1, 100_000),
    "seeds": (1, 1_000_000),
    "steps": (1, 2**31 - 1),
    "stride": (1, 2**31 - 1),
    "batch": (2, 2**31 - 1),  # one example has no variance
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What an experiment runs on.

    Attributes:
      data: digits, mnist5k, or the path of an .npz file with arrays x and y.
      model: mlp (two hidden layers) or vgg (the paper's).
      width: Of the hidden layers (mlp; 128 if not given) or of the first stage (vgg; 64).
      rates: Learning rates to sweep.
      seeds: Number of seeds per rate.
      steps: Of each run.
      batch: Examples per step.
      stride: Record every so many steps.
      executor: map takes the runs one after the other on each device, vmap all together that fit in
        the memory; auto measures which is faster.
    """

    data: str = "digits"
    model: Literal["mlp", "vgg"] = "mlp"
    width: int | None = None
    rates: tuple[float, ...] = tuple(float(f"{10**e:.4g}") for e in np.linspace(-2, 2, 17))
    seeds: int = 3
    steps: int = 1200
    batch: int = 128
    stride: int = 10
    executor: Literal["auto", "map", "vmap"] = "auto"


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
    axes = {"rate_invariant": config.rates, "rate_rest": (0.1,)}
    return _run(config, ("sgd-bn", "projected-bn"), axes, "separate-rates", options)


def unified_rate(config: Config, **options: Any) -> "xr.Dataset":
    """Figure 2: one rate for all parameters, with and without normalisation."""
    return _run(config, tuple(SETTINGS), {"rate": config.rates}, "unified-rate", options)


def generalization(config: Config, **options: Any) -> "xr.Dataset":
    """Figure 3: test accuracy against the one rate for all parameters."""
    rules = ("sgd-bn", "projected-bn")
    return _run(config, rules, {"rate": config.rates}, "generalization", options)


EXPERIMENTS = {
    "separate-rates": separate_rates,
    "unified-rate": unified_rate,
    "generalization": generalization,
}


def check(config: Config) -> None:
    """Refuse a config that cannot be run; every experiment begins with this.

    Raises:
      ValueError: names the value and the legal range.
    """
    if not config.rates:
        raise ValueError("rates are empty; give one or more positive numbers")
    smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    for rate in config.rates:
        if not smallest <= rate <= largest:
            raise ValueError(
                f"rate {rate} must be a positive finite number, {smallest:.3g} to {largest:.3g}"
            )
    for name, (low, high) in _LIMITS.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, got {value}")
    if config.steps % config.stride:
        raise ValueError(f"steps {config.steps} must be a multiple of stride {config.stride}")
    if config.model not in _DEFAULT_WIDTH:
        raise ValueError(f"unknown model '{config.model}'; choose {' or '.join(_DEFAULT_WIDTH)}")


def _run(
    config: Config,
    rules: Sequence[str],
    rate_axes: dict[str, Sequence[float]],
    experiment: str,
    options: dict[str, Any],
) -> "xr.Dataset":
    """Sweep rules x rates x seeds; the options are those of `sweep.run`: out, callbacks ..."""
    check(config)
    data = datasets.load(config.data)
    if config.model == "vgg" and data.train_x.ndim != 4:
        raise ValueError(
            f"vgg needs images of shape (height, width, channels), '{config.data}' has examples of "
            f"shape {data.train_x.shape[1:]}; use the model mlp"
        )
    groups = functools.cache(lambda normalised: find_groups(config, data, normalised))

    def make(rule: str) -> train.Run:
        return setting_run(config, data, rule, groups(SETTINGS[rule].normalised))

    grid = {"rule": rules, **rate_axes, "seed": range(config.seeds)}
    return sweep.run(
        make,
        grid,
        steps=config.steps,
        executor=config.executor,
        config={"experiment": experiment, **dataclasses.asdict(config)},
        labels={
            "setting": ("rule", [SETTINGS[rule].number for rule in rules]),
            "title": ("rule", [SETTINGS[rule].title for rule in rules]),
        },
        attrs={"experiment": experiment},
        **options,
    )


def setting_run(config: Config, data: datasets.Data, rule: str, groups: gr.Groups) -> train.Run:
    """The run of one setting: its network, its initialisation and its rule."""
    setting = SETTINGS[rule]
    model = network(config, data.classes, setting.normalised)
    first, _ = datasets.batch(data, jax.random.key(0), 0, config.batch)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        if setting.data_init:
            return models.data_dependent(model, key, first), {}
        return initial(model, key, first)

    return train.make_run(
        init=init,
        loss=functools.partial(cross_entropy, model),
        batch=functools.partial(datasets.batch, data, size=config.batch),
        rule=functools.partial(_sgd, groups, setting.projected),
        groups=groups.whole(),
        evaluate=functools.partial(_evaluate, model, data, config.batch),
        stride=config.stride,
    )


def find_groups(config: Config, data: datasets.Data, normalised: bool) -> gr.Groups:
    """The scale-invariant groups of a network: proven, then attacked with numbers.

    Raises:
      RuntimeError: the numbers refute the proof.
    """
    model = network(config, data.classes, normalised)
    batch = datasets.batch(data, jax.random.key(0), 0, config.batch)
    params, extra = jax.jit(initial, static_argnums=0)(model, jax.random.key(1), batch[0])
    loss = functools.partial(cross_entropy, model)
    groups = certify.certify(loss, params, extra, batch).groups
    report = invariance.check(groups, loss, params, extra, batch)
    if not report.ok:
        raise RuntimeError(f"the numbers refute the proof; please report this:\n{report}")
    return groups


def initial(model: models.MLP | models.VGG, key: Array, x: Array) -> tuple[PyTree, PyTree]:
    """Parameters, and what the model keeps besides (running moments)."""
    variables = dict(model.init(key, x, train=True))
    return variables.pop("params"), variables


def network(config: Config, classes: int, normalised: bool) -> models.MLP | models.VGG:
    """The network of a config, with BatchNorm or with no normalisation."""
    norm = models.BatchNorm if normalised else None
    width = config.width or _DEFAULT_WIDTH[config.model]
    if config.model == "mlp":
        return models.MLP((width, width), classes, norm)
    return models.VGG(classes, width, norm)


def cross_entropy(
    model: models.MLP | models.VGG, params: PyTree, extra: PyTree, batch: tuple[Array, Array]
) -> tuple[Array, PyTree]:
    """Mean cross-entropy on a batch in training mode, and the updated running moments."""
    x, y = batch
    variables = {"params": params, **extra}
    logits, extra = model.apply(variables, x, train=True, mutable=list(extra))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), extra


def _sgd(groups: gr.Groups, projected: bool, rates: train.Rates) -> optax.GradientTransformation:
    plain = transforms.by_group(
        groups, invariant=optax.sgd(rates.invariant), rest=optax.sgd(rates.rest)
    )
    return optax.chain(plain, transforms.keep_norm(groups)) if projected else plain


def _evaluate(
    model: models.MLP | models.VGG,
    data: datasets.Data,
    size: int,
    params: PyTree,
    extra: PyTree,
) -> dict[str, Array]:
    """The loss that SGD minimises, the mean over minibatches of the training set; test accuracy."""
    batches = len(data.train_y) // size

    def chunked(array: Array) -> Array:
        return array[: batches * size].reshape(batches, size, *array.shape[1:])

    train_batches = (chunked(data.train_x), chunked(data.train_y))
    losses = jax.lax.map(lambda b: cross_entropy(model, params, extra, b)[0], train_batches)

    def predicted(x: Array) -> Array:
        return model.apply({"params": params, **extra}, x[None], train=False)[0].argmax()

    labels = jax.lax.map(predicted, data.test_x, batch_size=size)
    return {"final_loss": jnp.mean(losses), "test_accuracy": jnp.mean(labels == data.test_y)}
