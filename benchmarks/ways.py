"""The ways to train many runs: generators that pause after each chunk of steps, to be timed.

A way is `way(problem, rates, steps, chunk)`, with one run for each rate.  It returns the loss of
each run at the last step, which must be the same whatever the way.
"""

import functools
import math
import queue
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from problems import Problem

from bnrate import sweep


def loop(problem: Problem, rates: np.ndarray, steps: int, chunk: int):
    """A Python loop over runs and steps; the step is jitted."""
    state, key = problem.start()
    step = jax.jit(functools.partial(problem.step, key), donate_argnums=1)
    states = [jax.tree.map(jnp.copy, state) for _ in rates]
    losses, each = [None] * len(states), list(jnp.asarray(rates))
    for _ in range(0, steps, chunk):
        for i, rate in enumerate(each):
            for _ in range(chunk):
                states[i], losses[i] = step(rate, states[i])
        jax.block_until_ready(losses)
        yield
    return np.array(losses)


def scan(problem: Problem, rates: np.ndarray, steps: int, chunk: int):
    """One run after the other, each a jitted scan over a chunk of steps."""
    state, key = problem.start()
    advance = jax.jit(functools.partial(_scan, problem, key, chunk))
    states, losses = [state] * len(rates), [None] * len(rates)
    for _ in range(0, steps, chunk):
        for i, rate in enumerate(rates):
            states[i], losses[i] = advance(rate, states[i])
        jax.block_until_ready(losses)
        yield
    return np.array(losses)


def vmap(problem: Problem, rates: np.ndarray, steps: int, chunk: int):
    """The naive vmap of the scan over all runs."""
    state, key = problem.start()
    advance = jax.jit(jax.vmap(functools.partial(_scan, problem, key, chunk)))
    state = jax.tree.map(lambda a: jnp.stack([a] * len(rates)), state)
    losses = None
    for _ in range(0, steps, chunk):
        state, losses = jax.block_until_ready(advance(rates, state))
        yield
    return np.asarray(losses)


def hyperoptax(problem: Problem, rates: np.ndarray, steps: int, chunk: int, parallel: int = 0):
    """Its grid search over the rates in one program, `parallel` runs at a time (0: all).

    A search cannot be paused and gone on with: after each pause a chunk is trained from the start.
    """
    from hyperoptax.grid import GridSearch  # noqa: PLC0415
    from hyperoptax.spaces import DiscreteSpace  # noqa: PLC0415

    state, key = problem.start()
    together = parallel or len(rates)
    space = {"rate": DiscreteSpace(rates.tolist())}
    grid, search = GridSearch.init(space, n_parallel=together)

    @jax.jit
    def optimise(key, state):
        def train(_, point):
            return _scan(problem, key, chunk, point["rate"], state)[1]

        ignored = jax.random.key(0)
        return search.optimize_scan(grid, ignored, train, len(rates) // together)[1][1]

    losses = None
    for _ in range(0, steps, chunk):
        losses = jax.block_until_ready(optimise(key, state))
        yield
    return np.asarray(losses).ravel()


def swept(
    problem: Problem,
    rates: np.ndarray,
    steps: int,
    chunk: int,
    *,
    stride: int = 10,
    measured: bool = False,
    **options,
):
    """`bnrate.sweep`, in a thread of its own that waits after each chunk.

    A chunk that is no multiple of the stride records as often as it must: of three steps, each.
    """
    if "out" in options:
        options["out"] = f"{options['out']}/{steps}"
    go, reached, abandoned = threading.Semaphore(0), queue.SimpleQueue(), threading.Event()
    make = functools.partial(problem.run, math.gcd(chunk, stride), measured)

    def pause(_):
        reached.put(None)
        go.acquire()
        if abandoned.is_set():
            raise TimeoutError("nobody waits for the rest")

    def work():
        go.acquire()
        grid = {"rate": rates, "seed": [0]}
        callbacks = [types.SimpleNamespace(on_chunk=pause)]
        return sweep.run(make, grid, steps=steps, chunk=chunk, callbacks=callbacks, **options)

    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(work)
        sweeping.add_done_callback(reached.put)
        try:
            for _ in range(0, steps, chunk):
                go.release()
                reached.get()
                if sweeping.done():
                    sweeping.result()  # raises what went wrong
                yield
        except GeneratorExit:
            abandoned.set()
            raise
        finally:
            go.release()
        return sweeping.result()["loss"].isel(step=-1, seed=0).values


WAYS = {
    "loop": loop,
    "scan": scan,
    "vmap": vmap,
    "hyperoptax-1": functools.partial(hyperoptax, parallel=1),
    "hyperoptax-all": hyperoptax,
    "sweep-auto": functools.partial(swept, executor="auto"),
    "sweep-map": functools.partial(swept, executor="map"),
    "sweep-vmap": functools.partial(swept, executor="vmap"),
    "sweep-vmap-8": functools.partial(swept, executor="vmap", width=8),
}


def find(name: str):
    """A way by its name, those in PyTorch only where it is installed.

    Raises:
      ModuleNotFoundError: it is not.
    """
    if name.startswith("torch"):
        import torch_ways  # noqa: PLC0415

        return torch_ways.WAYS[name]
    return WAYS[name]


def _scan(problem: Problem, key, chunk: int, rate, state):
    step = functools.partial(problem.step, key, rate)
    state, losses = jax.lax.scan(lambda s, _: step(s), state, length=chunk)
    return state, losses[-1]
