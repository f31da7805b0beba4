"""A Kafka cluster in memory: logs, transactions, groups and their clients, on virtual time.

It models what our code relies on, and what can go wrong with it:

- a topic has an id; deleted and made anew it has another id, and its offsets begin at 0
- readers see committed records only, up to the first record of an open transaction (the last stable offset)
- a transactional id has one producer: a newer one fences it, and the broker gives up a transaction that takes too long
- a commit may be done although its answer is lost, and its markers are written a moment later
- a producer sends in the background: of a killed process some queued records still arrive
- a group gives its partitions to its members cooperatively; a member that is silent for a session loses all of them,
  goes on with its batch, learns of it at its next call, and cannot commit until then
- the broker may be away, forget committed offsets, and a client may stall on a partition without noticing
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from tests.simulation.world import Actor, World

Place = tuple[str, int]
Callback = Callable[[Any, list[TopicPartition]], None]

_AWAY_ANSWER_S = 1.0
_REBALANCE_S = 0.2


def _failure(code: int, **flags: bool) -> KafkaException:
    make: Any = KafkaError
    return KafkaException(make(code, **flags))


@dataclass
class Transaction:
    """`state`: open, prepared (the outcome is decided, its markers are not written), committed or aborted."""

    transactional_id: str
    state: str = "open"
    outcome: str = ""
    places: set[Place] = field(default_factory=set)


class Entry:
    """A record, or with `is_marker` the end of a transaction. `poison` is raised when its headers are read."""

    __slots__ = ("headers", "is_marker", "key", "poison", "time_ms", "transaction", "value")

    def __init__(
        self,
        key: bytes | None,
        value: bytes | None,
        time_ms: int,
        headers: Sequence[tuple[str, bytes | None]] = (),
        transaction: Transaction | None = None,
        *,
        is_marker: bool = False,
        poison: BaseException | None = None,
    ) -> None:
        self.key, self.value, self.time_ms, self.headers = key, value, time_ms, headers
        self.transaction, self.is_marker, self.poison = transaction, is_marker, poison

    @property
    def is_visible(self) -> bool:
        return not self.is_marker and (self.transaction is None or self.transaction.state == "committed")


class Log:
    """A partition. `begin` is its first offset: earlier records have expired."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.begin = 0

    @property
    def end(self) -> int:
        return len(self.entries)

    def stable_end(self, after: int = 0) -> int:
        """Returns the offset of the first record of an open transaction, or the end."""
        for offset in range(after, len(self.entries)):
            transaction = self.entries[offset].transaction
            if transaction is not None and transaction.state in ("open", "prepared"):
                return offset
        return len(self.entries)


@dataclass
class Topic:
    topic_id: int
    logs: list[Log]

    @property
    def name_of_id(self) -> str:
        return f"id-{self.topic_id}"


class Message:
    """A record as the client hands it out, or with `code` an error."""

    __slots__ = ("_code", "_entry", "_offset", "_place", "_reason")

    def __init__(
        self, place: Place, offset: int, entry: Entry | None, code: int | None = None, reason: str = ""
    ) -> None:
        self._place, self._offset, self._entry, self._code, self._reason = place, offset, entry, code, reason

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        if self._code is None:
            return None
        return KafkaError(self._code, self._reason) if self._reason else KafkaError(self._code)

    def key(self) -> bytes | None:
        assert self._entry is not None
        return self._entry.key

    def value(self) -> bytes | None:
        assert self._entry is not None
        return self._entry.value

    def timestamp(self) -> tuple[int, int]:
        assert self._entry is not None
        return (1, self._entry.time_ms)

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        assert self._entry is not None
        if self._entry.poison is not None:
            raise self._entry.poison
        return list(self._entry.headers) or None


