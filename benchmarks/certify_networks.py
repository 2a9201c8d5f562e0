"""Certify networks that others wrote, by their shapes alone; one JSON line per network.

    python benchmarks/certify_networks.py [--table | --check | --why] [NAME ...]

No parameter is ever allocated, so the size of a network does not matter.  The networks of a missing
package are skipped.  `trace` is seconds of tracing; `certify` is what `certify` takes beyond that.
`proven` is the share of the parameters, counted entry by entry, that are in an invariant group.
`--check` holds each claim about a small copy of the network against numbers.
"""

import argparse
import collections
import importlib.metadata
import json
import logging
import math
import re
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networks
import own_networks as own

from bnrate import groups as gr
from bnrate import invariance
from bnrate.certify import certify


def no_test(certificate, params):
    pass


class Network(NamedTuple):
    """`make()` gives (loss, params, *args); `small` changes its options, for numbers."""

    distribution: str
    make: Callable[..., tuple]
    small: dict[str, Any] | None = None
    test: Callable[[Any, Any], None] = no_test


def kernels_are_invariant(certificate, params):
    """All 53 convolutions of a ResNet-50 are invariant alone; so are pairs (scale, bias)."""
    leaves = gr.leaves(params).items()
    kernels = {p for p, leaf in leaves if leaf.ndim == 4 and math.prod(leaf.shape[:3]) > 1}
    alone = {g.members[0].path for g in certificate.groups if len(g.members) == 1}
    assert len(kernels) == 53, len(kernels)
    assert alone == kernels, kernels ^ alone
    assert len(certificate.groups.groups) == 89, len(certificate.groups.groups)


def scanned_as_unrolled(certificate, params):
    """Queries and keys of a stack have the units of a layer, and the layers."""
    loss, unrolled, *args = own.transformer(False)
    layer = certify(loss, unrolled, *args).groups.by_path
    for leaf in ("q/kernel", "k/kernel"):
        (single,), (stacked,) = (
            layer[f"layer_0/{leaf}"],
            certificate.groups.by_path[f"layers/{leaf}"],
        )
        assert stacked.axes == (0, *(axis + 1 for axis in single.axes)), (single, stacked)


haiku = partial(partial, networks.haiku)
resnet = partial(partial, networks.jax_resnet)
text = partial(partial, networks.language_model)
levanter = partial(partial, networks.levanter)
tunix = partial(partial, networks.tunix)

GPT2_XL = {"n_layer": 48, "n_embd": 1600, "n_head": 25}
LLAMA = {"num_hidden_layers": 16, "hidden_size": 2048}
GEMMA = {"num_hidden_layers": 18, "hidden_size": 2048, "hidden_activation": "gelu_pytorch_tanh"}
LEVANTER = {"seq_len": 256, "hidden_dim": 2048, "intermediate_dim": 5632, "num_layers": 16,
            "num_heads": 16, "num_kv_heads": 8}  # fmt: skip
SMALL_LEVANTER = {"seq_len": 8, "hidden_dim": 16, "intermediate_dim": 24, "num_layers": 2,
                  "num_heads": 4, "num_kv_heads": 2, "vocabulary": 11}  # fmt: skip
SMALL_LLAMA = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 11,
               "num_attention_heads": 4, "length": 8, "max_position_embeddings": 8}  # fmt: skip
SMALL_VIT = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "batch": 3,
             "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip

