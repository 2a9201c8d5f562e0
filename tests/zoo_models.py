"""Networks for the table of `zoo`: `net(p, x, eps)` by hand, `net(x, eps)` with linen layers.

`by_hand` and `linen` make builders of them: `build(eps)` is a loss with parameters and data, all
standard normal and of the default float dtype; `eps` is the epsilon of the normalisations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from bnrate import models, normalize


class Problem(NamedTuple):
    loss: Callable[..., Any]
    params: Any
    args: tuple


def filled(shapes, seed=0):
    """A tree of shapes, or of arrays, as standard normals."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(getattr(leaf, "shape", leaf))),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple) and all(isinstance(n, int) for n in leaf),
    )


def initialised(init, x, seed=0):
    """Parameters as `init(key, x)` makes them, but filled, and what else it makes as it is.

    Only the latter is computed: initial values take longer to compile than a proof takes.
    """
    key = jax.random.key(0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params, others = jax.eval_shape(init, key, x)
        others = jax.jit(lambda: init(key, x)[1])() if jax.tree.leaves(others) else others
    return filled(params, seed), jax.tree.map(lambda leaf: leaf.astype(float), others)


def problem(forward, params, x, *more):
    """Mean squared error of `forward(params, x, *more)`; libraries broadcast and promote in it."""

    def relaxed(*args):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return forward(*args)

    y = filled(jax.eval_shape(relaxed, params, x, *more), seed=2)
    loss = lambda p, x, y, *more: jnp.mean((relaxed(p, x, *more) - y) ** 2)  # noqa: E731
    return Problem(loss, params, (x, y, *more))


def by_hand(net, x=(8, 5), **shapes):
    def build(eps):
        return problem(lambda p, x: net(p, x, eps), filled(shapes), filled(x, seed=1))

    return build


class Net(nn.Module):
    body: Callable
    eps: float

    @nn.compact
    def __call__(self, x):
        return self.body(x, self.eps)


def linen(net, x=(8, 5)):
    def build(eps):
        model, data = Net(net, eps), filled(x, seed=1)

        def init(key, x):
            state = dict(model.init(key, x))
            return state.pop("params"), state

        params, state = initialised(init, data)

        def forward(p, x):
            return model.apply({"params": p, **state}, x, mutable=list(state))[0]

        return problem(forward, params, data)

    return build


def transformed(build, transform):
    """The same problem with another loss: `transform(loss)`."""
    return lambda eps: (lambda p: p._replace(loss=transform(p.loss)))(build(eps))


def penalised(*names):
    def transform(loss):
        return lambda p, *args: loss(p, *args) + sum(jnp.sum(p[n] ** 2) for n in names or p)

    return transform


def with_aux(loss):
    return lambda p, *args: (loss(p, *args), jax.tree.map(jnp.sum, p))


# Networks by hand


def rms(h, eps, axis=-1):
    return h / jnp.sqrt(jnp.mean(h**2, axis, keepdims=True) + eps)


def standardise(h, eps, axis=0):
    return rms(h - h.mean(axis, keepdims=True), eps, axis)


def bn_mlp(p, x, eps, norm=standardise):
    h = norm(x @ p["w1"] + p["b1"], eps) * p["g"] + p["be"]
    return nn.relu(h) @ p["w2"]


def guarded(h, eps):
    h = h - h.mean(0)
    var = jnp.mean(h**2, 0)
    return jnp.where(var > 0, h / jnp.sqrt(jnp.where(var > 0, var, 1.0) + eps), 0.0)


def own_norm(h, eps):
    return normalize.batch_norm(h, normalize.moments(h), eps=eps)


def plain(p, x, eps, activation):
    h = activation(x @ p["w0"] + p["b0"])
    return activation(h @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def rayleigh(p, x, eps):
    w = p["w"]
    return w @ (x.T @ x) @ w / (w @ w + eps)


def log_rayleigh(p, x, eps):
    w = p["w"]
    return jnp.log(w @ (x.T @ x) @ w) - jnp.log(w @ w)


def cosine(p, x, eps):
    features = nn.relu(nn.relu(x @ p["w1"]) @ p["w2"])
    return rms(features, eps) @ rms(p["W"], eps, axis=0)


def rnn(p, x, eps, activation):
    def step(h, x):
        return activation(h @ p["wh"] + x @ p["wx"]), None

    batch = x.transpose(1, 0, 2)
    return lax.scan(step, jnp.zeros((x.shape[0], len(p["wh"]))), batch)[0] @ p["wo"]


def scanned_layers(p, x, eps):
    return lax.scan(lambda h, u: (jnp.tanh(rms(h @ u, eps)), None), x, p["u"])[0]


def branches(p, x, eps):
    """Of one degree before the normalisation, of any after it; the loop has no gradient."""
    h = lax.cond(x.sum() > 0, lambda h: h, lambda h: -2 * h, x @ p["w"])
    positive = (x > 0).sum().astype(float)
    n = lax.while_loop(lambda n: n < positive, lambda n: 2 * n, 1.0)
    h = standardise(h, 0.0)
    return lax.cond(h[0, 0] > 0, jnp.sin, jnp.tanh, h) * n


def fused_qkv(p, x, eps):
    q, k, v = jnp.split(x @ p["qkv"], 3, -1)
    q, k = rms(q, eps), rms(k, eps)
    return nn.softmax(q @ k.swapaxes(1, 2)) @ v @ p["o"]


def rotary(h):
    half = h.shape[-1] // 2
    angle = jnp.arange(1.0, h.shape[1] + 1)[:, None, None] * 0.3 ** jnp.arange(half)
    a, b = jnp.split(h, 2, -1)
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1
    )


def rotary_attention(p, x, eps):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    q, k = rotary(rms(q, eps) * p["q_scale"]), rotary(rms(k, eps) * p["k_scale"])
    attention = nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    return jnp.einsum("bhqs,bshk,hkd->bqd", attention, v, p["o"])


def one_sided(p, x, eps):
    h = nn.relu(standardise(x @ p["w1"], eps) * p["g"] + p["be"])
    h = standardise(jnp.concatenate([h, x], -1) @ p["w2"], eps)
    return jnp.tanh(h) @ p["head"]


def per_example(p, x, eps, over):
    return over(lambda x: jnp.tanh(rms(x @ p["w"], eps)) @ p["head"])(x)


def standardised_weight(p, x, eps):
    return jnp.tanh(x @ standardise(p["w"], eps)) @ p["head"]


def stopped_norm(p, x, eps):
    return jnp.tanh(x @ (p["w"] / lax.stop_gradient(jnp.sqrt(jnp.sum(p["w"] ** 2) + eps))))


def spectral(p, x, eps):
    """As in spectral normalisation: one step of the power method, not differentiated."""
    v = p["w"].T @ (p["w"] @ jnp.ones(4))
    v = lax.stop_gradient(v / jnp.sqrt(v @ v + eps))
    u = lax.stop_gradient(p["w"] @ v)
    sigma = lax.stop_gradient(jnp.sqrt(u @ u + eps))
    return jnp.tanh(x @ p["w"] / sigma) @ p["head"]


@jax.custom_vjp
def signed_gradient(w):
    return w


signed_gradient.defvjp(lambda w: (w, None), lambda _, g: (jnp.sign(g),))


def backward_rule(p, x, eps):
    return jnp.tanh(standardise(x @ signed_gradient(p["w"]), eps)) @ p["head"]


# Networks of linen layers


def bn(eps, **options):
    return nn.BatchNorm(**{"use_running_average": False, "epsilon": eps, **options})


def cnn(x, eps, bias=True, fast=True, flatten=False):
    for i, width in enumerate((4, 5, 4)):
        x = nn.Conv(width, (3, 3), use_bias=bias)(x)
        x = nn.relu(bn(eps, use_fast_variance=fast)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)) if i == 0 else x
    return nn.Dense(3)(x.reshape(len(x), -1) if flatten else x.mean((1, 2)))


