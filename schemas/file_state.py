"""Whether a file has changed since it was looked at.

before = file_state(path)
…
if file_state(path) != before:     replaced, written to, renamed over or removed meanwhile
"""

from __future__ import annotations

import os
from pathlib import Path

FileState = tuple[int, int, int, int]
"""Inode, size, and the times of the last change to content and to inode in ns: what changes with a file."""


def file_state(path: str | Path) -> FileState | None:
    """Returns the state of a file; None if there is none, or it cannot be looked at."""
    try:
        return state_of(os.stat(path))
    except OSError:
        return None


def state_of(status: os.stat_result) -> FileState:
    """Returns the state of a file from its status."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
