"""Networks that others wrote, as losses of shapes: what `certify_networks.py` reads.

A maker imports what it needs and returns (loss, params, *args), of shapes: nothing is allocated.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import optax

KEY = jax.eval_shape(lambda: jax.random.key(0))


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def cross_entropy(logits, labels):
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def next_token(logits, tokens):
    return cross_entropy(logits[:, :-1], tokens[:, 1:])


# --- convolutional networks


def haiku(name, side=224, classes=1000, batch=8, **options):
    hk = importlib.import_module("haiku")
    net = hk.transform_with_state(
        lambda x: getattr(hk.nets, name)(num_classes=classes, **options)(x, is_training=True)
    )

    def loss(params, state, x, y):
        logits, state = net.apply(params, state, None, x)
        return cross_entropy(logits, y), state

    images = floats(batch, side, side, 3)
    params, state = jax.eval_shape(net.init, KEY, images)
    return loss, params, state, images, integers(batch)


def jax_resnet(name, side=224, batch=8, **options):
    net = getattr(importlib.import_module("jax_resnet"), name)(n_classes=1000, **options)
    return linen_with_statistics(net, floats(batch, side, side, 3))


def linen_with_statistics(net, images):
    def loss(params, stats, x, y):
        variables = {"params": params, "batch_stats": stats}
        logits, new = net.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), new

    variables = jax.eval_shape(net.init, KEY, images)
    return loss, variables["params"], variables["batch_stats"], images, integers(images.shape[0])


# --- networks of transformers<5


def language_model(kind, config, length=128, batch=4, **options):
    package = importlib.import_module("transformers")
    tokens = integers(batch, length)
    settings = getattr(package, config)(**options)
    net = getattr(package, f"Flax{kind}")(settings, input_shape=tokens.shape, _do_init=False)

    def loss(params, tokens):
        return next_token(net(tokens, params=params).logits, tokens)

    return loss, net.params_shape_tree, tokens


def vision_transformer(batch=8, **options):
    package = importlib.import_module("transformers")
    settings = package.ViTConfig(num_labels=1000, **options)
    net = package.FlaxViTForImageClassification(settings, _do_init=False)

    def loss(params, x, y):
        return cross_entropy(net(x, params=params).logits, y)

    images = floats(batch, 3, settings.image_size, settings.image_size)
    return loss, net.params_shape_tree, images, integers(batch)


def clip(batch=8, text=None, vision=None):
    package = importlib.import_module("transformers")
    settings = package.CLIPConfig(text_config=text or {}, vision_config=vision or {})
    net = package.FlaxCLIPModel(settings, _do_init=False)

    def loss(params, tokens, images):
        output = net(tokens, images, params=params)
        labels = jnp.arange(batch)
        return cross_entropy(output.logits_per_text, labels) + cross_entropy(
            output.logits_per_image, labels
        )

    side, length = settings.vision_config.image_size, settings.text_config.max_position_embeddings
    return loss, net.params_shape_tree, integers(batch, length), floats(batch, 3, side, side)


def encoder_decoder(kind, config, length=64, batch=4, features=None, **options):
    package = importlib.import_module("transformers")
    settings = getattr(package, config)(**options)
    net = getattr(package, f"Flax{kind}")(settings, _do_init=False)
    source = floats(batch, *features) if features else integers(batch, length)

    def loss(params, source, tokens):
        return next_token(net(source, decoder_input_ids=tokens, params=params).logits, tokens)

    return loss, net.params_shape_tree, source, integers(batch, length)


# --- levanter, tunix, equimo, esm2quinox: equinox and nnx


def levanter(module, config, head, vocabulary=32000, batch=4, **options):
    hax = importlib.import_module("haliax")
    eqx = importlib.import_module("equinox")
    models = importlib.import_module(f"levanter.models.{module}")
    settings = getattr(models, config)(**options)
    attention = importlib.import_module("levanter.layers.attention")
    Vocab, Batch, Pos = (
        hax.Axis("vocab", vocabulary), hax.Axis("batch", batch), settings.Pos,
    )  # fmt: skip
    model = eqx.filter_eval_shape(
        lambda key: getattr(models, head).init(Vocab, settings, key=key), KEY
    )
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(arrays, tokens):
        net = eqx.combine(arrays, static)
        named = hax.named(tokens, (Batch, Pos))
        logits = net(named, attention.AttentionMask.causal())
        return next_token(logits.rearrange((Batch, Pos, Vocab)).array, tokens)

    return loss, arrays, integers(batch, Pos.size)


def tunix(module, kind, preset, batch=2, length=128, **options):
    nnx = importlib.import_module("flax.nnx")
    models = importlib.import_module(f"tunix.models.{module}.model")
    settings = dataclasses.replace(getattr(models.ModelConfig, preset)(), **options)
    net = nnx.eval_shape(lambda: getattr(models, kind)(settings, rngs=nnx.Rngs(0)))
    graph, params, others = nnx.split(net, nnx.Param, ...)

    def loss(params, others, tokens):
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        logits, _ = nnx.merge(graph, params, others)(tokens, positions, None, mask)
        return next_token(logits, tokens)

    return loss, params, others, integers(batch, length)


def equimo(module, name, batch=8, side=224, **options):
    eqx = importlib.import_module("equinox")
    models = importlib.import_module(f"equimo.models.{module}")
    net = eqx.filter_eval_shape(
        lambda key: getattr(models, name)(key=key, num_classes=1000, **options), KEY
    )
    arrays, static = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    params, others = eqx.partition(arrays, lambda a: jnp.issubdtype(a.dtype, jnp.floating))

    def loss(params, others, x, y):
        net = eqx.combine(params, others, static)
        key = jax.random.key(0)
        return cross_entropy(jax.vmap(lambda image: net(image, key=key, inference=True))(x), y)

    return loss, params, others, floats(batch, 3, side, side), integers(batch)


def esm2(batch=2, length=64, **options):
    eqx = importlib.import_module("equinox")
    esm2quinox = importlib.import_module("esm2quinox")
    net = eqx.filter_eval_shape(lambda key: esm2quinox.ESM2(key=key, **options), KEY)
    params, static = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(params, tokens):
        logits = jax.vmap(lambda t: eqx.combine(params, static)(t).logits)(tokens)
        return cross_entropy(logits, tokens)

    return loss, params, integers(batch, length)


# --- diffusion


def stable_diffusion(batch=2, side=64, context=77, **options):
    diffusers = importlib.import_module("diffusers.models.unets.unet_2d_condition_flax")
    net = diffusers.FlaxUNet2DConditionModel(sample_size=side, **options)
    channels = net.cross_attention_dim
    args = floats(batch, 4, side, side), integers(batch), floats(batch, context, channels)
    params = jax.eval_shape(net.init, KEY, *args)["params"]

    def loss(params, x, steps, text, noise):
        return jnp.mean((net.apply({"params": params}, x, steps, text).sample - noise) ** 2)

    return loss, params, *args, args[0]


# --- reinforcement learning


def brax_policy(observations=64, actions=16, batch=256, **options):
    networks = importlib.import_module("brax.training.networks")
    net = networks.make_policy_network(2 * actions, observations, **options)

    def loss(params, x, a, advantage):
        mean, std = jnp.split(net.apply(None, params, x), 2, -1)
        std = jax.nn.softplus(std) + 1e-3
        log_prob = jax.scipy.stats.norm.logpdf(a, mean, std).sum(-1)
        return -(log_prob * advantage).mean()

    params = jax.eval_shape(net.init, KEY)
    return loss, params, floats(batch, observations), floats(batch, actions), floats(batch)


def sbx_critics(module, name, observations=64, actions=16, batch=256, **options):
    policies = importlib.import_module(f"sbx.{module}.policies")
    net = getattr(policies, name)(**options)
    x, a = floats(batch, observations), floats(batch, actions)
    keywords = {"train": True} if module == "crossq" else {}
    variables = jax.eval_shape(functools.partial(net.init, **keywords), KEY, x, a)

    def loss(params, stats, x, a, target):
        variables = {"params": params, **stats}
        q, _ = net.apply(variables, x, a, mutable=["batch_stats"], **keywords)
        return jnp.mean((q[..., 0] - target) ** 2)

    stats = {k: v for k, v in variables.items() if k != "params"}
    return loss, variables["params"], stats, x, a, floats(batch)
