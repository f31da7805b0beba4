"""The examples of docs/integrate/topics.md that no test runs must show today's ids."""

from __future__ import annotations

import json
import re

from paywarden.schemas.avro import fingerprint, topic_schema
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.schemas.schema_listing import listed_schemas
from tests.services.clients.topic_clients import PAGE, programs

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_example_of_the_header_has_the_id_of_todays_payments() -> None:
    assert fingerprint(topic_schema("payments")).to_bytes(4, "big").hex(" ") in TEXT


def test_the_example_of_the_index_is_an_entry_of_it() -> None:
    (example,) = (
        json.loads(block) for block in re.findall(r"^```json\n(\{\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    )
    entries = [json.loads(json.dumps(one.to_dict())) for one in listed_schemas(KafkaSettings(), {})]
    assert example in entries


def test_the_page_has_a_producer_and_a_consumer_for_each_language() -> None:
    names = {"produce.py", "consume.py", "produce.js", "consume.js", "Produce.java", "Consume.java"}
    assert names <= set(programs())
