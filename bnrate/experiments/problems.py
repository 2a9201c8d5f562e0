"""What the experiments are run on: a data set, a network, its groups, how a run ends."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from bnrate import certify, invariance, models, sweep, train
from bnrate import data as datasets
from bnrate import groups as gr

if TYPE_CHECKING:
    import xarray as xr

Network = models.MLP | models.VGG

_DEFAULT_WIDTH = {"mlp": 128, "vgg": 64}
_DEFAULT_BATCH = 128
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
      width: Of the hidden layers (mlp) or of the first stage (vgg); the experiment's own if not
        given (128 or 64).
      rates: Learning rates to sweep; the experiment's own if not given.
      seeds: Number of seeds per rate; the experiment's own if not given.
      steps: Of each run; the experiment's own if not given.
      batch: Examples per step; the experiment's own if not given (128).
      stride: Record every so many steps.
      executor: map takes the runs one after the other on each device, vmap all together that fit in
        the memory; auto measures which is faster.
    """

    data: str = "digits"
    model: Literal["mlp", "vgg"] = "mlp"
    width: int | None = None
    rates: tuple[float, ...] | None = None
    seeds: int | None = None
    steps: int | None = None
    batch: int | None = None
    stride: int = 10
    executor: Literal["auto", "map", "vmap"] = "auto"


class Extent(NamedTuple):
    """How far an experiment goes: what is swept, and for how long."""

    rates: tuple[float, ...]
    seeds: int
    steps: int


