"""The stream worker's steps without a broker: clients in memory, and a store that can be down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from threading import Event, Thread, Timer
from typing import Any

import pytest

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.base import StoreConflict, StoreHealth, Versioned
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, StoreUnavailable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.streams.kafka.source_register import SOURCES_KEY, SourceChanged, SourceRegister, split_offset
from paywarden.streams.profiles import set_aside
from paywarden.streams.profiles.events import ARRIVED_MS, record_key
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY, PREFIX
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.settings import PipelineOptions, PipelineTiming, StreamSettings
from tests.fakes.kafka import FakeBroker, FakeConsumer, Place, clients_of
from tests.services.product.processes import wait_until
from tests.worlds.stream.packed import sources_of, without_sources
from tests.worlds.stream.topics import batch_profiles, small_world

P0, P1, O0 = ("payments", 0), ("payments", 1), ("outcomes", 0)
FRAMES: tuple[Place, ...] = (("repartition-card", 0), ("repartition-merchant", 0), ("repartition-device", 0))
TIMING = PipelineTiming(retry_first_s=0.001, ask_committed_every_s=0.0, outcomes_alone_after_s=0.0, frames_every_ms=0)
# The arrival of records on Kafka, and the worker's clock ten minutes later.
KAFKA_MS, NOW_MS = 1_800_000_000_000, 1_800_000_600_000
# How old what a worker knows of a partition's end may be, with the usual objective: two answers of the broker.
FETCH_AGE_MS = 666


class FakeSender:
    """Queues records. `flush` gives them to the broker in order, unless the broker is down."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.queued: list[tuple[str, int, bytes | None, bytes | None]] = []
        self.sent: list[tuple[str, int, bytes | None, bytes | None]] = []
        self.is_broker_away = False
        # Whether it tells the offsets of frames, as the real one does.
        self.tells = False
        # Runs before the next flush.
        self.meanwhile: Callable[[], object] = lambda: None
        self._wanting: list[Callable[[int], object]] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int = -1,
        on_sent: Callable[[int], object] = lambda _: None,
        **_: object,
    ) -> None:
        self.queued.append((topic, max(0, partition), key, value))
        if topic.startswith("repartition-"):
            self._wanting.append(on_sent if self.tells else lambda _: None)

    def poll(self) -> None:
        pass

    def flush(self, timeout_s: float) -> None:
        del timeout_s
        if self.is_broker_away:
            raise BrokerUnavailable("away")
        self.meanwhile()
        wanting, self._wanting = iter(self._wanting), []
        for topic, partition, _, value in self.queued:
            if topic.startswith("repartition-"):
                next(wanting, lambda _: None)(self._broker.append((topic, partition), value, NOW_MS))
        self.sent += self.queued
        self.queued = []

    def frames(self) -> list[tuple[int, dict[int, int]]]:
        """Returns the event count and the progress of each frame for cards, queued or sent."""
        values = [value for topic, _, _, value in self.sent + self.queued if topic == "repartition-card"]
        decoded = [decode_frame(value, 1) for value in values]
        return [(len(events.keys), progress) for events, progress in decoded]

    def claims(self) -> list[dict[int, int]]:
        return [progress for _, progress in self.frames() if progress]


