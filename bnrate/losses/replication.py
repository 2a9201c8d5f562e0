"""Many runs of one problem as a single problem: what expectations are estimated from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bnrate.groups import Group, Groups, Member
from bnrate.losses.problem import Data, Problem


def replicas(problem: Problem, count: int) -> Problem:
    """The same instance from the same start many times over, each with batches of its own.

    The loss is the sum of theirs, so each is trained as if it were alone, and each replica of a
    block is a unit.  What a theorem says of an expectation is to be held against the mean over the
    replicas, which is an estimate of it.

    >>> from bnrate.losses import noisy_rayleigh
    >>> problem = replicas(noisy_rayleigh(jnp.eye(3)[:, None] * jnp.eye(3)[None]), 4)
    >>> params, data = problem.init(jax.random.key(0))
    >>> params["w"].shape, problem.batch(jax.random.key(1), jnp.int32(0)).shape
    ((4, 3), (4,))

    Args:
      problem: whose groups have no unit axes.
      count: of replicas.

    Raises:
      ValueError: count is below 1, or a group has unit axes.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 replica, got {count}")
    if problem.groups != problem.groups.whole():
        raise ValueError("replicas are units themselves: the groups must have no unit axes")

    def init(key: Array) -> tuple[PyTree, Data]:
        params, data = problem.init(key)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), params), data

    def loss(params: PyTree, data: Data, batches: PyTree) -> tuple[Array, Data]:
        each = jax.vmap(lambda p, batch: problem.loss(p, data, batch)[0])
        return jnp.sum(each(params, batches)), data

    return Problem(
        init=init,
        loss=loss,
        batch=lambda key, step: jax.vmap(lambda k: problem.batch(k, step))(
            jax.random.split(key, count)
        ),
        groups=Groups(Group(_replicated(m, count) for m in g.members) for g in problem.groups),
        mean=lambda params, data: jnp.sum(jax.vmap(problem.mean, (0, None))(params, data)),
        gradient=jax.vmap(problem.gradient, (0, None)),
    )


def _replicated(member: Member, count: int) -> Member:
    """The member of a leaf that has an axis of replicas in front: each replica a unit."""
    shape = None if member.shape is None else (count, *member.shape)
    return Member(member.path, 0, shape, [(axis + 1, *ends) for axis, *ends in member.part])
