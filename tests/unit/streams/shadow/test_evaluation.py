"""A challenger's process: every live decision gets a partner, after any fault on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.shadow import SHADOW_TOPIC, ShadowRecord, ShadowSide
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable, BundleRefused
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.shadow import shadow_evaluation as evaluation
from paywarden.streams.shadow.challenger import FAILED, Evaluated
from paywarden.streams.shadow.shadow_evaluation import REFUSED, SHED, UNREADABLE, ShadowEvaluator
from paywarden.streams.shadow.shadow_settings import ShadowSettings
from paywarden.streams.shadow.spare_time import SpareTime
from tests.patience import PATIENCE_S

DECIDED_MS = 1_700_000_000_000
MEBIBYTE = 1024 * 1024


class FakeChallenger:
    """Declines everything, but for payments of the card "bad", on which it fails."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.threads: list[str] = []
        self.sizes: list[int] = []

    def evaluate(self, entries: Sequence[OutboxEntry]) -> Evaluated:
        self.threads.append(threading.current_thread().name)
        self.sizes.append(len(entries))
        found = Evaluated()
        for entry in entries:
            if entry.request.card_id == "bad":
                found.leave_out(FAILED)
                continue
            champion = ShadowSide(entry.response.score, entry.response.action, Version(entry.bundle_digest.hex()))
            found.records.append(
                ShadowRecord(
                    *(entry.response.decision_id, entry.request.payment_id, "c", entry.decided_time_ms, "b-42", "x"),
                    champion,
                    ShadowSide(0.9, "decline", Version(self.version, "p")),
                )
            )
        return found


@dataclass
class FakeSource:
    versions: list[str] = field(default_factory=lambda: ["b1"])
    while_loading: Callable[[], object] = lambda: None

    def load(self) -> FakeChallenger:
        self.while_loading()
        version = self.versions.pop(0)
        if version == "damaged":
            raise BundleRefused("bundle b-42: damaged")
        return FakeChallenger(version)

    def has_changed(self) -> bool:
        return bool(self.versions)


