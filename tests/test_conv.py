import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnrate import certify, conv

NUMBERS = {
    0: ("NC", "IO", "NC"),
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}

# Input, kernel, strides, padding, and the rest.
WINDOWS = {
    "same": ((4, 6, 7, 3), (3, 3, 3, 5), (1, 1), "SAME", {}),
    "enough channels": ((4, 6, 7, 9), (3, 3, 9, 5), (1, 1), "SAME", {}),
    "enough channels, odd": (
        (4, 8, 7, 8), (3, 4, 8, 5), (1, 2), [(3, 0), (1, 0)], {"rhs_dilation": (2, 1)}
    ),
    "enough channels, cropped": ((4, 8, 7, 8), (3, 2, 8, 5), (1, 1), [(-1, -2), (4, 0)], {}),
    "valid": ((4, 6, 7, 3), (3, 2, 3, 5), (1, 1), "VALID", {}),
    "pointwise": ((4, 6, 7, 3), (1, 1, 3, 5), (1, 1), "SAME", {}),
    "strided": ((4, 7, 7, 3), (3, 3, 3, 5), (2, 2), "SAME", {}),
    "strided unevenly": ((3, 8, 9, 3), (3, 4, 3, 2), (3, 1), [(2, 0), (1, 3)], {}),
    "strided columns": ((3, 8, 9, 3), (2, 3, 3, 2), (1, 2), "VALID", {}),
    "pointwise with a stride": ((4, 7, 7, 3), (1, 1, 3, 5), (2, 2), "SAME", {}),
    "a stride that leaves a rest": ((2, 10, 10, 2), (2, 2, 2, 3), (3, 3), "VALID", {}),
    "dilated": ((4, 8, 9, 3), (3, 3, 3, 5), (1, 1), "SAME", {"rhs_dilation": (1, 2)}),
    "dilated and strided": ((2, 9, 9, 2), (3, 3, 2, 2), (2, 1), "SAME", {"rhs_dilation": (2, 2)}),
    "spread": ((2, 4, 5, 3), (3, 3, 3, 2), (1, 1), [(1, 2), (2, 1)], {"lhs_dilation": (2, 3)}),
    "cropped": ((2, 8, 8, 3), (3, 3, 3, 2), (1, 1), [(-1, 0), (1, -2)], {}),
    "more padding than window": ((2, 4, 4, 3), (2, 2, 3, 2), (1, 1), [(3, 3), (2, 4)], {}),
    "groups": ((4, 6, 7, 4), (3, 3, 2, 6), (1, 1), "SAME", {"feature_group_count": 2}),
    "depthwise": ((4, 6, 7, 4), (3, 3, 1, 8), (2, 2), "SAME", {"feature_group_count": 4}),
    "smaller than the window": ((4, 2, 2, 9), (3, 3, 9, 5), (1, 1), "SAME", {}),
    "smaller, strided": ((3, 3, 9, 3), (5, 3, 3, 4), (2, 1), [(3, 2), (2, -1)], {}),
    "smaller, dilated": ((3, 4, 3, 4), (3, 2, 2, 4), (1, 1), "SAME",
        {"rhs_dilation": (2, 3), "feature_group_count": 2}),
    "smaller, spread": ((2, 2, 3, 3), (4, 3, 3, 2), (1, 2), [(2, 2), (1, 1)],
        {"lhs_dilation": (2, 1)}),
    "one image": ((1, 6, 7, 3), (3, 3, 3, 5), (1, 1), "SAME", {}),
    "many images": ((24, 3, 3, 2), (3, 3, 2, 3), (1, 1), "SAME", {}),
    "one dimension": ((4, 9, 3), (3, 3, 5), (1,), "SAME", {}),
    "one dimension strided": ((4, 9, 4), (3, 2, 4), (2,), "SAME", {"feature_group_count": 2}),
    "few outputs": ((8, 7), (7, 3), (), (), {}),
    "many outputs": ((8, 3), (3, 7), (), (), {}),
    "groups of numbers": ((8, 4), (2, 6), (), (), {"feature_group_count": 2}),
    "three dimensions": ((2, 4, 3, 5, 2), (2, 3, 3, 2, 3), (1, 1, 2), "SAME", {}),
}  # fmt: skip
A_FEW = ["strided", "groups", "one dimension", "few outputs"]


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def both(name):
    """Ours, JAX's, and arguments."""
    x, w, strides, padding, more = WINDOWS[name]
    more = {"dimension_numbers": NUMBERS[len(strides)], **more}

    def made(convolution):
        return lambda x, w: convolution(x, w, strides, padding, **more)

    return made(conv.convolve), made(lax.conv_general_dilated), normal(*x), normal(*w)


