"""The process of `paywarden companion` on a real Kafka: when it is ready, and what its metrics say."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.features.profiles.plan import compile_plan
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.ops import wiring
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.settings import Source, read_source
from paywarden.scoring.state.mirror_file import FILE_NAME, MirrorSettings, MirrorView
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE
from paywarden.streams.companion import companion as companions
from paywarden.streams.companion.companion import FillSource
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import make_consumer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.in_process import remembered_clients, running
from tests.services.product.processes import PaywardenProcess, is_ready, wait_until
from tests.services.servers.kafka import QUICK_RETURN, KafkaServer
from tests.worlds.stream.topics import ENTITIES, Topics, read_store, read_topic, small_world, wait_until_worked_in


class Companion:
    """A running companion that reads the changelog from its beginning, seen from outside as its operator sees it."""

    def __init__(self, deployment: Deployment, *, afresh: bool = False) -> None:
        self.process: PaywardenProcess = deployment.start("companion", afresh=afresh)
        self.address = self.process.first_line()
        assert self.address.startswith("http://127.0.0.1:"), self.process.log.read_text(encoding="utf-8")

    def problems(self) -> list[str]:
        """Returns the reasons why it is not ready. Asserts that exactly a 503 has reasons."""
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=60) as answer:
                status, body = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, json.load(error)
        missing: list[str] = body["missing"]
        assert (status, body["ready"]) == ((503, False) if missing else (200, True))
        return missing

    def wait_until_ready(self) -> None:
        wait_until(lambda: is_ready(self.address), "the companion is ready", every_s=0.05)

    def wait_for_end(self, line: str) -> None:
        assert self.process.process.wait(PATIENCE_S) == 1
        assert line in self.process.log.read_text(encoding="utf-8").splitlines()[-1]

    def metrics(self) -> dict[str, float]:
        return read_metrics(self.address)

    def wait_for(self, name: str, at_least: float) -> None:
        wait_until(lambda: self.metrics().get(name, 0) >= at_least, f"{name} of {at_least}", every_s=0.1)


def read_metrics(address: str) -> dict[str, float]:
    """Returns samples by name and label, as in `changelog_lag{3}`."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return {
        sample.name.removeprefix("paywarden_companion_")
        + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read_mirror(deployment: Deployment, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
    with closing(MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=256))) as mirror:
        return dict(mirror.read(set(keys)))


def wait_until_followed(companion: companions.Companion, settings: KafkaSettings) -> None:
    """Wait until a companion of this process has worked in what the changelog holds now."""
    with closing(make_consumer(settings, group_id="ends")) as consumer:
        ends = end_offsets(consumer, settings.topic("profiles"), range(4))
    wait_until(lambda: all(companion._read_to.get(n, 0) >= end for n, end in ends.items()), "it has followed")


def decide(deployment: Deployment, count: int) -> None:
    """Write decisions into an outbox, as a scoring worker does."""
    writer = OutboxWriter(OutboxSettings(directory=str(deployment.outbox)), "worker-0")
    for number in range(count):
        entry = OutboxEntry(
            request=ScoreRequest(payment_id=f"p{number}", card_id="c", merchant_id="m", currency="EUR"),
            response=ScoreResponse(payment_id=f"p{number}", decision_id=f"d{number}", action="approve"),
            decided_time_ms=1,
        )
        writer.append(entry.SerializeToString())
    writer.close()