class FakeSender:
    """`is_away`: Kafka takes nothing. `refused`: keys that it refuses."""

    def __init__(self) -> None:
        self.queued: list[tuple[bytes, bytes]] = []
        self.taken: list[tuple[bytes, bytes]] = []
        self.away, self.refused = 0, set[bytes]()

    def send_many(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes],
        on_refused: Callable[[KafkaError], object],
    ) -> None:
        assert topic == "t.shadow-decisions"
        for key, value in zip(keys, values, strict=True):
            if key in self.refused:
                on_refused(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
            else:
                self.queued.append((key, value))

    def flush(self, timeout_s: float) -> None:
        assert timeout_s > 0
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("Kafka did not take 3 records in 1 s")
        self.taken += self.queued
        self.queued.clear()

    @property
    def keys(self) -> list[str]:
        return [key.decode() for key, _ in self.taken]


class World:
    def __init__(self, folder: Path) -> None:
        self.outbox = OutboxSettings(directory=str(folder))
        self.sender, self.source = FakeSender(), FakeSource()
        self.writers: dict[str, OutboxWriter] = {}
        self.decide("before")
        self.told: list[dict[str, Any]] = []

    def decide(self, *payment_ids: str, worker: str = "worker-0", card_id: str = "c") -> None:
        if worker not in self.writers:
            self.writers[worker] = OutboxWriter(self.outbox, worker)
        for payment_id in payment_ids:
            entry = OutboxEntry(
                request=ScoreRequest(payment_id=payment_id, card_id=card_id),
                response=ScoreResponse(decision_id=f"d-{payment_id}", score=0.1, action="approve"),
                decided_time_ms=DECIDED_MS,
                bundle_digest=b"\xaa" * 32,
            )
            self.writers[worker].append(entry.SerializeToString())

    def evaluator(self, **settings: Any) -> ShadowEvaluator:
        options: dict[str, Any] = {"batch_wait_ms": 1, "cpu_share_max": 1.0} | settings
        made = ShadowEvaluator(
            "b-42",
            self.source,
            outbox=self.outbox,
            settings=ShadowSettings(**options),
            sender=cast(Sender, self.sender),
            topic="t.shadow-decisions",
            encoder=Encoder(SHADOW_TOPIC, LocalSchemaIds().id_of(SHADOW_TOPIC)),
            now_ms=lambda: DECIDED_MS + 4000,
        )
        made.look_around()
        return made

    def evaluator_in_spare_time(self, **settings: Any) -> tuple[ShadowEvaluator, FakeSender, SpareTime]:
        """An evaluator with what sends and works in spare time. A mebibyte may wait for it."""
        evaluator = self.evaluator(**{"waiting_bytes_max": MEBIBYTE} | settings)
        sender, spare_time = FakeSender(), SpareTime()
        evaluator.use_spare_time(spare_time, cast(Sender, sender))
        return evaluator, sender, spare_time

    def wait_for(self, evaluator: ShadowEvaluator, waiting_bytes: float) -> int:
        """Decide until this number of bytes waits for the challenger. Returns the number of decisions."""
        count = 0
        while evaluator.status()["waiting_bytes"] < waiting_bytes:
            self.decide(*(f"w{count + number}" for number in range(500)))
            count += 500
        return count

    def run(self, evaluator: ShadowEvaluator, until: Callable[[dict[str, Any]], bool]) -> None:
        """Run until a status is as wanted."""
        stop = Event()

        def tell(status: dict[str, Any]) -> None:
            self.told.append(status)
            if until(status):
                stop.set()

        evaluator.run(stop, tell)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(evaluation, "_LOOK_EVERY_S", 0.001)
    made = World(tmp_path)
    yield made
    for writer in made.writers.values():
        writer.close()


def test_every_live_decision_gets_a_partner_with_the_champion_beside_it(world: World) -> None:
    evaluator = world.evaluator()
    world.decide("p1", "p2")
    world.decide("q1", worker="worker-1")
    evaluator.look_around()
    assert evaluator.round() == 3
    world.sender.flush(1)
    assert world.sender.keys == ["p1", "p2", "q1"]
    record = Decoder(SHADOW_TOPIC, LocalSchemaIds()).decode(world.sender.taken[0][1])
    assert (record["decision_id"], record["challenger"], record["is_shadow_host"]) == ("d-p1", "b-42", False)
    assert (record["champion_action"], record["challenger_action"]) == ("approve", "decline")
    status = evaluator.status()
    assert (status["evaluated"], status["left_out"][SHED], status["waiting_bytes"]) == (3, 0, 0)


def test_decisions_that_come_while_the_challenger_is_loaded_get_a_partner(world: World) -> None:
    """The first start compiles for seconds, and it began where the outbox ended after that."""

    def decide() -> None:
        world.decide("p1", "p2")
        world.decide("q1", worker="worker-1")

    world.source.while_loading = decide
    evaluator = world.evaluator()
    assert evaluator.round() == 3
    world.sender.flush(1)
    assert world.sender.keys == ["p1", "p2", "q1"]


def test_far_behind_it_takes_a_share_of_the_cores_until_it_has_caught_up(world: World) -> None:
    evaluator, idle, _ = world.evaluator_in_spare_time(batch_max=1000)
    count = world.wait_for(evaluator, 0.8 * MEBIBYTE)
    world.run(evaluator, lambda status: bool(status["evaluated"] == count))
    threads, own = cast(FakeChallenger, evaluator._challenger).threads, threading.current_thread().name
    # The first look at the outbox is in spare time.
    assert threads[0].startswith("spare-time")
    assert set(threads[1:]) == {own}
    # Each way has a client of its own, whose threads have its priority.
    assert (len(idle.taken), len(world.sender.taken)) == (1000, count - 1000)
    world.decide("p1")
    world.run(evaluator, lambda status: bool(status["evaluated"] == count + 1))
    assert threads[-1].startswith("spare-time")
    assert evaluator.status()["left_out"][SHED] == 0


def test_once_it_has_skipped_decisions_it_has_no_share_for_a_minute(world: World) -> None:
    """Then the host has more payments than it can take, and they go first."""
    evaluator, _, _ = world.evaluator_in_spare_time(batch_max=100)
    world.wait_for(evaluator, 1.2 * MEBIBYTE)

    def worked_in_spare_time() -> bool:
        evaluator._round_by_priority(world.told.append)
        return cast(FakeChallenger, evaluator._challenger).threads[-1].startswith("spare-time")

    assert worked_in_spare_time()
    assert evaluator.status()["left_out"][SHED] > 0
    world.wait_for(evaluator, 0.8 * MEBIBYTE)
    assert [worked_in_spare_time() for _ in range(3)] == [True, True, True]
    evaluator._no_share_until = time.monotonic()
    assert not worked_in_spare_time()


def test_batches_are_smaller_while_spare_time_is_scarce(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the end of a batch can the challenger take its share."""
    evaluator, _, _ = world.evaluator_in_spare_time(batch_max=1000, waiting_bytes_max=64 * MEBIBYTE)
    world.decide(*(f"p{number}" for number in range(3_000)))

    def sizes(slow_s: float) -> list[int]:
        monkeypatch.setattr(evaluation, "_SLOW_S", slow_s)
        before = len(cast(FakeChallenger, evaluator._challenger).sizes)
        for _ in range(4):
            evaluator._round_by_priority(world.told.append)
        return cast(FakeChallenger, evaluator._challenger).sizes[before:]

    assert sizes(0.0) == [1000, 250, 100, 100]
    assert sizes(PATIENCE_S) == [100, 200, 400, 800]


def test_it_tells_how_it_is_while_it_waits_for_spare_time(world: World) -> None:
    """A host that leaves nothing for a minute must not take it for one that hangs."""
    evaluator, _, spare_time = world.evaluator_in_spare_time()
    busy = threading.Event()
    spare_time.start(busy.wait)
    world.decide("p1")

    def tell(status: dict[str, Any]) -> None:
        world.told.append(status)
        if len(world.told) == 3:
            busy.set()

    assert evaluator._round_by_priority(tell) == 1
    assert len(world.told) >= 3


@pytest.mark.parametrize("error", [BundleRefused("too many open files"), OSError(24, "Too many open files")])
def test_files_that_could_not_be_loaded_for_a_moment_are_loaded_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """They do not change any more: the old ones would go on until a person touched them."""
    monkeypatch.setattr(evaluation, "_LOAD_AGAIN_S", 0.0)
    evaluator = world.evaluator()

    def fail() -> None:
        raise error

    world.source.while_loading = fail
    monkeypatch.setattr(world.source, "has_changed", iter([True, *[False] * 9]).__next__)
    world.source.versions.append("b2")
    for _ in range(3):
        evaluator.look_around()
        assert cast(FakeChallenger, evaluator._challenger).version == "b1"
    assert caplog.text.count("its new files cannot be loaded, the old ones go on") == 1
    world.source.while_loading = lambda: None
    evaluator.look_around()
    assert cast(FakeChallenger, evaluator._challenger).version == "b2"
    # A version more would be taken up if it looked again.
    world.source.versions.append("b3")
    evaluator.look_around()
    assert cast(FakeChallenger, evaluator._challenger).version == "b2"


def test_a_library_that_runs_for_ever_is_told_once_and_then_nothing_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that tells is another one than the thread that hangs: the parent took the challenger for well."""
    monkeypatch.setattr(evaluation, "_LOOK_EVERY_S", 0.01)
    evaluator, _, spare_time = world.evaluator_in_spare_time(hang_timeout_s=5)
    hanging, used = threading.Event(), iter(range(1000))
    spare_time.start(hanging.wait)
    world.decide("p1")

    def process_time() -> float:
        seconds = next(used)
        if seconds > 50:
            hanging.set()
        return float(seconds)

    monkeypatch.setattr(time, "process_time", process_time)
    assert evaluator._round_by_priority(world.told.append) == 1
    troubles = [status["trouble"] for status in world.told]
    # A second of CPU time passes at each look, and another one when it tells.
    assert 2 <= len(troubles) <= 7
    assert troubles.count("a batch has used 5 s of CPU time and is not done") == 1
    assert troubles[-1]


def test_what_gets_no_partner_is_counted_by_reason(world: World) -> None:
    evaluator = world.evaluator()
    world.decide("p1", "p2")
    world.decide("p3", card_id="bad")
    world.writers["worker-0"].append(b"\xff\xff")
    world.sender.refused = {b"p2"}
    assert evaluator.round() == 4
    left_out = evaluator.status()["left_out"]
    assert left_out == {FAILED: 1, UNREADABLE: 1, REFUSED: 1, SHED: 0}
    assert evaluator.status()["evaluated"] == 1


def test_while_kafka_is_away_it_waits_and_then_loses_nothing(world: World) -> None:
    evaluator = world.evaluator()
    world.decide("p1", "p2")
    world.sender.away = 3
    world.run(evaluator, lambda _: bool(world.sender.taken))
    assert world.sender.keys == ["p1", "p2"]
    troubles = [status["trouble"] for status in world.told]
    assert "Kafka did not take" in "".join(troubles)
    assert troubles[-1] == ""


def test_after_a_kill_it_repeats_a_few_and_leaves_none_out(world: World) -> None:
    world.decide("p1")
    killed = world.evaluator()
    world.decide("p2", "p3")
    killed._keep(at_once=True)
    killed.round()
    world.sender.flush(1)
    world.source.versions = ["b1"]
    again = world.evaluator()
    world.decide("p4")
    world.run(again, lambda _: "p4" in world.sender.keys)
    assert world.sender.keys == ["p2", "p3", "p2", "p3", "p4"]


def test_a_stop_while_kafka_is_away_keeps_the_cursor_behind(world: World) -> None:
    evaluator = world.evaluator()
    evaluator._keep(at_once=True)
    world.decide("p1")
    world.sender.away = 1000
    world.run(evaluator, lambda status: bool(status["trouble"]))
    world.source.versions, world.sender.away = ["b1"], 0
    world.sender.queued.clear()
    world.evaluator().round()
    assert [key for key, _ in world.sender.queued] == [b"p1"]


def test_new_files_are_taken_up_and_damaged_ones_are_not(world: World) -> None:
    evaluator = world.evaluator()
    for version, used in (("damaged", "b1"), ("b2", "b2")):
        world.source.versions = [version]
        evaluator.look_around()
        world.decide(version)
        evaluator.round()
        world.sender.flush(1)
        record = Decoder(SHADOW_TOPIC, LocalSchemaIds()).decode(world.sender.taken[-1][1])
        assert record["challenger_bundle_digest"] == used


def test_it_says_how_far_behind_it_is(world: World) -> None:
    evaluator = world.evaluator(batch_max=1)
    world.decide("p1", "p2")
    evaluator.round()
    status = evaluator.status()
    assert (status["lag_s"], status["waiting_bytes"] > 0) == (4.0, True)
    evaluator.round()
    assert (evaluator.status()["lag_s"], evaluator.status()["waiting_bytes"]) == (0.0, 0)


def test_it_ends_when_its_parent_is_gone(world: World) -> None:
    def tell(_: dict[str, Any]) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        world.evaluator().run(Event(), tell)
