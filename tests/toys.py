"""Small tasks to train, in the default float dtype: (parameters, step) -> loss, with groups."""

import jax
import jax.numpy as jnp
import optax

from bnrate import certify, data, models
from bnrate.groups import Group, Groups, Member
from bnrate.theory.equivalence import Task

ONE_UNIT = Groups([Group([Member("w")])])


def rayleigh(spectrum, w):
    """A Rayleigh quotient of a diagonal matrix."""
    spectrum = jnp.asarray(spectrum, float)

    def loss(params, step):
        square = params["w"] ** 2
        return jnp.sum(spectrum * square) / jnp.sum(square)

    return Task(loss, {"w": jnp.asarray(w, float)}, ONE_UNIT)


def noisy_rayleigh(dims, seed=0):
    """A Rayleigh quotient with another random matrix at each step; nothing to converge to."""
    key, start = jax.random.split(jax.random.key(seed))

    def loss(params, step):
        a = jax.random.normal(jax.random.fold_in(key, step), (dims, dims))
        return params["w"] @ a @ params["w"] / jnp.sum(params["w"] ** 2)

    return Task(loss, {"w": jax.random.normal(start, (dims,))}, ONE_UNIT)


def noise(dims, spherical_gradient=1.0, seed=0):
    """A loss whose gradient on the sphere has a random direction and always this norm."""
    key, start = jax.random.split(jax.random.key(seed))

    def loss(params, step):
        w, direction = params["w"], jax.random.normal(jax.random.fold_in(key, step), (dims,))
        unit = w / jnp.linalg.norm(w)
        fixed = jax.lax.stop_gradient(unit)
        across = direction - jnp.sum(direction * fixed) * fixed
        return spherical_gradient * jnp.sum(across * unit) / jnp.linalg.norm(across)

    return Task(loss, {"w": jax.random.normal(start, (dims,))}, ONE_UNIT)


def bn_least_squares(covariance, cross, square, w, gamma):
    """Least squares on one normalised linear feature: E (gamma w'x / sqrt(w'Sw) - y)^2."""
    covariance, cross = jnp.asarray(covariance, float), jnp.asarray(cross, float)

    def loss(params, step):
        w, gamma = params["w"], params["gamma"]
        u = cross @ w / jnp.sqrt(w @ covariance @ w)
        return gamma**2 - 2 * gamma * u + square

    params = {"w": jnp.asarray(w, float), "gamma": jnp.asarray(gamma, float)}
    return Task(loss, params, ONE_UNIT)


def bn_regression(dims=4, batch=32, seed=0):
    """As `bn_least_squares`, but with the moments of a new batch at each step."""
    key, start = jax.random.split(jax.random.key(seed))

    def loss(params, step):
        x, errors = jnp.split(
            jax.random.normal(jax.random.fold_in(key, step), (batch, dims + 1)), [dims], axis=1
        )
        h = x @ params["w"]
        h = (h - jnp.mean(h)) / jnp.std(h)
        return jnp.mean((params["gamma"] * h - x[:, 0] - errors[:, 0]) ** 2)

    params = {"w": jax.random.normal(start, (dims,)), "gamma": jnp.asarray(0.5)}
    return Task(loss, params, ONE_UNIT)


def network(width=8, batch=64, seed=0):
    """A perceptron with BatchNorm on digits, a new batch at each step; groups as certified."""
    digits = data.load("digits")
    digits_x, digits_y = jnp.asarray(digits.train_x, float), jnp.asarray(digits.train_y)
    model = models.MLP((width,), digits.classes, models.BatchNorm, activation=jnp.tanh)
    initial = model.init(jax.random.key(seed), jnp.zeros(digits_x.shape, jnp.float32), train=True)
    variables = dict(optax.tree.cast(initial, digits_x.dtype))
    params = variables.pop("params")
    key = jax.random.key(seed + 1)

    def on(params, x, y):
        logits, _ = model.apply(
            {"params": params, **variables}, x, train=True, mutable=list(variables)
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def loss(params, step):
        chosen = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, len(digits_y))
        return on(params, digits_x[chosen], digits_y[chosen])

    groups = certify.certify(on, params, digits_x[:batch], digits_y[:batch]).groups
    return Task(loss, params, groups)
