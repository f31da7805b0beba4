"""The profile store in a dictionary: for tests and for replays that keep nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock

from features.store import RECORD_BYTES_MAX, check_write, entity_of


class MemoryStore:
    """A ProfileStore that ends with the process. `clock` gives epoch seconds and decides what has expired."""

    def __init__(self, *, clock: Callable[[], float] = time.time, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._clock = clock
        self._record_bytes_max = record_bytes_max
        # Value, and when it expires; None for never.
        self._records: dict[bytes, tuple[bytes, float | None]] = {}
        self._lock = Lock()

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore."""
        for key in keys:
            entity_of(key)
        now = self._clock()
        with self._lock:
            return [self._live(key, now) for key in keys]

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int) -> None:
        """See ProfileStore."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._record_bytes_max)
        expires = self._clock() + ttl_s if ttl_s else None
        with self._lock:
            self._records.update((key, (bytes(value), expires)) for key, value in values.items())

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore."""
        for key in keys:
            entity_of(key)
        with self._lock:
            for key in keys:
                self._records.pop(key, None)

    def scan(self, entity: str) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore."""
        prefix = entity.encode() + b":"
        with self._lock:
            keys = [key for key in self._records if key.startswith(prefix)]
        for key in keys:
            with self._lock:
                value = self._live(key, self._clock())
            if value is not None:
                yield key, value

    def close(self) -> None:
        """See ProfileStore."""

    def _live(self, key: bytes, now: float) -> bytes | None:
        value, expires = self._records.get(key, (None, None))
        return None if expires is not None and expires <= now else value
