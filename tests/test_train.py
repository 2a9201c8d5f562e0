import dataclasses
import functools
import io

import chex
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnrate import data as datasets
from bnrate import experiments, invariance, models, sweep, train, transforms
from bnrate.groups import Group, Groups, Member
from bnrate.train import Rates

GROUPS = Groups([Group([Member("w")])])


def sgd(rates):
    return transforms.by_group(
        GROUPS, invariant=optax.sgd(rates.invariant), rest=optax.sgd(rates.rest)
    )


def quotient(params, extra, batch):
    """A Rayleigh quotient with an offset to be learned; extra counts the calls."""
    w = params["w"]
    return jnp.sum(batch * w**2) / jnp.sum(w**2) + params["b"] ** 2, extra + 1


def small_run(rule=sgd, stride=1, loss=quotient):
    return train.make_run(
        init=lambda key: ({"w": jax.random.normal(key, (3,)), "b": jnp.float32(1)}, jnp.int32(0)),
        loss=loss,
        batch=lambda key, step: jax.random.uniform(jax.random.fold_in(key, step), (3,)),
        rule=rule,
        groups=GROUPS,
        evaluate=lambda params, extra: {"offset": params["b"], "calls": extra},
        stride=stride,
    )


def advance(run, state, records):
    """That many records, as a sweep takes them."""
    return jax.lax.scan(lambda state, _: run.advance(state), state, length=records)


def point(rate=0.1, seed=0, **more):
    return {"rate": jnp.float32(rate), "seed": jnp.int32(seed), **more}


def test_a_run_is_the_loop_that_one_would_write():
    run = small_run()
    state, trace = advance(run, run.init(point(0.3, 5)), 6)

    params_key, batch_key = jax.random.split(jax.random.key(5))
    w, b = jax.random.normal(params_key, (3,)), jnp.float32(1)
    for t in range(6):
        x = jax.random.uniform(jax.random.fold_in(batch_key, t), (3,))
        L, (dw, db) = jax.value_and_grad(
            lambda w, b, x=x: quotient({"w": w, "b": b}, 0, x)[0], (0, 1)
        )(w, b)
        np.testing.assert_allclose(trace["loss"][t], L, rtol=1e-5)
        np.testing.assert_allclose(trace["norm2"][t], [w @ w], rtol=1e-5)
        np.testing.assert_allclose(trace["effective_rate"][t], [0.3 / (w @ w)], rtol=1e-5)
        w, b = w - 0.3 * dw, b - 0.3 * db
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert run.finish(state)["calls"] == 6
    assert state.step == 6


