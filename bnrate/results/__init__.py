"""Results of a sweep: how they are kept on disk, where they come from, what they say.

The only room that writes to disk.
"""

from bnrate.results.folders import load, save, writing
from bnrate.results.provenance import provenance
from bnrate.results.reducers import counted, curves, over_seeds, rate_dim, tuning_freedom

__all__ = [
    "counted",
    "curves",
    "load",
    "over_seeds",
    "provenance",
    "rate_dim",
    "save",
    "tuning_freedom",
    "writing",
]
