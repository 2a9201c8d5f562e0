"""Processes of one job on this machine: together the same bits as one; if one dies, resumable."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from decay import GRID, ONE_BY_ONE, Decay, assert_same

from bnrate import results, sweep

pytestmark = pytest.mark.slow

PROCESS = """
import sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
# After so long, and not after 100 seconds, JAX ends the others if one has died.
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout_seconds=10)
from bnrate import sweep
from decay import *
class Slow:
    def on_chunk(self, progress):
        print("chunk", flush=True)
        time.sleep(float(sys.argv[4]))
ds = sweep.run(Decay, GRID, out=sys.argv[3], callbacks=[Slow()], **ONE_BY_ONE)
assert (ds["status"] != "unfinished").all()
print("whole", flush=True)
"""


@contextlib.contextmanager
def job(out, seconds=(0, 0)):
    """Two processes that sleep so many seconds after each chunk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = [str(Path(__file__).parent), *sys.path]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), str(out), str(seconds[i])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    late = threading.Timer(90, lambda: [process.kill() for process in processes])
    late.start()
    try:
        yield processes
    finally:
        late.cancel()
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def whole():
    return sweep.run(Decay, GRID, **ONE_BY_ONE)


def finishes(out, whole):
    with job(out) as processes:
        said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all(out.endswith("whole\n") for out, _ in said)
    assert_same(results.load(out), whole)
    assert [path.name for path in out.iterdir()] == ["results.zarr"]


def test_two_processes_give_the_bits_of_one(tmp_path, whole):
    finishes(tmp_path / "out", whole)


@pytest.mark.parametrize("dies", [0, 1])
def test_one_of_two_processes_dies(tmp_path, whole, dies):
    """The other says so, or JAX ends it; the same again gives the same bits."""
    seconds = (60, 0) if dies == 0 else (0, 60)
    with job(tmp_path / "out", seconds) as processes:
        assert processes[dies].stdout.readline() == "chunk\n"
        other = processes[1 - dies]
        assert [other.stdout.readline() for _ in range(3)] == ["chunk\n"] * 3
        began = time.monotonic()
        processes[dies].kill()
        _, said = other.communicate()
        assert time.monotonic() - began < 30
    assert other.returncode != 0
    ours = f"process {dies} of 2 stopped before its part was done"
    theirs = "JAX distributed service detected fatal errors"  # of the process that coordinates
    assert ours in said or (dies == 0 and theirs in said)
    left = results.unfinished(tmp_path / "out")
    assert left["loss"].isel(step=0).notnull().all()  # the first chunk of each part is safe
    finishes(tmp_path / "out", whole)
