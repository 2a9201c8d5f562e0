import os
import subprocess
import sys

import numpy as np
import pytest
from test_results import dataset

from bnrate import cli, experiments, results

TINY = ["--rates", "0.1", "10", "--seeds", "1", "--steps", "10", "--width", "8", "--batch", "32"]


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The devices are set by the tests; the command line would set them anew.
    monkeypatch.setattr(cli, "_one_device_per_core", lambda: None)
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
    assert cli.report(ds) in printed
    assert list(ds["rate_invariant"].values) == [0.1, 10.0]
    row = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["10"])
    run = ds.sel(rule="sgd-bn", rate_invariant=10)
    assert float(row[1]) == pytest.approx(run["final_loss"].item(), rel=0.01)
    assert float(row[4].rstrip("%")) == pytest.approx(100 * run["test_accuracy"].item(), abs=0.1)
    assert row[5] == "0/1"

    assert "is not empty, it has final_loss.png" in fails(capsys, "run", "separate-rates", *TINY)
    other = ds.assign(final_loss=ds["final_loss"] + 1)
    monkeypatch.setitem(experiments.EXPERIMENTS, "separate-rates", lambda config, progress: other)
    cli.main(["run", "separate-rates", "--overwrite"])
    assert results.load(folder).identical(other)

    (folder / "spheres.png").unlink()
    cli.main(["plot", str(folder)])
    assert (folder / "spheres.png").exists()


BAD = {
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
        report = cli.report(ds)
        assert "0.15" in report
        assert "0.00  (seeds: 0.00 to 0.00)" in report


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_written(args, message, at, capsys):
    printed = fails(capsys, *args)
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not list(at.rglob("*.*"))


def test_a_fault_of_ours_keeps_its_traceback(at, monkeypatch):
    def broken(config, progress):
        return int("not bad input, but a bug")

    monkeypatch.setitem(experiments.EXPERIMENTS, "unified-rate", broken)
    # raised in this file, not in the package: what a fault in a dependency looks like
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["run", "unified-rate"])
    assert not list(at.rglob("*.*"))


def test_interrupted_leaves_nothing(at, monkeypatch):
    def interrupted(config, progress):
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
        "from bnrate import cli; cli._one_device_per_core(); import jax; print(jax.device_count())"
    )
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == devices
