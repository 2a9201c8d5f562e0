"""Ours against what other implementations did, as `references/record.py` recorded it."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references.gradients import GRADIENTS, SHAPE

from bnrate import transforms
from bnrate.groups import Group, Groups, Member

COLUMNS = Groups([Group([Member("W", axes=1)])])
EXACT, ROUNDED = 1e-12, 2e-6  # of the largest entry, in float64 and in float32
PROBLEMS = list(GRADIENTS)


def read(path):
    """The cases of one reference, with its name and their number."""
    cases = json.loads(path.read_text())["cases"]
    return [case | {"reference": path.stem, "number": i} for i, case in enumerate(cases)]


CASES = [
    case
    for path in sorted((Path(__file__).parent / "references").glob("*.json"))
    for case in read(path)
]


def name(case):
    return "{reference}-{number}-{rule}-{problem}".format(**case)


# What each recorded rule is called here: its settings -> a transformation of {"W": gradient}.


def sgd(lr, momentum=0.0, nesterov=False, dampening=0.0, weight_decay=0.0):
    """PyTorch dampens all gradients but the first."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_schedule(lambda step: jnp.where(step == 0, 1.0, 1.0 - dampening)),
        optax.sgd(lr, momentum, nesterov),
    )


def adagrad(lr, eps, initial_accumulator_value=None):
    """PyTorch adds eps to the root, as AdaUSM does, and optax below it."""
    if initial_accumulator_value is not None:
        return optax.adagrad(lr, initial_accumulator_value, eps)
    scaled = transforms.weighted_adagrad_momentum(COLUMNS, 0.0, power=0.0, eps=eps)
    return optax.chain(scaled, optax.sgd(lr))


def adam(lr, beta1, beta2, eps):
    return optax.adam(lr, beta1, beta2, eps)


def adamw(lr, beta1, beta2, eps, weight_decay):
    return optax.adamw(lr, beta1, beta2, eps, weight_decay=weight_decay)


def sgdp_as_published(lr, **settings):
    return transforms.sgdp(COLUMNS, lr, **settings)


def sgdp(lr, **settings):
    """Theirs, unless Nesterov's, removes the radial part of what it remembers too, in place."""
    tx = sgdp_as_published(lr, **settings)
    undecayed = sgdp_as_published(lr, **settings | {"weight_decay": 0.0})

    def update(grads, state, params):
        step, _ = undecayed.update(grads, state, params)
        updates, state = tx.update(grads, state, params)
        return updates, on_momentum(lambda _: step["W"] / -lr, state)

    return tx if settings.get("nesterov") else optax.GradientTransformation(tx.init, update)


def adamp(lr, beta1, beta2, **settings):
    return transforms.adamp(COLUMNS, lr, beta1, beta2, **settings)


def riemannian_sgd(lr, manifold, buffer="none", **settings):
    del buffer
    return transforms.riemannian_sgd(COLUMNS, lr, **settings, retraction=manifold == "Sphere")


def riemannian_adam(lr, beta1, beta2, eps, manifold, buffer="none"):
    del buffer
    straight = manifold == "Sphere"
    return transforms.riemannian_adam(COLUMNS, lr, beta1, beta2, eps, retraction=straight)


def as_geoopt(rule):
    """Theirs carries momentum by projection along great circles too, where ours transports it."""

    def make(lr, manifold, buffer, **settings):
        tx = rule(lr, manifold=manifold, **settings)
        tx = tx if manifold == "Sphere" else projected_momentum(tx)
        return started_at_gradient(tx) if buffer == "gradient" else tx

    return make


def projected_momentum(tx):
    """Momentum along a great circle, projected at its end, is shorter by the angle's cosine."""

    def update(updates, state, params):
        updates, state = tx.update(updates, state, params)
        after = optax.apply_updates(params, updates)
        W, V = params["W"], after["W"]
        cosine = jnp.sum(W * V, 0, keepdims=True) / jnp.sum(W * W, 0, keepdims=True)
        return updates, on_momentum(lambda m: m * cosine, state)

    return optax.GradientTransformation(tx.init, update)


def started_at_gradient(tx):
    """The momentum starts at the first gradient, which so counts twice."""

    def init(params):
        return on_momentum(lambda _: GRADIENTS["columns"](params["W"]), tx.init(params))

    return optax.GradientTransformation(init, tx.update)


def on_momentum(f, state):
    return jax.tree.map(lambda leaf: f(leaf) if leaf.shape == SHAPE else leaf, state)


def rotational(rule, rotation, update_norm_decay_factor, per_neuron):
    groups = COLUMNS if per_neuron else COLUMNS.whole()
    return optax.chain(rule, transforms.rotational(groups, rotation, update_norm_decay_factor))


