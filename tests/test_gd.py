"""The GD bound: against numbers worked out by hand, NumPy's bisection, and gradient descent."""

import functools
import itertools

import descents
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate.theory import filling, gd

FEW = settings(max_examples=40, deadline=None)


def unit(**changes):
    """Where the second derivative is at most 2 and the gradient at most 1, one block."""
    return descents.constants(2.0, 1.0, ambient=2.0)._replace(**changes)


UNIT = {"loss": 0.5, "norm2": np.ones(1)}


@jax.jit
def by_arcs(constants, norm2, loss, rate):
    return gd.geodesic(constants, loss=loss, norm2=norm2, rate=rate)


# ---- numbers


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rate", "excess", "inverse_rate", "descent", "total"),
    [
        (0.1, 0.033554817, 10.590972, 0.55741681, 5.9035856),
        (1.0, 0.5, 3.1461932, 1.6461932, 4.4492659),
        (10.0, 9.8058252, 15.445744, 5.5399186, 85.568163),
        (1000.0, 999.998, 1014.3287, 14.329738, 14535.065),
    ],
)
def test_by_arcs_of_one_block(rate, excess, inverse_rate, descent, total):
    found = by_arcs(unit(), UNIT["norm2"], 0.5, rate)
    np.testing.assert_allclose(gd.excess(np.ones(1), np.ones(1) / rate), [excess], rtol=5e-8)
    np.testing.assert_allclose(found.inverse_rate, [inverse_rate], rtol=5e-8)
    np.testing.assert_allclose(found.norm2, [rate * inverse_rate], rtol=5e-8)
    np.testing.assert_allclose((found.descent, found.total), (descent, total), rtol=5e-8)
    np.testing.assert_allclose((found.trivial, found.vacuous_until), (1, total), rtol=5e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rate", "inverse_rate", "descent", "total"),
    [
        (0.1, 10.556701, 0.55670063, 5.7219641),
        (1.0, 3.0642460, 2.0642460, 4.1948017),
        (10.0, 105.61118, 105.51118, 5576.8553),
        (1000.0, 1000019.2, 1000019.2, 5.0001922e11),
    ],
)
def test_by_segments_of_one_block(rate, inverse_rate, descent, total):
    found = gd.straight(unit(), **UNIT, rate=rate)
    np.testing.assert_allclose(found.inverse_rate, [inverse_rate], rtol=5e-8)
    np.testing.assert_allclose((found.descent, found.total), (descent, total), rtol=5e-8)


@pytest.mark.usefixtures("float64")
def test_with_a_rest():
    instance = descents.instances()["test-vector"]
    constants = instance.constants
    exact = [18.47520861, 8.0, 5.65685425, 0.5]
    given = constants.tangent[0, 0], constants.gradient[0], constants.mixed[0], constants.lowest
    np.testing.assert_allclose(given, exact, rtol=1e-9)
    found = gd.geodesic(constants, loss=2.75, norm2=np.array([1.25]), rate=3.0, rate_rest=0.5)
    np.testing.assert_allclose(gd.safety(constants, 0.5), 0.5, rtol=1e-15)
    np.testing.assert_allclose(gd.cost(constants, 0.5), [25.23760431], rtol=1e-9)
    numbers = found.inverse_rate[0], found.descent, found.total
    np.testing.assert_allclose(numbers, (323.37845, 170.18839, 55035.258), rtol=2e-8)
    assert (found.trivial, found.vacuous_until) == (np.inf, 0)


@pytest.mark.usefixtures("float64")
def test_roots():
    s = np.array([1.5, 3, 10, 100, 600])
    expected = [2.357676674, 4.505241496, 12.52796320, 104.6506274, 606.4075523]
    np.testing.assert_allclose(jax.jit(gd.solve_z)(s), expected, rtol=5e-10)
    s = 1 + np.geomspace(1e-12, 1e6, 50)
    z = gd.solve_z(s)
    np.testing.assert_allclose(z - jnp.log(z), s, rtol=1e-15)
    np.testing.assert_array_equal(gd.solve_z(np.ones(2)), 1)
    slopes = jax.vmap(jax.grad(gd.solve_z))(s)
    np.testing.assert_allclose(slopes, z / (z - 1), rtol=1e-9)
    assert float(gd.solve_z(1e300)) == pytest.approx(1e300)


