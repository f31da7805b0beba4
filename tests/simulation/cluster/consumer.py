"""A simulated member of a consumer group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, TopicPartition

from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.logs import Message, Place, kafka_failure
from tests.simulation.world import Actor

Callback = Callable[[Any, list[TopicPartition]], None]


class GroupConsumer:
    """The methods of `confluent_kafka.Consumer` that our readers use."""

    def __init__(
        self,
        broker: Broker,
        actor: Actor,
        group_id: str,
        session_timeout_ms: int,
        *,
        tells_lost_offsets: bool = False,
    ) -> None:
        self._broker, self.actor, self._session_s = broker, actor, session_timeout_ms / 1000
        self._world = broker.world
        self._group = broker.group(group_id)
        self._callbacks: dict[str, Callback] = {}
        self.topics: list[str] = []
        self._position: dict[Place, int] = {}
        self._ids: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._end_told: set[Place] = set()
        self._next = 0
        self.stalled: set[Place] = set()
        self.is_expelled = self.is_closed = self.is_waiting = False
        self.is_rebalancing_until = 0.0
        self._seen_at = self._world.now
        # The thread that waits for this client.
        self._waiter = actor
        self._tells_lost = tells_lost_offsets
        # Partitions that it has stopped, since the broker does not have the next offset; and whether it has said so.
        self._stopped: dict[Place, str] = {}
        self._stop_told: set[Place] = set()
        broker.consumers.append(self)
        actor.life.at_end.append(self._end)

    def wake(self) -> None:
        self._world.wake(self._waiter)

    def reads(self, topic: str) -> bool:
        return any(place[0] == topic for place in self._position) or topic in self.topics

    def _end(self) -> None:
        """The process has ended without leaving the group."""
        if self in self._broker.consumers:
            self._broker.consumers.remove(self)

    # Groups

    def subscribe(self, topics: Sequence[str], **callbacks: Callback) -> None:
        self._world.seam("subscribe")
        self.topics, self._callbacks = list(topics), callbacks
        self._group.join(self)
        self._watch_session()

    def _watch_session(self) -> None:
        """Expel this member when its process has been dead or frozen for a session."""

        def look() -> None:
            if self.is_closed or self.is_expelled or self not in self._group.members:
                return
            is_silent = self.actor.is_over or self.actor.is_frozen
            if not is_silent:
                self._seen_at = self._world.now
            if self._world.now - self._seen_at > self._session_s:
                self._group.expel(self)
            else:
                self._world.after(self._session_s / 4, look)

        self._world.after(self._session_s / 4, look)

    def _serve_group(self) -> None:
        if self.is_expelled:
            # It was silent for too long: everything is lost, and it joins as a new member.
            self.is_expelled = False
            self._seen_at = self._world.now
            if places := sorted(self._position):
                self._tell("on_lost", places)
            self._group.join(self)
            self._watch_session()
        if places := [place for place in self._group.to_revoke(self) if place in self._position]:
            self._tell("on_revoke", places)
            for place in places:
                self._group.owner.pop(place, None)
            self._wake_members()
        if self._broker.is_away:
            return
        if places := [place for place in self._group.to_assign(self) if place not in self._position]:
            for place in places:
                self._group.owner[place] = self
            self._tell("on_assign", places)

    def _wake_members(self) -> None:
        for member in self._group.members:
            member.wake()

    def _tell(self, kind: str, places: list[Place]) -> None:
        self._world.note(f"{kind} {len(places)}")
        self._end_told.clear()
        self._callbacks[kind](self, [TopicPartition(*place) for place in places])
        if kind != "on_assign":
            for place in places:
                self._position.pop(place, None)
                self._stopped.pop(place, None)

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            place = (partition.topic, partition.partition)
            assert place not in self._position
            offset = partition.offset
            if offset < 0:
                offset = self._group.committed.get(place, OFFSET_BEGINNING)
                if offset < 0 and self._tells_lost:
                    self._stopped[place] = "no previously committed offset available"
            self._begin(place, offset)

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        for place in self._known(partitions):
            del self._position[place]
            self._stopped.pop(place, None)
            self._stop_told.discard(place)

    def position(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        return [
            TopicPartition(p.topic, p.partition, self._position.get((p.topic, p.partition), -1001)) for p in partitions
        ]

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._world.seam("assign")
        self._position.clear()
        self._end_told.clear()
        for partition in partitions:
            self._begin((partition.topic, partition.partition), partition.offset)

    def _begin(self, place: Place, offset: int) -> None:
        log = self._broker.log(place)
        if offset == OFFSET_END:
            offset = log.stable_end(log.begin)
        self._position[place] = max(offset, log.begin)
        self._ids[place] = self._broker.topics[place[0]].topic_id

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(self._known(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        places = self._known(partitions)
        self._end_told.difference_update(self._paused.intersection(places))
        self._paused.difference_update(places)

    def seek(self, partition: TopicPartition) -> None:
        (place,) = self._known([partition])
        self._position[place] = partition.offset
        self._end_told.discard(place)

    def _known(self, partitions: Sequence[TopicPartition]) -> list[Place]:
        places = [(partition.topic, partition.partition) for partition in partitions]
        if not set(places) <= self._position.keys():
            raise kafka_failure(KafkaError._STATE)
        return places

    # Reading

    def consume(self, count_max: int, timeout: float) -> list[Message]:
        world = self._world
        world.seam("consume")
        assert world.current is not None
        self._waiter = world.current
        deadline = world.now + timeout
        while True:
            if self.topics:
                self._serve_group()
            messages = [] if self._broker.is_away else self._fetch(count_max)
            if messages or world.now >= deadline:
                if messages:
                    world.note(f"consumed {len(messages)}")
                return messages
            self.is_waiting = True
            world.sleep(deadline - world.now)
            self.is_waiting = False

    def _fetch(self, count_max: int) -> list[Message]:
        messages: list[Message] = []
        places = sorted(self._position)
        self._next += 1
        for index in range(len(places)):
            place = places[(index + self._next) % len(places)]
            if place not in self._paused and place not in self.stalled:
                self._fetch_from(place, count_max, messages)
        return messages

    def _fetch_from(self, place: Place, count_max: int, messages: list[Message]) -> None:
        if place in self._stopped:
            self._tell_stop(place, messages)
            return
        topic = self._broker.topics[place[0]]
        log = topic.logs[place[1]]
        position = self._position[place]
        if position > log.end or position < log.begin:
            if self._tells_lost:
                # The setting auto.offset.reset says "error".
                self._stopped[place] = "Broker: Offset out of range"
                self._tell_stop(place, messages)
                return
            # The setting says "earliest".
            position = self._position[place] = log.begin
            self._end_told.discard(place)
        self._ids[place] = topic.topic_id
        stable = log.stable_end(position)
        while len(messages) < count_max and position < stable:
            entry = log.entries[position]
            if entry.is_visible:
                messages.append(Message(place, position, entry))
            position += 1
            self._end_told.discard(place)
        self._position[place] = position
        if position >= stable and place not in self._end_told and len(messages) < count_max:
            self._end_told.add(place)
            messages.append(Message(place, position, None, code=KafkaError._PARTITION_EOF))

    def _tell_stop(self, place: Place, messages: list[Message]) -> None:
        """Say once that a partition is stopped."""
        if place not in self._stop_told:
            self._stop_told.add(place)
            code, reason = KafkaError._AUTO_OFFSET_RESET, self._stopped[place]
            messages.append(Message(place, self._position[place], None, code=code, reason=reason))

    # Offsets

    def commit(self, *, offsets: Sequence[TopicPartition], asynchronous: bool) -> list[Any]:
        assert not asynchronous
        world = self._world
        world.seam("commit")
        if self._broker.is_away:
            world.pause(self._broker.answer_s)
            raise kafka_failure(KafkaError._TIMED_OUT)
        if self.is_expelled or self not in self._group.members:
            raise kafka_failure(KafkaError.UNKNOWN_MEMBER_ID)
        if world.now < self.is_rebalancing_until and world.random.random() < 0.3:
            raise kafka_failure(KafkaError.REBALANCE_IN_PROGRESS)
        in_doubt = world.random.random() < self._broker.doubt_share
        if not in_doubt or world.random.random() < 0.5:
            for wanted in offsets:
                self._group.committed[wanted.topic, wanted.partition] = wanted.offset
            world.note("committed " + " ".join(f"{p.topic}/{p.partition}={p.offset}" for p in offsets))
        if in_doubt:
            raise kafka_failure(KafkaError._TIMED_OUT)
        return [SimpleNamespace(topic=p.topic, partition=p.partition, offset=p.offset, error=None) for p in offsets]

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._world.seam("committed")
        if self._broker.is_away:
            self._world.pause(min(timeout, self._broker.answer_s))
            raise kafka_failure(KafkaError._TIMED_OUT)
        return [
            TopicPartition(p.topic, p.partition, self._group.committed.get((p.topic, p.partition), -1001))
            for p in partitions
        ]

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = 1.0, *, cached: bool = False
    ) -> tuple[int, int]:
        log = self._broker.log((partition.topic, partition.partition))
        if not cached:
            self._world.seam("watermarks")
            if self._broker.is_away:
                self._world.pause(min(timeout, self._broker.answer_s))
                raise kafka_failure(KafkaError._TIMED_OUT)
        return log.begin, log.stable_end(log.begin)

    def close(self) -> None:
        self._world.seam("close")
        if self.is_closed:
            return
        if self.topics and not self.is_expelled and (places := sorted(self._position)):
            self._tell("on_revoke", places)
        self.is_closed = True
        self._end()
        if self.topics:
            self._group.leave(self)
