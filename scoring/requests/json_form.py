"""Requests and responses as JSON, and errors, which are always JSON.

    {"payment_id": "p-1", "amount_minor": 1050, …} ─ types ─► ScoreRequest's bytes ─► the same path as for protobuf

The outbox keeps requests as protobuf, so a JSON request is serialised, once. From then on it is like any other.

A table of field types checks the values of the JSON reader. Protobuf's own json_format takes ten times as long, and
would accept `"12"` and `12.0` as amounts. JSON refuses an unknown field, which protobuf ignores: in JSON it is a typing
mistake far more often than a newer client. `[limits] unknown_fields = "ignore"` takes such requests.

orjson reads the usual request, in a quarter of the time of `json`. It gives the same values for every body that it
reads. If it refuses a body, or reads another type, `json` reads the body again: every error is therefore an error of
`json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.schema import INT64, PACKAGED, RequestSchema
from paywarden.scoring.requests.validation import check_batch_size, in_batch

# An error quotes only names of this form. Any other name may be a secret, such as a card number.
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Refuse a name that is given twice, since readers differ in which value they take."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidEvent("is given twice", field=_nameable(twice))
    return fields


def _nameable(name: str) -> str:
    return name if _FIELD_NAME.fullmatch(name) else ""


# Made once, because json.loads with a hook makes a decoder for every call.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_object)
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))

_JSON_NAMES: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


def _load_object(body: bytes) -> dict[str, Any]:
    try:
        loaded = _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        # ValueError: wrong UTF-8, wrong JSON, or a number of thousands of digits. Its text quotes the body.
        raise InvalidEvent("body is not valid JSON in UTF-8") from None
    if type(loaded) is not dict:
        raise InvalidEvent("body must be a JSON object")
    return loaded


def _request_from(fields: dict[str, Any], schema: RequestSchema) -> bytes:
    # Nearly every request is right, and two lists are compared faster than a loop runs.
    if list(map(schema.json_types.get, fields)) != list(map(type, fields.values())):
        fields = _checked_values(fields, schema)
    try:
        return schema.message(**fields).SerializeToString()
    except ValueError:
        # Looked at below: protobuf's error quotes the value, and would stay in the context of ours.
        pass
    # A number out of its range; or \ud800 alone, half a character, which JSON may hold and protobuf may not.
    _checked_values(fields, schema)
    raise InvalidEvent("is not valid Unicode text", field=_field_of_surrogate(fields))


def _checked_values(fields: Mapping[str, Any], schema: RequestSchema) -> dict[str, Any]:
    """Returns the values of known fields. A whole number in the field of a decimal becomes a float.

    Raises InvalidEvent for the first field that is unknown, of another type, or a number out of range.
    """
    checked = {}
    for name, value in fields.items():
        expected = schema.json_types.get(name)
        if expected is None:
            if not schema.ignores_unknown:
                raise InvalidEvent("is not a field of a request", field=_nameable(name))
        # `type() is`, not isinstance: True is an int by inheritance, and an amount of True is a mistake.
        elif type(value) is expected:
            if expected is int and value not in schema.ranges[name]:
                bits = 64 if schema.ranges[name] is INT64 else 32
                raise InvalidEvent(f"does not fit in {bits} bits; wanted {_wanted(name, schema)}", field=name)
            checked[name] = value
        elif expected is float and type(value) is int:
            checked[name] = _as_float(value, name, schema)
        # null means absent, in JSON and in protobuf's constructor.
        elif value is not None:
            raise InvalidEvent(f"is {_JSON_NAMES[type(value)]}; wanted {_wanted(name, schema)}", field=name)
    return checked


def _as_float(value: int, name: str, schema: RequestSchema) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InvalidEvent(f"is out of bounds; wanted {_wanted(name, schema)}", field=name) from None


def _wanted(name: str, schema: RequestSchema) -> str:
    return schema.fields.by_name[name].wanted


def _field_of_surrogate(fields: dict[str, Any]) -> str:
    for name, value in fields.items():
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return name
    return ""


def _take_json(body: bytes, schema: RequestSchema = PACKAGED) -> bytes:
    taken = _take_quickly(body, schema) if _is_plain(body) else None
    return _request_from(_load_object(body), schema) if taken is None else taken


def _take_quickly(body: bytes, schema: RequestSchema) -> bytes | None:
    """Returns the request of a plain body with nothing unusual in it; None if a closer look is needed."""
    try:
        fields = orjson.loads(body)
        kinds = list(map(type, fields.values()))
        if kinds != list(map(schema.json_types.get, fields)) or body.count(b'"') != _quotes(kinds):
            return None
        return schema.message(**fields).SerializeToString()
    except (ValueError, AttributeError):
        # No JSON, no object, or a number out of its range: the closer look says which.
        return None


def _quotes(kinds: list[type]) -> int:
    """Returns the quotes of a plain object with values of these types, each name given once.

    Without a backslash every quote begins or ends a text: a name, or a value. If a name is given
    twice, orjson keeps the last value, and the quotes of the others are left over.
    """
    return 2 * (len(kinds) + kinds.count(str))


def _is_plain(body: bytes) -> bool:
    """Whether all texts of a body are ASCII. JSON can also write other characters as escapes, such as \\u00fc."""
    return body.isascii() and b"\\" not in body


def _take_json_batch(body: bytes, size_max: int, schema: RequestSchema = PACKAGED) -> Sequence[bytes]:
    if _is_plain(body) and (taken := _take_batch_quickly(body, size_max, schema)) is not None:
        return taken
    batch = _load_object(body)
    for name in batch:
        if name != "requests":
            raise InvalidEvent("is not a field of a batch", field=_nameable(name))
    elements = batch.get("requests")
    if type(elements) is not list:
        raise InvalidEvent("must be an array", field="requests")
    check_batch_size(len(elements), size_max)
    return [_element(element, index, schema) for index, element in enumerate(elements)]


def _take_batch_quickly(body: bytes, size_max: int, schema: RequestSchema) -> list[bytes] | None:
    """Like `_take_quickly`, for the requests of a batch."""
    try:
        batch = orjson.loads(body)
        elements = batch["requests"]
        if len(batch) != 1 or not 0 < len(elements) <= size_max:
            return None
        # The two quotes of "requests".
        quotes, taken = 2, list[bytes]()
        for fields in elements:
            kinds = list(map(type, fields.values()))
            if kinds != list(map(schema.json_types.get, fields)):
                return None
            quotes += _quotes(kinds)
            taken.append(schema.message(**fields).SerializeToString())
    except (ValueError, AttributeError, TypeError, KeyError):
        return None
    return taken if body.count(b'"') == quotes else None


def _element(element: object, index: int, schema: RequestSchema) -> bytes:
    if type(element) is not dict:
        raise InvalidEvent("must be an object", field=f"requests[{index}]")
    try:
        return _request_from(element, schema)
    except InvalidEvent as error:
        raise in_batch(error, index) from None


def _response_fields(serialised: bytes) -> dict[str, Any]:
    response = ScoreResponse.FromString(serialised)
    fields = {
        "payment_id": response.payment_id,
        "decision_id": response.decision_id,
        "score": response.score,
        "action": response.action,
        "reasons": list(response.reasons),
        "model_version": response.model_version,
        "flags": list(response.flags),
    }
    if response.HasField("profile_age_ms"):
        fields["profile_age_ms"] = response.profile_age_ms
    return fields


def _render_json(response: bytes) -> bytes:
    return _ENCODER.encode(_response_fields(response)).encode("ascii")


def _render_json_batch(responses: Sequence[bytes]) -> bytes:
    return _ENCODER.encode({"responses": [_response_fields(r) for r in responses]}).encode("ascii")


JSON = Format(
    content_type="application/json",
    take=_take_json,
    take_batch=_take_json_batch,
    render=_render_json,
    render_batch=_render_json_batch,
)


def render_error(code: str, message: str, field: str = "") -> bytes:
    """Returns the body of an answer other than 200. It is JSON in every case; `field` may be empty."""
    return _ENCODER.encode({"error": {"code": code, "field": field, "message": message}}).encode("ascii")
