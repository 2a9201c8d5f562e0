"""Nothing is lost: killed at any instant, a sweep goes on to the same bits."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest
from decay import (
    CHUNKS,
    GRID,
    ONE_BY_ONE,
    TOGETHER,
    Chunks,
    Decay,
    assert_same,
    before_changes,
    bits,
    snapshot,
)

from bnrate import cli, experiments, results, sweep
from bnrate.results import checkpoints, folders
from bnrate.results.parts import Part

WAYS = {"one by one": ONE_BY_ONE, "together": TOGETHER}
INSTANTS = 7  # of more than two hundred


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of an uninterrupted sweep, by the name of its way."""

    def make(way):
        return sweep.run(Decay, GRID, out=tmp_path_factory.mktemp("whole") / "out", **WAYS[way])

    return {way: make(way) for way in WAYS}


def decay(out, **options):
    return sweep.run(Decay, GRID, out=out, **{**ONE_BY_ONE, **options})


@pytest.fixture
def computed(monkeypatch):
    """Which chunks were computed, in order."""
    starts, write = [], Part.write

    def counting(self, combination, trace, start):
        starts.append((combination, start))
        write(self, combination, trace, start)

    monkeypatch.setattr(Part, "write", counting)
    return starts


class Death(BaseException):
    pass


def dies(f, *args, before=True):
    """`f`, after or before which the process dies."""

    def deadly(*given, **options):
        if not before:
            f(*given, **options)
        raise Death

    return deadly


# Killed.


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What is on disk at some instants of a sweep, and how many chunks were computed until then."""
    found = {}
    for k, (way, options) in enumerate(WAYS.items()):
        folder, instants, chunks = tmp_path_factory.mktemp("killed"), itertools.count(), Chunks()
        found[way] = seen = []

        def copy(event, k=k, folder=folder, instants=instants, chunks=chunks, seen=seen):
            # Every so many in turn; the sweeps of the two ways change the same.
            if next(instants) % 32 == 16 * k + 5:
                seen.append((folder / str(len(seen)), chunks.told))
                snapshot(folder / "out", seen[-1][0])

        with before_changes(folder / "out", copy):
            sweep.run(Decay, GRID, out=folder / "out", callbacks=[chunks], **options)
        assert len(seen) >= INSTANTS - 1, len(seen)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("instant", range(INSTANTS))
def test_killed_at_any_instant(killed, whole, computed, way, instant):
    if instant >= len(killed[way]):
        pytest.skip("there were fewer changes on disk")
    out, before = killed[way][instant]
    ds = sweep.run(Decay, GRID, out=out, **WAYS[way])
    assert before + len(computed) <= CHUNKS + 1  # some are computed, but not told of yet
    assert_same(ds, whole[way])
    assert_same(results.load(out), whole[way])
    assert [path.name for path in out.iterdir()] == ["results.zarr"]


STEPS_OF_A_SWEEP = {
    "write": (Part, "write"),
    "checkpoint": (Part, "checkpoint"),
    "final values": (Part, "write_final"),
    "done": (Part, "finish"),
    "saved": (folders, "save"),
}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS_OF_A_SWEEP.values(), ids=STEPS_OF_A_SWEEP)
def test_dying_again_and_again(whole, computed, monkeypatch, tmp_path, owner, name, before):
    """An exception at each turn of a step: the n-th call dies at the n-th turn."""
    step = getattr(owner, name)
    for turn in itertools.count(1):
        turns = itertools.count(1)

        def mortal(*args, turns=turns, turn=turn, **options):
            dead = next(turns) == turn
            if dead and before:
                raise Death
            step(*args, **options)
            if dead:
                raise Death

        monkeypatch.setattr(owner, name, mortal)
        with contextlib.suppress(Death):
            ds = decay(tmp_path / "out")
            break
    assert turn > 1
    assert len(computed) <= CHUNKS + turn - 1
    assert_same(ds, whole["one by one"])


def test_several_combinations(tmp_path, computed, monkeypatch):
    grid = {"rule": ["plain", "noisy"], **GRID}
    whole = sweep.run(Decay, grid, out=tmp_path / "whole", **TOGETHER)
    assert len(computed) == 2 * CHUNKS
    computed.clear()
    final = Part.write_final
    for before in (True, False):
        monkeypatch.setattr(Part, "write_final", dies(final, before=before))
        with pytest.raises(Death):
            sweep.run(Decay, grid, out=tmp_path / "out", **TOGETHER)
    monkeypatch.setattr(Part, "write_final", final)
    seen = sweep_so_far = results.unfinished(tmp_path / "out")
    assert (seen["status"].sel(rule="noisy") == "unfinished").all()
    assert (sweep_so_far["status"].sel(rule="plain") != "unfinished").all()
    assert_same(sweep.run(Decay, grid, out=tmp_path / "out", **TOGETHER), whole)
    assert len(computed) == 2 * CHUNKS


CHILD = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from bnrate import sweep
from decay import *
class Slow:
    def on_chunk(self, progress):
        print("chunk", flush=True)
        {in_chunk}
{before}
sweep.run(Decay, GRID, out=sys.argv[1], callbacks=[Slow()], **{way})
print("whole", flush=True)
"""