@pytest.mark.usefixtures("float64")
def test_cost_by_hand():
    constants = descents.constants([[2.0, 0.5], [0.5, 4.0]], np.ones(2), mixed=[1.0, 2.0], rest=1.0)
    np.testing.assert_allclose(gd.safety(constants, 0.5), 0.75, rtol=1e-15)
    np.testing.assert_allclose(gd.cost(constants, 0.5), [1.25 + 1, 2.25 + 2], rtol=1e-15)
    alone = constants._replace(mixed=0 * constants.mixed, rest=0 * constants.rest)
    np.testing.assert_allclose(gd.cost(alone), [1.25, 2.25], rtol=1e-15)


@pytest.mark.usefixtures("float64")
def test_where_the_rest_is_slowest():
    constants, start = descents.instances()["test-vector"].constants, {"norm2": np.ones(1)}
    found = gd.geodesic(constants, loss=2.75, **start, rate=1.0, rate_rest=1e-4)
    share = 2 / ((1 - 1e-4) * 1e-4)  # of a squared gradient in the rest, of its descent
    assert share > found.inverse_rate[0]
    np.testing.assert_allclose(found.total, share * found.descent, rtol=1e-12)


# ---- many blocks


def by_bisection(budget, C, b):
    """The limits of each growth and of the sum of logarithms, from their definitions."""

    def h(i, y):
        return y - b[i] - C[i] * np.log(y / b[i])

    def last(f, low, high):  # where an increasing f passes the budget
        for _ in range(120):
            middle = np.sqrt(low) * np.sqrt(high)
            low, high = (middle, high) if f(middle) <= budget else (low, middle)
        return low

    def filled(mu):
        return np.maximum(b, mu * C)

    m = range(len(C))
    level = last(lambda mu: sum(h(i, filled(mu)[i]) for i in m), 1.0, 1e30)
    turning = np.sum(C * np.log(filled(level) / b))
    lowest = np.array([h(i, max(b[i], C[i])) for i in m])
    others = np.sum(lowest) - lowest
    alone = [last(lambda y, i=i: h(i, y) + others[i], max(b[i], C[i]), 1e30) for i in m]
    return np.minimum(np.array(alone) - b, budget + turning), turning


positive = st.floats(-3, 3).map(lambda x: 10**x)
BLOCKS = st.integers(1, 5).flatmap(
    lambda m: st.tuples(*[st.lists(positive, min_size=m, max_size=m)] * 3)
)


