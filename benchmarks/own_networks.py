"""Small networks of our own with the structure of large ones, for what no package ships.

Synchronised BatchNorm, scanned stacks, ensembles, mixtures of experts, recurrent cells.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from networks import KEY, cross_entropy, floats, integers, next_token


class Bottleneck(nn.Module):
    """Three convolutions, each under BatchNorm, and the residual."""

    filters: int
    strides: tuple[int, int]
    conv: functools.partial
    norm: functools.partial

    @nn.compact
    def __call__(self, x):  # noqa: D102
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm()(self.conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(
                self.conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x)
            )
        return nn.relu(x + y)


class SynchronisedResNet(nn.Module):
    """A ResNet whose BatchNorms take the statistics of all devices."""

    stages: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    width: int = 64

    @nn.compact
    def __call__(self, x):  # noqa: D102
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=False, dtype=self.dtype, axis_name="batch"
        )
        x = conv(self.width, (7, 7), (2, 2), name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                strides = (2, 2) if i and not j else (1, 1)
                x = Bottleneck(self.width * 2**i, strides, conv, norm)(x)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


def synchronised_resnet(
    stages=(3, 4, 6, 3), dtype="float32", side=224, devices=4, batch=2, **options
):
    net = SynchronisedResNet(stages, jnp.dtype(dtype), **options)

    def on_device(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        return net.apply(variables, x, mutable=["batch_stats"])

    def loss(params, stats, x, y):
        on_all = jax.vmap(on_device, in_axes=(None, None, 0), axis_name="batch")
        logits, new = on_all(params, stats, x.astype(dtype))
        return cross_entropy(logits, y), new

    images = floats(devices, batch, side, side, 3)
    init = jax.vmap(net.init, in_axes=(None, 0), axis_name="batch", out_axes=None)
    variables = jax.eval_shape(init, KEY, images)
    params, stats = variables["params"], variables["batch_stats"]
    return loss, params, stats, images, integers(devices, batch)


class Block(nn.Module):
    """A pre-norm block with QK-norm."""

    heads: int

    @nn.compact
    def __call__(self, x, _=None):  # noqa: D102
        width = x.shape[-1]
        project = functools.partial(
            nn.DenseGeneral, (self.heads, width // self.heads), use_bias=False
        )
        h = nn.RMSNorm(name="norm1")(x)
        q = nn.RMSNorm(name="norm_q")(project(name="q")(h))
        k = nn.RMSNorm(name="norm_k")(project(name="k")(h))
        out = nn.dot_product_attention(q, k, project(name="v")(h))
        x = x + nn.DenseGeneral(width, (-2, -1), use_bias=False, name="o")(out)
        h = nn.gelu(nn.Dense(4 * width, name="up")(nn.RMSNorm(name="norm2")(x)))
        return x + nn.Dense(width, name="down")(h), None


class Transformer(nn.Module):
    """Blocks, scanned or one by one, between an embedding and a head."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    scanned: bool

    @nn.compact
    def __call__(self, tokens):  # noqa: D102
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        if self.scanned:
            stack = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True},
                length=self.layers,
            )  # fmt: skip
            x, _ = stack(self.heads, name="layers")(x, None)
        else:
            for i in range(self.layers):
                x, _ = Block(self.heads, name=f"layer_{i}")(x)
        return nn.Dense(self.vocabulary, use_bias=False)(nn.RMSNorm()(x))


def transformer(scanned, layers=12, heads=12, width=768, vocabulary=32000, batch=4, length=128):
    net = Transformer(layers, heads, width, vocabulary, scanned)
    tokens = integers(batch, length)

    def loss(params, tokens):
        return next_token(net.apply({"params": params}, tokens), tokens)

    return loss, jax.eval_shape(net.init, KEY, tokens)["params"], tokens


class Layer(nnx.Module):
    """A pre-norm MLP."""

    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):  # noqa: D102
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