@pytest.mark.parametrize("stride", [2, 3, 6])
def test_stride_thins_the_record_and_changes_nothing_else(stride):
    every, thin = small_run(), small_run(stride=stride)
    state, trace = advance(every, every.init(point()), 12)
    thin_state, thin_trace = advance(thin, thin.init(point()), 12 // stride)
    chex.assert_trees_all_close(thin_trace, jax.tree.map(lambda x: x[::stride], trace), rtol=1e-5)
    chex.assert_trees_all_close(thin_state.params, state.params, rtol=1e-5)
    assert thin_state.step == 12


TIMES = (1, 2, 5, 12)


def small_totals(times=TIMES, sums=("loss", "spherical_gradient"), least=("loss",), **run):
    return train.totals(small_run(**run), times, sums=sums, least=least)


def test_totals_are_over_every_step():
    run, total = small_run(), small_totals()
    _, trace = advance(run, run.init(point()), 12)
    state, summed = advance(total, total.init(point()), len(TIMES))
    for record, time in enumerate(TIMES):
        upto = jax.tree.map(lambda x, time=time: x[:time], trace)
        now = {name: values[record] for name, values in summed.items()}
        assert now["time"] == time
        np.testing.assert_allclose(now["loss_sum"], upto["loss"].sum(), rtol=1e-5)
        np.testing.assert_allclose(now["loss_least"], upto["loss"].min(), rtol=1e-6)
        gradients = upto["spherical_gradient"].sum(0)
        np.testing.assert_allclose(now["spherical_gradient_sum"], gradients, rtol=1e-5)
        np.testing.assert_allclose(now["norm2"], upto["norm2"][-1], rtol=1e-5)
    assert total.finish(state)["calls"] == 12
    assert total.dims["spherical_gradient_sum"] == ("group",)


def test_totals_run_through_a_sweep():
    grid, screen = {"rate": [0.1, 10.0], "seed": range(2)}, io.StringIO()
    told = [sweep.Terminal(screen)]
    ds = sweep.run(small_totals, grid, steps=len(TIMES), executor="vmap", callbacks=told)
    last = screen.getvalue().splitlines()[-1]
    assert last.startswith("100%, record 3, ")
    assert "run-records/s" in last
    _, trace = advance(small_run(), small_run().init(point(10.0, 1)), 12)
    there = ds["loss_sum"].sel(rate=10.0, seed=1)
    np.testing.assert_allclose(there, np.cumsum(trace["loss"])[np.array(TIMES) - 1], rtol=1e-5)


def test_what_is_not_a_number_stays_in_the_least():
    def loss(params, extra, batch):
        L, extra = quotient(params, extra, batch)
        return jnp.where(extra == 3, jnp.nan, L), extra

    total = small_totals(loss=loss)
    _, summed = advance(total, total.init(point()), len(TIMES))
    assert list(np.isnan(summed["loss_least"])) == [False, False, True, True]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stride": 2}, "not one in 2"),
        ({"sums": ["lost"]}, "no record 'lost'"),
        ({"times": ()}, "must ascend from 1"),
        ({"times": (0, 1)}, "must ascend from 1"),
        ({"times": (3, 3)}, "must ascend from 1"),
    ],
)
def test_totals_of_nothing(bad, message):
    with pytest.raises(ValueError, match=message):
        small_totals(**bad).init(point())


def ones(key, step):
    return jnp.ones(3)


def on_host(*_):
    return np.ones(3, np.float32)


def called(caller):
    return lambda key, step: caller(on_host, jax.ShapeDtypeStruct((3,), jnp.float32))


def mutable(key, step):
    ref = jax.new_ref(jnp.ones(3))
    ref[...] = jnp.ones(3) * step.astype(float)
    return ref[...]


@pytest.mark.parametrize(
    ("batch", "one"),
    [
        (ones, True),
        (lambda key, step: jnp.sin(ones(key, step)), True),
        (lambda key, step: ones(key, step) + jax.random.normal(key, (3,)), False),
        (lambda key, step: jax.jit(lambda t: jnp.ones(3) * t.astype(float))(step), False),
        (lambda key, step: jnp.where(step > 1000, ones(key, step), jnp.zeros(3)), False),
        (called(jax.pure_callback), False),
        (called(jax.experimental.io_callback), False),
        (lambda key, step: jax.jit(lambda: called(jax.pure_callback)(key, step))(), False),
        (mutable, False),
    ],
)
def test_whether_all_batches_are_the_same(batch, one):
    def loss(w, extra, x):
        return jnp.sum(w * x), extra

    assert train.one_loss(lambda key: (jnp.ones(3), ()), loss, batch) is one


def dropout(w, extra, x):
    key, now = jax.random.split(extra["key"])
    return jnp.sum(w * x * jax.random.normal(now, (3,))), {**extra, "key": key}


def moments(w, extra, x):
    return jnp.sum(w * x), {**extra, "mean": 0.9 * extra["mean"] + x}


def momentum(w, extra, x):
    return jnp.sum(w * extra["mean"]), {**extra, "mean": extra["mean"] + x}


def data(w, extra, x):
    return jnp.sum(w * extra["mean"]), extra


def constant(w, extra, x):
    return jnp.float32(1), extra


@pytest.mark.parametrize(
    ("loss", "one"),
    [(dropout, False), (moments, True), (momentum, False), (data, True), (constant, True)],
)
def test_whether_the_loss_follows_what_it_changes(loss, one):
    def init(key):
        return jnp.ones(3), {"key": key, "mean": jnp.ones(3)}

    assert train.one_loss(init, loss, ones) is one


