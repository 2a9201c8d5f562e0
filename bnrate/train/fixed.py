"""Whether all steps of a run see one and the same function."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var
from jaxtyping import Array, Int, PyTree


def one_loss(
    init: Callable[[Array], tuple[PyTree, PyTree]],
    loss: Callable[[PyTree, PyTree, Any], tuple[Array, PyTree]],
    batch: Callable[[Array, Int[Array, ""]], Any],
) -> bool:
    """Whether all steps of a run see one function of the parameters, as the traced programs show.

    The bounds of gradient descent, and certificates, are about such runs.  True only if the batch
    depends on neither key nor step, the loss on nothing in `extra` that it changes (a key for
    dropout, say; running moments that it only updates are fine), and neither calls back to Python
    or touches mutable arrays.  What Python itself does differently from call to call is not seen.

    >>> def init(key):
    ...     return jnp.ones(3), ()
    >>> def loss(w, extra, x):
    ...     return jnp.sum(w * x), extra
    >>> one_loss(init, loss, lambda key, step: jnp.ones(3))
    True
    >>> one_loss(init, loss, lambda key, step: jax.random.normal(key, (3,)))
    False

    Args:
      init: as `make_run` has it.
      loss: as `make_run` has it.
      batch: as `make_run` has it.
    """
    key, step = jax.random.key(0), jnp.zeros((), jnp.int32)
    params, extra = jax.eval_shape(init, key)
    of_batch = jax.make_jaxpr(batch)(key, step)
    of_loss = jax.make_jaxpr(loss)(params, extra, jax.eval_shape(batch, key, step))
    if not (_pure(of_batch) and _pure(of_loss)):
        return False
    first = len(jax.tree.leaves(params))
    kept = of_loss.jaxpr.invars[first : first + len(jax.tree.leaves(extra))]
    value, *after = of_loss.jaxpr.outvars
    changing = [old for old, new in itertools.zip_longest(kept, after) if old is not new]
    return not (
        _follows(of_batch.jaxpr, of_batch.jaxpr.invars, of_batch.jaxpr.outvars)
        or _follows(of_loss.jaxpr, changing, [value])
    )


def _follows(jaxpr: Jaxpr, sources: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether results of a program may change with some of its inputs."""
    moving = set(sources)

    def moves(atoms: Sequence[Any]) -> bool:
        return any(isinstance(atom, Var) and atom in moving for atom in atoms)

    for equation in jaxpr.eqns:
        if moves(equation.invars):
            moving.update(equation.outvars)
    return moves(results)


def _pure(program: Any) -> bool:
    """Whether nothing but its inputs decides what a program returns."""
    jaxpr = getattr(program, "jaxpr", program)
    if jaxpr.effects:
        return False
    for equation in jaxpr.eqns:
        if "callback" in equation.primitive.name or equation.primitive.name == "rng_uniform":
            return False
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        )
        if not all(_pure(one) for one in inner if hasattr(one, "eqns")):
            return False
    return True
