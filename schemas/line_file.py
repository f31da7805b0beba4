"""A file of lines that grows at its end and nowhere else, with one writer at a time.

    with file.locked():                    the lock is on PATH.lock, so that the file itself may be replaced
        content = file.path.read_bytes()
        file.append(whole, b"line\\n")      durable when it returns: the file, and its folder if the file is new

A writer that is killed leaves the beginning of a line. The reader decides what that means, and tells `append` how
many bytes are whole: `append` cuts off the rest.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import make_parent, open_private

# An append takes milliseconds: a process that holds the lock for longer hangs.
LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.02


class FileUnwritable(Misconfigured):
    """The file cannot be written now: its disk is full, for example. Nothing was written."""


@dataclass(frozen=True)
class LineFile:
    """The file at `path`, for its user alone. It need not exist."""

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer. Raises Misconfigured if the lock cannot be had within LOCK_TIMEOUT_S, FileUnwritable."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            make_parent(self.path)
            descriptor = open_private(lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise FileUnwritable(f"cannot write {lock}: {error.strerror}") from error
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Misconfigured(
                            f"another process has held {lock} for {LOCK_TIMEOUT_S:g} s: see which with `fuser {lock}`"
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def append(self, whole: int, lines: bytes) -> None:
        """Put lines behind the first `whole` bytes, durably, under the lock. Raises FileUnwritable.

        After an error the file holds the first `whole` bytes and no more.
        """
        is_new = not self.path.exists()
        try:
            descriptor = open_private(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if os.fstat(descriptor).st_size != whole:
                # Only then: truncating gives up the space that is reserved behind the end.
                os.ftruncate(descriptor, whole)
            try:
                _write_all(descriptor, lines)
                os.fsync(descriptor)
                if is_new:
                    sync_folder(self.path.parent)
            except OSError:
                # Bytes that were not synced do not count: no reader may take them for a line.
                os.ftruncate(descriptor, whole)
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            os.close(descriptor)

    def replace(self, lines: bytes) -> None:
        """Put lines in the place of all others, whole or not at all, under the lock. Raises FileUnwritable."""
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            new.unlink(missing_ok=True)
            descriptor = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(descriptor, "wb") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> FileUnwritable:
        return FileUnwritable(f"cannot write {self.path}: {error.strerror}")


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