class Group:
    """The coordinator of one consumer group."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.committed: dict[Place, int] = {}
        self.members: list[GroupConsumer] = []
        self.owner: dict[Place, GroupConsumer] = {}
        self._target: dict[Place, GroupConsumer] = {}

    def forget(self, topic: str) -> None:
        """Forget the committed offsets of a topic."""
        self.committed = {place: offset for place, offset in self.committed.items() if place[0] != topic}

    def join(self, member: GroupConsumer) -> None:
        self.members.append(member)
        self.rebalance()

    def leave(self, member: GroupConsumer) -> None:
        if member in self.members:
            self.members.remove(member)
        for place in [place for place, owner in self.owner.items() if owner is member]:
            del self.owner[place]
        self.rebalance()

    def rebalance(self, *, shuffle: bool = False) -> None:
        """Choose anew who has which partition. Most partitions stay where they are."""
        chance = self._broker.world.random
        places = sorted({place for member in self.members for place in self._broker.places_of(member.topics)})
        self._target.clear()
        if not self.members:
            return
        share = -(-len(places) // len(self.members))
        counts = dict.fromkeys(range(len(self.members)), 0)
        left = []
        for place in places:
            owner = self.owner.get(place)
            if owner in self.members and not shuffle and counts[self.members.index(owner)] < share:
                counts[self.members.index(owner)] += 1
                self._target[place] = owner
            else:
                left.append(place)
        chance.shuffle(left)
        for place in left:
            number = min(counts, key=lambda member: (counts[member], chance.random()))
            counts[number] += 1
            self._target[place] = self.members[number]
        self._broker.world.note(f"rebalance {len(self.members)} members")
        self._wake_all()

    def _wake_all(self) -> None:
        for member in self.members:
            member.is_rebalancing_until = self._broker.world.now + _REBALANCE_S
            member.wake()

    def move(self, place: Place) -> bool:
        """Give a partition to another member. Returns False if there is none."""
        others = [member for member in self.members if member is not self.owner.get(place)]
        if not others:
            return False
        self._target[place] = self._broker.world.random.choice(others)
        self._wake_all()
        return True

    def to_revoke(self, member: GroupConsumer) -> list[Place]:
        return sorted(p for p, owner in self.owner.items() if owner is member and self._target.get(p) is not member)

    def to_assign(self, member: GroupConsumer) -> list[Place]:
        return sorted(p for p, target in self._target.items() if target is member and p not in self.owner)

    def expel(self, member: GroupConsumer) -> None:
        """The session of a member has ended."""
        self._broker.world.note(f"{member.actor.name} is expelled")
        member.is_expelled = True
        self.leave(member)


class Broker:
    """The cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.away_until = 0.0
        self._ids = 0
        self._epochs: dict[str, TransactionalProducer] = {}
        self.consumers: list[GroupConsumer] = []
        # How likely the answer of a commit is lost, whether it is done or not.
        self.doubt_share = 0.0
        self.abort_share = 0.0

    @property
    def is_away(self) -> bool:
        return self.world.now < self.away_until

    def create(self, name: str, partitions: int) -> None:
        self._ids += 1
        self.topics[name] = Topic(self._ids, [Log() for _ in range(partitions)])

    def recreate(self, name: str) -> Topic:
        """Delete a topic and make it anew: another id, offsets from 0, no committed offsets. Returns the old one."""
        old = self.topics[name]
        self.create(name, len(old.logs))
        for group in self.groups.values():
            group.forget(name)
        return old

    def log(self, place: Place) -> Log:
        return self.topics[place[0]].logs[place[1]]

    def places_of(self, topics: Iterable[str]) -> list[Place]:
        return [(topic, number) for topic in topics for number in range(len(self.topics[topic].logs))]

    def partition_of(self, topic: str, key: bytes | None) -> int:
        count = len(self.topics[topic].logs)
        return self.world.random.randrange(count) if key is None else zlib.crc32(key) % count

    def append(self, place: Place, entry: Entry) -> int:
        log = self.log(place)
        log.entries.append(entry)
        self._wake_readers(place[0])
        return len(log.entries) - 1

    def _wake_readers(self, topic: str) -> None:
        for consumer in self.consumers:
            if consumer.is_waiting and consumer.reads(topic):
                consumer.is_waiting = False
                consumer.wake()

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(self))

    def records(self, name: str) -> list[tuple[int, int, Entry]]:
        """Returns partition, offset and entry of every record that a reader of committed records sees."""
        return [
            (number, offset, entry)
            for number, log in enumerate(self.topics[name].logs)
            for offset, entry in enumerate(log.entries)
            if entry.is_visible
        ]

    # Transactions

    def begin_epoch(self, producer: TransactionalProducer) -> bool:
        """Fence earlier producers of this transactional id. Returns False while their transaction is not ended."""
        earlier = self._epochs.get(producer.transactional_id)
        if earlier is not None and earlier is not producer:
            earlier.is_fenced = True
            transaction = earlier.transaction
            if transaction is not None and transaction.state == "open":
                self.end_transaction(transaction, "aborted")
            if transaction is not None and transaction.state == "prepared":
                return False
        self._epochs[producer.transactional_id] = producer
        return True

    def end_transaction(self, transaction: Transaction, outcome: str) -> None:
        """Decide a transaction. Its markers follow a moment later."""
        if transaction.state != "open":
            return
        transaction.state, transaction.outcome = "prepared", outcome
        self.world.note(f"transaction {outcome}")

        def write_markers() -> None:
            transaction.state = outcome
            for place in sorted(transaction.places):
                self.append(place, Entry(None, None, self.world.wall_ms("broker"), (), transaction, is_marker=True))

        if self.world.random.random() < 0.5:
            write_markers()
        else:
            self.world.after(self.world.random.random() * 0.1, write_markers)


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
            raise _failure(KafkaError._STATE)
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
            world.pause(_AWAY_ANSWER_S)
            raise _failure(KafkaError._TIMED_OUT)
        if self.is_expelled or self not in self._group.members:
            raise _failure(KafkaError.UNKNOWN_MEMBER_ID)
        if world.now < self.is_rebalancing_until and world.random.random() < 0.3:
            raise _failure(KafkaError.REBALANCE_IN_PROGRESS)
        in_doubt = world.random.random() < self._broker.doubt_share
        if not in_doubt or world.random.random() < 0.5:
            for wanted in offsets:
                self._group.committed[wanted.topic, wanted.partition] = wanted.offset
            world.note("committed " + " ".join(f"{p.topic}/{p.partition}={p.offset}" for p in offsets))
        if in_doubt:
            raise _failure(KafkaError._TIMED_OUT)
        return [SimpleNamespace(topic=p.topic, partition=p.partition, offset=p.offset, error=None) for p in offsets]

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._world.seam("committed")
        if self._broker.is_away:
            self._world.pause(min(timeout, _AWAY_ANSWER_S))
            raise _failure(KafkaError._TIMED_OUT)
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
                self._world.pause(min(timeout, _AWAY_ANSWER_S))
                raise _failure(KafkaError._TIMED_OUT)
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


