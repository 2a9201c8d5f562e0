"""Certificates of runs: true ones are valid and hold, false ones are refused by name."""

import itertools

import descents
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate.theory import gd, pathwise

RATES = [1e-3, 0.1, 1.0, 10.0, 1e3]
STEPS = 200
LARGE = 1e6  # no step is too dear
INSTANCES = descents.instances()


def trace_of(name, rate, rule=None, steps=STEPS):
    return pathwise.Trace(*descents.descend(INSTANCES[name], rate, steps, rule))


def certified(trace, name="quotient-5", rate=1.0, **options):
    options = {"full_batch": True, "smooth": True, "rate_rest": INSTANCES[name].rate_rest} | options
    return pathwise.certificate(trace, rate=rate, **options)


def holds(claim, tolerance=1e-12):
    return np.all(np.asarray(claim.measured) <= np.asarray(claim.certified) * (1 + tolerance))


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("allowance", [0.0, 0.01, LARGE])
def test_gradient_descent_is_certified(name, rate, allowance):
    trace = trace_of(name, rate)
    found = certified(trace, name, rate, allowance=allowance)
    assert found.label == "valid"
    assert found.reasons == ()
    assert found.steps == STEPS
    assert all(map(holds, (found.total, found.descent)))
    assert holds(found.norm2)
    np.testing.assert_allclose(found.norm2.measured, trace.norm2[-1], rtol=1e-9)
    np.testing.assert_allclose(
        found.total.measured, np.sum(descents.Record(*trace).squared_gradient), rtol=1e-12
    )
    assert found.slack >= -1e-12
    assert 0 <= found.curvature <= found.realised
    height = trace.loss[0] - trace.loss.min()
    assert found.surplus <= allowance * height + 1e-10 or allowance == LARGE


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("rate", RATES)
def test_realised_curvature_is_below_the_constant(name, rate):
    """But in the rest, where only the safety of the constants makes the cost that of angles."""
    instance = INSTANCES[name]
    constant = float(np.max(gd.cost(instance.constants, instance.rate_rest)))
    found = certified(trace_of(name, rate), name, rate, allowance=0.0)
    assert found.curvature == found.realised <= constant * (1 + 1e-6)


@pytest.mark.parametrize("name", ["quotient-2", "test-vector"])
def test_a_smaller_curvature_certifies_less_but_does_not_last(name):
    trace = trace_of(name, 3.0)
    found = [certified(trace, name, 3.0, allowance=share) for share in (0.0, 0.01, 0.1, LARGE)]
    for before, after in itertools.pairwise(found):
        assert after.curvature <= before.curvature
        assert after.total.certified <= before.total.certified
        assert after.surplus >= before.surplus
    assert found[-1].curvature == 0
    assert found[0].surplus < 1e-10


@pytest.mark.parametrize("name", ["quotient-20", "pair"])
def test_longer_runs_stay_below_what_is_certified(name):
    """While no step costs more, the loss falls no lower, and no gradient is larger."""
    short, long = (trace_of(name, 1.0, steps=steps) for steps in (60, 2000))
    early, late = (certified(trace, name, allowance=0.0) for trace in (short, long))
    assert early.realised == late.realised
    assert np.all(short.spherical_gradient.max(0) == long.spherical_gradient.max(0))
    floor = short.loss.copy()
    floor[-1] = long.loss.min()  # a last step that goes all the way down costs nothing
    early = certified(short._replace(loss=floor), name, allowance=0.0)
    assert late.total.measured <= early.total.certified
    assert np.all(late.norm2.measured <= early.norm2.certified)
    np.testing.assert_allclose(late.total.certified, early.total.certified, rtol=1e-6)


# ---- the ledger against rules that are not plain gradient descent

RATE = 0.3


def plain(w, gradient, memory):
    return w - RATE * gradient, memory


def momentum(w, gradient, memory):
    memory = 0.9 * memory + gradient
    return w - RATE * memory, memory


def weight_decay(w, gradient, memory):
    return w - RATE * (gradient + 1e-3 * w), memory


def keep_norm(w, gradient, memory):
    moved = w - RATE * gradient
    return moved * np.linalg.norm(w) / np.linalg.norm(moved), memory


def adam(w, gradient, memory):
    t, m, v = memory or (0, 0.0, 0.0)
    t, m, v = t + 1, 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
    return w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8), (t, m, v)


