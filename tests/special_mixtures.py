"""More losses for `special`: mixed entries, what is told of numbers, triangles of matrices.

`MIXTURES` is exact like `SPECIAL`: atoms that coincide are added; what a comparison, an order or a
test of numbers tells needs them to be finite and of enough bits; of a matrix that is not symmetric
JAX's derivative reads more than its value.  `MIXED_EXCUSES` is like `EXCUSES`: an epsilon is felt
once entries with and without it, or of both signs, are summed, or where few bits make zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from special import TRIPLE, entry
from special_found import BY_VALUE
from zoo import Entry

SIGNS = np.array([1.0, -1.0, 1.0])
PLACES = np.array([0.5, -1.0, 2.0])
BY_SIGN = "b is felt by its sign alone"
SQUARE = 8 * np.eye(4)


# --- atoms that coincide


def sums_of_squares(h):
    """The sum of the squares over the batch, in a roundabout way."""
    mean = h.mean(0)
    return jnp.sum(h * h - mean * mean, 0) + len(h) * mean * mean


def roundabout(x, w, u, b):
    h = x @ w + b
    difference = sums_of_squares(h) - sums_of_squares(h + x @ u)
    return jnp.sum(difference) / jnp.sum(jnp.abs(difference))


def first_of_both(x, w):
    """Quotients of columns, in one of which the first column is squared as an outer product."""
    a, b, c = (h := w.reshape(4, 3)).T
    products = h[:, :, None] * h[:, None, :]
    return jnp.append(jnp.tanh(products[:, 0, 0] / (a * b)), jnp.tanh(a * c / (b * b)))


def two_views(x, w, u):
    """The parts of u are made of rows of three, and of rows of four."""
    a, b, c = w.reshape(2, 3), u[:6].reshape(2, 3), u[6:].reshape(3, 4)
    rest = c / jnp.sqrt(jnp.sum(c * c, 0))
    return jnp.append(jnp.tanh(a / jnp.sum(jnp.abs(b), 0)), jnp.tanh(rest))


# --- what is told of numbers


def shifted_by(b):
    return PLACES + 1 / jax.nn.relu(b)


def told(tell):
    """What is told of numbers that are shifted by b, or are infinite where b is negative."""
    return entry(lambda x, b: jnp.where(tell(b), PLACES, -PLACES), "b", b=(), note=BY_SIGN)


def vanishing(b):
    return jnp.exp(PLACES - 1 / jax.nn.relu(b))


def before_it_is_narrow(x, s):
    """At each step it is told of a carry that was rounded at the step before."""

    def step(carry, _):
        finite = jnp.isfinite(carry)
        return (1e3 * carry).astype(jnp.float16).astype(float), finite

    return x[0, :3] * lax.scan(step, s, None, 3)[1]


def narrow(tell, size):
    """What is told of numbers of few bits, which are infinite or zero if they are of this size."""
    return entry(
        lambda x, s: x[0, :3] * tell((size * PLACES * s).astype(jnp.float16)).astype(float), "s"
    )


# --- matrices


def scaled_matrix(read, degree):
    """Homogeneous functions of a matrix that is a multiple of one that is not symmetric."""
    matrix = SQUARE + np.arange(16.0).reshape(4, 4) / 16
    return entry(
        lambda x, w: read(matrix * w) / jnp.linalg.norm(matrix * w) ** degree, w=(4, 4),
        note=BY_VALUE,
    )  # fmt: skip


def solved(a):
    return jax.scipy.linalg.solve(a, jnp.ones(4), assume_a="pos")


# --- entries with and without an epsilon


def over_sum(values):
    return entry(lambda x, s: s / jnp.sum(values(x, s)), "s")


def signed_steps(x, s):
    """Over the first step's carry, which is zero at the second step; s is in both results."""
    step = lambda carry, sign: (0 * carry, sign * (carry**2 + s**2 + 1e-4))  # noqa: E731
    return lax.scan(step, s, np.array([1.0, -2.0]))[1]


def masked(x, b):
    """Exponentials of shifted values where a guard is off."""
    return jnp.where(jax.nn.relu(x) != 0, x, jnp.exp(jnp.cos(x) + b))


def of_sixteen_bits(net):
    """Of parameters of few bits."""
    full = entry(net)

    def build(eps):
        problem = full.build(eps)
        return problem._replace(params=jax.tree.map(jnp.float16, problem.params))

    return full._replace(build=build)