def child(out, *, in_chunk="import time; time.sleep(30)", before="", way="ONE_BY_ONE"):
    program = CHILD.format(in_chunk=in_chunk, before=before, way=way)
    paths = [str(Path(__file__).parent), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", program, str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9(tmp_path, whole, computed):
    with child(tmp_path / "out") as process:
        assert process.stdout.readline() == "chunk\n"
        process.kill()
    assert_same(decay(tmp_path / "out"), whole["one by one"])
    assert len(computed) == CHUNKS - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_the_chunk_and_says_how_to_resume(tmp_path, whole, computed, number):
    out = tmp_path / "out"
    with child(out, in_chunk="import time; time.sleep(1)") as process:
        assert process.stdout.readline() == "chunk\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"all until there is safe in '{out}" in said
    assert "run the same again to resume" in said
    assert_same(decay(out), whole["one by one"])
    assert len(computed) == CHUNKS - 1


def test_ctrl_c_on_the_command_line(tmp_path, monkeypatch, capsys):
    class Impatient:
        def on_chunk(self, progress):
            os.kill(os.getpid(), signal.SIGINT)

    def decaying(config, **options):
        return decay(**options)

    monkeypatch.setitem(experiments.EXPERIMENTS, "decay", decaying)
    monkeypatch.setattr(sweep, "Terminal", Impatient)
    old = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "decay", "--out", str(tmp_path / "out")])
    signal.signal(signal.SIGTERM, old)
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert f"bnrate: stopped after a chunk; all until there is safe in '{tmp_path}" in said
    assert said.endswith("run the same again to resume\n")
    assert results.unfinished(tmp_path / "out")["loss"].notnull().any()


@pytest.fixture
def listening():
    """Ctrl-C as in a terminal: a process in the background of a script is deaf to it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_a_second_ctrl_c_does_not_wait(tmp_path, whole, listening):
    def impatient(progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # or the two would be one
        raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        decay(tmp_path / "out", callbacks=[types.SimpleNamespace(on_chunk=impatient)])
    assert_same(decay(tmp_path / "out"), whole["one by one"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_callback_that_raises(tmp_path, whole, computed):
    def stop(progress):
        raise RuntimeError("enough")

    for _ in range(CHUNKS):
        with pytest.raises(RuntimeError, match="enough"):
            decay(tmp_path / "out", callbacks=[types.SimpleNamespace(on_chunk=stop)])
    assert_same(decay(tmp_path / "out"), whole["one by one"])
    assert len(computed) == CHUNKS


# Damaged and full disks.


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A folder in which two chunks are done."""

    def stop(progress):
        if progress.steps[-1] > 8:
            raise Death

    with pytest.raises(Death):
        decay(tmp_path / "out", callbacks=[types.SimpleNamespace(on_chunk=stop)])
    return tmp_path / "out"


def part_of(out):
    return out / ".sweep" / "part-0-of-1"


def last_checkpoint(out):
    return max((part_of(out) / "checkpoints").glob("checkpoint-*"))


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_costs_one_chunk(begun, whole, computed, damage):
    computed.clear()
    damage(max(last_checkpoint(begun).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size))
    with pytest.warns(UserWarning, match="a damaged checkpoint is left out"):
        ds = decay(begun)
    assert computed == [(0, 3), (0, 6)]
    assert_same(ds, whole["one by one"])


