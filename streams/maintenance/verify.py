"""Compare the profile store with the changelog, its independent copy, after a possible loss of acknowledged writes.

A worker writes a profile to the store first, then to the changelog. The changelog is read first here, then the store.
Therefore a store that lost nothing never has an older profile than was read. A profile says up to which offset it
contains each source partition, and that decides:

    last record on the changelog      in the store                             verdict
    a state                           the same bytes, or no older offset       whole
    a state                           no newer offset, some older; or nothing  lost      --repair writes the state back
    a state                           some older offsets, some newer           mixed     only a rebuild can help
    a state whose time is over        nothing                                  whole     it expired
    a tombstone                       a profile, twice in a row                returned  forget it again

No comparison finds a profile that lost an event and was written again afterwards: it has newer offsets, on the
changelog, too. With `since_ms`, the time of the loss, such profiles are counted (`rewritten`): those with a record in
the minute before it and another one after it. A cluster whose network was parted, or that hid records, loses writes
until it is whole again, `until_ms`: then profiles with a record between the two count, too. Their state may have been
built on an older one. Records of payments, which later outcomes need, have no second copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Consumer

from paywarden.features.profiles.profile_view import sources_of
from paywarden.features.stores.base import ProfileStore, StoreConflict, Versioned, entity_of, in_batches
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.reading import Record, records_between
from paywarden.streams.profiles.progress.watermarks import PREFIX

_log = logging.getLogger(__name__)

# A store flushes at least once a second. The rest allows for clocks that differ and for a slow disk.
SUSPECT_MS = 60_000
_BATCH = 1_000


@dataclass
class Verdicts:
    """The number of profiles by verdict, see above, for each kind of entity; `repaired` are among `lost`."""

    whole: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    mixed: dict[str, int] = field(default_factory=dict)
    returned: dict[str, int] = field(default_factory=dict)
    rewritten: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def needs_rebuild(self) -> bool:
        """Whether some profiles are wrong, or may be, in a way that only a rebuild can repair."""
        return bool(self.mixed or self.rewritten or self.unreadable)

    @property
    def needs_repair(self) -> bool:
        """Whether some lost profiles have not been written back."""
        return sum(self.lost.values()) > sum(self.repaired.values())


@dataclass(frozen=True)
class _Last:
    """The last record of a key: its state, None for a tombstone, and its Kafka time in epoch ms."""

    state: bytes | None
    written_ms: int


class Verification:
    """Compares one partition of the changelog after the other, each by `compare`; then `look_again`.

    `ttl_s` returns how long a store keeps a profile of a kind of entity. Times are epoch ms.
    """

    def __init__(
        self,
        store: ProfileStore,
        decoder: Decoder,
        *,
        ttl_s: Callable[[str], int],
        now_ms: int,
        since_ms: int | None = None,
        until_ms: int | None = None,
        repair: bool = False,
    ) -> None:
        self._store, self._decoder, self._ttl_s = store, decoder, ttl_s
        self._now_ms, self._since_ms, self._until_ms, self._repair = now_ms, since_ms, until_ms, repair
        self._returned: dict[bytes, bytes] = {}
        self.verdicts = Verdicts()

    def compare(self, batches: Iterable[Sequence[Record]]) -> dict[int, int]:
        """Compare a whole partition, in its order; returns it with the offset after its last record.

        Holds its last states in memory. Raises StoreUnavailable.
        """
        last: dict[bytes, _Last] = {}
        ends: dict[int, int] = {}
        before: set[bytes] = set()
        after: set[bytes] = set()
        for record in (record for batch in batches for record in batch):
            key = record.key
            ends[record.partition] = record.offset + 1
            if not key or key.startswith(PREFIX):
                continue
            try:
                last[key] = self._last(record)
            except InvalidEvent as error:
                _log.error("changelog %d/%d cannot be read: %s", record.partition, record.offset, error)
                self.verdicts.unreadable += 1
                continue
            if self._since_ms is not None and record.timestamp_ms > self._since_ms - SUSPECT_MS:
                (before if record.timestamp_ms <= self._since_ms else after).add(key)
                if self._until_ms is not None and self._since_ms < record.timestamp_ms <= self._until_ms:
                    before.add(key)
        for key in before & after:
            _count(self.verdicts.rewritten, key)
        for keys in in_batches(last, _BATCH):
            for key, found in zip(keys, self._store.read_versioned(keys), strict=True):
                self._judge(key, last[key], found)
        return ends

    def look_again(self, came_later: Iterable[bytes]) -> None:
        """Confirm profiles that returned: the store still has the same, and the changelog nothing newer.

        `came_later` are the keys of the changelog since `compare` read it. Call this seconds later.
        """
        suspects = {key: state for key, state in self._returned.items() if key not in set(came_later)}
        for keys in in_batches(suspects, _BATCH):
            for key, state in zip(keys, self._store.read(keys), strict=True):
                if state == suspects[key]:
                    _count(self.verdicts.returned, key)
        self._returned.clear()

    def _last(self, record: Record) -> _Last:
        state = None if record.value is None else self._decoder.decode(record.value)["state"]
        return _Last(state, record.timestamp_ms)

    def _judge(self, key: bytes, last: _Last, found: Versioned) -> None:
        verdicts = self.verdicts
        if last.state is None:
            if found.value is not None:
                self._returned[key] = found.value
            return
        left_s = self._left_s(key, last)
        if last.state == found.value or (found.value is None and left_s <= 0):
            _count(verdicts.whole, key)
            return
        there, here = sources_of(last.state), {} if found.value is None else sources_of(found.value)
        if there is None or here is None:
            verdicts.unreadable += 1
        elif not _is_older(here, there) and found.value is not None:
            _count(verdicts.whole, key)
        elif _is_older(there, here):
            _count(verdicts.mixed, key)
        else:
            _count(verdicts.lost, key)
            if self._repair:
                self._write_back(key, last.state, found.version, max(1, left_s))

    def _write_back(self, key: bytes, state: bytes, version: int, ttl_s: int) -> None:
        try:
            self._store.write({key: state}, ttl_s=ttl_s, versions={key: version})
        except StoreConflict:
            # The stream has written it meanwhile, upon the older profile: it stays among the lost.
            return
        _count(self.verdicts.repaired, key)

    def _left_s(self, key: bytes, last: _Last) -> int:
        """Returns how many seconds a record that was written then has left."""
        return self._ttl_s(entity_of(key)) - (self._now_ms - last.written_ms) // 1000


def keys_after(
    consumer: Consumer, topic: str, partitions: Iterable[int], offsets: Mapping[int, int]
) -> Iterator[bytes]:
    """Yields the keys of the records at these offsets and later, by partition. Raises BrokerUnavailable."""
    for partition, end in end_offsets(consumer, topic, partitions).items():
        for batch in records_between(consumer, topic, partition, range(offsets.get(partition, 0), end)):
            yield from (record.key for record in batch if record.key)


def _is_older(one: Mapping[int, int], other: Mapping[int, int]) -> bool:
    """Returns whether the first lacks events of some source that the second contains."""
    return any(offset > one.get(source, -1) for source, offset in other.items())


def _count(counts: dict[str, int], key: bytes) -> None:
    entity = entity_of(key)
    counts[entity] = counts.get(entity, 0) + 1


def spoken(verdicts: Verdicts) -> Iterator[str]:
    """Yields lines for an operator: one for each verdict, then the remedy. No line holds an id."""
    for name, text in (
        ("whole", "as the changelog has them"),
        ("lost", "older than on the changelog, or missing: acknowledged writes were lost"),
        ("repaired", "of these written back"),
        ("mixed", "older and newer at once"),
        ("returned", "there again after they were erased"),
        ("rewritten", "written around the loss and upon what it left: nobody can know whether they are whole"),
    ):
        counts: dict[str, int] = getattr(verdicts, name)
        if counts or name in ("whole", "lost"):
            held = ", ".join(f"{count} {entity}" for entity, count in sorted(counts.items())) or "none"
            yield f"{name:<10} {held}  ({text})"
    if verdicts.unreadable:
        yield f"unreadable {verdicts.unreadable} on either side"
    if verdicts.needs_repair:
        yield "run `paywarden admin store verify --repair`: it writes lost profiles back from the changelog"
    if verdicts.returned:
        yield "run `paywarden admin forget` again for everything that was forgotten"
    if verdicts.needs_rebuild:
        yield "run `paywarden admin rebuild --from-beginning`: only the payments themselves can repair these"
