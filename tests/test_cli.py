import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_experiments import settled
from test_results import dataset

from bnrate import cli, experiments, models, results
from bnrate import groups as gr
from bnrate.cli import programs, proving, running
from bnrate.sweep import sweeping

TINY = ["--rates", "0.1", "10", "--seeds", "1", "--steps", "10", "--width", "8", "--batch", "32"]


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The devices are set by the tests; the command line would set them anew.
    monkeypatch.setattr(running, "_one_device_per_core", lambda: None)
    return tmp_path


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_list_names_each_experiment(capsys):
    cli.main(["list"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(experiments.EXPERIMENTS)
    assert max(map(len, printed.splitlines())) <= 100
    assert "Figure 1" in printed


def test_run_prints_tables_and_writes_result_and_pictures(at, capsys, monkeypatch):
    cli.main(["run", "separate-rates", *TINY])
    printed = capsys.readouterr().out
    for title in ("setting 1: SGD, BN", "setting 2: projected SGD, BN"):
        assert title in printed
    assert "tuning freedom" in printed
    folder = at / "runs" / "separate-rates"
    assert sorted(p.name for p in folder.iterdir()) == [
        "final_loss.png",
        "results.zarr",
        "spheres.png",
    ]
    ds = results.load(folder)
    assert running.report(ds) in printed
    assert list(ds["rate_invariant"].values) == [0.1, 10.0]
    row = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["10"])
    run = ds.sel(rule="sgd-bn", rate_invariant=10)
    assert float(row[1]) == pytest.approx(run["final_loss"].item(), rel=0.01)
    assert float(row[4].rstrip("%")) == pytest.approx(100 * run["test_accuracy"].item(), abs=0.1)
    assert row[5] == "0/1"

    # the same again is there already; another is refused unless it may replace it
    monkeypatch.setattr(sweeping, "execute", None)
    cli.main(["run", "separate-rates", *TINY])
    printed = capsys.readouterr().out
    assert "complete already in runs/separate-rates" in printed
    assert running.report(ds) in printed
    monkeypatch.undo()
    monkeypatch.chdir(at)
    other = [*TINY, "--seeds", "2"]
    assert "holds the result of another sweep: axes.seed is [0, 1], there it was [0]" in fails(
        capsys, "run", "separate-rates", *other
    )
    assert results.load(folder).identical(ds)
    cli.main(["run", "separate-rates", *other, "--overwrite"])
    assert results.load(folder).sizes["seed"] == 2

    (folder / "spheres.png").unlink()
    cli.main(["plot", str(folder)])
    assert (folder / "spheres.png").exists()


def test_shards_are_merged(at, capsys, monkeypatch):
    cli.main(["run", "separate-rates", *TINY, "--out", "whole", "--executor", "map"])
    cli.main(["run", "separate-rates", *TINY, "--executor", "map", "--shard", "0/2"])
    assert (
        "shard 0 of 2 is done; when all are: bnrate merge runs/separate-rates"
        in capsys.readouterr().out
    )
    assert "part 1 of 2 is missing" in fails(capsys, "merge", "runs/separate-rates")
    for name, value in {"ID": 7, "COUNT": 2, "MIN": 4, "STEP": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    cli.main(["run", "separate-rates", *TINY, "--executor", "map"])
    assert "shard 1 of 2 is done" in capsys.readouterr().out
    cli.main(["merge", "runs/separate-rates", "--out", "merged"])
    assert "tuning freedom" in capsys.readouterr().out
    merged, whole = results.load("merged"), results.load("whole")
    assert merged.drop_attrs().identical(whole.drop_attrs())


BAD = {
    "shard": (["run", "unified-rate", "--shard", "3"], "--shard must be I/N with 0 <= I < N"),
    "experiment": (
        ["run", "unified-rat"],
        "unknown experiment 'unified-rat'; did you mean 'unified-rate'?",
    ),
    "no guess": (["run", "xyz"], "unknown experiment 'xyz'; there are: separate-rates"),
    "data": (["run", "unified-rate", "--data", "cifar"], "unknown data 'cifar'"),
    "negative": (["run", "unified-rate", "--rates", "-1", "1"], "rate -1.0 must be a positive"),
    "nan": (["run", "unified-rate", "--rates", "nan"], "rate nan must be a positive"),
    "empty": (["run", "unified-rate", "--rates"], "rates are empty"),
    "too many": (["run", "unified-rate", "--seeds", "9999999"], "seeds must be 1 to 1000000, got"),
    "too wide": (["run", "unified-rate", "--width", "9999999"], "width must be 1 to 100000, got"),
    "no folder": (["run", "unified-rate", "--out", ""], "--out is empty; name a folder"),
    "word": (["run", "unified-rate", "--rates", "big"], "--rates"),
    "batch": (
        ["run", "unified-rate", "--batch", "99999"],
        "batch size 99999 must lie between 1 and",
    ),
    "out": (["run", "unified-rate", "--out", "/dev/null/x"], "cannot write to '/dev/null/x'"),
    "plot": (["plot", "nowhere"], "no result in 'nowhere'"),
    "command": (["fly"], "fly"),
}


def test_a_report_of_the_smallest_result():
    losses = np.full((1, 1, 1), 0.15)
    for dim in ("rate", "rate_invariant"):
        ds = dataset(losses, rates=[0.1], dim=dim).assign_coords(setting=("rule", ["1"]))
        ds = ds.expand_dims(rate_rest=[0.1], axis=2) if dim == "rate_invariant" else ds
        report = running.report(ds)
        assert "0.15" in report
        assert "0.00  (seeds: 0.00 to 0.00)" in report


def compared(losses, **more):
    """A result of the experiment `rules`."""
    ds = dataset(losses, rates=[0.01, 0.1, 1.0], **more).assign_attrs(experiment="rules")
    return ds.assign_coords(tuned=("rule", [True, True, False][: ds.sizes["rule"]]))


def test_all_rules_in_one_table_the_most_tolerant_first():
    losses = np.array(
        [
            [[0.1, 0.3], [0.004, 0.006], [0.5, 0.6]],  # a good loss, at one rate or two
            [[0.05, 0.05], [0.04, 0.05], [0.06, np.inf]],  # never so good, and good at two
            [[0.07, 0.08]] * 3,
        ]
    )
    printed = running.report(compared(losses, diverged=~np.isfinite(losses)))
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert "a final training loss of at most 0.2 (of 2.00 swept)" in printed
    rows = [line.split() for line in printed.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["SGD", "PROJECTED-BN", "SGD-BN"]
    assert rows[0][1:] == ["any", "0.08", "0.07", "0.08", "none", "90.0%", "0/6"]
    assert rows[1][1:] == ["1.50", "0.05", "0.05", "0.05", "0.01", "90.0%", "1/6"]
    assert rows[2][1:] == ["0.50", "0.006", "0.004", "0.006", "0.1", "90.0%", "0/6"]


def test_a_rule_that_never_trains_is_last_and_where_none_does_twice_the_best_will_do():
    losses = np.array([[[np.inf]] * 3, [[0.5], [0.7], [3.0]]])
    printed = running.report(compared(losses, diverged=~np.isfinite(losses)))
    assert "at most 1 (" in printed
    rows = [line.split() for line in printed.splitlines()[-2:]]
    assert rows[0][:2] == ["PROJECTED-BN", "1.00"]
    assert rows[1][:3] == ["SGD-BN", "none", "inf"]
    assert rows[1][-1] == "3/3"


def test_a_report_of_what_was_predicted():
    over = ("rule", "rate", "seed", "group")
    ds = dataset([[[0.5, 0.5]]], rates=[0.1]).assign_attrs(experiment="equilibrium")
    values = {
        "predicted_angle": [[0.01, 0.01], [0.01, 0.01]],
        "predicted_norm2": [[5.0, 2.0], [5.0, 2.0]],
        "reached": [[7.0, 50.0], [9.0, 50.0]],
        "angle_residual": [[0.1, np.nan], [0.2, np.nan]],
        "norm2_residual": [[-0.1, np.nan], [0.3, np.nan]],
    }
    ds = ds.assign({name: (over, np.array([[value]])) for name, value in values.items()})
    ds = ds.assign_coords(group=["k", "n"], decay=("rule", [0.02]))
    printed = running.report(ds)
    assert "SGD-BN, rate 0.1, decay 0.02" in printed
    rows = [line.split() for line in printed.splitlines()[-2:]]
    assert rows[0] == ["k", "9", "0.0115", "+15.0%", "5.5", "+10.0%"]
    assert rows[1] == ["n", "50", "not", "reached", "in", "21", "steps"]


def test_what_was_predicted_is_drawn_again_from_a_folder(at):
    ds = settled().assign_attrs(experiment="equilibrium").assign_coords(title=("rule", ["AdamW"]))
    ds = ds.assign(diverged=(("rule", "rate_invariant", "seed"), [[[False]]]))
    with results.writing(at / "here") as folder:
        results.save(ds.assign_coords(group=["k", "n"]), folder)
    cli.main(["plot", "here"])
    assert (at / "here" / "equilibrium.png").exists()


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_written(args, message, at, capsys):
    printed = fails(capsys, *args)
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not list(at.rglob("*.*"))


def test_a_fault_of_ours_keeps_its_traceback(at, monkeypatch):
    def broken(config, **options):
        return int("not bad input, but a bug")

    monkeypatch.setitem(experiments.EXPERIMENTS, "unified-rate", broken)
    # raised in this file, not in the package: what a fault in a dependency looks like
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["run", "unified-rate"])
    assert not list(at.rglob("*.*"))


def test_interrupted_leaves_nothing(at, monkeypatch):
    def interrupted(config, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(experiments.EXPERIMENTS, "unified-rate", interrupted)
    with pytest.raises(SystemExit, match="130"):
        cli.main(["run", "unified-rate"])
    assert not list(at.rglob("*.*"))


@pytest.mark.parametrize("package", ["tyro", "tqdm", "matplotlib"])
def test_a_missing_package_is_named_before_any_work(package):
    program = f"import sys; sys.modules['{package}'] = None; import bnrate.cli"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"needs {package}" in done.stderr
    assert "pip install 'bnrate[cli,plot]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_gone_is_no_fault(tmp_path):
    command = f"{sys.executable} -m bnrate.cli list | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("flags", "devices"), [("", CORES), ("--xla_force_host_platform_device_count=3", 3)]
)
def test_one_device_per_core_unless_told(flags, devices):
    program = (
        "from bnrate.cli import running; running._one_device_per_core()\n"
        "import jax; print(jax.device_count())"
    )
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == devices


# Certificates, and treatments held against them: what a user of one's own loss has in a file.
PROGRAM = """
import jax, jax.numpy as jnp

def loss(params, x):
    h = x @ params["w"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
    return jnp.mean((h @ params["head"]) ** 2), h

def start():
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (3, 4)), "head": jnp.ones(4), "idle": jnp.ones(2)}
    return params, jax.random.normal(key, (8, 3))

def alone(): return start()[0]
def vector(params, x): return x[0]
def fails(params, x): return x @ x
def broken(): return int("a fault of theirs")
def looks(): return {} if jnp.ones(()) > 0 else {}
def text(): return {"w": "text"}
shapes = jax.eval_shape(start)
"""
OWN = ("ownloss:loss", "--params", "ownloss:start")


@pytest.fixture
def own(at, monkeypatch):
    (at / "ownloss.py").write_text(PROGRAM)
    (at / "needy.py").write_text("import not_installed_anywhere")
    (at / "list.json").write_text("[]")
    (at / "other.json").write_text('{"no/thing": "rest"}')
    (at / "mask.json").write_text('{"w": true}')
    forget(monkeypatch, "ownloss")
    with jax.numpy_rank_promotion("allow"):  # as users have it
        yield at


def forget(monkeypatch, module):
    """Import it anew, from the current folder, and leave the path as it was."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()


def prints(capsys, *args):
    cli.main(args)
    return capsys.readouterr().out


@pytest.mark.parametrize("given", ["start", "shapes"])
def test_certify_ones_own_loss(given, own, capsys):
    files = ("--groups", "groups.json", "--json", "certificate.json")
    table = prints(capsys, "certify", "ownloss:loss", "--params", f"ownloss:{given}", *files)
    assert re.search(r"^  w +each index along axis 1$", table, re.MULTILINE)
    expected = gr.Groups([gr.Group([gr.Member("w", axes=1)])])
    assert gr.from_json((own / "groups.json").read_text()) == expected
    document = json.loads((own / "certificate.json").read_text())
    assert (document["no_effect"], set(document["rest"])) == (["idle"], {"head"})
    assert document["groups"] == json.loads(gr.to_json(expected))["groups"]
    assert not [path for path in own.iterdir() if path.name.startswith(".")]

    only = prints(capsys, "certify", *OWN, "--json", "-")
    assert only == (own / "certificate.json").read_text()
    strict = json.loads(prints(capsys, "certify", *OWN, "--json", "-", "--eps", "strict"))
    assert strict["groups"] == []


NORMS = {"batch": "each index along axis 1", "layer": "as a whole", "rms": "as a whole"}
NORMS |= {"group": "each index along axis 1 of shape (784, 32, 16)", "none": None}


@pytest.mark.parametrize(("norm", "unit"), NORMS.items(), ids=NORMS)
def test_certify_a_network_of_ours(norm, unit, capsys):
    table = prints(capsys, "certify", "--model", "mlp", "--norm", norm)
    first = re.search(r"layer0/kernel.*", table)
    assert first
    assert first[0].endswith(unit) if unit else "axis" not in table


def test_all_kernels_of_a_residual_network_but_its_head(capsys):
    document = json.loads(prints(capsys, "certify", "--model", "resnet18", "--json", "-"))
    assert all([{"path": f"layer{i}/kernel", "axes": [3]}] in document["groups"] for i in range(20))
    assert {"head/kernel", "head/bias"} < set(document["rest"])


def test_why(own, capsys):
    head = prints(capsys, "certify", *OWN, "--why", "head")
    assert head.startswith("1 reason against scaling as a whole: head\n- ")
    assert "the loss itself scales" in head
    together = prints(capsys, "certify", *OWN, "--why", "head", "w")
    assert "1 reason and 1 epsilon against scaling together, by one factor: head, w" in together
    each = prints(capsys, "certify", *OWN, "--why", "w", "--axis", "0")
    assert " against scaling at each index of axis 0 alone: w" in each
    assert "ownloss.py:5" in each
    assert all(len(line) <= 100 for line in (head + together + each).splitlines())
    nothing = prints(capsys, "certify", *OWN, "--why", "idle")
    assert nothing == "nothing against scaling as a whole: idle\n"


LINT = {
    "right": ({"w": 1, "head": "rest"}, 0, "no findings"),
    "note": ({"w": None}, 0, "each index of axis 1 is a unit"),
    "axis": ({"w": 0}, 0, "its known units are the indices of axis 1: whether"),
    "rest": ({"head": 0}, 0, "in no scale-invariant group"),
    "axes": ({"w": [0, 1]}, 0, "a fixed norm at each index of axes (0, 1), but"),
    "label": ({"w": "rest"}, 1, "treated as rest, but it is scale-invariant"),
}


@pytest.mark.parametrize(("treatment", "status", "finding"), LINT.values(), ids=LINT)
@pytest.mark.parametrize("proven", ["now", "before"])
def test_lint(treatment, status, finding, proven, own, capsys):
    (own / "treatment.json").write_text(json.dumps(treatment))
    against = OWN
    if proven == "before":
        prints(capsys, "certify", *OWN, "--groups", "groups.json")
        against = ("--groups", "groups.json", "--params", "ownloss:alone")
    assert lints(*against) == status
    assert finding in " ".join(capsys.readouterr().out.split())
    assert lints(*against, "--json", "-") == status
    found = json.loads(capsys.readouterr().out)
    assert any(one["severity"] == "error" for one in found) == bool(status)
    assert bool(found) == (finding != "no findings")


def test_lint_with_numbers(own, capsys):
    (own / "treatment.json").write_text('{"w": 0, "head": null}')
    assert lints(*OWN, "--numeric") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"head error has a fixed norm, .* the loss moves by [\d.]+ % when it is do", out
    )
    assert re.search(r"w error .* when each index of axis 0 is scaled by a factor of its own", out)


def test_certify_with_numbers(own, capsys):
    table = prints(capsys, "certify", *OWN, "--numeric", "--json", "answers.json")
    assert table.startswith("Proven, and the numbers agree: 2 claims")
    assert re.search(r"Refuted: 2 claims\n  head +as a whole +the loss moves by", table)
    claims = json.loads((own / "answers.json").read_text())["claims"]
    assert {claim["answer"] for claim in claims} == {"proven", "refuted"}


def test_certify_a_network_of_ours_with_numbers(monkeypatch, capsys):
    small = models.MLP((3, 2), 10)
    monkeypatch.setattr(programs.models, "MLP", lambda *_: small)
    table = prints(capsys, "certify", "--model", "mlp", "--numeric")
    assert re.search(r"layer0/kernel.*each index of axis 1", table)
    assert "PROVEN" not in table


def lints(*args):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lint", "treatment.json", *args])
    return stopped.value.code


def test_a_mask_has_the_meaning_that_is_given(own, capsys):
    (own / "treatment.json").write_text('{"head": true}')
    assert lints(*OWN, "--meaning", "decay") == 0
    assert lints(*OWN, "--meaning", "invariant") == 0
    assert "unknown" in capsys.readouterr().out
    assert lints(*OWN, "--meaning", "invariant", "--numeric") == 1


def test_the_example_of_the_documentation(own, monkeypatch, capsys):
    """The file and the commands in the docstring do what is said of them."""
    forget(monkeypatch, "train")
    text = re.sub("^    ", "", proving.__doc__, flags=re.MULTILINE)
    program = text[text.index("import jax") : text.index("Then, in its folder")]
    (own / "train.py").write_text(program)
    certify, echo, lint = (
        shlex.split(line) for line in text[text.index("Then") :].splitlines() if "json" in line
    )
    cli.main(certify[1:])
    assert "w  as a whole" in capsys.readouterr().out
    assert echo[0] == "echo"
    (own / "treatment.json").write_text(echo[1])
    assert lints(*lint[3:]) == 0
    assert capsys.readouterr().out == "no findings\n"


BAD_PROOFS = {
    "nothing named": (["certify"], "name a --model; or a loss of your own"),
    "no params": (["certify", "ownloss:loss"], "with --params, its parameters"),
    "both": (["certify", *OWN, "--model", "mlp"], "not both"),
    "model": (["certify", "--model", "alexnet"], "alexnet"),
    "norm": (["certify", *OWN, "--norm", "layer"], "--norm is that of a --model"),
    "instance": (
        ["certify", "--model", "mlp", "--norm", "instance"],
        "mlp normalises dense layers",
    ),
    "axis": (["certify", *OWN, "--axis", "1"], "--axis is that of the leaves named by --why"),
    "why by numbers": (["certify", *OWN, "--numeric", "--why", "w"], "leave out --numeric"),
    "no values": (
        ["certify", "ownloss:loss", "--params", "ownloss:shapes", "--numeric"],
        "leaf 'head' is only a shape",
    ),
    "needs arguments": (
        [*("certify", *OWN[:2]), "ownloss:loss", "--numeric"],
        "missing 2 required",
    ),
    "no loss for numbers": (["lint", "mask.json", *OWN[1:], "--numeric"], "needs the loss too"),
    "no axis": (["certify", *OWN, "--why", "w", "--axis", "2"], "it has no axis 2"),
    "no leaf": (["certify", *OWN, "--why", "x"], "there is no leaf 'x'"),
    "module": (["certify", "nowhere:loss", *OWN[1:]], "there is no module 'nowhere'"),
    "needy": (["certify", "needy:loss", *OWN[1:]], "'needy' needs another: No module named 'not_"),
    "form": (["certify", "ownloss", *OWN[1:]], "expected MODULE:NAME, as in train:loss, got"),
    "name": (["certify", "ownloss:los", *OWN[1:]], "no 'los'; did you mean 'loss'?"),
    "function": (["certify", "ownloss:shapes", *OWN[1:]], "is no function, but of type tuple"),
    "scalar": (["certify", "ownloss:vector", *OWN[1:]], "must return a floating scalar"),
    "untraceable": (["certify", "ownloss:fails", *OWN[1:]], "the loss could not be traced"),
    "arguments": ([*("certify", *OWN[:2]), "ownloss:loss"], "missing 2 required"),
    "values": ([*("certify", *OWN[:2]), "ownloss:looks"], "not look at their values"),
    "text": ([*("certify", *OWN[:2]), "ownloss:text"], "return arrays"),
    "folder": (["certify", *OWN, "--json", "no/file"], "cannot write 'no/file': No such file"),
    "device": (["certify", *OWN, "--json", "/dev/null"], "something else than a file"),
    "no treatment": (["lint", "no.json", *OWN], "cannot read 'no.json': No such file"),
    "bad treatment": (["lint", "list.json", *OWN], "'list.json': expected an object"),
    "bad groups": (["lint", "mask.json", *OWN, "--groups", "list.json"], "'list.json': expected"),
    "leaf": (["lint", "other.json", *OWN], "there is no leaf 'no/thing'"),
    "mask": (["lint", "mask.json", *OWN], "told True, which could mean anything"),
    "no loss": (["lint", "mask.json", *OWN[1:]], "a proof needs the loss too"),
}


@pytest.mark.parametrize(("args", "message"), BAD_PROOFS.values(), ids=BAD_PROOFS)
def test_a_bad_proof_is_one_clear_error_and_nothing_is_written(args, message, own, capsys):
    before = {path for path in own.iterdir() if path.name != "__pycache__"}
    printed = fails(capsys, *args)
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert {path for path in own.iterdir() if path.name != "__pycache__"} == before


def test_a_fault_of_theirs_keeps_its_traceback(own):
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["certify", *OWN[:2], "ownloss:broken"])
