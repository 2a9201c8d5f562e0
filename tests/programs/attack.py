"""Attacks a certifier with random programs: are its claims true in float64?"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from programs.interpreter import evaluate
from programs.program import Program, generate
from programs.tiny import TINY, as_tiny

FACTORS = (2.0, 0.5, 10.0)
POINTS = 3
SMALLER, SLACK = 1e-14, 1e-5  # the tiny number of claims up to epsilon, and what it may change


@dataclass(frozen=True)
class Violation:
    """A claim that is false at most points, or a certifier that raised (`kind` "crash")."""

    seed: int
    kind: str
    claim: object
    detail: str


@dataclass
class Summary:
    """What an attack met. Effective: some entry that the direction rescales has an effect."""

    programs: int = 0
    skipped: int = 0
    directions: int = 0
    effective: int = 0
    without_effect: int = 0
    claiming: int = 0
    violations: list[Violation] = field(default_factory=list)

    def counts(self):
        return vars(self) | {"violations": len(self.violations)}


class Subject:
    """The loss of a program at several points where it is finite and well-conditioned."""

    def __init__(self, program: Program, tiny: float = TINY):
        self.program, self.tiny = program, tiny
        example, self.gradients = program.draw(0), {}
        with as_tiny(tiny) as asked:
            self.traced = lean(jax.make_jaxpr(program.loss)(*example))
        self.has_tiny = bool(asked)

    @cached_property
    def points(self):
        drawn = (self.program.draw(seed) for seed in range(2 * POINTS))
        return list(islice((point for point in drawn if self.sound(point)), POINTS))

    def sound(self, point):
        value, noise = self.value(*point), self.noise(self.value, *point, rounds=2)
        return np.isfinite(value) and noise <= 1e-6 * max(abs(value), 1e-3)

    def value(self, params, batch):
        return float(evaluate(self.traced, *jax.tree.leaves((params, batch)))[0])

    @cached_property
    def traced_gradient(self):
        """None where JAX cannot differentiate the program."""
        try:
            with as_tiny(self.tiny):
                return lean(jax.make_jaxpr(jax.grad(self.program.loss))(*self.program.draw(0)))
        except Exception:  # of many kinds
            return None

    def gradient(self, params, batch):
        """Kept for the points, as each direction asks for it."""
        if id(params) not in self.gradients:
            self.gradients[id(params)] = params, self._gradient(params, batch)
        return self.gradients[id(params)][1]

    def _gradient(self, params, batch):
        leaves = evaluate(self.traced_gradient, *jax.tree.leaves((params, batch)))
        return dict(zip(sorted(params), leaves, strict=True))

    def noise(self, function, params, batch, rounds=8):
        """The change of a function's value under relative changes of 1e-13."""
        rng, value = np.random.default_rng(5), function(params, batch)
        return max(
            abs(function(blurred(rng, params), blurred(rng, batch)) - value) for _ in range(rounds)
        )


program_of = lru_cache(256)(generate)


@lru_cache(256)
def subject_of(seed, tiny):
    """The subject of a seed, which is another for another tiny number only if it has one."""
    if tiny != TINY and not subject_of(seed, TINY).has_tiny:
        return subject_of(seed, TINY)
    return Subject(program_of(seed), tiny)