class Store(MemoryStore):
    """A store that can be down or in conflict. At each refused call it runs the next of `meanwhile`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.meanwhile: list[Callable[[], object]] = []
        self.conflicts = 0
        self.calls = 0

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        self._check()
        return super().read_versioned(keys)

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int, versions: Mapping[bytes, int] | None = None) -> None:
        self._check()
        if self.conflicts:
            self.conflicts -= 1
            raise StoreConflict("another was faster")
        super().write(values, ttl_s=ttl_s, versions=versions)

    def health(self) -> StoreHealth:
        return StoreHealth("away" if self.is_away else "")

    def _check(self) -> None:
        self.calls += 1
        if self.is_away:
            if self.meanwhile:
                self.meanwhile.pop(0)()
            raise StoreUnavailable("away")


@cache
def engine() -> FeatureEngine:
    return FeatureEngine()


@cache
def world() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    payments, outcomes = small_world()
    return payments.slice(0, 60).to_pylist(), outcomes.to_pylist()


class Worker:
    """A pipeline with its broker, clients and store in memory."""

    def __init__(
        self, *places: Place, batch_max: int = 100, timing: PipelineTiming = TIMING, progress_every_ms: int = 0
    ) -> None:
        self.broker = FakeBroker(partition_counts={"payments": 2})
        self.client = FakeConsumer(self.broker)
        self.clients = [self.client, FakeConsumer(self.broker)]
        self.sender = FakeSender(self.broker)
        self.store = Store()
        self.stop = Event()
        self.now_ms = NOW_MS
        ids = LocalSchemaIds()
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self.pipeline = Pipeline(
            clients=clients_of(self.broker, consumers=self.clients, sender=self.sender),
            # The payments are years older than their records.
            settings=StreamSettings(
                batch_max=batch_max,
                batch_wait_ms=1,
                progress_every_ms=progress_every_ms,
                stall_timeout_s=20,
                past_ms_max=TIME_BOUND_MS_MAX,
            ),
            store=self.store,
            engine=engine(),
            rates=load_rates(),
            ids=ids,
            options=PipelineOptions(timing=replace(timing, now_ms=lambda: self.now_ms)),
        )
        self.pipeline.join()
        self.client.will_assign(*(places or (P0, P1, O0, *FRAMES)))

    def end(self, topic: str, partition: int) -> int:
        return self.broker.end((topic, partition))

    def pay(self, rows: Sequence[Mapping[str, Any]], place: Place = P0) -> None:
        for number, row in enumerate(rows):
            self.broker.append(place, self._payments.encode(dict(row)), KAFKA_MS + number)

    def report(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self.broker.append(O0, self._outcomes.encode(dict(row)), KAFKA_MS)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.pipeline.step(self.stop)

    def step_while_store_is_away(self, *, lost: Place | None = None) -> None:
        """Run a step while the store is down; a stop ends it, or the loss of a partition."""
        self.store.is_away = True
        if lost is not None:
            self.step_revoking(lost)
        else:
            timer = Timer(0.05, self.stop.set)
            timer.start()
            self.step()
            timer.join()
            self.stop.clear()

    def step_revoking(self, lost: Place) -> None:
        consume = self.client.consume

        def consume_then_revoke(count_max: int, timeout: float) -> Any:
            found = consume(count_max, timeout)
            if count_max > 1:
                # The worker has taken its batch.
                self.client.consume = consume  # type: ignore[method-assign]
                self.client.will_revoke(lost)
            return found

        self.client.consume = consume_then_revoke  # type: ignore[method-assign]
        self.step()

    def profiles(self) -> dict[bytes, bytes]:
        return {key: value for entity in engine().plan.entity_names for key, value in self.store.scan(entity)}


@pytest.fixture
def worker() -> Worker:
    return Worker()


def profiles_of(count: int) -> dict[bytes, bytes]:
    """Returns the profiles of the first `count` payments, in the form of `Worker.profiles`."""
    payments, outcomes = small_world()
    return in_essence(batch_profiles(payments.slice(0, count), outcomes.slice(0, 0)))


def in_essence(profiles: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: without_sources(value) for key, value in profiles.items()}


def assert_profiles_are_of(worker: Worker, count: int) -> None:
    assert in_essence(worker.profiles()) == profiles_of(count)


def test_payments_reach_profiles_and_the_changelog_matches_the_store(worker: Worker) -> None:
    worker.pay(world()[0])
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed[P0] == 60
    last = {key: value for topic, _, key, value in worker.sender.sent if topic == "profiles"}
    states = worker.profiles()
    assert {key for key in last if key and not key.startswith(PREFIX)} == states.keys()
    assert all(states[key] in (value or b"") for key, value in last.items() if key in states)


def test_a_worker_does_not_wait_for_frames_that_it_has_written_to_itself() -> None:
    worker = Worker(timing=replace(TIMING, frames_every_ms=HOUR_MS))
    worker.sender.tells = True
    worker.step()
    worker.client.commits.clear()
    worker.pay(world()[0][:30])
    worker.step()
    assert_profiles_are_of(worker, 30)
    # Payments and frames are committed together, and the frames are not worked in again. The first one tells progress.
    assert worker.client.commits == [{P0: 30, **dict.fromkeys(FRAMES, 2)}]
    worker.step(3)
    assert worker.pipeline.metrics._replayed.labels("card")._value.get() == 0
    worker.pay(world()[0][30:])
    worker.step()
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 3)}


def test_frames_behind_those_of_another_worker_are_read_from_the_topic() -> None:
    """Their order in the partition is that of the profile's events."""
    worker = Worker(timing=replace(TIMING, frames_every_ms=HOUR_MS))
    worker.sender.tells = True
    worker.step()
    worker.pay(world()[0])
    worker.sender.meanwhile = lambda: [worker.broker.append(place, b"", NOW_MS) for place in FRAMES]
    worker.step()
    assert worker.profiles() == {}
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 0)}
    worker.sender.meanwhile = lambda: None
    worker.step()
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **{place: worker.end(*place) for place in FRAMES}}


