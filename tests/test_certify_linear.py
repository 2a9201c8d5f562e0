"""Exact linear algebra: against NumPy on random systems, and on cases with known answers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrate.certify import linear

small = st.integers(-2, 2)
systems = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(small, min_size=n, max_size=n), min_size=1, max_size=6)
)


def sparse(rows):
    return [{i: Fraction(k) for i, k in enumerate(row) if k} for row in rows]


@given(systems)
@settings(deadline=None, max_examples=100)
def test_null_space(rows):
    width = len(rows[0])
    basis = linear.null_space(sparse(rows), range(width))
    assert len(basis) == width - np.linalg.matrix_rank(np.array(rows))
    assert all(linear.inner(row, vector) == 0 for row in sparse(rows) for vector in basis)
    assert len(linear.Echelon(basis).rows) == len(basis)


@given(systems)
@settings(deadline=None, max_examples=60)
def test_rays(rows):
    found = linear.rays(sparse(rows))
    for ray in found:
        assert min(ray.values()) > 0
        assert all(linear.inner(row, ray) == 0 for row in sparse(rows))
        # Minimal support: the equations leave one dimension on it.
        inside = [{c: v for c, v in row.items() if c in ray} for row in sparse(rows)]
        assert len(linear.null_space(inside, list(ray))) == 1
    columns = [column for ray in found for column in ray]
    assert len(columns) == len(set(columns))


@given(systems, systems)
@settings(deadline=None, max_examples=60)
def test_complement(rows, others):
    vectors, known = sparse(rows), sparse(others)
    found = linear.complement(vectors, known)
    both = len(linear.Echelon([*known, *vectors]).rows)
    assert len(found) == both - len(linear.Echelon(known).rows)
    assert len(linear.Echelon([*known, *found]).rows) == both


def test_components_share_no_column():
    rows = sparse([[1, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 1, 0, 1, 0]])
    parts = [sorted({c for row in part for c in row}) for part in linear.components(rows)]
    assert sorted(parts) == [[0, 1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("vector", "whole"),
    [
        ({"a": Fraction(1, 2), "b": Fraction(-1, 3)}, {"a": 3, "b": -2}),
        ({"a": 4, "b": 6}, {"a": 2, "b": 3}),
    ],
)
def test_integral(vector, whole):
    assert linear.integral(vector) == whole
