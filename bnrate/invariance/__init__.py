"""The numeric witness: which parameters of a loss may be rescaled, by trying it.

Two facts hold for a scale-invariant group w and fail for others.  Euler's identity: the gradient
is orthogonal to w, <w, grad> = 0.  And L(c w) = L(w) itself.  Everything here tries one or both, in
float64 (or, where that breaks a program, in its own dtypes), at random points near the given
parameters.  That something holds is evidence, not a proof; that it fails is a counterexample.

- `detect` finds the groups: single leaves, sets of leaves of one module, each index of their axes.
- `symmetries` finds all rescalings of a small model at once, by linear algebra.
- `check` attacks groups that come from elsewhere: a proof, a file.
- `lint` holds what an optimiser is told about each leaf against the groups.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x, y):
    ...     h = x @ params["kernel"]
    ...     h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    ...     return jnp.mean((h @ params["head"] - y) ** 2)
    >>> key = jax.random.key(0)
    >>> params = {"kernel": jax.random.normal(key, (3, 4)), "head": jnp.ones(4)}
    >>> x, y = jax.random.normal(key, (8, 3)), jnp.arange(8.0)
    >>> groups = detect(loss, params, x, y).groups
    >>> groups
    Groups(groups=(Group(members=(Member('kernel', axes=(1,)),)),))
    >>> check(groups, loss, params, x, y).ok
    True
    >>> symmetries(loss, params, x, y).dims  # the kernel; its four columns, once it is fixed
    (1, 3)
    >>> labels = {"kernel": "invariant", "head": "invariant"}
    >>> print(lint(labels, groups, params, loss=loss, args=(x, y)))
    path  severity  finding
    head  error     is treated as scale-invariant, but it is in no scale-invariant group:
                    the loss moves by 47 % when it is doubled
"""

from bnrate.invariance._checking import Report, check
from bnrate.invariance._detection import Detection, detect, single_axes
from bnrate.invariance._findings import Finding, Findings
from bnrate.invariance._lint import lint
from bnrate.invariance._null_space import NullSpace
from bnrate.invariance._precision import Precision
from bnrate.invariance._symmetry import Symmetries, symmetries
from bnrate.invariance._treatment import Meaning, treatment_from_json
from bnrate.invariance._verdict import (
    INVARIANT,
    NO_EFFECT,
    NOT_KNOWN,
    REST,
    Verdict,
    units_text,
)

__all__ = [
    "INVARIANT",
    "NOT_KNOWN",
    "NO_EFFECT",
    "REST",
    "Detection",
    "Finding",
    "Findings",
    "Meaning",
    "NullSpace",
    "Precision",
    "Report",
    "Symmetries",
    "Verdict",
    "check",
    "detect",
    "lint",
    "single_axes",
    "symmetries",
    "treatment_from_json",
    "units_text",
]