class Block(nn.Module):
    width: int
    stride: int
    eps: float

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        h = nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)
        h = nn.relu(bn(self.eps)(h))
        h = bn(self.eps)(nn.Conv(self.width, (3, 3), use_bias=False)(h))
        if self.stride > 1:
            x = nn.Conv(self.width, (1, 1), strides, use_bias=False, name="shortcut")(x)
            x = bn(self.eps, name="shortcut_norm")(x)
        return nn.relu(x + h)


def resnet(x, eps):
    x = nn.relu(bn(eps, name="norm")(nn.Conv(3, (3, 3), use_bias=False, name="stem")(x)))
    for width, stride in ((3, 1), (3, 1), (4, 2), (4, 1)):
        x = Block(width, stride, eps)(x)
    return nn.Dense(3, name="head")(x.mean((1, 2)))


def mlp(x, eps, norm, bias):
    for width in (6, 6):
        x = nn.relu(norm(epsilon=eps)(nn.Dense(width, use_bias=bias)(x)))
    return nn.Dense(3)(x)


def norm_cnn(x, eps, norm, bias):
    for width in (6, 6):
        x = nn.relu(norm(epsilon=eps)(nn.Conv(width, (3, 3), use_bias=bias)(x)))
    return nn.Dense(3)(x.mean((1, 2)))


