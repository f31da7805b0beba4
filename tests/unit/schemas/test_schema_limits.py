"""Schemas of other writers: every schema that a registry accepts is decoded within bounds, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import (
    Decoder,
    LocalSchemaIds,
    Schema,
    schema_text,
    topic_schema,
    writer_schema,
)
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.schema_limits import DEPTH_MAX, FIXED_BYTES_MAX, NODES_MAX, TEXT_CHARS_MAX
from tests.unit.schemas.strategies import records
from tests.unit.schemas.test_avro_wire import PAYMENT

_HEADER = b"\0\0\0\0\7"


def payment_with(kind: Any) -> dict[str, Any]:
    """Return today's schema of payments with a field more."""
    schema = json.loads(schema_text("payments"))
    schema["fields"].insert(0, {"name": "more", "type": kind})
    return dict(schema)


def nested(depth: int) -> Any:
    kind: Any = "long"
    for _ in range(depth):
        kind = {"type": "array", "items": kind}
    return kind


def doubling(count: int, leaf: Any = "null") -> Any:
    """Return a record whose expansion is twice as large at each of `count` levels."""
    inner: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": leaf}]}
    for number in range(1, count):
        fields = [{"name": "a", "type": inner}, {"name": "b", "type": f"R{number - 1}"}]
        inner = {"type": "record", "name": f"R{number}", "fields": fields}
    return inner


def chain_of_names(length: int) -> Any:
    """Return a record of records next to each other; each record holds the one before by its name."""
    held: Any = "long"
    fields = []
    for number in range(length):
        record = {"type": "record", "name": f"R{number}", "fields": [{"name": "a", "type": held}]}
        fields.append({"name": f"f{number}", "type": record})
        held = f"R{number}"
    return {"type": "record", "name": "Chain", "fields": fields}


FREE_RECORD = {"type": "record", "name": "E", "fields": [{"name": f"n{n}", "type": "null"} for n in range(1000)]}

HOSTILE: dict[str, Any] = {
    "arrays nested 600 deep": nested(600),
    "arrays nested just beyond": nested(DEPTH_MAX),
    "names that are too deep inside each other, and stand side by side": chain_of_names(DEPTH_MAX),
    "a type with attributes 600 deep": json.loads('{"type": ' * 600 + '"long"' + "}" * 600),
    "a record of type error that contains itself": {
        "type": "error",
        "name": "R",
        "fields": [{"name": "r", "type": ["null", "R"]}],
    },
    "a record that contains itself in an array": {
        "type": "record",
        "name": "R",
        "fields": [{"name": "r", "type": {"type": "array", "items": "R"}}],
    },
    "a record that contains itself at once": {
        "type": "record",
        "name": "R",
        "fields": [{"name": "r", "type": "R"}],
    },
    "forty records each twice the one before": doubling(30),
    "forty records that take bytes": doubling(30, "long"),
    "an array of such records": {"type": "array", "items": ["null", doubling(12)]},
    "a fixed of size -1": {"type": "array", "items": {"type": "fixed", "name": "F", "size": -1}},
    "a fixed of size abc": {"type": "array", "items": {"type": "fixed", "name": "F", "size": "abc"}},
    "a fixed of size true": {"type": "fixed", "name": "F", "size": True},
    "a fixed of size 1.5": {"type": "fixed", "name": "F", "size": 1.5},
    "a fixed that no memory holds": {"type": "fixed", "name": "F", "size": FIXED_BYTES_MAX + 1},
    "a fixed without a size": {"type": "fixed", "name": "F"},
    "an array whose items take a step without a byte": {"type": "array", "items": ["string", FREE_RECORD]},
    "a map whose values take a step without a byte": {"type": "map", "values": FREE_RECORD},
    "an array of a record with one such field": {
        "type": "array",
        "items": {
            "type": "record",
            "name": "E",
            "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "null"}],
        },
    },
    "a union in a union": [["null", "long"], "string"],
    "a union without branches": [],
    "a union of unknown names": ["null", "Nowhere"],
    "a name that is used before it is defined": ["F", {"type": "fixed", "name": "F", "size": 1}],
    "a name that is defined twice": [
        {"type": "fixed", "name": "F", "size": 1},
        {"type": "fixed", "name": "F", "size": 2},
    ],
    "an enum without symbols": {"type": "enum", "name": "E", "symbols": []},
    "an enum whose symbols are no names": {"type": "enum", "name": "E", "symbols": ["a b", "\ud800"]},
    "an enum with a symbol twice": {"type": "enum", "name": "E", "symbols": ["A", "A"]},
    "an enum whose symbols are a text": {"type": "enum", "name": "E", "symbols": "ABC"},
    "a name that is no name": {"type": "fixed", "name": "F\0", "size": 1},
    "a name that is a number": {"type": "fixed", "name": 7, "size": 1},
    "the name of a primitive": {"type": "fixed", "name": "long", "namespace": "", "size": 1},
    "a namespace that is a list": {"type": "fixed", "name": "F", "namespace": ["a"], "size": 1},
    "fields that are a map": {"type": "record", "name": "R", "fields": {"a": "long"}},
    "fields that are numbers": {"type": "record", "name": "R", "fields": [1, 2]},
    "a field twice": {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "long"}, {"name": "a", "type": "long"}],
    },
    "a type that is null": None,
    "a type that is a number": 7,
    "a type without a type": {"name": "x"},
    "an array without items": {"type": "array"},
    "a map without values": {"type": "map"},
}

