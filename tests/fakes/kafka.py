"""A broker and a group's consumer in memory, for tests of readers of batches. It is as strict as the real client.

It models these traits of librdkafka:

- `consume` and `close` serve rebalances, in the order of their requests
- a call may hand out records of a partition that it revoked in the same call, unless the partition was assigned again
- a pause outlasts the assignment, and a record on its way may come although its partition is paused
- after an assignment the client reads a partition from its committed offset, after a seek from the given offset
- where the broker does not have the next offset, the client reports that once, and reads no more before a new
  assignment
- the client reports the end of a partition once, and again after a seek, a resume or an assignment
- a commit fails as a whole, or for some partitions
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients

Place = tuple[str, int]
Callback = Callable[[Any, list[TopicPartition]], None]


@dataclass
class FakeMessage:
    """A message as `consume` returns it: a record, or with `code` an error."""

    place: Place
    at: int
    content: bytes | None = b""
    time_ms: int = 0
    code: int | None = None
    is_producers_time: bool = False

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.at

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)

    def key(self) -> bytes | None:
        return b"k"

    def value(self) -> bytes | None:
        return self.content

    def timestamp(self) -> tuple[int, int]:
        return (TIMESTAMP_CREATE_TIME if self.is_producers_time else TIMESTAMP_LOG_APPEND_TIME, self.time_ms)

    def headers(self) -> None:
        return None


@dataclass
class CommitAnswer:
    """The answer of a commit for one partition."""

    topic: str
    partition: int
    offset: int
    error: KafkaError | None = None


@dataclass
class FakeBroker:
    """Records by partition, and the committed offsets of one group."""

    records: dict[Place, list[FakeMessage]] = field(default_factory=dict)
    committed: dict[Place, int] = field(default_factory=dict)
    # How many partitions a topic has; one, unless it is named here.
    partition_counts: dict[str, int] = field(default_factory=dict)
    # The ids of topics that have been created again; the others have one made of their name.
    topic_ids: dict[str, str] = field(default_factory=dict)
    # The offset of the first record that the broker still has; 0, unless it is named here.
    begins: dict[Place, int] = field(default_factory=dict)
    # Transaction markers behind the last record: they have offsets, and no reader sees them.
    unseen: dict[Place, int] = field(default_factory=dict)

    def append(
        self, place: Place, value: bytes | None = b"", time_ms: int = 0, *, is_producers_time: bool = False
    ) -> int:
        """Append a record; returns its offset. Its time is the broker's (LogAppendTime) or the producer's."""
        log = self.records.setdefault(place, [])
        log.append(FakeMessage(place, len(log), value, time_ms, is_producers_time=is_producers_time))
        return len(log) - 1

    def end(self, place: Place) -> int:
        return len(self.records.get(place, ())) + self.unseen.get(place, 0)


class FakeAdmin:
    """The questions of `AdminClient` about partitions and their ends, answered at once."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker

    def list_topics(self, topic: str = "", timeout: float = 0) -> SimpleNamespace:
        del timeout
        partitions = dict.fromkeys(range(self._broker.partition_counts.get(topic, 1)))
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=partitions)}, cluster_id="fake")

    def describe_topics(self, topics: TopicCollection, **_: object) -> dict[str, Future[Any]]:
        answers: dict[str, Future[Any]] = {topic: Future() for topic in topics.topic_names}
        for topic, answer in answers.items():
            answer.set_result(SimpleNamespace(topic_id=self._broker.topic_ids.get(topic, f"id-of-{topic}")))
        return answers

    def list_offsets(self, wanted: Iterable[TopicPartition], **_: object) -> dict[TopicPartition, Future[Any]]:
        answers: dict[TopicPartition, Future[Any]] = {place: Future() for place in wanted}
        for place, answer in answers.items():
            answer.set_result(SimpleNamespace(offset=self._broker.end((place.topic, place.partition))))
        return answers


