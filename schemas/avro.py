"""Avro records in Confluent's wire format, which the topics hold.

    byte 0      magic, 0
    bytes 1–4   the writer's schema id, big endian
    bytes 5–    the record, Avro binary

A value names the schema it was written with. A `Decoder` asks its `SchemaIds` for that schema once, and then
resolves every such record to the current schema of the topic. Without a registry the id is a fingerprint of the
schema itself, so that processes of one release agree on it without asking each other. A fingerprint stays readable
when a registry is configured later.

A project's own fields (schemas/payment_fields.py) stand behind those of every payment, in the order of their numbers:

    {"name": "basket_weight", "type": ["null", "double"], "default": null, "doc": "A number from 0 to 500, in kg."}

Each may be null, a required one too. Records from before a field was declared therefore stay readable; the stream
refuses a null in a required field, and says so.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from io import BytesIO
from numbers import Integral, Real
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException, UnknownType, to_parsing_canonical_form
from fastavro.validation import ValidationError

from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, Form, PaymentField, PaymentFields
from paywarden.schemas.schema_limits import bounded, read_schema

# A record schema as `parsed` returns it.
Schema: TypeAlias = dict[str, Any]

TOPICS: Final = (
    "payments",
    "outcomes",
    "profiles",
    "decisions",
    "drift-alerts",
    "drift-acknowledgements",
    "console-events",
    "outcome-metrics",
    "dead-letters",
    "dead-letters-retried",
    "catalogues",
    "model-registry",
    "shadow-decisions",
    "verdicts",
)

_HEADER: Final = struct.Struct(">BI")
_MAGIC: Final = 0
_HIGHEST_ID: Final = 2**31 - 1
# A topic has a handful of schemas. A client that registers more cannot fill our memory with them.
SCHEMAS_KEPT_MAX: Final = 1_000
# Characters of an unknown field's name that a message shows.
_NAME_SHOWN: Final = 64
# Stands in for a value that is missing and has no default.
_ABSENT: Final = object()
# The Avro types of declared fields that are neither texts nor whole numbers.
_OTHER_TYPES: Final = {Form.DECIMAL: "double", Form.FLAG: "boolean"}
_WHOLE_RANGES: Final = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
# Everything that fastavro raises on a body that does not fit its schema, by its code and by trial.
_BODY_ERRORS: Final = (EOFError, IndexError, OverflowError, ValueError, struct.error, SchemaResolutionError)
_RECORD_ERRORS: Final = (AttributeError, OverflowError, TypeError, ValueError, struct.error)


class SchemaIds(Protocol):
    """Maps schemas to ids and back."""

    def id_of(self, topic: str) -> int:
        """Returns the id of the schema that we write to `topic`."""

    def current_schema(self, topic: str) -> Schema:
        """Returns the schema that we write to `topic`, and read its records as. The caller must not change it."""

    def schema_of(self, schema_id: int) -> Schema:
        """Returns the schema behind an id.

        Raises InvalidEvent for an unknown id, TemporaryFailure when the registry did not answer.
        """


def subject(topic: str) -> str:
    """Returns the registry's name for the schemas of a topic's values. `topic` is the name on the cluster."""
    return f"{topic}-value"


def schema_text(topic: str, fields: PaymentFields = TABLE_ALONE) -> str:
    """Returns the current schema of a topic: its file's text, and for payments the fields that a project declares."""
    assert topic in TOPICS, f"{topic} is not one of {TOPICS}"
    text = resources.files("paywarden.schemas.avsc").joinpath(f"{topic}.avsc").read_text(encoding="utf-8")
    if topic != "payments" or not fields.declared:
        return text
    schema = json.loads(text)
    schema["fields"] += map(_declared, sorted(fields.declared, key=lambda field: field.number))
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _declared(field: PaymentField) -> dict[str, Any]:
    """Returns a declared field as a field of the Avro schema."""
    kind = "string" if field.is_text else "long" if field.is_number else _OTHER_TYPES[field.form]
    unit = f", in {field.unit}" if field.unit else ""
    notes = "".join((" Required." * field.is_required, " Personal." * field.is_personal))
    doc = f"{field.wanted[0].upper()}{field.wanted[1:]}{unit}.{notes}"
    return {"name": field.name, "type": ["null", kind], "default": None, "doc": doc}


