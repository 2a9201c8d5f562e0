"""The structural witness against the numeric one and against the known answers of the zoo."""

from typing import NamedTuple

import jax
import mutants
import numpy as np
from zoo import units

from bnrate import invariance
from bnrate.certify import certify

UNCHECKED = mutants.copy().certify  # without the run-time checks of types
# With run-time checks of types, which take most of the time; of these models all primitives are.
CHECKED = {
    "transformer ReLU no final norm", "cond and while", "plain softplus",
    "rotary attention, QK-norm", "GRU", "CNN bias", "bnrate.models.MLP", "log Rayleigh quotient",
    "custom gradient", "plain leaky ReLU", "plain ReLU6", "remat", "equinox CNN, mode batch",
}  # fmt: skip


class Comparison(NamedTuple):
    """One model, proven and measured at eps = 0."""

    directions: int  # that are proven
    violations: int  # of them that the numbers refute: must be 0
    found: int  # proven dimensions, of those that are separable over axes
    numeric: int  # dimensions that the numbers see
    clear: bool  # whether they can be trusted


def claims(certificate):
    """What a certificate says, in the terms of the zoo."""
    single = [g.members[0] for g in certificate.groups if len(g.members) == 1]
    return {
        "invariant": {member.name for member in single},
        "units": {member.name: units(member) for member in single if member.axes},
        "no_effect": set(certificate.no_effect),
        "joint": {
            frozenset(m.name for m in g.members) for g in certificate.groups if len(g.members) > 1
        },
    }


def build(entry, eps):
    """The problem of a zoo entry in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return entry.build(eps)


def prove(problem, prover=certify, **options):
    """The certificate of a problem in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return prover(problem.loss, problem.params, *problem.args, **options)


def compare(entry):
    """Hold all that is proven of a model at eps = 0 against all that is measured."""
    problem = build(entry, 0.0)
    return compared(problem, prove(problem, UNCHECKED, eps="strict"))


def compared(problem, certificate):
    """The same of a problem and its certificate, at as many points as it takes and some more."""
    proven, draws = certificate.directions(), 5 * _columns(problem.params) // 4 + 16
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        measured = invariance.symmetries(problem.loss, problem.params, *problem.args, draws=draws)
    refuted = sum(not measured.contains(direction) for direction in proven)
    shapes = measured.shapes
    numeric = [measured.exponents(direction) for direction in measured.whole.basis]
    a, b = (_matrix(directions, shapes) for directions in (proven, numeric))
    shared = _rank(a) + _rank(b) - _rank(np.concatenate([a, b]))
    return Comparison(len(proven), refuted, shared, len(numeric), measured.clear)


def _columns(params):
    """The number of exponents that are separable over the axes of each leaf."""
    return sum(1 + sum(n - 1 for n in leaf.shape) for leaf in jax.tree.leaves(params))


def _matrix(directions, shapes):
    rows = [
        np.concatenate([np.ravel(np.broadcast_to(d.get(p, 0.0), s)) for p, s in shapes.items()])
        for d in directions
    ]
    return np.array(rows).reshape(len(rows), sum(map(int, map(np.prod, shapes.values()))))


def _rank(matrix):
    return np.linalg.matrix_rank(matrix, tol=1e-6) if len(matrix) else 0