@dataclass
class _Queued:
    topic: str
    partition: int
    entry: Entry
    on_delivery: Callable[[KafkaError | None, Any], object] | None


class SimulatedProducer:
    """The methods of `confluent_kafka.Producer` that our senders use. Idempotent: each record once and in order.

    It calls back for what it has sent, within `poll` and `flush` as the client does. One for failures only does not.
    """

    def __init__(self, broker: Broker, actor: Actor, *, only_failures: bool = True) -> None:
        self._broker, self._actor, self._world = broker, actor, broker.world
        self._only_failures = only_failures
        self._reports: list[Callable[[], object]] = []
        self._queue: list[_Queued] = []
        self._is_due = False
        actor.life.at_end.append(self._die)
        self._waiter = actor

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int = -1,
        on_delivery: Callable[[KafkaError | None, Any], object] | None = None,
        headers: Any = None,
    ) -> None:
        self._world.seam("produce")
        raw_key = key.encode() if isinstance(key, str) else key
        number = self._broker.partition_of(topic, raw_key) if partition < 0 else partition
        entry = Entry(raw_key, value, self._world.wall_ms(), tuple(headers or ()), self._transaction())
        self._queue.append(_Queued(topic, number, entry, on_delivery))
        self._send_soon()

    def _transaction(self) -> Transaction | None:
        return None

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._world.after(self._world.random.random() * 0.004, self._send)

    def _send(self) -> None:
        self._is_due = False
        if self._actor.is_over:
            return
        if self._actor.is_frozen or self._broker.is_away:
            self._is_due = True
            self._world.at(
                max(self._actor.life.frozen_until, self._broker.away_until, self._world.now) + 0.01, self._send
            )
            return
        self._deliver(len(self._queue))
        self._world.wake(self._waiter)

    def _deliver(self, count: int) -> None:
        sent, self._queue = self._queue[:count], self._queue[count:]
        for queued in sent:
            place = queued.topic, queued.partition
            offset = self._broker.append(place, queued.entry)
            self._delivered(queued)
            if not self._only_failures and queued.on_delivery is not None:
                self._reports.append(partial(queued.on_delivery, None, Message(place, offset, queued.entry)))
            self._world.note(f"{queued.topic}/{queued.partition} gets {offset}")

    def _delivered(self, queued: _Queued) -> None:
        """A hook for transactions."""

    def _die(self) -> None:
        """The process has ended. Records that were on the way arrive all the same."""
        if self._queue and not self._broker.is_away and self._world.random.random() < 0.5:
            self._deliver(self._world.random.randrange(len(self._queue) + 1))
        self._queue.clear()

    def poll(self, timeout: float = 0) -> int:
        self._world.seam("poll")
        if timeout:
            self._world.sleep(timeout)
        self._report()
        return 0

    def _report(self) -> None:
        reports, self._reports = self._reports, []
        for report in reports:
            report()

    def flush(self, timeout: float) -> int:
        self._world.seam("flush")
        assert self._world.current is not None
        self._waiter = self._world.current
        deadline = self._world.now + timeout
        while self._queue and self._world.now < deadline:
            self._send_soon()
            self._world.sleep(deadline - self._world.now)
        self._report()
        return len(self._queue)

    def __len__(self) -> int:
        return len(self._queue)