NETWORKS = {
    "ResNet-50": Network("dm-haiku", haiku("ResNet50"), None, kernels_are_invariant),
    "ResNet-152": Network("dm-haiku", haiku("ResNet152")),
    "MobileNet-v1": Network("dm-haiku", haiku("MobileNetV1")),
    "ResNeXt-50": Network("jax-resnet", resnet("ResNeXt50")),
    "ResNet-D-50": Network("jax-resnet", resnet("ResNetD50")),
    "ResNeSt-50": Network("jax-resnet", resnet("ResNeSt50")),
    "ResNet-50, synchronised": Network(
        "flax", own.synchronised_resnet, {"side": 16, "devices": 2, "stages": (1, 1), "width": 4},
        kernels_are_invariant,
    ),
    "ResNet-50, synchronised, bfloat16": Network(
        "flax", partial(own.synchronised_resnet, dtype="bfloat16"), None, kernels_are_invariant
    ),
    "GPT-2 XL, 48 layers": Network(
        "transformers", text("GPT2LMHeadModel", "GPT2Config", **GPT2_XL)
    ),
    "Llama, 16 layers": Network(
        "transformers", text("LlamaForCausalLM", "LlamaConfig", **LLAMA), SMALL_LLAMA
    ),
    "Llama, 48 layers": Network(
        "transformers",
        text("LlamaForCausalLM", "LlamaConfig", **(LLAMA | {"num_hidden_layers": 48})),
    ),
    "Gemma, 18 layers": Network("transformers", text("GemmaForCausalLM", "GemmaConfig", **GEMMA)),
    "Mistral, 16 layers": Network(
        "transformers", text("MistralForCausalLM", "MistralConfig", num_hidden_layers=16)
    ),
    "BERT base": Network("transformers", text("BertForMaskedLM", "BertConfig")),
    "BART large": Network(
        "transformers",
        partial(networks.encoder_decoder, "BartForConditionalGeneration", "BartConfig"),
    ),
    "Whisper tiny": Network(
        "transformers",
        partial(
            networks.encoder_decoder, "WhisperForConditionalGeneration", "WhisperConfig",
            features=(80, 3000),
        ),
    ),
    "ViT-B/16": Network("transformers", networks.vision_transformer, SMALL_VIT),
    "CLIP-B/32": Network("transformers", networks.clip),
    "Llama, scanned": Network(
        "levanter", levanter("llama", "LlamaConfig", "LlamaLMHeadModel", **LEVANTER),
        SMALL_LEVANTER,
    ),
    "GPT-2, scanned": Network(
        "levanter", levanter("gpt2", "Gpt2Config", "Gpt2LMHeadModel", seq_len=256)
    ),
    "Qwen 3, scanned": Network(
        "levanter", levanter("qwen", "Qwen3Config", "QwenLMHeadModel", **LEVANTER), SMALL_LEVANTER
    ),
    "OLMo 2, scanned": Network(
        "levanter", levanter("olmo", "Olmo2Config", "Olmo2LMHeadModel", seq_len=256)
    ),
    "Gemma 3, scanned": Network(
        "levanter", levanter("gemma", "Gemma3Config", "Gemma3LMHeadModel", seq_len=256)
    ),
    "Qwen 3 0.6B": Network("google-tunix", tunix("qwen3", "Qwen3", "qwen3_0p6b")),
    "Gemma 3 1B, bfloat16": Network("google-tunix", tunix("gemma3", "Gemma3", "gemma3_1b_it")),
    "Llama 3.2 1B": Network("google-tunix", tunix("llama3", "Llama3", "llama3p2_1b")),
    "ViT-S/16, equinox": Network(
        "equimo", partial(networks.equimo, "vit", "vit_small_patch16_224")
    ),
    "ESM2, 12 layers, scanned": Network(
        "esm2quinox",
        partial(networks.esm2, num_layers=12, embed_size=480, num_heads=20, token_dropout=True),
    ),
    "Stable Diffusion UNet": Network(
        "diffusers", partial(networks.stable_diffusion, cross_attention_dim=768)
    ),
    "PPO policy, LayerNorm": Network(
        "brax", partial(networks.brax_policy, layer_norm=True, hidden_layer_sizes=(256, 256, 256)),
        {"batch": 8, "hidden_layer_sizes": (8, 8)},
    ),
    "SAC critics, LayerNorm": Network(
        "sbx-rl",
        partial(networks.sbx_critics, "common", "VectorCritic", net_arch=(256, 256),
                use_layer_norm=True),
        {"batch": 8, "net_arch": (8, 8)},
    ),
    "SimBa critics": Network(
        "sbx-rl",
        partial(networks.sbx_critics, "common", "SimbaVectorCritic", net_arch=(256, 256)),
        {"batch": 8, "net_arch": (8, 8)},
    ),
    "CrossQ critics": Network(
        "sbx-rl", partial(networks.sbx_critics, "crossq", "VectorCritic", net_arch=(256, 256))
    ),
    "Transformer, nn.scan": Network(
        "flax", partial(own.transformer, True),
        {"layers": 2, "heads": 2, "width": 8, "vocabulary": 11, "length": 6}, scanned_as_unrolled,
    ),
    "Transformer, unrolled": Network("flax", partial(own.transformer, False)),
    "MLP, nnx.vmap and nnx.scan": Network("flax", own.nnx_stack, {"width": 8, "layers": 2}),
    "Ensemble, filter_vmap": Network(
        "equinox", partial(own.equinox_stack, True), {"width": 8, "members": 2}
    ),
    "Stack, filter_vmap and scan": Network(
        "equinox", partial(own.equinox_stack, False), {"width": 8, "members": 2}
    ),
    "Experts, ragged_dot": Network(
        "jax", partial(own.experts, "ragged"), {"width": 8, "experts": 2, "tokens": 16, "layers": 2}
    ),
    "Experts, one-hot": Network(
        "jax", partial(own.experts, "onehot"), {"width": 8, "experts": 2, "tokens": 16, "layers": 2}
    ),
    "LSTM": Network("flax", partial(own.recurrent, "OptimizedLSTMCell")),
    "GRU": Network("flax", partial(own.recurrent, "GRUCell")),
}  # fmt: skip


