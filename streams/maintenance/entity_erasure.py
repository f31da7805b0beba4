"""Erase an entity from the store, the changelog, the mirrors and the records of its payments.

1. delete      the profile from the store, and the profiles of combinations with it, such as card and merchant
2. tombstone   on the changelog for each key, before the deletion and after it: companions remove it from their mirrors
3. scan        the records of payments, and delete those that name the entity
4. look again  a stream worker may have had the entity in a batch and written it back; then start again at 1

    forget card:c7      deletes    card:c7, card_merchant:c7|m1, card_merchant:c7|m2, payment:p1, payment:p9
                        sends      a tombstone for each profile: profiles key card:c7 value null, …

What can go wrong:

- A worker writes the entity back: the next round erases it again. After 3 rounds `forget` raises TemporaryFailure,
  unless the new profile holds only payments that are newer than the erasure.
- The store holds other profile sets (features/stores/profile_sets.py): an earlier live set, or one that a rebuild
  makes. They are erased too, and their keys get tombstones, because a set about to go live may be on the changelog.
- A rebuild reads the entity's payments again from the topic of payments, which is not erased.

The sums in a merchant's profile keep the card's payments: nothing in a sum says whose payment it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import Consumer, TopicPartition
from google.protobuf.message import DecodeError

from paywarden.features.profiles.keys import SEPARATOR
from paywarden.features.profiles.plan import Plan
from paywarden.features.profiles.profile_view import first_payment_ms
from paywarden.features.stores.base import ProfileStore, ScanProgress, in_batches, split_key
from paywarden.schemas.errors import BrokerUnavailable, TemporaryFailure
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.kafka.admin import end_offsets, partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import consume, make_consumer
from paywarden.streams.maintenance.backfill_progress import FINISHED, PAYMENT_PHASE, read_progress

# A batch of the stream takes milliseconds, a large one a second. After this pause it has written all that it read.
SETTLE_S = 2.0
# An entity with frequent payments may come back for ever. After this many rounds the check for new profiles decides.
ROUNDS_MAX = 3
_DELETE_BATCH = 1_000
_FLUSH_TIMEOUT_S = 30.0
_READ_TIMEOUT_S = 30.0
_READ_BATCH = 10_000


class ErasureChangelog(Protocol):
    """The operations on the topic of profiles that erasing needs."""

    def erase(self, keys: Sequence[bytes]) -> None:
        """Send tombstones; returns when the broker has them."""

    def came_back(self) -> set[bytes]:
        """Returns the erased keys whose last record has a state again."""


@dataclass(frozen=True)
class Forgotten:
    """The number of records erased in `rounds` rounds, from all profile sets together.

    `has_begun_anew`: there is a profile again, made of payments that came after the erasure.
    `backfill_is_unfinished`: a backfill of this store has begun and would write the entity again.
    """

    profiles: int
    payment_records: int
    rounds: int
    has_begun_anew: bool
    backfill_is_unfinished: bool


def forget(
    key: bytes,
    *,
    plan: Plan,
    store: ProfileStore,
    changelog: ErasureChangelog,
    others: Sequence[ProfileStore] = (),
    progress: ScanProgress | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Forgotten:
    """Erase the entity with this store key. An unknown entity is no error.

    `store` is the live profile set, `others` are all other sets. `progress` follows the scans of payment records.
    Raises StoreUnavailable or BrokerUnavailable, after which the same call finishes the erasure, and TemporaryFailure
    if a stream worker keeps writing the entity back.
    """
    # Shared by all sets: if one set knows that a key belongs to this entity, the others erase it too.
    erased = {key}
    live = _Erasure(key, plan, store, changelog, erased)
    # The live set comes last: no tombstone of another set may follow a profile that the stream has started again.
    erasures = [*(_Erasure(key, plan, other, _NotFollowed(changelog), erased) for other in others), live]
    back = erasures
    while back and live.rounds < ROUNDS_MAX:
        for erasure in erasures:
            erasure.run(progress)
        sleep(SETTLE_S)
        back = [erasure for erasure in erasures if erasure.look_again()]
    if not all(erasure.is_all_new() for erasure in erasures):
        raise TemporaryFailure(
            f"the stream wrote the erased profile back, {live.rounds} times: its batches keep holding payments of "
            "the entity; stop the stream or try again later, and run this again"
        )
    backfill = read_progress(store)
    return Forgotten(
        profiles=sum(len(erasure.found) for erasure in erasures),
        payment_records=sum(erasure.payment_records for erasure in erasures),
        rounds=live.rounds,
        has_begun_anew=live in back,
        backfill_is_unfinished=backfill is not None and backfill.phase != FINISHED,
    )


class _Erasure:
    """The state of an erasure in one profile set. `found`: the keys that had a profile.

    `erased`: the keys that were erased so far, in any of the sets.
    """

    def __init__(
        self, key: bytes, plan: Plan, store: ProfileStore, changelog: ErasureChangelog, erased: set[bytes]
    ) -> None:
        self._key, self._store, self._changelog = key, store, changelog
        entity, identity = split_key(key)
        fields = plan.entity_keys[plan.entity_names.index(entity)]
        ids = identity.decode().split(SEPARATOR) if len(fields) > 1 else [identity.decode()]
        self._ids = dict(zip(fields, ids, strict=False))
        # Other kinds of entities whose ids contain the ids of this one.
        self._wider = {
            name: keys
            for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
            if name != entity and set(keys) >= set(fields) and len(ids) == len(fields)
        }
        self._erased = erased
        # The time of the first payment in each profile that existed at the start; None: the profile is unreadable.
        self._began_ms: dict[bytes, int | None] = {}
        self._states: dict[bytes, bytes] = {}
        self._on_changelog: set[bytes] = set()
        self.found: set[bytes] = set()
        self.payment_records = self.rounds = 0

    def run(self, progress: ScanProgress | None) -> None:
        """Steps 1 to 3."""
        self._erase_profiles(sorted(self._erased))
        for name, fields in self._wider.items():
            self._erase_profiles(key for key, _ in self._store.scan(name) if self._is_part_of(key, fields))
        named: set[bytes] = set()
        for keys in in_batches(self._payment_record_keys(named, progress), _DELETE_BATCH):
            # A digest replaces ids that are too long together: only these records show whose it is.
            self._erase_profiles(sorted(named - self._erased))
            self._store.delete(keys)
            self.payment_records += len(keys)
        self.rounds += 1

    def look_again(self) -> bool:
        """Step 4: returns whether the store or the changelog has any of the keys again."""
        keys = sorted(self._erased)
        found = zip(keys, self._store.read(keys), strict=True)
        self._states = {key: state for key, state in found if state is not None}
        self._on_changelog = self._changelog.came_back()
        return bool(self._states or self._on_changelog)

    def is_all_new(self) -> bool:
        """Returns whether every new profile holds only new payments: it begins later than the erased one began."""
        is_known = self._on_changelog <= self._states.keys()
        return is_known and all(self._is_new(key, state) for key, state in self._states.items())

    def _is_new(self, key: bytes, state: bytes) -> bool:
        if key not in self._began_ms:
            return True
        erased_ms, began_ms = self._began_ms[key], first_payment_ms(state)
        # A readable profile cannot come from an unreadable one.
        return began_ms is not None and (erased_ms is None or began_ms > erased_ms)

    def _erase_profiles(self, keys: Iterable[bytes]) -> None:
        for batch in in_batches(keys, _DELETE_BATCH):
            for key, state in zip(batch, self._store.read(batch), strict=True):
                if state is not None:
                    self.found.add(key)
                    if self.rounds == 0:
                        self._began_ms[key] = first_payment_ms(state)
            # The first tombstone covers a crash: once the store has lost the key, a second run would not find it. The
            # second one covers a mirror that read the store before the deletion and follows the changelog from behind
            # the first tombstone.
            self._changelog.erase(batch)
            self._store.delete(batch)
            self._changelog.erase(batch)
            self._erased.update(batch)

    def _is_part_of(self, key: bytes, fields: Sequence[str]) -> bool:
        """Returns whether a combination's key names this entity."""
        ids = split_key(key)[1].decode().split(SEPARATOR)
        named = dict(zip(fields, ids, strict=False))
        return len(ids) == len(fields) and all(named[field] == identity for field, identity in self._ids.items())

    def _payment_record_keys(self, named: set[bytes], progress: ScanProgress | None) -> Iterator[bytes]:
        """Yields the keys of payment records that name this entity; adds the combinations they name to `named`."""
        text = self._key.decode()
        prefixes = tuple(f"{name}:" for name in self._wider)
        for record_key, value in self._store.scan(PAYMENT_PHASE, progress=progress):
            # Most records name other entities. A search for the bytes is ten times faster than decoding.
            if self._key not in value:
                continue
            try:
                keys = PaymentRecord.FromString(value).keys
            except DecodeError:
                # A damaged record that has the bytes of the key names the entity, as far as anyone can tell.
                yield record_key
                continue
            if text in keys:
                named.update(other.encode() for other in keys if other.startswith(prefixes))
                yield record_key


