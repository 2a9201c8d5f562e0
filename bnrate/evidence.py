"""Both witnesses in one table: what is proven, what numbers refute, and what is not known.

A proof (`certify`) says what may be scaled, and where it stops; that it stops is no disproof.
Numbers (`invariance`) refute, with a figure; that they do not is no proof.  `gather` asks both
about each leaf, each index of its axes, and each joint group, so that every claim gets one of three
answers.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     h = x @ params["kernel"]
    ...     h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    ...     v = params["v"] / jnp.where(x[0, 0] > 9, 1.0, jnp.linalg.norm(params["v"]))
    ...     return jnp.mean((h @ params["head"]) ** 2) + jnp.sum(jnp.sin(v))
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> params = {"kernel": jnp.ones((3, 4)), "head": jnp.ones(4), "v": jnp.ones(2)}
    >>> print(gather(loss, params, x))
    Proven, and the numbers agree: 1 claim
      kernel  each index of axis 1  euler 0.0e+00, scaling 0.0e+00
    Not known: the numbers agree, but nothing proves it: 1 claim
      v  as a whole  a choice of values that scale differently at <doctest bnrate.evidence[1]>:4
    Refuted: 3 claims
      head    as a whole            the loss moves by 279 % when it is doubled
      kernel  each index of axis 0  the loss moves by 1.6 % when each index of axis 0 is scaled by a
                                    factor of its own
      v       each index of axis 0  the loss moves by 0.84 % when each index of axis 0 is scaled by
                                    a factor of its own
    Tried in float64, with a rounding of 2.2e-16
"""

import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bnrate import certify, invariance
from bnrate import groups as gr

Answer = Literal["contradiction", "proven", "not known", "refuted"]

