"""Records for tests, made from an Avro schema: any value that the schema allows may come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from paywarden.schemas.avro import Schema

# Without lone surrogates, which UTF-8 cannot hold; a test of its own says they are refused.
_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
_PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, width=32),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=80),
    "string": _TEXT,
}

EXAMPLES = 10
"""Examples of one topic. A property of all topics has as many for each, and one writer and reader serve them all."""


def records(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Whole records of a parsed schema, every field given. No NaN, so that equal means equal."""
    return _values(schema, schema["__named_schemas"])


def _values(schema: Any, names: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.one_of([_values(branch, names) for branch in schema])
    if isinstance(schema, str):
        return _PRIMITIVES[schema] if schema in _PRIMITIVES else _values(names[schema], names)
    kind = schema["type"]
    if kind == "record":
        return st.fixed_dictionaries({field["name"]: _values(field["type"], names) for field in schema["fields"]})
    if kind == "fixed":
        return st.binary(min_size=schema["size"], max_size=schema["size"])
    if kind == "enum":
        return st.sampled_from(schema["symbols"])
    if kind == "array":
        return st.lists(_values(schema["items"], names), max_size=4)
    if kind == "map":
        return st.dictionaries(_TEXT, _values(schema["values"], names), max_size=4)
    return _values(kind, names)
