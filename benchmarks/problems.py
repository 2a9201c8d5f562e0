"""What is trained: networks with BatchNorm on synthetic data, and the same networks in PyTorch.

`step` is what one would write by hand, with flax's layers and pooling; `run` is what a sweep takes,
with those of this package.  Both, and the network in PyTorch, start at the same parameters and see
the same batches, so that their losses can be compared.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnrate import certify, conv, models, train
from bnrate.groups import Groups

CLASSES, EXAMPLES = 10, 512
Rule = Callable[[Groups, train.Rates], optax.GradientTransformation]


class Shape(NamedTuple):
    """Of an input; channels of the convolutions 3x3 (0: pooling); widths of the dense layers."""

    input: tuple[int, ...]
    features: tuple[int, ...]
    widths: tuple[int, ...]


def vgg(width: int) -> Shape:
    """The shape of `bnrate.models.VGG`."""
    stages = (1, 1, 0, 2, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
    return Shape((32, 32, 3), tuple(width * i for i in stages), (8 * width, CLASSES))


SHAPES = {
    "mlp": Shape((64,), (), (256, 256, CLASSES)),
    "convnet": Shape((32, 32, 3), (32, 32, 0, 64, 64, 0), (CLASSES,)),
    "vgg8": vgg(8),
    "vgg16": vgg(16),
    "tiny": Shape((8, 8, 3), (4, 0), (CLASSES,)),
}


class Network(nn.Module):
    """The network of a shape: BatchNorm after every layer, and ReLU but for the last."""

    shape: Shape
    conv: Callable[..., nn.Module] = nn.Conv
    dense: Callable[..., nn.Module] = nn.Dense
    pool: Callable[..., jax.Array] = functools.partial(
        nn.max_pool, window_shape=(2, 2), strides=(2, 2)
    )

    @nn.compact
    def __call__(self, x, *, train):
        """Logits."""
        init, convs = nn.initializers.glorot_uniform(), len(self.shape.features)
        count = 0
        for i, width in enumerate((*self.shape.features, *self.shape.widths)):
            if width == 0:
                x = self.pool(x)
                continue
            options = {"use_bias": False, "kernel_init": init, "name": f"layer{count}"}
            if i < convs:
                x = self.conv(width, kernel_size=(3, 3), **options)(x)
            else:
                x = self.dense(width, **options)(x.reshape(x.shape[0], -1))
            x = models.BatchNorm(name=f"norm{count}")(x, train=train)
            x = nn.relu(x) if i < convs + len(self.shape.widths) - 1 else x
            count += 1
        return x


class Problem(NamedTuple):
    """A network, data, and the number of examples in a batch."""

    shape: Shape
    x: jax.Array
    y: jax.Array
    batch: int

    @property
    def flops(self) -> int:
        """Of the products in one step: 2 for each multiply-add, forward and for both gradients.

        The first layer needs no gradient of its input.  Everything else is not counted.
        """
        layers = _multiply_adds(self.shape)
        return 2 * self.batch * (3 * sum(layers) - layers[0])

    def run(self, stride: int, measured: bool = False, rule: Rule | None = None) -> train.Run:
        """A run as a sweep takes it, with plain SGD if no rule is given.

        A point has a rate and a seed.  `measured`: each record has what happens on the sphere of
        each group that is proved.
        """
        network = Network(self.shape, conv.Conv, conv.Dense, models.max_pool)

        def init(key):
            variables = dict(network.init(key, self.x[: self.batch], train=True))
            return variables.pop("params"), variables

        loss = functools.partial(_loss, network)
        some = self.x[: self.batch], self.y[: self.batch]
        groups = Groups()
        if measured or rule:
            groups = certify.certify(loss, *init(jax.random.key(0)), some).groups
        return train.make_run(
            init=init,
            loss=loss,
            batch=self.draw,
            rule=functools.partial(rule or _sgd, groups),
            groups=groups.whole() if measured else Groups(),
            stride=stride,
        )

    def draw(self, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The batch of a step."""
        chosen = self.chosen(key, step)
        return self.x[chosen], self.y[chosen]

    def chosen(self, key: jax.Array, step: jax.Array | int) -> jax.Array:
        """Which examples are the batch of a step."""
        return jax.random.randint(jax.random.fold_in(key, step), (self.batch,), 0, len(self.y))

    def start(self) -> tuple[Any, jax.Array]:
        """The state before the first step, (params, extra, step), and the key of the batches."""
        point = {"rate": jnp.float32(0), "seed": jnp.int32(0)}
        state = jax.jit(self.run(1).init)(point)
        return (state.params, state.extra, jnp.int32(0)), state.key

    def step(self, key: jax.Array, rate: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """One step written by hand, and the loss before it."""
        params, extra, t = state
        loss = jax.value_and_grad(functools.partial(_loss, Network(self.shape)), has_aux=True)
        (value, extra), grads = loss(params, extra, self.draw(key, t))
        params = jax.tree.map(lambda w, g: w - rate * g, params, grads)
        return (params, extra, t + 1), value


def problem(name: str, batch: int) -> Problem:
    """One of `SHAPES`, with normal inputs and labels that depend on them."""
    shape = SHAPES[name]
    random = np.random.default_rng(0)
    x = random.standard_normal((EXAMPLES, *shape.input), np.float32)
    teacher = random.standard_normal((math.prod(shape.input), CLASSES))
    y = (x.reshape(EXAMPLES, -1) @ teacher).argmax(1)
    return Problem(shape, jnp.asarray(x), jnp.asarray(y, jnp.int32), batch)


def rates(runs: int) -> np.ndarray:
    """As many rates as runs; small, so that rounding does not grow into other trajectories."""
    return np.geomspace(1e-3, 1e-1, runs, dtype=np.float32)


def _sgd(groups: Groups, rates: train.Rates) -> optax.GradientTransformation:
    return optax.sgd(rates.rest)


def _loss(network, params, extra, batch):
    x, y = batch
    logits, extra = network.apply(
        {"params": params, **extra}, x, train=True, mutable=["batch_stats"]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), dict(extra)


def _multiply_adds(shape: Shape) -> list[int]:
    """Of each layer for one example, forward."""
    *space, channels = shape.input
    layers = []
    for width in shape.features:
        if width:
            layers.append(math.prod(space) * 9 * channels * width)
        channels, space = width or channels, space if width else [n // 2 for n in space]
    sizes = (math.prod(space) * channels, *shape.widths)
    return layers + [n * m for n, m in itertools.pairwise(sizes)]
