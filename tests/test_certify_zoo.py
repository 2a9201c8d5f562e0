"""Every model of the zoo: what is proven, against the known answers and against the numbers."""

import functools

import pytest
from witnesses import CHECKED, UNCHECKED, build, claims, compared, prove
from zoo import ZOO
from zoo_frameworks import FRAMEWORKS

from bnrate.certify import certify

ALL = ZOO | FRAMEWORKS
EXACT = [name for name, entry in ALL.items() if not entry.fixed_eps]

# What a proof truthfully does not say, and why.
ALWAYS = {
    # Its test for dead channels compares the variance with the mean, which the bias shifts.
    "bnrate.normalize": {
        "invariant": set(), "units": {}, "no_effect": set(), "joint": {frozenset({"w1", "b1"})},
    },
}  # fmt: skip
# Proven dimensions that fall short of the measured ones, and why.
SHORT = {
    "BN evaluated, fresh": (6, 12),  # the running mean is 0 in the numbers, data in the proof
    "bnrate.normalize": (14, 21),
}


@functools.cache
def exact(name):
    """A model at eps = 0, and its certificate."""
    problem = build(ALL[name], 0.0)
    return problem, prove(problem, certify if name in CHECKED else UNCHECKED, eps="strict")


def expected(name):
    entry = ALL[name]
    answer = {
        "invariant": set(entry.invariant), "units": dict(entry.units),
        "no_effect": set(entry.no_effect), "joint": set(entry.joint),
    }  # fmt: skip
    return ALWAYS.get(name, answer)


def agree(found, wanted):
    """Of joint groups that share a leaf the certificate names one only."""
    disjoint = found.pop("joint"), wanted.pop("joint")
    assert found == wanted
    assert disjoint[0] <= disjoint[1]
    left = {path for group in disjoint[0] for path in group}
    assert all(not left.isdisjoint(group) for group in disjoint[1])


@pytest.mark.parametrize("name", EXACT)
def test_exact(name):
    certificate = exact(name)[1]
    agree(claims(certificate), dict(expected(name)))
    assert certificate.eps_sites == ()


@pytest.mark.parametrize("name", ALL)
def test_up_to_epsilon(name):
    agree(claims(prove(build(ALL[name], 1e-5), UNCHECKED)), dict(expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_against_the_numbers(name):
    result = compared(*exact(name))
    assert result.clear
    assert result.violations == 0
    assert (result.found, result.numeric) == SHORT.get(name, (result.numeric, result.numeric))
