"""Turn a batch of changelog records into changes for a copy of the profiles."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from paywarden.features.profiles.payment_tags import MARK_DTYPE
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.changelog import PAYMENTS_HEADER
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY, PREFIX, Claim, claim_of

_log = logging.getLogger(__name__)


@dataclass
class ProfileChanges:
    """`profiles`: the newest state by key, None if it is erased. `positions`: the next offset by partition.

    `claims`: the claims, in order.
    `arrived_ms`: by kind of entity, the time at which a state's newest event reached Kafka, for every record that has
    an age. `unreadable`: records left out. `skipped`: records of profiles that the copy does not hold.

    `named`: the payments that changes have added to profiles (streams/profiles/changelog.py). `unnamed`: changes that
    do not say that, and gaps where compaction may have removed such a change.
    """

    arrived_ms: dict[str, list[int]]
    profiles: dict[bytes, bytes | None] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    unreadable: int = 0
    skipped: int = 0
    named: list[bytes] = field(default_factory=list)
    unnamed: int = 0

    def erased_count(self) -> int:
        """Returns how many of `profiles` are erased."""
        return list(self.profiles.values()).count(None)


def read_changes(
    records: Iterable[Record],
    decoder: Decoder,
    entities: Sequence[str],
    ageless_before: Mapping[int, int],
    read_to: Mapping[int, int] = MappingProxyType({}),
    skipped: Set[bytes] = frozenset(),
) -> ProfileChanges:
    """Returns the changes in these records, which are in order within a partition.

    `ageless_before` maps partitions to an offset. The age of an earlier record says how long the copy was down, and not
    how long a change takes, so it is left out. A record without an event, or of another kind of entity, has no age.
    `read_to`: the next offset of each partition before these records. `skipped`: the keys that the copy does not hold.
    """
    changes = ProfileChanges({entity: [] for entity in entities})
    profiles, positions, arrived_ms = changes.profiles, changes.positions, changes.arrived_ms
    for record in records:
        partition, key = record.partition, record.key
        if record.offset > positions.get(partition, read_to.get(partition, record.offset)):
            changes.unnamed += 1
        positions[partition] = record.offset + 1
        if key in skipped:
            changes.skipped += 1
            continue
        # A key that begins with a zero byte would be one of the mirror's own notes.
        if not key or key[0] == 0 or len(key) > KEY_BYTES_MAX:
            _log.error("changelog %d/%d has no key that a mirror can hold", partition, record.offset)
            changes.unreadable += 1
            changes.unnamed += 1
            continue
        if record.value is None:
            profiles[key] = None
            continue
        try:
            value = decoder.decode(record.value)
        except InvalidEvent as error:
            _log.error("changelog %d/%d cannot be read: %s", partition, record.offset, error)
            changes.unreadable += 1
            changes.unnamed += 1
            continue
        if key.startswith(PREFIX):
            _note_claim(changes, key, value)
            continue
        profiles[key] = value["state"]
        _note_payments(changes, record)
        arrived = value["arrived_time_ms"]
        if arrived is None or (ageless_before and record.offset < ageless_before.get(partition, 0)):
            continue
        if (ages := arrived_ms.get(value["entity"])) is not None:
            ages.append(arrived)
    return changes


def _note_payments(changes: ProfileChanges, record: Record) -> None:
    for name, payments in record.headers or ():
        if name == PAYMENTS_HEADER and payments is not None and len(payments) % MARK_DTYPE.itemsize == 0:
            changes.named.append(payments)
            return
    changes.unnamed += 1


def _note_claim(changes: ProfileChanges, key: bytes, value: Mapping[str, Any]) -> None:
    moment_ms = value["complete_to_time_ms"]
    if key != CLAIM_KEY or moment_ms is None:
        return
    if (claim := claim_of(moment_ms, value["state"])) is not None:
        changes.claims.append(claim)
