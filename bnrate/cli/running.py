"""Experiments: `bnrate list`, `run NAME`, `merge FOLDER ...`, `plot FOLDER`."""

import contextlib
import dataclasses
import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import tyro

from bnrate import experiments, plots, results, sweep
from bnrate.cli.programs import optional
from bnrate.cli.reports import report

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class List:
    """List the experiments."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Run an experiment: prints what it found, writes the results and their pictures.

    Attributes:
      name: Which experiment; `bnrate list` shows them.
      config: What it runs on.
      out: Folder to write; runs/NAME if not given.  What is unfinished there is resumed.
      overwrite: Replace what is there.
      resume_anyway: Resume even if versions, executor or config differ, as long as the runs are the
        same.
      shard: Compute only the shard i of n, for example 0/8, to be merged later; in a SLURM array it
        is the task's if not given.
      distributed: Share the runs with the other processes of this job (SLURM, Open MPI, Kubernetes,
        Cloud TPU), which write to the same folder.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    config: tyro.conf.OmitArgPrefixes[experiments.Config] = dataclasses.field(
        default_factory=experiments.Config
    )
    out: str | None = None
    overwrite: bool = False
    resume_anyway: bool = False
    shard: Annotated[str | None, optional("I/N")] = None
    distributed: bool = False


@dataclasses.dataclass(frozen=True)
class Merge:
    """Put the shards of an experiment together: prints the tables, writes result and pictures.

    Attributes:
      folders: Where the shards were written (--out), one or several.
      out: Folder to write; the first of them if not given.
      overwrite: Replace a result that is there.
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...")]
    out: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the pictures of a result again.

    Attributes:
      folder: What `bnrate run` wrote, for example runs/unified-rate.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


def list_experiments() -> None:
    """Print the name of each experiment and what it is."""
    for name, experiment in experiments.EXPERIMENTS.items():
        print(f"{name:16} {(experiment.__doc__ or '').splitlines()[0]}")


def plot(command: Plot) -> None:
    """Draw the pictures of a result into its folder."""
    ds = experiments.completed(results.load(command.folder))
    with results.writing(command.folder, overwrite=True) as folder:
        names = _draw(ds, folder)
    print(f"drawn in {command.folder}: {', '.join(names)}")


def run(command: Run) -> None:
    """Run an experiment, write what it found, print a summary."""
    if command.name not in experiments.EXPERIMENTS:
        close = difflib.get_close_matches(command.name, experiments.EXPERIMENTS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        known = ", ".join(experiments.EXPERIMENTS)
        raise ValueError(f"unknown experiment '{command.name}'; {hint}there are: {known}")
    if command.distributed and command.shard is not None:
        raise ValueError("--distributed shares the runs by itself; give it or --shard, not both")
    if command.out == "":
        raise ValueError("--out is empty; name a folder")
    out = Path("runs") / command.name if command.out is None else Path(command.out)
    shard = None if command.distributed else _shard(command.shard)
    _one_device_per_core()
    if command.distributed:
        jax.distributed.initialize()
    sweep.cache_compilations()
    complete = (out / "results.zarr").exists() and not command.overwrite
    ds = experiments.EXPERIMENTS[command.name](
        command.config,
        out=out,
        resume="anyway" if command.resume_anyway else True,
        overwrite=command.overwrite,
        shard=shard,
        callbacks=[sweep.Terminal()] if jax.process_index() == 0 else [],
    )
    if shard is not None:
        print(f"shard {shard[0]} of {shard[1]} is done; when all are: bnrate merge {out}")
        return
    if complete:
        print(f"complete already in {out}; --overwrite runs it anew\n")
    if jax.process_index() == 0:
        _show(ds, out)


def merge(command: Merge) -> None:
    """Put the shards of an experiment together."""
    if not command.folders:
        raise ValueError("name the folders of the shards")
    out = Path(command.out or command.folders[0])
    _show(
        experiments.completed(results.merge(command.folders, out, overwrite=command.overwrite)), out
    )


def _show(ds: "xr.Dataset", out: Path) -> None:
    with results.writing(out, overwrite=True) as folder:
        _draw(ds, folder)
    print(report(ds))
    print(f"\nwritten: {', '.join(str(path) for path in sorted(out.iterdir()))}")


def _shard(given: str | None) -> tuple[int, int] | None:
    """I/N as numbers; by default the place of this task in a SLURM array."""
    if given is None:
        task, count, first, step = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("COUNT", 1), ("MIN", 0), ("STEP", 1))
        )
        return ((task - first) // step, count) if count > 1 else None
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    if match is None:
        raise ValueError(f"--shard must be I/N with 0 <= I < N, for example 0/8; got '{given}'")
    return int(match[1]), int(match[2])


def _draw(ds: "xr.Dataset", folder: Path) -> list[str]:
    figures = {f"{name}.png": figure for name, figure in plots.figures(ds).items()}
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return list(figures)


def _one_device_per_core() -> None:
    """Split the CPU into as many devices as there are cores, unless the user said how many."""
    flags = os.environ.get("XLA_FLAGS", "")
    told = os.environ.get("JAX_NUM_CPU_DEVICES") or "host_platform_device_count" in flags
    if not told:
        affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
        with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
            jax.config.update("jax_num_cpu_devices", len(affinity(0)))
