"""Shards: each a part of its own, together the whole, bit for bit."""

import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from decay import CHUNK, GRID, ONE_BY_ONE, STEPS, Decay, assert_same, bits

from bnrate import results, sweep
from bnrate.results import Share, folders, locking, merging, parts


@pytest.fixture(scope="module")
def whole():
    return sweep.run(Decay, GRID, **ONE_BY_ONE)


def shard(index, count, out, **options):
    return sweep.run(Decay, GRID, out=out, shard=(index, count), **{**ONE_BY_ONE, **options})


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_shares_are_all_runs_once(count):
    runs = np.concatenate([Share(i, count).runs(10) for i in range(count)])
    assert sorted(runs) == list(range(10))
    sizes = [len(Share(i, count).runs(10)) for i in range(count)]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Folders with a shard each, of unequal sizes: 4, 3 and 3 runs."""
    places = [tmp_path_factory.mktemp("shard") / "out" for _ in range(3)]
    for i, out in enumerate(places):
        shard(i, 3, out)
    return places


@pytest.fixture
def folders_of(three, tmp_path):
    """Fresh copies of them."""

    def copy(*which):
        return [shutil.copytree(three[i], tmp_path / str(n)) for n, i in enumerate(which)]

    return copy


def test_shards_of_several_folders_are_the_whole(folders_of, whole, tmp_path):
    sources = folders_of(2, 0, 1)
    ds = results.merge(sources, tmp_path / "out")
    assert_same(ds, whole)
    assert_same(results.load(tmp_path / "out"), whole)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.zarr"]
    for source in sources:  # not ours to remove
        assert (source / ".sweep").exists()
    # The same call on the whole finds it there.
    assert sweep.run(Decay, GRID, out=tmp_path / "out", **ONE_BY_ONE).identical(ds)


def test_shards_of_one_folder_are_the_whole(whole, tmp_path):
    for i in (1, 0):
        ds = shard(i, 2, tmp_path)
        mine = ds["status"].values.ravel() != "unfinished"
        assert mine.tolist() == [run % 2 == i for run in range(10)]
        assert np.array_equal(ds["final"].isnull(), whole["final"].isnull() | ~mine.reshape(5, 2))
    assert_same(results.merge([tmp_path], tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["results.zarr"]
    with pytest.raises(ValueError, match="there are no parts of a sweep in"):
        results.merge([tmp_path], tmp_path)


def test_one_shard_of_one_is_the_whole(whole, tmp_path):
    assert_same(shard(0, 1, tmp_path), whole)


def test_a_finished_shard_computes_nothing(folders_of, monkeypatch):
    out = folders_of(1)[0]
    monkeypatch.setattr(parts.Part, "write", None)
    assert (shard(1, 3, out)["status"] != "unfinished").sum() == 3


def test_missing_shards(folders_of, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"part 1 of 3 is missing or not done; run its shard"):
        results.merge(folders_of(0, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (one,) = folders_of_one = [shutil.copytree(tmp_path / "0", tmp_path / "again")]
    (one / ".sweep" / "part-0-of-3" / "done").unlink()
    with pytest.raises(ValueError, match="part 0, 1, 2 of 3 is missing or not done"):
        results.merge(folders_of_one, tmp_path / "out")
    with pytest.raises(ValueError, match="there are no parts of a sweep in"):
        results.merge([tmp_path / "nowhere"], tmp_path / "out")


def test_a_shard_that_is_there_twice(folders_of, whole, tmp_path):
    assert_same(results.merge(folders_of(0, 1, 2, 1), tmp_path / "out"), whole)


def test_shards_of_another_sweep(folders_of, tmp_path):
    ours, other = folders_of(0, 1), tmp_path / "other"
    shard(2, 3, other, steps=16)
    with pytest.raises(ValueError, match=r"is part of another sweep than .*: steps is 16, there"):
        results.merge([*ours, other], tmp_path / "out")
    half = tmp_path / "half"
    shard(0, 2, half)
    with pytest.raises(ValueError, match="it is one of 2 parts, not 3"):
        results.merge([*ours, half], tmp_path / "out")
    # They are not begun in the same folder in the first place.
    with pytest.raises(ValueError, match="holds another sweep, unfinished: steps is 16, there"):
        shard(1, 3, ours[0], steps=16)
    with pytest.raises(ValueError, match="it runs in 2 parts, there it was in 3"):
        shard(1, 2, ours[0])


def test_shards_with_other_numbers_of_devices(whole, tmp_path):
    """The shard of one run has one device, and so may a machine."""
    grid = {"rate": GRID["rate"][:3], "seed": [0]}
    options = {"steps": STEPS, "chunk": CHUNK, "executor": "map"}
    for i in range(2):
        sweep.run(Decay, grid, out=tmp_path, shard=(i, 2), **options)
    ds = results.merge([tmp_path], tmp_path)
    assert bits(ds) == bits(sweep.run(Decay, grid, devices=jax.devices()[:1], **options))


def test_a_result_that_is_there_is_not_merged_over(folders_of, whole, tmp_path):
    out = tmp_path / "out"
    old = sweep.run(Decay, GRID, out=out, **{**ONE_BY_ONE, "steps": 6})
    sources = folders_of(0, 1, 2)
    with pytest.raises(ValueError, match="is not empty"):
        results.merge(sources, out)
    assert results.load(out).identical(old)
    assert_same(results.merge(sources, out, overwrite=True), whole)


def test_one_merges_at_a_time(folders_of, tmp_path, monkeypatch):
    sources, out = folders_of(0, 1, 2), tmp_path / "out"
    save, refused = folders.save, []

    def meanwhile(*args):
        with pytest.raises(ValueError, match="is being written by"):
            results.merge(sources, out, overwrite=True)
        refused.append(True)
        save(*args)

    monkeypatch.setattr(folders, "save", meanwhile)
    results.merge(sources, out)
    assert refused


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_killed_while_merged_parts_are_removed(folders_of, whole, tmp_path, monkeypatch, turn):
    """Not even a call that replaces the result takes what is left of a part for a whole one."""
    out = tmp_path / "out"
    for source in folders_of(0, 1, 2):
        shutil.copytree(source, out, dirs_exist_ok=True)
    turns, rmtree = itertools.count(1), shutil.rmtree

    def mortal(path, *args, **options):
        rmtree(path, *args, **options)
        if "part-" in str(path) and next(turns) == turn:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging.shutil, "rmtree", mortal)
        with pytest.raises(KeyboardInterrupt):
            results.merge([out], out)
    assert_same(results.load(out), whole)
    copy = shutil.copytree(out, tmp_path / "copy")
    assert_same(sweep.run(Decay, GRID, out=out, **ONE_BY_ONE), whole)
    for i in range(3):
        shard(i, 3, copy, overwrite=True)
    assert_same(results.merge([copy], copy, overwrite=True), whole)
    for folder in (out, copy):
        assert [path.name for path in folder.iterdir()] == ["results.zarr"]


def test_run_shard_in_a_pool_of_processes(whole, tmp_path):
    """Picklable; each worker starts anew."""
    one = functools.partial(sweep.run_shard, make=Decay, grid=GRID, out=tmp_path, **ONE_BY_ONE)
    assert pickle.loads(pickle.dumps(one)).keywords == one.keywords
    with concurrent.futures.ProcessPoolExecutor(
        2, multiprocessing.get_context("spawn"), two_devices
    ) as pool:
        assert set(pool.map(one, range(2), [2] * 2)) == {str(tmp_path)}
    assert_same(results.merge([tmp_path], tmp_path), whole)


def two_devices():
    jax.config.update("jax_num_cpu_devices", 2)


# Processes of one job wait for each other.


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(merging, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(merging, "_BEGIN_SECONDS", 0.3)
    monkeypatch.setattr(merging, "_APPEAR_SECONDS", 0.6)


def test_who_dies_is_not_waited_for(quick, tmp_path):
    with pytest.raises(ValueError, match="process 1 of 2 stopped before its part was done"):
        merging._wait(tmp_path, Share(1, 2), lambda: False)
    living, polls = threading.Event(), itertools.count()

    def hold():
        with locking.locked(tmp_path / "part-1-of-2"):
            living.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    living.wait(5)
    with pytest.raises(ValueError, match="run the same again to resume"):
        merging._wait(tmp_path, Share(1, 2), lambda: next(polls) < 0)
    thread.join()
    assert next(polls) > 10  # as long as it lived


def test_who_begins_late_is_waited_for(quick, tmp_path):
    """A part that was left by a killed process, and is being taken up again."""
    (tmp_path / "part-1-of-2").mkdir()
    done = threading.Event()
    threading.Timer(0.15, done.set).start()
    merging._wait(tmp_path, Share(1, 2), done.is_set)


def test_the_folders_of_shards_are_what_run_shard_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = sweep.run_shard(0, 2, Decay, GRID, out="here", **ONE_BY_ONE)
    assert Path(said) == tmp_path / "here"
    assert os.listdir(tmp_path / "here" / ".sweep") == ["part-0-of-2"]
