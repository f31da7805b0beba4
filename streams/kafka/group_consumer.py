"""A member of a consumer group that reads batches: each batch is committed or abandoned as a whole.

    take ──► work ──► commit                     the usual case
    take ──► work ──► take_ahead ──► work        … on records that this worker has just written to its own partitions
    take ──► hold ──► wait … ──► release         the work is impossible now: stay in the group, read nothing
                        └─ lost ──► abandon      another worker got a partition of the batch: drop it, read it again

Rebalances happen only inside `take` and `wait`. Between these calls no partition moves, so the worker owns every record
it has taken. Rebalances are cooperative: the group revokes only the partitions that move, and the others go on.

What can go wrong:

- A commit fails, as it does in the middle of a rebalance: a later `commit` tries it again.
- A fetch was on its way when the partitions were paused: its records wait for the next `take`.
- The client stalls and delivers nothing: streams/kafka/stalls/stall_detector.py notices it through `positions`.
- The broker no longer has the next offset. If records expired unread, they are counted and reading goes on behind them.
  If the partition ends before the last record that was read, `take` raises PartitionCut: its next records would get old
  offsets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from confluent_kafka import Consumer, KafkaException, TopicPartition

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.admin import watermarks
from paywarden.streams.kafka.client import PartitionId, reason_of
from paywarden.streams.kafka.reading import Consumed, Record, consume
from paywarden.streams.kafka.stalls.stall_detector import NOTHING_HEARD

_log = logging.getLogger(__name__)

_COMMITTED_TIMEOUT_S = 5.0
# While no new offsets come, a failed commit is tried again this often.
COMMIT_AGAIN_S = 1.0
# The client's words for a partition that the group has never read.
_NEVER_READ = "no previously committed offset"
_NO_ENDS: Mapping[PartitionId, int] = MappingProxyType({})


class PartitionCut(Exception):  # the caller turns it into an error that names the next step
    """A partition has lost records that were read already."""

    def __init__(self, place: PartitionId, read_to: int, end: int) -> None:
        self.topic, self.cut = place[0], cut_of(place[1], read_to, end)
        super().__init__(f"{self.topic}: {self.cut}")


class BatchConsumer:
    """Reads batches of some topics as one of a group. Not thread-safe."""

    def __init__(
        self,
        consumer: Consumer,
        *,
        on_assigned: Callable[[Sequence[PartitionId]], None] = lambda _: None,
        on_revoked: Callable[[Sequence[PartitionId]], None] = lambda _: None,
        on_expired: Callable[[PartitionId, int], None] = lambda *_: None,
        commit_again_s: float = COMMIT_AGAIN_S,
    ) -> None:
        """`on_expired` gets the number of records of a partition that expired before they were read."""
        self._commit_again_s = commit_again_s
        self._consumer, self._on_assigned, self._on_revoked = consumer, on_assigned, on_revoked
        self._on_expired = on_expired
        self.places: set[PartitionId] = set()
        """The partitions that are assigned to this worker."""
        # Offsets by partition: after the last record taken; up to which all records are processed (at first, where
        # reading begins); and as the broker has acknowledged them.
        self._taken: dict[PartitionId, int] = {}
        self._done: dict[PartitionId, int] = {}
        self._committed: dict[PartitionId, int] = {}
        # The offset after everything that the client has delivered, ends included.
        self._heard: dict[PartitionId, int] = {}
        self._commit_again_at = 0.0
        # By partition: before this offset all records were taken ahead, and the client delivers them once more.
        self._ahead: dict[PartitionId, int] = {}
        # The partitions that were assigned since `_consume` has cleared this.
        self._just_assigned: set[PartitionId] = set()
        self._paused_topics: set[str] = set()
        self._held_back: set[PartitionId] = set()
        self._is_held = self._has_lost = False
        # Records that came while everything was paused, from a fetch that was on its way.
        self._early: list[Consumed] = []
        # Partitions whose next offset the broker does not have, and the client's words for it.
        self._displaced: dict[PartitionId, str] = {}

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self._consumer.subscribe(list(topics), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)

    def take(self, count_max: int, timeout_s: float, first_s: float | None = None) -> Consumed:
        """Returns the next batch: at most `count_max` records.

        It waits at most `first_s` for the first record (None: `timeout_s`), and then at most `timeout_s` for more.
        Raises BrokerUnavailable for a permanent error, PartitionCut for a partition that has lost records that were
        read.
        """
        if self._early:
            consumed = self._early.pop(0)
        else:
            consumed = self._consume(count_max, timeout_s, timeout_s if first_s is None else first_s)
        records = self._of_mine(consumed.records)
        self._note_taken(records)
        self._note_displaced(consumed)
        if self._displaced:
            self._find_places()
        ended = {
            place: end
            for place, end in consumed.ended.items()
            if place in self.places and end >= self._ahead.get(place, 0)
        }
        self._heard |= ended
        return Consumed(records, ended, consumed.is_all)

    def take_ahead(self, records: Iterable[Record]) -> list[Record]:
        """Returns those of `records` that the next calls of `take` would give, so that nobody waits for them.

        The caller has written the records itself, and knows their offsets. One that is the next of a partition of this
        worker counts as taken: no record that this worker has not read lies before it. `take` leaves it out when the
        client delivers it. The records of a partition are in their order.
        """
        ahead: list[Record] = []
        if self._early:
            # These count as heard, and are not given yet.
            return ahead
        for record in records:
            place = (record.topic, record.partition)
            if place in self.places and self._heard.get(place) == record.offset:
                self._note_taken([record])
                self._ahead[place] = record.offset + 1
                ahead.append(record)
        return ahead

    def _consume(self, count_max: int, timeout_s: float, first_s: float) -> Consumed:
        first = consume(self._consumer, 1, first_s)
        if first.is_all or count_max == 1:
            return first
        self._just_assigned.clear()
        more = consume(self._consumer, count_max - 1, timeout_s)
        # A partition that left and came back in the second call is read from where its last owner was.
        return first.without(self._just_assigned).followed_by(more)

    def acknowledged(self) -> Mapping[PartitionId, int]:
        """Returns the next offset of partitions that this worker has read, as the group has committed it.

        Every record before it was processed, by this worker or an earlier owner.
        """
        return self._committed

    def commit(self, offsets: Mapping[PartitionId, int]) -> None:
        """Commit the next offset of each partition; every record before it is processed.

        A commit that fails, as in the middle of a rebalance, is logged, and a later call tries it again. If the
        partition moves before that, its new owner repeats the batch, which changes nothing.
        """
        # A partition that left during a hold belongs to another worker, which may be further on.
        self._done |= {place: offset for place, offset in offsets.items() if place in self.places}
        if not offsets and time.monotonic() < self._commit_again_at:
            return
        news = {place: done for place, done in self._done.items() if self._committed.get(place) != done}
        if news:
            self._commit(news)

    def _commit(self, news: Mapping[PartitionId, int]) -> None:
        try:
            offsets = self._with_epochs(news)
            # The call as a whole fails only if it fails for every partition.
            answers = self._consumer.commit(offsets=offsets, asynchronous=False) or []
        except KafkaException as error:
            _log.warning("offsets not committed: %s", reason_of(error))
            answers = []
        for answer in answers:
            if answer.error is None:
                self._committed[answer.topic, answer.partition] = answer.offset
            else:
                _log.warning("offset of %s/%d not committed: %s", answer.topic, answer.partition, answer.error.str())
        if any(self._committed.get(place) != offset for place, offset in news.items()):
            self._commit_again_at = time.monotonic() + self._commit_again_s

    def _with_epochs(self, offsets: Mapping[PartitionId, int]) -> list[TopicPartition]:
        """Returns offsets to commit, with the epoch of the leader that the records came from.

        By the epoch a later reader's client notices that another leader has replaced records before the offset.
        """
        positions = self._consumer.position([TopicPartition(*place) for place in offsets])
        epochs = {(place.topic, place.partition): place.leader_epoch for place in positions}
        return [
            TopicPartition(*place, offset, leader_epoch=epochs[place])
            # A record that was taken ahead may be of a later leader than the last one that the client has delivered.
            if epochs.get(place) is not None and place not in self._ahead
            else TopicPartition(*place, offset)
            for place, offset in offsets.items()
        ]

    def committed(self, topic: str, partitions: Iterable[int]) -> dict[int, int] | None:
        """Returns the group's committed offsets of a topic, 0 for none; None if the broker does not answer now."""
        places = [TopicPartition(topic, partition) for partition in partitions]
        try:
            answers = self._consumer.committed(places, timeout=_COMMITTED_TIMEOUT_S)
        except KafkaException as error:
            _log.warning("Kafka does not give the committed offsets: %s", reason_of(error))
            return None
        return {answer.partition: max(0, answer.offset) for answer in answers}

    def positions(self) -> dict[PartitionId, int]:
        """Returns the next offset of each partition that is being read, for StallWatch."""
        if self._is_held:
            return {}
        read = (place for place in self.places if not self._is_paused(place))
        return {place: self._heard.get(place, NOTHING_HEARD) for place in read}

    def lag(self, ends: Mapping[PartitionId, int]) -> dict[PartitionId, int]:
        """Returns by partition how many records the client has not delivered yet, without a question to the broker.

        `ends` are ends from the broker: a client that has stalled does not know of newer records.
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
        """Stop reading a topic, or go on with it."""
        if pause == (topic in self._paused_topics):
            return
        (self._paused_topics.add if pause else self._paused_topics.discard)(topic)
        if not self._is_held:
            self._set_paused([place for place in self.places if place[0] == topic], pause)

    def hold_back(self, places: Collection[PartitionId]) -> None:
        """Read nothing from these partitions, and go on with those that were held back before."""
        again = self._held_back - set(places)
        self._held_back = self.places & set(places)
        if not self._is_held:
            self._set_paused(self._held_back, True)
            self._set_paused([place for place in self.places & again if not self._is_paused(place)], False)

    def hold(self) -> None:
        """Read nothing until `release`. Calls of `wait` keep the worker in the group."""
        self._is_held, self._has_lost = True, False
        self._set_paused(self.places, True)

    def wait(self, seconds: float) -> bool:
        """Wait on hold. Returns False if another worker got a partition that records were taken from."""
        deadline = time.monotonic() + seconds
        while not self._has_lost and (left := deadline - time.monotonic()) > 0:
            consumed = consume(self._consumer, 1, left)
            records = self._of_mine(consumed.records)
            self._note_displaced(consumed)
            if records:
                # These count as taken although nobody has processed them: `abandon` must read them again.
                self._note_taken(records)
                # Without the ends: they are out of date by then, and the client reports them again.
                self._early.append(Consumed(records, {}, is_all=False))
        return not self._has_lost

    def release(self) -> None:
        """Go on reading after `hold`."""
        self._is_held = False
        self._set_paused([place for place in self.places if not self._is_paused(place)], False)

    def abandon(self) -> list[PartitionId]:
        """Go back to the records that were taken and not processed; returns their partitions.

        Raises BrokerUnavailable.
        """
        self._early.clear()
        again = [place for place, taken in self._taken.items() if self._done[place] < taken]
        for place in again:
            self._seek(place, self._done[place])
            self._heard.pop(place, None)
            self._ahead.pop(place, None)
        self._taken.clear()
        return again

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _of_mine(self, records: Iterable[Record]) -> list[Record]:
        """Returns the records of partitions that are still ours: a call's rebalance may have revoked some.

        It leaves out records that were taken ahead.
        """
        mine = [record for record in records if (record.topic, record.partition) in self.places]
        return self._not_ahead(mine) if self._ahead else mine

    def _not_ahead(self, records: Iterable[Record]) -> list[Record]:
        left = []
        for record in records:
            place = (record.topic, record.partition)
            if (to := self._ahead.get(place)) is not None:
                if record.offset < to:
                    continue
                del self._ahead[place]
            left.append(record)
        return left

    def _note_taken(self, records: Iterable[Record]) -> None:
        for record in records:
            place = (record.topic, record.partition)
            if place not in self._done:
                self._done[place] = self._committed[place] = record.offset
            self._taken[place] = self._heard[place] = record.offset + 1

    def _note_displaced(self, consumed: Consumed) -> None:
        self._displaced |= {place: why for place, why in consumed.displaced.items() if place in self.places}

    def _find_places(self) -> None:
        """Find where to read partitions whose next offset the broker does not have. Raises PartitionCut."""
        for place, why in list(self._displaced.items()):
            try:
                first, end = watermarks(self._consumer, *place)
                read_to = self._read_to(place)
            except (BrokerUnavailable, KafkaException) as error:
                _log.warning("%s/%d: %s", *place, error)
                return
            del self._displaced[place]
            # The begin of a partition only grows. A missing offset that is not before it was behind the end.
            if read_to is not None and read_to >= first and _NEVER_READ not in why:
                raise PartitionCut(place, read_to, end)
            if read_to is not None and read_to < first:
                _log.error("%s/%d: %d records expired before they were read", *place, first - read_to)
                self._on_expired(place, first - read_to)
            self._read_from(place, first if read_to is None else max(first, read_to))

    def _read_to(self, place: PartitionId) -> int | None:
        """Returns the next offset of a partition; None if it was never read. Raises KafkaException."""
        for known in (self._heard, self._done):
            if place in known:
                return known[place]
        (answer,) = self._consumer.committed([TopicPartition(*place)], timeout=_COMMITTED_TIMEOUT_S)
        return answer.offset if answer.offset >= 0 else None

    def _read_from(self, place: PartitionId, offset: int) -> None:
        # The client does not seek in a partition that it has stopped.
        self._consumer.incremental_unassign([TopicPartition(*place)])
        self._consumer.incremental_assign([TopicPartition(*place, offset)])
        self._set_paused([place], self._is_held or self._is_paused(place))

    def _is_paused(self, place: PartitionId) -> bool:
        return place[0] in self._paused_topics or place in self._held_back

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
        # The client would assign after this callback. But only an assigned partition can be paused.
        consumer.incremental_assign(list(partitions))
        self.places.update(places)
        self._just_assigned.update(places)
        paused = {place for place in places if self._is_held or self._is_paused(place)}
        self._set_paused(paused, True)
        # The client remembers the pause of a partition across its revocation, and would never read it again.
        self._set_paused(set(places) - paused, False)
        self._on_assigned(places)

    def _revoke(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        places = [(p.topic, p.partition) for p in partitions]
        self.places.difference_update(places)
        for place in places:
            taken, done = self._taken.pop(place, 0), self._done.pop(place, 0)
            self._committed.pop(place, None)
            self._heard.pop(place, None)
            self._ahead.pop(place, None)
            self._displaced.pop(place, None)
            self._held_back.discard(place)
            self._has_lost = self._has_lost or done < taken
        self._on_revoked(places)


def cut_of(partition: int, read_to: int, end: int) -> str:
    """Returns a line about a partition that ends before the last record that was read."""
    if read_to <= end:
        return f"partition {partition} was read to offset {read_to}, ended before it, and has other records there now"
    return f"partition {partition} was read to offset {read_to} and ends at {end}"


def offsets_after(records: Iterable[Record], ends: Mapping[PartitionId, int] = _NO_ENDS) -> dict[PartitionId, int]:
    """Returns by partition the offset after its last record, or its end in `ends` if that is further."""
    offsets = {(record.topic, record.partition): record.offset + 1 for record in records}
    # A record that was taken ahead lies behind the end that the client reported.
    return offsets | {place: max(end, offsets.get(place, 0)) for place, end in ends.items()}
