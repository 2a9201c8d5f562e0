"""The tests of the certifier tested: each broken rule makes it claim what is not true."""

import jax
import mutants
import pytest
from mutants import EXACT, EXCUSED, excess, mutant
from mutations import MUTATIONS
from mutations_found import FOUND_MUTATIONS
from special import EXCUSES, SPECIAL
from special_found import FOUND, FOUND_EXCUSES
from zoo import ZOO

from bnrate.certify import certify

BROKEN = MUTATIONS | FOUND_MUTATIONS
CATCHERS = sorted({mutation.caught for mutation in BROKEN.values()})
OTHERS = sorted({*EXACT, *EXCUSED} - {*CATCHERS})


@pytest.fixture(autouse=True)
def relaxed():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def unbroken():
    """As the original, but without its run-time checks of types."""
    return mutants.copy().certify


@pytest.mark.parametrize("name", CATCHERS + OTHERS)
def test_claims_no_more_than_is_true(name, unbroken):
    assert excess(unbroken, name) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_caught(name):
    mutation = BROKEN[name]
    assert excess(mutant(mutation).certify, mutation.caught) != []


def test_each_loss_and_each_mutation_has_one_name():
    losses = ZOO, SPECIAL, EXCUSES, FOUND, FOUND_EXCUSES
    for tables in (losses, (MUTATIONS, FOUND_MUTATIONS)):
        assert sum(map(len, tables)) == len({name for table in tables for name in table})


def test_the_original_is_like_its_copy(unbroken):
    _, (loss, params, args), eps = mutants.case("difference of mean squares")
    assert str(certify(loss, params, *args, eps=eps)) == str(unbroken(loss, params, *args, eps=eps))


def test_a_mutation_of_what_is_no_longer_there_is_refused():
    with pytest.raises(ValueError, match="0 times"):
        mutant(mutants.Mutation("no such text", "", "BN MLP"))