def test_small_records_are_not_lost_beside_a_large_one():
    run = dataclasses.replace(
        small_run(),
        init=lambda point: jnp.zeros((), jnp.int32),
        advance=lambda t: (t + 1, {"g": jnp.where(t == 0, jnp.float32(1e6), jnp.float32(0.01))}),
    )
    total = train.totals(run, (100_001,), sums=["g"], least=[])
    _, summed = total.advance(total.init(point()))
    np.testing.assert_allclose(summed["g_sum"], 1e6 + 1e3, rtol=1e-7)


def test_beyond_the_last_time_nothing_is_known():
    total = small_totals()
    _, summed = advance(total, total.init(point()), len(TIMES) + 1)
    assert np.isnan(summed["loss_sum"][-1])
    assert np.isnan(summed["loss_least"][-1])
    assert np.isfinite(summed["loss_sum"][:-1]).all()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"n": jnp.int32(3)}, "totals of 'n' need float32 or wider, got int32"),
        ({"n": jnp.bfloat16(3)}, "totals of 'n' need float32 or wider, got bfloat16"),
        ({"n": jnp.float32(3), "time": jnp.float32(0)}, "records 'time' already"),
        ({"n": jnp.float32(3), "n_sum": jnp.float32(0)}, "records 'n_sum' already"),
    ],
)
def test_totals_of_what_cannot_be_summed(records, message):
    run = dataclasses.replace(small_run(), advance=lambda state: (state, records))
    with pytest.raises(ValueError, match=message):
        train.totals(run, TIMES, sums=["n"], least=[]).init(point())


def test_chunks_continue_where_the_last_ended():
    run = small_run()
    whole, trace = advance(run, run.init(point()), 10)
    first, early = advance(run, run.init(point()), 4)
    second, late = advance(run, first, 6)
    chex.assert_trees_all_equal(second.params, whole.params)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)
    chex.assert_trees_all_equal(joined, trace)


def test_rates_and_seed_are_traced():
    traces = []

    @jax.jit
    def go(p):
        traces.append(1)
        run = small_run()
        return run.finish(advance(run, run.init(p), 3)[0])

    results = [go(point(rate, seed)) for rate in (0.1, 1.0) for seed in (0, 1)]
    assert len(traces) == 1
    assert len({float(r["offset"]) for r in results}) == 2


def test_two_rates_or_one():
    both = train.rates_of(point(0.1))
    assert both == Rates(jnp.float32(0.1), jnp.float32(0.1))
    two = train.rates_of(
        {"rate_invariant": jnp.float32(3), "rate_rest": jnp.float32(0.1), "seed": jnp.int32(0)}
    )
    assert (two.invariant, two.rest) == (jnp.float32(3), jnp.float32(0.1))
    run = small_run()
    p = {"rate_invariant": jnp.float32(5), "rate_rest": jnp.float32(0), "seed": jnp.int32(0)}
    state, trace = advance(run, run.init(p), 2)
    assert state.params["b"] == 1
    np.testing.assert_allclose(trace["effective_rate"] * trace["norm2"], 5, rtol=1e-6)


def test_divergence_is_dated():
    def exploding(params, extra, batch):
        # the loss is finite at step 0; b = 1e30 after it; at step 1 b^2 overflows
        return 1e30 * params["b"] + params["b"] ** 2 + 0 * jnp.sum(params["w"]), extra + 1

    run = small_run(loss=exploding)
    state, trace = advance(run, run.init(point(1.0)), 5)
    assert jnp.isfinite(trace["loss"][0])
    assert not jnp.isfinite(trace["loss"][1])
    final = run.finish(state)
    assert final["diverged"]
    assert final["diverged_at"] == 1
    well = small_run()
    final = well.finish(advance(well, well.init(point()), 5)[0])
    assert not final["diverged"]
    assert final["diverged_at"] == -1