_COLUMNS = 100
_WIDEST = 38
_HEADINGS: dict[Answer, str] = {
    "contradiction": "PROVEN, BUT THE NUMBERS REFUTE IT; ONE OF THEM IS WRONG, PLEASE REPORT THIS",
    "proven": "Proven, and the numbers agree",
    "not known": "Not known: the numbers agree, but nothing proves it",
    "refuted": "Refuted",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a group may be scaled, unit by unit, or that it has no effect; and the answer.

    Attributes:
      group: the leaf or leaves, with their unit axes.
      kind: "invariant" or "no effect".
      proof: "proven"; "up to epsilon": it holds once the epsilons of the program are 0, and the
        numbers, for which they are not, refute it; or "none".
      verdict: what the numbers say.
      stops: of what is not proven, where the proof stops.
    """

    group: gr.Group
    kind: str
    proof: Literal["proven", "up to epsilon", "none"]
    verdict: invariance.Verdict
    stops: str = ""

    @property
    def refuted(self) -> bool:
        """Whether the numbers refute it."""
        idle = (invariance.NO_EFFECT, invariance.NOT_KNOWN)
        return not (self.verdict.passes if self.kind == gr.INVARIANT else self.verdict.kind in idle)

    @property
    def answer(self) -> Answer:
        """One of three, or that the witnesses contradict each other."""
        if self.proof == "proven":
            return "contradiction" if self.refuted else "proven"
        return "refuted" if self.refuted else "not known"

    @property
    def reason(self) -> str:
        """What the answer rests on, in words."""
        if self.refuted:
            figure = self.verdict.figure or "the loss moves when it is displaced"
            return figure + "; proven for epsilons of 0" * (self.proof == "up to epsilon")
        if self.answer == "not known":
            return self.stops
        if self.verdict.kind != invariance.INVARIANT:
            return "nothing that was tried changes the loss"
        both = zip(("euler", "scaling"), self.verdict.residuals, strict=True)
        return ", ".join(f"{name} {number}" for name, number in both if number)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All claims, and the witnesses.

    Attributes:
      claims: those that are proven; then all others about each leaf, and joint groups.
      certificate: the proof.
      detection: the numbers.
    """

    claims: tuple[Claim, ...]
    certificate: certify.Certificate
    detection: invariance.Detection

    def of(self, answer: Answer) -> tuple[Claim, ...]:
        """The claims with this answer."""
        return tuple(claim for claim in self.claims if claim.answer == answer)

    @property
    def ok(self) -> bool:
        """Whether the witnesses agree."""
        return not self.of("contradiction")

    def to_json(self) -> str:
        """All claims as JSON."""
        rows = [
            {
                "members": json.loads(gr.to_json(gr.Groups([claim.group])))["groups"][0],
                "claim": claim.kind,
                "answer": claim.answer,
                "reason": claim.reason,
                "stops": claim.stops,
                "euler": _number(claim.verdict.euler),
                "scaling": _number(claim.verdict.scaling),
            }
            for claim in self.claims
        ]
        precision = str(self.detection.precision)
        return json.dumps({"claims": rows, "tried": precision}, indent=2) + "\n"

    def __str__(self) -> str:
        """A table at most 100 columns wide, in which like layers share a row."""
        return "\n".join([*self._lines(), f"Tried {self.detection.precision}"])

    def _lines(self) -> Iterator[str]:
        for answer, heading in _HEADINGS.items():
            if claims := self.of(answer):
                yield f"{heading}: {len(claims)} claim{'s' * (len(claims) > 1)}"
                yield from _rows(claims)


def gather(
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    eps: Literal["ignore", "strict"] = "ignore",
    batches: Iterable[Sequence[Any]] = (),
    draws: int = 3,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Evidence:
    """Ask both witnesses about every leaf, each index of its axes, and joint groups.

    A claim that is finer than a refuted one is refuted with it, and one that is coarser than a
    proven one is proven: neither is listed.

    Args:
      loss: `loss(params, *args)`, a scalar or a tuple that begins with one.
      params: a tree of arrays of floats; numbers are tried near them.
      *args: what the loss takes besides.
      eps: as in `certify.certify`.
      batches: (as all below) as in `invariance.detect`.
      draws: random points per batch.
      seed: of those points.
      tolerance: for the residuals.

    Raises:
      ValueError: as `certify.certify` and `invariance.detect`.
    """
    certificate = certify.certify(loss, params, *args, eps=eps)
    detection = invariance.detect(
        loss, params, *args, batches=batches, draws=draws, seed=seed, tolerance=tolerance
    )
    shapes = {path: np.shape(leaf) for path, leaf in gr.leaves(params).items()}
    proven = list(_proven(certificate, detection, shapes))
    if certificate.eps_sites and any(claim.refuted for claim in proven):
        strict = certify.certify(loss, params, *args, eps="strict")
        exact = list(_proven(strict, detection, shapes))
        proven = [claim if claim in exact else _up_to_epsilon(claim) for claim in proven]
    others = _others(certificate, detection, shapes)
    return Evidence((*proven, *others), certificate, detection)


def _proven(
    certificate: certify.Certificate, detection: invariance.Detection, leaves: Collection[str]
) -> Iterator[Claim]:
    for group in certificate.groups:
        yield Claim(group, gr.INVARIANT, "proven", detection.attempt(group))
    for path in filter(leaves.__contains__, certificate.no_effect):  # of whole leaves only
        group = gr.Group([gr.Member(path)])
        yield Claim(group, invariance.NO_EFFECT, "proven", detection.attempt(group))


def _up_to_epsilon(claim: Claim) -> Claim:
    return dataclasses.replace(claim, proof="up to epsilon") if claim.refuted else claim


def _others(
    certificate: certify.Certificate,
    detection: invariance.Detection,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[Claim]:
    """What is not proven: of each leaf, alone; of joint groups; and of what is finer."""
    verdicts = {_paths(v.group): v for v in detection.verdicts}
    joint = [_paths(group) for group in certificate.groups if len(_paths(group)) > 1]
    for paths in dict.fromkeys([*verdicts, *joint]):
        if paths <= set(certificate.no_effect):
            continue
        verdict = verdicts.get(paths)
        known = gr.Groups(group for group in certificate.groups if _paths(group) & paths)
        if verdict and not _follows(verdict.group, known, shapes):
            kind = verdict.kind if verdict.kind == invariance.NO_EFFECT else gr.INVARIANT
            yield Claim(verdict.group, kind, "none", verdict, _stops(certificate, verdict.group))
        if verdict is None or verdict.passes:
            found = [known, gr.Groups([verdict.group] if verdict else [])]
            ordered = {path: shape for path, shape in shapes.items() if path in paths}
            for group in invariance.single_axes(ordered):
                if not any(_follows(group, groups, shapes) for groups in found):
                    stops = _stops(certificate, group)
                    yield Claim(group, gr.INVARIANT, "none", detection.attempt(group), stops)


def _follows(claimed: gr.Group, known: gr.Groups, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the units of a claim are made of units that are known."""
    paths = {*known.paths, *_paths(claimed)}
    tree = {path: np.ones(shape, np.float32) for path, shape in shapes.items() if path in paths}
    fine, coarse = _numbers(known, tree), _numbers(gr.Groups([claimed]), tree)
    if np.any((coarse > 1) & (fine == 1)):
        return False
    fine, coarse = fine[fine > 1], coarse[fine > 1]
    pairs = np.unique(fine * (1 + coarse.max(initial=0)) + coarse)
    return len(pairs) == len(np.unique(fine))  # each lies in one unit of the claim, or outside


def _numbers(groups: gr.Groups, ones: PyTree) -> np.ndarray:
    """The number of the unit of each entry, from 2 on; 1 if it is in none."""
    numbers = np.arange(2, 2 + len(gr.units(groups, ones)), dtype=np.float32)
    marked = gr.leaves(gr.rescale(groups, ones, jnp.asarray(numbers)))
    return np.concatenate([np.ravel(leaf) for leaf in marked.values()]).astype(np.int64)


def _paths(group: gr.Group) -> frozenset[str]:
    return frozenset(member.path for member in group.members)


def _stops(certificate: certify.Certificate, group: gr.Group) -> str:
    """Where the proof stops, of a claim about one leaf, as a whole or along one axis."""
    (path, *others), axes = [member.path for member in group.members], group.members[0].axes
    if others or len(axes) > 1:
        return ""
    breaks = certificate.why(path, axes[0] if axes else None)
    hard = [one for one in breaks if one.kind != "eps"]
    return f"{hard[0].what} {hard[0].site}" if hard else ""


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _rows(claims: Sequence[Claim]) -> Iterator[str]:
    """Three columns; of claims that differ in the numbers of their layers one is shown."""
    alike: dict[tuple[str, ...], list[Claim]] = {}
    for claim in claims:
        layer = re.sub(r"\d+", "#", claim.group.name)
        how = re.sub(r"[\d.,e+-]+", "#", claim.reason)
        alike.setdefault((layer, _how(claim), how), []).append(claim)
    rows = []
    for same in alike.values():
        name = " + ".join(member.name for member in same[0].group.members)
        more = f", and {len(same) - 1} more alike" if len(same) > 1 else ""
        rows.append((name + more, _how(same[0]), same[0].reason))
    widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in (0, 1)]
    left = _COLUMNS - 6 - sum(widths)
    for row in rows:
        cells = [_wrapped(text, width) for text, width in zip(row, (*widths, left), strict=True)]
        for a, b, c in itertools.zip_longest(*cells, fillvalue=""):
            yield f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip()


def _how(claim: Claim) -> str:
    return "no effect" if claim.kind == invariance.NO_EFFECT else invariance.units_text(claim.group)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)
