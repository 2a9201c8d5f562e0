import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import groups as gr
from bnrate import models
from bnrate.models import layers

IMAGES = (32, 8, 8, 1)
MODELS = {
    "mlp": models.MLP((16, 12), 10),
    "vgg": models.VGG(10, width=2),
    "resnet": models.ResNet(10, depth=18, width=2),
}
LAYERS = {"mlp": 3, "vgg": 16, "resnet": 20}
# Leaves that no normalisation follows.
ENDS = {"mlp": set(), "vgg": set(), "resnet": {"head/kernel", "head/bias"}}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal(IMAGES), jnp.float32)


def test_layers_and_shapes(name, x, key):
    model = MODELS[name].clone(norm=models.BatchNorm)
    variables = jax.eval_shape(lambda: model.init(key, x, train=True))
    layers = range(LAYERS[name])
    expected = {f"layer{i}/kernel" for i in layers} | {
        f"norm{i}/{leaf}" for i in layers for leaf in ("scale", "bias")
    }
    assert set(gr.leaves(variables["params"])) == expected | ENDS[name]
    logits = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert logits.shape == (32, 10)
    assert logits.dtype == jnp.float32


def test_without_normalisation_layers_have_biases(name, x, key):
    variables = jax.eval_shape(lambda: MODELS[name].init(key, x, train=True))
    expected = {f"layer{i}/{leaf}" for i in range(LAYERS[name]) for leaf in ("kernel", "bias")}
    assert set(gr.leaves(variables["params"])) == expected | ENDS[name]
    assert set(variables) == {"params"}


def test_paper_network_at_full_width(key):
    x = jnp.zeros((1, 32, 32, 3))
    model = models.VGG(10, norm=models.BatchNorm)
    kernels = jax.eval_shape(lambda: model.init(key, x, train=True))["params"]
    widths = [kernels[f"layer{i}"]["kernel"].shape[-1] for i in range(16)]
    assert widths == [64] * 2 + [128] * 3 + [256] * 3 + [512] * 7 + [10]
    assert kernels["layer14"]["kernel"].shape == (512, 512)
    assert kernels["layer1"]["kernel"].shape == (3, 3, 64, 64)


# Weights of the published networks, as every model zoo counts them (without running moments).
PUBLISHED = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


@pytest.mark.parametrize(("depth", "weights"), PUBLISHED.items())
def test_residual_networks_at_full_width(depth, weights, key):
    model = models.ResNet(1000, depth, norm=models.BatchNorm)
    x = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: model.init(key, x, train=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == weights
    assert len(variables["batch_stats"]) == depth - 1 + (3 if depth < 50 else 4)


def test_the_strides_of_a_residual_network(key):
    """As in table 1 of the paper: 112, 56, 28, 14, 7; a bottleneck strides in its first layer."""
    model, x = models.ResNet(10, depth=50, width=2), jnp.zeros((1, 224, 224, 3))
    _, seen = jax.eval_shape(
        lambda: model.init_with_output(key, x, train=True, capture_intermediates=True)
    )
    layers = seen["intermediates"]
    shapes = [layers[f"layer{i}"]["__call__"][0].shape[1:] for i in range(53)]
    assert shapes[0] == (112, 112, 2)
    assert shapes[1:5] == [(56, 56, 2), (56, 56, 2), (56, 56, 8), (56, 56, 8)]
    assert shapes[11:15] == [(28, 28, 4), (28, 28, 4), (28, 28, 16), (28, 28, 16)]
    assert shapes[-1] == (7, 7, 64)


def test_no_other_depth(x, key):
    with pytest.raises(ValueError, match=r"no ResNet of depth 19; there are \[18, 34, 50"):
        models.ResNet(10, depth=19).init(key, x, train=True)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (6, 3), (1, 1)])
