"""Sources of copies of shards' profiles, part by part: the store, or the beginning of the changelog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from paywarden.features.stores.base import ProfileStore, in_batches
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.avro import Decoder
from paywarden.streams.companion.changelog_reader import read_changes
from paywarden.streams.companion.shard_moves import CopyInterrupted, States
from paywarden.streams.kafka.reading import consume

# A part is worked off between two batches of the changelog.
_PART = 1_000
_CHANGELOG_PART = 2_000
_WAIT_S = 0.02


def copies_from_store(
    look: Callable[[], LiveSet], open_store: Callable[[LiveSet], ProfileStore], entities: Sequence[str]
) -> Iterator[States]:
    """Yields all profiles of these entities from the live profile set.

    Raises StoreUnavailable, and CopyInterrupted if another set is swapped in meanwhile.
    """
    live = look()
    if live.next is not None:
        raise CopyInterrupted("another profile set is being swapped in")
    store = open_store(live)
    try:
        for entity in entities:
            for part in in_batches(store.scan(entity), _PART):
                yield dict(part)
    finally:
        store.close()
    if look() != live:
        raise CopyInterrupted("another profile set has gone live")


def copies_from_changelog(
    consumer: Consumer, topic: str, until: Mapping[int, int], decoder: Decoder
) -> Iterator[States]:
    """Yields the changelog's states before the offsets `until`, by partition. Closes the consumer.

    A part is empty where Kafka has nothing to hand out yet. Raises BrokerUnavailable.
    """
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in until])
        left = {partition for partition, end in until.items() if end > 0}
        while left:
            consumed = consume(consumer, _CHANGELOG_PART, _WAIT_S)
            records = [record for record in consumed.records if record.offset < until[record.partition]]
            yield read_changes(records, decoder, (), {}).profiles
            left -= {partition for (_, partition), end in consumed.ended.items() if end >= until[partition]}
            left -= {record.partition for record in consumed.records if record.offset + 1 >= until[record.partition]}
    finally:
        consumer.close()
