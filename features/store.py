"""Where profiles are kept: the port that the pipeline writes through, and what every store agrees on.

A key is `entity:id` in bytes, as on the profiles topic: the entity is the part before the first colon, the id
is the rest and may hold anything, colons too. A value is a packed profile, opaque here. The same contract
tests run over all three implementations: memory_store.py, lmdb_store.py and aerospike_store.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from schemas.errors import InvalidEvent, Misconfigured

# What LMDB is compiled for, and therefore what a mirror can hold: no store takes a longer key than another.
KEY_BYTES_MAX = 511

# Aerospike takes 1,048,576 bytes a record; the difference is room for its header, the key and the bin's name.
RECORD_BYTES_MAX = 1_000_000

# Aerospike's own limit, ten years.
TTL_S_MAX = 315_360_000

# An entity's name becomes an Aerospike set: at most 63 bytes, and no character that its info protocol uses.
_ENTITY = re.compile(rb"[A-Za-z0-9_-]{1,63}")


class ProfileStore(Protocol):
    """Profiles by key. Safe to use from several threads.

    Every call raises StoreUnavailable when the store does not answer within its limits (call again later),
    Misconfigured when trying again cannot help, and InvalidEvent when a key or a value breaks a limit above,
    in which case nothing was written.
    """

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, in the order asked; None where there is none or it has expired."""

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int) -> None:
        """Replaces each record whole, in one store operation. On return all of them are acknowledged.

        `ttl_s` counts from now; 0 means never expires. When it raises StoreUnavailable, some may have been
        written and some not: write all of them again.
        """

    def delete(self, keys: Sequence[bytes]) -> None:
        """Removes records; a key that has none is fine."""

    def scan(self, entity: str) -> Iterator[tuple[bytes, bytes]]:
        """Every live (key, value) of one entity, in no promised order.

        Not a snapshot: a record written or removed meanwhile may be in it or not.
        """

    def close(self) -> None:
        """Lets go of files and connections. Closing twice is fine."""


def split_key(key: bytes) -> tuple[str, bytes]:
    """(entity, id) of a key. Raises InvalidEvent when it is not `entity:id` or is too long."""
    entity, _, identity = key.partition(b":")
    if not identity or _ENTITY.fullmatch(entity) is None:
        raise InvalidEvent("a profile's key must be an entity's name, a colon and an id that is not empty")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidEvent(f"a profile's key has at most {KEY_BYTES_MAX} bytes, got {len(key)}")
    return entity.decode(), identity


def join_key(entity: str, identity: bytes) -> bytes:
    """The key that `split_key` takes apart."""
    return entity.encode() + b":" + identity


def entity_of(key: bytes) -> str:
    """The entity's name in a key. Raises InvalidEvent as `split_key` does."""
    return split_key(key)[0]


def check_record(key: bytes, value: bytes, *, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
    """Raises InvalidEvent when a store would refuse this record, so that a caller can set just it aside."""
    entity, _ = split_key(key)
    if len(value) > record_bytes_max:
        raise InvalidEvent(
            f"a {entity} profile of {len(value)} bytes is over the limit of {record_bytes_max} (record_bytes_max)"
        )


def check_write(values: Mapping[bytes, bytes], *, ttl_s: int, record_bytes_max: int) -> None:
    """What every store checks before it writes anything. Raises InvalidEvent or Misconfigured."""
    if not 0 <= ttl_s <= TTL_S_MAX:
        raise Misconfigured(f"ttl_s must be between 0 (never expires) and {TTL_S_MAX} seconds, got {ttl_s}")
    for key, value in values.items():
        check_record(key, value, record_bytes_max=record_bytes_max)
