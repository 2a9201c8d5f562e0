"""The README is true: its example runs as it stands, and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bnrate import experiments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_example_prints_what_it_says(tmp_path):
    (code,), (expected,) = blocks("python"), blocks("text")
    (tmp_path / "train.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()


def test_what_it_names_exists():
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for module, name in re.findall(r"`bnrate\.(\w+)\.(\w+)[`(]", README):
        assert hasattr(__import__(f"bnrate.{module}", fromlist=[name]), name), name
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert set(re.findall(r"bnrate run ([a-z]\S+[a-z])", README)) <= set(experiments.EXPERIMENTS)
