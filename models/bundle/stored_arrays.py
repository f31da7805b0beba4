"""Read the arrays of a NumPy .npz file."""

from __future__ import annotations

import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.file_state import open_regular

# The exceptions of NumPy and zipfile for damaged files. RuntimeError: encrypted, or compressed in an unknown way.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, TokenError, zlib.error)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns all arrays by name; refuses pickles. Raises one of UNREADABLE."""
    # Opened here, because NumPy does not close a damaged file.
    with open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
