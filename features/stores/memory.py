"""Profile stores in dictionaries, one for each profile set: for tests, and for replays that store nothing."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock

from paywarden.features.stores.base import (
    ABSENT,
    RECORD_BYTES_MAX,
    ScanProgress,
    StoreHealth,
    TtlS,
    Versioned,
    check_versions,
    check_write,
    different_ttls,
    entity_of,
)
from paywarden.features.stores.profile_sets import FIRST, StoredRegister, check_name, erase_records

_NOTHING = Versioned(None, ABSENT)


class MemoryStore:
    """A ProfileStore that ends with the process. `clock` gives epoch seconds and decides what has expired."""

    def __init__(self, *, clock: Callable[[], float] = time.time, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._clock = clock
        self._record_bytes_max = record_bytes_max
        # Value, when it expires (None for never), and version.
        self._records: dict[bytes, tuple[bytes, float | None, int]] = {}
        self._next_version = itertools.count(ABSENT + 1)
        self._lock = Lock()

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore."""
        return [value for value, _ in self.read_versioned(keys)]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """See ProfileStore."""
        for key in keys:
            entity_of(key)
        now = self._clock()
        with self._lock:
            return [self._live(key, now) for key in keys]

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """See ProfileStore. Writes all records or none."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._record_bytes_max)
        now = self._clock()
        expires = {seconds: now + seconds if seconds else None for seconds in different_ttls(ttl_s)}
        with self._lock:
            check_versions(values, versions or {}, lambda key: self._live(key, now))
            records, versions_of = self._records, self._next_version
            for key, value in values.items():
                ttl = ttl_s if isinstance(ttl_s, int) else ttl_s[key]
                records[key] = (bytes(value), expires[ttl], next(versions_of))

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore."""
        for key in keys:
            entity_of(key)
        with self._lock:
            for key in keys:
                self._records.pop(key, None)

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore. Reports progress at the start and at the end."""
        prefix = entity.encode() + b":"
        with self._lock:
            keys = [key for key in self._records if key.startswith(prefix)]
        count = 0
        if progress is not None:
            progress(count, len(keys))
        for key in keys:
            with self._lock:
                value, _ = self._live(key, self._clock())
            if value is not None:
                count += 1
                yield key, value
        if progress is not None:
            progress(count, len(keys))

    def counts(self) -> dict[str, int]:
        """Returns the number of live records of each kind (card, payment, …)."""
        now = self._clock()
        with self._lock:
            live = [key for key in self._records if self._live(key, now).value is not None]
        return dict(Counter(map(entity_of, live)))

    def health(self) -> StoreHealth:
        """See ProfileStore. It always answers."""
        return StoreHealth()

    def close(self) -> None:
        """See ProfileStore."""

    def _live(self, key: bytes, now: float) -> Versioned:
        record = self._records.get(key)
        if record is None:
            return _NOTHING
        value, expires, version = record
        return _NOTHING if expires is not None and expires <= now else Versioned(value, version)


class MemorySets:
    """SetStores that end with the process. Opening a set again gives the same store."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._stores: dict[str, MemoryStore] = {}
        self._register, self._beside = MemoryStore(clock=clock), MemoryStore(clock=clock)
        self._lock = Lock()

    def open(self, name: str, *, readonly: bool = False) -> MemoryStore:  # noqa: ARG002 - nothing to open it for
        """See SetStores."""
        if name != FIRST:
            check_name(name)
        with self._lock:
            return self._stores.setdefault(name, MemoryStore(clock=self._clock))

    def open_register(self) -> StoredRegister:
        """See SetStores."""
        return StoredRegister(self._register)

    def open_beside(self, *, readonly: bool = False) -> MemoryStore:  # noqa: ARG002 - nothing to open it for
        """See SetStores."""
        return self._beside

    def counts(self, name: str) -> dict[str, int]:
        """See SetStores."""
        return self.open(name).counts()

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        """See SetStores. Removes record by record."""
        store = self.open(name)
        erase_records(store, store.counts, records_per_second=records_per_second, progress=progress)