def test_a_worker_abandons_its_own_frames_as_any_others() -> None:
    worker = Worker(timing=replace(TIMING, frames_every_ms=HOUR_MS))
    worker.sender.tells = True
    worker.step()
    worker.pay(world()[0])

    def store_goes() -> None:
        worker.store.is_away = True
        worker.store.meanwhile = [lambda: worker.client.will_revoke(FRAMES[1])]

    worker.sender.meanwhile = store_goes
    worker.step()
    assert worker.pipeline.metrics.abandoned._value.get() == 1
    worker.sender.meanwhile = lambda: None
    worker.store.is_away = False
    worker.client.will_assign(FRAMES[1])
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed[P0] == 60


def test_an_offset_is_committed_only_after_the_broker_has_its_results(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.sender.is_broker_away = True
    with pytest.raises(BrokerUnavailable):
        worker.step()
    assert worker.broker.committed == {}
    assert sum(count for count, _ in worker.sender.frames()) == 5


def test_no_event_is_sent_before_its_payment_is_stored(worker: Worker) -> None:
    """After a crash between the two, a repeated payment in another record would count as a new one."""
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away()
    assert worker.sender.frames() == []
    assert worker.broker.committed == {}


def test_no_state_is_sent_that_the_store_has_not_acknowledged(worker: Worker) -> None:
    """Otherwise mirrors would hold states that a restart takes back."""
    worker.pay(world()[0][:5])
    worker.step()
    worker.step_while_store_is_away()
    sent = [key or b"" for topic, _, key, _ in worker.sender.sent + worker.sender.queued if topic == "profiles"]
    assert [key for key in sent if not key.startswith(PREFIX)] == []


def test_while_the_store_is_down_nothing_is_read_and_then_it_goes_on(worker: Worker) -> None:
    worker.pay(world()[0][:20])
    worker.store.is_away = True
    worker.store.meanwhile = [
        lambda: worker.pay(world()[0][20:]),
        lambda: None,
        lambda: setattr(worker.store, "is_away", False),
    ]
    worker.step()
    assert worker.store.meanwhile == []
    assert worker.broker.committed == {P0: 20, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 0)}
    worker.step(5)
    assert_profiles_are_of(worker, 60)


def test_a_store_that_is_down_is_not_asked_in_a_busy_loop() -> None:
    worker = Worker(timing=replace(TIMING, retry_first_s=0.02))
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away()
    # The pauses double: a busy loop would ask thousands of times.
    assert worker.store.calls <= 12