MIXTURES: dict[str, Entry] = {
    "roundabout sum of squares": entry(roundabout, "wub", joint=TRIPLE, dims=(1, 0)),
    "one entry of two axes": entry(
        first_of_both, w=(12,), invariant=("w",), units={"w": ((0,), (4, 3))}, dims=(1, 3)
    ),
    "parts in two views": entry(
        two_views, "wu", w=(6,), u=(18,), joint=(frozenset("wu"),), dims=(1, 5)
    ),
    "bias behind a mask": entry(masked, "b", b=()),
    "comparison of a logarithm": entry(
        lambda x, w: jnp.where(jnp.log(jnp.linalg.norm(w)) > x, x, -x)
    ),
    "sign of a logarithm": entry(lambda x, w: x * jnp.sign(jnp.log(jnp.linalg.norm(w)))),
    "finite or not": told(lambda b: jnp.isfinite(shifted_by(b))),
    "the largest, if any": told(lambda b: jnp.argmax(shifted_by(b)) == jnp.arange(3)),
    "the order, if any": told(lambda b: jnp.argsort(-shifted_by(b)) == jnp.arange(3)),
    "the first places, if any": told(
        lambda b: lax.top_k(shifted_by(b), 2)[1][0] == jnp.arange(3)
    ),
    "the total order, if any": told(
        lambda b: lax.lt_to_p.bind(h := shifted_by(b), lax.rev(h, (0,)))
    ),
    "an exponential or zero": told(lambda b: vanishing(b) > 0),
    "sign of an exponential": told(lambda b: jnp.sign(vanishing(b)) > 0),
    "angle of exponentials": told(lambda b: jnp.arctan2(h := vanishing(b), h) > 0.5),
    "finite in sixteen bits": narrow(jnp.isfinite, 1e7),
    "sign in sixteen bits": narrow(jnp.sign, 1e-6),
    "some in sixteen bits": narrow(lambda h: h.astype(bool), 1e-6),
    "largest in sixteen bits": narrow(lambda h: jnp.argmax(jnp.abs(h)) == jnp.arange(3), 1e7),
    "finite before it is narrow": entry(before_it_is_narrow, "s"),
    "finite with fewer bits": entry(
        lambda x, s: jnp.where(jnp.isfinite(lax.reduce_precision(1e7 * s, 5, 10)), x, -x), "s"
    ),
    "Cholesky factor of a triangle": scaled_matrix(jax.scipy.linalg.cholesky, 0.5),
    "eigenvectors of a triangle": scaled_matrix(
        lambda a: jnp.linalg.eigh(a, symmetrize_input=False)[1] ** 2, 0
    ),
    "solved by a triangle": scaled_matrix(solved, -1),
}  # fmt: skip

MIXED_EXCUSES: dict[str, Entry] = {
    "over a choice of signs": over_sum(
        lambda x, s: jnp.where(x[0, :2] * 0 < SIGNS[:2], s + 1e-4, -s)
    ),
    "over a guard of some entries": over_sum(
        lambda x, s: jnp.where(jax.nn.relu((x[0, :2] * 0 + SIGNS[:2]) * s) != 0, s + 1e-4, -s)
    ),
    "over every other entry": over_sum(lambda x, s: jnp.stack([s + 1e-4, s, 1e-4 - s])[::2]),
    "over a slice of signs": over_sum(
        lambda x, s: lax.dynamic_slice(s * SIGNS + 1e-4, (jnp.argmax(x[0, :1]),), (2,))
    ),
    "over what a negative pad leaves": over_sum(
        lambda x, s: lax.pad(s * SIGNS + 1e-4, jnp.zeros(()), [(0, -1, 0)])
    ),
    "over steps of both signs": entry(lambda x, s: s**2 / jnp.sum(signed_steps(x, s)), "s"),
    "one over a guard that is mostly zero": entry(
        lambda x, s: jnp.tanh(1e-3 / jnp.where(jnp.abs(s * 1e-3) > 1e-3, 0.0, jnp.abs(s))), "s"
    ),
    "logarithms of squares in sixteen bits": of_sixteen_bits(
        lambda x, w: (h := jnp.log((w * w * 1e-4).astype(float) + 1e-12)) - h.mean()
    ),
    "over a difference of roots": entry(
        lambda x, w: jnp.linalg.norm(w) / (jnp.sqrt(jnp.sum(w**2) + 1e-4) - jnp.linalg.norm(w))
    ),
}