@pytest.mark.usefixtures("float64")
@FEW
@given(BLOCKS, st.floats(0, 5))
def test_water_filling_is_that_of_bisection(blocks, height):
    C, b, B = (jnp.zeros(8).at[: len(x)].set(jnp.array(x)) for x in blocks)  # compiled once
    m = len(blocks[0])
    b = b.at[m:].set(1.0)  # the other blocks cost nothing and cannot move
    constants = descents.constants(0.0, np.ones(8))._replace(tangent=jnp.diag(2 * C), gradient=B)
    found = by_arcs(constants, b, height, 1.0)
    C, b, B = (np.array(x[:m]) for x in (C, b, B))
    budget = height + np.sum(gd.excess(B, b))
    growth, turning = by_bisection(budget, C, b)
    np.testing.assert_allclose(found.descent, height + turning, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.inverse_rate[:m], b + growth, rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_copies_descend_as_often_as_one(rate):
    one = by_arcs(unit(), UNIT["norm2"], 0.5, rate)
    many = descents.constants(2 * np.eye(7), np.ones(7))
    found = by_arcs(many, np.ones(7), 3.5, rate)
    np.testing.assert_allclose(found.descent, 7 * one.descent, rtol=1e-12)
    assert np.all(found.inverse_rate >= one.inverse_rate)  # one may take what the others spare
    assert found.total >= one.total


# ---- next to nothing left to descend


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("budget", [0.0, 1e-300, 1e-30, 1e-12, 1e-7, 1e30, 1e300])
@pytest.mark.parametrize("ratio", [1e-12, 0.7, 1.0, 1.0005, 1.5, 1e3, 1e12])
def test_small_and_large_budgets_leave_no_less_than_is_due(dtype, budget, ratio):
    with jax.enable_x64(dtype == "float64"):
        b, budget = np.ones(2, dtype), min(budget, float(np.finfo(dtype).max) / 1e8)
        C = (b / ratio).astype(dtype)
        found = jax.jit(filling.largest)(np.asarray(budget, dtype), C, b)
        growth, turning = (np.asarray(filling.rounded_up(x, 2), float) for x in found)
    budget, cost = float(np.asarray(budget, dtype)), float(C[0])
    assert np.all(growth >= budget)
    if cost < 1:  # log(1 + e) lies between e - e^2 / 2 and e
        spent = budget / (1 - cost)
        assert turning >= cost * np.log1p(budget / (1 - cost + cost * spent / 2))
        if spent < 1e-3 * (1 - cost):
            slack = 1e-3 + 40 * np.finfo(dtype).eps / (1 - cost)
            assert np.all(growth <= spent * (1 + slack) + 1e-34)
            assert turning <= cost * spent * (1 + slack) + 1e-34
    elif cost > 1:  # the level at the start of a run that may rise first
        assert turning >= 2 * cost * np.log(cost)
    else:  # e^2 / 2 > e - log(1 + e), in either block
        assert turning >= 2 * np.log1p(np.sqrt(budget))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("angle", [1e-9, 3e-6, 1e-3, 0.3])
@pytest.mark.parametrize("b", [0.7, 1.0, 1.0005, 1.1, 1.5, 2.0])
def test_gradient_descent_from_next_to_the_bottom(dtype, b, angle):
    instance = descents.rayleigh([0.0, 1.0], [np.cos(angle), np.sin(angle)])
    record = descents.descend(instance, 1 / b, 400)
    B = np.max(record.spherical_gradient) * 1.0001
    with jax.enable_x64(dtype == "float64"):
        constants = jax.tree.map(lambda x: jnp.asarray(x, dtype), instance.constants)
        constants = constants._replace(gradient=jnp.full(1, B, dtype))
        start = jnp.asarray(record.norm2[0], dtype), jnp.asarray(record.loss[0], dtype)
        found = bounds(constants, start[1], start[0], jnp.full(1, 1 / b, dtype), None)
    for bound in found.values():
        assert np.sum(record.squared_gradient) <= float(bound.total[0])


@pytest.mark.usefixtures("float64")
def test_roots_next_to_one():
    r = jnp.geomspace(1e-300, 1e-6, 50)
    np.testing.assert_allclose(filling.root(r), jnp.sqrt(2 * r) + 2 * r / 3, rtol=1e-6)


@pytest.mark.parametrize("b", [1e-25, 1e25])
def test_no_cost_at_any_scale_in_float32(b):
    found = by_arcs(descents.constants(0.0, 0.0), np.full(1, b, np.float32), np.float32(0), 1.0)
    np.testing.assert_allclose(found.inverse_rate, [b], rtol=1e-5)


# ---- the three sums

SEQUENCE = st.tuples(positive, positive, st.lists(st.floats(0, 1), min_size=1, max_size=30))


def steps(b, gradients):
    """Inverse rates before each step and after the last, and the angles."""
    inverse_rates, angles = [b], []
    for D in gradients:
        angles.append(np.arctan2(D, inverse_rates[-1]))
        inverse_rates.append(inverse_rates[-1] + D**2 / inverse_rates[-1])
    return np.array(inverse_rates), np.array(angles)


def sums(b, B, gradients):
    """Both sides of: angles^2, what growth exceeds descent by, squared gradients."""
    inverse_rates, angles = steps(b, gradients)
    surplus = np.sum(gradients * (np.tan(angles) - angles))
    return (
        (np.sum(angles**2), np.sum(np.log1p(np.tan(angles) ** 2))),
        (surplus, float(gd.excess(B, b))),
        (np.sum(gradients**2), inverse_rates[-1] * np.sum(angles * gradients)),
    )


@pytest.mark.usefixtures("float64")
@FEW
@given(SEQUENCE)
def test_three_sums(sequence):
    b, B, parts = sequence
    for left, right in sums(b, B, B * np.array(parts)):
        assert left <= right * (1 + 1e-12) + 1e-300


@pytest.mark.usefixtures("float64")
def test_three_sums_are_attained():
    slow = sums(1.0, 0.05, np.full(200_000, 0.05))  # steps that are small, and many
    assert all(left > 0.95 * right for left, right in slow[:2])
    left, right = sums(1.0, 0.05, np.full(2, 0.05))[2]
    assert left > 0.99 * right
    left, right = sums(1e-4, 1.0, np.ones(1))[1]  # one jump
    assert left > 0.99 * right


def dearest(b, gradients, small):
    """Inverse rate and squared gradients of a run whose every angle costs angle^2.

    It takes steps with these gradients, then small ones until the loss has fallen by 1/2.
    """
    squares, height = 0.0, 0.5
    for D in itertools.chain(gradients, itertools.repeat(small)):
        angle = np.arctan2(D, b)
        after = height - angle * D + angle**2
        if after < 0:
            return b, squares
        b, squares, height = b + D**2 / b, squares + D**2, after


DEAREST = {"rises-first": (0.3, [], 0.01), "falls": (3.0, [], 0.01), "jumps": (0.01, [1.0], 0.1)}


def of_dearest(name, change=lambda constants: constants):
    """The bound of such a run, and the run."""
    b, gradients, small = DEAREST[name]
    constants = unit(gradient=jnp.full(1, max([*gradients, small])))
    return by_arcs(change(constants), UNIT["norm2"], 0.5, 1 / b), *dearest(*DEAREST[name])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", DEAREST)
def test_the_dearest_run_attains_it(name):
    found, last, squares = of_dearest(name)
    assert 1 <= found.inverse_rate[0] / last < (1.1 if name == "jumps" else 1.001)
    assert 1 <= found.total / squares < (8 if name == "jumps" else 1.002)


MUTATIONS = {
    "half-the-cost": ("rises-first", lambda c: c._replace(tangent=c.tangent / 2)),
    "no-excess": ("jumps", lambda c: c._replace(gradient=0 * c.gradient)),
    "too-low-a-height": ("falls", lambda c: c._replace(lowest=c.lowest + 0.01)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_with_less_it_is_violated(mutation):
    found, last, squares = of_dearest(*MUTATIONS[mutation])
    assert found.inverse_rate[0] < last
    assert found.total < squares


# ---- gradient descent

RATES = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3]
KNOWN = {"geodesic": gd.geodesic, "straight": gd.straight, "bound": gd.bound}
NAMES = list(descents.instances())


@functools.cache
def runs(name, steps=300):
    """An instance in float64, and a run at each rate."""
    with jax.enable_x64(True):
        instance = descents.instances()[name]
        return instance, [descents.descend(instance, rate, steps) for rate in RATES]


@functools.partial(jax.jit, static_argnames="scale")
def bounds(constants, loss, norm2, rates, rate_rest, scale=1.0):
    """Those of all functions by name, for all rates."""

    def at(function, rate):
        start = {"loss": loss, "norm2": norm2 * scale, "rate_rest": rate_rest}
        return function(constants, **start, rate=rate * scale)

    return {
        name: jax.vmap(functools.partial(at, function))(rates) for name, function in KNOWN.items()
    }


def start_of(name):
    """The arguments of `bounds`."""
    instance, (record, *_) = runs(name)
    start = jnp.asarray(record.loss[0]), jnp.asarray(record.norm2[0])
    return instance.constants, *start, jnp.array(RATES), instance.rate_rest


def every(tree, check):
    assert all(jax.tree.leaves(jax.tree.map(lambda *leaves: np.all(check(*leaves)), *tree)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", KNOWN)
def test_gradient_descent_stays_below(name, which):
    instance, records = runs(name)
    many = bounds(*start_of(name))[which]
    weight = 0.0
    if instance.rate_rest is not None:
        safety = gd.safety(instance.constants, instance.rate_rest)
        weight = float(safety) * instance.rate_rest / 2
    for i, (rate, record) in enumerate(zip(RATES, records, strict=True)):
        found = jax.tree.map(lambda x, i=i: np.asarray(x[i]) * (1 + 1e-12), many)
        D, squares = record.spherical_gradient, record.squared_gradient
        descent = np.sum(D * np.arctan2(rate * D, record.norm2[:-1]))
        assert np.all(record.norm2 <= found.norm2)
        assert np.all(record.norm2 / rate <= found.inverse_rate)
        assert descent + weight * np.sum(record.rest_gradient**2) <= found.descent
        assert np.sum(squares) <= found.total
        assert np.max(squares) <= found.trivial
        assert all(np.min(squares[:T]) <= min(found.total / T, found.trivial) for T in (1, 9, 300))


@pytest.mark.usefixtures("float64")
def test_slow_gradient_descent_attains_it():
    instance = descents.rayleigh([0.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)])
    record = descents.descend(instance, 1e-3, 15_000)
    found = by_arcs(instance.constants, UNIT["norm2"], 0.5, 1e-3)
    assert 1 <= found.total / np.sum(record.squared_gradient) < 1.002
    assert 1 <= found.norm2[0] / record.norm2[-1, 0] < 1.000002


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_restarts_lie_between_the_plain_bound_and_what_is_measured(name):
    _, records = runs(name)
    constants, *_, rate_rest = start_of(name)
    plain = bounds(*start_of(name))["bound"].total
    for i, (rate, record) in enumerate(zip(RATES, records, strict=True)):
        run = [jnp.asarray(x) for x in (record.loss, record.norm2, record.squared_gradient)]
        best = restarts(constants, *run, jnp.asarray(rate), rate_rest)
        measured = np.sum(record.squared_gradient)
        assert measured * (1 - 1e-12) <= best.total <= plain[i] * (1 + 1e-12)
        at = int(best.step)
        later = bounds(constants, run[0][at], run[1][at], jnp.array(RATES), rate_rest)["bound"]
        total = np.sum(record.squared_gradient[:at]) + later.total[i]
        np.testing.assert_allclose(best.total, total, rtol=1e-12)


@jax.jit
def restarts(constants, loss, norm2, squared_gradient, rate, rate_rest):
    run = {"loss": loss, "norm2": norm2, "squared_gradient": squared_gradient}
    return gd.restart(constants, **run, rate=rate, rate_rest=rate_rest)


# ---- laws


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_both_together_are_no_worse(name):
    found = bounds(*start_of(name))
    every((found["bound"], found["geodesic"]), lambda both, one: both <= one * (1 + 1e-12))
    every((found["bound"], found["straight"]), lambda both, one: both <= one * (1 + 1e-12))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_scaling_weights_and_rates_changes_norms_alone(name):
    found, scaled = bounds(*start_of(name)), bounds(*start_of(name), scale=9.0)
    expected = {k: bound._replace(norm2=9 * bound.norm2) for k, bound in found.items()}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), scaled, expected)


LARGER = {
    "tangent": lambda c: c._replace(tangent=1.5 * c.tangent),
    "ambient": lambda c: c._replace(ambient=1.5 * c.ambient),
    "gradient": lambda c: c._replace(gradient=1.5 * c.gradient),
    "mixed": lambda c: c._replace(mixed=1.5 * c.mixed),
    "rest": lambda c: c._replace(rest=1.5 * c.rest),
    "lowest": lambda c: c._replace(lowest=c.lowest - 0.5),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("what", LARGER)
@pytest.mark.parametrize("name", NAMES)
def test_larger_constants_bound_less(what, name):
    constants, *start = start_of(name)
    less, more = bounds(constants, *start), bounds(LARGER[what](constants), *start)
    every((less, more), lambda small, large: small <= large * (1 + 1e-12))


@pytest.mark.usefixtures("float64")
def test_vmaps_over_instances():
    constants, _, norm2, rates, rest = start_of("least-squares")
    heights = constants.lowest + jnp.linspace(0.1, 5, 4)
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 2 * x, 3 * x]), constants)
    stack = stack._replace(lowest=heights - 0.05, rest=jnp.full(4, constants.rest))
    grid = jax.vmap(bounds, (0, 0, None, None, None))(stack, heights, norm2, rates, rest)
    for i in range(4):
        alone = bounds(jax.tree.map(lambda x, i=i: x[i], stack), heights[i], norm2, rates, rest)
        row = jax.tree.map(lambda x, i=i: x[i], grid)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), row, alone)
    assert gd.least(grid["bound"], 10).shape == (4, len(RATES))
    assert grid["bound"].vacuous_until.shape == (4, len(RATES))