class TransactionalProducer(SimulatedProducer):
    """A producer of transactions."""

    def __init__(self, broker: Broker, actor: Actor, transactional_id: str, timeout_ms: int) -> None:
        super().__init__(broker, actor)
        self.transactional_id, self._timeout_s = transactional_id, timeout_ms / 1000
        self.transaction: Transaction | None = None
        self.is_fenced = self._must_abort = False

    def init_transactions(self, timeout: float) -> None:
        self._world.seam("init transactions")
        if self._broker.is_away or not self._broker.begin_epoch(self):
            self._wait_and_fail(timeout)

    def begin_transaction(self) -> None:
        self._world.seam("begin transaction")
        self._check()
        transaction = self.transaction = Transaction(self.transactional_id)
        self._must_abort = self._world.random.random() < self._broker.abort_share

        def give_up() -> None:
            if transaction.state == "open":
                self._world.note("transaction timed out")
                self.is_fenced = True
                self._broker.end_transaction(transaction, "aborted")

        self._world.after(self._timeout_s, give_up)

    def _transaction(self) -> Transaction | None:
        return self.transaction

    def _deliver(self, count: int) -> None:
        if self.is_fenced or self.transaction is None or self.transaction.state != "open":
            self._queue.clear()
            return
        super()._deliver(count)

    def _delivered(self, queued: _Queued) -> None:
        assert self.transaction is not None
        self.transaction.places.add((queued.topic, queued.partition))

    def commit_transaction(self, timeout: float) -> None:
        world = self._world
        world.seam("commit transaction")
        self._check()
        transaction = self.transaction
        assert transaction is not None
        if transaction.state == "open":
            if self._broker.is_away or self.flush(timeout):
                self._wait_and_fail(timeout)
            self._check()
            if self._must_abort:
                self._must_abort = False
                world.faults["transaction_aborted"] += 1
                raise _failure(KafkaError._INCONSISTENT, txn_requires_abort=True)
            in_doubt = world.random.random() < self._broker.doubt_share
            if in_doubt and world.random.random() < 0.5:
                self._wait_and_fail(timeout)
            self._broker.end_transaction(transaction, "committed")
            world.seam("transaction is committed")
            if in_doubt:
                self._wait_and_fail(timeout)
        assert transaction.outcome == "committed", transaction

    def abort_transaction(self, timeout: float) -> None:
        self._world.seam("abort transaction")
        self._check()
        if self._broker.is_away:
            self._wait_and_fail(timeout)
        self._queue.clear()
        if self.transaction is not None:
            self._broker.end_transaction(self.transaction, "aborted")

    def _check(self) -> None:
        if self.is_fenced:
            raise _failure(KafkaError._FENCED, fatal=True)

    def _wait_and_fail(self, timeout: float) -> None:
        self._world.pause(timeout)
        raise _failure(KafkaError._TIMED_OUT, retriable=True)


