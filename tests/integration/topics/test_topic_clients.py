"""The programs of docs/integrate/programs on a real Kafka: clients in Python, Node and Java with our processes."""

from __future__ import annotations

import json
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.cimpl import NewPartitions

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.schemas.avro import Encoder, LocalSchemaIds, SchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.kafka.admin import make_admin, partitions_in
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import make_producer, make_transactional_producer
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.schemas.registry import RegistrySchemaIds, RegistrySettings
from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.payment_columns import PaymentEvent
from tests.patience import PATIENCE_S
from tests.services.clients.topic_clients import command
from tests.services.fetch import ServiceMissing
from tests.services.product.deployment import Deployment
from tests.services.product.processes import run_paywarden, wait_until
from tests.services.servers.registry import RegistryServer
from tests.worlds.stream.decision_records import decision
from tests.worlds.stream.topics import read_topic

PRODUCERS = ("produce.py", "produce.js", "Produce.java")
CONSUMERS = ("consume.py", "consume.js", "Consume.java")
ENGINE = FeatureEngine()
# With as many partitions the record does not come into the first.
_CATALOGUE_PARTITIONS = 7


def client(program: str, folder: Path) -> Sequence[str]:
    """Returns how to run the client. Without Node its programs are skipped; Java is there wherever Kafka is."""
    try:
        return command(program, folder)
    except ServiceMissing as error:
        if program.endswith(".js") and "not on PATH" in str(error):
            pytest.skip(str(error))
        raise


