import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import groups as gr
from bnrate import models

IMAGES = (32, 8, 8, 1)
MODELS = {"mlp": models.MLP((16, 12), 10), "vgg": models.VGG(10, width=2)}
LAYERS = {"mlp": 3, "vgg": 16}


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
    assert set(gr.leaves(variables["params"])) == expected
    logits = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert logits.shape == (32, 10)
    assert logits.dtype == jnp.float32


def test_without_normalisation_layers_have_biases(name, x, key):
    variables = jax.eval_shape(lambda: MODELS[name].init(key, x, train=True))
    expected = {f"layer{i}/{leaf}" for i in range(LAYERS[name]) for leaf in ("kernel", "bias")}
    assert set(gr.leaves(variables["params"])) == expected
    assert set(variables) == {"params"}


def test_paper_network_at_full_width(key):
    x = jnp.zeros((1, 32, 32, 3))
    model = models.VGG(10, norm=models.BatchNorm)
    kernels = jax.eval_shape(lambda: model.init(key, x, train=True))["params"]
    widths = [kernels[f"layer{i}"]["kernel"].shape[-1] for i in range(16)]
    assert widths == [64] * 2 + [128] * 3 + [256] * 3 + [512] * 7 + [10]
    assert kernels["layer14"]["kernel"].shape == (512, 512)
    assert kernels["layer1"]["kernel"].shape == (3, 3, 64, 64)


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
