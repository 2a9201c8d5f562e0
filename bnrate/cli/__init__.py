"""The command line: `bnrate list | run | merge | plot | certify | lint`.

A room per idea: `running` has the experiments, `programs` names the losses that may be certified,
`proving` has the certificates and what is held against them; `reports` and `bounds` say in tables
what an experiment found.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import matplotlib  # noqa: F401 (so that no run ends without its pictures)
    import tqdm  # noqa: F401
    import tyro
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"bnrate: the command line needs {missing.name}: pip install 'bnrate[cli,plot]'"
    ) from missing

from bnrate.cli import proving, running
from bnrate.cli.proving import Certify, Lint
from bnrate.cli.running import List, Merge, Plot, Run

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; bad input ends with one line on the standard error and status 2."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"list": List, "run": Run, "merge": Merge, "plot": Plot, "certify": Certify, "lint": Lint},
        prog="bnrate",
        description="Normalised networks tune their own learning rate: see it, measure it.",
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    with _plain_errors():
        match command:
            case List():
                running.list_experiments()
            case Run():
                running.run(command)
            case Merge():
                running.merge(command)
            case Plot():
                running.plot(command)
            case Certify():
                if status := proving.certify(command):
                    sys.exit(status)
            case Lint():
                sys.exit(proving.lint(command))


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Bad input, refused by this package, is one line; a fault elsewhere keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "stopped; a file is written whole at the end, or not at all"
        print(f"bnrate: {said}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, ModuleNotFoundError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parent.parent not in raised_in.parents:
            raise
        print(f"bnrate: {error}", file=sys.stderr)
        sys.exit(2)
