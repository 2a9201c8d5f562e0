"""Strict numerics for every test: no silent promotion, no silent broadcasting, shapes checked."""

import jax
import pytest
from jaxtyping import install_import_hook

# Two host devices, so that sharding is exercised everywhere.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("bnrate", "beartype.beartype")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
