"""Installs what we are compared with, each into an environment of its own in .perf/: never beside the product."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.worlds.scoring_world import CACHE


def interpreter_of(name: str, packages: Sequence[str]) -> Path:
    """Return the Python of the environment `name`. Install these packages into it if they are not there yet."""
    folder = CACHE.absolute() / name
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"installing {', '.join(packages)}, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-compile", *packages], check=True)
        (folder / "ready").touch()
    return python