class FakeConsumer:
    """The methods of `confluent_kafka.Consumer` that a BatchConsumer uses."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._callbacks: dict[str, Callback] = {}
        self._rebalances: deque[tuple[str, list[Place]]] = deque()
        self._position: dict[Place, int] = {}
        self._end_told: set[Place] = set()
        self.paused: set[Place] = set()
        # Partitions from which one record may come although they are paused.
        self.on_its_way: set[Place] = set()
        self.commit_error: int | None = None
        self.refused_places: set[Place] = set()
        self.commits: list[dict[Place, int]] = []
        # The places of the last commit as they came, and the epochs of the leaders of what was read.
        self.committed_places: list[TopicPartition] = []
        self.epochs: dict[Place, int] = {}
        self.is_closed = False
        # Partitions on which the client has stalled without noticing.
        self.stalled: set[Place] = set()
        # Partitions whose next offset the broker does not have.
        self._displaced: set[Place] = set()
        # The next call serves rebalances after it has read records and before it hands them out.
        self.rebalances_late = False

    # Called by tests

    def will_assign(self, *places: Place) -> None:
        self._rebalances.append(("on_assign", list(places)))

    def will_revoke(self, *places: Place) -> None:
        self._rebalances.append(("on_revoke", list(places)))

    @property
    def assigned(self) -> set[Place]:
        return set(self._position)

    # Called by the worker

    def subscribe(self, topics: Sequence[str], **callbacks: Callback) -> None:
        del topics
        self._callbacks = callbacks

    def consume(self, count_max: int, timeout: float) -> list[FakeMessage]:
        del timeout
        if not self.rebalances_late:
            self._rebalance()
        messages: list[FakeMessage] = []
        for place in sorted(self._position):
            self._read(place, count_max, messages)
        if self.rebalances_late:
            self.rebalances_late = False
            again = {place for kind, places in self._rebalances if kind == "on_assign" for place in places}
            self._rebalance()
            messages = [message for message in messages if message.place not in again]
        return messages

    def _read(self, place: Place, count_max: int, messages: list[FakeMessage]) -> None:
        log = self._broker.records.get(place, [])
        while len(messages) < count_max and place not in self.stalled | self._displaced:
            if place in self.paused:
                if place not in self.on_its_way:
                    return
                self.on_its_way.discard(place)
            position = self._position[place]
            if not self._broker.begins.get(place, 0) <= position <= self._broker.end(place):
                self._displaced.add(place)
                messages.append(FakeMessage(place, position, code=KafkaError._AUTO_OFFSET_RESET))
                return
            if position < len(log):
                messages.append(log[position])
                self._position[place] = position + 1
                self._end_told.discard(place)
                continue
            self._position[place] = self._broker.end(place)
            if place not in self._end_told:
                self._end_told.add(place)
                messages.append(FakeMessage(place, self._broker.end(place), code=KafkaError._PARTITION_EOF))
            return

    def _rebalance(self) -> None:
        while self._rebalances:
            kind, places = self._rebalances.popleft()
            # The real client stops and starts the reading of all partitions around it.
            self._end_told.clear()
            self._callbacks[kind](self, [TopicPartition(*place) for place in places])
            if kind == "on_assign":
                assert set(places) <= self.assigned
            else:
                for place in places:
                    del self._position[place]
                    self.on_its_way.discard(place)

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            place = (partition.topic, partition.partition)
            assert place not in self._position
            self._displaced.discard(place)
            first = self._broker.begins.get(place, 0)
            self._position[place] = (
                partition.offset if partition.offset >= 0 else self._broker.committed.get(place, first)
            )

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        for place in self._known(partitions):
            del self._position[place]
            self.paused.discard(place)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self.paused.update(self._known(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        places = self._known(partitions)
        self._end_told.difference_update(self.paused.intersection(places))
        self.paused.difference_update(places)

    def seek(self, partition: TopicPartition) -> None:
        (place,) = self._known([partition])
        self._position[place] = partition.offset
        self._end_told.discard(place)
        self.on_its_way.discard(place)

    def _known(self, partitions: Sequence[TopicPartition]) -> list[Place]:
        places = [(partition.topic, partition.partition) for partition in partitions]
        if not set(places) <= self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        return places

    def commit(self, *, offsets: Sequence[TopicPartition], asynchronous: bool) -> list[CommitAnswer]:
        assert not asynchronous
        self.committed_places = list(offsets)
        if self.commit_error is not None:
            raise KafkaException(KafkaError(self.commit_error))
        answers = []
        for wanted in offsets:
            place = (wanted.topic, wanted.partition)
            if place in self.refused_places:
                refusal = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
                answers.append(CommitAnswer(wanted.topic, wanted.partition, wanted.offset, refusal))
            else:
                self._broker.committed[place] = wanted.offset
                answers.append(CommitAnswer(wanted.topic, wanted.partition, wanted.offset))
        self.commits.append({(a.topic, a.partition): a.offset for a in answers if a.error is None})
        return answers

    def position(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        found = []
        for place in ((partition.topic, partition.partition) for partition in partitions):
            offset = self._position.get(place, -1001)
            epoch = self.epochs.get(place)
            found.append(
                TopicPartition(*place, offset) if epoch is None else TopicPartition(*place, offset, leader_epoch=epoch)
            )
        return found

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        del timeout
        return [
            TopicPartition(p.topic, p.partition, self._broker.committed.get((p.topic, p.partition), -1001))
            for p in partitions
        ]

    def get_watermark_offsets(self, partition: TopicPartition, **_: object) -> tuple[int, int]:
        place = (partition.topic, partition.partition)
        return self._broker.begins.get(place, 0), self._broker.end(place)

    def close(self) -> None:
        self.is_closed = True
        if self._position and self._callbacks:
            self.will_revoke(*sorted(self._position))
        self._rebalance()


def clients_of(
    broker: FakeBroker, *, consumers: Iterable[FakeConsumer] = (), sender: Any = None, admin: Any = None
) -> KafkaClients:
    """Clients in memory. The workers get `consumers` one after the other, and all the same `sender`."""
    waiting: Any = iter(consumers)
    fake_admin: Any = admin or FakeAdmin(broker)

    def no_transactions(*_: object, **__: object) -> Any:
        raise AssertionError("the fake broker has no transactions")

    return KafkaClients(
        KafkaSettings(),
        admin=fake_admin,
        consumer=lambda **_: next(waiting),
        sender=lambda **_: sender,
        transactional_producer=no_transactions,
    )
