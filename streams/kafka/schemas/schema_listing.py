"""List every schema that records on the topics may have: those of our releases, and others from a registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from paywarden.schemas.avro import (
    TOPICS,
    fingerprint,
    schema_versions,
    simple_name,
    subject,
    topic_schema,
    writer_schema,
)
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.streams.kafka.client import KafkaSettings

INDEX = "schemas.json"


@dataclass(frozen=True)
class ListedSchema:
    """One schema of a topic. `version` counts our releases' schemas from 1; None means a schema of another program."""

    topic: str
    subject: str
    version: int | None
    is_current: bool
    fingerprint: int
    registry_ids: tuple[int, ...]
    # Where `export_schemas` puts it.
    file: str
    text: str = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Returns the fields for JSON, without the schema's text."""
        fields = asdict(self)
        del fields["text"]
        return fields


def listed_schemas(
    kafka: KafkaSettings, remembered: Mapping[int, str], fields: PaymentFields = TABLE_ALONE
) -> list[ListedSchema]:
    """Returns for each topic our schemas, oldest first, then those of other programs and earlier declarations.

    `remembered` maps registry ids to the texts of schemas. `fields` are those of a payment.
    """
    ids: dict[tuple[str, int], list[int]] = {}
    texts: dict[tuple[str, int], str] = {}
    for schema_id, text in sorted(remembered.items()):
        try:
            schema = writer_schema(text)
        except InvalidEvent:
            continue
        key = simple_name(schema), fingerprint(schema)
        # Fingerprints are remembered too: those of schemas with declared fields.
        ids.setdefault(key, []).extend([schema_id] if schema_id != key[1] else [])
        texts[key] = text
    listed = []
    for topic in TOPICS:
        record, name = simple_name(topic_schema(topic)), kafka.topic(topic)
        versions = schema_versions(topic, fields)
        for release in versions:
            is_current = release is versions[-1]
            file = f"{topic}.avsc" if is_current else f"history/{topic}-{release.version}.avsc"
            numbers = tuple(ids.get((record, release.fingerprint), ()))
            listed.append(
                ListedSchema(
                    name, subject(name), release.version, is_current, release.fingerprint, numbers, file, release.text
                )
            )
        ours = {release.fingerprint for release in versions}
        for (other, number), text in texts.items():
            if other == record and number not in ours:
                numbers = tuple(ids[other, number])
                file = f"others/{topic}-{numbers[0] if numbers else number}.avsc"
                listed.append(ListedSchema(name, subject(name), None, False, number, numbers, file, text))
    return listed


def export_schemas(schemas: Sequence[ListedSchema], folder: Path) -> None:
    """Write each schema to its file, and an index of them all. Raises Misconfigured when the folder cannot be used."""
    try:
        for schema in schemas:
            path = folder / schema.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(schema.text, encoding="utf-8")
        index = json.dumps([schema.to_dict() for schema in schemas], indent=2)
        (folder / INDEX).write_text(index + "\n", encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot write schemas to {folder}: {error.strerror}") from error
