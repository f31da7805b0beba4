from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paywarden.schemas import avro
from paywarden.schemas.avro import TOPICS, LocalSchemaIds, fingerprint, parsed, past_schemas, topic_schema
from paywarden.schemas.errors import Misconfigured


def schema(**change: Any) -> str:
    return json.dumps({"type": "record", "name": "n.R", "fields": [{"name": "a", "type": "int"}]} | change)


def test_a_fingerprint_is_the_first_31_bits_of_the_canonical_forms_sha256() -> None:
    # printf '%s' '{"name":"n.R","type":"record","fields":[{"name":"a","type":"int"}]}' | sha256sum
    assert fingerprint(parsed(schema())) == 0x8DC52064 & (2**31 - 1)


def test_words_and_defaults_do_not_change_a_fingerprint() -> None:
    told = schema(doc="What it is.", fields=[{"name": "a", "type": {"type": "int"}, "doc": "A.", "default": 5}])
    assert fingerprint(parsed(told)) == fingerprint(parsed(schema()))


def test_a_change_on_the_wire_changes_a_fingerprint() -> None:
    assert fingerprint(parsed(schema(fields=[{"name": "a", "type": "long"}]))) != fingerprint(parsed(schema()))


def test_every_topic_has_its_own_id_and_schema() -> None:
    ids = LocalSchemaIds()
    assert len({ids.id_of(topic) for topic in TOPICS}) == len(TOPICS)
    for topic in TOPICS:
        assert ids.schema_of(ids.id_of(topic)) is topic_schema(topic)


def test_an_earlier_schema_is_known_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "payments-1.avsc").write_text(schema(), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a schema", encoding="utf-8")
    earlier = past_schemas(tmp_path)
    assert [one["name"] for one in earlier] == ["n.R"]
    assert LocalSchemaIds(past=earlier).schema_of(fingerprint(earlier[0])) == earlier[0]


def test_two_schemas_with_one_id_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro, "fingerprint", lambda schema: len(schema["fields"]))
    with pytest.raises(Misconfigured, match="share the id 1"):
        LocalSchemaIds(past=[parsed(schema()), parsed(schema(name="n.S"))])


def test_every_schema_file_belongs_to_a_topic() -> None:
    files = Path(avro.__file__).with_name("avsc").glob("*.avsc")
    assert {file.stem for file in files} == set(TOPICS)
