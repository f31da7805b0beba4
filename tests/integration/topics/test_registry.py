"""Our codec and Confluent's own serialisers and deserialisers, each against the other, on a real schema registry."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from paywarden.schemas.avro import TOPICS, Decoder, Encoder, LocalSchemaIds, schema_text, topic_schema
from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.streams.kafka.schemas.registry import (
    RegistrySchemaIds,
    RegistrySettings,
    schema_ids,
)
from paywarden.streams.kafka.schemas.remembered_schemas import MemoryRememberedSchemas
from tests.patience import PATIENCE_S
from tests.services.ports import free_port
from tests.services.servers.registry import RegistryServer
from tests.unit.schemas.test_schema_limits import HOSTILE, payment_with
from tests.unit.streams.kafka.schemas.test_declared_schemas import DECLARED, LATER, OWN

PAYMENT = {
    "payment_id": "p-1",
    "event_time_ms": 1_700_000_000_000,
    "card_id": "c-1",
    "merchant_id": "m-1",
    "device_id": None,
    "ip": None,
    "amount_minor": 1050,
    "currency": "EUR",
    "mcc": "5411",
    "country": None,
    "channel": None,
    "utc_offset_minutes": None,
    "declined": None,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry for this file alone, because these tests spoil the topics' subjects for others."""
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def client(server: RegistryServer) -> Iterator[SchemaRegistryClient]:
    """Another client of the same registry, which is empty when a test begins."""
    with SchemaRegistryClient({"url": server.url, "timeout": PATIENCE_S}) as client:
        # Delete from the end, because a schema that refers to another must go first.
        for name in sorted(client.get_subjects(), reverse=True):
            # Delete twice: a registry deletes a subject for good only if it is already marked as deleted.
            client.delete_subject(name)
            client.delete_subject(name, permanent=True)
        yield client


@pytest.fixture
def connect(server: RegistryServer, client: SchemaRegistryClient) -> Iterator[Callable[..., RegistrySchemaIds]]:
    """Returns a function that opens our codec within the test. The codec is closed after the test."""
    del client
    opened: list[RegistrySchemaIds] = []

    def connect(
        remembered: MemoryRememberedSchemas | None = None,
        topic_prefix: str = "",
        fields: PaymentFields = TABLE_ALONE,
        **changes: Any,
    ) -> RegistrySchemaIds:
        settings = RegistrySettings(url=server.url, **changes)
        remembered = remembered or MemoryRememberedSchemas()
        opened.append(RegistrySchemaIds(settings, remembered, topic_prefix=topic_prefix, fields=fields))
        return opened[-1]

    yield connect
    for ids in opened:
        ids.close()


def context(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE)


def example(topic: str) -> dict[str, Any]:
    """Returns a record with a value in every field."""
    values: dict[str, Any] = {
        "boolean": True,
        "string": "text ü",
        "int": -7,
        "long": 2**40,
        "double": 0.25,
        "bytes": bytes(range(256)),
    }

    def value(schema: Any) -> Any:
        if isinstance(schema, list):
            return value(schema[-1])
        if isinstance(schema, str):
            return values[schema] if schema in values else value(names[schema])
        if schema["type"] == "record":
            return {field["name"]: value(field["type"]) for field in schema["fields"]}
        if schema["type"] == "map":
            return {"text": value(schema["values"])}
        return [value(schema["items"])] * 2 if schema["type"] == "array" else schema["symbols"][-1]

    names = topic_schema(topic)["__named_schemas"]
    record = value(topic_schema(topic))
    assert isinstance(record, dict)
    return record


def refused_at_start(settings: RegistrySettings) -> str:
    with pytest.raises(Misconfigured) as caught:
        schema_ids(settings, MemoryRememberedSchemas())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_confluents_deserialiser_reads_our_records(
    client: SchemaRegistryClient, connect: Callable[..., RegistrySchemaIds]
) -> None:
    ids = connect()
    deserialise = AvroDeserializer(client)
    for topic in TOPICS:
        record = example(topic)
        assert deserialise(Encoder(topic, ids.id_of(topic)).encode(record), context(topic)) == record


def test_we_read_records_of_confluents_serialiser(
    client: SchemaRegistryClient, connect: Callable[..., RegistrySchemaIds]
) -> None:
    ids = connect()
    for topic in TOPICS:
        serialise = AvroSerializer(client, schema_text(topic), conf={"auto.register.schemas": True})
        record = example(topic)
        assert Decoder(topic, ids).decode(serialise(record, context(topic))) == record


