"""An earlier release of the product, built from a commit of this repository, and run beside this one."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.checkout import CHECKOUT

# Built once, at a path that stays: what numba compiles for it is found again by path.
_FOLDER = CHECKOUT / ".perf" / "releases"


class NoSuchRelease(Exception):
    """The commit is not in this checkout, or cannot be built here."""


def built_release(commit: str) -> Path:
    """Build the release of a commit, unless it is there. Returns what PYTHONPATH has to name for `-m paywarden`.

    Its dependencies are those of this environment. Raises NoSuchRelease, as for a clone without history.
    """
    packages = _FOLDER / _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    if packages.is_dir():
        return packages
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as name:
        source, made = Path(name) / "source", Path(name) / "packages"
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
            archive.extractall(source, filter="data")
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile"]
        pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(made), str(source)]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoSuchRelease(f"{commit} cannot be built: {done.stderr.strip()[-500:]}")
        shutil.move(made, packages)
    return packages


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise NoSuchRelease("git is not installed") from error
    if done.returncode != 0:
        raise NoSuchRelease(f"git {arguments[0]} in this checkout: {done.stderr.decode().strip()}")
    return done.stdout
