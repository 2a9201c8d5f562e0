"""The zoo in nnx, equinox and haiku: the same table, with the paths that each of them gives."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import zoo_models as m
from flax import nnx
from zoo import Entry, each


def equinox(layers, x):
    """Of `layers(eps, key)`, in sequence; the running statistics are those of one batch before."""

    def build(eps):
        make = eqx.nn.make_with_state(eqx.nn.Sequential)
        model, state = make(layers(eps, jax.random.key(0)))
        params, static = eqx.partition(model, eqx.is_inexact_array)
        params = m.filled(params)

        def apply(p, x, state):
            net = eqx.combine(p, static)
            return jax.vmap(net, (0, None), (0, None), axis_name="batch")(x, state)

        _, state = jax.jit(apply)(params, m.filled(x, seed=3), state)
        return m.problem(lambda p, x: apply(p, x, state)[0], params, m.filled(x, seed=1))

    return build


def equinox_cnn(mode):
    return lambda eps, key: [
        eqx.nn.Conv2d(2, 4, 3, key=key),
        eqx.nn.BatchNorm(4, "batch", eps, mode=mode),
        eqx.nn.Lambda(lambda h: jnp.tanh(h).mean((1, 2))),
        eqx.nn.Linear(4, 3, key=key),
    ]


def equinox_mlp(eps, key):
    return [
        eqx.nn.Linear(5, 6, use_bias=False, key=key),
        eqx.nn.LayerNorm(6, eps),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Linear(6, 6, key=key),
        eqx.nn.RMSNorm(6, eps),
        eqx.nn.MLP(6, 3, 4, 1, key=key),
    ]


def haiku(net, x):
    def build(eps):
        model, data = hk.transform_with_state(lambda x: net(x, eps)), m.filled(x, seed=1)
        params, state = m.initialised(model.init, data, seed=4)
        return m.problem(lambda p, x: model.apply(p, state, None, x)[0], params, data)

    return build


def haiku_cnn(x, eps):
    for width, with_bias in ((4, True), (5, False)):
        x = hk.Conv2D(width, 3, with_bias=with_bias)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, eps)(x, is_training=True))
    return hk.nets.MLP([4, 3])(x.mean((1, 2)))


def haiku_attention(x, eps):
    x = hk.Linear(6, with_bias=False, name="emb")(x)
    h = hk.LayerNorm(-1, True, True, eps)(x)
    x = x + hk.MultiHeadAttention(2, 3, w_init=hk.initializers.Constant(1), name="attn")(h, h, h)
    return hk.Linear(3, name="head")(hk.RMSNorm(-1, eps)(x))


class WeightNorm(nnx.Module):
    """The layer under nnx.WeightNorm; its scales are no nnx.Param: they are not trained."""

    def __init__(self, eps, rngs):
        self.norm = nnx.WeightNorm(nnx.Linear(5, 4, rngs=rngs), epsilon=eps, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(x)))


IMAGE = (3, 4, 4, 2)

FRAMEWORKS: dict[str, Entry] = {
    "nnx CNN, State": Entry(
        m.from_nnx(m.NnxCNN, IMAGE, pure=False), **each(("c1/kernel", "c2/kernel"), 3),
        no_effect=("c1/bias",),
        joint=(frozenset({"b1/scale", "b1/bias"}),), dims=(5, 17),
    ),
    "nnx WeightNorm": Entry(
        m.from_nnx(WeightNorm, (8, 5)), **each(("norm/layer_instance/kernel",), 1), dims=(1, 3)
    ),
    "equinox CNN, mode batch": Entry(
        equinox(equinox_cnn("batch"), (5, 2, 4, 4)), **each(("layers/0/weight",), 0),
        no_effect=("layers/0/bias",), dims=(2, 6),
    ),
    "equinox CNN, mode ema": Entry(equinox(equinox_cnn("ema"), (5, 2, 4, 4))),
    "equinox MLP": Entry(
        equinox(equinox_mlp, (8, 5)), ("layers/0/weight",),
        joint=(
            frozenset({"layers/3/weight", "layers/3/bias"}),
            frozenset({"layers/1/weight", "layers/1/bias", "layers/3/bias"}),
        ),
        dims=(5, 13),
    ),
    "haiku CNN": Entry(
        haiku(haiku_cnn, IMAGE), **each(("conv2_d/w", "conv2_d_1/w"), 3), no_effect=("conv2_d/b",),
        joint=(frozenset({"batch_norm/scale", "batch_norm/offset"}),), dims=(6, 20),
    ),
    "haiku attention": Entry(
        haiku(haiku_attention, (3, 4, 5)), no_effect=("attn/key/b",),
        joint=(
            frozenset({"attn/linear/w", "attn/linear/b", "emb/w"}),
            frozenset({"attn/value/w", "attn/value/b", "attn/linear/b", "emb/w"}),
        ),
        dims=(6, 25),
    ),
}  # fmt: skip

if not hasattr(nnx, "WeightNorm"):  # flax 0.12.0
    del FRAMEWORKS["nnx WeightNorm"]
