"""The structural witness: a proof, from the traced program, of what may be rescaled.

`certify` traces a loss and follows through every operation what a rescaling of the parameters
does to each intermediate value.  What is left unconstrained at the end is a symmetry of the loss,
for all parameters and all data of these shapes, in real arithmetic.  An operation without a rule
demands that its operands be invariant: what is not known costs claims, never truth.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x, y):
    ...     h = x @ params["kernel"]
    ...     h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)
    ...     return jnp.mean((h @ params["head"] - y) ** 2)
    >>> shapes = {"kernel": jnp.zeros((3, 4)), "head": jnp.zeros(4)}
    >>> certificate = certify(loss, shapes, jnp.zeros((8, 3)), jnp.zeros(8))
    >>> certificate.groups
    Groups(groups=(Group(members=(Member('kernel', axes=(1,)),)),))
    >>> certificate.why("head")[0].what
    'a value that scales is added to one that does not'
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, Literal

from jaxtyping import PyTree

from bnrate import objective
from bnrate.certify.certificate import Break, Certificate, EpsSite
from bnrate.certify.reading import read
from bnrate.certify.registry import register
from bnrate.certify.solution import Solution
from bnrate.certify.source import Site

__all__ = ["Break", "Certificate", "EpsSite", "Site", "certify", "register"]


def certify(
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    eps: Literal["ignore", "strict"] = "ignore",
) -> Certificate:
    """Prove which parameters of a loss may be rescaled, and say what stops the others.

    Nothing is computed: arrays and `jax.ShapeDtypeStruct`s do equally.

    Args:
      loss: `loss(params, *args)` is a scalar, or a tuple that begins with one.
      params: a tree of float arrays.
      args: the loss's other arguments; static ones are bound with `functools.partial`.
      eps: "ignore" proves invariance up to the epsilons of normalisations: the claims hold
        exactly once the literals in `.eps_sites` are 0, and off the degenerate sets (a variance of
        0) that guards are for.  "strict" counts the epsilons as they are.

    Returns:
      The certificate.  Both the value of the loss and its gradient are covered: `.groups` holds
      only what leaves the value unchanged and has <w, grad> = 0 too.

    Raises:
      ValueError: there are no parameters, one is not of floats, the loss cannot be traced for
        these shapes, or is not a floating scalar.
    """
    if eps not in ("ignore", "strict"):
        raise ValueError(f"eps must be 'ignore' or 'strict', got {eps!r}")
    leaves = objective.parameters(params)
    shapes = tuple(tuple(leaf.shape) for leaf in leaves.values())
    traced = objective.trace(loss, params, args)
    with _no_collections():
        reading = read(traced, shapes)
        return Certificate.of(Solution(tuple(leaves), shapes, reading, strict=eps == "strict"))


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Stop the search for cyclic garbage: a proof makes little, and a search walks all of JAX."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
