"""Small models whose scale symmetries are known: the ground truth of `bnrate.certify`.

The answers hold at eps = 0, and up to epsilon otherwise.  All of them were found or confirmed
numerically, in float64 at eps = 0: the symmetries are the null space of the Lie derivatives
sum(g * w), per leaf and per index, over random parameters and data.

Models of other frameworks are in `zoo_frameworks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import zoo_models as m
from jax import lax


class Entry(NamedTuple):
    """A model and what is true of it.

    Attributes:
      build: makes the problem, given epsilon.
      invariant: leaves that may be scaled alone.
      no_effect: leaves on which the loss does not depend.
      joint: minimal sets of leaves that may be scaled by one factor (of leaves not in the above).
      units: of an invariant leaf, the axis whose indices may each be scaled alone; or several
        axes; or axes and the shape that the leaf is viewed in.
      dims: of the symmetry space, leaf-level and per index (exponents of zero sum on each leaf).
      note: what a proof says otherwise than numbers, and why.
      fixed_eps: the library does not let epsilon be set; the answers are those of the limit 0.
    """

    build: Callable[[float], m.Problem]
    invariant: tuple[str, ...] = ()
    no_effect: tuple[str, ...] = ()
    joint: tuple[frozenset[str], ...] = ()
    units: dict[str, Any] = {}  # noqa: RUF012
    dims: tuple[int, int] = (0, 0)
    note: str = ""
    fixed_eps: bool = False


def units(member):
    """The unit axis, if there is one only; else the axes, with the view if there is one."""
    if member.shape is not None:
        return member.axes, member.shape
    return member.axes[0] if len(member.axes) == 1 else member.axes


def paths(pattern, count):
    """`pattern` with its `*` replaced by 0, 1, ..., count - 1."""
    return tuple(pattern.replace("*", str(i)) for i in range(count))


def affine(*norms):
    """Scale and bias of these normalisations, as one joint group."""
    return frozenset(f"{norm}/{name}" for norm in norms for name in ("scale", "bias"))


def dense(*layers):
    return frozenset(f"{layer}/{name}" for layer in layers for name in ("kernel", "bias"))


def each(leaves, axis):
    """Leaves that are invariant per index of `axis`, as keywords of `Entry`."""
    return {"invariant": leaves, "units": dict.fromkeys(leaves, axis)}


BN_MLP = {"w1": (5, 7), "b1": (7,), "g": (7,), "be": (7,), "w2": (7, 3)}
PLAIN = {"w0": (5, 6), "b0": (6,), "w1": (6, 7), "b1": (7,), "w2": (7, 3), "b2": (3,)}
RNN = {"wx": (3, 4), "wh": (4, 4), "wo": (4, 2)}
ATTENTION = dict.fromkeys("qkv", (5, 2, 4)) | {
    "q_scale": (2, 4), "k_scale": (2, 4), "o": (2, 4, 3)
}  # fmt: skip
IMAGE = (3, 4, 4, 2)
TOKENS = (3, 4, 5)
CONV = paths("Conv_*/kernel", 3)
DENSE = paths("Dense_*/kernel", 2)
INNER = tuple(affine(f"BatchNorm_{i}") for i in range(2))
RESNET = (
    "stem/kernel", "Block_2/shortcut/kernel",
    *paths("Block_*/Conv_0/kernel", 4), *paths("Block_*/Conv_1/kernel", 4),
)  # fmt: skip
bn_mlp = m.by_hand(m.bn_mlp, **BN_MLP)
plain = lambda activation: m.by_hand(partial(m.plain, activation=activation), **PLAIN)  # noqa: E731
cnn = lambda **options: m.linen(partial(m.cnn, **options), IMAGE)  # noqa: E731
mlp = lambda norm, bias: m.linen(partial(m.mlp, norm=norm, bias=bias))  # noqa: E731
norm_cnn = lambda norm, bias: m.linen(partial(m.norm_cnn, norm=norm, bias=bias), IMAGE)  # noqa: E731
transformer = lambda **options: m.linen(partial(m.transformer, **options), TOKENS)  # noqa: E731
group_norm = partial(nn.GroupNorm, num_groups=3)
slow_norm = partial(nn.LayerNorm, use_fast_variance=False)
BN_ANSWERS = {**each(("w1",), 1), "no_effect": ("b1",), "dims": (3, 18)}

ZOO: dict[str, Entry] = {
    "BN MLP": Entry(bn_mlp, **BN_ANSWERS),
    "CNN bias": Entry(
        cnn(), **each(CONV, 3), no_effect=paths("Conv_*/bias", 3), joint=INNER, dims=(9, 30)
    ),
    "CNN bias slow variance": Entry(
        cnn(fast=False), **each(CONV, 3), no_effect=paths("Conv_*/bias", 3), joint=INNER,
        dims=(9, 30),
    ),
    "CNN": Entry(cnn(bias=False), **each(CONV, 3), joint=INNER, dims=(6, 20)),
    "CNN slow variance": Entry(
        cnn(bias=False, fast=False), **each(CONV, 3), joint=INNER, dims=(6, 20)
    ),
    "CNN flatten head": Entry(
        cnn(flatten=True), **each(CONV, 3), no_effect=paths("Conv_*/bias", 3), joint=INNER,
        dims=(9, 30),
    ),
    "nnx CNN": Entry(
        m.from_nnx(m.NnxCNN, IMAGE), **each(("c1/kernel", "c2/kernel"), 3), no_effect=("c1/bias",),
        joint=(affine("b1"),), dims=(5, 17),
    ),
    "nnx CNN slow variance": Entry(
        m.from_nnx(partial(m.NnxCNN, fast=False), IMAGE), **each(("c1/kernel", "c2/kernel"), 3),
        no_effect=("c1/bias",), joint=(affine("b1"),), dims=(5, 17),
    ),
    "ResNet": Entry(
        m.linen(m.resnet, IMAGE), **each(RESNET, 3),
        joint=(
            *(affine(f"Block_{i}/BatchNorm_0") for i in range(4)),
            affine("norm", "Block_0/BatchNorm_1", "Block_1/BatchNorm_1"),
        ),
        dims=(16, 40),
    ),
    "MLP LayerNorm bias": Entry(
        mlp(nn.LayerNorm, True),
        joint=(dense("Dense_0"), dense("Dense_1"), affine("LayerNorm_0") | {"Dense_1/bias"}),
        dims=(4, 10),
    ),
    "MLP LayerNorm": Entry(
        mlp(nn.LayerNorm, False), DENSE, joint=(affine("LayerNorm_0"),), dims=(4, 10)
    ),
    "MLP LayerNorm bias slow variance": Entry(
        mlp(slow_norm, True),
        joint=(dense("Dense_0"), dense("Dense_1"), affine("LayerNorm_0") | {"Dense_1/bias"}),
        dims=(4, 10),
    ),
    "MLP LayerNorm slow variance": Entry(
        mlp(slow_norm, False), DENSE, joint=(affine("LayerNorm_0"),), dims=(4, 10)
    ),
    "MLP RMSNorm bias": Entry(
        mlp(nn.RMSNorm, True),
        joint=(dense("Dense_0"), dense("Dense_1"), frozenset({"RMSNorm_0/scale", "Dense_1/bias"})),
        dims=(4, 10),
    ),
    "MLP RMSNorm": Entry(mlp(nn.RMSNorm, False), (*DENSE, "RMSNorm_0/scale"), dims=(4, 15)),
    "GroupNorm bias": Entry(
        norm_cnn(group_norm, True),
        joint=(dense("Conv_0"), dense("Conv_1"), affine("GroupNorm_0") | {"Conv_1/bias"}),
        dims=(4, 14),
    ),
    "GroupNorm": Entry(
        norm_cnn(group_norm, False), CONV[:2], joint=(affine("GroupNorm_0"),), dims=(4, 14),
        units={
            "Conv_0/kernel": ((3,), (3, 3, 2, 3, 2)), "Conv_1/kernel": ((3,), (3, 3, 6, 3, 2)),
        },
    ),
    "InstanceNorm bias": Entry(
        norm_cnn(nn.InstanceNorm, True), **each(CONV[:2], 3), no_effect=paths("Conv_*/bias", 2),
        joint=(affine("InstanceNorm_0"),), dims=(6, 30),
    ),
    "InstanceNorm": Entry(
        norm_cnn(nn.InstanceNorm, False), **each(CONV[:2], 3), joint=(affine("InstanceNorm_0"),),
        dims=(4, 20),
    ),
    "WeightNorm": Entry(m.linen(m.weight_norm), **each(DENSE, 1), dims=(3, 8)),
    "transformer": Entry(
        transformer(), no_effect=("attn/key/bias",),
        joint=(
            dense("attn/out", "fc2") | {"emb/kernel"},
            dense("attn/value", "fc2") | {"attn/out/bias", "emb/kernel"},
        ),
        dims=(7, 26),
    ),
    "transformer ReLU no final norm": Entry(
        transformer(activation=nn.relu, final=False), no_effect=("attn/key/bias",), dims=(7, 27)
    ),
    "transformer QK-norm": Entry(
        transformer(qk_norm=True),
        joint=(
            dense("attn/query"), dense("attn/key"), dense("attn/out", "fc2") | {"emb/kernel"},
            dense("attn/value", "fc2") | {"attn/out/bias", "emb/kernel"},
            dense("fc2") | affine("ln1") | {"emb/kernel"}
            | {f"attn/{name}/bias" for name in ("query", "key", "value", "out")},
        ),
        dims=(8, 22), fixed_eps=True, note="with the library's 1e-6 it is (6, 20), by strict proof",
    ),
    "plain ReLU": Entry(plain(nn.relu), dims=(2, 11)),
    "plain leaky ReLU": Entry(plain(nn.leaky_relu), dims=(2, 11)),
    "plain GELU": Entry(plain(nn.gelu)),
    "plain softplus": Entry(plain(nn.softplus)),
    "plain tanh": Entry(plain(jnp.tanh)),
    "plain linear": Entry(plain(lambda h: h), dims=(2, 11)),
    "plain ReLU6": Entry(
        plain(nn.relu6),
        note="numbers see a symmetry of each layer in which no sample reaches the bound 6",
    ),
    "plain squared ReLU": Entry(plain(lambda h: nn.relu(h) ** 2), dims=(2, 11)),
    "BN MLP, L2": Entry(m.transformed(bn_mlp, m.penalised())),
    "BN MLP, L2 on w1": Entry(
        m.transformed(bn_mlp, m.penalised("w1")), no_effect=("b1",), dims=(2, 12)
    ),
    "Rayleigh quotient": Entry(m.by_hand(m.rayleigh, w=(5,)), ("w",), dims=(1, 0)),
    "log Rayleigh quotient": Entry(m.by_hand(m.log_rayleigh, w=(5,)), ("w",), dims=(1, 0)),
    "cosine classifier": Entry(
        m.by_hand(m.cosine, w1=(5, 6), w2=(6, 4), W=(4, 4)), ("w1", "w2", "W"), units={"W": 1},
        dims=(3, 8),
    ),
    "RNN tanh": Entry(m.by_hand(partial(m.rnn, activation=jnp.tanh), (6, 4, 3), **RNN)),
    "RNN ReLU": Entry(m.by_hand(partial(m.rnn, activation=nn.relu), (6, 4, 3), **RNN), dims=(1, 3)),
    "scan over layers": Entry(
        m.by_hand(m.scanned_layers, u=(3, 5, 5)), **each(("u",), 0), dims=(1, 2)
    ),
    "cond and while": Entry(m.by_hand(m.branches, w=(5, 4)), **each(("w",), 1), dims=(1, 3)),
    "GRU": Entry(m.linen(m.gru, TOKENS)),
    "DenseNet": Entry(m.linen(m.densenet, IMAGE), **each(CONV, 3), joint=INNER, dims=(6, 21)),
    "fused qkv, QK-norm": Entry(
        m.by_hand(m.fused_qkv, TOKENS, qkv=(5, 12), o=(4, 3)), dims=(1, 4),
        invariant=("qkv[:, 0:4]", "qkv[:, 4:8]"),
    ),
    "BN evaluated, fresh": Entry(
        m.linen(m.evaluated), dims=(2, 10),
        note="numbers see the running mean 0, which a proof must take for data: (1, 5) then",
    ),
    "stopped norm": Entry(
        m.by_hand(m.stopped_norm, w=(5, 4)),
        note="w is invariant by value, but the gradient is not orthogonal to it",
    ),
    "BN MLP guarded": Entry(
        m.by_hand(partial(m.bn_mlp, norm=m.guarded), **BN_MLP), **BN_ANSWERS,
    ),
    # Beyond the paper's kinds: groups, attention, control flow, what wraps a loss
    "grouped conv": Entry(
        m.linen(partial(m.grouped, groups=2, norm=m.bn), (5, 4, 4, 4)), **each(CONV[:1], 3),
        dims=(1, 7),
    ),
    "depthwise conv": Entry(
        m.linen(partial(m.grouped, groups=8, norm=m.bn), (5, 4, 4, 8)), **each(CONV[:1], 3),
        dims=(1, 7),
    ),
    "grouped conv, GroupNorm": Entry(
        m.linen(
            partial(m.grouped, groups=2, norm=lambda eps: nn.GroupNorm(4, epsilon=eps)),
            (5, 4, 4, 4),
        ),
        CONV[:1], dims=(1, 3), units={"Conv_0/kernel": ((3, 4), (3, 3, 2, 2, 2, 2))},
    ),
    "rotary attention, QK-norm": Entry(
        m.by_hand(m.rotary_attention, TOKENS, **ATTENTION), **each(("q", "k"), 1), dims=(4, 8)
    ),
    "mobile block": Entry(
        m.linen(m.mobile, IMAGE), **each(paths("Conv_*/kernel", 4), 3), dims=(4, 14)
    ),
    "one-sided concat": Entry(
        m.by_hand(m.one_sided, w1=(5, 6), g=(6,), be=(6,), w2=(11, 4), head=(4, 3)),
        **each(("w1", "w2"), 1), dims=(2, 13),
    ),
    "aux": Entry(m.transformed(bn_mlp, m.with_aux), **BN_ANSWERS),
    "remat": Entry(m.transformed(bn_mlp, jax.checkpoint), **BN_ANSWERS),
    "vmap": Entry(
        m.by_hand(partial(m.per_example, over=jax.vmap), w=(5, 4), head=(4, 3)), ("w",),
        dims=(1, 0),
    ),
    "lax.map": Entry(
        m.by_hand(
            partial(m.per_example, over=lambda net: partial(lax.map, net)), w=(5, 4), head=(4, 3)
        ),
        ("w",), dims=(1, 0),
    ),
    "bnrate.normalize": Entry(
        m.by_hand(partial(m.bn_mlp, norm=m.own_norm), **BN_MLP), **BN_ANSWERS
    ),
    "bnrate.models.MLP": Entry(
        m.linen(m.own_mlp), **each(paths("mlp/layer*/kernel", 3), 1),
        joint=tuple(affine(f"mlp/norm{i}") for i in range(2)), dims=(5, 20),
    ),
    "weight standardisation": Entry(
        m.by_hand(m.standardised_weight, w=(5, 4), head=(4, 3)), **each(("w",), 1), dims=(1, 3)
    ),
    "custom gradient": Entry(
        m.by_hand(m.backward_rule, w=(5, 4), head=(4, 3)),
        note="w is invariant by value, but its custom_vjp gradient is not orthogonal to it",
    ),
    "spectral norm, stopped": Entry(
        m.by_hand(m.spectral, w=(5, 4), head=(4, 3)),
        note="w is invariant by value, but the gradient is not orthogonal to it",
    ),
}  # fmt: skip
