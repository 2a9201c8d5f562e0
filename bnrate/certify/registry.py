"""Kernels with derivative rules of their own, and programs that say what they compute.

What a `jax.custom_vjp` or `jax.custom_jvp` computes may lie in a kernel that nobody can read, and
its derivative is whatever its author says.  `register` names an ordinary function that has the same
values and derivatives; numbers are asked before it is believed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from bnrate.certify import source
from bnrate.certify.equations import Equation

_POINTS = 3
_ROUNDINGS = 1e3  # so many roundings of the largest number are no difference

_references: dict[Any, Callable[..., Any]] = {}


def register(kernel: Any, reference: Callable[..., Any], *examples: Any) -> None:
    """Let `certify` read a reference wherever a program calls a kernel.

        >>> @jax.custom_vjp
        ... def double(x):
        ...     return 2 * x
        >>> double.defvjp(lambda x: (double(x), None), lambda _, ct: (2 * ct,))
        >>> register(double, lambda x: x + x, jnp.ones(3))

    Args:
      kernel: a function decorated with `jax.custom_vjp` or `jax.custom_jvp`, of arrays alone.
      reference: an ordinary JAX function of the same arguments, with the same values and
        derivatives for arrays of any shape.
      *examples: arguments, as arrays or `jax.ShapeDtypeStruct`s: the two are compared, values and
        gradients, at random points of these shapes and dtypes.

    Raises:
      TypeError: the kernel has no derivative rule of its own.
      ValueError: there are no examples; values or gradients differ.
    """
    if not isinstance(kernel, jax.custom_vjp | jax.custom_jvp):
        raise TypeError(
            f"a kernel is decorated with jax.custom_vjp or jax.custom_jvp, got {kernel!r}; other "
            "functions are read as they are"
        )
    if not examples:
        raise ValueError(
            "give example arguments, at which the kernel and the reference are compared"
        )
    for seed in range(_POINTS):
        _compare(kernel, reference, [_drawn(x, (seed, i)) for i, x in enumerate(examples)])
    _references[kernel] = reference


def reference_of(eqn: Equation) -> ClosedJaxpr | None:
    """The program to be read in place of a call of a registered kernel.

    The call must be of the kernel's own program and rules, not of a batched or another one.
    """
    if not _references:
        return None
    held = source.rules_in([eqn.params.get(name) for name in source.RULE_PARAMETERS])
    for kernel, reference in _references.items():
        rules = source.rules_in([getattr(kernel, name, None) for name in ("fwd", "bwd", "jvp")])
        if {*map(id, rules)} != {*map(id, held)}:
            continue
        arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        try:
            own = jax.make_jaxpr(kernel.fun)(*arguments)
            read = jax.make_jaxpr(reference)(*arguments)
        except (TypeError, ValueError, IndexError):
            continue
        if "callback" in str(own.jaxpr):
            continue  # what is called back is not told by its text
        if str(own.jaxpr) == str(eqn.params["call_jaxpr"].jaxpr) and (
            [v.aval for v in read.jaxpr.outvars] == [v.aval for v in eqn.outvars]
        ):
            return read
    return None


def _drawn(example: Any, seed: tuple[int, int]) -> Any:
    """Random numbers of an example's shape and dtype; whole numbers as they are."""
    if not jnp.issubdtype(example.dtype, jnp.inexact):
        return example
    numbers = np.random.default_rng(seed).standard_normal(example.shape)
    return jnp.asarray(numbers, example.dtype)


def _compare(kernel: Any, reference: Callable[..., Any], point: Sequence[Any]) -> None:
    floating = [i for i, x in enumerate(point) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def of_floats(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*floats: Any) -> Any:
            arguments = list(point)
            for i, x in zip(floating, floats, strict=True):
                arguments[i] = x
            return function(*arguments)

        return called

    floats = [point[i] for i in floating]
    ours, pullback = jax.vjp(of_floats(kernel), *floats)
    theirs, other = jax.vjp(of_floats(reference), *floats)
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        raise ValueError(
            f"the kernel returns {jax.tree.structure(ours)} and the reference "
            f"{jax.tree.structure(theirs)}"
        )
    cotangent = jax.tree.map(
        lambda y: jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), y.dtype), ours
    )
    _refuse_difference("values", ours, theirs)
    _refuse_difference("gradients", pullback(cotangent), other(cotangent))


def _refuse_difference(what: str, ours: Any, theirs: Any) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.complex128), np.asarray(b, np.complex128)
        eps = float(jnp.finfo(jax.tree.leaves(ours)[0].dtype).eps)
        size = max(float(np.abs(b).max(initial=0)), 1e-30)
        gap = float(np.abs(a - b).max(initial=0)) / size if a.shape == b.shape else np.inf
        if not gap <= _ROUNDINGS * eps:
            raise ValueError(
                f"the {what} of the kernel and of the reference differ by {gap:.1e} of their "
                "size; a reference must have the values and the derivatives of its kernel"
            )