def test_without_auto_register_a_missing_schema_stops_the_start(
    server: RegistryServer, client: SchemaRegistryClient
) -> None:
    message = refused_at_start(RegistrySettings(url=server.url, auto_register=False))
    assert message == (
        f"schema registry {server.url}: subject payments-value does not have our schema, "
        "and registry.auto_register is false"
    )
    assert client.get_subjects() == []


def test_declarations_come_and_go_under_full_compatibility(
    client: SchemaRegistryClient, connect: Callable[..., RegistrySchemaIds]
) -> None:
    """FULL is both: each reader reads what the other wrote. Confluent's serialiser writes the declared fields."""
    plain = connect()
    client.set_compatibility("payments-value", "FULL")
    many, few = connect(fields=DECLARED), connect(fields=LATER)
    assert len({ids.id_of("payments") for ids in (plain, many, few)}) == 3
    serialise = AvroSerializer(
        client, json.dumps(json.loads(schema_text("payments", DECLARED))), conf={"auto.register.schemas": False}
    )
    value = serialise({**PAYMENT, **OWN}, context("payments"))
    assert value is not None
    assert Decoder("payments", many).decode(value) == {**PAYMENT, **OWN}
    assert Decoder("payments", few).decode(value) == {**PAYMENT, "customer": "k-1", "days": None}
    assert Decoder("payments", plain).decode(value) == PAYMENT
    old = Encoder("payments", plain.id_of("payments")).encode(PAYMENT)
    assert Decoder("payments", many).decode(old) == {**PAYMENT, **dict.fromkeys(OWN)}


def test_a_start_stops_if_the_registry_calls_our_schema_incompatible(
    server: RegistryServer, client: SchemaRegistryClient
) -> None:
    stranger = {"type": "record", "name": "Payment", "namespace": "paywarden.v1", "fields": []}
    client.register_schema("payments-value", RegistrySchema(json.dumps(stranger), "AVRO"))
    client.set_compatibility("payments-value", "BACKWARD")
    message = refused_at_start(RegistrySettings(url=server.url))
    assert message.startswith(f"schema registry {server.url}: our schema is not compatible")
    assert "subject payments-value" in message


def test_each_record_of_a_foreign_incompatible_schema_is_refused(
    client: SchemaRegistryClient, connect: Callable[..., RegistrySchemaIds]
) -> None:
    decoder = Decoder("payments", connect())
    poorer = json.loads(schema_text("payments"))
    poorer["fields"] = [field for field in poorer["fields"] if field["name"] != "currency"]
    serialise = AvroSerializer(client, json.dumps(poorer))
    value = serialise({k: v for k, v in PAYMENT.items() if k != "currency"}, context("payments"))
    with pytest.raises(InvalidEvent, match="No default value for field currency"):
        decoder.decode(value)


HOSTILE_AND_REGISTERED = (
    "arrays nested 600 deep",
    "a record of type error that contains itself",
    "forty records each twice the one before",
)


@pytest.mark.parametrize("name", HOSTILE_AND_REGISTERED)
def test_a_hostile_schema_that_the_registry_accepts_is_refused(
    name: str, client: SchemaRegistryClient, connect: Callable[..., RegistrySchemaIds]
) -> None:
    schema = RegistrySchema(json.dumps(payment_with(HOSTILE[name])), "AVRO")
    schema_id = client.register_schema("hostile-value", schema)
    remembered = MemoryRememberedSchemas()
    ids = connect(remembered)
    with pytest.raises(InvalidEvent, match="the schema"):
        ids.schema_of(schema_id)
    # It is not remembered for others, and a flood of such records asks for it once.
    assert schema_id not in remembered.read()
    ids.close()
    with pytest.raises(InvalidEvent, match="the schema"):
        ids.schema_of(schema_id)