HARMLESS: dict[str, Any] = {
    "a decimal of huge precision": {"type": "bytes", "logicalType": "decimal", "precision": 10**9, "scale": -5},
    "a default of another type": {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "int", "default": []}],
    },
    "aliases that are no names": {"type": "record", "name": "R", "aliases": [7, {}], "fields": []},
    "documentation of any form": {"type": "fixed", "name": "F", "size": 1, "doc": [[[[]]]], "order": {}},
    "an enum of 20,000 symbols": {"type": "enum", "name": "E", "symbols": [f"S{n}" for n in range(20_000)]},
    "maps in maps": {"type": "map", "values": {"type": "map", "values": {"type": "map", "values": "null"}}},
    "arrays as deep as allowed": nested(DEPTH_MAX - 2),
    "names as deep inside each other as allowed": chain_of_names(DEPTH_MAX - 3),
    "a name in no namespace": {"type": "fixed", "name": "F", "namespace": "", "size": 1},
    "a name in another namespace": [{"type": "fixed", "name": "a.b.F", "size": 1}, {"type": "array", "items": "a.b.F"}],
    "a type with attributes": {"type": {"type": "string", "avro.java.string": "String"}},
    "a null": "null",
}


class OneSchema(LocalSchemaIds):
    """Knows one schema, by the id 7."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._one = schema

    def schema_of(self, schema_id: int) -> Schema:
        return self._one if schema_id == 7 else super().schema_of(schema_id)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused(name: str) -> None:
    with pytest.raises(InvalidEvent, match="the schema"):
        writer_schema(json.dumps(payment_with(HOSTILE[name])))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_decide_the_bytes_does_not_matter(name: str) -> None:
    schema = writer_schema(json.dumps(payment_with(HARMLESS[name])))
    assert schema["name"] == topic_schema("payments")["name"]
    # Zeros: an empty value of each kind.
    with pytest.raises(InvalidEvent):
        Decoder("payments", OneSchema(schema)).decode(_HEADER + b"\0" * 64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("\0", "no JSON"),
        ("[" * 100_000, "types inside each other"),
        ('{"type":' * 3_000 + '"long"' + "}" * 3_000, "types inside each other"),
        ("9" * 5_000, "no JSON"),
        ("NaN", "not that of a record"),
        (" " * (TEXT_CHARS_MAX + 1), "characters"),
        (json.dumps(payment_with("long") | {"type": "error"}), "not that of a record"),
    ],
)
def test_a_text_that_is_no_schema_of_a_record_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidEvent, match=reason):
        writer_schema(text)


def test_as_many_types_as_allowed_are_read_and_one_more_is_refused() -> None:
    fields = [{"name": f"f{n}", "type": "null"} for n in range(NODES_MAX - 1)]
    whole = {"type": "record", "name": "R", "fields": fields}
    writer_schema(json.dumps(whole))
    with pytest.raises(InvalidEvent, match=f"more than {NODES_MAX} types"):
        writer_schema(json.dumps(whole | {"fields": [*fields, {"name": "g", "type": "null"}]}))


# Schemas of any form: real types, and things that are none, in the places of types, names, sizes and symbols.
_NAMES = st.sampled_from(["A", "B", "n.C", "long", "R", "", "1", "a b"]) | st.none() | st.integers()
_PRIMITIVE = st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    field = st.fixed_dictionaries(
        {"name": st.sampled_from("abcde"), "type": inner}, optional={"default": st.none() | st.integers() | st.text()}
    )
    named = {"name": _NAMES}
    more = {
        "namespace": st.sampled_from(["", "n", "n.m", " "]),
        "logicalType": st.sampled_from(["decimal", "date", "uuid"]),
    }
    return st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"type": inner}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"type": st.just("map"), "values": inner}),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["record", "record", "error"]), **named, "fields": st.lists(field, max_size=4)},
            optional=more,
        ),
        st.fixed_dictionaries(
            {
                "type": st.just("fixed"),
                **named,
                "size": st.integers(-1, 9) | st.sampled_from([2**30, 2**70, "abc", None]),
            },
            optional=more,
        ),
        st.fixed_dictionaries(
            {"type": st.just("enum"), **named, "symbols": st.lists(st.sampled_from(["A", "B", "C", "é"]), max_size=3)},
            optional=more,
        ),
    )


SCHEMAS = st.recursive(_PRIMITIVE | _NAMES, _around, max_leaves=12)


class _Steps:
    """Counts the calls of Python that an action makes: a bound of work that does not depend on the machine."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Steps:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, *_: object) -> None:
        self.count += 1


@given(SCHEMAS, st.binary(max_size=60))
def test_any_schema_and_any_bytes_are_a_record_or_refused(kind: Any, body: bytes) -> None:
    with _Steps() as steps:
        try:
            schema = writer_schema(json.dumps(payment_with(kind)))
            Decoder("payments", OneSchema(schema)).decode(_HEADER + body)
        except InvalidEvent:
            pass
    assert steps.count < 1_000_000


@given(st.data())
def test_a_writer_with_a_field_more_of_any_kind_is_read(data: st.DataObject) -> None:
    try:
        schema = writer_schema(json.dumps(payment_with(data.draw(SCHEMAS))))
    except InvalidEvent:
        return
    (more,) = [field for field in schema["fields"] if field["name"] == "more"]
    value = data.draw(records({"type": "record", "fields": [more], "__named_schemas": schema["__named_schemas"]}))
    stream = BytesIO()
    fastavro.schemaless_writer(stream, schema, {**PAYMENT, **value})
    assert (
        Decoder("payments", OneSchema(schema)).decode(_HEADER + stream.getvalue())["payment_id"]
        == PAYMENT["payment_id"]
    )


def _all_of(schema: Any) -> Iterator[Any]:
    yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _all_of(part)
