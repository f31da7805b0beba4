"""Stream workers that are killed join outcomes and decisions on a real Kafka: tallies, metrics and an alert."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end
from paywarden.streams.outcomes.outcome_evaluation import read_evaluated, sources_of
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import read_cells, read_heads, take_over
from paywarden.streams.outcomes.payments import DAY_MS, SourcePartition
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, is_ready, run_paywarden, samples, wait_until
from tests.standin.aerospike_server import StandIn
from tests.worlds.drift.drifting import decision as full_decision
from tests.worlds.drift.outcome_world import HOUR_MS, Record, assert_same, outcome, recount

PARTITIONS = 4
SOURCES = sources_of(range(PARTITIONS), range(PARTITIONS))
IDS = LocalSchemaIds()
TODAY = time.time_ns() // 1_000_000 // DAY_MS
# The labels of this day are mature by now. The days before it are the reference.
LAST_DAY = TODAY - 3
FIRST_DAY = LAST_DAY - 7
DAYS = range(FIRST_DAY, TODAY + 1)
SETTINGS = OutcomeSettings(label_delay_days=2, window_days=60)


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings, standin: StandIn) -> Iterator[Deployment]:
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix, aerospike=standin.address) as deployed:
        deployed.configure("drift", "grace_ms = 1000\n")
        deployed.configure_internally("drift", save_every_ms=200, save_decisions=300)
        deployed.configure("outcomes", "label_delay_days = 2\nwindow_days = 60\n")
        deployed.configure_internally("outcomes", save_every_ms=200, save_records=100, reference_days=6)
        deployed.create_topics()
        yield deployed


class Traffic:
    """Sends decisions and outcomes, and keeps them. On the last day, frauds that used to be declined are approved."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._sender = settings, Sender(settings, linger_ms=0)
        self._encoders = {topic: Encoder(topic, IDS.id_of(topic)) for topic in ("decisions", "outcomes")}
        self.decisions: list[Record] = []
        self.outcomes: list[Record] = []
        self._number = 0

    @property
    def sent(self) -> int:
        return len(self.decisions) + len(self.outcomes)

    def send(self, payments: int) -> None:
        """Send the records. Some outcomes come before their decisions, some twice, and some are corrected."""
        first, self._number = self._number, self._number + payments
        numbers = range(first, self._number)
        self._send_all("outcomes", [one for number in numbers if number % 3 == 0 for one in _outcomes(number)])
        self._send_all("decisions", [_decision(number) for number in numbers])
        self._send_all("outcomes", [one for number in numbers if number % 3 for one in _outcomes(number)])
        self._send_all("decisions", [_decision(number) for number in numbers if number % 7 == 0])
        self._sender.flush(PATIENCE_S)

    def _send_all(self, topic: str, records: list[Record]) -> None:
        for one in records:
            name = one["payment_id"]
            # Each topic spreads its keys in its own way.
            partition = (int(name[1:]) * (1 if topic == "decisions" else 3) + (topic == "outcomes")) % PARTITIONS
            value = self._encoders[topic].encode(one)
            self._sender.send(self._settings.topic(topic), value, key=name.encode(), partition=partition)
        (self.decisions if topic == "decisions" else self.outcomes).extend(records)


def _day(number: int) -> int:
    return FIRST_DAY + number % (LAST_DAY - FIRST_DAY + 1)


def _is_fraud(number: int) -> bool:
    return number // 8 % 4 == 0


def _decision(number: int) -> Record:
    decided_ms = _day(number) * DAY_MS + number % 23 * HOUR_MS
    is_caught = _is_fraud(number) and _day(number) != LAST_DAY
    changes: dict[str, Any] = {
        "variant": "b" if number % 40 >= 32 else "",
        "action": "decline" if is_caught else "approve",
        "score": 0.9 if is_caught else 0.01,
        "flags": [],
    }
    return {**full_decision(number, decided_ms), **changes}


