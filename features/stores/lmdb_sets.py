"""The profile sets of an embedded store: an LMDB directory each, so that two processes write two sets side by side.

.paywarden/store               the first set
.paywarden/store.sets/NAME     a further one
.paywarden/store.sets/live.*   the register: register_file.py
.paywarden/store.sets/_beside  what belongs to no set
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
    """SetStores on LMDB. `settings.path` is where the first set lies."""

    def __init__(self, settings: LmdbSettings) -> None:
        self._settings = settings
        self._folder = Path(f"{Path(settings.path)}.sets")

    def is_there(self) -> bool:
        """Whether anything has been stored at the path."""
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
        """See SetStores. Exact: it goes over all keys."""
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
        """See SetStores. At once, whatever is in it: the files are removed, which also gives the disk its room back.

        A process that still has the set open keeps what it has, and others no longer see it.
        """
        path = self._path(name)
        if progress is not None:
            progress(0, None)
        try:
            # These and no others: the first set's folder is the operator's.
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
