"""Random programs against the certifier: no claim may be false.

`BNRATE_FUZZ=2000 pytest tests/test_certify_fuzz.py` runs that many programs instead of a few.
"""

import os
from dataclasses import dataclass

import jax
import mutants
import numpy as np
import programs
import pytest
from programs.attack import Subject, attack, program_of

UNCHECKED = mutants.copy().certify  # run-time checks of types would take most of the time
PROGRAMS = int(os.environ.get("BNRATE_FUZZ", 100))
CHUNK = 50


@dataclass
class Claim:
    """A certificate as it might be."""

    exponents: list
    no_effect: tuple = ()

    def directions(self):
        return self.exponents


@pytest.fixture
def relaxed():
    loose = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), loose[0], loose[1]:
        yield


@pytest.mark.parametrize("eps", ["strict", "ignore"])
@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_no_claim_is_false(first, eps):
    summary = attack(range(first, min(first + CHUNK, PROGRAMS)), UNCHECKED, eps)
    assert summary.violations == []
    assert summary.skipped < 0.3 * summary.programs
    assert summary.claiming > 0.2 * summary.programs


@pytest.mark.parametrize("eps", ["strict", "ignore"])
def test_false_claims_are_found(eps):
    """Of all leaves together, of each leaf, and of their having no effect."""
    together = attack(range(25), lambda _, p, b, eps: Claim([{k: np.ones(()) for k in p}]), eps)
    alone = attack(range(25), lambda _, p, b, eps: Claim([{k: np.ones(())} for k in p]), eps)
    idle = attack(range(25), lambda _, p, b, eps: Claim([], tuple(p)), eps)
    assert all(len(s.violations) > 10 for s in (together, alone, idle))


def test_a_certifier_that_raises_is_noted():
    def broken(*_, eps):
        raise ZeroDivisionError

    assert {v.kind for v in attack(range(5), broken).violations} == {"crash"}


def test_true_claims_are_not_refuted():
    assert attack(range(25), lambda *_, eps: Claim([])).violations == []


def test_a_seed_is_a_program(relaxed):
    assert programs.generate(7) == programs.generate(7)


def test_every_operation_occurs(relaxed):
    missing = {*programs.OPERATIONS}
    for seed in range(400):
        missing -= {*program_of(seed).operations}
        if not missing:
            break
    assert missing == set()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_evaluation_agrees_with_jax(seed, relaxed):
    program = programs.generate(seed)
    point = program.draw(0)
    traced = jax.make_jaxpr(program.loss)(*point)
    flat = jax.tree.leaves(point)
    expected = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *flat)
    np.testing.assert_allclose(programs.evaluate(traced, *flat), expected, rtol=1e-9)


def test_a_failing_program_is_reduced(relaxed):
    """What remains is needed: here a dense layer."""
    living = map(programs.pruned, map(program_of, range(99)))
    program = next(p for p in living if "dense" in p.operations)
    smaller = programs.shrink(program, lambda p: "dense" in p.operations)
    assert len(smaller.operations) <= 3
    assert np.isfinite(Subject(smaller).value(*smaller.draw(0)))