class _Answer:
    """A future of the administrative client."""

    def __init__(self, world: World, due: float, result: Callable[[], Any]) -> None:
        self._world, self._due, self._result = world, due, result

    def done(self) -> bool:
        return self._world.now >= self._due

    def result(self, timeout: float | None = None) -> Any:
        del timeout
        while not self.done():
            self._world.sleep(self._due - self._world.now)
        return self._result()


class SimulatedAdmin:
    """The questions of `AdminClient` about topics and where their partitions end."""

    def __init__(self, broker: Broker, actor: Actor) -> None:
        self._broker, self._actor, self._world = broker, actor, broker.world

    def list_topics(self, topic: str | None = None, timeout: float = 1.0) -> SimpleNamespace:
        self._world.seam("list topics")
        if self._broker.is_away:
            self._world.pause(min(timeout, _AWAY_ANSWER_S))
            raise _failure(KafkaError._TRANSPORT)
        names = [topic] if topic is not None else sorted(self._broker.topics)
        return SimpleNamespace(
            cluster_id="simulated",
            topics={
                name: SimpleNamespace(error=None, partitions=dict.fromkeys(range(len(self._broker.topics[name].logs))))
                for name in names
                if name in self._broker.topics
            },
        )

    def describe_topics(self, collection: Any, **_: object) -> dict[str, _Answer]:
        """Ids of topics. `collection` is a TopicCollection or names."""
        self._world.seam("describe topics")
        names = list(getattr(collection, "topic_names", collection))
        return {name: self._answer(partial(self._described, name)) for name in names}

    def _described(self, name: str) -> SimpleNamespace:
        topic = self._broker.topics.get(name)
        if topic is None:
            raise _failure(KafkaError.UNKNOWN_TOPIC_OR_PART)
        partitions = [SimpleNamespace(id=number) for number in range(len(topic.logs))]
        return SimpleNamespace(name=name, topic_id=topic.name_of_id, partitions=partitions)

    def list_offsets(
        self,
        wanted: Iterable[TopicPartition],
        isolation_level: IsolationLevel = IsolationLevel.READ_COMMITTED,
        **_: object,
    ) -> dict[TopicPartition, _Answer]:
        self._world.seam("list offsets")
        is_stable = isolation_level == IsolationLevel.READ_COMMITTED
        return {place: self._answer(partial(self._end, (place.topic, place.partition), is_stable)) for place in wanted}

    def _end(self, place: Place, is_stable: bool) -> SimpleNamespace:
        log = self._broker.log(place)
        return SimpleNamespace(offset=log.stable_end(log.begin) if is_stable else log.end)

    def _answer(self, result: Callable[[], Any]) -> _Answer:
        if self._broker.is_away:

            def fail() -> Any:
                raise _failure(KafkaError._TIMED_OUT)

            return _Answer(self._world, self._world.now + _AWAY_ANSWER_S, fail)
        # The broker answers as of the question, and the answer takes a moment.
        try:
            answer, error = result(), None
        except KafkaException as failure:
            answer, error = None, failure

        def give() -> Any:
            if error is not None:
                raise error
            return answer

        return _Answer(self._world, self._world.now + 0.002, give)


def clients_of(broker: Broker, actor: Actor, settings: KafkaSettings) -> KafkaClients:
    """Returns the clients of one process. Its sender is the real one, on a simulated producer (patches.py)."""
    admin: Any = SimulatedAdmin(broker, actor)

    def consumer(
        *, group_id: str, session_timeout_ms: int = 10_000, tells_lost_offsets: bool = False, gather_ms: int = 0
    ) -> Any:
        del gather_ms
        return GroupConsumer(broker, actor, group_id, session_timeout_ms, tells_lost_offsets=tells_lost_offsets)

    def transactional(transactional_id: str, *, linger_ms: int, transaction_timeout_ms: int) -> Any:
        del linger_ms
        return TransactionalProducer(broker, actor, transactional_id, transaction_timeout_ms)

    return KafkaClients(
        settings,
        admin=admin,
        consumer=consumer,
        sender=lambda *, linger_ms: Sender(settings, linger_ms=linger_ms),
        transactional_producer=transactional,
    )
