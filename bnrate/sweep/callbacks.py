"""What the host does between chunks: tell whoever asked how far a sweep has come.

A callback is any object with one or more of three methods, all called on the host and never inside
a compiled program:

* `on_start(progress)` once, before the first chunk; a resumed sweep starts with `progress.done > 0`
* `on_chunk(progress)` after each chunk, when its records and the checkpoint are on disk
* `on_end(dataset)` once, with the result; not if the sweep stops early

A callback that raises stops the sweep after the chunk that has just been written, so that the same
call with `resume=True` goes on from there: this is how to stop early.

    >>> import types
    >>> def stop(progress):
    ...     if not progress.alive.any(): raise RuntimeError("every run has diverged")
    >>> check([types.SimpleNamespace(on_chunk=stop)])[0].on_chunk is stop
    True

Ready-made: `Terminal` (a live table; plain lines in a log file), `Bar` (tqdm), `TensorBoard` and
`WandB`.  In all of them a diverged run is shown as diverged and is never the best.
"""

import difflib
import importlib
import inspect
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnrate.sweep.progress import Progress, name

EVENTS = ("on_start", "on_chunk", "on_end")
# tqdm's own format without its steps a second: run-steps a second come after it.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def check(callbacks: Any) -> tuple[Any, ...]:
    """The callbacks, after a check that each of them can be called.

    Raises:
      ValueError: not a sequence, or a member with none of the three methods.
    """
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise ValueError(
            f"callbacks must be a list, got {callbacks!r}; put it in one: callbacks=[...]"
        )
    for callback in callbacks:
        wrong = _fault(callback)
        if wrong:
            raise ValueError(
                f"a callback must have {', '.join(EVENTS[:2])} or {EVENTS[2]}; {wrong}"
            )
    return tuple(callbacks)


def call(callbacks: Sequence[Any], event: str, argument: Any) -> None:
    """Call those callbacks, in order, that listen to an event: one of `EVENTS`."""
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(argument)


def _fault(callback: Any) -> str:
    """Why an object is no callback and what to do; empty if it is one."""
    if inspect.isclass(callback):
        return f"{callback.__name__} is a class: make an object of it, {callback.__name__}(...)"
    if any(callable(getattr(callback, event, None)) for event in EVENTS):
        return ""
    if inspect.isroutine(callback):
        return f"{callback!r} is a function: write types.SimpleNamespace(on_chunk=...)"
    own = [name for name in dir(callback) if not name.startswith("__")]
    for attribute in own:
        near = difflib.get_close_matches(attribute.lower(), EVENTS, n=1)
        if near and attribute not in EVENTS:
            return f"{callback!r} has {attribute}: did you mean {near[0]}?"
    return f"{callback!r} has {', '.join(own[:5]) or 'no method'}"


