"""Auto rate-tuning by normalisation, as a library for JAX.

A weight that a normalisation follows is scale-invariant: the loss does not change when the weight
is multiplied by c > 0.  Gradient steps then only lengthen it, its effective rate eta / |w|^2 falls
by itself, and any fixed learning rate works (Arora, Li, Lyu, ICLR 2019).

The modules are the interface: `from bnrate import invariance, transforms`.  Importing `bnrate`
itself imports nothing else and changes no setting.
"""

__version__ = "0.1.0"