def test_parameters_that_overflow_count_as_diverged_though_the_loss_is_finite():
    def flat(params, extra, batch):
        return jnp.tanh(params["b"] * 0) + 1e20 * params["b"] + 0 * jnp.sum(params["w"]), extra

    run = small_run(loss=flat)
    state, _ = advance(run, run.init(point(1e20)), 1)
    assert run.finish(state)["diverged_at"] == 0


LARGEST = float(jnp.finfo(jnp.float32).max)


@pytest.mark.parametrize(
    ("value", "diverges"),
    [(np.nan, True), (np.inf, True), (-np.inf, True), (LARGEST, False), (-LARGEST, False)],
)
@pytest.mark.parametrize(
    ("shape", "index"), [((), ()), ((4,), (3,)), ((2, 3, 5), (0, 0, 0)), ((2, 3, 5), (1, 2, 4))]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_entry_of_the_parameters_that_is_not_finite(value, diverges, shape, index, dtype):
    value = jnp.array(value, dtype)
    value = value if diverges else jnp.clip(value, -jnp.finfo(dtype).max, jnp.finfo(dtype).max)
    updates = {
        "w": jnp.zeros(shape, dtype).at[index].set(value),
        "none": jnp.zeros((0, 2)),
        "sure": jnp.float32(0),
    }
    run = train.make_run(
        init=lambda key: (jax.tree.map(jnp.zeros_like, updates), ()),
        loss=lambda params, extra, batch: (params["sure"], extra),
        batch=lambda key, step: (),
        rule=lambda rates: optax.stateless(lambda grads, params: updates),
    )
    state, _ = jax.jit(run.advance)(run.init(point()))
    assert run.alive(state) != diverges
    assert train.REASONS[state.reason] == ("the parameters are not finite" if diverges else "")


def test_a_final_value_that_is_not_finite_counts_as_diverged():
    run = train.make_run(
        init=lambda key: ({"w": jnp.ones(3)}, ()),
        loss=lambda params, extra, batch: (jnp.sum(params["w"] ** 2), extra),
        batch=lambda key, step: (),
        rule=lambda rates: optax.sgd(rates.rest),
        evaluate=lambda params, extra: {"final_loss": jnp.log(-params["w"][0])},
    )
    assert run.finish(run.init(point()))["diverged"]


def test_by_default_the_final_loss_is_that_of_the_next_batch():
    run = train.make_run(
        init=lambda key: ({"w": jnp.arange(1.0, 4.0), "b": jnp.float32(1)}, jnp.int32(0)),
        loss=quotient,
        batch=lambda key, step: jax.random.uniform(jax.random.fold_in(key, step), (3,)),
        rule=sgd,
    )
    state, _ = advance(run, run.init(point()), 3)
    _, trace = advance(run, state, 1)
    np.testing.assert_allclose(run.finish(state)["final_loss"], trace["loss"][0], rtol=1e-6)


def backtracking(rates):
    """A line search of optax: its update needs value, grad and value_fn."""
    search = optax.scale_by_backtracking_linesearch(60, decrease_factor=0.5)
    return optax.chain(optax.sgd(rates.rest), search)


def on_this_batch(rates):
    """Not a rule to train by: its step says how much larger the loss is at twice the parameters."""

    def update(grads, state, params, *, value, value_fn, **extra_args):
        again = value_fn(optax.tree.scale(2.0, params))
        return {"w": jnp.zeros(3), "b": value - again}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_a_line_search_finds_its_rate():
    """Whatever rate it starts from, no step raises the loss of its batch."""
    run = small_run(rule=backtracking)
    state = run.init(point(1e4))
    for _ in range(5):
        x = jax.random.uniform(jax.random.fold_in(state.key, state.step), (3,))
        before = quotient(state.params, 0, x)[0]
        state, _ = run.advance(state)
        assert quotient(state.params, 0, x)[0] <= before
    assert run.finish(state)["offset"] ** 2 < 0.9
    plain = small_run()
    state, _ = advance(plain, plain.init(point(1e4)), 5)
    assert plain.finish(state)["offset"] ** 2 > 1e6


def test_a_rule_is_given_the_loss_of_its_batch_with_the_state_before_the_step():
    run = small_run(rule=on_this_batch)
    state, _ = run.advance(run.init(point()))
    # doubling the parameters leaves the quotient and makes b^2 = 1 into 4
    np.testing.assert_allclose(state.params["b"], 1 - 3, rtol=1e-5)
    assert state.extra == 1  # the calls of value_fn leave no trace


def passes(rule):
    """How often the compiled step goes through the loss and back: erf is in nothing else."""

    def loss(params, extra, batch):
        return jnp.sum(jax.lax.erf(params["w"])) + params["b"] ** 2, extra

    run = small_run(rule=rule, loss=loss)
    return str(jax.make_jaxpr(run.advance)(run.init(point()))).count("= erf ")


def test_a_rule_that_does_not_ask_for_the_loss_does_not_pay_for_it():
    assert passes(sgd) == 1
    assert passes(on_this_batch) == 2


def test_a_point_without_what_a_run_needs():
    with pytest.raises(ValueError, match=r"needs the axes seed and rate, .* the grid has lr, seed"):
        small_run().init({"lr": jnp.float32(1), "seed": jnp.int32(0)})


def test_stride_must_be_positive():
    with pytest.raises(ValueError, match="stride must be at least 1 step, got 0"):
        small_run(stride=0)


def digits_run(projected, dtype):
    """The BN network on digits, measured unit by unit at every step."""
    config = experiments.Config(batch=64)
    digits = datasets.load("digits")
    model = models.MLP((24, 24), digits.classes, models.BatchNorm)

    def batch(key, step):
        x, y = datasets.batch(digits, key, step, config.batch)
        return x.astype(dtype), y

    def init(key):
        variables = model.init(key, batch(key, 0)[0].astype(jnp.float32), train=True)
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), dict(variables))
        return variables.pop("params"), variables

    loss = functools.partial(experiments.cross_entropy, model)
    groups = invariance.detect(loss, *init(jax.random.key(0)), batch(jax.random.key(0), 0)).groups

    def rule(rates):
        plain = transforms.by_group(
            groups, invariant=optax.sgd(rates.invariant), rest=optax.sgd(rates.rest)
        )
        return optax.chain(plain, transforms.keep_norm(groups)) if projected else plain

    run = train.make_run(init=init, loss=loss, batch=batch, rule=rule, groups=groups)
    assert len(run.coords["group"]) == 24 + 24 + 10 + 2
    return run


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param == jnp.float64):
        yield request.param, {jnp.float32: 3e-6, jnp.float64: 1e-14}[request.param]