def entries(member, leaf):
    """The number of entries of a leaf that a member holds."""
    shape = list(member.shape or leaf.shape)
    for axis, start, stop in member.part:
        shape[axis] = stop - start
    return math.prod(shape)


def measured(name):
    """Certify one network and say what was found, and how long it took."""
    network = NETWORKS[name]
    loss, params, *args = network.make()
    start = time.perf_counter()
    jax.make_jaxpr(loss)(params, *args)
    traced = time.perf_counter()
    certificate = certify(loss, params, *args)
    done = time.perf_counter()
    network.test(certificate, params)
    leaves = gr.leaves(params)
    members = [m for group in certificate.groups for m in group.members]
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    line = {
        "network": name,
        "package": f"{network.distribution} {importlib.metadata.version(network.distribution)}",
        "leaves": len(leaves),
        "parameters": total,
        "proven": round(sum(entries(m, leaves[m.path]) for m in members) / total, 4),
        "groups": len(certificate.groups.groups),
        "no_effect": len(certificate.no_effect),
        "rescalings": len(certificate.rescalings),
        "eps_sites": len(certificate.eps_sites),
        "trace": round(traced - start, 2),
        "certify": round(max(0.0, done - traced - (traced - start)), 2),
    }
    return line, certificate


def reasons(certificate):
    """The first reason for each leaf that is not known, with the number of such leaves."""
    found = collections.Counter()
    for path in certificate.rest:
        first = next(iter(certificate.why(path)), None)
        place = (
            re.sub(r"\d+", "#", first.site.scope) if first and hasattr(first.site, "scope") else ""
        )
        found[f"{first.what} [{first.primitive}] {place}".strip() if first else "part of it"] += 1
    return dict(found.most_common())


def checked(name):
    """Hold what is proven of a small copy against numbers."""
    network = NETWORKS[name]
    loss, params, *args = network.make(**network.small)
    certificate = certify(loss, params, *args)
    keys = iter(jax.random.split(jax.random.key(0), 10_000))

    def filled(shape):
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jax.random.normal(next(keys), shape.shape, shape.dtype)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jax.random.randint(next(keys), shape.shape, 0, 10, shape.dtype)
        return jax.random.key(0) if not shape.shape else jnp.zeros(shape.shape, shape.dtype)

    params, args = jax.tree.map(filled, (params, args))
    report = invariance.check(certificate.groups, loss, params, *args)
    assert report.ok, str(report)
    return {"network": name, "checked": len(report.verdicts)}


def table(lines):
    """The lines as a table in markdown."""
    columns = ("network", "package", "leaves", "proven", "groups", "no_effect", "rescalings",
               "trace", "certify")  # fmt: skip
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join("---" if c in ("network", "package") else "--:" for c in columns) + "|"
    for line in lines:
        cells = [f"{line[c]:.1%}" if c == "proven" else str(line[c]) for c in columns]
        yield "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks, by their name or the start of it")
    parser.add_argument("--table", action="store_true", help="a table at the end")
    parser.add_argument("--why", action="store_true", help="the reasons for what is not known")
    parser.add_argument("--check", action="store_true", help="small copies against numbers")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    lines = []
    for name, network in NETWORKS.items():
        if options.names and not any(name.startswith(wanted) for wanted in options.names):
            continue
        if options.check and network.small is None:
            continue
        try:
            if options.check:
                print(json.dumps(checked(name)), flush=True)
                continue
            line, certificate = measured(name)
        except ImportError as error:
            print(json.dumps({"network": name, "skipped": str(error)}), flush=True)
            continue
        why = {"why": reasons(certificate)} if options.why else {}
        print(json.dumps(line | why), flush=True)
        lines.append(line)
    if options.table:
        print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
