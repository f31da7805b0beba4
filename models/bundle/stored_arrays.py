"""Arrays that NumPy keeps in a zip, read whole."""

from __future__ import annotations

import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

# What NumPy and zipfile raise of damaged files. RuntimeError: what looks encrypted, or packed in a way not known.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, TokenError, zlib.error)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays by name; no pickles. Raises one of UNREADABLE."""
    # Opened here: of a damaged zip NumPy leaves the file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