def rotational_sgd(lr, momentum, weight_decay, nesterov=False, per_neuron=True, **settings):
    rotation = (2 * lr * weight_decay / (1 + momentum)) ** 0.5
    rule = optax.sgd(1.0, momentum, nesterov)
    return rotational(rule, rotation, per_neuron=per_neuron, **settings)


def rotational_adamw(lr, beta1, beta2, eps, weight_decay, **settings):
    rotation = (2 * lr * weight_decay * (1 - beta1) / (1 + beta1)) ** 0.5
    return rotational(optax.adam(1.0, beta1, beta2, eps), rotation, per_neuron=True, **settings)


def rotational_lion(lr, beta1, beta2, weight_decay, per_neuron=True, **settings):
    spread = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    rotation = (math.pi * lr * weight_decay * spread) ** 0.5
    return rotational(optax.lion(1.0, beta1, beta2), rotation, per_neuron=per_neuron, **settings)


def sgdg(lr, momentum, grad_clip):
    return transforms.grassmann_sgd(COLUMNS, lr, momentum, grad_clip)


def adamg(lr, momentum, grad_clip, epsilon, beta2=0.99):
    return transforms.grassmann_adam(COLUMNS, lr, momentum, beta2, epsilon, grad_clip)


OURS = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "Adam": adam,
    "AdamW": adamw,
    "SGDP": sgdp,
    "AdamP": adamp,
    "RiemannianSGD": as_geoopt(riemannian_sgd),
    "RiemannianAdam": as_geoopt(riemannian_adam),
    "RotationalSGD": rotational_sgd,
    "RotationalAdamW": rotational_adamw,
    "RotationalLion": rotational_lion,
    "SGDG": sgdg,
    "AdamG": adamg,
}
# Its bias correction raises a float to an integer power, which strict promotion refuses.
WITH_OPTAX_ADAM = {"Adam", "AdamW", "RotationalAdamW"}

# Ours without what explains how theirs differs.
PLAIN = {
    "SGDP": sgdp_as_published,
    "RiemannianSGD": riemannian_sgd,
    "RiemannianAdam": riemannian_adam,
}


def settings_of(case):
    """The settings of a case by the names that the functions above use."""
    found = dict(case["settings"])
    if "betas" in found:
        found["beta1"], found["beta2"] = found.pop("betas")
    return found | {key: case[key] for key in ("manifold", "buffer") if key in case}


@functools.cache
def program(make, settings, steps, every):
    """Of one rule: (start, problem) -> W at every so many steps; all problems share it."""

    @jax.jit
    def run(start, problem):
        tx = make(**dict(settings))

        def step(carry, _):
            params, state = carry
            grads = {"W": jax.lax.switch(problem, list(GRADIENTS.values()), params["W"])}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["W"]

        carry = {"W": start}, tx.init({"W": start})
        _, path = jax.lax.scan(step, carry, length=steps)
        return path[every - 1 :: every]

    return run


def deviation(case, make=None, dtype=jnp.float64, **changed):
    """The largest difference from the record, relative to its largest entry."""
    recorded = np.array(case["weights"])
    settings = tuple((settings_of(case) | changed).items())
    steps = case["every"] * (len(recorded) - 1)
    run = program(make or OURS[case["rule"]], settings, steps, case["every"])
    with jax.numpy_dtype_promotion("standard" if case["rule"] in WITH_OPTAX_ADAM else "strict"):
        found = run(jnp.asarray(recorded[0], dtype), PROBLEMS.index(case["problem"]))
    assert found.dtype == dtype
    return np.max(np.abs(np.asarray(found, float) - recorded[1:])) / np.max(np.abs(recorded))


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.usefixtures("float64")
def test_ours_goes_where_theirs_went(case):
    assert deviation(case) < EXACT


@pytest.mark.parametrize("rule", OURS)
def test_in_float32_too(rule):
    """The last case of each rule, for all problems that it was recorded on."""
    *_, last = (case["settings"] for case in CASES if case["rule"] == rule)
    for case in CASES:
        if case["rule"] == rule and case["settings"] == last:
            assert deviation(case, dtype=jnp.float32) < ROUNDED


def changed(value):
    return not value if isinstance(value, bool) else 0.8 * value + 1e-3


SETTINGS = sorted(
    {
        (case["rule"], key)
        for case in CASES
        for key, value in settings_of(case).items()
        if not isinstance(value, str)
    }
)


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize(("rule", "key"), SETTINGS)
@pytest.mark.usefixtures("float64")
def test_every_setting_is_felt(rule, key):
    """Else the records would not tell a rule that ignores it, or takes it for another."""
    having = [case for case in reversed(CASES) if case["rule"] == rule and key in settings_of(case)]
    assert any(deviation(case, **{key: changed(settings_of(case)[key])}) > 1e-5 for case in having)


