"""A member of a consumer group that reads batches, each of which ends committed or is abandoned whole.

    take ──► work ──► commit                     the usual way
    take ──► hold ──► wait … ──► release         the work cannot be done now: stay in the group, read nothing
                        └─ lost ──► abandon      a partition of the batch has gone: forget the batch and read again

Rebalances happen within `take` and `wait` only, so between them nothing moves: what is taken is this worker's to
work in. Cooperative: only what moves is revoked, and the rest goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.client import PartitionId, reason_of
from paywarden.streams.kafka.reading import Consumed, Record, consume
from paywarden.streams.kafka.stall_detector import NOTHING_HEARD

_log = logging.getLogger(__name__)

_COMMITTED_TIMEOUT_S = 5.0
# While nothing new comes, what could not be committed is tried again this often.
COMMIT_AGAIN_S = 1.0


class BatchConsumer:
    """Reads batches of some topics as one of a group. Not thread-safe."""

    def __init__(
        self,
        consumer: Consumer,
        *,
        on_assigned: Callable[[Sequence[PartitionId]], None] = lambda _: None,
        on_revoked: Callable[[Sequence[PartitionId]], None] = lambda _: None,
        commit_again_s: float = COMMIT_AGAIN_S,
    ) -> None:
        self._commit_again_s = commit_again_s
        self._consumer, self._on_assigned, self._on_revoked = consumer, on_assigned, on_revoked
        self.places: set[PartitionId] = set()
        """What is assigned to this worker."""
        # The offset after the last record taken; the one up to which all is worked in, or that is to be read first;
        # and the one that the broker knows of.
        self._taken: dict[PartitionId, int] = {}
        self._done: dict[PartitionId, int] = {}
        self._committed: dict[PartitionId, int] = {}
        # The offset that comes next after all that the client gave, ends included.
        self._heard: dict[PartitionId, int] = {}
        self._commit_again_at = 0.0
        self._paused_topics: set[str] = set()
        self._is_held = self._has_lost = False
        # What came although everything is paused: a fetch that was on its way.
        self._early: list[Consumed] = []

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self._consumer.subscribe(list(topics), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)

    def take(self, count_max: int, timeout_s: float) -> Consumed:
        """The next batch: what is there, at most `count_max` records, waited for at most `timeout_s`.

        Raises BrokerUnavailable for an error that does not pass.
        """
        consumed = self._early.pop(0) if self._early else consume(self._consumer, count_max, timeout_s)
        records = self._of_mine(consumed.records)
        self._note_taken(records)
        ended = {place: end for place, end in consumed.ended.items() if place in self.places}
        self._heard |= ended
        return Consumed(records, ended, consumed.is_all)

    def commit(self, offsets: Mapping[PartitionId, int]) -> None:
        """Commit the offset that comes next, by partition, where all before it is worked in.

        One that cannot be committed is only logged, and tried again by a later call, whatever that one is about: as
        in the middle of a rebalance. If the partition moves on before, who has it then repeats the batch, without
        effect.
        """
        # What went during a hold is another worker's to commit, which may have come further.
        self._done |= {place: offset for place, offset in offsets.items() if place in self.places}
        if not offsets and time.monotonic() < self._commit_again_at:
            return
        news = {place: done for place, done in self._done.items() if self._committed.get(place) != done}
        if news:
            self._commit(news)

    def _commit(self, news: Mapping[PartitionId, int]) -> None:
        wanted = [TopicPartition(topic, partition, offset) for (topic, partition), offset in news.items()]
        try:
            # As a whole it has failed only if it has for every partition.
            answered = self._consumer.commit(offsets=wanted, asynchronous=False) or []
        except KafkaException as error:
            _log.warning("offsets not committed: %s", reason_of(error))
            answered = []
        for place in answered:
            if place.error is None:
                self._committed[place.topic, place.partition] = place.offset
            else:
                _log.warning("offset of %s/%d not committed: %s", place.topic, place.partition, place.error.str())
        if any(self._committed.get(place) != offset for place, offset in news.items()):
            self._commit_again_at = time.monotonic() + self._commit_again_s

    def committed(self, topic: str, partitions: Iterable[int]) -> dict[int, int] | None:
        """What the whole group has committed of a topic, 0 for nothing; None when the broker does not say now."""
        wanted = [TopicPartition(topic, partition) for partition in partitions]
        try:
            found = self._consumer.committed(wanted, timeout=_COMMITTED_TIMEOUT_S)
        except KafkaException as error:
            _log.warning("Kafka does not say what is committed: %s", reason_of(error))
            return None
        return {place.partition: max(0, place.offset) for place in found}

    def positions(self) -> dict[PartitionId, int]:
        """The offset that comes next in each partition that is being read, as StallWatch wants them."""
        if self._is_held:
            return {}
        read = (place for place in self.places if place[0] not in self._paused_topics)
        return {place: self._heard.get(place, NOTHING_HEARD) for place in read}

    def lag(self, ends: Mapping[PartitionId, int]) -> dict[PartitionId, int]:
        """Records behind what the client gave, by partition, as far as the client knows without asking.

        Or as `ends` say, the broker's own: a client that has stalled knows of none.
        """
        lag = {}
        for place in self.places:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            position = self._heard.get(place)
            if position is None:
                position = self._done.get(place, max(0, low))
            else:
                high = max(high, ends.get(place, 0))
            lag[place] = max(0, high - position)
        return lag

    def pause(self, topic: str, pause: bool) -> None:
        """Read no more of a topic, or again."""
        if pause == (topic in self._paused_topics):
            return
        (self._paused_topics.add if pause else self._paused_topics.discard)(topic)
        if not self._is_held:
            self._set_paused([place for place in self.places if place[0] == topic], pause)

    def hold(self) -> None:
        """Read nothing until `release`; `wait` keeps the worker in the group."""
        self._is_held, self._has_lost = True, False
        self._set_paused(self.places, True)

    def wait(self, seconds: float) -> bool:
        """Wait on hold. False when a partition that records were taken from has gone to another worker."""
        deadline = time.monotonic() + seconds
        while not self._has_lost and (left := deadline - time.monotonic()) > 0:
            records = self._of_mine(consume(self._consumer, 1, left).records)
            if records:
                # Taken too, though no one has it yet: `abandon` must read it again.
                self._note_taken(records)
                # Not the ends: they are old when it is handed out, and told again when reading goes on.
                self._early.append(Consumed(records, {}, is_all=False))
        return not self._has_lost

    def release(self) -> None:
        """Read on."""
        self._is_held = False
        self._set_paused([place for place in self.places if place[0] not in self._paused_topics], False)

    def abandon(self) -> list[PartitionId]:
        """Read again all that was taken and is not worked in; returns of which partitions. Raises BrokerUnavailable."""
        self._early.clear()
        again = [place for place, taken in self._taken.items() if self._done[place] < taken]
        for place in again:
            self._seek(place, self._done[place])
            self._heard.pop(place, None)
        self._taken.clear()
        return again

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _of_mine(self, records: Iterable[Record]) -> list[Record]:
        """A rebalance in the middle of a call may have taken away what came before it."""
        return [record for record in records if (record.topic, record.partition) in self.places]

    def _note_taken(self, records: Iterable[Record]) -> None:
        for record in records:
            place = (record.topic, record.partition)
            if place not in self._done:
                self._done[place] = self._committed[place] = record.offset
            self._taken[place] = self._heard[place] = record.offset + 1

    def _seek(self, place: PartitionId, offset: int) -> None:
        topic, partition = place
        try:
            self._consumer.seek(TopicPartition(topic, partition, offset))
        except KafkaException as error:
            raise BrokerUnavailable(f"{topic}/{partition} cannot be read again: {reason_of(error)}") from error

    def _set_paused(self, places: Collection[PartitionId], pause: bool) -> None:
        partitions = [TopicPartition(topic, partition) for topic, partition in places]
        if partitions:
            (self._consumer.pause if pause else self._consumer.resume)(partitions)

    def _assign(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        places = [(p.topic, p.partition) for p in partitions]
        # Explicitly, though the client would do it after this: only what is assigned can be paused.
        consumer.incremental_assign(list(partitions))
        self.places.update(places)
        paused = {place for place in places if self._is_held or place[0] in self._paused_topics}
        self._set_paused(paused, True)
        # The client remembers that a partition was paused when it went, and would never read it again.
        self._set_paused(set(places) - paused, False)
        self._on_assigned(places)

    def _revoke(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        places = [(p.topic, p.partition) for p in partitions]
        self.places.difference_update(places)
        for place in places:
            taken, done = self._taken.pop(place, 0), self._done.pop(place, 0)
            self._committed.pop(place, None)
            self._heard.pop(place, None)
            self._has_lost = self._has_lost or done < taken
        self._on_revoked(places)


def offsets_after(records: Iterable[Record]) -> dict[PartitionId, int]:
    """By partition, the offset after the last of its records."""
    return {(record.topic, record.partition): record.offset + 1 for record in records}
