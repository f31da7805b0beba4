"""The register of profile sets in a file, next to an embedded store.

It is a file and not LMDB, since every process of the host reads it and several may change it. A reader of a file needs
no slot, no lock and no right to write, and may open it twice in one process. A change replaces the whole file:

1. lock       live.lock, so that comparing and replacing are one step among the processes of this host; the lock ends
              with its process
2. compare    the version, a digest of the bytes
3. write      live.json.new, synced to disk
4. rename     it to live.json: a reader sees the old bytes or the new ones
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paywarden.features.stores.base import ABSENT, RegisterUnreadable, StoreConflict, Versioned
from paywarden.schemas.durability import sync_folder, write_synced
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable
from paywarden.schemas.file_state import open_lock, read_regular
from paywarden.schemas.private_files import make_private_folder

_FILE, _LOCK_FILE = "live.json", "live.lock"
# A change takes milliseconds, mostly for syncing.
_LOCK_TIMEOUT_S = 10.0
_LOCK_RETRY_S = 0.005
_VERSION_BYTES = 8


class FileRegister:
    """A RegisterStore in a folder, which the first change makes. Safe to use from several processes."""

    def __init__(self, folder: str | os.PathLike[str], *, lock_timeout_s: float = _LOCK_TIMEOUT_S) -> None:
        self._folder = Path(folder)
        self._lock_timeout_s = lock_timeout_s

    def read(self) -> Versioned:
        """See RegisterStore. Opens and reads one small file."""
        try:
            value = read_regular(self._folder / _FILE)
        except FileNotFoundError:
            self._require_new()
            return Versioned(None, ABSENT)
        except OSError as error:
            raise self._error("read", error) from error
        digest = hashlib.blake2b(value, digest_size=_VERSION_BYTES).digest()
        return Versioned(value, int.from_bytes(digest, "little") or ABSENT + 1)

    def replace(self, value: bytes, version: int) -> None:
        """See RegisterStore. On return the change is on disk."""
        try:
            self._make_folder()
            with self._locked():
                found = self.read()
                if found.version == version:
                    self._write(value)
                elif found.value != value:
                    raise StoreConflict("the register of profile sets was changed since it was read: read it again")
        except OSError as error:
            raise self._error("write", error) from error

    def close(self) -> None:
        """See RegisterStore. There is nothing to close."""

    def _require_new(self) -> None:
        """Raise RegisterUnreadable if there was a register: a set is entered before its folder is made.

        Without this the first set would be live again, whichever was.
        """
        with suppress(FileNotFoundError):
            sets = sorted(path.name for path in self._folder.iterdir() if path.is_dir() and path.name[0] not in "._")
            if sets:
                raise RegisterUnreadable(
                    f"the register of profile sets in {self._folder} is gone, and the sets {', '.join(sets)} are "
                    "there: put it back from a backup"
                )

    def _make_folder(self) -> None:
        if not self._folder.is_dir():
            make_private_folder(self._folder)
            sync_folder(self._folder.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + self._lock_timeout_s
        with open_lock(self._folder / _LOCK_FILE) as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise StoreUnavailable(
                            f"another process has been changing the register of profile sets in {self._folder} for "
                            f"{self._lock_timeout_s:g} s"
                        ) from error
                time.sleep(_LOCK_RETRY_S)
            # Closing the file releases the lock.
            yield

    def _write(self, value: bytes) -> None:
        # Only the holder of the lock writes this file. It overwrites what a killed process may have left.
        write_synced(self._folder / _FILE, value)

    def _error(self, action: str, error: OSError) -> PaywardenError:
        line = f"cannot {action} the register of profile sets in {self._folder}: {error.strerror}"
        if isinstance(error, IsADirectoryError):
            return RegisterUnreadable(line)
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            return Misconfigured(line)
        return StoreUnavailable(line)