def assert_close(actual, desired):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        scale = np.max(np.abs(b)) + 1e-30
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a / scale, b / scale, atol=3e-6)


def loss(f):
    return lambda x, w: jnp.sum(jnp.sin(f(x, w)))


def vjp(f):
    def result(x, w):
        y, pull = jax.vjp(f, x, w)
        return y, pull(jnp.cos(y))

    return result


def jvp(f):
    return lambda x, w: jax.jvp(f, (x, w), (jnp.sin(x), jnp.cos(w)))


def gradient(f):
    return jax.grad(loss(f), (0, 1))


def hvp(f):
    """Forward over reverse."""
    return lambda x, w: jax.jvp(gradient(f), (x, w), (jnp.sin(x), jnp.cos(w)))


def reverse_over_reverse(f):
    def slope(x, w):
        dx, dw = gradient(f)(x, w)
        return jnp.vdot(dx, jnp.sin(x)) + jnp.vdot(dw, jnp.cos(w))

    return jax.grad(slope, (0, 1))


def reverse_over_forward(f):
    return jax.grad(lambda x, w: jax.jvp(loss(f), (x, w), (jnp.sin(x), jnp.cos(w)))[1], (0, 1))


def forward_over_forward(f):
    return jvp(lambda x, w: jax.jvp(f, (x, w), (w.sum() * x, w))[1])


def third(f):
    return jax.grad(lambda x, w: sum(map(jnp.sum, reverse_over_reverse(f)(x, w))), (0, 1))


DERIVATIVES = [hvp, reverse_over_reverse, reverse_over_forward, forward_over_forward, third]


@pytest.mark.parametrize("name", WINDOWS)
def test_values_and_both_modes_are_those_of_jax(name):
    ours, plain, x, w = both(name)
    for derivative in (vjp, jvp):
        assert_close(jax.jit(derivative(ours))(x, w), jax.jit(derivative(plain))(x, w))


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", A_FEW)
def test_higher_derivatives_are_those_of_jax(derivative, name):
    ours, plain, x, w = both(name)
    assert_close(jax.jit(derivative(ours))(x, w), jax.jit(derivative(plain))(x, w))


# The axes of runs of the input and of the kernel, and of the cotangent.
SHARED = {"neither": (0, 0), "the input": (None, 0), "the kernel": (0, None), "elsewhere": (2, -1)}


