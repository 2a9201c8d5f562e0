"""The table of rules against the primitives that programs are made of."""

import ast
import collections
import inspect

import jax
import jax.numpy as jnp
import pytest
import zoo_models as m
from primitives import RULES, primitives_of
from witnesses import CHECKED
from zoo import ZOO
from zoo_frameworks import FRAMEWORKS

from bnrate.certify import certify, rules

# Of the zoo's primitives those that are left to the default rule.
WITHOUT = {"iota", "random_seed"}


def met(entry):
    """The primitives of a model; the model is only traced while it is built, which is quick."""
    found = set()

    def build():
        loss, params, args = entry.build(1e-5)
        found.update(primitives_of(jax.make_jaxpr(loss)(params, *args)))

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(build)
    return found


def test_the_zoo_has_a_rule_for_each_primitive_but_these():
    found = {name: met(entry) for name, entry in (ZOO | FRAMEWORKS).items()}
    every = set().union(*found.values())
    assert every - {*RULES} == WITHOUT
    assert set().union(*map(found.get, CHECKED)) == every


def written_names():
    """The names in the tables as they are written, in each dict and each `dict.fromkeys`."""
    for node in ast.walk(ast.parse(inspect.getsource(rules))):
        keys = node.keys if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys":
            keys = node.args[0].elts
        yield from (key.value for key in keys if isinstance(key, ast.Constant))


def test_no_primitive_has_two_rules():
    count = collections.Counter(written_names())
    assert {*count} == {*RULES}
    assert [name for name, times in count.items() if times > 1] == []


def test_tokens_that_are_joined_and_normalised_are_alike_again():
    """So that one token holds for them all: a bias of the keys shifts each row of the logits."""

    def loss(p, x):
        tokens = jnp.concatenate([p["cls"][None], x @ p["emb"]])
        h = m.standardise(tokens, axis=-1, eps=0.0)
        weights = jax.nn.softmax((h @ p["q"]) @ (h @ p["k"] + p["bk"]).T)
        return jnp.sum(jnp.tanh(weights) * jnp.arange(7.0))

    shapes = {"cls": (4,), "emb": (5, 4), "q": (4, 3), "k": (4, 3), "bk": (3,)}
    params, x = m.filled((shapes, (6, 5)))
    with jax.numpy_rank_promotion("allow"):
        assert certify(loss, params, x, eps="strict").no_effect == ("bk",)


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="this JAX has no mutable arrays")
@pytest.mark.parametrize("within", [False, True])
def test_mutable_arrays_are_refused(within):
    """Made by the loss or outside of it, written in the program or in one within it."""
    outer = None if within else jax.new_ref(jnp.zeros(3))

    def written(w):
        ref = jax.new_ref(jnp.zeros(3)) if outer is None else outer
        ref[...] = w
        return jnp.sum(ref[...] ** 2)

    with pytest.raises(ValueError, match=r"mutable arrays \(jax.Ref\)"):
        certify(jax.jit(written) if within else written, jnp.ones(3))
