"""The reference pages that people write name every topic, error, refusal and field of a log line, as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from paywarden.ops.logs import SCHEMA
from paywarden.schemas import errors
from paywarden.schemas.avro import TOPICS, topic_schema
from paywarden.scoring.engine.batching import batcher
from paywarden.scoring.grpc import messages
from paywarden.scoring.http import refusals
from paywarden.scoring.http.refusals import HttpRefusal
from paywarden.streams.kafka import topics
from paywarden.streams.kafka.schemas.remembered_schemas import SCHEMAS_TOPIC
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC, repartition_topic
from tests.checkout import CHECKOUT

DAY_MS = 86_400_000


def entries(page: str) -> dict[str, str]:
    """Returns the notes in brackets behind each name of a list on a page; empty without notes."""
    text = (CHECKOUT / "docs" / "reference" / page).read_text(encoding="utf-8")
    return {name: notes or "" for name, notes in re.findall(r"^ *- `([^`]+)`(?: \(([^)]*)\))?:", text, re.MULTILINE)}


def test_the_page_of_topics_has_each_with_partitions_and_retention() -> None:
    page = entries("topics.md")
    assert page.keys() == {*TOPICS, CURSORS_TOPIC, SCHEMAS_TOPIC, repartition_topic("ENTITY")}
    for name, notes in page.items():
        created = topics._new_topic(name, name, topics.TopicSettings())
        config = created.config or {}
        count, retention_ms = created.num_partitions, int(config.get("retention.ms", 0))
        days = f"{retention_ms // DAY_MS} days" if retention_ms > 0 else ""
        kept = "compacted" if "compact" in config["cleanup.policy"] else ""
        wanted = "for ever" if retention_ms == -1 else ", ".join(filter(None, (kept, days)))
        assert notes.endswith(f"; {count} partition{'s' if count > 1 else ''}; {wanted}"), name


def without_meaning(kind: Any, place: str) -> Iterator[str]:
    """Yields the place of each field of an Avro type that has no `doc`."""
    if isinstance(kind, list):
        for branch in kind:
            yield from without_meaning(branch, place)
    elif isinstance(kind, dict):
        yield from without_meaning(kind.get("items"), place)
        for field in kind.get("fields", ()):
            if not field.get("doc"):
                yield f"{place}.{field['name']}"
            yield from without_meaning(field["type"], f"{place}.{field['name']}")


def test_each_field_of_a_topic_has_a_meaning_in_its_schema() -> None:
    assert [place for topic in TOPICS for place in without_meaning(topic_schema(topic), topic)] == []


def tree(error: type[errors.PaywardenError]) -> set[str]:
    """Returns the names of an error of schemas/errors.py and of those below it."""
    below = (branch for branch in error.__subclasses__() if branch.__module__ == errors.__name__)
    return {error.__name__}.union(*map(tree, below))


def test_the_page_of_errors_has_the_tree_and_each_code_with_its_statuses() -> None:
    page = entries("errors.md")
    codes = {name for name in page if name.islower()}
    assert page.keys() - codes == tree(errors.PaywardenError)
    of_http = [value for value in vars(refusals).values() if isinstance(value, HttpRefusal)]
    fixed = {value.code for value in vars(batcher).values() if isinstance(value, batcher.Refusal)}
    assert codes == {value.code for value in of_http} | fixed | {batcher.UNAUTHENTICATED, batcher.ALREADY_EXISTS}
    for code in codes:
        statuses = {value.status for value in of_http if value.code == code}
        if code in vars(batcher).values():
            statuses.add(refusals.status_of(code))
        http = ", ".join(map(str, sorted(statuses)))
        assert page[code] == f"HTTP {http}; gRPC {messages.CODES[code]} {code.upper()}"


def test_the_page_of_logs_has_each_field_of_a_line() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    page = entries("logs.md")
    assert page.keys() == schema["properties"].keys()
    assert {name for name, notes in page.items() if "if there is one" not in notes} == set(schema["required"])
