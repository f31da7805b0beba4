"""A PartitionWorker with a client and a store in memory: nothing is lost, and nothing is added twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from paywarden.features.stores.base import StoreConflict
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, StoreUnavailable, TemporaryFailure
from paywarden.streams.counts import partition_worker
from paywarden.streams.counts.partition_worker import GroupMember, Pace, PartitionWorker
from paywarden.streams.kafka.group_consumer import BatchConsumer
from paywarden.streams.kafka.source_register import BESIDE_SOURCES_KEY, SourceChanged, SourceRegister, base_of
from paywarden.streams.profiles.guards.sources import SourceCheck
from tests.fakes.kafka import FakeBroker, FakeConsumer, clients_of

A, B = ("decisions", 0), ("decisions", 1)


class Killed(BaseException):
    """The process ends here: nothing else of it runs."""


class Saved:
    """A store of one partition's offsets, and what fails in it next."""

    def __init__(self) -> None:
        self.offsets: dict[int, list[int]] = {}
        self.quiet_ms: dict[int, int] = {}
        self.unsaved_max = 0
        self.failures: list[BaseException | None] = []

    def check(self) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure


class Work:
    """Notes the offsets of a partition, and saves them."""

    def __init__(self, saved: Saved, partition: int) -> None:
        saved.check()
        self._saved, self._partition = saved, partition
        self._rows: list[int] = []
        self._passed = max(saved.offsets.get(partition, []), default=-1) + 1
        self.is_ahead = False

    @property
    def next_offset(self) -> int:
        saved_to = max(self._saved.offsets.get(self._partition, []), default=-1) + 1
        # A passed record without a row is as good as saved.
        return saved_to if self._rows else max(saved_to, self._passed)

    @property
    def has_news(self) -> bool:
        return bool(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, offset: int, _: Mapping[str, Any]) -> None:
        if offset >= self._passed:
            self._rows.append(offset)
            self._passed = offset + 1

    def skip(self, offset: int) -> None:
        self._passed = offset + 1

    def hand_over(self, quiet_ms: int) -> None:
        self._saved.quiet_ms[self._partition] = quiet_ms

    def save(self, _: int) -> None:
        self._saved.unsaved_max = max(self._saved.unsaved_max, len(self))
        self._saved.check()
        self._saved.offsets.setdefault(self._partition, []).extend(self._rows)
        self._rows = []
        self._saved.check()


class Reader:
    """Reads `bad` as undecodable, and any other value as an empty record."""

    def decode(self, value: bytes) -> dict[str, Any]:
        if value == b"bad":
            raise InvalidEvent("bad")
        return {}


class Count:
    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class World:
    """A worker that has these partitions, with three records in each."""

    def __init__(self, *places: tuple[str, int]) -> None:
        self.broker, self.saved, self.stop = FakeBroker(), Saved(), Event()
        self.store = MemoryStore()
        # A partition that another worker gets when this one takes its next partition over, and cannot.
        self.moves_at_take: tuple[str, int] | None = None
        for place in places:
            for _ in range(3):
                self.broker.append(place)
        self.begin(*places)

    def begin(self, *places: tuple[str, int]) -> None:
        """Start a worker that gets these partitions. One before it is gone."""
        self.client = FakeConsumer(self.broker)
        clients = clients_of(self.broker)
        metrics: Any = SimpleNamespace(undecodable=Count(), retries=Count(), store_up=Count())
        reader: Any = Reader()
        self.metrics, self.works = metrics, dict[int, Work]()
        self.worker = PartitionWorker(
            "decisions",
            member=GroupMember(clients, "g", 10_000, 60),
            decoder=reader,
            sources=SourceCheck(clients, self.store, {"decisions": "decisions"}, BESIDE_SOURCES_KEY),
            takers=[self.take],
            pace=Pace(0, 100),
            metrics=metrics,
            now_ms=lambda: 1_000_000,
        )
        client: Any = self.client
        self.worker._consumer = BatchConsumer(
            client, on_assigned=self.worker._on_assigned, on_revoked=self.worker._on_revoked, commit_again_s=0
        )
        self.worker._consumer.subscribe(["decisions"])
        self.client.will_assign(*places)

    def take(self, partition: int) -> Any:
        if self.moves_at_take is not None:
            self.client.will_revoke(self.moves_at_take)
            self.moves_at_take = None
            raise StoreUnavailable("away")
        self.works[partition] = Work(self.saved, partition)
        return self.works[partition]

    def step(self) -> None:
        with suppress(partition_worker._Abandoned):
            self.worker.step(self.stop)

    def until_saved(self, offsets: Mapping[int, list[int]]) -> None:
        for _ in range(20):
            if self.saved.offsets == offsets:
                return
            self.step()
        assert self.saved.offsets == offsets


def repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_worker, "_RETRY_S", 0.001)
    monkeypatch.setattr(partition_worker, "_IDLE_S", 0.001)


def test_records_are_saved_in_order_and_then_committed() -> None:
    world = World(A, B)
    world.until_saved({0: [0, 1, 2], 1: [0, 1, 2]})
    assert world.broker.committed == {A: 3, B: 3}
    assert world.worker.has(0)


def test_a_record_that_cannot_be_read_is_counted_and_passed() -> None:
    world = World(A)
    world.broker.append(A, b"bad")
    world.broker.append(A)
    world.until_saved({0: [0, 1, 2, 4]})
    assert world.metrics.undecodable.value == 1
    world.broker.append(A, b"bad")
    world.step()
    assert world.broker.committed == {A: 6}


