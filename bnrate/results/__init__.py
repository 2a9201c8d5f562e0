"""Results of a sweep: how they are kept on disk, where they come from, what they say.

The only room that writes to disk.
"""

from bnrate.results.assembly import STATUS, join
from bnrate.results.folders import load, save, writing
from bnrate.results.merging import finish, finished, merge, together, unfinished
from bnrate.results.parts import Part, Share, in_memory, opened
from bnrate.results.plans import Combination, Plan, Variable
from bnrate.results.provenance import provenance
from bnrate.results.reducers import counted, curves, over_seeds, rate_dim, tuning_freedom
from bnrate.results.selection import random_stop, stopping_weights, two_phase

__all__ = [
    "STATUS",
    "Combination",
    "Part",
    "Plan",
    "Share",
    "Variable",
    "counted",
    "curves",
    "finish",
    "finished",
    "in_memory",
    "join",
    "load",
    "merge",
    "opened",
    "over_seeds",
    "provenance",
    "random_stop",
    "rate_dim",
    "save",
    "stopping_weights",
    "together",
    "tuning_freedom",
    "two_phase",
    "unfinished",
    "writing",
]
