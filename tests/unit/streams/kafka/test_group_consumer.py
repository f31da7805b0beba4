"""A BatchConsumer with a client that behaves like the real one: tests/fakes/kafka.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.group_consumer import BatchConsumer, PartitionCut, offsets_after
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.stalls.stall_detector import NOTHING_HEARD
from tests.fakes.kafka import FakeBroker, FakeConsumer, FakeMessage

A, B, SLOW = ("t", 0), ("t", 1), ("slow", 0)
WAIT_S = 0.001


class Group:
    """A worker of a group with these partitions, each with some records."""

    def __init__(self, *places: PartitionId, count: int = 3) -> None:
        self.broker = FakeBroker()
        for place in places:
            for _ in range(count):
                self.broker.append(place)
        self.client = FakeConsumer(self.broker)
        self.consumer = BatchConsumer(self.client, commit_again_s=0)  # type: ignore[arg-type]
        self.consumer.subscribe(["t", "slow"])
        self.client.will_assign(*places)

    def take(self, count_max: int = 10) -> list[tuple[PartitionId, int]]:
        return [((record.topic, record.partition), record.offset) for record in self.take_records(count_max)]

    def take_records(self, count_max: int = 10) -> list[Record]:
        return self.consumer.take(count_max, WAIT_S).records


def test_a_partition_that_leaves_and_comes_back_within_a_batch_is_read_once() -> None:
    group = Group(A, B)
    consume = group.client.consume

    def consume_and_rebalance(count_max: int, timeout: float) -> Any:
        found = consume(count_max, timeout)
        group.client.consume = consume  # type: ignore[method-assign]
        group.client.will_revoke(A)
        group.client.will_assign(A)
        return found

    # The first call waits for a record, the second takes all that are there.
    group.client.consume = consume_and_rebalance  # type: ignore[method-assign]
    assert sorted(group.take()) == [(place, offset) for place in (A, B) for offset in range(3)]


def test_the_same_offsets_are_not_committed_again() -> None:
    group = Group(A)
    group.take()
    group.consumer.commit({A: 3})
    group.consumer.commit({A: 3})
    assert group.client.commits == [{A: 3}]


def test_a_commit_carries_the_epoch_of_the_leader() -> None:
    """Without it no later client can notice that another leader has replaced records before the offset."""
    group = Group(A)
    group.take()
    group.client.epochs[A] = 7
    group.consumer.commit({A: 3})
    assert [place.leader_epoch for place in group.client.committed_places] == [7]


def test_a_record_that_the_worker_has_written_is_taken_at_once_and_given_once() -> None:
    group = Group(A, B)
    group.take()
    for place in (A, B):
        group.client.epochs[place] = 7
    group.broker.append(B)
    written = [Record(*place, group.broker.append(place), None, b"", 0, None) for place in (A, A, B)]
    # Another worker's record lies before the one in B.
    assert group.consumer.take_ahead(written) == written[:2]
    group.consumer.commit(offsets_after(written[:2], {A: 3, B: 3}))
    assert group.broker.committed == {A: 5, B: 3}
    # A later leader than the client's may have the record.
    assert {place.partition: place.leader_epoch for place in group.client.committed_places} == {0: None, 1: 7}
    group.broker.append(A)
    assert sorted(group.take()) == [(A, 5), (B, 3), (B, 4)]


def test_an_end_that_was_told_before_a_record_was_written_is_left_out() -> None:
    group = Group(A)
    group.take(count_max=3)
    written = [Record(*A, group.broker.append(A), None, b"", 0, None)]
    assert group.consumer.take_ahead(written) == written
    # The client had this one to hand out before the record was there.
    told: list[Any] = [FakeMessage(A, 3, code=KafkaError._PARTITION_EOF)]
    group.client.consume = lambda *_, **__: told  # type: ignore[method-assign]
    assert group.consumer.take(10, WAIT_S).ended == {}
    assert group.consumer.positions() == {A: 4}


def test_records_that_expired_unread_are_told_and_reading_goes_on_behind_them() -> None:
    group = Group(A, SLOW, count=5)
    expired: list[tuple[PartitionId, int]] = []
    group.consumer._on_expired = lambda place, count: expired.append((place, count))
    group.consumer.pause("slow", True)
    group.broker.begins[A] = group.broker.begins[SLOW] = 2
    group.broker.committed.update({A: 0, SLOW: 0})
    group.take()
    assert group.take() == [(A, 2), (A, 3), (A, 4)]
    assert expired == [(A, 2)]
    # A paused partition is not read, and tells later.
    group.consumer.pause("slow", False)
    group.take()
    assert group.take() == [(SLOW, 2), (SLOW, 3), (SLOW, 4)]
    assert expired == [(A, 2), (SLOW, 2)]


def test_a_displaced_partition_stays_on_hold() -> None:
    group = Group(A)
    group.take()
    group.consumer.commit({A: 3})
    for _ in range(4):
        group.broker.append(A)
    group.broker.begins[A] = 5
    group.consumer.hold()
    group.client.paused.clear()
    assert group.consumer.wait(WAIT_S)
    group.take()
    assert group.client.paused == {A}
    group.consumer.release()
    assert group.take() == [(A, 5), (A, 6)]


def test_a_partition_that_ends_before_what_was_read_is_an_error() -> None:
    group = Group(A)
    group.take()
    del group.broker.records[A][1:]
    with pytest.raises(PartitionCut) as cut:
        group.take()
    assert (cut.value.topic, cut.value.cut) == ("t", "partition 0 was read to offset 3 and ends at 1")


def test_a_lost_end_is_noticed_although_the_partition_has_grown_past_it() -> None:
    group = Group(A)
    group.take()
    del group.broker.records[A][1:]
    read = group.client.consume

    def read_while_it_grows(count_max: int, timeout: float) -> Any:
        messages = read(count_max, timeout)
        for _ in range(9):
            group.broker.append(A)
        return messages

    group.client.consume = read_while_it_grows  # type: ignore[method-assign]
    with pytest.raises(PartitionCut, match="ended before it, and has other records there now"):
        group.take()


def test_records_of_a_partition_revoked_in_the_same_call_are_dropped() -> None:
    group = Group(A, B)
    group.take()
    group.broker.append(A)
    group.broker.append(B)
    group.client.will_revoke(B)
    group.client.rebalances_late = True
    assert group.take() == [(A, 3)]


def test_a_partition_assigned_during_a_hold_waits_for_the_release() -> None:
    group = Group(A)
    group.take()
    group.consumer.hold()
    group.broker.append(B)
    group.client.will_assign(B)
    assert group.consumer.wait(WAIT_S)
    assert group.client.paused == {A, B}
    group.consumer.release()
    assert group.take() == [(B, 0)]


def test_a_paused_topic_stays_paused_over_holds_and_assignments() -> None:
    group = Group(A, SLOW)
    group.consumer.pause("slow", True)
    assert group.take() == [(A, 0), (A, 1), (A, 2)]
    group.consumer.hold()
    group.consumer.release()
    assert group.take() == []
    group.consumer.pause("slow", False)
    assert group.take() == [(SLOW, 0), (SLOW, 1), (SLOW, 2)]


def test_records_that_arrive_during_a_hold_are_read_again_if_abandoned() -> None:
    group = Group(A, B, count=2)
    group.take(1)
    group.consumer.hold()
    group.client.on_its_way.update({A, B})
    assert group.consumer.wait(WAIT_S)
    group.consumer.release()
    group.consumer.abandon()
    assert group.take() == [(A, 0), (A, 1), (B, 0), (B, 1)]


def test_an_abandoned_batch_returns_the_partitions_to_read_again() -> None:
    group = Group(A, B)
    group.take()
    group.consumer.commit({A: 3})
    group.consumer.hold()
    group.consumer.release()
    assert group.consumer.abandon() == [B]


def test_a_failed_commit_does_not_make_records_read_again() -> None:
    group = Group(A)
    group.take(2)
    group.client.commit_error = KafkaError.REBALANCE_IN_PROGRESS
    group.consumer.commit({A: 2})
    group.take()
    group.consumer.hold()
    group.consumer.release()
    group.consumer.abandon()
    assert group.take() == [(A, 2)]


PLACES = (A, B, SLOW)


def test_positions_cover_read_partitions_and_start_unknown() -> None:
    group = Group(A, B, SLOW, count=2)
    assert group.consumer.positions() == {}
    group.take(1)
    assert group.consumer.positions() == {A: NOTHING_HEARD, B: NOTHING_HEARD, SLOW: 1}
    group.take()
    assert group.consumer.positions() == {A: 2, B: 2, SLOW: 2}
    group.consumer.pause("slow", True)
    assert group.consumer.positions() == {A: 2, B: 2}
    group.consumer.hold()
    assert group.consumer.positions() == {}
    group.consumer.release()
    group.client.will_revoke(B)
    group.take()
    assert group.consumer.positions() == {A: 2}
    group.consumer.abandon()
    assert group.consumer.positions() == {A: NOTHING_HEARD}


def test_lag_uses_the_clients_ends_or_the_brokers_newer_ones() -> None:
    group = Group(A, B)
    group.broker.unseen[B] = 1
    group.take(4)
    assert group.consumer.lag({}) == {A: 0, B: 4}
    group.take()
    # Nothing follows the marker of a transaction, which no reader sees.
    assert group.consumer.lag({}) == {A: 0, B: 0}
    assert group.consumer.lag({A: 10, B: 2, SLOW: 9}) == {A: 7, B: 0}


def test_the_end_of_an_empty_partition_is_a_position() -> None:
    group = Group(A, count=0)
    group.take()
    assert group.consumer.positions() == {A: 0}


class AnyOrder(RuleBasedStateMachine):
    """In any order of calls: every committed record was processed, and every other record is handed out again.

    `slow` stands for outcomes: what is taken of it waits, and is worked in by a later batch. Partitions go to another
    worker and come back, perhaps after it has worked in some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broker = FakeBroker()
        self.client = FakeConsumer(self.broker)
        self.waiting: list[Record] = []
        client: Any = self.client
        self.consumer = BatchConsumer(client, on_revoked=self._on_revoked, commit_again_s=0)
        self.consumer.subscribe(["t", "slow"])
        self.worked: dict[PartitionId, set[int]] = {place: set() for place in PLACES}
        self.batch: list[Record] | None = None
        self.ended: dict[PartitionId, int] = {}
        # Where each partition will be after the client has reported the rebalance.
        self.ours: set[PartitionId] = set()
        self.held = self.is_paused = False

    def _on_revoked(self, places: Sequence[PartitionId]) -> None:
        gone = set(places)
        self.waiting = [record for record in self.waiting if (record.topic, record.partition) not in gone]

    @rule(place=st.sampled_from(PLACES))
    def produce(self, place: PartitionId) -> None:
        self.broker.append(place)

    @rule(place=st.sampled_from(PLACES), late=st.booleans(), other=st.integers(0, 3))
    def rebalance(self, place: PartitionId, late: bool, other: int) -> None:
        self.client.rebalances_late = late
        if place in self.ours:
            self.ours.discard(place)
            self.client.will_revoke(place)
        else:
            if place not in self.client.assigned:
                # The other worker has processed some records meanwhile.
                first = self.broker.committed.get(place, 0)
                last = min(first + other, len(self.broker.records.get(place, ())))
                self.worked[place].update(range(first, last))
                self.broker.committed[place] = last
            self.ours.add(place)
            self.client.will_assign(place)

    @rule(place=st.sampled_from(PLACES))
    def one_is_on_its_way(self, place: PartitionId) -> None:
        self.client.on_its_way.add(place)

    @rule(fails=st.booleans())
    def commits_fail(self, fails: bool) -> None:
        self.client.commit_error = KafkaError.REBALANCE_IN_PROGRESS if fails else None

    @rule(places=st.sets(st.sampled_from(PLACES)))
    def commits_fail_for(self, places: set[PartitionId]) -> None:
        self.client.refused_places = places

    @precondition(lambda self: self.batch is None)
    @rule(count_max=st.integers(1, 5))
    def take(self, count_max: int) -> None:
        consumed = self.consumer.take(count_max, WAIT_S)
        self.batch = [record for record in consumed.records if record.topic != "slow"]
        self.waiting += [record for record in consumed.records if record.topic == "slow"]
        self.ended = {place: end for place, end in consumed.ended.items() if place != SLOW}

    @precondition(lambda self: self.batch is not None and self.waiting)
    @rule()
    def some_become_due(self) -> None:
        assert self.batch is not None
        self.batch += self.waiting
        self.waiting = []

    @precondition(lambda self: self.batch is not None and not self.held)
    @rule()
    def finish(self) -> None:
        assert self.batch is not None
        for record in self.batch:
            self.worked[record.topic, record.partition].add(record.offset)
        self.consumer.commit(offsets_after(self.batch, self.ended))
        self.batch = None

    @precondition(lambda self: self.batch is not None and not self.held)
    @rule(place=st.sampled_from((A, B)), strangers=st.integers(0, 1), count=st.integers(1, 3))
    def write_and_take_ahead(self, place: PartitionId, strangers: int, count: int) -> None:
        """The worker writes to a partition, and perhaps another worker a moment before."""
        assert self.batch is not None
        for _ in range(strangers):
            self.broker.append(place)
        written = [Record(*place, self.broker.append(place), None, b"", 0, None) for _ in range(count)]
        self.batch += self.consumer.take_ahead(written)

    @precondition(lambda self: self.batch is not None and not self.held)
    @rule()
    def hold(self) -> None:
        self.consumer.hold()
        self.held = True

    @precondition(lambda self: self.held)
    @rule()
    def wait(self) -> None:
        if not self.consumer.wait(WAIT_S):
            self.give_up()

    @precondition(lambda self: self.held)
    @rule()
    def go_on(self) -> None:
        self.consumer.release()
        self.held = False

    @precondition(lambda self: self.held)
    @rule()
    def give_up(self) -> None:
        self.consumer.release()
        self.consumer.abandon()
        self.waiting, self.batch, self.held = [], None, False

    @rule(pause=st.booleans())
    def pause(self, pause: bool) -> None:
        self.is_paused = pause
        self.consumer.pause("slow", pause)

    @invariant()
    def what_is_committed_was_worked_in(self) -> None:
        for place, committed in self.broker.committed.items():
            assert self.worked[place] >= set(range(committed)), place

    def teardown(self) -> None:
        """After all rebalances everything is processed and committed."""
        if self.held:
            self.go_on()
        if self.batch is not None:
            self.finish()
        self.client.commit_error, self.client.refused_places = None, set()
        self.pause(False)
        self.client.will_assign(*(place for place in PLACES if place not in self.ours))
        for _ in range(50):
            self.take(100)
            if self.waiting:
                self.some_become_due()
            self.finish()
        for place, log in self.broker.records.items():
            assert self.worked[place] == set(range(len(log))), place
            assert self.broker.committed.get(place, 0) == len(log), place


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