def lean(closed):
    """Without dead code."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), True)
    return ClosedJaxpr(jaxpr, closed.consts)


def blurred(rng, arrays, size=1e-13):
    return {
        path: x * (1 + size * rng.choice([-1, 1], x.shape)) if x.dtype == float else x
        for path, x in arrays.items()
    }


# Claims. Each test is a function of subject and point: "" where the claim holds there.


@dataclass(frozen=True)
class Scaling:
    """`L(w * factor**exponents) == L(w)`."""

    exponents: dict
    factor: float
    kind = "value"

    def refuted(self, subject, point, slack):
        params, batch = point
        moved = rescaled(params, self.exponents, self.factor)
        before, after = subject.value(params, batch), subject.value(moved, batch)
        allowed = slack * abs(before)
        if abs(after - before) <= allowed or (not np.isfinite(after) and self.factor > 2):
            return ""
        allowed += 10 * sum(subject.noise(subject.value, p, batch) for p in (params, moved))
        return "" if abs(after - before) <= allowed else f"{before} becomes {after}"


@dataclass(frozen=True)
class Orthogonality:
    """`<gradient, exponents * w> == 0`."""

    exponents: dict
    kind = "gradient"

    def terms(self, params, gradient):
        products = [d * params[path] * gradient[path] for path, d in self.exponents.items()]
        used = [
            np.where(d == 0, 0, p) for d, p in zip(self.exponents.values(), products, strict=True)
        ]
        return np.concatenate([np.ravel(p) for p in used] or [np.zeros(1)])

    def refuted(self, subject, point, slack):
        if subject.traced_gradient is None:
            return ""
        terms = self.terms(point[0], subject.gradient(*point))
        if not np.isfinite(terms).all() or abs(terms.sum()) <= slack * abs(terms).sum():
            return ""
        noise = subject.noise(lambda p, b: self.terms(p, subject.gradient(p, b)).sum(), *point)
        allowed = slack * abs(terms).sum() + 10 * noise + 1e-13 * abs(subject.value(*point))
        if abs(terms.sum()) <= allowed or self.goes_with_tiny(subject, point, terms.sum()):
            return ""
        return f"{terms.sum()} of {abs(terms).sum()}"

    def goes_with_tiny(self, subject, point, found):
        """Whether what is found is proportional to the tiny number, hence 0 where that is."""
        if not subject.has_tiny or subject.tiny == TINY:
            return False
        larger = Subject(subject.program, TINY)
        expected = self.terms(point[0], larger.gradient(*point)).sum() * subject.tiny / TINY
        return abs(found - expected) <= 0.01 * abs(found)


@dataclass(frozen=True)
class Idle:
    """The value of this leaf, or of this part of a leaf ("w[0:2, 1:3]"), does not matter."""

    name: str
    kind = "no effect"

    def moved(self, params, rng, size):
        path, _, part = self.name.removesuffix("]").partition("[")
        leaf, ranges = np.array(params[path]), part.split(", ") if part else []
        index = tuple(slice(*(int(n) if n else None for n in r.split(":"))) for r in ranges)
        leaf[index] = size * rng.standard_normal(leaf[index].shape)
        return params | {path: leaf}

    def refuted(self, subject, point, slack):
        params, batch = point
        rng = np.random.default_rng(11)
        before = subject.value(params, batch)
        for size in (1.0, 0.1, 20.0):
            other = self.moved(params, rng, size)
            after = subject.value(other, batch)
            allowed = slack * abs(before)
            # A division by zero elsewhere (0 * nan, 0 / 0) is no effect in real arithmetic.
            if abs(after - before) <= allowed or not np.isfinite(after):
                continue
            allowed += 10 * sum(subject.noise(subject.value, p, batch) for p in (params, other))
            if not abs(after - before) <= allowed:
                return f"{before} becomes {after}"
        return ""


def rescaled(params, exponents, factor):
    return params | {path: params[path] * factor**d for path, d in exponents.items()}


def verdict(claim, subject, slack):
    """Why the claim is false: it must be so at most points."""
    if not claim.refuted(subject, subject.points[0], slack):
        return ""
    reasons = [claim.refuted(subject, point, slack) for point in subject.points]
    wrong = [reason for reason in reasons if reason]
    return wrong[0] if 2 * len(wrong) > len(reasons) else ""


# The attack.


def combinations(rng, directions, shapes):
    """Some sums of directions, with integer and with real coefficients."""
    for integer in (True, True, False, False):
        drawn = (
            rng.integers(-2, 3, len(directions)) if integer else rng.normal(size=len(directions))
        )
        total = {
            path: sum(
                k * np.broadcast_to(d.get(path, 0.0), s)
                for k, d in zip(drawn, directions, strict=True)
            )
            for path, s in shapes.items()
        }
        largest = max(np.max(np.abs(d), initial=0) for d in total.values())
        yield {path: d * (2 / max(2, largest)) for path, d in total.items()}


def effective(subject, direction, rng):
    """Whether the entries that a direction rescales have any effect."""
    params, batch = subject.points[0]
    moved = params | {
        path: params[path] * np.where(d != 0, rng.uniform(0.5, 1.5, params[path].shape), 1.0)
        for path, d in direction.items()
    }
    before, after = subject.value(params, batch), subject.value(moved, batch)
    return not abs(after - before) <= 1e-8 * abs(before)


def claims(certificate, shapes, rng):
    """All claims of a certificate that are tested: each direction, and sums of them."""
    directions = [{k: np.asarray(v, float) for k, v in d.items()} for d in certificate.directions()]
    yield from map(Idle, certificate.no_effect)
    if not directions:
        return
    for direction in combinations(rng, directions, shapes):
        yield from (Scaling(direction, factor) for factor in FACTORS)
        yield Orthogonality(direction)
    for k in rng.permutation(len(directions))[:40]:
        yield Scaling(directions[k], float(rng.choice(FACTORS)))
        yield Orthogonality(directions[k])


def examine(seed, certify, summary, eps):
    """Certify one program, and test what is claimed: up to epsilon, of one that is far smaller."""
    tiny, slack = (SMALLER, SLACK) if eps == "ignore" else (TINY, 1e-9)
    subject = subject_of(seed, tiny)
    program = subject.program
    summary.programs += 1
    if len(subject.points) < POINTS:
        summary.skipped += 1
        return
    try:
        certificate = certify(program.loss, *program.draw(0), eps=eps)
    except Exception as error:
        summary.violations.append(Violation(seed, "crash", None, repr(error)))
        return
    rng = np.random.default_rng(seed)
    directions = certificate.directions()
    reached = sum(effective(subject, d, rng) for d in directions)
    summary.directions += len(directions)
    summary.effective += reached
    summary.claiming += reached > 0
    summary.without_effect += len(certificate.no_effect)
    shapes = {path: node.shape for path, node in program.leaves.items()}
    for claim in claims(certificate, shapes, rng):
        reason = verdict(claim, subject, slack)
        if reason:
            summary.violations.append(Violation(seed, claim.kind, claim, reason))
            return


def attack(seeds, certify, eps="strict"):
    """Certify the programs of these seeds and test every claim."""
    summary = Summary()
    loose = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), loose[0], loose[1]:
        for seed in seeds:
            examine(seed, certify, summary, eps)
    return summary
