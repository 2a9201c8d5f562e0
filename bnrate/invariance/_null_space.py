"""The null space of a matrix of sums, each known with its rounding."""

import dataclasses

import numpy as np

ROUNDINGS = 1000  # so many roundings of the sum of all terms are noise


@dataclasses.dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions that a matrix takes to zero, and how sure it is that there are so many.

    Attributes:
      basis: one direction per row, shape (dimension, columns): a reduced echelon form, in which
        each direction has an entry 1 where all others have 0.
      kept: the smallest singular value that counts as not zero (1 if there is none).
      dropped: the largest that counts as zero (rounding, if there is none).
      safe: what a singular value must exceed to be none that a coarser rounding explains.
    """

    basis: np.ndarray
    kept: float
    dropped: float
    safe: float

    @property
    def dimension(self) -> int:
        """The number of independent directions."""
        return len(self.basis)

    @property
    def gap(self) -> float:
        """The factor between the last singular value kept and the first one dropped."""
        return self.kept / self.dropped

    @property
    def clear(self) -> bool:
        """Whether the dimension can be trusted: a gap of 100, and nothing kept that is not safe."""
        return self.gap >= 100 and self.kept >= self.safe


def null_space(sums: np.ndarray, sizes: np.ndarray, eps: float) -> NullSpace:
    """The directions d with `sums @ d = 0`, for sums of terms that may cancel.

    The rank is where the singular values have their widest gap.  A column is measured by the terms
    it sums, not by its own length: one of pure rounding noise is zero, and would otherwise look
    like any other.

    Args:
      sums: one row per equation, shape (rows, columns) with rows >= columns.
      sizes: of the same shape: the sums of the terms' absolute values, at most about 1.
      eps: the rounding of the terms, relative to the largest of a row.
    """
    scale = sizes.max(axis=0, initial=0)
    felt = scale > ROUNDINGS * eps
    matrix = sums[:, felt] / scale[felt]
    _, singular, directions = np.linalg.svd(matrix / np.sqrt(len(matrix)), full_matrices=False)
    rank, kept, dropped = _cut(singular, eps)
    basis = np.zeros((len(singular) - rank, len(scale)))
    basis[:, felt] = directions[rank:] / scale[felt]
    basis = _echelon(np.concatenate([np.eye(len(scale))[~felt], basis]))
    return NullSpace(basis, kept, dropped, eps**0.5)


def _cut(singular: np.ndarray, eps: float) -> tuple[int, float, float]:
    """The rank, with the singular values on both sides of the widest gap.

    Below eps^0.8 (3e-13) all is noise, whose gaps mean nothing; above eps^0.6 (4e-10) is none.
    """
    noise, coarsest = eps**0.8, eps**0.6
    values = np.maximum([1.0, *singular, 0.0], noise)
    gaps = np.where(values[1:] <= coarsest, values[:-1] / values[1:], 0)
    rank = int(np.argmax(gaps))
    return rank, float(values[rank]), float(values[rank + 1])


def _echelon(rows: np.ndarray) -> np.ndarray:
    """The reduced row echelon form, with the largest entries as pivots."""
    rows = rows / np.abs(rows).max(axis=1, keepdims=True, initial=0) if rows.size else rows.copy()
    for i in range(len(rows)):
        below = np.abs(rows[i:])
        pivot, column = np.unravel_index(np.argmax(below), below.shape)
        rows[[i, i + pivot]] = rows[[i + pivot, i]]
        rows[i] /= rows[i, column]
        others = np.arange(len(rows)) != i
        rows[others] -= np.outer(rows[others, column], rows[i])
    return rows
