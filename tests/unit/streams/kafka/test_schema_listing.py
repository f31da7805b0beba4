from __future__ import annotations

import json
from pathlib import Path

import pytest

from paywarden.schemas.avro import TOPICS, LocalSchemaIds, fingerprint, parsed, schema_text, schema_versions
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.schema_listing import export_schemas, listed_schemas

KAFKA = KafkaSettings(topic_prefix="eu-")


def newer(topic: str) -> str:
    schema = json.loads(schema_text(topic))
    schema["fields"].append({"name": "wallet", "type": ["null", "string"], "default": None})
    return json.dumps(schema)


def test_todays_schema_of_each_topic_is_listed_with_its_record_id() -> None:
    current = {one.topic: one for one in listed_schemas(KAFKA, {}) if one.is_current}
    assert set(current) == {f"eu-{topic}" for topic in TOPICS}
    for topic in TOPICS:
        one = current[f"eu-{topic}"]
        assert (one.fingerprint, one.registry_ids) == (LocalSchemaIds().id_of(topic), ())
        assert one.subject == f"eu-{topic}-value"
        assert one.version == len(schema_versions(topic))


def test_earlier_schemas_are_listed_oldest_first() -> None:
    decisions = [one for one in listed_schemas(KAFKA, {}) if one.topic == "eu-decisions"]
    assert [one.version for one in decisions] == list(range(1, len(decisions) + 1))
    assert [one.file for one in decisions[:2]] == ["history/decisions-1.avsc", "history/decisions-2.avsc"]
    for one in decisions:
        assert LocalSchemaIds().find(one.fingerprint) is not None


def test_registry_ids_are_listed_with_their_schema() -> None:
    earlier = schema_versions("decisions")[0]
    remembered = {5: schema_text("payments"), 9: schema_text("payments"), 6: earlier.text, 7: "no schema"}
    found = {(one.topic, one.version): one.registry_ids for one in listed_schemas(KAFKA, remembered)}
    assert found["eu-payments", len(schema_versions("payments"))] == (5, 9)
    assert found["eu-decisions", 1] == (6,)
    assert sum(len(ids) for ids in found.values()) == 3


def test_a_schema_of_another_producer_is_listed_under_its_topic() -> None:
    (other,) = [one for one in listed_schemas(KAFKA, {17: newer("payments")}) if one.version is None]
    assert (other.topic, other.registry_ids, other.file) == ("eu-payments", (17,), "others/payments-17.avsc")
    assert other.fingerprint == fingerprint(parsed(newer("payments")))


def test_an_export_holds_every_schema_and_an_index_that_finds_it(tmp_path: Path) -> None:
    export_schemas(listed_schemas(KAFKA, {17: newer("payments")}), tmp_path / "new")
    index = json.loads((tmp_path / "new" / "schemas.json").read_text(encoding="utf-8"))
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.avsc")}
    assert {one["file"] for one in index} == files
    for one in index:
        text = (tmp_path / "new" / one["file"]).read_text(encoding="utf-8")
        assert fingerprint(parsed(text)) == one["fingerprint"]


def test_an_export_to_an_impossible_folder_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="cannot write schemas to"):
        export_schemas(listed_schemas(KAFKA, {}), tmp_path / "file" / "new")
