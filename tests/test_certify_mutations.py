"""The tests of the certifier tested: each broken rule makes it claim what is not true."""

import jax
import mutants
import numpy as np
import pytest
from mutants import EXACT, EXCUSED, Mutation, excess, mutant
from mutations import MUTATIONS
from mutations_families import FAMILY_MUTATIONS
from mutations_found import FOUND_MUTATIONS
from mutations_mixtures import MIXED_MUTATIONS
from special import EXCUSES, SPECIAL
from special_families import FAMILIES
from special_found import FOUND, FOUND_EXCUSES
from special_mixtures import MIXED_EXCUSES, MIXTURES
from special_names import NAME_EXCUSES, NAMES
from special_zeros import ZERO_EXCUSES, ZEROS
from syntax import In
from zoo import ZOO

from bnrate.certify import certify

BROKEN = MUTATIONS | FOUND_MUTATIONS | FAMILY_MUTATIONS | MIXED_MUTATIONS
CATCHERS = sorted({mutation.caught for mutation in BROKEN.values()})
OTHERS = sorted({*EXACT, *EXCUSED} - {*CATCHERS})
UNTRUE = [
    name
    for name, entry in (ZEROS | ZERO_EXCUSES | MIXTURES | MIXED_EXCUSES).items()
    if not (entry.invariant or entry.joint)
]


@pytest.fixture(autouse=True)
def relaxed():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def unbroken():
    """The copy that mutants are made of: the original, but without its run-time type checks."""
    return mutants.shared().modules["__init__"].certify


@pytest.mark.parametrize("name", CATCHERS + OTHERS)
def test_claims_no_more_than_is_true(name, unbroken):
    assert excess(unbroken, name) == []


@pytest.mark.parametrize("name", UNTRUE)
def test_what_may_not_be_claimed_is_not_true(name):
    """The loss changes where all parameters are smaller or larger."""
    entry, (loss, params, args), _ = mutants.case(name)
    if not entry.note:
        values = [loss(jax.tree.map(lambda w: c * w, params), *args) for c in (1e-3, 1.0, 2.0)]  # noqa: B023
        assert np.ptp(values) > 0.01 * np.max(values)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_caught(name):
    mutation = BROKEN[name]
    with mutant(mutation) as certify:
        assert excess(certify, mutation.caught) != []


def test_each_loss_and_each_mutation_has_one_name():
    losses = (
        ZOO, SPECIAL, EXCUSES, FOUND, FOUND_EXCUSES, FAMILIES, ZEROS, ZERO_EXCUSES, NAMES,
        NAME_EXCUSES, MIXTURES, MIXED_EXCUSES,
    )  # fmt: skip
    for tables in (losses, (MUTATIONS, FOUND_MUTATIONS, FAMILY_MUTATIONS, MIXED_MUTATIONS)):
        assert sum(map(len, tables)) == len({name for table in tables for name in table})


def test_the_original_is_like_its_copy(unbroken):
    """Mutants, which were made of it before, have left it as it was."""
    _, (loss, params, args), eps = mutants.case("difference of mean squares")
    assert str(certify(loss, params, *args, eps=eps)) == str(unbroken(loss, params, *args, eps=eps))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (In("arithmetic.add").delete("no_such()"), r"arithmetic.add: 'no_such\(\)' occurs 0 times"),
        (In("arithmetic.add").replace("fields.add(...)", "0"), "arithmetic.add: .* occurs . times"),
        (In("arithmetic.gone").returns("0"), "'gone' is defined 0 times"),
        (In("gone.add").returns("0"), "no module 'gone'"),
    ],
)
def test_a_mutation_of_what_is_not_there_once_is_refused(change, why):
    with pytest.raises(ValueError, match=why), mutant(Mutation(change, "BN MLP")):
        pass


@pytest.mark.parametrize(
    "change",
    [
        In("rules._PLAIN").replace("choices.maximum", "arithmetic.add", every=True),
    ],
)
def test_what_is_worked_out_at_import_can_be_mutated(change, unbroken):
    with mutant(Mutation(change, "maximum of a shifted value")) as certify:
        assert certify is not unbroken
        assert excess(certify, "maximum of a shifted value") != []
