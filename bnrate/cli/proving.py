"""Proofs: `bnrate certify LOSS`, and `bnrate lint TREATMENT.json` against one.

Let train.py hold a loss, and a function that returns what it is called with:

    import jax.numpy as jnp

    def loss(params, x):
        h = x @ params["w"]
        return jnp.mean(h / jnp.linalg.norm(h) * params["gain"])

    def start():
        return {"w": jnp.ones((3, 4)), "gain": jnp.ones(4)}, jnp.ones((8, 3))

Then, in its folder,

    bnrate certify train:loss --params train:start --groups groups.json
    echo '{"w": null, "gain": "rest"}' > treatment.json
    bnrate lint treatment.json --groups groups.json --params train:start
"""

import dataclasses
import json
import os
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from bnrate import certify as structural
from bnrate import evidence, invariance
from bnrate import groups as gr
from bnrate.cli import programs
from bnrate.cli.programs import Target, optional

_COLUMNS = 100
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Certify:
    """Prove which parameters of a loss are scale-invariant, and say what stops the others.

    Attributes:
      target: The loss: LOSS and --params, or a --model.
      eps: ignore proves up to the epsilons of normalisations; strict takes them as they are.
      why: Print what stops scaling these leaves together, rather than the table.
      axis: With --why: what stops scaling each index along this axis alone.
      groups: Write the groups to this file, for people to edit and for `bnrate lint`.
      numeric: Try with numbers too, and print what is proven, what numbers refute, and what is not
        known; the function of --params is run (minutes, for a large network).
      json: Write the certificate (with --numeric, all answers) to this file; - prints it, and
        nothing else.
    """

    target: tyro.conf.OmitArgPrefixes[Target] = dataclasses.field(default_factory=Target)
    eps: Literal["ignore", "strict"] = "ignore"
    why: Annotated[tuple[str, ...], optional("PATH [PATH ...]")] = ()
    axis: Annotated[int | None, optional("AXIS")] = None
    groups: Annotated[str | None, optional("FILE")] = None
    numeric: bool = False
    json: Annotated[str | None, optional("FILE")] = None


@dataclasses.dataclass(frozen=True)
class Lint:
    """Hold what an optimiser is told about each leaf against what is scale-invariant.

    Attributes:
      treatment: A file with an object from paths of leaves to "invariant" or "rest" (a label), true
        or false (a mask; say with --meaning of what), or a unit axis, a list of them or null (a
        fixed norm).
      target: The loss: LOSS and --params, or a --model; with --groups, LOSS is not needed.
      groups: Hold it against the groups in this file, rather than against a new proof.
      eps: Of a new proof, as in `bnrate certify`.
      meaning: What true means in a mask: the leaf is treated as invariant, or decays, or has a
        trust ratio (trust_ratio).
      numeric: Try with numbers what is not proven, which is not known otherwise; the function of
        --params is run.
      json: Write the findings to this file; - prints them, and nothing else.
    """

    treatment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TREATMENT.json")]
    target: tyro.conf.OmitArgPrefixes[Target] = dataclasses.field(default_factory=Target)
    groups: Annotated[str | None, optional("FILE")] = None
    eps: Literal["ignore", "strict"] = "ignore"
    meaning: Annotated[invariance.Meaning | None, optional("MEANING")] = None
    numeric: bool = False
    json: Annotated[str | None, optional("FILE")] = None


def certify(command: Certify) -> int:
    """Prove, write what was asked for, print a table or the reasons; 1 if numbers contradict."""
    if command.axis is not None and not command.why:
        raise ValueError("--axis is that of the leaves named by --why, and there are none")
    if command.numeric and command.why:
        raise ValueError("--why asks the proof alone; leave out --numeric")
    program = programs.program(command.target, command.numeric)
    gathered = None
    if command.numeric:
        gathered = evidence.gather(_loss(program), program.params, *program.args, eps=command.eps)
        certificate = gathered.certificate
    else:
        certificate = _certificate(program, command.eps)
    why = "\n".join(_reasons(certificate, command)) if command.why else ""
    if command.groups is not None:
        _write(gr.to_json(certificate.groups), command.groups)
    shown = gathered or certificate
    _show(why or str(shown), shown.to_json(), command.json)
    return 0 if gathered is None or gathered.ok else 1


def lint(command: Lint) -> int:
    """Print the findings; 1 if there are errors."""
    program = programs.program(command.target, command.numeric)
    tried = {"loss": _loss(program), "args": program.args} if command.numeric else {}
    treatment = _read(command.treatment, invariance.treatment_from_json)
    if command.groups is None:
        groups = _certificate(program, command.eps).groups
    else:
        groups = _read(command.groups, gr.from_json)
    findings = invariance.lint(treatment, groups, program.params, meaning=command.meaning, **tried)
    document = json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2) + "\n"
    _show(str(findings), document, command.json)
    return 1 if findings.errors else 0


def _certificate(
    program: programs.Program, eps: Literal["ignore", "strict"]
) -> structural.Certificate:
    return structural.certify(_loss(program), program.params, *program.args, eps=eps)


def _loss(program: programs.Program) -> Callable[..., Any]:
    if program.loss is None:
        raise ValueError("a proof needs the loss too: name it as MODULE:NAME")
    return program.loss


def _reasons(certificate: structural.Certificate, command: Certify) -> Iterator[str]:
    """What stops the leaves that the command asks about: a paragraph per break."""
    breaks = certificate.why(command.why, command.axis)
    together = "together, by one factor" if len(command.why) > 1 else "as a whole"
    how = together if command.axis is None else f"at each index of axis {command.axis} alone"
    epsilons = sum(one.kind == "eps" for one in breaks)
    counts = (len(breaks) - epsilons, "reason"), (epsilons, "epsilon")
    found = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n) or "nothing"
    yield f"{found} against scaling {how}: {', '.join(command.why)}"
    for one in breaks:
        yield textwrap.fill(
            str(one),
            _COLUMNS,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _show(screen: str, document: str, file: str | None) -> None:
    """Print the screen and write the document; or print the document alone."""
    if file == "-":
        print(document, end="")
        return
    if file is not None:
        _write(document, file)
    print(screen)


def _read(file: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(Path(file).read_text())
    except OSError as error:
        raise ValueError(f"cannot read '{file}': {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"'{file}': {error}") from error


def _write(text: str, file: str) -> None:
    """Write a file whole, or leave the old one as it is."""
    target = Path(file)
    if target.exists() and not target.is_file():
        raise ValueError(f"cannot write '{file}': there is something else than a file")
    try:
        with tempfile.TemporaryDirectory(prefix=".bnrate-", dir=target.parent) as scratch:
            whole = Path(scratch) / target.name
            whole.write_text(text)
            os.replace(whole, target)
    except OSError as error:
        raise ValueError(f"cannot write '{file}': {error.strerror}") from error
