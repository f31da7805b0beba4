"""Where profiles are kept: the port that the pipeline writes through, and what every store agrees on.

A key is `entity:id` in bytes, as on the profiles topic: the entity is the part before the first colon, the id
is the rest and may hold anything, colons too. A value is a packed profile, opaque here. The same contract
tests run over all three implementations: memory_store.py, lmdb_store.py and aerospike_store.py. A ProfileStore is one
profile set; profile_sets.py has what there is to several.

A profile has one owner, but an old owner may still be at work when a new one begins. So what is written from
what was read says so, and meets a conflict instead of undoing the other's work:

    1. read_versioned      values, and of each the version it has
    2. write(versions=…)   refused with StoreConflict where a record is no longer at that version
    3. on StoreConflict    from 1 again, with the new values; on StoreUnavailable write again, from 2

A record that already holds the bytes to be written is no conflict. So a write whose answer was lost, and which
may or may not have been done, can be repeated as it is. That asks of values what profiles do: they say which
events they contain, so two owners who mean different events never write the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure

_Item = TypeVar("_Item")

# What LMDB is compiled for, and therefore what a mirror can hold: no store takes a longer key than another.
KEY_BYTES_MAX = 511

# Aerospike takes 1,048,576 bytes a record; the difference is room for its header, the key and the bin's name.
RECORD_BYTES_MAX = 1_000_000

# Aerospike's own limit, ten years.
TTL_S_MAX = 315_360_000

# An entity's name becomes an Aerospike set: at most 63 bytes, and no character that its info protocol uses.
_ENTITY = re.compile(rb"[A-Za-z0-9_-]{1,63}")

# Others who change the same records at the same moment.
_UPDATE_ATTEMPTS_MAX = 20

# The version of a record that is not there.
ABSENT = 0

# Told how many records a scan has handed out, and how many it expects in all, None when the store can't say.
ScanProgress = Callable[[int, int | None], object]


class StoreConflict(TemporaryFailure):
    """Records changed after they were read, so what was made from them was not written: read them again."""


class Versioned(NamedTuple):
    """What a key has, None when there is nothing, and its version: ABSENT then, else opaque and never ABSENT."""

    value: bytes | None
    version: int


@dataclass(frozen=True)
class StoreHealth:
    """True when the store answers now; when it does not, `reason` says why, in one line."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


class ProfileStore(Protocol):
    """Profiles by key. Safe to use from several threads.

    Every call raises StoreUnavailable when the store does not answer within its limits (call again later),
    Misconfigured when trying again cannot help, and InvalidEvent when a key or a value breaks a limit above,
    in which case nothing was written.
    """

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, in the order asked; None where there is none or it has expired."""

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """As `read`, with the versions that a write made from these values hands back."""

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int, versions: Mapping[bytes, int] | None = None) -> None:
        """Replaces each record whole, in one store operation. On return all of them are acknowledged.

        `ttl_s` counts from now; 0 means never expires. A key in `versions` is written only if its record is
        still at that version, or holds these very bytes already; the others are written whatever there is,
        as by a backfill. When it raises StoreUnavailable, some may have been written and some not: write all
        of them again, with the same `versions`. When it raises StoreConflict, the same is true, but writing
        again can't help: read again.
        """

    def delete(self, keys: Sequence[bytes]) -> None:
        """Removes records; a key that has none is fine."""

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Every live (key, value) of one entity, in no promised order. It raises rather than leave a part out.

        Not a snapshot: a record written or removed meanwhile may be in it or not. `progress` is called at the
        start, now and then, and at the end; what it is told to expect is an estimate.
        """

    def health(self) -> StoreHealth:
        """Whether the store answers now. Touches no record and raises nothing; cheap enough for once a second."""

    def close(self) -> None:
        """Lets go of files and connections. Closing twice is fine."""


def split_key(key: bytes) -> tuple[str, bytes]:
    """(entity, id) of a key. Raises InvalidEvent when it is not `entity:id` or is too long."""
    entity, _, identity = key.partition(b":")
    if not identity or not _is_entity(entity):
        raise InvalidEvent("a profile's key must be an entity's name, a colon and an id that is not empty")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidEvent(f"a profile's key has at most {KEY_BYTES_MAX} bytes, got {len(key)}")
    return entity.decode(), identity


@lru_cache(maxsize=256)
def _is_entity(name: bytes) -> bool:
    # Asked for every key of every call, of the same few names.
    return _ENTITY.fullmatch(name) is not None


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


def check_versions(
    values: Mapping[bytes, bytes], versions: Mapping[bytes, int], current: Callable[[bytes], Versioned]
) -> None:
    """Raises StoreConflict unless each record is at its version, or holds what is to be written already."""
    conflict_count = 0
    for key, value in values.items():
        if key in versions:
            found = current(key)
            conflict_count += found.version != versions[key] and found.value != value
    if conflict_count:
        raise conflict(conflict_count, len(values))


def in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The same items in the same order, so many at a time: what a scan gives, for calls that take many."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def conflict(conflict_count: int, record_count: int) -> StoreConflict:
    """The error for a write of `record_count` records of which so many were changed by someone else."""
    return StoreConflict(
        f"{conflict_count} of {record_count} records to be written were changed since they were read: read them again"
    )


def update_records(
    store: ProfileStore, keys: Sequence[bytes], change: Callable[[bytes, bytes | None], bytes | None], *, ttl_s: int
) -> None:
    """Replace each record by what `change` makes of its key and value, None where it is to stay as it is.

    Where others change the same records meanwhile, `change` is asked again about all of them: what it did already it
    must know from the value. Raises StoreUnavailable: call again with the same; StoreConflict when others never stop.
    """
    for _ in range(_UPDATE_ATTEMPTS_MAX):
        found = dict(zip(keys, store.read_versioned(keys), strict=True))
        changed = {key: change(key, one.value) for key, one in found.items()}
        values = {key: value for key, value in changed.items() if value is not None}
        try:
            if values:
                store.write(values, ttl_s=ttl_s, versions={key: found[key].version for key in values})
        except StoreConflict:
            continue
        return
    raise StoreConflict(f"others changed the same records {_UPDATE_ATTEMPTS_MAX} times in a row: try again")