@pytest.mark.parametrize("rule", ["SGDP", "AdamP"])
def test_all_guesses_of_the_cosine_are_recorded(rule):
    branches = [case["branches"] for case in CASES if case["rule"] == rule]
    assert {name for runs in branches for name, _ in runs} == {"channel", "layer", "none"}
    assert any(len(runs) > 1 for runs in branches)  # and it changes its mind


def explained(case):
    """Whether theirs does what the published rule does not."""
    momentum = case["rule"] == "RiemannianAdam" or "momentum" in case["settings"]
    if case["rule"] == "SGDP":
        guessed = any(name != "none" for name, _ in case["branches"])
        return momentum and guessed and not case["settings"].get("nesterov")
    return (momentum and case["manifold"] == "SphereExact") or case["buffer"] == "gradient"


@pytest.mark.parametrize("case", [case for case in CASES if case["rule"] in PLAIN], ids=name)
@pytest.mark.usefixtures("float64")
def test_only_what_is_explained_differs(case):
    """Without the explanation: equal where it does not apply, and visibly different where it does.

    SGDP's momentum loses its radial part with the step; geoopt's starts at the first gradient, and
    is projected after a step along a great circle.
    """
    difference = deviation(case, PLAIN[case["rule"]])
    assert difference > 1e-4 if explained(case) else difference < EXACT


@pytest.mark.usefixtures("float64")
def test_adagrad_norm_of_single_entries_is_adagrad():
    (case,) = (case for case in CASES if "initial_accumulator_value" in case["settings"])
    assert deviation(case, adagrad_of_entries) < EXACT


def adagrad_of_entries(lr, eps, initial_accumulator_value):
    """Units of one entry each; ours has no eps, and takes the root of the initial value."""
    assert eps == 0
    entries = Groups([Group([Member("W", axes=0)])])
    initial = math.sqrt(initial_accumulator_value)
    tx = optax.chain(transforms.adagrad_norm(entries, initial), optax.sgd(lr))

    def flat(tree):
        return {"W": tree["W"].reshape(-1)}

    def update(updates, state, params):
        new, state = tx.update(flat(updates), state, flat(params))
        return {"W": new["W"].reshape(SHAPE)}, state

    return optax.GradientTransformation(lambda params: tx.init(flat(params)), update)


# optax knows leaves; mapped over the columns of a leaf it knows units.


def by_trust_ratio(updates, params):
    tx = optax.scale_by_trust_ratio(trust_coefficient=0.5)
    return tx.update(updates, tx.init(params), params)[0]


def by_update_norm(updates, params):
    return optax.normalize_by_update_norm(eps=0.0).update(updates, optax.EmptyState(), params)[0]


def onto_sphere(updates, params):
    return optax.projections.projection_l2_sphere(params + updates, 2.0) - params


PARTS = {
    "trust_ratio": (lambda groups: transforms.trust_ratio(groups, 0.5), by_trust_ratio),
    "normalized_gradient": (transforms.normalized_gradient, by_update_norm),
    "set_norm": (lambda groups: transforms.set_norm(groups, 2.0), onto_sphere),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("float64")
def test_optax_does_the_same_to_leaves_and_mapped_to_columns(part):
    ours, theirs = PARTS[part]
    mapped = jax.vmap(theirs, in_axes=1, out_axes=1)
    rng = np.random.default_rng(0)
    W, step = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(2))

    def difference(groups, reference):
        tx = ours(groups)
        updates, _ = tx.update({"W": step}, tx.init({"W": W}), {"W": W})
        return float(jnp.max(jnp.abs(updates["W"] - reference(step, W))))

    assert difference(COLUMNS.whole(), theirs) < EXACT
    assert difference(COLUMNS, mapped) < EXACT
    assert difference(COLUMNS, theirs) > 0.01


@pytest.mark.usefixtures("float64")
def test_of_several_leaves_that_scale_together_optax_takes_each_alone():
    together = Groups([Group([Member("a"), Member("b")])])
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    updates = {"a": jnp.array([0.0, 5.0]), "b": jnp.array([12.0])}
    ours, theirs = transforms.trust_ratio(together), optax.scale_by_trust_ratio()
    scaled, _ = ours.update(updates, ours.init(params), params)
    alone, _ = theirs.update(updates, theirs.init(params), params)
    np.testing.assert_allclose(scaled["a"], [0.0, 5.0 * 5 / 13], rtol=EXACT)
    np.testing.assert_allclose(scaled["b"], [12.0 * 5 / 13], rtol=EXACT)
    np.testing.assert_allclose(alone["a"], [0.0, 3.0], rtol=EXACT)
