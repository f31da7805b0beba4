from __future__ import annotations

import json
from pathlib import Path

import pytest

from paywarden.schemas.avro import TOPICS, LocalSchemaIds, fingerprint, parsed, schema_text, schema_versions
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.schemas.schema_listing import export_schemas, listed_schemas

KAFKA = KafkaSettings(topic_prefix="eu-")


def newer(topic: str) -> str:
    schema = json.loads(schema_text(topic))
    schema["fields"].append({"name": "wallet", "type": ["null", "string"], "default": None})
    return json.dumps(schema)


def test_todays_schema_of_each_topic_is_listed_with_its_record_id() -> None:
    current = {listed.topic: listed for listed in listed_schemas(KAFKA, {}) if listed.is_current}
    assert set(current) == {f"eu-{topic}" for topic in TOPICS}
    for topic in TOPICS:
        listed = current[f"eu-{topic}"]
        assert (listed.fingerprint, listed.registry_ids) == (LocalSchemaIds().id_of(topic), ())
        assert listed.subject == f"eu-{topic}-value"
        assert listed.version == len(schema_versions(topic))


@pytest.fixture
def _changed_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that has changed the schema of decisions."""
    before = json.loads(schema_text("decisions"))
    before["fields"] = [field for field in before["fields"] if "default" not in field]
    monkeypatch.setattr("paywarden.schemas.avro._past_texts", lambda *_: {"decisions-1": json.dumps(before)})


@pytest.mark.usefixtures("_changed_decisions")
def test_schemas_of_earlier_releases_are_listed_oldest_first() -> None:
    decisions = [listed for listed in listed_schemas(KAFKA, {}) if listed.topic == "eu-decisions"]
    assert [listed.version for listed in decisions] == list(range(1, len(decisions) + 1))
    assert [listed.file for listed in decisions[:2]] == ["history/decisions-1.avsc", "decisions.avsc"]
    for listed in decisions:
        assert LocalSchemaIds().find(listed.fingerprint) is not None


@pytest.mark.usefixtures("_changed_decisions")
def test_registry_ids_are_listed_with_their_schema() -> None:
    earlier = schema_versions("decisions")[0]
    remembered = {5: schema_text("payments"), 9: schema_text("payments"), 6: earlier.text, 7: "no schema"}
    found = {(listed.topic, listed.version): listed.registry_ids for listed in listed_schemas(KAFKA, remembered)}
    assert found["eu-payments", len(schema_versions("payments"))] == (5, 9)
    assert found["eu-decisions", 1] == (6,)
    assert sum(len(ids) for ids in found.values()) == 3


def test_a_schema_of_another_producer_is_listed_under_its_topic() -> None:
    (other,) = [listed for listed in listed_schemas(KAFKA, {17: newer("payments")}) if listed.version is None]
    assert (other.topic, other.registry_ids, other.file) == ("eu-payments", (17,), "others/payments-17.avsc")
    assert other.fingerprint == fingerprint(parsed(newer("payments")))


def test_an_export_holds_every_schema_and_an_index_that_finds_it(tmp_path: Path) -> None:
    export_schemas(listed_schemas(KAFKA, {17: newer("payments")}), tmp_path / "new")
    index = json.loads((tmp_path / "new" / "schemas.json").read_text(encoding="utf-8"))
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.avsc")}
    assert {listed["file"] for listed in index} == files
    for listed in index:
        text = (tmp_path / "new" / listed["file"]).read_text(encoding="utf-8")
        assert fingerprint(parsed(text)) == listed["fingerprint"]


def test_an_export_to_an_impossible_folder_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="cannot write schemas to"):
        export_schemas(listed_schemas(KAFKA, {}), tmp_path / "file" / "new")
