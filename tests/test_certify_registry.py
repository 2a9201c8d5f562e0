"""Kernels that are read as a reference: only those that were registered, and what numbers confirm.

Each refusal is tested by a certifier that lacks it, and then claims what is not true.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from mutants import Mutation, mutant, shared
from syntax import In

from bnrate import certify

W = jnp.arange(1.0, 4.0)


def plain(x):
    return x / jnp.linalg.norm(x)


def forward(x):
    return jax.vjp(plain, x)


def backward(pullback, ct):
    return pullback(ct)


def kernel(function=plain, forward=forward, backward=backward):
    """A function of one array with these derivative rules."""
    made = jax.custom_vjp(function)
    made.defvjp(forward, backward)
    return made


UNIT = kernel()


def skewed(backward):
    """A rule that makes use of another and is no derivative."""
    return lambda pullback, ct: (backward(pullback, ct)[0] + W,)


HOST = {"function": lambda x: x / np.linalg.norm(x)}


def called_back(x):
    return jax.pure_callback(lambda x: HOST["function"](x), x, x)


CALLED = kernel(called_back)


def changed_since(w):
    """The kernel as it was registered, though what it calls on the host is another function."""
    HOST["function"] = np.tanh
    return jnp.sum(CALLED(w) ** 3)


def doubled(x):
    return 2 * plain(x)


def turned(factor):
    """Complex numbers, of which the real parts are what they are."""
    return lambda x: lax.complex(plain(x), factor * plain(x))


class Trust(NamedTuple):
    """What is registered, and a loss that must not be read by it."""

    kernel: object
    loss: object


UNTRUSTED = {
    "rules that make use of a kernel's": Trust(
        UNIT, lambda w: jnp.sum(kernel(backward=skewed(backward))(w) ** 3)
    ),
    "another program with a kernel's rules": Trust(
        UNIT, lambda w: jnp.sum(kernel(jnp.tanh)(w) ** 3)
    ),
    "what is called back": Trust(CALLED, changed_since),
}
BROKEN = {
    "rules within rules are a kernel's": Mutation(
        In("registry.reference_of")
        .replace("source.rules_in", "source.functions_in", every=True)
        .replace("{*map(id, rules)} != {*map(id, held)}", "{*map(id, rules)} - {*map(id, held)}"),
        caught="rules that make use of a kernel's",
    ),
    "any program is a kernel's": Mutation(
        In("registry.reference_of").replace("str(own.jaxpr) == str(_)", "True"),
        caught="another program with a kernel's rules",
    ),
    "what is called back is told by its text": Mutation(
        In("registry.reference_of").replace("'callback' in _", "False"),
        caught="what is called back",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    """Here and in the copy that mutants are made of."""
    monkeypatch.setitem(HOST, "function", HOST["function"])
    for registry in (certify.registry, shared().modules["registry"]):
        monkeypatch.setattr(registry, "_references", {})


def claimed(name, register, certify):
    """The invariant leaves of a loss, after a kernel was registered that it does not call."""
    registered, loss = UNTRUSTED[name]
    register(registered, plain, W)
    return certify(loss, W).groups.paths


def test_a_registered_kernel_is_read():
    loss = lambda w: jnp.sum(UNIT(w) ** 3)  # noqa: E731
    assert certify.certify(loss, W).groups.paths == ()
    certify.register(UNIT, plain, W)
    assert certify.certify(loss, W).groups.paths == ("",)


@pytest.mark.parametrize("name", UNTRUSTED)
def test_nothing_else_is_read_in_its_place(name):
    assert claimed(name, certify.register, certify.certify) == ()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_caught(name):
    with mutant(BROKEN[name]) as broken:
        register = shared().modules["registry"].register
        assert claimed(BROKEN[name].caught, register, broken) == ("",)


@pytest.mark.parametrize(("function", "reference"), [(plain, doubled), (turned(1.0), turned(2.0))])
def test_values_are_compared(function, reference):
    """Those of complex numbers in both parts."""
    rules = kernel(function, lambda x: jax.vjp(function, x))
    certify.register(rules, function, W)
    with pytest.raises(ValueError, match="the values of the kernel and of the reference differ"):
        certify.register(rules, reference, W)


def test_gradients_are_compared():
    with pytest.raises(ValueError, match="the gradients of the kernel and of the reference differ"):
        certify.register(kernel(backward=skewed(backward)), plain, W)


def test_only_kernels_are_registered_and_with_examples():
    with pytest.raises(TypeError, match=r"jax.custom_vjp or jax.custom_jvp, got <function plain"):
        certify.register(plain, plain, W)
    with pytest.raises(ValueError, match="give example arguments"):
        certify.register(UNIT, plain)