def topic_schema(topic: str, fields: PaymentFields = TABLE_ALONE) -> Schema:
    """Returns the current schema of a topic, parsed once. The caller must not change it."""
    return _topic_schema(topic, fields if topic == "payments" else TABLE_ALONE)


@cache
def _topic_schema(topic: str, fields: PaymentFields) -> Schema:
    return parsed(schema_text(topic, fields))


def past_schemas(folder: Traversable | None = None) -> list[Schema]:
    """Returns the schemas that topics had in earlier releases: `history/*.avsc`. The first release has none."""
    return [parsed(text) for text in _past_texts(folder).values()]


def _past_texts(folder: Traversable | None = None) -> dict[str, str]:
    """Returns the texts by name without the ending, as in `payments-1`."""
    history = resources.files("paywarden.schemas.avsc").joinpath("history") if folder is None else folder
    if not history.is_dir():
        return {}
    files = [file for file in history.iterdir() if file.name.endswith(".avsc")]
    return {file.name.removesuffix(".avsc"): file.read_text(encoding="utf-8") for file in files}


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """A schema that a topic has or had. Versions count from 1; the highest is the current one."""

    topic: str
    version: int
    text: str
    fingerprint: int


def schema_versions(topic: str, fields: PaymentFields = TABLE_ALONE) -> list[SchemaVersion]:
    """Returns every schema of a topic, the oldest first. A schema with declared fields comes behind the release's."""
    past = {}
    for name, text in _past_texts().items():
        past_topic, _, number = name.rpartition("-")
        if past_topic == topic:
            past[int(number)] = text
    current = dict.fromkeys((schema_text(topic), schema_text(topic, fields)))
    texts = past | dict(enumerate(current, max(past, default=0) + 1))
    return [SchemaVersion(topic, number, text, fingerprint(parsed(text))) for number, text in sorted(texts.items())]


def parsed(text: str) -> Schema:
    """Returns one of our record schemas from its JSON, with its defaults. Logical types become the types under them.

    Raises InvalidEvent for JSON that is no record schema, and for a schema beyond the limits
    (schemas/schema_limits.py).
    """
    schema = read_schema(text)
    bounded(schema)
    return _parsed(_plain(schema))


def writer_schema(text: str) -> Schema:
    """Returns the record schema of any writer from its JSON, with only the parts that decide the bytes of its records.

    Raises InvalidEvent as `parsed` does. A record of such a schema is decoded in bounded time, whatever its bytes.
    """
    return _parsed(bounded(read_schema(text)))


def _parsed(schema: dict[str, Any]) -> Schema:
    try:
        parsed_schema = fastavro.parse_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError, SchemaParseException, UnknownType) as error:
        raise InvalidEvent("the schema is not valid Avro") from error
    assert isinstance(parsed_schema, dict)
    return parsed_schema


