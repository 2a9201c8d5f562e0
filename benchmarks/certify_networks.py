"""Certify networks that others wrote, by their shapes alone; one JSON line per network.

    python benchmarks/certify_networks.py [NAME ...]

No parameter is ever allocated, so the size of a network does not matter.  Needs dm-haiku,
"transformers<5" and jax-resnet; the networks of a missing package are skipped.
`trace_seconds` is a trace of the loss alone; `total_seconds` is `certify`, with a trace of its own.
"""

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnrate import groups as gr
from bnrate.certify import certify

KEY = jax.eval_shape(lambda: jax.random.key(0))
IMAGES = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
CHANNELS_FIRST = jax.ShapeDtypeStruct((8, 3, 224, 224), jnp.float32)
CLASSES = jax.ShapeDtypeStruct((8,), jnp.int32)
TOKENS = jax.ShapeDtypeStruct((4, 128), jnp.int32)


def no_check(certificate, params):
    pass


class Network(NamedTuple):
    """`make(module, *arguments)` gives (loss, params, *args); `check(certificate, params)`."""

    distribution: str
    module: str
    make: Callable[..., tuple]
    arguments: tuple
    check: Callable[[Any, Any], None] = no_check


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def singles(certificate):
    """The leaves that are invariant alone."""
    return [g.members[0].path for g in certificate.groups if len(g.members) == 1]


def kernels_are_invariant(certificate, params):
    """All 53 convolutions of a ResNet-50, and no other leaf."""
    leaves = gr.leaves(params).items()
    kernels = {path for path, leaf in leaves if leaf.ndim == 4 and path.endswith("/w")}
    assert len(kernels) == 53, len(kernels)
    assert set(singles(certificate)) == kernels, kernels ^ set(singles(certificate))


def haiku(hk, name):
    def forward(x):
        net = getattr(hk.nets, name)(num_classes=1000)
        return net(x, is_training=True)

    net = hk.transform_with_state(forward)

    def loss(params, state, x, y):
        logits, state = net.apply(params, state, None, x)
        return cross_entropy(logits, y), state

    params, state = jax.eval_shape(net.init, KEY, IMAGES)
    return loss, params, state, IMAGES, CLASSES


def linen(package, name):
    net = getattr(package, name)(n_classes=1000)

    def loss(params, stats, x, y):
        variables = {"params": params, "batch_stats": stats}
        logits, new = net.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), new

    variables = jax.eval_shape(net.init, KEY, IMAGES)
    return loss, variables["params"], variables["batch_stats"], IMAGES, CLASSES


def language_model(transformers, name, config, options):
    net = getattr(transformers, f"Flax{name}")(
        getattr(transformers, config)(**options), input_shape=TOKENS.shape, _do_init=False
    )

    def loss(params, tokens):
        logits = net(tokens, params=params).logits
        return cross_entropy(logits[:, :-1], tokens[:, 1:])

    return loss, net.params_shape_tree, TOKENS


def vision_transformer(transformers):
    config = transformers.ViTConfig(num_labels=1000)
    net = transformers.FlaxViTForImageClassification(config, _do_init=False)

    def loss(params, x, y):
        return cross_entropy(net(x, params=params).logits, y)

    return loss, net.params_shape_tree, CHANNELS_FIRST, CLASSES


haiku_net = partial(Network, "dm-haiku", "haiku", haiku)
resnet = partial(Network, "jax-resnet", "jax_resnet", linen)
text = partial(Network, "transformers", "transformers", language_model)
GPT2_XL = {"n_layer": 48, "n_embd": 1600, "n_head": 25}
LLAMA = {"num_hidden_layers": 16, "hidden_size": 2048}
GEMMA = {"num_hidden_layers": 18, "hidden_size": 2048, "hidden_activation": "gelu_pytorch_tanh"}

NETWORKS = {
    "ResNet-50": haiku_net(("ResNet50",), kernels_are_invariant),
    "ResNet-152": haiku_net(("ResNet152",)),
    "MobileNet-v1": haiku_net(("MobileNetV1",)),
    "ResNeXt-50": resnet(("ResNeXt50",)),
    "ResNet-D-50": resnet(("ResNetD50",)),
    "ResNeSt-50": resnet(("ResNeSt50",)),
    "GPT-2 XL, 48 layers": text(("GPT2LMHeadModel", "GPT2Config", GPT2_XL)),
    "Llama, RMSNorm and rotary": text(("LlamaForCausalLM", "LlamaConfig", LLAMA)),
    "Gemma, 18 layers": text(("GemmaForCausalLM", "GemmaConfig", GEMMA)),
    "ViT-B/16": Network("transformers", "transformers", vision_transformer, ()),
}


def measured(name):
    """Certify one network and say what was found, and how long it took."""
    distribution, module, make, arguments, check = NETWORKS[name]
    loss, params, *args = make(importlib.import_module(module), *arguments)
    start = time.perf_counter()
    jax.make_jaxpr(loss)(params, *args)
    traced = time.perf_counter()
    certificate = certify(loss, params, *args)
    done = time.perf_counter()
    check(certificate, params)
    return {
        "network": name,
        "package": f"{distribution} {importlib.metadata.version(distribution)}",
        "leaves": len(gr.leaves(params)),
        "invariant": len(singles(certificate)),
        "groups": len(list(certificate.groups)),
        "no_effect": len(certificate.no_effect),
        "rescalings": len(certificate.rescalings),
        "eps_sites": len(certificate.eps_sites),
        "trace_seconds": round(traced - start, 3),
        "total_seconds": round(done - traced, 3),
    }


if __name__ == "__main__":
    for name in sys.argv[1:] or NETWORKS:
        try:
            line = measured(name)
        except ImportError as error:
            line = {"network": name, "skipped": str(error)}
        print(json.dumps(line), flush=True)
