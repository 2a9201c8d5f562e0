"""The losses that all references descend, as gradients in closed form.

W has shape (5, 3), a unit in each column, and may be a NumPy or a JAX array: recording and testing
evaluate the very same formulas.  All constants are exact in any float.
"""

import numpy as np

SHAPE = (5, 3)
DIM, UNITS = SHAPE


def _pattern(shape: tuple[int, ...], modulus: int) -> np.ndarray:
    """Multiples of 1/8 between -1 and 1 without visible order, symmetric in equal axes."""
    indices = np.indices(shape) + 1
    return (np.prod(indices, axis=0) * 5 % modulus - modulus // 2) / 8


# One symmetric matrix a column, one for all columns, and a quadratic that is not invariant.
A_COLUMNS = _pattern((UNITS, DIM, DIM), 11) + np.diag(np.arange(DIM) / 2)
A_MATRIX = _pattern((DIM * UNITS, DIM * UNITS), 13) + np.diag(np.arange(DIM * UNITS) / 8)
CURVATURES = _pattern(SHAPE, 7) + 0.625
TARGET = 2 * _pattern(SHAPE, 17) + 0.0625  # nowhere START
START = _pattern(SHAPE, 19) + np.array([[0.25, -0.5, 1.0]])


def columns(W):
    """The gradient of sum_k w_k'A_k w_k / |w_k|^2: each column is invariant."""
    AW = (A_COLUMNS.astype(W.dtype) @ W.T[:, :, None])[:, :, 0].T
    G = (W * W).sum(0, keepdims=True)
    return 2 * (AW - (W * AW).sum(0, keepdims=True) / G * W) / G


def matrix(W):
    """The gradient of w'A w / |w|^2 with w all entries of W: only the whole of W is invariant."""
    w = W.reshape(DIM * UNITS, 1)
    Aw = A_MATRIX.astype(W.dtype) @ w
    G = (w * w).sum(keepdims=True)
    return (2 * (Aw - (w * Aw).sum(keepdims=True) / G * w) / G).reshape(SHAPE)


def quadratic(W):
    """The gradient of half the sum of CURVATURES (W - TARGET)^2: nothing is invariant."""
    return CURVATURES.astype(W.dtype) * (W - TARGET.astype(W.dtype))


def mixed(W):
    """Nearly invariant: the quadratic is felt where the gradient of `columns` has become small."""
    return columns(W) + 0.03125 * quadratic(W)


GRADIENTS = {f.__name__: f for f in (columns, matrix, quadratic, mixed)}
