"""Primitives without a rule, and why: operands of these must be invariant, and results are."""

_WHY: dict[str, str] = {
    "which half of a matrix scales how is not told apart": (
        "householder_product hessenberg tridiagonal schur cholesky_update ormqr geqrf"
    ),
    "each entry has a degree of its own": "cumprod",
    "a program over entries in any order": "reduce reduce_window select_and_scatter",
    "conditions are invariant": "reduce_and reduce_or reduce_xor",
    "entries are picked by an approximation": "approx_top_k",
    "random numbers, which do not depend on parameters": (
        "iota random_bits random_fold_in random_gamma random_seed random_split "
        "random_wrap random_unwrap rng_bit_generator rng_uniform threefry2x32"
    ),
    "bits of numbers": "bitcast_convert_type",
    "side effects, and programs that JAX does not know": (
        "debug_callback io_callback pure_callback ffi_call pallas_call"
    ),
    "order of effects": "after_all create_token",
    "mutable arrays, which are refused": "get swap",
    "the user's own transpose, which may be no derivative": "linear_call custom_lin",
    "no statement about its result is at hand": "tridiagonal_solve symmetric_product",
    "which platform runs it": "platform_index",
    "kernels and calls of older versions of JAX": "call",
    "shards send parts of different lengths": "ragged_all_to_all",
    "names without a program": "empty2",
}

WITHOUT_RULE: dict[str, str] = {name: why for why, names in _WHY.items() for name in names.split()}
