"""Reads a whole mirror in a process of its own: damaged pages end the process that reads them (SIGBUS, SIGSEGV).

    worker ──dies in a look-up──► its place in the mirror is left over
    companion ──frees the place──► `begin` ──► python -m paywarden.scoring.state.mirror_check ──► `damage`

1. Writing finds damage only in the pages that it touches. A worker that meets it elsewhere dies, and so does each one
   that is started in its place. A leftover place of a dead reader is the sign.
2. The process reads every record in order, and compares their number with the mirror's own count.
3. A mirror that it cannot read to the end, or that ends it, is damaged. The companion fills a new one. If anything else
   ends the process, such as a kill, nothing is known.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import lmdb

_log = logging.getLogger(__name__)

# How long after a check the next one may begin: a check reads up to some GB.
_PAUSE_S = 30.0
_TIMEOUT_S = 600.0
_DAMAGED = 3
_OF_DAMAGE = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
_NICENESS = 19


class MirrorCheck:
    """Checks one mirror in the background. Not thread-safe."""

    def __init__(self, path: str, size_mb: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._command = [sys.executable, "-P", "-m", __name__, path, str(size_mb)]
        self._now_s = now_s
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = -_PAUSE_S

    def begin(self) -> None:
        """Begin a check, unless one runs or has run a moment ago."""
        now_s = self._now_s()
        if self._process is not None or now_s - self._began_s < _PAUSE_S:
            return
        self._began_s = now_s
        quiet = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet)
        except OSError as error:
            _log.warning("the mirror cannot be checked: %s", error.strerror)

    def damage(self) -> str:
        """Returns a line about the damage; "" without any, or before it is known. It does not wait."""
        if self._process is None:
            return ""
        status = self._process.poll()
        if status is None:
            if self._now_s() - self._began_s > _TIMEOUT_S:
                self.close()
            return ""
        self._process = None
        if -status in _OF_DAMAGE:
            return f"a process that read all of it was ended by {signal.Signals(-status).name}"
        return "not all of it can be read" if status == _DAMAGED else ""

    def close(self) -> None:
        """End a check that runs. Its result says nothing about the next mirror."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def read_all(path: str, size_mb: int) -> bool:
    """Read a mirror from its first record to its last; returns whether it is whole. Damage may end the process."""
    try:
        with (
            lmdb.open(path, map_size=size_mb << 20, readonly=True, create=False, readahead=False) as environment,
            environment.begin() as transaction,
        ):
            before, count = b"", 0
            for key, value in transaction.cursor():
                if key <= before:
                    return False
                # Touches every byte.
                zlib.crc32(value)
                before, count = key, count + 1
            return count == transaction.stat()["entries"]
    except lmdb.Error:
        return False


if __name__ == "__main__":
    os.nice(_NICENESS)
    sys.exit(0 if read_all(sys.argv[1], int(sys.argv[2])) else _DAMAGED)
