"""What is certified: a network of this package, or a loss and its arguments named on the way in.

Nothing is allocated, of the parameters and the batch there are only shapes; unless values are asked
for, to try with numbers.
"""

import dataclasses
import difflib
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import optax
import tyro
from jaxtyping import PyTree

from bnrate import models
from bnrate.models.layers import Norm

Model = Literal["mlp", "vgg", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Normalisation = Literal["batch", "layer", "group", "instance", "rms", "none"]

_BATCH = 8


def optional(metavar: str) -> Any:
    """An argument whose default need not be shown: nothing."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Target:
    """A loss: one of your own, or that of a network of this package.

    Attributes:
      loss: A function of your own, MODULE:NAME; modules of this folder come first.
      params: What it is called with, MODULE:NAME: the parameters, or a tuple (params, *others);
        or a function without arguments that returns one of these (only shapes are computed).
        For example train:start, with def start(): return init_params(), jnp.zeros((8, 3))
      model: A network of this package, with cross-entropy, in training: mlp, vgg, resnet18,
        resnet34, resnet50, resnet101 or resnet152.
      norm: Its normalisation: batch (if not given), layer, group, instance, rms or none.
    """

    loss: Annotated[str | None, tyro.conf.Positional, optional("[LOSS]")] = None
    params: Annotated[str | None, optional("MODULE:NAME")] = None
    model: Annotated[Model | None, optional("NAME")] = None
    norm: Annotated[Normalisation | None, optional("NAME")] = None


class Program(NamedTuple):
    """A loss, if one was named, and what it is called with."""

    loss: Callable[..., Any] | None
    params: PyTree
    args: tuple[Any, ...]


def program(target: Target, values: bool = False) -> Program:
    """The loss, and the shapes of its arguments, or their values.

    Raises:
      ValueError: not exactly one loss was named; it or its arguments are not where they should be,
        or not what.
    """
    if target.model is not None:
        if target.loss is not None or target.params is not None:
            raise ValueError("give --model, or a loss and --params of your own, not both")
        return _network(target.model, target.norm or "batch", values)
    if target.norm is not None:
        raise ValueError("--norm is that of a --model, and there is none")
    if target.params is None:
        raise ValueError("name a --model; or a loss of your own and, with --params, its parameters")
    loss = None if target.loss is None else _named(target.loss)
    if not (loss is None or callable(loss)):
        raise ValueError(f"'{target.loss}' is no function, but of type {type(loss).__name__}")
    given = _given(target.params, values)
    params, *args = given if type(given) is tuple and given else (given,)
    return Program(loss, params, tuple(args))


def _given(name: str, values: bool) -> PyTree:
    """What a function without arguments returns, or its shapes; or a value as it is."""
    value = _named(name)
    if not callable(value):
        return value
    look = "" if values else ", and not look at their values"
    try:
        return value() if values else jax.eval_shape(value)
    except TypeError as error:
        raise ValueError(
            f"'{name}' must need no arguments, return arrays{look} (or be the arguments "
            f"themselves): {str(error).splitlines()[0]}"
        ) from error


def _named(reference: str) -> Any:
    """The value of MODULE:NAME."""
    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"expected MODULE:NAME, as in train:loss, got '{reference}'")
    found = vars(_imported(module))
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"module '{module}' has no '{name}'{hint}")
    return found[name]


def _imported(module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module '{error.name}', here or installed") from error
        raise ValueError(f"module '{module}' needs another: {error}") from error


_NORMS: dict[str, Norm | None] = {
    "batch": models.BatchNorm,
    "layer": models.per_example(nn.LayerNorm),
    "group": lambda name: lambda x, train: nn.GroupNorm(_groups(x.shape[-1]), name=name)(x),
    "instance": models.per_example(nn.InstanceNorm),
    "rms": models.per_example(nn.RMSNorm),
    "none": None,
}


def _groups(channels: int) -> int:
    """32, or as many as divide the channels."""
    return math.gcd(32, channels)


def _network(name: Model, norm: Normalisation, values: bool) -> Program:
    """The cross-entropy of a network in training, with the running moments that it updates."""
    if norm == "instance" and not name.startswith("resnet"):
        raise ValueError(
            f"{name} normalises dense layers, where InstanceNorm has nothing to average"
        )
    match name:
        case "mlp":
            model, image = models.MLP((512, 512), 10), (28, 28, 1)
        case "vgg":
            model, image = models.VGG(10), (32, 32, 3)
        case _:
            model, image = models.ResNet(1000, int(name.removeprefix("resnet"))), (224, 224, 3)
    model = model.clone(norm=_NORMS[norm])

    def loss(params: PyTree, state: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        variables = {"params": params, **state}
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def arguments() -> tuple[PyTree, ...]:
        x = jax.random.normal(jax.random.key(1), (_BATCH, *image))
        labels = jax.random.randint(jax.random.key(2), (_BATCH,), 0, 10)
        state = dict(model.init(jax.random.key(0), x, train=True))
        return state.pop("params"), state, x, labels

    params, *args = arguments() if values else jax.eval_shape(arguments)
    return Program(loss, params, tuple(args))
