"""Small tasks to train, in the default float dtype: (parameters, step) -> loss, with groups."""

import jax
import jax.numpy as jnp
import optax

from bnrate import certify, data, losses, models
from bnrate.groups import Group, Groups, Member
from bnrate.theory.equivalence import Task

ONE_UNIT = Groups([Group([Member("w")])])


def exactly(problem):
    """The task of a problem without batches, from its start."""
    params, known = problem.init(jax.random.key(0))
    return Task(lambda p, step: problem.mean(p, known), params, problem.groups)


def rayleigh(spectrum, w):
    """A Rayleigh quotient of a diagonal matrix."""
    return exactly(losses.rayleigh(spectrum, w))


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
    of = losses.Moments(jnp.asarray(covariance, float), jnp.asarray(cross, float), square)
    return exactly(losses.bn_least_squares(of, {"w": w, "gamma": gamma}))


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
