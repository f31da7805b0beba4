"""This code reads what release 0.1.0 wrote on disk and on topics, and keeps every name on which others depend.

The files in `earlier_release/` were written by the processes of that release on a real Kafka: 400 payments with their
outcomes, 100 shipped decisions and 40 that still waited in the outbox.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import load_bundle
from paywarden.ops.cli import cli
from paywarden.schemas.avro import TOPICS, Decoder, LocalSchemaIds, fingerprint, past_schemas, topic_schema
from paywarden.schemas.proto import outbox_pb2, scoring_pb2, store_pb2
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, workers
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC, repartition_topic
from tests.services.product.deployment import Deployment
from tests.services.product.processes import run_paywarden, samples, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.unit.ops.test_example_configuration import SETTINGS
from tests.worlds.stream.topics import read_store, read_topic

FILES = Path(__file__).with_name("earlier_release")
LISTS: dict[str, Any] = json.loads((FILES / "lists.json").read_text(encoding="utf-8"))
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
RECORDS: dict[str, list[dict[str, Any]]] = json.loads((FILES / "records.json").read_text(encoding="utf-8"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A copy of the folders `store`, `mirror`, `outbox`, `bundle` and `archive`. The mirror is filled anew."""
    with tarfile.open(FILES / "state.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_every_profile_of_the_store_is_read_as_it_was_written(state: Path) -> None:
    read = {key.decode(): hashlib.sha256(value).hexdigest() for key, value in read_store(state / "store").items()}
    assert read == EXPECTED["profiles"]


def test_waiting_decisions_in_the_outbox_are_read_whole(state: Path) -> None:
    settings = OutboxSettings(directory=str(state / "outbox"))
    waiting = []
    for worker in workers(settings):
        reader = OutboxReader(settings, worker)
        end, position = reader.end(), 0
        while position < end:
            records = reader.read(position, 100)
            if not records:
                break
            for after, payload in records:
                entry = outbox_pb2.OutboxEntry.FromString(payload)
                waiting.append(entry.response.payment_id)
                wanted = EXPECTED["decisions"][entry.response.payment_id]
                assert entry.response.score == wanted["score"]
                assert entry.response.action == wanted["action"]
                assert entry.response.decision_id == wanted["decision_id"]
                position = after
    assert set(EXPECTED["unshipped"]) <= set(waiting)


def test_the_bundle_passes_every_check_and_scores_its_golden_vectors(state: Path) -> None:
    bundle = load_bundle(state / "bundle", catalogue_digest=FeatureEngine().plan.digest)
    with np.load(state / "bundle" / "golden.npz") as golden:
        vectors, margins = golden["vectors"], golden["margins"]
    assert bundle.predictor.margins(np.ascontiguousarray(vectors)).tolist() == margins.tolist()


@pytest.mark.parametrize("topic", TOPICS)
def test_records_of_every_topic_decode_as_they_did(topic: str) -> None:
    decoder = Decoder(topic, LocalSchemaIds())
    decoded = []
    for record in RECORDS.get(topic, []):
        if record["value"] is None:
            continue
        value = base64.b64decode(record["value"])
        if value.startswith(b"\0garbage"):
            continue
        decoded.append(json.loads(json.dumps(decoder.decode(value), default=_printed)))
    wanted = [value for value in EXPECTED["decoded"].get(topic, []) if "error" not in value]
    # A field that was added later has its default in earlier records.
    assert [{name: value[name] for name in old} for value, old in zip(decoded, wanted, strict=True)] == wanted


def test_a_companion_ships_the_waiting_decisions_of_the_outbox(
    kafka: KafkaServer, state: Path, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    with Deployment(state, kafka.bootstrap, topic_prefix) as deployment:
        text = deployment.config.read_text(encoding="utf-8").replace("size_mb = 256", "size_mb = 16")
        deployment.config.write_text(text, encoding="utf-8")
        deployment.configure("lmdb", "map_size_bytes = 16777216\n")
        deployment.create_topics()
        address = deployment.start("companion").first_line()
        decoder = Decoder("decisions", LocalSchemaIds())

        def shipped() -> set[str]:
            return {decoder.decode(record.value or b"")["payment_id"] for record in read_topic(settings, "decisions")}

        wait_until(lambda: set(EXPECTED["unshipped"]) <= shipped(), "all that waited is shipped")
        assert samples(address)


def test_a_replay_of_the_archive_measures_the_same_payments(state: Path) -> None:
    arguments = ("--data", state / "archive", "--bundle", state / "bundle", "--out", state / "replayed")
    # The payments are of 2024 and arrived in 2026. The stream that worked them in had a wider time bound, too.
    wide = {"PAYWARDEN_STREAM_PAST_MS_MAX": str(10 * 365 * 86_400_000)}
    done = run_paywarden("replay", *map(str, arguments), environment=wide)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((state / "replayed" / "metrics.json").read_text(encoding="utf-8"))
    assert {name: metrics[name] for name in EXPECTED["replay"]} == EXPECTED["replay"]


def test_every_command_and_option_is_still_there() -> None:
    now = _commands(cli, "paywarden")
    gone = {
        path: [names for names in listed if not set(names.split("|")) <= set(now.get(path, []))]
        for path, listed in LISTS["commands"].items()
    }
    assert {path: names for path, names in gone.items() if names or path not in now} == {}


def test_every_setting_is_still_there() -> None:
    now = {section: {field.name for field in dataclasses.fields(kind)} for section, kind in SETTINGS.items()}
    gone = {section: set(names) - now.get(section, set()) for section, names in LISTS["settings"].items()}
    assert {section: names for section, names in gone.items() if names} == {}


def test_every_topic_is_still_there() -> None:
    now = {*TOPICS, CURSORS_TOPIC, *(repartition_topic(entity.name) for entity in CATALOGUE.entities)}
    assert set(LISTS["topics"]) <= now


@pytest.mark.parametrize("topic", LISTS["schemas"])
def test_a_topics_schema_keeps_its_fields_and_its_id_stays_known(topic: str) -> None:
    fields = [field["name"] for field in topic_schema(topic)["fields"]]
    earlier = LISTS["schemas"][topic]
    assert fields[: len(earlier["fields"])] == earlier["fields"] or set(earlier["fields"]) <= set(fields)
    known = {fingerprint(topic_schema(name)) for name in TOPICS} | {fingerprint(past) for past in past_schemas()}
    assert earlier["fingerprint"] in known
    assert set(LISTS["past_fingerprints"]) <= known


def test_every_message_keeps_the_numbers_and_types_of_its_fields() -> None:
    now = {
        message.full_name: {f"{field.number} {field.name} {field.type}" for field in message.fields}
        for module in (scoring_pb2, outbox_pb2, store_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
    }
    for name, fields in LISTS["messages"].items():
        assert set(fields) <= now[name], name


def _commands(command: click.Command, path: str) -> dict[str, list[str]]:
    # An option may get a further name.
    names = [name for p in command.params for name in (p.opts if isinstance(p, click.Option) else [str(p.name)])]
    found = {path: names}
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            found |= _commands(part, f"{path} {name}")
    return found


def _printed(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
