"""Reads the state of drift counts and of outcomes from the store, and sets a damaged record aside.

    drift:five:3:17             damaged     ─►   drift:unreadable:five:3:17   its bytes, for 30 days
    drift:five:3:17             counts as missing, at the version that it has: the next save replaces it

Without this, one damaged record would end each worker that gets the partition, again and again. The calling code
handles a missing record already: it starts again. The record's content is lost to counts and measures; profiles and
payments are elsewhere.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter

from paywarden.features.stores.base import ProfileStore, ScanProgress, StoreHealth, TtlS, Versioned
from paywarden.schemas.errors import InvalidEvent

_log = logging.getLogger(__name__)

_KEPT_S = 30 * 86_400
# Errors of decoding bytes that are no record: from JSON, from struct, and from missing fields.
_ERRORS = (ArithmeticError, AttributeError, IndexError, InvalidEvent, KeyError, RecursionError, TypeError, ValueError)

Check = Callable[[bytes], object]
"""Decodes a stored record; raises any error for bytes that are none."""


class SetAsideState:
    """Counts the records of state that were set aside, by the first part of their keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "paywarden_state_set_aside",
            "Damaged records of drift counts and of outcomes that were set aside, with the state started again.",
            ["kind"],
            registry=registry,
        )
        for kind in ("drift", "outcomes"):
            self._count.labels(kind)

    def note(self, kind: str) -> None:
        self._count.labels(kind).inc()


class CheckedState:
    """A ProfileStore whose damaged records of certain keys are missing. Thread-safe if `store` is."""

    def __init__(self, store: ProfileStore, checks: Mapping[bytes, Check], set_aside: SetAsideState) -> None:
        """`checks`: the decoder of a record, by the beginning of its key."""
        self._store, self._checks, self._set_aside = store, checks, set_aside

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore."""
        return [self._checked(key, value) for key, value in zip(keys, self._store.read(keys), strict=True)]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """See ProfileStore. A damaged record has its version and no value, so a write that names it replaces it."""
        found = self._store.read_versioned(keys)
        return [
            Versioned(self._checked(key, value), version) for key, (value, version) in zip(keys, found, strict=True)
        ]

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """See ProfileStore."""
        self._store.write(values, ttl_s=ttl_s, versions=versions)

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore."""
        self._store.delete(keys)

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore. Checks nothing."""
        return self._store.scan(entity, progress=progress)

    def health(self) -> StoreHealth:
        """See ProfileStore."""
        return self._store.health()

    def close(self) -> None:
        """See ProfileStore."""
        self._store.close()

    def _checked(self, key: bytes, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        for beginning, check in self._checks.items():
            if key.startswith(beginning):
                try:
                    check(value)
                except (*_ERRORS, struct.error) as error:
                    self._keep(key, value, error)
                    return None
                return value
        return value

    def _keep(self, key: bytes, value: bytes, error: Exception) -> None:
        kind, _, rest = key.partition(b":")
        # These keys hold partitions, times and slots, and no one's id.
        _log.error("%s is damaged (%s): set aside, and started again", key.decode(), type(error).__name__)
        self._store.write({kind + b":unreadable:" + rest: value}, ttl_s=_KEPT_S)
        self._set_aside.note(kind.decode())