def fingerprint(schema: Schema) -> int:
    """Returns a schema's id for a deployment without a registry: 31 bits, a positive int in every language.

    The first four bytes (big endian, top bit cleared) of the SHA-256 of its Parsing Canonical Form
    (https://avro.apache.org/docs/1.12.0/specification/#parsing-canonical-form-for-schemas): documentation,
    defaults and layout do not change it; a change of the bytes on the wire does.
    """
    digest = hashlib.sha256(to_parsing_canonical_form(schema).encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") & _HIGHEST_ID


class LocalSchemaIds:
    """The ids of a deployment without a registry: fingerprints of the current and earlier schemas."""

    def __init__(self, past: Iterable[Schema] | None = None, fields: PaymentFields = TABLE_ALONE) -> None:
        """`fields` are the fields of a payment in this deployment."""
        self._current = {topic: topic_schema(topic, fields) for topic in TOPICS}
        self._ids = {topic: fingerprint(schema) for topic, schema in self._current.items()}
        self._schemas: dict[int, Schema] = {}
        earlier = past_schemas() if past is None else past
        for schema in [*earlier, *map(topic_schema, TOPICS), self._current["payments"]]:
            schema_id = fingerprint(schema)
            known = self._schemas.setdefault(schema_id, schema)
            if not same_on_the_wire(known, schema):
                raise Misconfigured(f"schemas {known['name']} and {schema['name']} share the id {schema_id}")

    def id_of(self, topic: str) -> int:
        """Returns the fingerprint of the topic's schema."""
        return self._ids[topic]

    def current_schema(self, topic: str) -> Schema:
        """See SchemaIds."""
        return self._current[topic]

    def schema_of(self, schema_id: int) -> Schema:
        """Returns the schema with that fingerprint. Raises InvalidEvent when this release has none."""
        schema = self.find(schema_id)
        if schema is None:
            raise InvalidEvent(f"unknown schema id {schema_id}")
        return schema

    def find(self, schema_id: int) -> Schema | None:
        """Returns the schema with that fingerprint; None when this release has none."""
        return self._schemas.get(schema_id)


class Encoder:
    """Writes records of one topic. The id stands for `schema`, which is the current one unless another is given.

    Thread-safe.
    """

    def __init__(self, topic: str, schema_id: int, *, schema: Schema | None = None) -> None:
        self._schema = topic_schema(topic) if schema is None else schema
        self.header = _HEADER.pack(_MAGIC, schema_id)
        """The bytes before each record: they name the schema that it was written with."""
        fields = self._schema["fields"]
        self._whole = [
            (field["name"], *_WHOLE_RANGES[field["type"]], field.get("default", _ABSENT))
            for field in fields
            if field["type"] in ("int", "long")
        ]
        self._real = [
            (field["name"], field.get("default", _ABSENT)) for field in fields if field["type"] in ("float", "double")
        ]

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """Returns the value to send. Fields with a default may be missing.

        Raises InvalidEvent that names the first field that is missing, unknown or of another type.
        """
        stream = BytesIO()
        stream.write(self.header)
        try:
            self._check_numbers(record)
            fastavro.schemaless_writer(
                stream, self._schema, record, strict_allow_default=True, disable_tuple_notation=True
            )
        except _RECORD_ERRORS:
            # No cause is attached: fastavro's messages quote the value.
            raise _unfit(self._schema, record) from None
        return stream.getvalue()

    def _check_numbers(self, record: Mapping[str, Any]) -> None:
        # fastavro would write 10.5 as 10, True as 1, "0.5" as 0.5, and an int of more than 32 bits.
        for name, low, high, default in self._whole:
            value = record.get(name, default)
            if type(value) is not int or not low <= value <= high:
                _refuse_unless_whole(name, value, low, high)
        for name, default in self._real:
            value = record.get(name, default)
            if type(value) is not float:
                _refuse_unless_real(name, value)


@dataclass(frozen=True, slots=True)
class _Reader:
    """How records of one writer's schema are read."""

    writer: Schema
    # None when the writer's schema is ours: there is nothing to resolve, and reading takes half the time.
    reader: Schema | None
    # Fields that the writer lacks and whose default is a list or map. fastavro would share one object among all
    # records.
    owned_defaults: tuple[tuple[str, Any], ...]


class Decoder:
    """Reads records of one topic, written with any of its schemas.

    Records have the fields of `schema`, which is that of `ids` unless another is given. The decoder asks `ids` once
    for each schema id. It is thread-safe if `ids` is.
    """

    def __init__(self, topic: str, ids: SchemaIds, *, schema: Schema | None = None) -> None:
        self._schema = ids.current_schema(topic) if schema is None else schema
        self._canonical = to_parsing_canonical_form(self._schema)
        self._ids = ids
        self._readers: dict[int, _Reader] = {}

    def decode(self, value: bytes) -> dict[str, Any]:
        """Returns the record, with the fields of the topic's current schema.

        Raises InvalidEvent when the value is no such record, TemporaryFailure when its schema cannot be fetched.
        """
        if len(value) < _HEADER.size:
            raise InvalidEvent(f"too short: {len(value)} bytes, the header alone has {_HEADER.size}")
        magic, schema_id = _HEADER.unpack_from(value)
        if magic != _MAGIC:
            raise InvalidEvent(f"wrong magic byte: wanted {_MAGIC}, got {magic}")
        reader = self._readers.get(schema_id)
        if reader is None:
            if len(self._readers) >= SCHEMAS_KEPT_MAX:
                self._readers.clear()
            reader = self._readers[schema_id] = self._reader(schema_id)
        stream = BytesIO(value)
        stream.seek(_HEADER.size)
        try:
            record: dict[str, Any] = fastavro.schemaless_reader(stream, reader.writer, reader.reader)  # type: ignore[assignment]
        except _BODY_ERRORS as error:
            _refuse_body(error, schema_id, at_end=stream.tell() >= len(value))
        if stream.tell() != len(value):
            raise InvalidEvent(f"trailing bytes: {len(value) - stream.tell()} after the record")
        for name, default in reader.owned_defaults:
            record[name] = copy.deepcopy(default)
        return record

    def _reader(self, schema_id: int) -> _Reader:
        writer = self._ids.schema_of(schema_id)
        ours = self._schema
        if to_parsing_canonical_form(writer) == self._canonical:
            return _Reader(writer, None, ())
        if simple_name(writer) != simple_name(ours):
            raise InvalidEvent(f"schema id {schema_id} is {writer['name']}, wanted {ours['name']}")
        written = {field["name"] for field in writer["fields"]}
        owned = tuple(
            (field["name"], field["default"])
            for field in ours["fields"]
            if field["name"] not in written and isinstance(field.get("default"), list | dict)
        )
        return _Reader(writer, ours, owned)


def same_on_the_wire(one: Schema, other: Schema) -> bool:
    """Returns whether records of both schemas have the same bytes: only documentation, defaults or layout differ."""
    return to_parsing_canonical_form(one) == to_parsing_canonical_form(other)


def simple_name(schema: Schema) -> str:
    """Returns the record's name without its namespace, as in `Payment`. Reader and writer must have the same."""
    return str(schema["name"]).rpartition(".")[2]


def _refuse_body(error: Exception, schema_id: int, *, at_end: bool) -> NoReturn:
    # These errors quote at most one byte of the body.
    if isinstance(error, SchemaResolutionError):
        message = f"schema id {schema_id} cannot be read as today's: {str(error)[:200]}"
    elif isinstance(error, UnicodeDecodeError):
        message = "a string in the body is not UTF-8"
    elif at_end or isinstance(error, EOFError):
        message = "truncated body: it ends before the record does"
    else:
        message = "the body has an index that its enum or union does not have"
    raise InvalidEvent(message) from error


def _refuse_unless_whole(name: str, value: Any, low: int, high: int) -> None:
    if value is _ABSENT:
        raise InvalidEvent("is missing", field=name)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidEvent(f"wanted a whole number, got {type(value).__name__}", field=name)
    if not low <= int(value) <= high:
        raise InvalidEvent(f"wanted a whole number from {low} to {high}", field=name)


def _refuse_unless_real(name: str, value: Any) -> None:
    if value is _ABSENT:
        raise InvalidEvent("is missing", field=name)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidEvent(f"wanted a number, got {type(value).__name__}", field=name)


def _unfit(schema: Schema, record: object) -> InvalidEvent:
    """Returns why fastavro did not write `record`, without any of its values."""
    if not isinstance(record, Mapping):
        return InvalidEvent(f"wanted a mapping of fields, got {type(record).__name__}")
    fields = {field["name"]: field for field in schema["fields"]}
    for name, field in fields.items():
        if name not in record and "default" not in field:
            return InvalidEvent("is missing", field=name)
    for name in record:
        if name not in fields:
            return InvalidEvent(f"is no field of {schema['name']}", field=str(name)[:_NAME_SHOWN])
    try:
        fastavro.validate(record, schema, disable_tuple_notation=True)  # type: ignore[call-arg]  # not in its stub
    except ValidationError as error:
        return _mismatch(schema, error)
    return InvalidEvent(
        f"does not fit {schema['name']}: a record within it lacks a field, or a string is not valid UTF-8"
    )


def _mismatch(schema: Schema, error: ValidationError) -> InvalidEvent:
    first = error.errors[0]
    got = "null" if first.datum is None else type(first.datum).__name__
    # A path that does not start with this record's name is a field of a record within it.
    path = str(first.field).removeprefix(f"{schema['name']}.")
    return InvalidEvent(f"wanted {_described(first.schema)}, got {got}", field=path)


def _described(schema: Any) -> str:
    if isinstance(schema, list):
        return " or ".join(_described(branch) for branch in schema)
    if isinstance(schema, dict) and schema["type"] == "enum":
        return "one of " + ", ".join(schema["symbols"])
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


def _plain(schema: Any) -> Any:
    """Returns the schema without logical types: with them fastavro would turn longs into datetimes."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return [_plain(branch) for branch in schema] if isinstance(schema, list) else schema
