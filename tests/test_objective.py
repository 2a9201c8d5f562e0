"""What is asked of losses and parameters, and what is said where it fails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import objective

W = {"w": jnp.ones(3)}


def total(p, *args):
    return jnp.sum(p["w"])


def test_inputs_are_the_parameters_and_then_the_arguments():
    program = objective.trace(lambda p, x: jnp.sum(p["a"]) * x, {"b": W["w"], "a": W["w"]}, (2.0,))
    assert [v.aval.shape for v in program.jaxpr.invars] == [(3,), (3,), ()]


def test_auxiliary_output_is_left_out():
    program = objective.trace(lambda p: (total(p), p), W, ())
    assert len(program.out_avals) == 1


def test_shapes_do():
    shapes = jax.eval_shape(lambda: W)
    assert list(objective.parameters(shapes)) == ["w"]
    assert objective.trace(total, shapes, ()).out_avals[0].shape == ()


@pytest.mark.parametrize("arg", [True, 3, 0.5, 1j, np.ones(2), np.float32(1), jnp.int32(1), None])
def test_numbers_and_arrays_may_be_arguments(arg):
    assert objective.trace(total, W, (arg,))


PARAMETERS = {
    "none": ({}, "there are no parameters"),
    "integers": ({"n": jnp.arange(3)}, "leaf 'n' is int32; .*pass it as an argument of the loss"),
    "bools": ({"n": jnp.ones(3, bool)}, "leaf 'n' is bool; .*equinox.partition"),
    "complex": ({"n": jnp.ones(3, "complex64")}, "leaf 'n' is complex64; "),
    "a Python float": ({"n": 0.1}, "leaf 'n' is float; .*make it one with jnp.asarray, or pass it"),
    "a Python bool": ({"n": True}, "leaf 'n' is bool; .*pass it as an argument"),
    "a Python int": ({"deep": {"n": 3}}, "leaf 'deep/n' is int; "),
    "text": ({"n": "x"}, "leaf 'n' is str; "),
}


@pytest.mark.parametrize(("params", "message"), PARAMETERS.values(), ids=PARAMETERS)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        objective.parameters({**W, **params} if params else params)


def test_numbers_need_finite_values():
    with pytest.raises(ValueError, match="leaf 'w' is only a shape"):
        objective.finite(jax.eval_shape(lambda: W))
    with pytest.raises(ValueError, match="leaf 'w' is not finite"):
        objective.finite({"w": jnp.array([jnp.inf])})
    assert objective.finite(W)["w"] is W["w"]


def branches(p, train):
    return total(p) if train else 0.0 * total(p)


def sized(p, n):
    return total(p) + jnp.zeros(n).sum()


BIND = r"bind it with functools.partial, as in functools.partial\(loss, train=True\)"
LOSSES = {
    "vector": (lambda p: p["w"], (), r"got float32 of shape \(3,\): reduce it, by jnp.mean say"),
    "integer": (lambda p: jnp.int32(0), (), r"got int32 of shape \(\)$"),
    "nothing": (lambda p: None, (), "got NoneType of shape None$"),
    "text": (total, ("mean",), f"argument 1 after the parameters of the loss is 'mean'.*{BIND}"),
    "text inside": (total, (1, {"a": "mean"}), r"argument 2 after the parameters \(at \['a'\]\)"),
    "object": (total, (object(),), "is a object, which is no array"),
    "bool": (branches, (True,), f"TracerBoolConversionError.*argument 1 .* is True: {BIND}"),
    "int": (sized, (3,), f"argument 1 after the parameters is 3: {BIND}"),
    "value": (lambda p: branches(p, p["w"][0] > 0), (), "use jnp.where or jax.lax.cond"),
    "shapes": (lambda p: p["w"] @ jnp.ones(4), (), r"could not be traced .*: TypeError: dot_gen"),
}


@pytest.mark.parametrize(("loss", "args", "message"), LOSSES.values(), ids=LOSSES)
def test_bad_losses(loss, args, message):
    with pytest.raises(ValueError, match=message):
        objective.trace(loss, W, args)


def test_the_remedy_helps():
    assert objective.trace(functools.partial(branches, train=True), W, ())
