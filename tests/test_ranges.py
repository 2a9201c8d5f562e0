"""Numbers as arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate.ranges import in_range


@pytest.mark.parametrize("value", [0, np.array([1, 2]), np.float64(0.5), jnp.bfloat16(0.5)])
def test_numbers_become_floats(value):
    assert jnp.issubdtype(in_range("it", value, "[0, 2]").dtype, jnp.floating)


LEGAL = {
    "[0, 1]": (0.0, 1.0),
    "(0, 1)": (0.1, 0.9),
    "[0, inf)": (0.0, 1e30),
    "(0, inf]": (0.1, np.inf),
}
ILLEGAL = {
    "[0, 1]": (-0.1, 1.1, np.nan),
    "(0, 1)": (0.0, 1.0),
    "[0, inf)": (-1, np.inf),
    "(0, inf]": (0, np.nan),
}


@pytest.mark.parametrize("interval", LEGAL)
def test_the_ends_belong_to_the_interval_or_not(interval):
    in_range("it", np.array(LEGAL[interval]), interval)
    for value in ILLEGAL[interval]:
        with pytest.raises(ValueError, match="it must lie in"):
            in_range("it", np.array([LEGAL[interval][0], value]), interval)


def test_outside_is_nan_where_only_a_program_will_know():
    found = jax.jit(lambda x: in_range("it", x, "[0, 1)"))(jnp.array([0.0, 0.5, 1.0, jnp.nan]))
    np.testing.assert_array_equal(found, [0.0, 0.5, np.nan, np.nan])


@pytest.mark.parametrize("value", ["1", None, [1, [2]], len])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"it must be a number in \[0, 1\], got"):
        in_range("it", value, "[0, 1]")