def test_a_worker_that_waits_for_its_store_turns_and_one_that_hangs_does_not(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s = 0.0
    turned: list[bool] = []
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed_s)

    def takes(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds
        turned.append(worker.pipeline.turns())

    worker.pay(world()[0][:5])
    worker.store.is_away = True
    # Each try takes long; the last one takes longer than a round may.
    worker.store.meanwhile = [
        *[lambda: takes(100)] * 3,
        lambda: takes(181),
        lambda: setattr(worker.store, "is_away", False),
    ]
    worker.step()
    assert turned == [True, True, True, False]
    assert worker.pipeline.turns()


def test_an_abandoned_batch_loses_no_records(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.pay(world()[0][30:], P1)
    worker.step_while_store_is_away(lost=P1)
    worker.store.is_away = False
    worker.step(5)
    worker.client.will_assign(P1)
    worker.step(5)
    assert_profiles_are_of(worker, 60)
    assert worker.pipeline.metrics.abandoned._value.get() == 1


def test_a_worker_is_ready_again_only_when_the_store_is_healthy(worker: Worker) -> None:
    """An abandoned batch does not show that the store is back."""
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away(lost=P0)
    assert worker.pipeline.problems() == ["the store does not take batches: away"]
    worker.step()
    assert worker.pipeline.problems() == ["the store does not take batches: away"]
    worker.store.is_away = False
    worker.pipeline._store_retry.ask_at = 0.0
    worker.step()
    assert worker.pipeline.problems() == []


def test_a_store_conflict_reads_again_and_loses_nothing(worker: Worker) -> None:
    worker.pay(world()[0])
    # The first answers the try to write payments' records unread, which is no other worker's doing.
    worker.store.conflicts = 3
    worker.step(5)
    assert_profiles_are_of(worker, 60)
    assert worker.pipeline.metrics.conflicts._value.get() == 2
    assert worker.pipeline.metrics.duplicates._value.get() == 0


def test_sent_records_are_flushed_before_a_partition_is_revoked(worker: Worker) -> None:
    """The next owner's frames must not come before those of this worker."""
    worker.step()
    worker.sender.queued.append(("repartition-card", 0, None, b""))
    worker.client.will_revoke(P0)
    worker.step()
    assert ("repartition-card", 0, None, b"") in worker.sender.sent


@pytest.mark.parametrize("place", [P0, O0, FRAMES[0]])
def test_too_many_refusals_stop_before_anything_is_committed(worker: Worker, place: Place) -> None:
    for _ in range(60):
        worker.broker.append(place, b"x")
    with pytest.raises(Misconfigured, match="cannot be used"):
        worker.step(3)
    assert place not in worker.broker.committed


# Outcomes


def outcomes_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wanted = {row["payment_id"] for row in rows}
    return [row for row in world()[1] if row["payment_id"] in wanted]


def test_an_outcome_is_not_committed_before_it_is_processed(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.report(outcomes_of(rows))
    # Its payments belong to another worker and are not committed yet.
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.step(5)
    assert O0 not in worker.broker.committed
    worker.client.will_assign(P1)
    worker.step(8)
    assert worker.broker.committed[O0] == len(outcomes_of(rows)) > 0
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_outcomes_wait_for_a_batch_of_payments_to_go_with() -> None:
    """A batch of their own would cost as much as one of payments, several times a second."""
    worker = Worker(timing=replace(TIMING, outcomes_alone_after_s=3_600.0))
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.step(4)
    assert O0 not in worker.broker.committed
    worker.client.commits.clear()
    worker.pay(world()[0][20:30])
    worker.step()
    (commit,) = worker.client.commits
    assert (commit[P0], commit[O0]) == (30, len(outcomes_of(rows)))


def test_outcomes_go_alone_where_no_payments_come() -> None:
    worker = Worker(timing=replace(TIMING, outcomes_alone_after_s=0.001))
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))

    def are_worked_in() -> bool:
        worker.step()
        return O0 in worker.broker.committed

    wait_until(are_worked_in, what="the outcomes are worked in")


def test_a_worker_of_all_payments_does_not_ask_what_is_committed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("it knows what it has committed itself")

    rows = world()[0][:20]
    worker.step()
    monkeypatch.setattr(worker.client, "committed", fail)
    worker.pay(rows[:10])
    worker.pay(rows[10:], P1)
    worker.report(outcomes_of(rows))
    worker.step(8)
    assert worker.broker.committed[O0] == len(outcomes_of(rows)) > 0


def test_the_end_behind_transaction_markers_is_committed_after_waiting(worker: Worker) -> None:
    """A reader that waits until the group reaches the end would wait for ever without this commit."""
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.broker.unseen[O0] = 1
    worker.step(8)
    assert worker.broker.committed[O0] == worker.broker.end(O0) == len(outcomes_of(rows)) + 1


def test_waiting_outcomes_are_read_again_after_an_abandoned_batch(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.report(outcomes_of(rows))
    worker.step(2)
    worker.pay(world()[0][20:25])
    worker.step_while_store_is_away(lost=P0)
    worker.store.is_away = False
    worker.client.will_assign(P0, P1)
    worker.step(10)
    assert worker.broker.committed[O0] == len(outcomes_of(rows))
    assert worker.pipeline.metrics.outcomes._value.get() == len(outcomes_of(rows))
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_waiting_outcomes_of_a_revoked_partition_go_to_the_next_owner(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.report(outcomes_of(rows))
    worker.step(2)
    worker.client.will_revoke(O0)
    worker.client.will_assign(P1)
    worker.step(8)
    assert worker.broker.committed[P1] == 20
    assert worker.pipeline.metrics.outcomes._value.get() == 0


def test_outcomes_are_paused_while_too_many_wait() -> None:
    worker = Worker(O0, *FRAMES, batch_max=5)
    worker.broker.append(P0, b"")
    worker.report(world()[1][:50])
    worker.step(20)
    assert worker.pipeline.metrics.waiting_outcomes._value.get() <= 10
    assert O0 not in worker.broker.committed


# Progress


def test_progress_is_sent_behind_the_events_it_speaks_of(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step()
    assert worker.sender.frames() == [(5, {}), (0, {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS})]


def test_an_abandoned_batch_sends_no_progress_of_its_records(worker: Worker) -> None:
    worker.step()
    claimed = len(worker.sender.claims())
    worker.pay(world()[0][:5])
    worker.pay(world()[0][5:10], P1)
    worker.step_while_store_is_away(lost=P1)
    # The client needs a while until it has the records again.
    read = worker.client._read
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.store.is_away = False
    worker.step()
    assert all(0 not in claim for claim in worker.sender.claims()[claimed:])
    worker.client._read = read  # type: ignore[method-assign]
    worker.step()
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS}


def test_after_a_hold_an_end_counts_only_when_reported_again(worker: Worker) -> None:
    """More payments may come while the worker reads nothing."""
    worker.step()
    worker.pay(world()[0][:1], P1)
    worker.store.is_away = True
    back = Timer(0.05, lambda: setattr(worker.store, "is_away", False))
    back.start()
    worker.step()
    back.join()
    worker.now_ms += 10_000
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    # Both are complete to where they were before the hold.
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS}


def test_after_a_rebalance_an_end_counts_only_when_reported_again(worker: Worker) -> None:
    """The client reads nothing until the worker has let it report the rebalance."""
    worker.step()
    claimed = len(worker.sender.claims())
    worker.now_ms += 10_000
    worker.client.will_revoke(P1)
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    # What was claimed before the rebalance stays true.
    assert worker.sender.claims()[claimed:] == [{0: NOW_MS - FETCH_AGE_MS}]


def test_a_full_batch_sends_no_progress_by_the_clock() -> None:
    """Records of another partition may wait in the client when the batch is full."""
    worker = Worker(P0, P1, batch_max=10)
    worker.step()
    worker.now_ms += 10_000
    worker.pay(world()[0][:15])
    worker.pay(world()[0][15:16], P1)
    worker.step()
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS}


class Restarted:
    """A worker in a thread with two clients, one after the other; the first one stalls on `stalled`."""

    def __init__(self, *stalled: Place) -> None:
        self.worker = Worker(timing=replace(TIMING, ask_ends_every_s=0.0))
        self.clients = self.worker.clients
        self.clients[0].stalled.update(stalled)
        self.clients[1].will_assign(P0, P1, O0, *FRAMES)

    def run_until(self, ended: Callable[[], bool], may_begin: Callable[[], bool] = lambda: True) -> None:
        thread = Thread(target=self.worker.pipeline.run, args=(self.worker.stop, may_begin))
        thread.start()
        try:
            wait_until(lambda: ended() or not thread.is_alive(), "the worker has come so far", every_s=0.01)
            assert ended()
        finally:
            self.worker.stop.set()
            thread.join()


@pytest.mark.parametrize("lost", [P0, FRAMES[0]])
def test_a_stalled_client_is_replaced_and_nothing_is_lost(
    lost: Place,
) -> None:
    restarted = Restarted(lost)
    worker = restarted.worker
    worker.pay(world()[0], P0)
    wanted = profiles_of(60)
    restarted.run_until(lambda: in_essence(worker.profiles()) == wanted)
    assert [client.is_closed for client in restarted.clients] == [True, True]
    assert worker.broker.committed[P0] == 60
    assert next(sample.value for family in worker.pipeline.metrics.stalls.collect() for sample in family.samples) == 1


def test_a_worker_with_a_new_client_asks_again_whether_it_may_begin() -> None:
    restarted = Restarted(P0)
    worker = restarted.worker
    worker.pay(world()[0], P0)
    asked = iter([True, False])
    restarted.run_until(lambda: restarted.clients[1].is_closed, may_begin=lambda: next(asked))
    assert worker.broker.committed.get(P0, 0) == 0


def changelog_progress(worker: Worker) -> list[bytes]:
    """Returns the keys of the progress that travels with the frames."""
    sent = worker.sender.sent + worker.sender.queued
    keys = [key for topic, _, key, _ in sent if topic == "profiles" and key is not None]
    return [key for key in keys if key.startswith(PREFIX) and key != CLAIM_KEY]


def claimed_ms(worker: Worker) -> list[int]:
    """Returns the moments that the worker has claimed, 0 for none yet."""
    sent = worker.sender.sent + worker.sender.queued
    values = [value for topic, _, key, value in sent if topic == "profiles" and key == CLAIM_KEY]
    return [Decoder("profiles", LocalSchemaIds()).decode(value or b"")["complete_to_time_ms"] for value in values]


def test_a_worker_claims_completeness_when_all_it_has_read_is_in(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step()
    assert worker.broker.committed[P0] == 5
    assert set(claimed_ms(worker)) == {0}
    worker.sender.flush(1)
    worker.step(6)
    assert claimed_ms(worker)[-1] == NOW_MS


def test_a_worker_without_records_sleeps_until_it_has_something_to_do() -> None:
    worker = Worker(progress_every_ms=300, timing=replace(TIMING, outcomes_alone_after_s=3_600.0))
    worker.step(4)
    assert worker.pipeline._first_wait_s() == pytest.approx(0.3)
    worker.now_ms += 300
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS + 300
    # No payments have come since the last round: the next one is due after twice 300 ms.
    assert worker.pipeline._first_wait_s() == pytest.approx(0.5)
    worker.now_ms += 400
    assert worker.pipeline._first_wait_s() == pytest.approx(0.2)
    worker.now_ms += 200
    worker.step(2)
    assert claimed_ms(worker)[-1] == NOW_MS + 900
    # While outcomes wait for their payments it looks more often.
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.step(4)
    assert worker.broker.committed[O0] == 0
    assert worker.pipeline._first_wait_s() == pytest.approx(0.2)


def test_only_the_owner_of_the_first_repartition_partition_claims() -> None:
    worker = Worker(P0, P1, O0, *FRAMES[1:])
    worker.step(4)
    assert claimed_ms(worker) == []
    worker.client.will_assign(FRAMES[0])
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS


def test_a_claim_waits_for_what_other_workers_have_not_committed() -> None:
    worker = Worker(P0, O0, *FRAMES)
    worker.broker.append(P1)
    worker.step(4)
    assert set(claimed_ms(worker)) == {0}
    worker.broker.committed[P1] = 1
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS


def test_the_changelog_gets_no_progress_of_unapplied_events(worker: Worker) -> None:
    """The progress is in the frames of the batch that waits for the store."""
    worker.pay(world()[0][:5])
    worker.step()
    worker.sender.flush(1)
    worker.step_while_store_is_away(lost=FRAMES[0])
    worker.store.is_away = False
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    assert changelog_progress(worker) == []


def test_a_new_owner_sends_only_progress_that_it_has_read_itself(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step(4)
    assert b"progress:card:0" in changelog_progress(worker)
    told = len(changelog_progress(worker))
    worker.client.will_revoke(FRAMES[0])
    worker.step()
    # Another worker owns it meanwhile. After it has come back no frame has arrived yet.
    worker.broker.committed[FRAMES[0]] = worker.broker.end(FRAMES[0])
    worker.now_ms += 10_000
    worker.client.will_assign(FRAMES[0])
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    assert b"progress:card:0" not in changelog_progress(worker)[told:]
    assert ("card", 0) not in worker.pipeline._routed._heard


HOUR_MS = 3_600_000


@pytest.mark.parametrize("clock_ms", [-HOUR_MS, HOUR_MS], ids=["an hour behind", "an hour ahead"])
def test_the_clock_of_a_producer_decides_no_claim_and_no_age(clock_ms: int) -> None:
    """A producer ahead made stale profiles look fresh, one behind made fresh ones look stale."""
    worker = Worker(batch_max=10, timing=replace(TIMING, ask_ends_every_s=0.0))
    worker.step(2)
    asked_ms = worker.now_ms
    worker.now_ms += 1_000
    for row in world()[0]:
        time_ms = worker.now_ms + clock_ms
        worker.broker.append(P0, worker._payments.encode(dict(row)), time_ms, is_producers_time=True)
    claimed = len(worker.sender.claims())
    # Five of six batches: more records wait, so the worker is behind by an unknown time.
    worker.step(5)
    claims = [claim[0] for claim in worker.sender.claims()[claimed:] if 0 in claim]
    assert claims
    # The pause between question and answer is by the real clock, and this one jumps: the bounds are not sharp.
    assert all(asked_ms - HOUR_MS // 6 <= claim < worker.now_ms for claim in claims)
    worker.step(10)
    assert worker.now_ms - FETCH_AGE_MS <= worker.sender.claims()[-1][0] < worker.now_ms
    assert_profiles_are_of(worker, 60)
    arrived = [
        int(row[ARRIVED_MS])
        for topic, _, _, value in worker.sender.sent
        if topic == "repartition-card"
        for row in decode_frame(value, 1)[0].rows
    ]
    assert len(arrived) == 60
    assert all(asked_ms - HOUR_MS // 6 <= at_ms <= worker.now_ms for at_ms in arrived)


def test_a_topic_made_anew_is_not_read_until_it_is_accepted(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.broker.records[P0], worker.broker.committed[P0] = [], 0
    worker.pay(world()[0][30:])
    with pytest.raises(SourceChanged, match=r"^topic payments: it was deleted and made anew.*`paywarden source accept"):
        worker.pipeline.join()
    assert_profiles_are_of(worker, 30)
    SourceRegister(worker.store, SOURCES_KEY, {"payments": "payments"}).accept({"payments": "another"})
    worker.client.will_revoke(P0)
    worker.client.will_assign(P0)
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    offsets = {
        split_offset(sources_of(profile)[0]) for key, profile in worker.profiles().items() if 0 in sources_of(profile)
    }
    assert {generation for generation, _ in offsets} == {0, 1}
    assert max(offset for _, offset in offsets) == 29


def test_a_topic_made_anew_is_noticed_at_an_assignment_before_it_is_read(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.client.will_revoke(P1)
    worker.client.will_assign(P1)
    worker.pay(world()[0][30:], P1)
    with pytest.raises(SourceChanged):
        worker.step()
    assert_profiles_are_of(worker, 30)
    assert worker.broker.committed[P1] == 0


def test_an_outcome_whose_payment_stands_at_a_passed_offset_is_no_dead_letter(worker: Worker) -> None:
    """A topic made anew that has outgrown the old one is noticed late. Its first records count as read meanwhile."""
    rows = world()[0]
    reported = next(number for number in range(2, 60) if outcomes_of(rows[number : number + 1]))
    worker.pay(rows[:2])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.broker.records[P0] = []
    worker.pay([rows[reported], *(row for row in rows[2:20] if row is not rows[reported])])
    outcomes = outcomes_of(rows[reported : reported + 1])
    worker.report(outcomes)
    with pytest.raises(SourceChanged):
        worker.step(4)
    assert worker.broker.committed[O0] == 0
    SourceRegister(worker.store, SOURCES_KEY, {"payments": "payments"}).accept({"payments": "another"})
    worker.broker.committed[P0] = 0
    worker.client.will_revoke(P0, O0)
    worker.client.will_assign(P0, O0)
    worker.step(6)
    assert worker.broker.committed[O0] == len(outcomes)
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_a_partition_that_ends_before_what_was_read_stops_every_later_start(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    del worker.broker.records[P0][20:]
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 30 and ends at 20"):
        worker.step(2)
    # Once it has grown past the old end, its offsets show nothing.
    worker.pay(world()[0][30:])
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 30 and ends at 20"):
        worker.pipeline.join()


def test_records_that_expired_unread_are_counted_and_the_rest_is_read(worker: Worker) -> None:
    worker.step()
    worker.pay(world()[0])
    worker.broker.begins[P0] = 30
    worker.step(6)
    expired = worker.pipeline.metrics.expired.labels("payments")._value.get()
    assert expired == 30
    assert worker.broker.committed[P0] == 60


def test_an_unreadable_profile_stops_neither_the_worker_nor_other_profiles(worker: Worker) -> None:
    payments, _ = world()
    worker.pay(payments[:30])
    worker.step(4)
    card = min({row["card_id"] for row in payments[:30]} & {row["card_id"] for row in payments[30:]})
    key = f"card:{card}".encode()
    (good,) = worker.store.read([key])
    assert good is not None
    worker.store.write({key: b"\x63 of a later release"}, ttl_s=0)
    sent = len(worker.sender.sent)
    worker.pay(payments[30:])
    worker.step(4)
    # Every offset is committed, and the others are as if nothing had happened.
    assert worker.broker.committed[P0] == worker.end(*P0)
    others = {name: state for name, state in worker.profiles().items() if name != key}
    assert in_essence(others) == {name: state for name, state in profiles_of(60).items() if name != key}
    assert key not in [name for topic, _, name, _ in worker.sender.sent[sent:] if topic == "profiles"]
    # The bytes come back, and the next payment of the card.
    kept = set_aside.decode(worker.store.read([key])[0] or b"")
    worker.store.write({key: set_aside.SetAside(good, kept.rows).encode()}, ttl_s=0)
    worker.pay([{**payments[0], "card_id": card, "payment_id": "one more"}])
    worker.step(4)
    assert not set_aside.is_set_aside(worker.store.read([key])[0])
    value = worker.pipeline.metrics._restored.labels("card")._value.get()
    assert value == 1


def test_events_of_a_damaged_payment_record_become_dead_letters(worker: Worker) -> None:
    payments, _ = world()
    worker.store.write({record_key(payments[1]["payment_id"]): b"\xff damaged"}, ttl_s=0)
    worker.pay(payments[:3])
    worker.step(3)
    assert [topic for topic, *_ in worker.sender.sent].count("dead-letters") == 1
    assert worker.broker.committed[P0] == 3