def _outcomes(number: int) -> list[Record]:
    name, decided_ms = f"p{number}", _decision(number)["decided_time_ms"]
    if _is_fraud(number):
        return [
            outcome(name, decided_ms + HOUR_MS, "genuine"),
            outcome(name, decided_ms + 2 * HOUR_MS, "fraud"),
            outcome(name, decided_ms + 2 * HOUR_MS, "fraud"),
        ]
    return [outcome(name, decided_ms + HOUR_MS, "genuine")] if number % 5 == 0 else []


def worked_in(store: ProfileStore) -> int:
    kinds = ("decided", "waited", "labelled", "corrected", "confirmed", "nothing", "late")
    heads = read_heads(store, SOURCES).values()
    return sum(head.progress.totals[kind] for head in heads for kind in kinds)


def started(deployment: Deployment) -> tuple[PaywardenProcess, str]:
    stream = deployment.start("stream")
    return stream, stream.first_line()


def test_tallies_equal_a_recount_after_kills_and_metrics_are_sent(
    deployment: Deployment, settings: KafkaSettings, store: ProfileStore
) -> None:
    traffic = Traffic(settings)
    traffic.send(1600)
    first, _ = started(deployment)
    wait_until(lambda: worked_in(store) > 600, "the first worker joins")
    first.kill()
    second, address = started(deployment)
    wait_until(lambda: worked_in(store) > 1500, "the second worker joins")
    third, other = started(deployment)
    wait_until(lambda: is_ready(other), "the third worker is ready")
    for _ in range(10):
        traffic.send(80)
        time.sleep(0.1)
    second.kill()
    traffic.send(320)
    wait_until(lambda: worked_in(store) >= traffic.sent, "all records are joined")
    # This imitates a worker that notices too late that it has lost its partitions. It meets a conflict after it has
    # written everything but the heads, and ends. The next worker works the same rows in again.
    for source in (SourcePartition("o", 1), SourcePartition("d", 2)):
        take_over(store, source, SETTINGS)
    traffic.send(160)
    assert third.process.wait(PATIENCE_S) == 1
    assert "is another worker's" in third.log.read_text(encoding="utf-8")
    last, address = started(deployment)
    wait_until(lambda: worked_in(store) >= traffic.sent, "all is joined again")
    time.sleep(1)
    assert worked_in(store) == traffic.sent
    assert_same(read_cells(store, SOURCES, DAYS), recount(traffic.decisions, traffic.outcomes, 60))

    wait_until(lambda: read_evaluated(store, SETTINGS)[0].done.get(2, 0) == LAST_DAY, "the last day is mature")
    newest = {one["variant"]: one for one in metrics_of(settings) if one["day_start_time_ms"] == LAST_DAY * DAY_MS}
    assert set(newest) == {"", "b"}
    week = newest[""]["windows"][0]
    # All days are mature by the clock, so the first measures were taken before all records were sent.
    assert week["precision"] > 0.95
    assert 0.75 < week["recall"] < 0.92
    assert week["fraud_missed_minor"] > 0

    status = json.loads(run_paywarden("--config", str(deployment.config), "drift", "status", "--json").stdout)
    assert {one["subject"] for one in status["alerts"]} <= {"outcome:recall", "outcome:average_precision"}
    assert status["open"] >= 1
    explained = run_paywarden("--config", str(deployment.config), "drift", "status", status["alerts"][0]["alert_id"])
    assert "outcome-metrics" in explained.stdout
    wait_until(lambda: any(name[0] == "paywarden_outcomes_recall" for name in samples(address)), "measures are shown")
    assert last.stop() == 0
    for process in (first, second, third, last):
        assert "Traceback" not in process.log.read_text(encoding="utf-8")


def metrics_of(settings: KafkaSettings) -> list[dict[str, Any]]:
    decoder = Decoder("outcome-metrics", IDS)
    topic = settings.topic("outcome-metrics")
    with closing(make_consumer(settings, group_id="test")) as consumer:
        batches = records_to_end(consumer, topic, partitions_of(settings, "outcome-metrics"))
        return [decoder.decode(record.value or b"") for records in batches for record in records]
