"""The files of tables that the processes of a host share: allocated whole, recognised by how they begin.

head, an array of int64: the kind of table, its sizes, a hash of the id of the boot │ the table, zeros at first
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular
from paywarden.schemas.private_files import make_parent, open_private


def prepare_file(path: Path, head: NDArray[np.int64], size: int, what: str) -> None:
    """Make a file of `size` bytes that begins with `head`, unless there is one. Raises Misconfigured."""
    try:
        make_parent(path)
        if _has_form(path, head, size):
            return
        new = path.with_name(path.name + ".new")
        with os.fdopen(open_private(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), "wb") as file:
            # Allocate now: if the file system had no room for a page later, touching it would kill the worker.
            os.posix_fallocate(file.fileno(), 0, size)
            file.write(head.tobytes())
        new.replace(path)
    except OSError as error:
        raise Misconfigured(f"{what}: {error.strerror} (it needs {size >> 20} MiB)") from error


def _has_form(path: Path, head: NDArray[np.int64], size: int) -> bool:
    """Whether there is a file of `size` bytes that begins with `head`. Raises OSError."""
    if not path.exists() or path.stat().st_size != size:
        return False
    with open_regular(path) as file:
        return file.read(head.nbytes) == head.tobytes()
