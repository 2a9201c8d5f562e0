"""A grid of runs, as fast as the machine allows: compiled once, on all devices, resumable.

A sweep takes any run (see `Run`) and knows nothing of training.  Axes of numbers are traced: no
compilation per rate or seed.  Axes of strings are static: the run is made anew for each value.

    >>> class Quadratic:
    ...     stride, dims, coords = 1, {}, {}
    ...     def init(self, point): return {"w": 1 + 0 * point["rate"], "rate": point["rate"]}
    ...     def advance(self, s): return {**s, "w": s["w"] * (1 - s["rate"])}, {"loss": s["w"] ** 2}
    ...     def finish(self, s): return {"final": s["w"] ** 2}
    >>> ds = run(Quadratic, {"rate": [0.5, 1.0, 3.0]}, steps=4)
    >>> ds["loss"].dims, ds["final"].values.tolist()
    (('rate', 'step'), [0.00390625, 0.0, 256.0])

With a folder nothing is lost: `run(..., out="runs/mine")`, killed at any instant and called again,
goes on from the last chunk and gives the same bits.
"""

from bnrate.sweep.caching import cache_compilations
from bnrate.sweep.callbacks import Bar, TensorBoard, Terminal, WandB
from bnrate.sweep.grids import log_uniform, uniform
from bnrate.sweep.progress import Progress
from bnrate.sweep.refinement import refine_rates, refine_seeds
from bnrate.sweep.runs import Run
from bnrate.sweep.stopping import Hopeless
from bnrate.sweep.sweeping import EXECUTORS, run, run_shard

__all__ = [
    "EXECUTORS",
    "Bar",
    "Hopeless",
    "Progress",
    "Run",
    "TensorBoard",
    "Terminal",
    "WandB",
    "cache_compilations",
    "log_uniform",
    "refine_rates",
    "refine_seeds",
    "run",
    "run_shard",
    "uniform",
]