def test_a_damaged_first_checkpoint(tmp_path, whole, computed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", dies(Part.write))
        with pytest.raises(Death):
            decay(tmp_path / "out")
    flip(last_checkpoint(tmp_path / "out") / "manifest")
    with pytest.raises(ValueError, match="is damaged: its file manifest has changed; remove"):
        decay(tmp_path / "out")
    shutil.rmtree(part_of(tmp_path / "out") / "checkpoints")
    assert_same(decay(tmp_path / "out"), whole["one by one"])


def test_a_full_disk(tmp_path, whole, computed):
    """It is full after so many new files; each time somebody makes room for more."""
    out, failures = tmp_path / "out", 0
    for room in (0, 1, 4, 15, 25, 35, 45, 55, 1000):
        files = itertools.count()

        def create(event, room=room, files=files):
            if event in ("open", "os.mkdir") and next(files) >= room:
                raise OSError(errno.ENOSPC, "No space left on device")

        with before_changes(out, create):
            try:
                ds = decay(out)
                break
            except ValueError as error:
                said, failures = str(error), failures + 1
        assert "No space left on device" in said
        assert any(what in said for what in ("make room", "free some space", "choose another"))
    assert failures >= 5
    assert len(computed) <= CHUNKS + failures
    assert_same(ds, whole["one by one"])


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_disk_that_is_really_full(tmp_path, whole):
    out = tmp_path / "out"
    # Room for what is small: the plan and rows, but not for all of a checkpoint.
    before = LIMIT.format(100)
    with child(out, in_chunk=before) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ValueError: c" in said
    assert "File too large" in said
    assert str(out) in said
    assert_same(decay(out), whole["one by one"])


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number):
    def refuse(self, *args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        ValueError, match=rf"cannot write to '.*out': {os.strerror(number)}; choose"
    ):
        decay(tmp_path / "out")


# Refused.


class Faster(Decay):
    slower = 0.5


OTHER = {
    "grid": ({"rate": [0.1, 0.2], "seed": [0, 1]}, Decay, {}, r"axes.rate is \[0.1, 0.2\], there"),
    "order": ({"seed": GRID["seed"], "rate": GRID["rate"]}, Decay, {}, "order of axes is"),
    "zipped": ({"trial": {"rate": [0.1] * 10, "seed": range(10)}}, Decay, {}, "axes.trial is"),
    "steps": (GRID, Decay, {"steps": 16}, "steps is 16, there it was 14"),
    "chunk": (GRID, Decay, {"chunk": 4}, "chunk is 4, there it was 6"),
    "executor": (GRID, Decay, {"executor": "vmap"}, "executor is 'vmap', there it was 'map'"),
    "width": (GRID, Decay, {"width": 2}, "width is 2, there it was None"),
    "devices": (GRID, Decay, {"devices": jax.devices()[:1]}, "devices is 1, there it was 2"),
    "config": (GRID, Decay, {"config": {"data": "x"}}, "config.data is 'x', there it was None"),
    "program": (GRID, Faster, {}, r"programs is \['.*'\], there it was"),
    "stop": (
        GRID, Decay, {"stop": sweep.Hopeless(factor=2.0, after=0)}, r"stopping is .Hopeless\(f"
    ),
    "split": (GRID, Decay, {"shard": (0, 2)}, "it runs in 2 parts, there it was in 1"),
    "later split": (GRID, Decay, {"shard": (1, 2)}, "it runs in 2 parts, there it was in 1"),
}  # fmt: skip


def refused(begun, grid, make, options, message):
    before = sorted(map(str, begun.rglob("*")))
    said = f"holds another sweep, unfinished: .*{message}.* replace it .--overwrite"
    with pytest.raises(ValueError, match=said):
        sweep.run(make, grid, out=begun, **{**ONE_BY_ONE, **options})
    assert {str(p) for p in begun.rglob("*")} - set(before) <= {
        str(begun / ".sweep" / "part-0-of-2"),
        str(begun / ".sweep" / "part-1-of-2"),
        *(str(begun / ".sweep" / f"part-{i}-of-2" / ".lock") for i in (0, 1)),
    }


def test_another_sweep_is_refused(begun, whole, computed):
    computed.clear()
    for grid, make, options, message in OTHER.values():
        refused(begun, grid, make, options, message)
    assert computed == []
    assert_same(decay(begun), whole["one by one"])
    for name in ("grid", "order", "zipped", "steps", "program", "config"):
        grid, make, options, message = OTHER[name]
        with pytest.raises(ValueError, match=f"holds the result of another sweep: .*{message}"):
            sweep.run(make, grid, out=begun, **{**ONE_BY_ONE, **options})