@pytest.mark.parametrize("axes", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("name", A_FEW)
def test_vmap_is_that_of_jax(name, axes):
    ours, plain, x, w = both(name)
    x, w = (
        a if axis is None else jnp.moveaxis(normal(3, *a.shape, seed=1), 0, axis)
        for a, axis in zip((x, w), axes, strict=True)
    )
    for derivative in (vjp, jvp, hvp):
        result = [jax.jit(jax.vmap(derivative(f), axes))(x, w) for f in (ours, plain)]
        assert_close(*result)


@pytest.mark.parametrize("name", A_FEW)
def test_each_face_with_any_operand_shared(name):
    """Kernel gradients of one cotangent for many inputs, and so on: all six foldings."""
    ours, plain, x, w = both(name)
    y = normal(*jax.eval_shape(plain, x, w).shape)
    many = {k: normal(3, *v.shape, seed=2) for k, v in {"x": x, "w": w, "y": y}.items()}
    one = {"x": x, "w": w, "y": y}
    for runs in ({"x"}, {"w"}, {"y"}, {"x", "y"}, {"w", "y"}):
        arguments = [many[k] if k in runs else one[k] for k in "xwy"]
        axes = [0 if k in runs else None for k in "xwy"]
        results = [
            jax.jit(jax.vmap(lambda x, w, y, f=f: jax.vjp(f, x, w)[1](y), axes))(*arguments)
            for f in (ours, plain)
        ]
        assert_close(*results)


@pytest.mark.parametrize("name", ["same", "groups"])
def test_two_axes_of_runs_and_the_gradient_of_vmap(name):
    ours, plain, x, w = both(name)
    xs, ws = normal(2, 3, *x.shape, seed=1), normal(3, *w.shape, seed=2)

    def twice(f):
        return jax.vmap(jax.vmap(f), (0, None))

    for derivative in (vjp, hvp):
        assert_close(
            jax.jit(derivative(twice(ours)))(xs, ws), jax.jit(derivative(twice(plain)))(xs, ws)
        )
        assert_close(
            jax.jit(twice(derivative(ours)))(xs, ws), jax.jit(twice(derivative(plain)))(xs, ws)
        )


def test_loops_checkpoints_and_shards():
    ours, plain, x, w = both("same")
    mesh = jax.make_mesh((2,), ("runs",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("runs")

    def steps(f):
        gradient = jax.grad(loss(jax.checkpoint(f)), 1)
        return lambda w: lax.scan(lambda w, _: (w - 0.01 * gradient(x, w), None), w, length=3)[0]

    def sharded(f, **options):
        each = jax.shard_map(
            lambda ws: lax.map(steps(f), ws), mesh=mesh, in_specs=(spec,), out_specs=spec, **options
        )
        return jax.jit(each)

    ws = normal(4, *w.shape, seed=3)
    assert "convolve" in str(jax.make_jaxpr(sharded(ours, check_vma=False))(ws))
    assert_close(sharded(ours, check_vma=False)(ws), sharded(plain, check_vma=False)(ws))
    assert_close(sharded(ours)(ws), sharded(plain)(ws))


def test_a_kernel_shared_by_shards_sums_their_gradients():
    ours, plain, x, w = both("same")
    mesh = jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,))
    some, every = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()

    def summed(f):
        mapped = jax.shard_map(
            lambda x, w: lax.psum(loss(f)(x, w), "batch"),
            mesh=mesh, in_specs=(some, every), out_specs=every,
        )  # fmt: skip
        return jax.jit(jax.grad(mapped, (0, 1)))(x, w)

    assert_close(summed(ours), jax.jit(gradient(plain))(x, w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_dtypes_are_kept(dtype):
    ours, plain, x, w = both("same")
    x, w = x.astype(dtype), w.astype(dtype)
    for f in (ours, plain):
        y, pull = jax.vjp(f, x, w)
        assert {a.dtype for a in (y, *pull(y))} == {np.dtype(dtype)}
    pulled = [[g.astype(jnp.complex64) for g in jax.vjp(f, x, w)[1](y)] for f in (ours, plain)]
    for a, b in zip(*pulled, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.max(np.abs(b)))


def test_double_precision(float64):
    ours, plain, x, w = both("same")
    x, w = x.astype(jnp.float64), w.astype(jnp.float64)
    for a, b in zip(gradient(ours)(x, w), gradient(plain)(x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


# What is left to JAX.
OTHERS = {
    "channels first": ((2, 3, 5, 5), (4, 3, 3, 3), {"dimension_numbers": None}),
    "kernel OIHW": ((2, 5, 5, 3), (4, 3, 3, 3), {"dimension_numbers": ("NHWC", "OIHW", "NHWC")}),
    "element type": (
        (2, 5, 5, 3), (3, 3, 3, 4),
        {"dimension_numbers": NUMBERS[2], "preferred_element_type": jnp.float32},
    ),
    "batch groups": (
        (4, 5, 5, 3), (3, 3, 3, 4), {"dimension_numbers": NUMBERS[2], "batch_group_count": 2}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_layouts_and_arguments_are_left_to_jax(name):
    x, w, more = OTHERS[name]
    results = [
        jax.jit(vjp(lambda x, w, f=f: f(x, w, (1, 1), "SAME", **more)))(normal(*x), normal(*w))
        for f in (conv.convolve, lax.conv_general_dilated)
    ]
    assert_close(*results)


def test_shapes_that_do_not_fit_are_refused_as_by_jax():
    x, w = normal(2, 5, 5, 3), normal(3, 3, 4, 4)
    for convolution in (conv.convolve, lax.conv_general_dilated):
        with pytest.raises(ValueError, match="feature_group_count"):
            convolution(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS[2])


def test_nothing_to_sum():
    for shape in ((0, 5, 5, 3), (2, 0, 5, 3)):
        x, w = normal(*shape), normal(3, 3, 3, 4)
        f = functools.partial(
            conv.convolve, window_strides=(1, 1), padding="SAME", dimension_numbers=NUMBERS[2]
        )
        dx, dw = gradient(f)(x, w)
        assert dx.shape == x.shape
        assert not jnp.any(dw)


LAYERS = {
    "plain": {"kernel_size": (3, 3)},
    "strided": {"kernel_size": (3, 3), "strides": 2, "padding": "VALID"},
    "dilated": {"kernel_size": (3, 3), "kernel_dilation": 2},
    "spread": {"kernel_size": (3, 3), "input_dilation": 2, "padding": 1},
    "circular": {"kernel_size": (3, 3), "padding": "CIRCULAR"},
    "groups": {"kernel_size": (3, 3), "feature_group_count": 2},
    "one dimension": {"kernel_size": (3,), "padding": "CAUSAL"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_drop_in_for_flax(name, key):
    arguments = LAYERS[name]
    x = normal(2, *(6,) * len(arguments["kernel_size"]), 4)
    ours, theirs = conv.Conv(6, **arguments), nn.Conv(6, **arguments)
    params = theirs.init(key, x)
    assert jax.tree.structure(ours.init(key, x)) == jax.tree.structure(params)
    assert_close(ours.init(key, x), params)
    results = [
        jax.jit(jax.value_and_grad(lambda p, m=m: jnp.sum(jnp.sin(m.apply(p, x)))))(params)
        for m in (ours, theirs)
    ]
    assert_close(*results)


def layouts(f, *arguments):
    """The layouts of all convolutions of the compiled program."""
    text = jax.jit(f).lower(*arguments).as_text("hlo")
    return {part.split(",")[0].split()[0] for part in text.split("dim_labels=")[1:]}


def test_no_convolution_has_another_layout_than_the_fast_one():
    ours, plain, x, w = both("same")
    xs, ws = normal(3, *x.shape), normal(3, *w.shape)
    for f in (gradient, hvp, reverse_over_reverse):
        assert layouts(f(ours), x, w) == {"b01f_01io->b01f"}
        assert layouts(jax.vmap(f(ours)), xs, ws) == {"b01f_01io->b01f"}
        assert layouts(f(plain), x, w) != {"b01f_01io->b01f"}


def test_an_image_smaller_than_the_window_is_padded_before():
    """XLA, whose convolution is slow there, takes the padding back unless it is kept from it."""
    ours, plain, x, w = both("smaller than the window")
    as_users_have_it = {"xla_cpu_use_fusion_emitters": True}

    def windows(f):
        text = jax.jit(vjp(f)).lower(x, w).compile(as_users_have_it).as_text()
        return {part.split("}")[0] for part in text.split("window={")[1:]}

    assert windows(ours) == {"size=3x3"}
    assert windows(plain) != {"size=3x3"}


def test_runs_that_share_their_input_are_channels():
    ours, _, x, w = both("same")
    ws = normal(3, *w.shape)
    text = str(jax.make_jaxpr(jax.vmap(jax.grad(lambda w, x: loss(ours)(x, w)), (0, None)))(ws, x))
    assert text.count("shape=(4, 6, 7, 15)") == 1
    assert text.count("shape=(3, 3, 3, 15)") == 1
    assert "runs=True" not in text


def test_certificates_see_a_convolution():
    """The same groups as with JAX's own."""

    def proven(convolution):
        def network(params, x):
            y = convolution(x, params, (1, 1), "SAME", dimension_numbers=NUMBERS[2])
            return jnp.sum(jnp.tanh(y / jnp.sqrt(jnp.sum(y**2, (0, 1, 2), keepdims=True))))

        return certify.certify(network, normal(3, 3, 3, 4), normal(2, 5, 5, 3)).groups

    assert proven(conv.convolve) == proven(lax.conv_general_dilated)
    assert len(proven(conv.convolve)) == 1


PRODUCTS = {
    "matrix": ((5, 4), (4, 3)),
    "images": ((2, 5, 4), (4, 3)),
    "vector": ((4,), (4, 3)),
}


@pytest.mark.parametrize(("x", "w"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_layers_product(x, w):
    x, w = normal(*x), normal(*w)
    product = functools.partial(conv.multiply, dimension_numbers=(((x.ndim - 1,), (0,)), ((), ())))
    assert "convolve" in str(jax.make_jaxpr(product)(x, w))
    for law in (vjp, jvp, lambda f: jax.hessian(loss(f), (0, 1))):
        assert_close(law(product)(x, w), law(jnp.matmul)(x, w))


OTHER_PRODUCTS = {
    "transposed": ((5, 4), (3, 4), (((1,), (1,)), ((), ())), {}),
    "batched": ((2, 5, 4), (2, 4, 3), (((2,), (1,)), ((0,), (0,))), {}),
    "other dtype": (
        (5, 4),
        (4, 3),
        (((1,), (0,)), ((), ())),
        {"preferred_element_type": "bfloat16"},
    ),
}


@pytest.mark.parametrize(("x", "w", "numbers", "more"), OTHER_PRODUCTS.values(), ids=OTHER_PRODUCTS)
def test_other_products_are_those_of_jax(x, w, numbers, more):
    x, w = normal(*x), normal(*w)
    product = functools.partial(conv.multiply, dimension_numbers=numbers, **more)
    assert "convolve" not in str(jax.make_jaxpr(product)(x, w))
    np.testing.assert_array_equal(
        product(x, w), lax.dot_general(x, w, dimension_numbers=numbers, **more)
    )


def test_dense_is_flaxs_with_other_gradients():
    x = normal(6, 4)
    params = nn.Dense(3).init(jax.random.key(0), x)
    assert jax.tree.structure(conv.Dense(3).init(jax.random.key(0), x)) == jax.tree.structure(
        params
    )

    def by(layer):
        return jax.grad(lambda p: jnp.sum(jnp.sin(layer(3).apply(p, x))))(params)

    assert_close(by(conv.Dense), by(nn.Dense))