@pytest.mark.parametrize("name", NAMES)
def test_in_float32(name):
    with jax.enable_x64(True):
        wide = bounds(*start_of(name))
    narrow = bounds(*jax.tree.map(lambda x: np.asarray(x, np.float32), start_of(name)))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {np.dtype("float32")}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4), narrow, wide)


@pytest.mark.usefixtures("float64")
def test_what_costs_nothing():
    still = descents.constants(0.0, 0.0)
    found = by_arcs(still, np.ones(1), 0.0, 1.0)
    np.testing.assert_allclose((found.inverse_rate[0], found.total), (1, 0), atol=1e-20)
    found = by_arcs(descents.constants(0.0, 1.0), np.ones(1), 0.5, 1.0)
    np.testing.assert_allclose(found.inverse_rate, [2.0], rtol=1e-14)  # b + A, A = 1/2 + E


# ---- what is refused

INFINITE = ["tangent", "ambient", "gradient", "mixed"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("what", INFINITE)
def test_infinite_constants_bound_nothing(what):
    constants, *start = start_of("test-vector")
    constants = constants._replace(**{what: jnp.full_like(getattr(constants, what), jnp.inf)})
    found = bounds(constants, *start)
    infinite = {name: np.isinf(bound.total).all() for name, bound in found.items()}
    arcs, segments = what != "ambient", what != "tangent"
    assert infinite == {"geodesic": arcs, "straight": segments, "bound": arcs and segments}
    for bound in found.values():
        assert not np.any(np.isnan(jnp.append(bound.total, bound.vacuous_until)))
    if not arcs:
        both, one = found["bound"].total, found["geodesic"].total
        np.testing.assert_allclose(both, one, rtol=1e-14)


def test_a_second_block_without_mixed_derivative_is_infinite_with_the_first():
    constants = descents.constants(0.0, np.ones(2), mixed=[np.inf, 0.0], rest=1.0)
    np.testing.assert_array_equal(np.isinf(gd.cost(constants, 0.5)), [True, False])
    for found in in_program(constants, 1.0, np.ones(2, np.float32), 1.0, 0.5):
        assert np.all(np.isinf(found.inverse_rate))


@pytest.mark.parametrize("which", ["straight", "bound"])
def test_no_gradient_and_unknown_curvature(which):
    found = KNOWN[which](descents.constants(2.0, 0.0), loss=0.5, norm2=np.ones(1), rate=1.0)
    assert np.isinf(found.total) if which == "straight" else found.total < np.inf


HEIGHTS = {
    "infinitely low": ([-np.inf], 0.0),
    "nowhere": ([1.0], np.inf),
    "both": ([np.inf], np.inf),
    "beside an infinite one": ([np.inf, -5.0], 0.0),
    "beside a large one": ([1e6, -0.5], 0.0),
}


@pytest.mark.parametrize("case", HEIGHTS)
def test_refuses_impossible_heights(case):
    loss, lowest = HEIGHTS[case]
    with pytest.raises(ValueError, match=r"loss - constants.lowest must lie in"):
        gd.height(np.array(loss, np.float32), np.float32(lowest))
    many = {"squared_gradient": np.ones(2), "norm2": np.ones((3, 1)), "rate": 1.0}
    with pytest.raises(ValueError, match=r"loss - constants.lowest must lie in"):
        gd.restart(unit(lowest=jnp.asarray(lowest)), loss=np.array([*loss, -6, -6])[:3], **many)


def test_heights_may_miss_by_rounding():
    loss = np.array([1, 1 - 1e-7, 2, np.inf], np.float32)
    np.testing.assert_array_equal(gd.height(loss, np.float32(1)), [0, 0, 1, np.inf])


def test_safety_is_rounded_down():
    rest = np.float32(1.7)
    constants = descents.constants(2.0, 1.0, rest=float(rest))
    for steps in range(5, 40):
        rate = np.float32(2 / 1.7 * (1 - steps * 1e-7))
        assert gd.safety(constants, rate) <= 1 - float(rate) * float(rest) / 2


@pytest.mark.parametrize("which", KNOWN)
def test_refuses_an_inverse_rate_out_of_range(which):
    with pytest.raises(ValueError, match="norm2 / rate must lie in"):
        KNOWN[which](unit(), loss=0.5, norm2=np.full(1, 1e30, np.float32), rate=np.float32(1e-30))


BAD = {
    "rate": ({"rate": 0.0}, "rate must lie in .0, inf., got 0"),
    "negative-rate": ({"rate": -1.0}, "rate must lie in"),
    "norm2": ({"norm2": np.zeros(1)}, "norm2 must lie in .0, inf., got 0"),
    "nan": ({"loss": np.nan}, "loss - constants.lowest must lie in"),
    "below": ({"loss": 0.4}, "loss - constants.lowest must lie in .0, inf., got -0.1"),
    "rest": ({"rate_rest": 1.0}, "rate_rest . constants.rest must lie in .0, 2., got 2; take a"),
    "no-rest": ({"rate_rest": None}, "constants.rest must lie in .0, 0., got 2; .* give rate_rest"),
    "negative-rest": ({"rate_rest": -0.1}, "rate_rest must lie in"),
}


def bad(change):
    start = {"loss": 2.75, "norm2": np.ones(1), "rate": 1.0, "rate_rest": 0.5}
    return start | change


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("which", KNOWN)
def test_refuses(which, case):
    change, message = BAD[case]
    constants = descents.instances()["test-vector"].constants
    with pytest.raises(ValueError, match=message):
        KNOWN[which](constants, **bad(change))


@pytest.mark.parametrize("case", BAD)
def test_is_nan_in_programs(case):
    constants = descents.instances()["test-vector"].constants
    start = bad(BAD[case][0])
    start = [jnp.asarray(start[name]) for name in ("loss", "norm2", "rate")], start["rate_rest"]
    found = in_program(constants, *start[0], start[1])
    for bound in found:
        assert np.isnan(bound.total)
        assert np.all(np.isnan(bound.inverse_rate))


@jax.jit
def in_program(constants, loss, norm2, rate, rate_rest):
    start = {"loss": loss, "norm2": norm2, "rate": rate, "rate_rest": rate_rest}
    return [function(constants, **start) for function in KNOWN.values()]


@pytest.mark.parametrize("what", [*INFINITE, "rest", "lowest"])
def test_nan_in_a_constant_never_yields_a_bound(what):
    constants = descents.instances()["test-vector"].constants
    constants = constants._replace(**{what: jnp.full_like(getattr(constants, what), jnp.nan)})
    start = [jnp.asarray(bad({})[name]) for name in ("loss", "norm2", "rate")]
    for name, bound in zip(KNOWN, in_program(constants, *start, 0.5), strict=True):
        if (name, what) not in (("geodesic", "ambient"), ("straight", "tangent")):
            assert np.isnan(bound.total)
            assert np.isnan(gd.least(bound, 10))


def test_refuses_shapes_and_numbers():
    with pytest.raises(ValueError, match="one entry per block, 1 by the constants, got shape"):
        gd.bound(unit(), loss=0.5, norm2=jnp.ones(2), rate=1.0)
    with pytest.raises(ValueError, match="steps must lie in"):
        gd.least(gd.Bound(*jnp.ones(5)), 0)
    with pytest.raises(ValueError, match=r"s must lie in .1, inf., got 0.5"):
        gd.solve_z(0.5)
    with pytest.raises(ValueError, match="must have 4 records for 3 squared gradients"):
        gd.restart(
            unit(),
            loss=jnp.ones(3),
            norm2=jnp.ones((3, 1)),
            squared_gradient=jnp.ones(3),
            rate=1.0,
        )
    with pytest.raises(ValueError, match=r"constants.tangent must lie in"):
        gd.bound(descents.constants(-1.0, 1.0), **UNIT, rate=1.0)
