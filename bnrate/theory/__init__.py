"""What is known of training on spheres, as functions of numbers; `equivalence.gap` alone trains.

How small gradients become:

- `gd`, `sgd`: bounds for gradient descent and SGD, at any rate (`filling` has their numerics).
- `psgd`: what is left of them if norms are reset.
- `chain`, `gdnp`: a loss on which no method is faster; steps that are linearly fast.
- `constants`: what the bounds need to know of a loss.
- `pathwise`: a bound for one run, from its trace alone, if that is one of plain steps (`ledger`).

What weight decay does:

- `equivalence`: settings of one rule into those of another that trains the same functions.
- `rotation`: weight decay as an angle per step, and back.
- `equilibrium`: where weight decay and the growth of the norm balance, and how soon.
"""

from bnrate.theory import (
    chain,
    constants,
    equilibrium,
    equivalence,
    gd,
    gdnp,
    pathwise,
    psgd,
    rotation,
    sgd,
)

__all__ = [
    "chain",
    "constants",
    "equilibrium",
    "equivalence",
    "gd",
    "gdnp",
    "pathwise",
    "psgd",
    "rotation",
    "sgd",
]