class Bar:
    """A bar by tqdm, for terminals and notebooks: steps of all combinations, with tqdm's ETA.

    Args:
      **options: of tqdm, such as `file`, `disable` or `ncols`.

    Raises:
      ModuleNotFoundError: tqdm is not installed.
    """

    def __init__(self, **options: Any):
        self._tqdm = _package("tqdm.auto", "bnrate[cli]").tqdm
        self._options = {"unit": "step", "unit_scale": True, "bar_format": _BAR, **options}
        self._bar: Any = None
        self._lost: dict[str, int] = {}

    def on_start(self, progress: Progress) -> None:
        """Draw the bar, from where a resumed sweep goes on."""
        self.on_end()
        self._lost = {}
        self._bar = self._tqdm(total=progress.total, initial=progress.done, **self._options)

    def on_chunk(self, progress: Progress) -> None:
        """Move it on, with the speed and the number of runs that have diverged in this call."""
        bar, combination = self._bar, name(progress.combination)
        self._lost[combination] = int(progress.diverged().sum())
        bar.set_description(combination or None, refresh=False)
        speed, lost = _short(progress.run_steps_per_second), sum(self._lost.values())
        bar.set_postfix_str(f"{speed} run-{progress.unit}s/s, {lost} diverged", refresh=False)
        bar.update(progress.done - bar.n)

    def on_end(self, dataset: Any = None) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Terminal:
    """A live table with a row for each static combination; without a terminal a line per chunk.

    A row tells the step of the last record, how many runs have diverged, and the median and best
    over the runs of one variable at that record (its mean, if it has axes of its own).  A diverged
    run counts as worst: where half of the runs diverged, so does the median.

    Args:
      stream: a text stream; default standard error.
      variable: which recorded variable is shown; default "loss", or the first if there is none.
      best: whether the lowest or the highest value is the best.

    Raises:
      ValueError: neither lowest nor highest; after the first chunk, a variable not recorded.
    """

    def __init__(self, stream: Any = None, variable: str | None = None, best: str = "lowest"):
        if best not in ("lowest", "highest"):
            raise ValueError(f"best must be 'lowest' or 'highest', got {best!r}")
        self._stream, self._variable, self._best = stream, variable, best
        self._rows, self._drawn = {}, 0

    def on_start(self, progress: Progress) -> None:
        """Say that the first chunk is under way, and where a resumed sweep goes on."""
        self._rows, self._drawn = {}, 0
        stream = self._out()
        if _live(stream):
            self._draw(stream, progress, "the first chunk also compiles")
        elif progress.done:
            print(f"{_percent(progress)} done before", file=stream, flush=True)

    def on_chunk(self, progress: Progress) -> None:
        """Draw the table anew, or write a line."""
        row = _row(progress, progress.variable(self._variable), self._best)
        self._rows[name(progress.combination)] = row
        speed = f"{_short(progress.run_steps_per_second)} run-{progress.unit}s/s"
        status = f"{speed}, ETA {_duration(progress.eta)}"
        stream = self._out()
        if _live(stream):
            self._draw(stream, progress, status)
        else:
            line = f"{_percent(progress)}, {_sentence(row)}, {status}"
            print(_printable(line), file=stream, flush=True)

    def _out(self) -> Any:
        # Looked up late: a test or a notebook may have put another stream in its place.
        return sys.stderr if self._stream is None else self._stream

    def _draw(self, stream: Any, progress: Progress, status: str) -> None:
        """The table and the status below it, in place of what was drawn before."""
        width, height = _size(stream)
        rows = list(self._rows.values())
        # Rows that scrolled off the top could not be drawn anew.
        shown = rows[-max(1, height - 3) :]
        hidden = f", {len(rows) - len(shown)} rows hidden" * (len(shown) < len(rows))
        lines = [*_table(shown), f"{_bar(progress)} {_percent(progress)}, {status}{hidden}"]
        styles = ["1", *("31" if row.lost else "" for row in shown), ""] if shown else [""]
        lines = [_printable(line)[: width - 1] for line in lines]
        if not os.environ.get("NO_COLOR"):
            pairs = zip(styles, lines, strict=True)
            lines = [f"\x1b[{style}m{line}\x1b[0m" if style else line for style, line in pairs]
        # Line by line: a screen that is cleared as a whole would be kept in the scroll-back.
        back = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        stream.write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        stream.flush()
        self._drawn = len(lines)


