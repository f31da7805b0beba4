"""Files that take long to make: one process of a run makes them, and every process of the run uses them."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow as pa

VARIABLE = "PAYWARDEN_TEST_SHARED"
"""Names the folder of a run. tests/conftest.py sets it, and removes the folder at the end of the run."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Returns the path `name` in the run's folder. The first caller makes it: `make(path)`. Do not change its files.

    A `make` that raises leaves nothing behind, and the next caller tries again.
    """
    home = run_folder()
    made = home / name
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                unfinished = Path(scratch) / name
                make(unfinished)
                unfinished.rename(made)
    return made


def tables_made_once(name: str, make: Callable[[], tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    """Returns the two tables that `make` gave in the process that came first."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for number, table in enumerate(make()):
            with pa.OSFile(str(folder / str(number)), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

    def read(path: Path) -> pa.Table:
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all()

    folder = made_once(name, write)
    return read(folder / "0"), read(folder / "1")


@cache
def run_folder() -> Path:
    """Returns the folder that all processes of a run share. A process outside any run has one of its own."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(tempfile.mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