def traces_of(run, dtype, steps=150):
    """One trace for each of three rates, far apart."""

    @jax.jit
    def trace_of(rate):
        rates = {"rate_invariant": rate, "rate_rest": jnp.asarray(0.1, dtype)}
        return advance(run, run.init({**rates, "seed": jnp.int32(1)}), steps)[1]

    return [(rate, trace_of(jnp.asarray(rate, dtype))) for rate in (0.01, 1.0, 100.0)]


def test_the_ledger_holds_on_a_real_network(precision):
    """G+ = G + eta^2 |spherical gradient|^2 / G, unit by unit; so no norm ever falls."""
    dtype, rounding = precision
    for rate, trace in traces_of(digits_run(False, dtype), dtype):
        G, spherical = np.asarray(trace["norm2"]), np.asarray(trace["spherical_gradient"])
        after = G[:-1] + rate**2 * spherical[:-1] ** 2 / G[:-1]
        np.testing.assert_allclose(G[1:], after, rtol=rounding)
        assert np.all(G[1:] >= G[:-1] * (1 - rounding))
        if rate == 100:
            assert np.median(G[-1] / G[0]) > 100  # there is something to keep a ledger of


def test_projection_stops_the_ledger_on_a_real_network(precision):
    dtype, rounding = precision
    for _, trace in traces_of(digits_run(True, dtype), dtype):
        G = np.asarray(trace["norm2"])
        np.testing.assert_allclose(G, np.broadcast_to(G[0], G.shape), rtol=20 * rounding)