class PerRun:
    """Something open for each run of the combination at work: a file, or a run of a tracker.

    A variable with axes of its own is written as its mean over them.  Of values that are not finite
    the first of each chunk is written, so that trackers show where a run diverged and do not rank
    it by its last good value.

    Args:
      start: `start(progress, name, point)` opens one, given the name of a run
        (`rule=sgd,rate=0.1,seed=0`) and its coordinates, static ones included.
      write: `write(opened, records)` with pairs of a step and a dict of floats.
      close: `close(opened, diverged)`.
      every: write each chunk's first record and then every so many.

    Raises:
      ValueError: every is not positive.
    """

    def __init__(
        self,
        start: Callable[[Progress, str, dict[str, Any]], Any],
        write: Callable[[Any, list[tuple[int, dict[str, float]]]], None],
        close: Callable[[Any, bool], None],
        every: int = 1,
    ):
        if every < 1:
            raise ValueError(f"every must be a positive number of records, got {every}")
        self._start, self._write, self._close, self._every = start, write, close, every
        self._open, self._diverged, self._combination = [], [], None

    def on_start(self, progress: Progress) -> None:
        """Close what a sweep that was stopped has left open."""
        self.on_end()

    def on_chunk(self, progress: Progress) -> None:
        """Write the records of the chunk."""
        if self._combination != progress.combination:
            self.on_end()
            named = zip(progress.names(), progress.coordinates(), strict=True)
            self._open = [self._start(progress, *one) for one in named]
        self._combination, self._diverged = progress.combination, progress.diverged().tolist()
        for opened, records in zip(self._open, progress.records(self._every), strict=True):
            self._write(opened, records)

    def on_end(self, dataset: Any = None) -> None:
        """Close all."""
        for opened, diverged in zip(self._open, self._diverged, strict=True):
            self._close(opened, diverged)
        self._open, self._diverged, self._combination = [], [], None


def TensorBoard(folder: str | Path, every: int = 1) -> PerRun:  # noqa: N802 (used like a class)
    """Scalars by tensorboardX: a folder for each run of the sweep, so that curves share a chart.

    The folders are named by the coordinates, which is what TensorBoard's filter searches.  Where a
    run diverges its curve ends in TensorBoard's mark for NaN.  Keeps one file open for each run of
    the combination at work.

    Args:
      folder: a resumed sweep adds to what is there.
      every: see `PerRun`.

    Raises:
      ValueError: every is not positive.
      ModuleNotFoundError: tensorboardX is not installed.
    """
    # Its SummaryWriter would take a thread and a pipe for each run, warn at each NaN, and not have
    # on disk all that it was told to flush.
    writer = _package("tensorboardX.event_file_writer", "bnrate[tb]").EventsWriter
    event = _package("tensorboardX.proto.event_pb2", "bnrate[tb]").Event

    def start(progress: Progress, name: str, point: dict[str, Any]) -> Any:
        place = Path(folder) / name.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        # A suffix of its own: a file of the same second would be overwritten.
        return writer(str(place / "events"), f".{progress.done}")

    def write(opened: Any, records: list[tuple[int, dict[str, float]]]) -> None:
        for step, values in records:
            record = event(wall_time=time.time(), step=step)
            for variable, value in values.items():
                record.summary.value.add(tag=variable, simple_value=value)
            opened.write_event(record)
        opened.flush()

    return PerRun(start, write, lambda opened, diverged: opened.close(), every)


def WandB(project: str, every: int = 1, **init: Any) -> PerRun:  # noqa: N802 (used like a class)
    """A W&B run for each run of the sweep, in one group, with the coordinates as its config.

    This is what W&B compares, sorts and plots against each other.  It works offline: nothing leaves
    the machine before `wandb sync`.  Opening takes some 20 milliseconds a run offline, more online.
    The summary says which runs `diverged`.  A resumed sweep opens new runs, with the records from
    there on; name a `group` to keep them together.  Needs wandb 0.20 or later.

    Args:
      project: of W&B.
      every: see `PerRun`.
      **init: of `wandb.init`, such as `mode="online"`, `group`, `dir` or `tags`.

    Raises:
      ValueError: every is not positive.
      ModuleNotFoundError: wandb is not installed.
    """
    package = _package("wandb", "wandb>=0.20")
    options = {
        "mode": "offline",
        "group": f"sweep-{time.strftime('%Y%m%d-%H%M%S')}",
        # Runs side by side in one process, each of which would keep and print the console, and
        # list the installed packages (seven times the time to open it).
        "reinit": "create_new",
        "settings": {"console": "off", "silent": True, "x_save_requirements": False},
        **init,
    }

    def start(progress: Progress, name: str, point: dict[str, Any]) -> Any:
        return package.init(project=project, name=name, config=point, **options)

    def write(opened: Any, records: list[tuple[int, dict[str, float]]]) -> None:
        for step, values in records:
            opened.log(values, step=step)

    def close(opened: Any, diverged: bool) -> None:
        opened.summary["diverged"] = diverged
        opened.finish()

    return PerRun(start, write, close, every)


