"""The interface through which the pipeline stores profiles, and the rules that every store keeps.

A key is `entity:id` in bytes, as on the profiles topic. The entity is the part before the first colon; the id is the
rest and may hold any bytes, colons too: b"card:C1". A value is a packed profile, opaque here. The same contract tests
run over all three implementations: memory.py, lmdb.py and aerospike/store.py. A ProfileStore is one profile set;
profile_sets.py handles several.

A profile has one owner, but an old owner may still be at work when a new one begins. Therefore a write names the
versions that it read (compare-and-set). It meets a conflict instead of undoing the other owner's work:

    1. read_versioned      returns the values and the version of each
    2. write(versions=…)   raises StoreConflict if a record is no longer at that version
    3. on StoreConflict    go to 1, with the new values; on StoreUnavailable go to 2 and write again

A record that already holds the bytes to be written is no conflict. Therefore a caller can repeat a write whose answer
was lost. This requires that two owners with different events never write the same bytes. Profiles meet this
requirement, since they say which events they contain.

A read alone acknowledges nothing: a node that is cut off from its cluster reads back a write of its own that no other
node has. If a caller finds its change in a record already, it writes the record once more, as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure

_Item = TypeVar("_Item")

# LMDB is compiled for this length, so a mirror can hold no longer key. All stores have the same limit.
KEY_BYTES_MAX = 511

# Aerospike accepts records of 1,048,576 bytes. The difference leaves room for the header, the key and the bin's name.
RECORD_BYTES_MAX = 1_000_000

# Aerospike's own limit, ten years.
TTL_S_MAX = 315_360_000

# An entity's name becomes an Aerospike set: at most 63 bytes, and no character that its info protocol uses.
_ENTITY = re.compile(rb"[A-Za-z0-9_-]{1,63}")

# How often `update_records` tries again while other processes change the same records.
_UPDATE_ATTEMPTS_MAX = 20

# How long records live, in seconds: all of a write, or each by its key.
TtlS = int | Mapping[bytes, int]

# The version of a missing record.
ABSENT = 0

# Gets the number of records that a scan has returned, and the expected total: None if the store cannot tell.
ScanProgress = Callable[[int, int | None], object]


class StoreConflict(TemporaryFailure):
    """Records changed after they were read, so nothing based on them was written. Read them again."""


class RegisterUnreadable(Misconfigured):
    """The register of profile sets is damaged or gone. Nobody can change it, so a process that knows it may go on."""


class Versioned(NamedTuple):
    """The value of a key and its version. A missing record has None and ABSENT; any other version is opaque."""

    value: bytes | None
    version: int


@dataclass(frozen=True)
class StoreHealth:
    """True if the store answers now. Otherwise `reason` says in one line why not.

    `why_hidden` says why acknowledged records may read as absent; empty if none do.
    """

    reason: str = ""
    why_hidden: str = ""

    def __bool__(self) -> bool:
        return not self.reason


class ProfileStore(Protocol):
    """Profiles by key. Safe to use from several threads.

    Every call raises StoreUnavailable when the store does not answer within its limits (call again later),
    Misconfigured when trying again cannot help, and InvalidEvent when a key or a value breaks a limit above,
    in which case nothing was written.
    """

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the value of each key, in the order of `keys`; None for a missing or expired record."""

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """Returns the values as `read` does, with their versions. A write based on these values passes the versions."""

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """Replace whole records, each in one store operation. On return the store has acknowledged all of them.

        `ttl_s` counts from now, for all records or by key; 0 means that a record never expires. A key in `versions`
        is written only if its record is still at that version, or already holds these bytes. Other keys are written
        unconditionally, as a backfill does. After StoreUnavailable, some records may have been written: write all of
        them again, with the same `versions`. After StoreConflict, some may have been written too, but only reading
        again can help.
        """

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove records. A key without a record is no error."""

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield every live (key, value) of one entity, in any order. A scan that misses a part raises an error.

        It is no snapshot: it may or may not contain a record that is written or removed meanwhile. `progress` is
        called at the start, now and then, and at the end; the expected total is an estimate.
        """

    def health(self) -> StoreHealth:
        """Returns whether the store answers now. Touches no record, raises nothing, and may be called every second."""

    def close(self) -> None:
        """Close files and connections. Closing twice is no error."""