class _NotFollowed:
    """The changelog for a set that is not live: its keys get tombstones. Later records belong to the live set."""

    def __init__(self, changelog: ErasureChangelog) -> None:
        self._changelog = changelog

    def erase(self, keys: Sequence[bytes]) -> None:
        """See ErasureChangelog."""
        self._changelog.erase(keys)

    def came_back(self) -> set[bytes]:
        """Returns no keys: the erasure of the live set looks at the changelog."""
        return set()


class KafkaChangelog:
    """The changelog on the cluster. `close` it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        """Raises BrokerUnavailable, or Misconfigured if the topic does not exist."""
        self._topic = kafka.topic("profiles")
        partitions = partitions_of(kafka, "profiles")
        self._sender = Sender(kafka, linger_ms=5)
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-forget")
        self._positions = end_offsets(self._consumer, self._topic, partitions)
        self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in self._positions.items()])
        self._has_state: dict[bytes, bool] = {}

    def erase(self, keys: Sequence[bytes]) -> None:
        """See ErasureChangelog. Raises BrokerUnavailable."""
        for key in keys:
            self._has_state[key] = False
            self._sender.send(self._topic, None, key=key)
        self._sender.flush(_FLUSH_TIMEOUT_S)

    def came_back(self) -> set[bytes]:
        """See ErasureChangelog. Reads the records since the last call, the first time since construction.

        Raises BrokerUnavailable.
        """
        ends = end_offsets(self._consumer, self._topic, self._positions)
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while any(self._positions[partition] < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"Kafka did not give the end of {self._topic} in {_READ_TIMEOUT_S:g} s")
            # The ends that the client reports are ignored: they may be older than the newest records.
            for record in consume(self._consumer, _READ_BATCH, 0.1).records:
                self._positions[record.partition] = record.offset + 1
                if record.key in self._has_state:
                    self._has_state[record.key] = record.value is not None
        return {key for key, has_state in self._has_state.items() if has_state}

    def close(self) -> None:
        self._consumer.close()
