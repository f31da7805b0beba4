"""The topic decisions, read in a consumer group. While an open transaction holds it up, the log says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from confluent_kafka import KafkaException, TopicPartition

from paywarden.streams.kafka.admin import make_admin
from paywarden.streams.kafka.client import KafkaSettings, PartitionId, reason_of
from paywarden.streams.kafka.reading import Record, consume, make_consumer
from paywarden.streams.kafka.stalls.open_transactions import OpenTransactions

_log = logging.getLogger(__name__)
_WAIT_S = 0.5


class DecisionRecords:
    """Records of the topic, and the commits of the processed ones. Not thread-safe."""

    def __init__(self, kafka: KafkaSettings, group_id: str, count_max: int) -> None:
        self._consumer, self._count_max = make_consumer(kafka, group_id=group_id), count_max
        self._consumer.subscribe([kafka.topic("decisions")])
        self._read: dict[PartitionId, int] = {}
        self._transactions = OpenTransactions(make_admin(kafka), self._assigned)

    def read(self) -> Sequence[Record]:
        """Returns the next records, at most `count_max`; none after half a second without one."""
        records = consume(self._consumer, self._count_max, _WAIT_S).records
        self._read.update({(record.topic, record.partition): record.offset + 1 for record in records})
        self._transactions.look()
        return records

    def _assigned(self) -> list[PartitionId]:
        return [(place.topic, place.partition) for place in self._consumer.assignment()]

    def commit(self) -> None:
        """Commit all records that were read.

        Records of a partition that a rebalance has taken away come again elsewhere.
        """
        places = [TopicPartition(topic, number, offset) for (topic, number), offset in self._read.items()]
        self._read.clear()
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            _log.warning("offsets of decisions are not committed, and records may come again: %s", reason_of(error))

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