def _package(module: str, requirement: str) -> Any:
    """An optional package, at the call that needs it and before any work is done."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed; pip install '{requirement}'", name=package
        ) from error


class _Row(NamedTuple):
    """What is told of one combination: names, numbers, where the best is, and if all is lost."""

    names: Mapping[str, str]
    numbers: dict[str, str]
    at: str
    lost: bool


def _row(progress: Progress, variable: str | None, best: str) -> _Row:
    values = progress.latest(variable)
    lost, stopped = np.isnan(values), progress.stopped
    numbers = {progress.unit: str(progress.steps[-1])} if progress.steps.size else {}
    numbers["diverged"] = f"{progress.diverged(variable).sum()}/{lost.size}"
    if stopped is not None:
        numbers["stopped"] = f"{stopped.sum()}/{lost.size}"
    worst = "diverged" if stopped is None or not stopped.any() else "stopped"
    if variable is None:
        return _Row(progress.combination, numbers, "", bool(lost.all()))
    sign = 1 if best == "lowest" else -1
    ranked = np.where(lost, np.inf, sign * values)
    first = int(np.argmin(ranked))
    # The worse of the two in the middle: what half of the runs do not reach is not typical.
    median = np.quantile(ranked, 0.5, method="higher")
    numbers[f"median {variable}"] = _number(sign * median, worst)
    numbers[f"best {variable}"] = _number(sign * ranked[first], worst)
    at = "" if lost.all() else progress.names(static=False)[first]
    return _Row(progress.combination, numbers, at, bool(lost.all()))


def _number(value: float, worst: str) -> str:
    return f"{value:.4g}" if math.isfinite(value) else worst


def _sentence(row: _Row) -> str:
    told = [f"{name}={value}" for name, value in row.names.items()]
    told += [f"{name} {value}" for name, value in row.numbers.items()]
    return ", ".join(told) + f" at {row.at}" * bool(row.at)


def _table(rows: Sequence[_Row]) -> list[str]:
    """Aligned lines, a header first; the columns are those of the last row."""
    if not rows:
        return []
    names = {name: [row.names.get(name, "") for row in rows] for name in rows[-1].names}
    numbers = {name: [row.numbers.get(name, "") for row in rows] for name in rows[-1].numbers}
    columns = [_aligned(name, cells, str.ljust) for name, cells in names.items()]
    columns += [_aligned(name, cells, str.rjust) for name, cells in numbers.items()]
    columns += [["best at" * any(row.at for row in rows), *(row.at for row in rows)]]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _aligned(name: str, cells: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    width = max(map(len, [name, *cells]))
    return [justify(cell, width) for cell in [name, *cells]]


def _live(stream: Any) -> bool:
    """Whether lines can be drawn anew."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _size(stream: Any) -> tuple[int, int]:
    """Columns and lines of a terminal, which may be another than that of standard output."""
    try:
        return os.get_terminal_size(stream.fileno())
    except OSError:
        return shutil.get_terminal_size()


def _printable(text: str) -> str:
    """Without what would move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _percent(progress: Progress) -> str:
    # Rounded down, so that 100% means all.
    return f"{100 * progress.done // progress.total}%"


def _bar(progress: Progress, width: int = 20) -> str:
    full = width * progress.done // progress.total
    return f"[{'#' * full}{'-' * (width - full)}]"


def _short(value: float) -> str:
    """Three digits and a letter for thousands, millions, billions."""
    if not math.isfinite(value):
        return "?"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours or days before them; `?` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
