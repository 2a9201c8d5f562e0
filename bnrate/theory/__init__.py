"""What is known of training on spheres, as functions of numbers; `equivalence.gap` alone trains.

- `equivalence`: settings of one rule into those of another that trains the same functions.
- `rotation`: weight decay as an angle per step, and back.
- `equilibrium`: where weight decay and the growth of the norm balance, and how soon.
"""

from bnrate.theory import equilibrium, equivalence, rotation

__all__ = ["equilibrium", "equivalence", "rotation"]