def nnx_stack(layers=12, width=256, classes=10, batch=32):
    """Layers made by nnx.vmap and run by nnx.scan."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=layers)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def made(rngs):
                return Layer(width, rngs)

            self.embed, self.layers = nnx.Linear(width, width, rngs=rngs), made(rngs)
            self.norm = nnx.LayerNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, classes, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def forward(x, layer):
                return layer(x)

            return self.head(self.norm(forward(self.embed(x), self.layers)))

    graph, params, others = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param, ...)

    def loss(params, others, x, y):
        return cross_entropy(nnx.merge(graph, params, others)(x), y)

    return loss, params, others, floats(batch, width), integers(batch)


class Normalised(eqx.Module):
    """Two layers with a LayerNorm between."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    second: eqx.nn.Linear

    def __init__(self, width, key):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(width, width, key=one)
        self.norm = eqx.nn.LayerNorm(width)
        self.second = eqx.nn.Linear(width, width, key=two)

    def __call__(self, x):  # noqa: D102
        return self.second(jax.nn.relu(self.norm(self.first(x))))


def equinox_stack(ensemble, members=8, width=256, batch=64):
    """Many networks stacked by filter_vmap: an ensemble, or one behind the other."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    made = eqx.filter_vmap(lambda key: Normalised(width, key))
    nets = eqx.filter_eval_shape(made, keys)
    params, static = eqx.partition(nets, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(params, x, y):
        if ensemble:
            nets = eqx.combine(params, static)
            out = eqx.filter_vmap(lambda net: jax.vmap(net)(x))(nets).mean(0)
        else:
            out, _ = jax.lax.scan(
                lambda h, p: (h + jax.vmap(eqx.combine(p, static))(h), None), x, params
            )
        return jnp.mean((out - y) ** 2)

    return loss, params, floats(batch, width), floats(batch, width)


def experts(dispatch, experts=8, width=256, tokens=512, layers=4):
    """Pre-norm layers of experts: the router chooses one of them for each token."""
    shapes = {
        f"layer{i}": {
            "router": floats(width, experts),
            "up": floats(experts, width, 2 * width),
            "down": floats(experts, 2 * width, width),
        }
        for i in range(layers)
    }
    params = {"embed": floats(width, width), "head": floats(width, 10), **shapes}

    def norm(h):
        return h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)

    def layer(p, h):
        gates = jax.nn.softmax(h @ p["router"])
        chosen = jnp.argmax(gates, -1)
        if dispatch == "ragged":
            order = jnp.argsort(chosen)
            sizes = jnp.bincount(chosen, length=experts)
            inside = jax.nn.relu(jax.lax.ragged_dot(h[order], p["up"], sizes))
            out = jax.lax.ragged_dot(inside, p["down"], sizes)[jnp.argsort(order)]
        else:
            mask = jax.nn.one_hot(chosen, experts)
            inside = jax.nn.relu(jnp.einsum("te,td,edf->etf", mask, h, p["up"]))
            out = jnp.einsum("etf,efd->td", inside, p["down"])
        return out * jnp.take_along_axis(gates, chosen[:, None], 1)

    def loss(params, x, y):
        h = x @ params["embed"]
        for i in range(layers):
            h = h + layer(params[f"layer{i}"], norm(h))
        return cross_entropy(norm(h) @ params["head"], y)

    return loss, params, floats(tokens, width), integers(tokens)


def recurrent(cell, width=256, batch=16, length=64):
    """A projection under LayerNorm, a recurrent cell scanned over time, LayerNorm, a head."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.Dense(width)(x))
            x = nn.RNN(getattr(nn, cell)(width))(x)
            return nn.Dense(10)(nn.LayerNorm()(x[:, -1]))

    net, x = Net(), floats(batch, length, width)

    def loss(params, x, y):
        return cross_entropy(net.apply({"params": params}, x), y)

    return loss, jax.eval_shape(net.init, KEY, x)["params"], x, integers(batch)