def test_records_wait_while_the_store_is_away_and_none_is_lost() -> None:
    world = World(A)
    world.saved.failures = [StoreUnavailable("away")] * 3
    world.until_saved({0: [0, 1, 2]})
    assert world.metrics.retries.value == 3
    assert world.metrics.store_up.value == 1


def test_a_worker_that_cannot_save_reads_no_more() -> None:
    world = World(A)
    for _ in range(1000):
        world.broker.append(A)
    world.saved.failures = [None, *[StoreUnavailable("away")] * 30]
    world.until_saved({0: list(range(1003))})
    # `save_records`, and the batch that reached it.
    assert world.saved.unsaved_max <= 2 * 100


def test_a_partition_that_moves_while_the_store_is_away_is_read_again() -> None:
    world = World(A, B)
    world.step()
    for place in (A, B):
        world.broker.append(place)
    world.saved.failures = [StoreUnavailable("away")] * 5
    world.client.will_revoke(A)
    world.until_saved({0: [0, 1, 2], 1: [0, 1, 2, 3]})
    assert not world.worker.has(0)
    world.client.will_assign(A)
    world.until_saved({0: [0, 1, 2, 3], 1: [0, 1, 2, 3]})


@pytest.mark.parametrize("calls", range(8))
def test_a_worker_killed_at_any_call_of_the_store_loses_nothing(calls: int) -> None:
    world = World(A, B)
    world.saved.failures = [*[None] * calls, Killed()]

    def step_and_send() -> None:
        world.step()
        world.broker.append(A)
        world.broker.append(B)

    with pytest.raises(Killed):
        repeat(step_and_send, 20)
    # Nothing is committed that is not saved.
    assert all(
        world.saved.offsets.get(number, [])[offset - 1 :] for (_, number), offset in world.broker.committed.items()
    )
    world.begin(A, B)
    world.until_saved({number: list(range(world.broker.end(("decisions", number)))) for number in (0, 1)})


def test_records_behind_a_commit_that_failed_are_not_saved_twice() -> None:
    world = World(A)
    world.client.commit_error = KafkaError.REBALANCE_IN_PROGRESS
    world.until_saved({0: [0, 1, 2]})
    assert world.broker.committed == {}
    world.begin(A)
    world.broker.append(A)
    world.until_saved({0: [0, 1, 2, 3]})
    assert world.broker.committed == {A: 4}


def test_a_topic_that_was_created_again_is_not_read() -> None:
    world = World(A)
    world.until_saved({0: [0, 1, 2]})
    world.broker.topic_ids["decisions"] = "another"
    world.broker.append(A)
    world.client.will_revoke(A)
    world.client.will_assign(A)
    with pytest.raises(SourceChanged, match="decisions"):
        world.until_saved({0: [0, 1, 2, 3]})
    assert world.saved.offsets == {0: [0, 1, 2]}


def test_a_client_that_delivers_nothing_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(A)
    world.until_saved({0: [0, 1, 2]})
    world.client.stalled.add(A)
    world.broker.append(A)
    seconds = count(time.monotonic())
    monkeypatch.setattr(world.worker._ends, "_clock", lambda: next(seconds))
    with pytest.raises(BrokerUnavailable, match="has stalled on decisions/0"):
        repeat(world.step, 200)


def test_a_batch_is_read_again_if_a_partition_moves_before_it_is_added() -> None:
    world = World(A)
    world.until_saved({0: [0, 1, 2]})
    for place in (A, B, B):
        world.broker.append(place)
    world.client.will_assign(B)
    world.moves_at_take = A
    world.until_saved({0: [0, 1, 2], 1: [0, 1]})


def test_offsets_of_an_accepted_topic_are_kafkas_in_the_group() -> None:
    world = World(A)
    SourceRegister(world.store, BESIDE_SOURCES_KEY, {"decisions": "decisions"}).accept({"decisions": "id-of-decisions"})
    world.begin(A)
    base = base_of(1)
    world.until_saved({0: [base, base + 1, base + 2]})
    assert world.broker.committed == {A: 3}


def test_a_revoked_partition_changes_the_assignment_and_is_dropped() -> None:
    world = World(A, B)
    world.until_saved({0: [0, 1, 2], 1: [0, 1, 2]})
    before = world.worker.assignment
    world.client.will_revoke(A)
    world.step()
    assert (world.worker.has(0), world.worker.has(1)) == (False, True)
    assert world.worker.assignment != before


def test_a_partition_that_another_worker_has_ends_this_one() -> None:
    world = World(A)
    world.saved.failures = [StoreConflict("partition 0 is another worker's")]
    world.step()
    world.saved.failures = [StoreConflict("partition 0 is another worker's")]
    world.broker.append(A)
    with pytest.raises(TemporaryFailure, match="this worker ends"):
        world.until_saved({0: [0, 1, 2, 3]})


def test_a_partition_that_is_ahead_waits_and_the_others_go_on() -> None:
    world = World(A, B)
    world.until_saved({0: [0, 1, 2], 1: [0, 1, 2]})
    world.works[0].is_ahead = True
    world.step()
    for place in (A, B):
        world.broker.append(place)
    world.until_saved({0: [0, 1, 2], 1: [0, 1, 2, 3]})
    world.works[0].is_ahead = False
    world.until_saved({0: [0, 1, 2, 3], 1: [0, 1, 2, 3]})


def test_all_is_read_only_when_the_end_at_that_time_is_passed() -> None:
    partition = partition_worker._Partition([])
    partition.mark = (980, 36_000)
    partition.passed(500)
    assert partition.quiet_ms == 0
    partition.passed(990)
    assert partition.quiet_ms == 36_000
