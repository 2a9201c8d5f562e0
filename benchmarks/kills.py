"""Sweeps that are killed and resumed: the same bits, and no more than a chunk computed again.

python benchmarks/kills.py --trials 20 --seed 0

A sweep trains a network on digits: with and without BatchNorm, at rates of which some diverge, on
two devices, one run after the other or two at a time.  A process that runs it is killed (SIGKILL)
at a random instant, or within a phase: while it compiles, computes a chunk, writes its records or a
checkpoint, or puts the result together; up to three times in a row.  Then it is resumed.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from bnrate import data, experiments, results, sweep
from bnrate import groups as gr
from bnrate.results import checkpoints, merging, parts
from bnrate.sweep import programs

CONFIG = experiments.Config(width=16, batch=32, steps=300, stride=10)
GRID = {"rule": ["sgd-bn", "sgd"], "rate": [0.01, 3e4, 1.0, 1e5, 0.1], "seed": [0, 1]}
WAYS = {"map": {"executor": "map"}, "vmap": {"executor": "vmap", "width": 2}}
CHUNK = 30
CHUNKS = len(GRID["rule"]) * CONFIG.steps // CHUNK
PHASES = ("compile", "chunk", "region write", "checkpoint", "merge")


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--trials", type=int, default=20)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--child", nargs=4, metavar=("WAY", "OUT", "CACHE", "DEATH"))
    options = flags.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    if options.child:
        way, out, cache, death = options.child
        child(way, Path(out), cache, json.loads(death))
        return
    with tempfile.TemporaryDirectory() as folder:
        passed = sum(trials(Path(folder), options.trials, options.seed))
    print(f"{passed} of {options.trials}")
    sys.exit(passed < options.trials)


def trials(folder: Path, count: int, seed: int) -> Iterator[bool]:
    """Whether each trial ended well."""
    cache, random = str(folder / "programs"), np.random.default_rng(seed)
    sweep.cache_compilations(cache)
    whole, seconds = {}, {}
    for way in WAYS:
        run_child(way, folder / f"compiled-{way}", cache, {})  # so that later ones need not
        whole[way] = run_child(way, folder / f"whole-{way}", cache, {})
        seconds[way] = json.loads((folder / f"whole-{way}.seconds").read_text())
    aims = [None, *PHASES]
    for trial in range(count):
        way, out = list(WAYS)[trial % len(WAYS)], folder / f"trial-{trial}"
        aim = aims[trial // len(WAYS) % len(aims)]
        deaths = [death(random, seconds[way], aim) for _ in range(1 + trial % 3)]
        kills = sum(run_child(way, out, cache, one) is None for one in deaths)
        ds = run(way, out)
        again = len((folder / f"{out.name}.chunks").read_text().split()) - CHUNKS
        same = bits(ds) == bits(results.load(out)) == bits(whole[way])
        line = {"benchmark": "kills", "trial": trial, "way": way, "deaths": deaths, "kills": kills}
        print(json.dumps({**line, "chunks_again": again, "same_bits": same}), flush=True)
        yield same and again <= kills


def death(random: np.random.Generator, seconds: dict[str, list[float]], aim: str | None) -> Any:
    """A random instant: of the whole, or of one turn of a phase."""
    phase = aim or "sweep"
    turn = int(random.integers(len(seconds[phase])))
    return {"phase": phase, "turn": turn, "after": random.uniform(0, seconds[phase][turn])}


def run_child(way: str, out: Path, cache: str, dead: dict[str, Any]) -> xr.Dataset | None:
    """Run a sweep in another process; None if it was killed."""
    command = [sys.executable, __file__, "--child", way, str(out), cache, json.dumps(dead)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == -signal.SIGKILL:
        return None
    assert ended.returncode == 0, ended.stderr
    return results.load(out)


def child(way: str, out: Path, cache: str, dead: dict[str, Any]) -> None:
    """The sweep, with a clock (and death) in each phase."""
    sweep.cache_compilations(cache)
    seconds: dict[str, list[float]] = {name: [] for name in ("sweep", *PHASES)}
    clock = functools.partial(timed, seconds, dead)
    compiled = clock("compile", programs.compiled_advance)
    programs.compiled_advance = lambda *args: Advance(
        compiled(*args),
        lambda program: clock("chunk", lambda *args: jax.block_until_ready(program(*args))),
    )
    parts.Part.write = clock("region write", parts.Part.write)
    checkpoints.save = clock("checkpoint", checkpoints.save)
    merging.merge = clock("merge", merging.merge)
    clock("sweep", run)(way, out)
    out.with_suffix(".seconds").write_text(json.dumps(seconds))


class Advance:
    """A compiled program that is called in another way."""

    def __init__(self, program: Any, otherwise: Callable[[Any], Callable[..., Any]]):
        self.program, self.call = program, otherwise(program)

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        return self.call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)


def timed(
    seconds: dict[str, list[float]], dead: dict[str, Any], phase: str, f: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that notes how long it took, and in one of its turns is killed."""

    def g(*args: Any, **options: Any) -> Any:
        if dead.get("phase") == phase and dead["turn"] == len(seconds[phase]):
            kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
            threading.Timer(dead["after"], kill).start()
        start = time.perf_counter()
        result = f(*args, **options)
        seconds[phase].append(time.perf_counter() - start)
        return result

    return g


def run(way: str, out: Path) -> xr.Dataset:
    """The sweep; each chunk that is begun leaves a line in a file beside `out`."""
    digits = data.load(CONFIG.data)

    def make(rule: str) -> Any:
        return experiments.setting_run(CONFIG, digits, rule, gr.Groups())

    with counted(out.with_suffix(".chunks")):
        return sweep.run(make, GRID, steps=CONFIG.steps, chunk=CHUNK, out=out, **WAYS[way])


@contextlib.contextmanager
def counted(file: Path) -> Iterator[None]:
    """Count the chunks of which the computation has begun."""
    compiled = programs.compiled_advance

    def counting(program: Any) -> Callable[..., Any]:
        def advance(*args: Any) -> Any:
            with file.open("a") as lines:
                lines.write("chunk\n")
            return program(*args)

        return advance

    programs.compiled_advance = lambda *args: Advance(compiled(*args), counting)
    try:
        yield
    finally:
        programs.compiled_advance = compiled


def bits(ds: xr.Dataset) -> dict[str, Any]:
    """All values as bytes, so that NaN is compared as well."""
    return {
        name: values.values.tolist() if values.dtype.kind in "UT" else values.values.tobytes()
        for name, values in ds.variables.items()
    }


if __name__ == "__main__":
    main()