def test_another_version_is_refused_unless_told(begun, whole, computed, monkeypatch):
    import bnrate

    monkeypatch.setattr(bnrate, "__version__", "99.0")
    refused(begun, GRID, Decay, {}, "bnrate is '99.0', there it was")
    with pytest.raises(ValueError, match=r"or go on regardless \(--resume-anyway\)"):
        decay(begun)
    computed.clear()
    ds = decay(begun, resume="anyway")
    assert computed == [(0, 6)]
    assert bits(ds) == bits(whole["one by one"])
    assert ds.attrs["resumed_anyway"][0].startswith("bnrate is '99.0', there it was")
    # From then on it is this version's.
    assert decay(begun).identical(ds)
    assert computed == [(0, 6)]


def test_nothing_can_be_told_of_other_rows(begun):
    for name in ("grid", "order", "zipped", "steps", "chunk", "split"):
        grid, make, options, message = OTHER[name]
        with pytest.raises(ValueError, match=message) as refusal:
            sweep.run(make, grid, out=begun, resume="anyway", **{**ONE_BY_ONE, **options})
        assert "regardless" not in str(refusal.value)
    same_shape = {"rate": [0.1, 3e18, 0.5, 1e18, 1.25], "seed": [0, 1]}
    with pytest.raises(ValueError, match=r"axes\.\w+ is"):
        sweep.run(Decay, same_shape, out=begun, resume="anyway", **ONE_BY_ONE)


def test_a_newer_format_is_refused(begun, whole):
    plan = part_of(begun) / "plan.json"
    plan.write_text(plan.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="written by a newer version of bnrate; update"):
        decay(begun)
    assert_same(decay(begun, overwrite=True), whole["one by one"])


def test_no_resume(begun, whole, computed):
    with pytest.raises(ValueError, match="holds this sweep, unfinished; resume it, or replace it"):
        decay(begun, resume=False)
    computed.clear()
    assert_same(decay(begun, resume=False, overwrite=True), whole["one by one"])
    assert len(computed) == CHUNKS
    with pytest.raises(ValueError, match=r"is not empty, it has results\.zarr"):
        decay(begun, resume=False)


def test_a_finished_sweep_is_returned_as_it_is(tmp_path, computed):
    ds = decay(tmp_path / "out")
    computed.clear()
    seen = Chunks()
    assert decay(tmp_path / "out", callbacks=[seen]).identical(ds)
    assert decay(tmp_path / "out", devices=jax.devices()[:1]).identical(ds)
    assert computed == []
    assert seen.told == 0


@pytest.mark.parametrize("name", ["save", "_move"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_old_result_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, whole, name, before):
    out = tmp_path / "out"
    old = decay(out, steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(folders, name, dies(getattr(folders, name), before=before))
        with pytest.raises(Death):
            decay(out, overwrite=True)
    if before or name == "save":
        assert results.load(out).identical(old)
        with pytest.raises(ValueError, match="holds the result of another sweep: steps is 14, th"):
            decay(out)
    else:
        assert bits(decay(out)) == bits(whole["one by one"])
    assert bits(decay(out, overwrite=True)) == bits(whole["one by one"])
    assert [path.name for path in out.iterdir()] == ["results.zarr"]


def test_killed_while_an_old_result_is_replaced(tmp_path):
    """Between the two renames; what is left lies in a scratch folder that nobody holds."""
    out = tmp_path / "out"
    old = decay(out, steps=6)
    copies, numbers = tmp_path / "copies", itertools.count()

    def copy(event):
        if not (out / "results.zarr").exists():
            snapshot(out, copies / str(next(numbers)))

    with before_changes(out, copy):
        decay(out, overwrite=True)
    torn = list(copies.iterdir())
    assert torn
    with results.writing(torn[0], overwrite=True):
        pass
    assert results.load(torn[0]).identical(old)


def test_two_writers(begun):
    with child(begun) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} on"):
            decay(begun)
        with pytest.raises(ValueError, match="is being written by process"):
            decay(begun, shard=(0, 2), overwrite=True)
        process.kill()


def test_what_is_unfinished_can_be_read(begun):
    ds = results.unfinished(begun)
    assert (ds["status"] == "unfinished").all()
    assert ds["loss"].sel(rate=0.1).isel(step=slice(0, 6)).notnull().all()
    assert ds["loss"].isel(step=6).isnull().all()
    assert ds["final"].isnull().all()
    with pytest.raises(ValueError, match="no sweep is at work in"):
        results.unfinished(begun.parent)


def test_a_failed_start_leaves_the_folder_free(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dies(checkpoints.save))
        with pytest.raises(Death):
            decay(tmp_path / "out", steps=4)
    assert_same(decay(tmp_path / "out"), whole["one by one"])