def decaying_rate(w, gradient, memory):
    return w - RATE * gradient / (1 + 0.01 * memory), memory + 1


def leak(w, gradient, memory):
    """The gradient of a normalisation with an epsilon is not orthogonal to the weights."""
    return w - RATE * (gradient + 1e-5 * np.linalg.norm(gradient) * w), memory


WRONG = {
    "momentum": momentum,
    "weight-decay": weight_decay,
    "keep-norm": keep_norm,
    "adam": adam,
    "decaying-rate": decaying_rate,
    "leak": leak,
}


@pytest.mark.parametrize("name", ["quotient-5", "pair", "least-squares"])
@pytest.mark.parametrize("full_batch", [True, False])
def test_the_plain_rule_is_not_refused(name, full_batch):
    found = certified(trace_of(name, RATE, plain), name, RATE, full_batch=full_batch)
    assert found.label == ("valid" if full_batch else "estimate")


@pytest.mark.parametrize("rule", WRONG)
@pytest.mark.parametrize("name", ["quotient-5", "pair", "least-squares"])
@pytest.mark.parametrize("full_batch", [True, False])
def test_other_rules_are_refused(name, rule, full_batch):
    found = certified(trace_of(name, RATE, WRONG[rule]), name, RATE, full_batch=full_batch)
    refused(found, "norm2 of block 0 is")
    assert "to which plain steps at rate 0.3 would have led" in found.reasons[0]


def refused(found, reason):
    assert found.label == "refused"
    assert found.reasons[0].startswith(reason)
    for claim in (found.total, found.descent, found.norm2):
        assert np.all(np.isnan(claim))
    assert np.isnan(found.curvature)
    assert "certified" not in str(found)


@pytest.mark.parametrize("factor", [0.99, 1.0001, 2.0])
def test_another_rate_is_refused(factor):
    trace = trace_of("quotient-5", 1.0)
    refused(certified(trace, rate=factor), "norm2 of block 0 is")


def test_the_step_and_the_block_are_named():
    trace = trace_of("pair", RATE, steps=20)
    norm2 = trace.norm2.copy()
    norm2[7, 1] *= 1 + 1e-8
    found = certified(trace._replace(norm2=norm2), "pair", RATE)
    refused(found, f"norm2 of block 1 is {norm2[7, 1]:.12g} after 7 steps")
    assert f"{trace.norm2[7, 1]:.12g}" in found.reasons[0]


@pytest.mark.parametrize("every", [2, 10])
def test_strides_are_refused(every):
    trace = trace_of("quotient-5", 1.0)
    trace = pathwise.Trace(*(x[::every] for x in trace[:2]), *(x[::every] for x in trace[2:]))
    refused(certified(trace, every=every), f"one step in {every} was recorded")
    refused(certified(trace), "norm2 of block 0 is")  # and found out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", pathwise.Trace._fields)
@pytest.mark.parametrize("full_batch", [True, False])
def test_what_is_not_finite_is_refused(field, value, full_batch):
    trace = trace_of("least-squares", 1.0)
    values = getattr(trace, field).copy()
    values[5] = value
    trace = trace._replace(**{field: values})
    found = certified(trace, "least-squares", full_batch=full_batch)
    refused(found, f"{field} is not finite at record 5")


# ---- estimates


def test_float32_is_an_estimate():
    trace = trace_of("pair", RATE)
    narrow = pathwise.Trace(*(x.astype(np.float32) for x in trace))
    found, wide = certified(narrow, "pair", RATE), certified(trace, "pair", RATE)
    assert found.label == "estimate"
    assert "float32" in found.reasons[0]
    np.testing.assert_allclose(found.total, wide.total, rtol=0.02)
    one = trace._replace(loss=trace.loss.astype(np.float32))
    assert certified(one, "pair", RATE).label == "estimate"
    disguised = pathwise.Trace(*(x.astype(np.float64) for x in narrow))
    refused(certified(disguised, "pair", RATE), "norm2 of block")


