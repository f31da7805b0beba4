"""The broker of a simulated cluster: it holds topics, writes markers and coordinates groups."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Protocol

from tests.simulation.cluster.logs import AWAY_ANSWER_S, HUNG_ANSWER_S, Entry, Log, Place, Topic, Transaction
from tests.simulation.world import Actor, World

_REBALANCE_S = 0.2


class Member(Protocol):
    """A consumer, as the broker uses it (consumer.py)."""

    actor: Actor
    topics: list[str]
    is_expelled: bool
    is_rebalancing_until: float
    is_waiting: bool

    def wake(self) -> None: ...

    def reads(self, topic: str) -> bool: ...


class Fenced(Protocol):
    """A producer with transactions, as the broker uses it (producers.py)."""

    transactional_id: str
    transaction: Transaction | None
    is_fenced: bool


class Group:
    """The coordinator of one consumer group."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.committed: dict[Place, int] = {}
        self.members: list[Member] = []
        self.owner: dict[Place, Member] = {}
        self._target: dict[Place, Member] = {}

    def forget(self, topic: str) -> None:
        """Forget the committed offsets of a topic."""
        self.committed = {place: offset for place, offset in self.committed.items() if place[0] != topic}

    def join(self, member: Member) -> None:
        self.members.append(member)
        self.rebalance()

    def leave(self, member: Member) -> None:
        if member in self.members:
            self.members.remove(member)
        for place in [place for place, owner in self.owner.items() if owner is member]:
            del self.owner[place]
        self.rebalance()

    def rebalance(self, *, shuffle: bool = False) -> None:
        """Choose again who has which partition. Most partitions stay where they are."""
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

    def to_revoke(self, member: Member) -> list[Place]:
        return sorted(p for p, owner in self.owner.items() if owner is member and self._target.get(p) is not member)

    def to_assign(self, member: Member) -> list[Place]:
        return sorted(p for p, target in self._target.items() if target is member and p not in self.owner)

    def expel(self, member: Member) -> None:
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
        self.away_until = self.hangs_until = 0.0
        self._ids = 0
        self._epochs: dict[str, Fenced] = {}
        self.consumers: list[Member] = []
        # How likely the answer of a commit is lost, whether it is done or not.
        self.doubt_share = 0.0
        self.abort_share = 0.0

    @property
    def is_away(self) -> bool:
        return self.world.now < self.away_until

    @property
    def answer_s(self) -> float:
        """How long a client waits for a broker that is away: for one that hangs, as long as it waits at most."""
        return HUNG_ANSWER_S if self.world.now < self.hangs_until else AWAY_ANSWER_S

    def create(self, name: str, partitions: int) -> None:
        self._ids += 1
        self.topics[name] = Topic(self._ids, [Log() for _ in range(partitions)])

    def recreate(self, name: str) -> Topic:
        """Delete a topic and create it again: another id, offsets from 0, no committed offsets. Returns the old one."""
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

    def begin_epoch(self, producer: Fenced) -> bool:
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
