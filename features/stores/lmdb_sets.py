"""The profile sets of an embedded store. Each is an LMDB directory, so that two processes can write two sets at once.

.paywarden/store               the first set
.paywarden/store.sets/NAME     a further set
.paywarden/store.sets/live.*   the register: register_file.py
.paywarden/store.sets/_beside  records that belong to no set
"""

from __future__ import annotations

import dataclasses
from contextlib import closing, suppress
from pathlib import Path

from paywarden.features.stores.base import ScanProgress
from paywarden.features.stores.lmdb import DATA_FILE, LmdbSettings, LmdbStore
from paywarden.features.stores.profile_sets import FIRST, check_name
from paywarden.features.stores.register_file import FileRegister
from paywarden.schemas.errors import StoreUnavailable

_LOCK_FILE = "lock.mdb"
# No name of a profile set has an underscore.
_BESIDE = "_beside"


class LmdbSets:
    """SetStores on LMDB. `settings.path` is the directory of the first set."""

    def __init__(self, settings: LmdbSettings) -> None:
        self._settings = settings
        self._folder = Path(f"{Path(settings.path)}.sets")

    def is_there(self) -> bool:
        """Returns whether anything has been stored at the path."""
        return (self._path(FIRST) / DATA_FILE).exists() or self._folder.is_dir()

    def open(self, name: str, *, readonly: bool = False) -> LmdbStore:
        """See SetStores."""
        settings = dataclasses.replace(self._settings, path=str(self._path(name)))
        return LmdbStore.from_settings(settings, readonly=readonly)

    def open_register(self) -> FileRegister:
        """See SetStores."""
        return FileRegister(self._folder)

    def open_beside(self, *, readonly: bool = False) -> LmdbStore:
        """See SetStores. LMDB lets one process write at a time."""
        settings = dataclasses.replace(self._settings, path=str(self._folder / _BESIDE))
        return LmdbStore.from_settings(settings, readonly=readonly)

    def counts(self, name: str) -> dict[str, int]:
        """See SetStores. The counts are exact: it reads all keys."""
        if not (self._path(name) / DATA_FILE).exists():
            return {}
        with closing(self.open(name, readonly=True)) as store:
            return store.counts()

    def erase(
        self,
        name: str,
        *,
        records_per_second: int = 0,  # noqa: ARG002 - it does not go record by record
        progress: ScanProgress | None = None,
    ) -> None:
        """See SetStores. Removes the files at once, which also frees the disk space.

        A process that still has the set open keeps its records. Other processes no longer see the set.
        """
        path = self._path(name)
        if progress is not None:
            progress(0, None)
        try:
            # Only these two files, since the first set's folder belongs to the operator.
            for file in (DATA_FILE, _LOCK_FILE):
                (path / file).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise StoreUnavailable(f"cannot remove the LMDB store at {path}: {error.strerror}") from error
        with suppress(OSError):
            path.rmdir()

    def _path(self, name: str) -> Path:
        if name == FIRST:
            return Path(self._settings.path)
        check_name(name)
        return self._folder / name
