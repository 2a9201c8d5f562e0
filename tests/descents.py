"""Gradient descent in NumPy on losses with known constants: what bounds are held against."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bnrate.theory.constants import Constants


class Instance(NamedTuple):
    """A loss of blocks and a rest, where it starts, and constants for gradient descent from there.

    `at` maps (list of blocks, rest) to loss, list of gradients, gradient of the rest.
    """

    at: object
    blocks: list
    rest: np.ndarray
    constants: Constants
    rate_rest: float | None = None


class Record(NamedTuple):
    """Of each step; loss and norm2 also after the last."""

    loss: np.ndarray
    norm2: np.ndarray
    spherical_gradient: np.ndarray
    rest_gradient: np.ndarray

    @property
    def squared_gradient(self):
        return np.sum(self.spherical_gradient**2, axis=1) + self.rest_gradient**2


def constants(tangent, gradient, *, ambient=np.inf, mixed=0.0, rest=0.0, lowest=0.0):
    """From numbers, in the default dtype."""
    gradient = np.atleast_1d(np.asarray(gradient, float))
    m = len(gradient)
    return Constants(
        jnp.asarray(np.broadcast_to(np.asarray(tangent, float), (m, m))),
        jnp.asarray(np.broadcast_to(np.asarray(ambient, float), (m, m))),
        jnp.asarray(gradient),
        jnp.asarray(np.broadcast_to(np.asarray(mixed, float), m)),
        jnp.asarray(float(rest)),
        jnp.asarray(float(lowest)),
    )


def descend(instance, rate, steps, rule=None):
    """Run gradient descent; `rule(w, gradient, memory) -> w, memory` replaces the plain step."""
    plain = lambda w, gradient, memory: (w - rate * gradient, memory)  # noqa: E731
    blocks, rest, memory = list(instance.blocks), instance.rest, [0.0] * len(instance.blocks)
    rows = []
    for _ in range(steps + 1):
        loss, gradients, slope = instance.at(blocks, rest)
        G = np.array([w @ w for w in blocks])
        D = np.sqrt(G) * np.array([np.linalg.norm(gradient) for gradient in gradients])
        rows.append((loss, G, D, np.linalg.norm(slope)))
        moved = [(rule or plain)(*each) for each in zip(blocks, gradients, memory, strict=True)]
        blocks, memory = zip(*moved, strict=True)
        rest = rest - (instance.rate_rest or 0.0) * slope
    loss, norm2, gradient, slope = map(np.array, zip(*rows, strict=True))
    return Record(loss, norm2, gradient[:-1], slope[:-1])


def quotient(A, w):
    """w'Aw / w'w and its gradient; A is symmetric, or its diagonal."""
    image = A * w if A.ndim == 1 else A @ w
    loss = w @ image / (w @ w)
    return loss, 2 * (image - loss * w) / (w @ w)


def rayleigh(spectrum, w):
    """The Rayleigh quotient: all constants are known exactly."""
    spectrum = np.asarray(spectrum, float)

    def at(blocks, rest):
        loss, gradient = quotient(spectrum, blocks[0])
        return loss, [gradient], np.zeros(1)

    span = np.ptp(spectrum)
    known = constants(2 * span, span, ambient=2 * span, lowest=spectrum.min())
    return Instance(at, [np.asarray(w, float)], np.zeros(1), known)


def pair(spectra, M, blocks):
    """Two Rayleigh quotients and v1'M v2, v the unit vectors; the lowest is a bound only."""
    spectra = [np.asarray(spectrum, float) for spectrum in spectra]

    def at(blocks, rest):
        parts = [quotient(spectrum, w) for spectrum, w in zip(spectra, blocks, strict=True)]
        norms = [np.linalg.norm(w) for w in blocks]
        v, u = (w / norm for w, norm in zip(blocks, norms, strict=True))
        joint = v @ M @ u
        gradients = [
            parts[0][1] + (M @ u - joint * v) / norms[0],
            parts[1][1] + (M.T @ v - joint * u) / norms[1],
        ]
        return parts[0][0] + parts[1][0] + joint, gradients, np.zeros(1)

    size, spans = np.linalg.norm(M, 2), np.array([np.ptp(spectrum) for spectrum in spectra])
    tangent = np.diag(2 * spans) + size
    lowest = sum(spectrum.min() for spectrum in spectra) - size
    known = constants(tangent, spans + size, lowest=lowest)
    return Instance(at, [np.asarray(w, float) for w in blocks], np.zeros(1), known)


def least_squares(S, b, c0, w, gamma, rate_rest):
    """E (gamma w'x / sqrt(w'Sw) - y)^2 with S = E xx', b = E xy, c0 = E y^2; rate_rest <= 1/2."""
    S, b = np.asarray(S, float), np.asarray(b, float)

    def at(blocks, rest):
        (w,), (gamma,) = blocks, rest
        p = np.sqrt(w @ S @ w)
        u = b @ w / p
        slope = b / p - u * (S @ w) / p**2
        return gamma**2 - 2 * gamma * u + c0, [-2 * gamma * slope], 2 * np.array([gamma - u])

    size, values = np.sqrt(b @ np.linalg.solve(S, b)), np.linalg.eigvalsh(S)
    kappa, largest = values[-1] / values[0], max(abs(gamma), size)
    second = 4 / np.sqrt(3) * largest * kappa * size
    first, mixed = 2 * largest * np.sqrt(kappa) * size, 2 * np.sqrt(kappa) * size
    known = constants(second, first, ambient=second, mixed=mixed, rest=2.0, lowest=c0 - size**2)
    return Instance(at, [np.asarray(w, float)], np.array([gamma]), known, rate_rest)


def instances(seed=0):
    """One of each kind, by name; in the default dtype of the moment."""
    rng = np.random.default_rng(seed)
    sphere = lambda d: (lambda w: w / np.linalg.norm(w))(rng.standard_normal(d))  # noqa: E731
    S = np.diag(np.linspace(1, 10, 4))
    b = rng.standard_normal(4)
    return {
        "quotient-2": rayleigh([0.0, 1.0], sphere(2)),
        "quotient-5": rayleigh(np.geomspace(1e-3, 1, 5), 0.1 * sphere(5)),
        "quotient-20": rayleigh(np.linspace(-1, 2, 20), 2 * sphere(20)),
        "pair": pair(
            (np.linspace(0, 1, 3), [0.0, 0.2, 0.4]),
            rng.standard_normal((3, 3)) / 3,
            (sphere(3), 3 * sphere(3)),
        ),
        "least-squares": least_squares(S, b, 2 + b @ np.linalg.solve(S, b), sphere(4), 0.5, 0.5),
        "test-vector": least_squares(np.diag([1.0, 4.0]), [1.0, 2.0], 2.5, [1.0, -0.5], 0.5, 0.5),
    }
