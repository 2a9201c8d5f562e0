"""Where a result comes from."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bnrate


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a result came from, as attributes: versions, device, command line, config."""
    import jax  # noqa: PLC0415

    package = Path(bnrate.__file__).parent
    return {
        "bnrate": bnrate.__version__,
        "git": _git_revision(package) or "not a git checkout",
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "python": sys.version.split()[0],
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "command": " ".join(sys.argv),
        "config": json.dumps(config),
    }


def _git_revision(folder: Path) -> str:
    """The commit of the checkout that the package lies in, with `-dirty` if it was changed."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
            )
        except OSError:
            return ""
        return done.stdout.strip()

    # An installed package may lie inside somebody else's checkout, which does not track it.
    if not git("ls-files", "__init__.py"):
        return ""
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