def weight_norm(x, eps):
    x = nn.relu(nn.WeightNorm(nn.Dense(5), epsilon=eps)(x))
    return nn.WeightNorm(nn.Dense(5), epsilon=eps)(x)


def transformer(x, eps, activation=nn.gelu, final=True, qk_norm=False):
    x = nn.Dense(6, use_bias=False, name="emb")(x)
    h = nn.LayerNorm(eps, name="ln1")(x)
    x = x + nn.MultiHeadDotProductAttention(2, normalize_qk=qk_norm, name="attn")(h)
    h = nn.Dense(7, name="fc1")(nn.LayerNorm(eps, name="ln2")(x))
    x = x + nn.Dense(6, name="fc2")(activation(h))
    x = nn.LayerNorm(eps, name="lnf")(x) if final else x
    return nn.Dense(3, name="head")(x.mean(1))


def gru(x, eps):
    return nn.Dense(3)(nn.RNN(nn.GRUCell(4, param_dtype=x.dtype))(x)[:, -1])


def densenet(x, eps):
    x = nn.Conv(3, (3, 3), use_bias=False)(x)
    for _ in range(2):
        h = nn.relu(bn(eps)(x))
        x = jnp.concatenate([x, nn.Conv(3, (3, 3), use_bias=False)(h)], -1)
    return nn.Dense(3)(nn.relu(bn(eps)(x)).mean((1, 2)))


def evaluated(x, eps):
    x = nn.relu(bn(eps, use_running_average=True)(nn.Dense(6)(x)))
    return nn.Dense(3)(x)


def grouped(x, eps, groups, norm):
    x = nn.Conv(8, (3, 3), feature_group_count=groups, use_bias=False)(x)
    return nn.Dense(3)(jnp.tanh(norm(eps)(x)).mean((1, 2)))


def mobile(x, eps):
    """Stem, then a bottleneck: expand, depthwise, project."""
    conv = partial(nn.Conv, use_bias=False)
    x = nn.hard_swish(bn(eps)(conv(3, (3, 3))(x)))
    h = nn.hard_swish(bn(eps)(conv(6, (1, 1))(x)))
    h = nn.hard_swish(bn(eps)(conv(6, (3, 3), feature_group_count=6)(h)))
    return nn.Dense(3)((x + bn(eps)(conv(3, (1, 1))(h))).mean((1, 2)))


def own_mlp(x, eps):
    model = models.MLP((6, 5), 3, norm=partial(models.BatchNorm, eps=eps), name="mlp")
    return model(x, train=True)


# And one of nnx


class NnxCNN(nnx.Module):
    def __init__(self, eps, rngs, fast=True):
        norm = partial(nnx.BatchNorm, epsilon=eps, use_fast_variance=fast, rngs=rngs)
        self.c1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.b1 = norm(4)
        self.c2 = nnx.Conv(4, 5, (3, 3), use_bias=False, rngs=rngs)
        self.b2 = norm(5)
        self.d = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = nn.relu(self.b1(self.c1(x)))
        x = nn.relu(self.b2(self.c2(x)))
        return self.d(x.mean((1, 2)))


def from_nnx(make, x, pure=True):
    """Of `make(eps, rngs)`; parameters as a plain dict, or as the nnx.State that they come in.

    The other state is an argument: nnx lets no Variable be written that another trace made.
    """

    def build(eps):
        graph, params, state = nnx.split(make(eps, nnx.Rngs(0)), nnx.Param, ...)
        params = filled(nnx.to_pure_dict(params) if pure else params)
        state = filled(nnx.to_pure_dict(state), seed=3)

        def forward(p, x, state):
            return nnx.merge(graph, nnx.State(p) if pure else p, nnx.State(state))(x)

        return problem(forward, params, filled(x, seed=1), state)

    return build
