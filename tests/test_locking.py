"""One writer per folder: exclusion, in one process and between two; death and forks let go."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from bnrate.results import locking

HOLD = """
import sys, time
from bnrate.results import locking
with locking.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_holder(folder, program=HOLD):
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_second_writer_of_one_process_is_refused(tmp_path):
    with locking.locked(tmp_path):
        with pytest.raises(ValueError, match="being written by"), locking.locked(tmp_path):
            pass
        assert locking.is_locked(tmp_path)
    assert not locking.is_locked(tmp_path)
    with locking.locked(tmp_path):
        pass


def test_writer_of_another_process_is_named(tmp_path):
    with another_holder(tmp_path) as process:
        assert locking.is_locked(tmp_path)
        said = (
            f"'{re.escape(str(tmp_path))}' is being written by process {process.pid} on "
            f"{re.escape(socket.gethostname())} since 20.*; wait for it, or stop it"
        )
        with pytest.raises(ValueError, match=said), locking.locked(tmp_path):
            pass
        assert locking.is_locked(tmp_path)  # neither call took it away


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_death_lets_go(tmp_path, deadly):
    with another_holder(tmp_path, HOLD) as other:
        other.send_signal(deadly)
        other.wait()
        assert not locking.is_locked(tmp_path)
        with locking.locked(tmp_path):
            pass


def test_error_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locking.locked(tmp_path):
        _ = 1 / 0
    assert not locking.is_locked(tmp_path)


FORK = """
import os, sys, time
from bnrate.results import locking
with locking.locked(sys.argv[1]):
    if os.fork() == 0:
        {child}
    time.sleep(0.1)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_does_not_keep_the_lock(tmp_path):
    with another_holder(tmp_path, FORK.format(child="time.sleep(3), os._exit(0)")) as process:
        assert locking.is_locked(tmp_path)
        process.kill()
        process.wait()
        assert not locking.is_locked(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_end_of_a_forked_child_does_not_let_go(tmp_path):
    with another_holder(tmp_path, FORK.format(child="sys.exit()")) as process:
        assert locking.is_locked(tmp_path)
        with pytest.raises(ValueError, match=f"process {process.pid} "), locking.locked(tmp_path):
            pass


START = """
import subprocess, sys, time
from bnrate.results import locking
with locking.locked(sys.argv[1]):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], close_fds=False)
    print("held", flush=True)
    time.sleep(60)
"""


def test_started_program_does_not_keep_the_lock(tmp_path):
    with another_holder(tmp_path, START) as process:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 1.0
        while locking.is_locked(tmp_path):
            assert time.monotonic() < deadline


def test_folder_is_made_and_need_not_exist_to_be_asked(tmp_path):
    folder = tmp_path / "a" / "b"
    assert not locking.is_locked(folder)
    assert not folder.exists()
    with locking.locked(folder):
        assert locking.is_locked(folder)


def test_emptied_folder_is_locked_anew(tmp_path, monkeypatch):
    """The file is removed between opening and locking: the lock would be of nothing."""
    try_lock, removed = locking._try_lock, []

    def remove_first(file, shared=False):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        return try_lock(file, shared)

    monkeypatch.setattr(locking, "_try_lock", remove_first)
    with locking.locked(tmp_path):
        assert removed
        assert locking.is_locked(tmp_path)


def test_asking_is_no_writing(tmp_path):
    """Whoever asks holds the lock for an instant; a writer must not stumble over it."""
    done = threading.Event()

    def ask():
        while not done.is_set():
            locking.is_locked(tmp_path)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(100):
            with locking.locked(tmp_path):
                pass
    finally:
        done.set()
        for asker in askers:
            asker.join()


@pytest.mark.skipif(os.name != "posix", reason="locks that are shared")
def test_a_writer_waits_for_whoever_asks(tmp_path):
    """Even for longer than it would try against another writer."""
    import fcntl

    with locking.locked(tmp_path):
        pass
    with open(tmp_path / ".lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        later = threading.Timer(0.5, fcntl.flock, (file, fcntl.LOCK_UN))
        later.start()
        with locking.locked(tmp_path):
            pass
        later.join()


def _count(folder, rounds):
    done = 0
    while done < rounds:
        with contextlib.suppress(ValueError), locking.locked(folder):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            done += 1


def test_two_processes_take_turns(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_count, args=(tmp_path, 20)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert (tmp_path / "number").read_text() == "40"


def refuse(number):
    def refused(*args):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_that_cannot_be_written(tmp_path, monkeypatch, number):
    monkeypatch.setattr(locking.os, "open", refuse(number))
    said = f"cannot lock '.*' for writing: {os.strerror(number)}; choose"
    with (
        pytest.raises(ValueError, match=said),
        locking.locked(tmp_path),
    ):
        pass


def test_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_try_lock", refuse(errno.ENOLCK))
    with pytest.raises(ValueError, match="No locks available"), locking.locked(tmp_path):
        pass


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="File exists"), locking.locked(tmp_path / "file"):
        pass
    assert not locking.is_locked(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_holder_that_has_not_said_who_it_is(tmp_path, text):
    with locking.locked(tmp_path):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(ValueError, match="by another process;"), locking.locked(tmp_path):
            pass


def test_folder_that_vanished_meanwhile_is_no_error(tmp_path):
    folder = tmp_path / "folder"
    with locking.locked(folder):
        shutil.rmtree(folder)