def test_of_changing_batches_only_the_sum_of_squares_is_known():
    trace = trace_of("pair", RATE)
    noise = np.random.default_rng(0).standard_normal(len(trace.loss))
    trace = trace._replace(loss=trace.loss + noise)
    found = certified(trace, "pair", RATE, full_batch=False)
    assert found.label == "estimate"
    assert "different batches" in found.reasons[0]
    assert holds(found.total)
    np.testing.assert_allclose(found.total.measured, np.sum(trace.spherical_gradient**2))
    b = trace.norm2 / RATE
    np.testing.assert_allclose(found.total.certified, np.sum(b[-1] ** 2 - b[0] ** 2) / 2)
    assert np.isnan(found.curvature)
    assert np.isnan(found.descent.certified)


# ---- what the numbers mean


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1e-9, 0.1, 1.0])), min_size=1, max_size=9
    ),
    st.floats(0, 2),
)
def test_curvature_is_the_least_within_the_allowance(steps, allowed):
    costs, turned = np.array(steps).T
    C = pathwise._curvature(costs, turned, allowed)
    turns = turned > 0

    def surplus(C):
        return np.sum(np.maximum(costs - C * turned, 0)[turns])

    assert surplus(C) <= allowed + 1e-9
    assert C == 0 or surplus(C * (1 - 1e-6)) >= allowed - 1e-9


def test_the_cost_of_one_step_by_hand():
    """One step at the angle pi/4, after which the loss is what it was."""
    trace = pathwise.Trace(np.ones(2), np.array([[1.0], [2.0]]), np.array([[1.0]]), np.array([0.0]))
    found = certified(trace, allowance=0.0)
    np.testing.assert_allclose(found.curvature, 4 / np.pi, rtol=1e-12)  # (pi/4) / (pi/4)^2
    np.testing.assert_allclose(found.descent.measured, np.pi / 4)
    assert found.total.measured == 1
    np.testing.assert_allclose(found.slack, 2 * np.pi / 4 - 1)


def test_a_rest_that_follows_another_rule():
    """Its steps are charged to the run, with the rate as a weight."""
    trace = trace_of("least-squares", 1.0)
    found = [certified(trace, "least-squares", rate_rest=weight) for weight in (0.1, 0.5, 3.0)]
    for certificate in found:
        assert certificate.label == "valid"
        assert all(map(holds, (certificate.total, certificate.descent)))
        assert certificate.slack >= -1e-12
    slow = certified(trace, "least-squares", rate_rest=1e-4)  # so that the rest decides
    total = slow.descent.certified * 2 / (0.5 * 1e-4)
    np.testing.assert_allclose(slow.total.certified, total, rtol=1e-12)


def test_blocks_that_never_move():
    still = pathwise.Trace(np.ones(4), np.ones((4, 2)), np.zeros((3, 2)), np.zeros(3))
    found = certified(still)
    assert found.label == "valid"
    assert found.total.measured == 0 <= found.total.certified < 1e-12
    rises = still._replace(loss=np.array([1.0, 2.0, 1.0, 1.0]))  # what only a rest can do
    found = certified(rises, rate_rest=0.1)
    assert found.curvature == 0
    np.testing.assert_allclose(found.surplus, 1, rtol=1e-9)


def test_it_needs_neither_float64_nor_promotion_of_the_caller():
    trace = trace_of("pair", RATE)
    outside = certified(trace, "pair", RATE)
    with jax.enable_x64(True):
        inside = certified(trace, "pair", RATE)
    assert outside.total == inside.total
    assert not jax.config.jax_enable_x64


def test_as_a_table():
    text = str(certified(trace_of("pair", RATE), "pair", RATE))
    assert text.startswith("valid (200 steps)")
    assert "norm2 at the end, block 1" in text
    assert "turning by angles costs at most" in text
    assert max(map(len, text.splitlines())) < 100
    batches = str(certified(trace_of("pair", RATE), "pair", RATE, full_batch=False))
    assert "sum of squared gradients" in batches
    assert "descent" not in batches


# ---- where a ledger of norms alone would be too little


def circle(rule, rate, phi, steps=100):
    """Steps of w'diag(0, 1)w / w'w from the angle phi; `rule(w, rate, gradient)`."""
    w, rows = np.array([np.cos(phi), np.sin(phi)]), []
    for _ in range(steps + 1):
        G = w @ w
        gradient = 2 * w[0] * w[1] / G**2 * np.array([-w[1], w[0]])
        rows.append((w[1] ** 2 / G, [G], [np.sqrt(G) * np.linalg.norm(gradient)], 0.0))
        w = rule(w, rate, gradient)
    loss, norm2, lengths, rest = map(np.array, zip(*rows, strict=True))
    return pathwise.Trace(loss, norm2, lengths[:-1], rest[:-1])


