"""What an optimiser is told about each leaf, held against the scale-invariant groups.

The *treatment* of a leaf is one of

- "invariant" or "rest": a label, as `groups.labels` writes it and `optax.partition` takes it;
- a bool, in a mask whose `meaning` is given: "invariant" (True: treated as scale-invariant),
  "decay" (True: weight decay, as in `optax.adamw(mask=...)`) or "trust_ratio" (True: its update is
  scaled by |w| / |update|, as in `optax.lars(trust_ratio_mask=...)`);
- an int, a tuple of ints or None: its norm is held fixed by projection (nGPT, hyperball), that of
  each index of this unit axis or of the product of these axes, or (None) that of the whole leaf;
  negative axes count from the end;
- `optax.contrib.MuonDimensionNumbers`; in a tree with any of them, None means: left to Adam.

What no group proves is tried with numbers, if the loss is given.  An *error* contradicts the
groups, or numbers refute it, which it shows: what is taken for free, the loss feels, or the
reverse.  *Unknown* is what no group proves and nobody tried.  A *note* is legitimate, with a
consequence worth knowing.  A true and unremarkable treatment yields nothing.

    >>> import jax.numpy as jnp
    >>> from bnrate.groups import Group, Groups, Member
    >>> params = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "head": jnp.ones((2, 3))}
    >>> groups = Groups([Group([Member("norm/bias"), Member("norm/scale")])])
    >>> print(lint({"norm/scale": "rest", "norm/bias": "invariant", "head": 1}, groups, params))
    path        severity  finding
    head        unknown   has a fixed norm at each index of axis 1, but it is in no
                          scale-invariant group: whether projecting it changes the function is not
                          known; have it tried (loss=, or --numeric)
    norm/scale  error     is treated as rest, but it is scale-invariant jointly with 'norm/bias'
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from bnrate import groups as gr
from bnrate.invariance import _treatment
from bnrate.invariance._claims import Answer, Leaf, Witness, axes_text, known_leaves
from bnrate.invariance._evaluation import check_tolerance
from bnrate.invariance._findings import Finding, Findings
from bnrate.invariance._treatment import Meaning, Treatment


def lint(
    treatment: Treatment,
    groups: gr.Groups,
    params: PyTree,
    *,
    meaning: Meaning | None = None,
    loss: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    tolerance: float = 1e-3,
) -> Findings:
    """List where what an optimiser is told disagrees with what is scale-invariant.

    Args:
      treatment: of each leaf, as this module's docstring lists them: a tree like the parameters or
        a prefix of it, as optax takes masks; or a function that makes one of the parameters; or a
        mapping from the paths of some leaves.
      groups: what is known, from a certificate or `detect`.
      params: the tree to which both belong; without a loss only its structure and shapes matter.
      meaning: of the bools, which could mean anything.
      loss: `loss(params, *args)`, to try with numbers what no group proves, and to see in its
        program which leaves are scales.
      args: what the loss takes besides.
      tolerance: of the numbers, as in `detect`.

    Returns:
      At most one finding per leaf, in the order of the parameters.

    Raises:
      ValueError: a treatment is none of the legal ones or has no such axis; bools have no meaning,
        or a meaning has no bools; the treatment or the groups do not fit the parameters; and, with
        a loss, as `detect`.
    """
    check_tolerance(tolerance)
    leaves = known_leaves(groups, params)
    told: dict[str, dict[str, Any]] = {kind: {} for kind in _RULES}
    for path, (kind, value) in _treatment.read(treatment, params, meaning).items():
        told[kind][path] = value
    witness = Witness(loss, params, tuple(args), tolerance)
    found = []
    for path, leaf in leaves.items():
        for kind, rule in _RULES.items():
            if path in told[kind] and (verdict := rule(leaf, told[kind], witness)):
                found.append(Finding(path, *verdict))
        listed = any(path in paths for paths in told.values())
        if told["projected"] and not listed and leaf.proven(()):
            found.append(Finding(path, "note", "is scale-invariant, but its norm is not fixed"))
    return Findings(tuple(found))


def _invariant(leaf: Leaf, told: Mapping[str, bool], witness: Witness) -> Answer:
    if not told[leaf.path]:
        if not leaf.covered:
            return None
        jointly = f" {leaf.jointly}" if leaf.partners else ""
        return "error", f"is treated as rest, but it is scale-invariant{jointly}"
    if leaf.covered and all(path in told for path in leaf.partners):
        return None  # of a partner that is treated as rest, its own finding tells
    return witness.ask(leaf, (), "is treated as scale-invariant", "", "error")


def _decay(leaf: Leaf, told: Mapping[str, bool], witness: Witness) -> Answer:
    decays = told[leaf.path]
    if not leaf.covered:
        return _decayed_rest(leaf, told, witness) if decays else None
    if not all(told.get(path, decays) == decays for path in leaf.partners):
        if not decays:
            return None
        return "note", (
            f"decays, but it is proven scale-invariant only {leaf.jointly}, and not all of them "
            "decay"
        )
    if decays:
        return "note", (
            "is scale-invariant, so weight decay does not regularise it: it sets the equilibrium "
            "of its norm, hence its effective rate"
        )
    return "note", (
        "is scale-invariant and does not decay: its norm keeps growing, and its effective rate "
        "falls for ever"
    )


def _decayed_rest(leaf: Leaf, told: Mapping[str, bool], witness: Witness) -> Answer:
    """Whether a mask that spares vectors takes a stack of them for a matrix.

    A mask by rank, `ndim >= 2`, is meant to spare biases and scales.  Of layers that are stacked it
    sees a scale as (layers, width).  The program tells: a leaf that it never uses as a matrix.
    """
    if any(told[path] and witness.rank(path) <= 1 for path in told):
        return None  # vectors decay too, so that nothing was meant to be spared
    if witness.loss is None:
        return witness.suspected(leaf)
    if reason := witness.scales.get(leaf.path):
        return "note", (
            f"decays, but the loss never uses it as a matrix (it {reason}); a mask by rank, such "
            "as ndim >= 2, means to spare it"
        )
    return None


def _trust_ratio(leaf: Leaf, told: Mapping[str, bool], witness: Witness) -> Answer:
    if not told[leaf.path]:
        without = (
            "is scale-invariant, but without a trust ratio: its relative update falls as its norm "
            "grows"
        )
        return ("note", without) if leaf.covered else None
    if leaf.covered and leaf.partners:
        return "note", (
            f"has a trust ratio of its own, but it is scale-invariant only {leaf.jointly}"
        )
    if leaf.covered:
        return None
    harm = "the length of its steps follows the norm, not the gradient"
    return witness.ask(leaf, (), "has a trust ratio", harm, "note")


def _projected(leaf: Leaf, told: Mapping[str, tuple[int, ...]], witness: Witness) -> Answer:
    axes = told[leaf.path]
    where = f" at each index of {axes_text(axes)}" if axes else ""
    if not leaf.proven(axes):
        harm = "projecting it changes the function"
        return witness.ask(leaf, axes, f"has a fixed norm{where}", harm, "error")
    if leaf.units and axes != leaf.units:
        one = f"a fixed norm{where}" if axes else "one fixed norm"
        return "note", (
            f"has {one}, but each index of {axes_text(leaf.units)} is a unit: their norms still "
            "drift against each other, and so do their effective rates"
        )
    return None


def _muon(leaf: Leaf, told: Mapping[str, MuonDimensionNumbers | None], witness: Witness) -> Answer:
    dims, rank = told[leaf.path], len(leaf.shape)
    if dims is None:
        matrix = leaf.proven(()) and rank >= 2
        return ("note", "is a scale-invariant matrix that Muon leaves to Adam") if matrix else None
    if rank < 2:
        return "error", f"is given to Muon, but it is no matrix: its shape is {leaf.shape}"
    reduction, output = _axes(dims.reduction_axis), _axes(dims.output_axis)
    if not all(-rank <= axis < rank for axis in (*reduction, *output)):
        return "error", (
            f"has Muon reduction axes {reduction} and output axes {output}, but only {rank} axes"
        )
    reduction, output = ({axis % rank for axis in axes} for axes in (reduction, output))
    if reduction & output:
        return "error", f"has axis {min(reduction & output)} as reduction and output axis of Muon"
    if swapped := reduction.intersection(leaf.units):
        return "error", (
            f"has axis {min(swapped)} as a reduction axis of Muon, but its indices are the units "
            "(output channels): reduction and output axes look swapped"
        )
    return None


def _axes(axes: Sequence[int] | int) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


_RULES: dict[str, Callable[[Leaf, Mapping[str, Any], Witness], Answer]] = {
    "invariant": _invariant,
    "decay": _decay,
    "trust_ratio": _trust_ratio,
    "projected": _projected,
    "muon": _muon,
}