def test_ready_means_a_complete_mirror_and_ages_count_from_the_start(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    payments = small_world()[0].to_pylist()[:300]
    topics, group = Topics(settings), f"{settings.topic_prefix}stream"
    deployment.configure("companion", "fill_from_store = false\n")
    deployment.configure("overlay", f'enabled = true\npath = "{deployment.mirror}-overlay"\nmarks_max = 10_000\n')
    companion = Companion(deployment)
    wait_until(lambda: companion.problems() != ["it has not started"], "it follows the changelog")
    # No record was written, and no frame has reported progress.
    assert companion.problems() == ["the mirror is not complete: the stream has not said how far it is"]
    deployment.start("stream")
    companion.wait_until_ready()
    topics.send_payments(payments[:200])
    for entity in ENTITIES:
        companion.wait_for(f"event_to_mirror_seconds_count{{{entity}}}", 1)
    wait_until_worked_in(settings, group)
    # The stream names each payment for each of its entities, once.
    named = sum(1 for payment in payments[:200] for entity in ENTITIES if payment[f"{entity}_id"])
    companion.wait_for("payments_named_total", named)
    marks = np.fromfile(deployment.mirror / MARKS_FILE, dtype=np.int64)
    # A new host without a past: its marks were never in doubt.
    assert marks[tables.MARK_UNSURE_UNTIL_AT] == 0
    marks = marks[tables.MARK_HEAD_SIZE :]
    tags = set(marks.reshape(-1, 3, tables.BUCKET_SLOTS)[:, 0].ravel().tolist()) - {0}
    assert tags == set(PaymentTags(LAPTOP_KEY).of_all([payment["payment_id"].encode() for payment in payments[:200]]))
    assert (companion.metrics()["payments_named_total"], companion.metrics()["changes_unnamed_total"]) == (named, 0)
    decide(deployment, 3)
    companion.wait_for("decisions_shipped_total", 3)
    wait_until(lambda: companion.metrics()["outbox_waiting_bytes{worker-0}"] == 0, "all is shipped", every_s=0.1)
    seen = companion.metrics()
    for entity in ENTITIES:
        assert (
            0
            < seen[f"event_to_mirror_seconds_sum{{{entity}}}"]
            < 60 * seen[f"event_to_mirror_seconds_count{{{entity}}}"]
        )
        assert seen[f"freshness_objective_seconds{{{entity}}}"] == 1.5
    assert seen["ready"] == 1
    assert 0 <= seen["mirror_age_seconds"] < 30
    assert seen["profiles_applied_total"] > 0
    assert 0 < seen["mirror_bytes"] < seen["mirror_limit_bytes"] == 256 << 20
    assert [name for name in seen if name.startswith("changelog_lag")] == [f"changelog_lag{{{n}}}" for n in range(4)]
    topics.send_bytes("profiles", None, b"card:nobody")
    topics.send_bytes("profiles", b"no profile", b"card:nobody")
    topics.flush()
    companion.wait_for("profiles_erased_total", 1)
    companion.wait_for("unreadable_records_total", 1)
    companion.wait_for("changes_unnamed_total", 1)
    # Somebody deletes the marks: the companion ends. The next one makes new ones, and nobody trusts them for now.
    (deployment.mirror / MARKS_FILE).unlink()
    companion.wait_for_end("the overlay's marks were deleted or cut short")

    # Records from before the start would show how long the companion was away, and not how fresh mirrors are.
    topics.send_payments(payments[200:])
    wait_until_worked_in(settings, group)
    # A process of its own, which shows the very end of Python, too.
    companion = Companion(deployment, afresh=True)
    companion.wait_until_ready()
    assert np.fromfile(deployment.mirror / MARKS_FILE, dtype=np.int64)[tables.MARK_UNSURE_UNTIL_AT] > 0
    seen = companion.metrics()
    assert seen["profiles_applied_total"] > 0
    assert [seen[f"event_to_mirror_seconds_count{{{entity}}}"] for entity in ENTITIES] == [0, 0, 0]
    assert companion.process.stop() == 0
    # The log has no line for what the metrics count, but for the last one.
    counted = [line for line in companion.process.log.read_text(encoding="utf-8").splitlines() if "applied" in line]
    assert len(counted) == 1, counted
    assert f"it ends after {int(seen['profiles_applied_total'])} profiles applied, 0 decisions shipped" in counted[0]


def test_a_damaged_mirror_ends_the_companion_and_the_next_one_fills_a_new_one(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """Before its start, and, cut short, under a companion that has nothing to write."""
    payments, topics = small_world()[0].to_pylist()[:100], Topics(settings)
    stream = deployment.start("stream")
    topics.send_payments(payments)
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    companion = Companion(deployment)
    companion.wait_until_ready()
    assert companion.process.stop() == 0
    file = deployment.mirror / FILE_NAME
    file.write_bytes(b"?" * 4096)
    decide(deployment, 3)
    companion = Companion(deployment)
    companion.wait_for_end("the mirror is damaged")
    assert companion.process.log.read_text(encoding="utf-8").count("the damaged mirror is deleted") == 1
    # It has shipped what was left before it ended.
    assert len(read_topic(settings, "decisions")) == 3
    companion = Companion(deployment)
    companion.wait_until_ready()
    os.truncate(file, 8192)
    companion.wait_for_end("its file was cut short")
    companion = Companion(deployment)
    companion.wait_until_ready()
    # Nothing that the companion writes meets this: it looks at a part of the mirror every second.
    first = min(b"card:" + payment["card_id"].encode() for payment in payments)
    with file.open("r+b") as opened:
        opened.seek(file.read_bytes().index(first))
        opened.write(b"\xff")
    companion.wait_for_end("the mirror is damaged: not all of it can be read")
    companion = Companion(deployment)
    companion.wait_until_ready()
    assert first in file.read_bytes()
    assert companion.process.stop() == 0
    keys = [f"card:{payment['card_id']}".encode() for payment in payments]
    assert None not in read_mirror(deployment, keys).values()
    assert stream.stop() == 0


def test_a_client_that_silently_stops_reading_ends_the_companion(tmp_path: Path, settings: KafkaSettings) -> None:
    """The test imitates such a client: it pauses partitions, and the companion does not know."""
    kafka, consumers = remembered_clients(settings)
    payments = small_world()[0].to_pylist()
    topics, group = Topics(settings), f"{settings.topic_prefix}stream"
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployment:
        deployment.create_topics()
        deployment.configure_internally("companion", stall_timeout_s=4)
        source = read_source(str(deployment.config))
        stream = deployment.start("stream")
        topics.send_payments(payments[:200])
        wait_until_worked_in(settings, group)
        with (
            wiring.companion(source, lambda _: None, clients=kafka) as companion,
            ThreadPoolExecutor(1) as threads,
        ):
            running_one = threads.submit(companion.run, Event())
            wait_until(lambda: not companion.health.problems(), "it is ready", every_s=0.05)
            consumers[0].pause(consumers[0].assignment()[1:])
            topics.send_payments(payments[200:])
            wait_until_worked_in(settings, group)
            assert stream.stop() == 0
            with pytest.raises(BrokerUnavailable, match="has stalled on"):
                running_one.result(PATIENCE_S)
        with wiring.companion(source, lambda _: None) as companion, running(companion):
            wait_until_followed(companion, settings)
        stored = read_store(deployment.store)
        assert read_mirror(deployment, stored) == stored


def test_a_companion_waits_for_a_store_that_the_stream_will_make(
    tmp_path: Path, settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The companion looks often, and logs once what it waits for."""
    caplog.set_level(logging.INFO)
    look_count = 0

    def counted(source: Source) -> FillSource:
        fill: FillSource = wiring.fill_source(source)

        def look() -> LiveSet:
            nonlocal look_count
            look_count += 1
            return fill.look()

        return replace(fill, look=look)

    topics, group = Topics(settings), f"{settings.topic_prefix}stream"
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployment:
        deployment.create_topics()
        source = read_source(str(deployment.config))
        with (
            wiring.companion(source, lambda _: None, fill=counted(source)) as companion,
            running(companion),
        ):
            wait_until(lambda: look_count >= 3, "it has looked for the store again")
            (problem,) = companion.health.problems()
            assert problem.startswith(f"the mirror waits for the profile store: there is no LMDB store at {tmp_path}")
            assert companion.health.live()
            deployment.start("stream")
            wait_until(lambda: not companion.health.problems(), "it is ready", every_s=0.05)
            topics.send_payments(small_world()[0].to_pylist()[:50])
            wait_until_worked_in(settings, group)
            # A profile that two payments changed is applied twice: a count would not tell that the last ones are there.
            wait_until_followed(companion, settings)
            stored = read_store(deployment.store)
        assert read_mirror(deployment, stored) == stored
    assert [record.getMessage() for record in caplog.records].count(f"companion: {problem}") == 1


def test_without_kafka_a_companion_lives_and_is_ready_when_it_returns(tmp_path: Path, topic_prefix: str) -> None:
    with (
        KafkaServer(tmp_path / "kafka", QUICK_RETURN) as kafka,
        Deployment(tmp_path, kafka.bootstrap, topic_prefix) as deployment,
    ):
        deployment.create_topics()
        deployment.configure("companion", "fill_from_store = false\n")
        deployment.start("stream")
        companion = Companion(deployment)
        companion.wait_until_ready()
        wait_until(lambda: "changelog_lag{0}" in companion.metrics(), "Kafka has said where the changelog ends")
        kafka.stop()
        decide(deployment, 3)
        # On a busy machine its mirror grows too old before it misses Kafka's answer.
        wait_until(lambda: "Kafka has not said where" in " ".join(companion.problems()[:1]), "it misses Kafka")
        companion.wait_for("outbox_waiting_bytes{worker-0}", 1)
        with urllib.request.urlopen(f"{companion.address}/livez", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        kafka.restart()
        companion.wait_until_ready()
        companion.wait_for("decisions_shipped_total", 3)
        assert companion.process.stop() == 0


def test_a_running_companion_has_published_the_catalogue(deployment: Deployment, settings: KafkaSettings) -> None:
    deployment.configure("companion", "fill_from_store = false\n")
    Companion(deployment)
    (record,) = read_topic(settings, "catalogues")
    digest = compile_plan(CATALOGUE).digest
    assert record.key == digest.encode()
    assert record.value is not None
    catalogue = Decoder("catalogues", LocalSchemaIds()).decode(record.value)
    assert catalogue["digest"] == digest
    assert [feature["name"] for feature in catalogue["features"]] == [one.name for one in CATALOGUE.features]
    assert catalogue["features"][7]["name"] == "card_count_1h"
    assert (catalogue["features"][7]["entity"], catalogue["features"][7]["window"]) == ("card", "1h")