def descent(w, rate, gradient):
    return w - rate * gradient


def ascent(w, rate, gradient):
    return w + rate * gradient


def projected(w, rate, gradient):
    return (w - rate * gradient) / np.linalg.norm(w - rate * gradient)


def of_unit_length(w, rate, gradient):
    return w - rate * gradient / np.linalg.norm(gradient)


def decay(share):
    return lambda w, rate, gradient: w - rate * (gradient + share * w)


SLOW = {
    "projected": (projected, 0.5, 1e-5),
    "unit-length": (of_unit_length, 1e-6, 0.7),
    "decay": (decay(1e-6), 1e-6, 0.7),
    "decay-in-slow-motion": (decay(1e-6), 1e-8, 0.7),
    "much-decay-in-slow-motion": (decay(5e-4), 1e-8, 0.7),
}


@pytest.mark.parametrize("name", SLOW)
def test_other_rules_are_refused_however_slow(name):
    """Norms change by less than 1e-9 in all, but not by what the gradients make them grow."""
    rule, rate, phi = SLOW[name]
    trace = circle(rule, rate, phi, steps=90)
    assert np.ptp(trace.norm2) < 1e-9
    refused(certified(trace, rate=rate), "norm2 of block 0 is")
    assert certified(circle(descent, rate, 0.7), rate=rate).label != "refused"


def test_one_step_of_another_rule_is_found_after_a_jump():
    """In all the norm grows a hundredfold, so that what decay takes is a small part."""
    trace = circle(descent, 10.0, 0.7, steps=300)
    norm2 = trace.norm2.copy()
    norm2[200:] *= 1 - 1e-11
    refused(certified(trace._replace(norm2=norm2), rate=10.0), "norm2 of block 0 is")


@pytest.mark.parametrize(("rule", "phi"), [(descent, 0.7), (projected, 1e-9)])
def test_norms_that_hardly_grow_make_an_estimate(rule, phi):
    rate = 1e-9 if rule is descent else 0.5
    found = certified(circle(rule, rate, phi), rate=rate)
    assert found.label == "estimate"
    assert "grew too little to tell" in found.reasons[0]


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e4])
def test_ascent_is_not_valid(rate):
    """Its ledger is that of descent."""
    up, down = (certified(circle(rule, rate, 0.3, 200), rate=rate) for rule in (ascent, descent))
    assert (up.label, down.label) == ("estimate", "valid")
    assert "gradient ascent" in up.reasons[0]


@pytest.mark.parametrize("rate", [1e-9, 1e-200])
def test_of_batches_the_growth_of_large_norms_does_not_cancel(rate):
    trace = pathwise.Trace(np.zeros(101), np.ones((101, 1)), np.ones((100, 1)), np.zeros(100))
    found = certified(trace, rate=rate, full_batch=False)
    assert found.total.measured == 100 <= found.total.certified < 101


@pytest.mark.parametrize("safety", [1e-2, 3e-16, 1e-17, 1e-200])
def test_a_small_safety_costs_what_it_says(safety):
    loss, norm2 = np.array([1.0, 0.9]), np.array([[1.0], [2.0]])
    trace = pathwise.Trace(loss, norm2, np.ones((1, 1)), np.ones(1))
    found = certified(trace, rate=1.0, rate_rest=0.1, safety=safety)
    assert all(map(holds, (found.total, found.descent, found.norm2)))
    expected = found.descent.certified * 2 / (0.1 * safety)
    np.testing.assert_allclose(found.total.certified, expected, rtol=1e-12)


OVERFLOWS = {
    "norms": (([1, 0.5, 0.5], [[1e160], [3.0], [7.0]], [[1.0], [0.0]], [0, 0]), {"rate": 1e160}),
    "ledger": (([1, 0.5], [[1e-200], [7.0]], [[1e200]], [0]), {}),
    "small-norms": (([1, 0.5], [[1e-310], [1e-310]], [[0.0]], [0]), {}),
    "rate": (([1, 0.5], [[1.0], [2.0]], [[1.0]], [0]), {"rate": 1e-310}),
    "losses": (([1e308, -1e308], [[1.0], [2.0]], [[1.0]], [0]), {}),
    "gradients": (([1, 0.5], [[1e200], [2e200]], [[1e200]], [0]), {}),
    "weights": (([1, 0.5], [[1.0], [2.0]], [[1.0]], [1]), {"rate_rest": 1e-310, "safety": 1e-10}),
    "rest": (([1, 0.5], [[1.0], [2.0]], [[1.0]], [1e200]), {"rate_rest": 1.0}),
}


