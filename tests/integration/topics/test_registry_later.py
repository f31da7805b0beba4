"""Turn a schema registry on and off again: every earlier record stays readable for every reader."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from paywarden.features.datasets.simulator import simulate
from paywarden.schemas.avro import LocalSchemaIds, schema_text
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.schemas.remembered_schemas import SCHEMAS_TOPIC, KafkaRememberedSchemas
from paywarden.streams.kafka.topic_rows import rows_schema
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import is_ready, wait_until
from tests.services.servers.registry import RegistryServer
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    read_store,
    read_topic,
    wait_until_worked_in,
)

WORLD = simulate(cards=30, days=8, seed=5)


class Phases:
    """One deployment, started several times with different configurations."""

    def __init__(self, deployment: Deployment, settings: KafkaSettings) -> None:
        self.deployment, self.settings = deployment, settings
        self.payments: list[dict[str, Any]] = WORLD[0].to_pylist()
        self.topics = Topics(settings)
        self.phases = 0

    def live(self, url: str) -> None:
        """Run the processes with this registry or none, over some payments, an undecodable record and a decision."""
        self._configure(url)
        self.phases += 1
        self.topics.send_bytes("payments", b"nonsense", b"k")
        self.topics.flush()
        stream, companion = self.deployment.start("stream"), self.deployment.start("companion")
        address = companion.first_line()
        wait_until(lambda: is_ready(address), f"the companion is ready: {companion.log}", every_s=0.1)
        wait_until_worked_in(self.settings, f"{self.settings.topic_prefix}stream")
        self._decide(f"p{self.phases}")
        for topic in ("decisions", "dead-letters"):
            wait_until(lambda topic=topic: self.count(topic) == self.phases, f"{topic} are there", every_s=0.2)  # type: ignore[misc]
        assert (companion.stop(), stream.stop()) == (0, 0)

    def count(self, topic: str) -> int:
        return len(read_topic(self.settings, topic))

    def ids(self, topic: str) -> list[int]:
        """Returns the schema ids on a topic, in the order of their first record."""
        values = [record.value for record in read_topic(self.settings, topic)]
        return list(dict.fromkeys(int.from_bytes(value[1:5], "big") for value in values if value and value[0] == 0))

    def _configure(self, url: str) -> None:
        text = self.deployment.config.read_text(encoding="utf-8").partition("[registry]\n")[0]
        self.deployment.config.write_text(f'{text}[registry]\nurl = "{url}"\n', encoding="utf-8")

    def _decide(self, payment_id: str) -> None:
        writer = OutboxWriter(OutboxSettings(directory=str(self.deployment.outbox)), "worker-0")
        entry = OutboxEntry(
            request=ScoreRequest(payment_id=payment_id, card_id="c", merchant_id="m", currency="EUR"),
            response=ScoreResponse(payment_id=payment_id, decision_id=f"d-{payment_id}", action="approve"),
            decided_time_ms=1,
        )
        writer.append(entry.SerializeToString())
        writer.close()


@pytest.fixture
def phases(deployment: Deployment, settings: KafkaSettings) -> Phases:
    deployment.configure("companion", "fill_from_store = false\n")
    return Phases(deployment, settings)


def test_turning_the_registry_on_and_off_leaves_every_record_readable(
    phases: Phases, deployment: Deployment, settings: KafkaSettings, registry: RegistryServer, tmp_path: Path
) -> None:
    third = len(phases.payments) // 3
    phases.topics.send_payments(phases.payments[:third])
    phases.live(url="")
    phases.topics.send_payments(phases.payments[third : 2 * third])
    # Another producer has one more field, and gets an id from the registry.
    newer = json.loads(schema_text("payments"))
    newer["fields"].append({"name": "wallet", "type": ["null", "string"], "default": None})
    with SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client:
        serialise = AvroSerializer(client, json.dumps(newer))
        name = settings.topic("payments")
        value = serialise(phases.payments[0] | {"wallet": "w"}, SerializationContext(name, MessageField.VALUE))
        assert value is not None
        phases.topics.send_bytes("payments", value, phases.payments[0]["card_id"].encode())
        phases.live(url=registry.url)
        assert {subject for subject in client.get_subjects() if subject.startswith(settings.topic_prefix)} >= {
            f"{settings.topic(topic)}-value" for topic in ("payments", "decisions", "profiles", "dead-letters")
        }
    phases.topics.send_payments(phases.payments[2 * third :])
    phases.live(url="")

    listed = json.loads(deployment.run("admin", "schemas", "--json").stdout)
    known = {number for one in listed for number in one["registry_ids"]}
    others = [one for one in listed if one["version"] is None]
    assert [(one["topic"], one["subject"]) for one in others] == [(name, f"{name}-value")]
    local = LocalSchemaIds()
    for topic in ("profiles", "decisions", "dead-letters"):
        first, registered, *rest = phases.ids(topic)
        assert (first, rest, registered in known) == (local.id_of(topic), [], True)

    # The stream left out the three undecodable records, and no other.
    letters = json.loads(deployment.run("admin", "dead-letters", "--json").stdout)
    assert [letter["reason"][:17] for letter in letters["letters"]] == ["wrong magic byte:"] * 3
    assert_profiles_equal(read_store(deployment.store), batch_profiles(WORLD[0], WORLD[1].slice(0, 0)))

    # A companion on a new host reads the whole changelog.
    deployment.mirror.rename(tmp_path / "old-mirror")
    companion = deployment.start("companion")
    address = companion.first_line()
    wait_until(lambda: is_ready(address) or companion.process.poll() is not None, "the new mirror is full", every_s=0.1)
    assert companion.stop() == 0
    stored = read_store(deployment.store)
    with closing(MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=256))) as mirror:
        assert dict(mirror.read(set(stored))) == stored

    # A process on another machine, which has only Kafka, reads the whole topics.
    for topic, count, damaged in (("payments", len(phases.payments) + 1, 3), ("decisions", 3, 0)):
        out = tmp_path / "archive"
        done = deployment.run("admin", "archive", "--topic", topic, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(f"{damaged} records not decoded")
        assert len(read_archive(out, topic, rows_schema(topic)).table) == count


def test_remembered_schemas_are_read_again_only_when_their_topic_grows(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    del deployment
    one, other = KafkaRememberedSchemas(settings), KafkaRememberedSchemas(settings)
    assert one.read() == {}
    other.add({7: schema_text("payments"), 8: schema_text("outcomes")})
    first = one.read()
    assert first == {7: schema_text("payments"), 8: schema_text("outcomes")}
    assert one.read() is first
    other.add({9: schema_text("profiles")})
    assert set(one.read()) == {7, 8, 9}
    assert [record.key for record in read_topic(settings, SCHEMAS_TOPIC)] == [b"7", b"8", b"9"]
