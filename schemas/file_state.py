"""Whether a file has changed since it was looked at.

before = file_state(path)
…
if file_state(path) != before:     replaced, written to, renamed over or removed meanwhile
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, BufferedWriter
from pathlib import Path

CONFIGURED_BYTES_MAX = 64 << 20
"""The largest file of settings, rates or keys. A larger one is no such file, and would fill the memory."""

# The mode with which `open` makes a file: the process's umask takes permissions away.
_NEW_MODE = 0o666

FileState = tuple[int, int, int, int]
"""Inode, size, and the times of the last change to content and to inode in ns: they change with a file."""


def file_state(path: str | Path) -> FileState | None:
    """Returns the state of a file; None if there is none, or it cannot be looked at."""
    try:
        return state_of(os.stat(path))
    except (OSError, ValueError):
        # ValueError: no file can have this name, which holds a zero byte.
        return None


def file_at(path: Path) -> tuple[int, int] | None:
    """Returns the device and inode of the file at a path: another file has others. None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, also for anything but a regular file.

    A named pipe that nobody writes to would be waited for without end, and a device read without end.
    """
    return open(_regular(path, os.O_RDONLY), "rb")


def open_lock(path: str | Path) -> BufferedWriter:
    """Open the file that a lock is on, made if it is missing. Raises OSError, also for anything but a regular file."""
    return open(_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab")


def read_regular(path: str | Path, bytes_max: int | None = CONFIGURED_BYTES_MAX) -> bytes:
    """Returns a file's content. Raises OSError, also for anything but a regular file, or over `bytes_max` bytes.

    `bytes_max` None: any size.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if bytes_max is not None and size > bytes_max:
            raise OSError(errno.EFBIG, f"it has {size} bytes, wanted at most {bytes_max}", str(path))
        return file.read()


def state_of(status: os.stat_result) -> FileState:
    """Returns the state of a file from its status."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _regular(path: str | Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, _NEW_MODE)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))
