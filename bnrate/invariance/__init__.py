"""The numeric witness: which parameters of a loss may be rescaled, by trying it.

Two facts hold for a scale-invariant group w and fail for others.  Euler's identity: the gradient
is orthogonal to w, <w, grad> = 0.  And L(c w) = L(w) itself.  Everything here tries one or both, in
float64, at random points near the given parameters.  This is evidence, not a proof.

- `detect` finds the groups: single leaves, sets of leaves of one module, each index of an axis.
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
    >>> print(lint({"kernel": "invariant", "head": "invariant"}, groups, params))
    path  severity  finding
    head  error     is treated as scale-invariant, but it is in no scale-invariant group
"""

from bnrate.invariance.checking import Outcome, Report, check
from bnrate.invariance.detection import Detection, Verdict, detect
from bnrate.invariance.lint import Finding, Findings, Meaning, lint, treatment_from_json
from bnrate.invariance.nullspace import NullSpace
from bnrate.invariance.symmetry import Symmetries, symmetries
from bnrate.invariance.trial import INVARIANT, NO_EFFECT, REST

__all__ = [
    "INVARIANT",
    "NO_EFFECT",
    "REST",
    "Detection",
    "Finding",
    "Findings",
    "Meaning",
    "NullSpace",
    "Outcome",
    "Report",
    "Symmetries",
    "Verdict",
    "check",
    "detect",
    "lint",
    "symmetries",
    "treatment_from_json",
]