def test_pooling_is_that_of_flax(size, key):
    x = jax.random.normal(key, (2, *size, 3))

    def pulled(pool):
        y, pull = jax.vjp(pool, x)
        return y, pull(jnp.cos(y))[0]

    flax = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")
    for ours, theirs in zip(pulled(layers.max_pool), pulled(flax), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_of_pooling_rests_on_no_equality_of_floats(key):
    """A compiler may compute a value twice, rounded in two ways: then no entry is the maximum."""
    x = jax.random.normal(key, (2, 4, 4, 3))
    program = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layers.max_pool(x))))(x)
    assert " ge " in str(program)
    assert " eq " not in str(program)
    assert " max " not in str(program)
    ties = jax.grad(lambda x: jnp.sum(layers.max_pool(x)))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(ties.reshape(2, 2, 2, 2).sum((1, 3)), jnp.ones((2, 2)))


PER_EXAMPLE = {
    "layer": nn.LayerNorm,
    "group": functools.partial(nn.GroupNorm, num_groups=2),
    "rms": nn.RMSNorm,
    "instance": nn.InstanceNorm,
}


def traced(model, variables, x, train):
    return str(jax.make_jaxpr(lambda v: model.apply(v, x, train=train))(variables))


@pytest.mark.parametrize("norm", PER_EXAMPLE.values(), ids=PER_EXAMPLE)
def test_normalisations_of_flax_do_not_mind_training(norm, x, key):
    model = models.ResNet(10, depth=18, width=2, norm=models.per_example(norm))
    variables = jax.eval_shape(lambda: model.init(key, x, train=True))
    assert set(variables) == {"params"}
    assert {f"norm{i}" for i in range(20)} < set(variables["params"])
    assert traced(model, variables, x, True) == traced(model, variables, x, False)


def test_batch_normalisation_does_mind(x, key):
    model = MODELS["resnet"].clone(norm=models.BatchNorm)
    variables = jax.eval_shape(lambda: model.init(key, x, train=True))
    assert traced(model, variables, x, True) != traced(model, variables, x, False)


def test_kernels_are_glorot_uniform(key):
    model = models.MLP((300,), 10)
    kernel = model.init(key, jnp.zeros((1, 200)), train=True)["params"]["layer0"]["kernel"]
    limit = np.sqrt(6 / 500)
    assert 0.98 * limit < jnp.max(jnp.abs(kernel)) <= limit
    np.testing.assert_allclose(jnp.std(kernel), limit / np.sqrt(3), rtol=0.02)


def test_training_and_evaluation_differ_until_the_moments_are_learned(name, x, key):
    # With decay 0 the running moments are the batch's: evaluation on it then equals training.
    model = MODELS[name].clone(norm=lambda name: models.BatchNorm(decay=0.0, name=name))
    variables = model.init(key, x, train=True)
    trained, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    before = model.apply(variables, x, train=False)
    after = model.apply({**variables, **new}, x, train=False)
    assert jnp.max(jnp.abs(before - trained)) > 0.1
    np.testing.assert_allclose(after, trained, atol=1e-4)


def test_initialisation_leaves_the_running_moments_alone(name, x, key):
    model = MODELS[name].clone(norm=models.BatchNorm)
    stats = model.init(key, x, train=True)["batch_stats"]
    assert all(jnp.all(norm["mean"] == 0) and jnp.all(norm["var"] == 1) for norm in stats.values())


def test_data_dependent_initialisation(name, x, key):
    """Each layer's outputs have mean 0 and variance 1, and the network is the normalised one."""
    model = MODELS[name]
    params = models.data_dependent(model, key, x)
    logits, seen = model.apply({"params": params}, x, train=True, capture_intermediates=True)
    outputs = [
        seen["intermediates"][f"layer{i}"]["__call__"][0].reshape(
            -1, params[f"layer{i}"]["bias"].size
        )
        for i in range(LAYERS[name])
    ]
    for output in outputs:
        alive = jnp.std(output, axis=0) > 0  # a channel with nothing but zeros before it stays dead
        np.testing.assert_allclose(output.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(output.std(0)[alive], 1, rtol=1e-3)
        assert alive.mean() > 0.4
    normalised = model.clone(norm=models.BatchNorm)
    variables = normalised.init(key, x, train=True)
    np.testing.assert_allclose(
        logits, normalised.apply(variables, x, train=True, mutable=["batch_stats"])[0], atol=1e-3
    )


def test_data_dependent_initialisation_needs_no_normalisation(x, key):
    with pytest.raises(ValueError, match="needs norm=None"):
        models.data_dependent(MODELS["mlp"].clone(norm=models.BatchNorm), key, x)
