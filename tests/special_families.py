"""Losses that each turn on the rule of one family of primitives: writes, matrices, shards, ...

See `special`, of which these are more.
"""

import jax
import jax.numpy as jnp
from functions import on_shards
from jax import lax
from jax.scipy.sparse import linalg
from special import along, centred, entry, rms, shifted
from zoo import Entry

SEGMENTS = jnp.array([0, 1, 0, 2, 1, 1, 0, 2])


def totals(h):
    return jax.ops.segment_sum(h, SEGMENTS, 3)


def means(h):
    return lax.pmean(jnp.mean(h, 0), "d")


def of_one_shard(h):
    h = h[:, :4] + h[:, 4:] * lax.axis_index("d")
    return h - means(h)


def in_order_of(key, x):
    return lax.sort((key, x), dimension=0, num_keys=1)[1]


def one_step(solve, **options):
    """A solution after one step from a start that does not scale."""

    def net(x, w):
        a = x[:4] @ w
        found, _ = solve(a.T @ a, x[:4, 0], x0=x[:4, 1], maxiter=1, **options)
        return found * jnp.sum(a**2)

    return entry(net)


def experts(x, w, u):
    return lax.ragged_dot(x, jnp.stack([w, u]), jnp.array([3, 5]))


FAMILIES: dict[str, Entry] = {
    # writes
    "segment sum of a bias": shifted(lambda h: centred(totals(h))),
    "maximum with a number": entry(lambda x, w: centred((x @ w).at[:2].max(0.3))),
    "added number": entry(lambda x, w: centred((x @ w).at[:2].add(0.3))),
    "factor written": entry(
        lambda x, w, u: centred((x @ u).at[:2].multiply((x @ w)[:2], unique_indices=True)), "wu",
        invariant=("u",), units={"u": 1}, dims=(1, 3),
    ),
    "rows added to a bias": shifted(lambda h: centred(h.at[:2].add(h[2:4]))),
    "columns added": along(lambda h: rms(h.at[:, :2].add(h[:, 2:]), axis=0)),
    # order
    "in order of sines": entry(
        lambda x, w: rms(in_order_of(jnp.sin(3 * x @ w), x @ w), axis=0)
    ),
    # complex numbers, rounding, pairs
    "phase": entry(lambda x, w, u: jnp.angle(lax.complex(x @ w, x @ u)), "wu",
                   joint=(frozenset("wu"),), dims=(1, 3)),
    "phase with a number": entry(lambda x, w: jnp.angle(lax.complex(x @ w, x[:, :4]))),
    "transform along": along(lambda h: rms(jnp.abs(jnp.fft.fft(h, axis=1)), axis=0)),
    "transform of a bias": shifted(
        lambda h: rms(jnp.abs((y := jnp.fft.fft(h, axis=0)) - y[:1]), axis=0)
    ),
    "remainder of a number": entry(lambda x, w: centred(jnp.fmod(x @ w, 0.2))),
    # matrices
    "triangle of ones": entry(
        lambda x, w: rms(lax.linalg.triangular_solve(
            (x @ w).T @ (x @ w), x[:4], left_side=True, lower=True, unit_diagonal=True
        )),
    ),
    "cholesky of squares and 1": entry(
        lambda x, w: (lambda c: c / jnp.sqrt(jnp.sum(c**2)))(
            jnp.linalg.cholesky((x @ w).T @ (x @ w) + jnp.eye(4))),
    ),
    "roots of squares": entry(
        lambda x, w: jnp.linalg.cholesky((x @ w).T @ (x @ w)) / jnp.sum((x @ w) ** 2),
    ),
    "both factors": entry(
        lambda x, w: lax.linalg.lu((x @ w).T @ (x @ w))[0] / jnp.sum((x @ w) ** 2)
    ),
    "solution": entry(lambda x, w: jnp.linalg.solve(x[:4] @ w, x[:4])),
    "one step of conjugate gradients": one_step(linalg.cg),
    "one step of stabilised gradients": one_step(linalg.bicgstab),
    "one step of minimal residuals": one_step(linalg.gmres, restart=1),
    # experts
    "two experts": entry(lambda x, w, u: rms(experts(x, w, u), axis=0), "wu",
                         joint=(frozenset("wu"),), dims=(1, 3)),
    # shards
    "centred by shard": shifted(lambda h: rms(on_shards(lambda h: h - 2 * means(h))(h), axis=0)),
    "scaled by shard": entry(
        lambda x, w, u: rms(on_shards(
            lambda h: jnp.where(lax.axis_index("d") == 0, h[:, :4], h[:, 4:])
        )(jnp.concatenate([x @ w, x @ u], 1)), axis=0), "wu", joint=(frozenset("wu"),), dims=(1, 3),
    ),
    "bias of a shard": entry(
        lambda x, w, b: on_shards(of_one_shard)(
            jnp.concatenate([jnp.tanh(x @ w), jnp.broadcast_to(b, (8, 4))], 1)), "wb",
    ),
    "bias sent to one": shifted(
        lambda h: centred(on_shards(lambda h: lax.ppermute(h, "d", [(0, 1)]))(h))
    ),
}  # fmt: skip