def extent(config: Config, default: Extent) -> Extent:
    """What a config asks for, and where it says nothing the experiment's own.

    Every experiment begins with this: it refuses a config that cannot be run.

    Raises:
      ValueError: names the value and the legal range.
    """
    given = {name: getattr(config, name) for name in Extent._fields}
    asked = default._replace(**{name: value for name, value in given.items() if value is not None})
    if not asked.rates:
        raise ValueError("rates are empty; give one or more positive numbers")
    smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    for rate in asked.rates:
        if not smallest <= rate <= largest:
            raise ValueError(
                f"rate {rate} must be a positive finite number, {smallest:.3g} to {largest:.3g}"
            )
    for name, value in {**dataclasses.asdict(config), **asked._asdict()}.items():
        low, high = _LIMITS.get(name, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, got {value}")
    if asked.steps % config.stride:
        raise ValueError(f"steps {asked.steps} must be a multiple of stride {config.stride}")
    if config.model not in _DEFAULT_WIDTH:
        raise ValueError(f"unknown model '{config.model}'; choose {' or '.join(_DEFAULT_WIDTH)}")
    return asked


def only(experiment: str, config: Config, *used: str) -> None:
    """Refuse a config that sets what an experiment has no use for.

    Raises:
      ValueError: names the setting.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in used and value != field.default:
            raise ValueError(
                f"{experiment} has no use for {field.name} {value}; it takes {', '.join(used)}"
            )


def load(config: Config) -> datasets.Data:
    """The data of a config.

    Raises:
      ValueError: there is no such data, or the model cannot take it.
    """
    data = datasets.load(config.data)
    if config.model == "vgg" and data.train_x.ndim != 4:
        raise ValueError(
            f"vgg needs images of shape (height, width, channels), '{config.data}' has examples of "
            f"shape {data.train_x.shape[1:]}; use the model mlp"
        )
    return data


def find_groups(
    config: Config,
    data: datasets.Data,
    normalised: bool,
    activation: Callable[[Array], Array] = nn.relu,
) -> gr.Groups:
    """The scale-invariant groups of a network: proven, then attacked with numbers.

    Raises:
      RuntimeError: the numbers refute the proof.
    """
    model = network(config, data.classes, normalised, activation)
    batch = first_batch(config, data)
    params, extra = jax.jit(initial, static_argnums=0)(model, jax.random.key(1), batch[0])
    loss = functools.partial(cross_entropy, model)
    groups = certify.certify(loss, params, extra, batch).groups
    report = invariance.check(groups, loss, params, extra, batch)
    if not report.ok:
        raise RuntimeError(f"the numbers refute the proof; please report this:\n{report}")
    return groups


def first_batch(config: Config, data: datasets.Data) -> tuple[Array, Array]:
    """A batch to initialise with, and to find groups on."""
    return datasets.batch(data, jax.random.key(0), 0, config.batch or _DEFAULT_BATCH)


def run_of(
    config: Config,
    data: datasets.Data,
    model: Network,
    rule: Callable[[train.Rates], optax.GradientTransformation],
    groups: gr.Groups,
    **changes: Any,
) -> train.Run:
    """The run of one rule on one network.

    Args:
      config: of the experiment.
      data: to learn.
      model: the network.
      rule: rates -> optax transformation.
      groups: to be measured, each as a whole.
      **changes: other arguments of `train.make_run`.
    """
    first, size = first_batch(config, data)[0], config.batch or _DEFAULT_BATCH
    usual: dict[str, Any] = {
        "init": lambda key: initial(model, key, first),
        "loss": functools.partial(cross_entropy, model),
        "batch": functools.partial(datasets.batch, data, size=size),
        "evaluate": functools.partial(_evaluate, model, data, size),
        "groups": groups.whole(),
        "stride": config.stride,
    }
    return train.make_run(rule=rule, **{**usual, **changes})


def swept(
    experiment: str,
    config: Config,
    asked: Extent,
    make: Callable[[str], train.Run],
    rules: Mapping[str, Mapping[str, Any]],
    rate_axes: Mapping[str, Sequence[float]],
    options: Mapping[str, Any],
    labels: Mapping[str, tuple[str, Sequence[Any]]] = {},
) -> "xr.Dataset":
    """Sweep rules x rates x seeds.

    Args:
      experiment: its name.
      config: what it runs on.
      asked: how far it goes.
      make: rule -> run.
      rules: the labels of each rule, such as its title.
      rate_axes: the axes of rates.
      options: those of `sweep.run`: out, callbacks ...
      labels: of other axes, name -> (dimension, values).
    """
    kinds = next(iter(rules.values()))
    of_rules = {kind: ("rule", [rule[kind] for rule in rules.values()]) for kind in kinds}
    return sweep.run(
        make,
        {"rule": tuple(rules), **rate_axes, "seed": range(asked.seeds)},
        steps=asked.steps,
        executor=config.executor,
        config=settings(experiment, config, asked),
        labels={**of_rules, **labels},
        attrs={"experiment": experiment},
        **options,
    )


def settings(experiment: str, config: Config, asked: Extent) -> dict[str, Any]:
    """What the numbers of an experiment depend on."""
    return {"experiment": experiment, **dataclasses.asdict(config), **asked._asdict()}


def initial(model: Network, key: Array, x: Array) -> tuple[PyTree, PyTree]:
    """Parameters, and what the model keeps besides (running moments)."""
    variables = dict(model.init(key, x, train=True))
    return variables.pop("params"), variables


def network(
    config: Config,
    classes: int,
    normalised: bool = True,
    activation: Callable[[Array], Array] = nn.relu,
) -> Network:
    """The network of a config, with BatchNorm or with no normalisation."""
    norm = models.BatchNorm if normalised else None
    width = config.width or _DEFAULT_WIDTH[config.model]
    if config.model == "mlp":
        return models.MLP((width, width), classes, norm, activation)
    return models.VGG(classes, width, norm, activation)


def cross_entropy(
    model: Network, params: PyTree, extra: PyTree, batch: tuple[Array, Array]
) -> tuple[Array, PyTree]:
    """Mean cross-entropy on a batch in training mode, and the updated running moments."""
    x, y = batch
    variables = {"params": params, **extra}
    logits, extra = model.apply(variables, x, train=True, mutable=list(extra))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), extra


def _evaluate(
    model: Network, data: datasets.Data, size: int, params: PyTree, extra: PyTree
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