def split_key(key: bytes) -> tuple[str, bytes]:
    """Returns (entity, id) of a key. Raises InvalidEvent if it is not `entity:id` or is too long."""
    entity, _, identity = key.partition(b":")
    name = _entity_named(entity)
    if not identity or not name:
        raise InvalidEvent("a profile's key must be an entity's name, a colon and an id that is not empty")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidEvent(f"a profile's key has at most {KEY_BYTES_MAX} bytes, got {len(key)}")
    return name, identity


@lru_cache(maxsize=256)
def _entity_named(name: bytes) -> str:
    """Returns an entity's name as text, empty if none may have this one."""
    # Every key of every call needs this check, for the same few names.
    return name.decode() if _ENTITY.fullmatch(name) is not None else ""


def join_key(entity: str, identity: bytes) -> bytes:
    """Returns the key that `split_key` splits."""
    return entity.encode() + b":" + identity


def entity_of(key: bytes) -> str:
    """Returns the entity's name in a key. Raises InvalidEvent as `split_key` does."""
    return split_key(key)[0]


def check_record(key: bytes, value: bytes, *, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
    """Raises InvalidEvent if a store would refuse this record, so that a caller can set aside just this one."""
    entity, _ = split_key(key)
    if len(value) > record_bytes_max:
        raise InvalidEvent(
            f"a {entity} profile of {len(value)} bytes is over the limit of {record_bytes_max} (record_bytes_max)"
        )


def check_write(values: Mapping[bytes, bytes], *, ttl_s: TtlS, record_bytes_max: int) -> None:
    """Check the limits of every store before a write. Raises InvalidEvent or Misconfigured."""
    for seconds in different_ttls(ttl_s):
        if not 0 <= seconds <= TTL_S_MAX:
            raise Misconfigured(f"ttl_s must be between 0 (never expires) and {TTL_S_MAX} seconds, got {seconds}")
    for key, value in values.items():
        split_key(key)
        if len(value) > record_bytes_max:
            check_record(key, value, record_bytes_max=record_bytes_max)


def different_ttls(ttl_s: TtlS) -> Set[int]:
    """Returns the times to live of a write, each once."""
    return {ttl_s} if isinstance(ttl_s, int) else set(ttl_s.values())


def check_versions(
    values: Mapping[bytes, bytes], versions: Mapping[bytes, int], current: Callable[[bytes], Versioned]
) -> None:
    """Raises StoreConflict unless each record is at its version, or already holds the bytes to be written."""
    conflict_count = 0
    for key, value in values.items():
        if key in versions:
            found = current(key)
            conflict_count += found.version != versions[key] and found.value != value
    if conflict_count:
        raise conflict(conflict_count, len(values))


def in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield the same items in the same order, in lists of at most `size`."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def conflict(conflict_count: int, record_count: int) -> StoreConflict:
    """Returns the error for a write of `record_count` records, `conflict_count` of them changed by someone else."""
    return StoreConflict(
        f"{conflict_count} of {record_count} records to be written were changed since they were read: read them again"
    )


def update_records(
    store: ProfileStore, keys: Sequence[bytes], change: Callable[[bytes, bytes | None], bytes | None], *, ttl_s: int
) -> None:
    """Replace each record by the result of `change(key, value)`; None leaves its bytes as they are.

    If others change the same records meanwhile, `change` is called again for all of them. It must see from the value
    which changes it has made already. A record that stays as it is is written, too: the change may be in it, and
    nobody have acknowledged it. Raises StoreUnavailable, after which the same call may be repeated, and StoreConflict
    if others never stop.
    """
    for _ in range(_UPDATE_ATTEMPTS_MAX):
        current = dict(zip(keys, store.read_versioned(keys), strict=True))
        values = {}
        for key, (found, _) in current.items():
            changed = change(key, found)
            value = found if changed is None else changed
            if value is not None:
                values[key] = value
        try:
            if values:
                store.write(values, ttl_s=ttl_s, versions={key: current[key].version for key in values})
        except StoreConflict:
            continue
        return
    raise StoreConflict(f"others changed the same records {_UPDATE_ATTEMPTS_MAX} times in a row: try again")