def test_an_unknown_id_is_refused_and_looked_up_again_later(
    server: RegistryServer, client: SchemaRegistryClient
) -> None:
    now_s = 1_000.0
    ids = RegistrySchemaIds(RegistrySettings(url=server.url), MemoryRememberedSchemas(), clock=lambda: now_s)
    unknown = max(ids.id_of(topic) for topic in TOPICS) + 1_000
    with pytest.raises(InvalidEvent, match=f"unknown schema id {unknown}"):
        ids.schema_of(unknown)
    # A second look-up within this time sends no request: no server is there to answer it.
    ids.close()
    with pytest.raises(InvalidEvent, match=f"unknown schema id {unknown}"):
        ids.schema_of(unknown)
    now_s += 31.0
    with pytest.raises(RuntimeError, match="closed"):
        ids.schema_of(unknown)
    del client


# A registry that is added later, removed, or gives other ids


def test_a_fingerprint_is_read_while_a_registry_is_configured(connect: Callable[..., RegistrySchemaIds]) -> None:
    ids = connect()
    ids.close()
    for topic in TOPICS:
        record = example(topic)
        value = Encoder(topic, LocalSchemaIds().id_of(topic)).encode(record)
        assert Decoder(topic, ids).decode(value) == record


def test_an_id_that_already_means_another_schema_stops_the_start(
    server: RegistryServer, connect: Callable[..., RegistrySchemaIds]
) -> None:
    taken = connect().id_of("payments")
    remembered = MemoryRememberedSchemas({taken: schema_text("outcomes")})
    with pytest.raises(Misconfigured) as caught:
        connect(remembered)
    assert str(caught.value) == (
        f"schema registry {server.url} gives subject payments-value the id {taken}, which on these topics already "
        "means another schema, paywarden.v1.Outcome: give the registry back the ids it had, or use another "
        "[kafka] topic_prefix"
    )


def test_the_second_url_is_tried_when_the_first_is_down(server: RegistryServer, client: SchemaRegistryClient) -> None:
    url = f"http://127.0.0.1:{free_port()},{server.url}"
    ids = RegistrySchemaIds(RegistrySettings(url=url), MemoryRememberedSchemas(), topics=["payments"])
    assert ids.id_of("payments") == client.get_latest_version("payments-value").schema_id
    ids.close()


def test_a_registry_that_went_down_is_temporary_and_known_ids_stay(
    server: RegistryServer, connect: Callable[..., RegistrySchemaIds]
) -> None:
    ids = connect()
    decoder = Decoder("payments", ids)
    value = Encoder("payments", ids.id_of("payments")).encode(PAYMENT)
    assert decoder.decode(value) == PAYMENT
    server.kill()
    try:
        assert decoder.decode(value) == PAYMENT
        with pytest.raises(TemporaryFailure, match="did not answer"):
            decoder.decode(Encoder("payments", 1_000_000).encode(PAYMENT))
    finally:
        # The tests after this one ask the same registry.
        server.restart()
    with pytest.raises(InvalidEvent, match="unknown schema id 1000000"):
        decoder.decode(Encoder("payments", 1_000_000).encode(PAYMENT))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Yields the URL of a server that is no schema registry and gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Write nothing on standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>hello</html>", "did not answer as one"),
        (200, b"[]", "did not answer as one"),
        (200, b"{}", "no id for subject payments-value"),
        (404, b"{}", "answered with status 404"),
        (401, b'{"error_code": 40101, "message": "no"}', "refused our credentials"),
        (503, b"busy", "answered with status 503"),
    ],
)
def test_a_server_that_is_no_schema_registry_stops_the_start(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as url:
        message = refused_at_start(RegistrySettings(url=url, username="u", password="hunter2"))
    assert words in message
    assert url in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RegistrySettings(url="http://user:hunter2@127.0.0.1:1"), "use [registry] username"),
        (RegistrySettings(url="ftp://127.0.0.1:1"), "[registry] url: wanted http://"),
        (RegistrySettings(url="127.0.0.1:8081"), "[registry] url: wanted http://"),
        (RegistrySettings(url="http://[oops"), "[registry] url is not a URL"),
        (RegistrySettings(url="https://127.0.0.1:1", ca_file="/nowhere/ca.pem"), "FileNotFoundError"),
        (RegistrySettings(url="https://127.0.0.1:1", key_file="/nowhere/key.pem"), "ValueError"),
        (RegistrySettings(url="http://127.0.0.1:1", username="a:b", password="hunter2"), "colon"),
    ],
)
def test_impossible_settings_stop_the_start(settings: RegistrySettings, words: str) -> None:
    message = refused_at_start(settings)
    assert words in message
    assert "hunter2" not in message
