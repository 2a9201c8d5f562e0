"""One writer per folder: a lock that the operating system drops when its process dies.

The lock is taken on a file `.lock` in the folder, which says who holds it and is never removed.  It
is the lock that counts, not the file: after `kill -9`, a crash or a power failure nothing stale is
left.  On NFS it holds across hosts if the server locks files (`flock` is translated); a file system
without locks is refused.
"""

import contextlib
import datetime
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NAME = ".lock"
# Against another writer; `is_locked` shares the lock for an instant, which is waited for.
_ATTEMPTS, _PAUSE, _PATIENCE = 5, 0.02, 10.0  # the last two in seconds
_held: set[BinaryIO] = set()


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Be the only writer of a folder, which is created if need be, while the block runs.

    Children that Python forks meanwhile do not hold the lock; it ends with this process.

    Raises:
      ValueError: another writer holds the lock, in this process or another; or the folder cannot
        be written or locked.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = _acquire(Path(folder) / _NAME)
        if file is None:
            raise ValueError(
                f"'{folder}' is being written by {_holder(folder)}; wait for it, or stop it"
            )
    except OSError as error:
        raise ValueError(
            f"cannot lock '{folder}' for writing: {error.strerror or error}; "
            "choose another folder (--out)"
        ) from error
    _let_go_in_children()
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        if not file.closed:  # as it is in a forked child
            with contextlib.suppress(OSError):
                _write(file, "")
                _unlock(file)
            file.close()


def is_locked(folder: str | Path) -> bool:
    """Whether a living process holds the lock of a folder; False if there is no such folder.

    Raises:
      ValueError: the lock cannot be read.
    """
    try:
        with open(Path(folder) / _NAME, "rb") as file:
            return not _try_lock(file, shared=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ValueError(f"cannot read the lock of '{folder}': {error.strerror}") from error


def _acquire(path: Path) -> BinaryIO | None:
    """The file, locked and signed; None if somebody else keeps it locked."""
    attempts, began = 0, time.monotonic()
    while attempts < _ATTEMPTS and time.monotonic() - began < _PATIENCE:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        try:
            # Who empties the folder in between leaves us with the lock of a file that is gone.
            if _try_lock(file) and _is_file_of(file, path):
                _write(file, _signature())
                return file
            # Whoever only asks shares the lock, and holds it for an instant: that does not count.
            attempts += not _try_lock(file, shared=True)
        except BaseException:
            file.close()
            raise
        file.close()
        time.sleep(_PAUSE)
    return None


def _is_file_of(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _try_lock(file: BinaryIO, shared: bool = False) -> bool:
    """Lock an open file without waiting; False if another open file has it locked."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        file.seek(1 << 30)  # a locked byte cannot be read, so take one that nobody reads
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl  # noqa: PLC0415

    try:
        # Not `lockf`: its lock is lost when any file on the same path is closed, and is one for
        # the whole process.
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: BinaryIO) -> None:
    """Let go even if a program that is just being started still shares the open file."""
    if sys.platform != "win32":
        import fcntl  # noqa: PLC0415

        fcntl.flock(file, fcntl.LOCK_UN)


def _write(file: BinaryIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text.encode())


def _holder(folder: str | Path) -> str:
    try:
        said = json.loads((Path(folder) / _NAME).read_text())
        return f"process {said['pid']} on {said['host']} since {said['time']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written who it is yet
        return "another process"


def _signature() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "time": now})


@functools.cache
def _let_go_in_children() -> None:
    """A forked child shares the open file, and would keep the lock when its parent is dead."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while _held:
        _held.pop().close()