@pytest.mark.parametrize("name", OVERFLOWS)
@pytest.mark.parametrize("full_batch", [True, False])
def test_what_overflows_is_never_valid(name, full_batch):
    arrays, options = OVERFLOWS[name]
    trace = pathwise.Trace(*(np.array(values, float) for values in arrays))
    found = certified(trace, full_batch=full_batch, **options)
    assert found.label == "refused" or (found.label == "estimate" and not full_batch)
    if found.label == "estimate":
        assert found.total.measured <= found.total.certified < np.inf


def test_a_claim_that_fails_is_refused(monkeypatch):
    """Should the bound be wrong, no certificate says so."""
    wrong = gd.geodesic
    monkeypatch.setattr(
        gd, "geodesic", lambda *args, **options: wrong(*args, **options)._replace(total=0.5)
    )
    refused(certified(trace_of("quotient-5", 1.0)), "the numbers of this trace")


def test_integers_are_numbers_of_full_precision():
    trace = trace_of("quotient-5", 1.0)
    whole = trace._replace(rest_gradient=np.zeros(STEPS, np.int8))
    assert certified(whole).label == "valid"
    assert certified(whole).total == certified(trace).total


# ---- errors

GOOD = pathwise.Trace(np.ones(3), np.ones((3, 1)), np.zeros((2, 1)), np.zeros(2))
SHAPES = {
    "records": GOOD._replace(loss=np.ones(2)),
    "norms": GOOD._replace(norm2=np.ones((2, 1))),
    "blocks": GOOD._replace(norm2=np.ones((3, 2))),
    "rest": GOOD._replace(rest_gradient=np.zeros(3)),
    "flat": GOOD._replace(spherical_gradient=np.zeros(2)),
    "no-steps": pathwise.Trace(np.ones(1), np.ones((1, 1)), np.zeros((0, 1)), np.zeros(0)),
    "no-blocks": pathwise.Trace(np.ones(3), np.ones((3, 0)), np.zeros((2, 0)), np.zeros(2)),
}


@pytest.mark.parametrize("dtype", [complex, object, str])
@pytest.mark.parametrize("field", pathwise.Trace._fields)
def test_what_is_no_number(field, dtype):
    trace = GOOD._replace(**{field: getattr(GOOD, field).astype(dtype)})
    with pytest.raises(ValueError, match=f"{field} must be of real numbers, got dtype"):
        certified(trace)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"a trace of T steps and m blocks has loss \(T\+1,\)"):
        certified(SHAPES[shape])


NUMBERS = {
    "norm": (GOOD._replace(norm2=np.zeros((3, 1))), {}, "norm2 must lie in"),
    "gradient": (GOOD._replace(spherical_gradient=-np.ones((2, 1))), {}, "spherical_gradient must"),
    "rate": (GOOD, {"rate": 0.0}, "rate must lie in"),
    "rate-rest": (GOOD, {"rate_rest": -1.0}, "rate_rest must lie in"),
    "safety": (GOOD, {"safety": 0.0}, "safety must lie in"),
    "allowance": (GOOD, {"allowance": -1.0}, "allowance must lie in"),
    "no-rate-rest": (GOOD._replace(rest_gradient=np.ones(2)), {}, "give rate_rest"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_out_of_range(case):
    trace, options, message = NUMBERS[case]
    with pytest.raises(ValueError, match=message):
        certified(trace, **options)


def test_a_loss_that_is_not_smooth_is_labelled():
    trace = trace_of("pair", RATE)
    smooth, kinked = (certified(trace, "pair", RATE, smooth=is_so) for is_so in (True, False))
    assert (smooth.label, kinked.label) == ("valid", "estimate")
    assert "not twice continuously differentiable" in kinked.reasons[0]
    assert kinked.total == smooth.total