def run(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def first_line(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Returns the first line that a program without an end prints."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=output, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert line, log.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(line)
    return found


def exported(deployment: Deployment) -> str:
    folder = str(deployment.folder / "schemas")
    done = deployment.run("admin", "schemas", "--export", folder)
    assert done.returncode == 0, done.stderr
    return folder


def payment_in(record: Record, ids: SchemaIds) -> PaymentEvent:
    """Returns the payment as the stream decodes it."""
    (event,) = EventDecoder(ENGINE, load_rates(), ids).payments([record], time.time_ns() // 1_000_000)
    assert isinstance(event, PaymentEvent), event
    return event


@pytest.mark.parametrize("program", PRODUCERS)
def test_the_stream_reads_a_payment_of_another_client(
    program: str, deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    run([*client(program, tmp_path), settings.bootstrap, exported(deployment)])
    # Every client puts a card into the same partition as ours.
    producer = make_producer(settings, linger_ms=0)
    producer.produce(settings.topic("payments"), b"", key=b"card-1")
    assert producer.flush(PATIENCE_S) == 0
    theirs, ours = sorted(read_topic(settings, "payments"), key=lambda record: record.offset)
    assert (theirs.key, theirs.partition) == (b"card-1", ours.partition)
    event = payment_in(theirs, LocalSchemaIds())
    assert event.payment_id.startswith("from-")
    assert event.keys == (b"card:card-1", b"merchant:merchant-1", b"")


def test_the_stream_reads_a_payment_of_a_client_with_a_registry(
    deployment: Deployment, settings: KafkaSettings, registry: RegistryServer, tmp_path: Path
) -> None:
    arguments = client("produce-with-registry.js", tmp_path)
    del deployment
    ids = RegistrySchemaIds(
        RegistrySettings(url=registry.url), KafkaRememberedSchemas(settings), topic_prefix=settings.topic_prefix
    )
    run([*arguments, settings.bootstrap, registry.url, settings.topic("payments")])
    (record,) = read_topic(settings, "payments")
    assert payment_in(record, ids).payment_id == "from-node-with-registry-1"
    ids.close()


@pytest.mark.parametrize("program", CONSUMERS)
def test_another_client_reads_a_decision_and_names_its_features(
    program: str, deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    """The companion's own decision lies behind one of an aborted transaction, and its catalogue in any partition."""
    arguments = client(program, tmp_path)
    topic, admin = settings.topic("catalogues"), make_admin(settings)
    admin.create_partitions([NewPartitions(topic, _CATALOGUE_PARTITIONS)])[topic].result(PATIENCE_S)
    wait_until(lambda: len(partitions_in(admin, settings, "catalogues")) == _CATALOGUE_PARTITIONS, "more partitions")
    producer = make_transactional_producer(settings, "failed", linger_ms=0, transaction_timeout_ms=600_000)
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
    producer.produce(settings.topic("decisions"), encoder.encode(decision("aborted")), key="p-1")
    producer.flush(PATIENCE_S)
    producer.abort_transaction(PATIENCE_S)
    deployment.configure("companion", "fill_from_store = false\n")
    companion = deployment.start("companion")
    assert companion.first_line().startswith("http://"), companion.log.read_text(encoding="utf-8")
    outbox = OutboxWriter(read_source(str(deployment.config)).section("outbox", OutboxSettings), "worker-0")
    values = [float(number) for number in range(len(CATALOGUE.features))]
    values[3] = float("nan")
    entry = OutboxEntry(
        request=ScoreRequest(payment_id="p-1", card_id="c", merchant_id="m", currency="EUR"),
        response=ScoreResponse(payment_id="p-1", decision_id="d-1", action="review", score=0.25),
        decided_time_ms=1,
        catalogue_digest=ENGINE.plan.digest,
        vector=struct.pack(f"<{len(values)}f", *values),
    )
    outbox.append(entry.SerializeToString())
    outbox.close()
    arguments = [*arguments, settings.bootstrap, exported(deployment), f"{settings.topic_prefix}reader"]
    found = first_line(arguments, tmp_path / "log")
    assert [record.partition for record in read_topic(settings, "catalogues")] != [0]
    assert (found["payment_id"], found["action"], found["score"]) == ("p-1", "review", 0.25)
    names = [feature.name for feature in CATALOGUE.features]
    assert found["features"] == {name: float(at) for at, name in enumerate(names) if at != 3}
    assert companion.stop() == 0


@pytest.mark.parametrize("topic_prefix", ["", "made-on-first-use."])
@pytest.mark.parametrize("program", [name for name in CONSUMERS if not name.endswith(".java")])
def test_another_client_reads_the_embedded_broker(program: str, topic_prefix: str, tmp_path: Path) -> None:
    """A topic of catalogues that is made on first use has four partitions. Java's clients cannot connect."""
    arguments = client(program, tmp_path)
    with closing(EmbeddedBroker()) as broker:
        settings = KafkaSettings(bootstrap=broker.bootstrap, topic_prefix=topic_prefix)
        ids, producer = LocalSchemaIds(), make_producer(settings, linger_ms=0)
        digest = "catalogue-3"
        unsaid = dict.fromkeys(("entity", "window", "hop", "unit", "meaning", "missing_when"), "")
        for number in range(4):
            listed = [{"name": f"feature_{number}", **unsaid}]
            key = f"catalogue-{number}"
            record = {"digest": key, "features": listed}
            value = Encoder("catalogues", ids.id_of("catalogues")).encode(record)
            producer.produce(settings.topic("catalogues"), value, key=key)
        made = decision("d-1") | {"payment_id": "p-1", "catalogue_digest": digest, "vector": struct.pack("<f", 2.5)}
        value = Encoder("decisions", ids.id_of("decisions")).encode(made)
        producer.produce(settings.topic("decisions"), value, key="p-1")
        assert producer.flush(PATIENCE_S) == 0
        folder = tmp_path / "schemas"
        (tmp_path / "paywarden.toml").write_text(
            f'[kafka]\nbootstrap = "{broker.bootstrap}"\ntopic_prefix = "{topic_prefix}"\n', encoding="utf-8"
        )
        done = run_paywarden("--config", str(tmp_path / "paywarden.toml"), "admin", "schemas", "--export", str(folder))
        assert done.returncode == 0, done.stderr
        found = first_line([*arguments, broker.bootstrap, str(folder), "reader"], tmp_path / "log")
    assert (found["payment_id"], found["features"]) == ("p-1", {"feature_3": 2.5})
