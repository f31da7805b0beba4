"""Request bytes in, response bytes out, and what is refused in between.

A body holds requests in one of two formats, `PROTOBUF` or `JSON`. `RequestRules` checks their values, whatever the
format was, by the table of schemas/payment_fields.py. The two are strict in the same way: a field that is wrong is
named, and nothing a caller sent is ever repeated in a message, because it may be a card number. (A time of ten digits
is the exception: it is too short for one.) Answers are serialised protobuf until JSON is asked for.

JSON is read by a table of field checks over `json`'s C scanner: protobuf's own json_format takes ten times
as long, and would accept `"12"` and `12.0` as amounts. JSON is stricter than protobuf in one more respect:
an unknown field is refused, because in JSON it is a typing mistake far more often than a newer client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.message import DecodeError

from paywarden.schemas.errors import InvalidEvent, TemporaryFailure
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR_MAX,
    FIELD,
    FIELDS,
    ID_BYTES_MAX,
    TIME_BOUND_MS_MAX,
    WORD_BYTES_MAX,
    Form,
    PaymentField,
    PaymentRules,
    TimeBounds,
    require_between,
)
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest, SplitBatchResponse


class Overloaded(TemporaryFailure):
    """The worker has more to do than it can do in time: refused at once (429 / resource_exhausted)."""


class DeadlineExceeded(TemporaryFailure):
    """The answer would come too late to be of use (504 / deadline_exceeded)."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may hold: the table of schemas/payment_fields.py, or less. Sizes of text are in bytes of UTF-8."""

    id_bytes_max: int = ID_BYTES_MAX
    # ip and channel.
    text_bytes_max: int = WORD_BYTES_MAX
    amount_minor_max: int = AMOUNT_MINOR_MAX
    # A terminal that was offline sends its payments days later. An older time is a mistake.
    past_ms_max: int = 7 * 86_400_000
    # Clocks of payment systems are seconds apart; features "as of" a later time would see too much.
    future_ms_max: int = 60_000
    # A batch is scored in one go while other callers wait: this bounds the wait to a few milliseconds.
    batch_size_max: int = 256

    def __post_init__(self) -> None:
        for name, low, high in (
            ("id_bytes_max", 1, ID_BYTES_MAX),
            ("text_bytes_max", 1, WORD_BYTES_MAX),
            ("amount_minor_max", 1, AMOUNT_MINOR_MAX),
            ("past_ms_max", 0, TIME_BOUND_MS_MAX),
            ("future_ms_max", 0, TIME_BOUND_MS_MAX),
        ):
            require_between("limits", name, getattr(self, name), low, high)


@dataclass(frozen=True)
class Format:
    """How requests and responses look in one content type.

    `take` gives the one request of a body, `take_batch` those of a batch, at most so many, as serialised ScoreRequests:
    nothing of these has been checked but what JSON alone can get wrong. Both raise InvalidEvent. `render` and
    `render_batch` are given serialised ScoreResponses.
    """

    content_type: str
    take: Callable[[bytes], bytes]
    take_batch: Callable[[bytes, int], Sequence[bytes]]
    render: Callable[[bytes], bytes]
    render_batch: Callable[[Sequence[bytes]], bytes]


class RequestRules:
    """The table of a payment's fields, with the endpoint's limits, as requests are held against it."""

    def __init__(self, limits: RequestLimits, currencies: frozenset[str]) -> None:
        """`currencies` are the codes that can be converted to the reference currency."""
        times = TimeBounds(limits.past_ms_max, limits.future_ms_max)
        self._rules = PaymentRules(fields_of(limits), times, currencies)

    def check(self, request: ScoreRequest, now_ms: int) -> None:
        """Raise InvalidEvent, naming the field, unless `request` can be scored."""
        values = dict(zip(_NAMES, _values_of(request), strict=True))
        for name in _MAY_BE_ABSENT:
            if not values[name] and not request.HasField(name):
                values[name] = None
        # A payment arrives when it is asked about.
        self._rules.check(values, arrived_ms=now_ms, now_ms=now_ms)


# Fields of a request in the order of the table, and those of them whose absence protobuf can tell.
_NAMES = [field.name for field in FIELDS if field.at_endpoint]
_values_of = attrgetter(*_NAMES)
_MAY_BE_ABSENT = [name for name in _NAMES if ScoreRequest.DESCRIPTOR.fields_by_name[name].has_presence]


def fields_of(limits: RequestLimits) -> tuple[PaymentField, ...]:
    """The fields of a request, with these limits in place of the table's."""
    narrowed = []
    for field in FIELDS:
        if field.form in (Form.ID, Form.CARD_TOKEN):
            field = field.narrowed(limits.id_bytes_max)
        elif field.form is Form.WORD:
            field = field.narrowed(limits.text_bytes_max)
        elif field.form is Form.AMOUNT:
            field = field.narrowed(limits.amount_minor_max)
        narrowed.append(field)
    return tuple(field for field in narrowed if field.at_endpoint)


def message_of(error: InvalidEvent) -> str:
    """The error's message without the field that `str()` puts before it."""
    return str(error).removeprefix(f"{error.field}: ") if error.field else str(error)


def field_in_batch(index: int, field: str) -> str:
    """How a field of one request of a batch is named; without a field, the request itself."""
    return f"requests[{index}].{field}" if field else f"requests[{index}]"


def _in_batch(error: InvalidEvent, index: int) -> InvalidEvent:
    return InvalidEvent(message_of(error), field=field_in_batch(index, error.field))


def _check_batch_size(size: int, size_max: int) -> None:
    if not 1 <= size <= size_max:
        raise InvalidEvent(f"must hold 1 to {size_max} requests, holds {size}", field="requests")


# Protobuf


def parse(body: bytes) -> ScoreRequest:
    """One serialised request. Raises InvalidEvent."""
    try:
        return ScoreRequest.FromString(body)
    except DecodeError:
        raise InvalidEvent("not a protobuf paywarden.scoring.v1.ScoreRequest") from None


def _split_protobuf_batch(body: bytes, size_max: int) -> Sequence[bytes]:
    try:
        batch = SplitBatchRequest.FromString(body)
    except DecodeError:
        raise InvalidEvent("not a protobuf paywarden.scoring.v1.ScoreBatchRequest") from None
    _check_batch_size(len(batch.requests), size_max)
    return list(batch.requests)


def _join_protobuf_batch(responses: Sequence[bytes]) -> bytes:
    return SplitBatchResponse(responses=responses).SerializeToString()


PROTOBUF = Format(
    content_type="application/x-protobuf",
    take=lambda body: body,
    take_batch=_split_protobuf_batch,
    render=lambda response: response,
    render_batch=_join_protobuf_batch,
)


# JSON

_INT64, _INT32 = range(-(2**63), 2**63), range(-(2**31), 2**31)
# A name outside this is not repeated to the caller: it may be anything, a card number too.
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name given twice is refused, since readers differ in which of the two they take."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidEvent("is given twice", field=_nameable(twice))
    return fields


def _nameable(name: str) -> str:
    return name if _FIELD_NAME.fullmatch(name) else ""


# Built once: json.loads with a hook builds a decoder for every call.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_object)
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))

_FIELD_TYPES: Mapping[str, type] = {field.name: str if field.is_text else int for field in FIELDS if field.at_endpoint}
# JSON and protobuf have the same fields, those of the table.
assert {
    field.name: str if field.type == field.TYPE_STRING else int for field in ScoreRequest.DESCRIPTOR.fields
} == _FIELD_TYPES

_JSON_NAMES: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}
_RANGES: Mapping[str, range] = {
    field.name: _INT32 if field.type == field.TYPE_INT32 else _INT64 for field in ScoreRequest.DESCRIPTOR.fields
}


def _load_object(body: bytes) -> dict[str, Any]:
    try:
        loaded = _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        # ValueError is wrong UTF-8, wrong JSON or a number of thousands of digits; its text quotes the body.
        raise InvalidEvent("body is not valid JSON in UTF-8") from None
    if type(loaded) is not dict:
        raise InvalidEvent("body must be a JSON object")
    return loaded


def _request_from(fields: dict[str, Any]) -> bytes:
    for name, value in fields.items():
        expected = _FIELD_TYPES.get(name)
        # `type() is`, not isinstance: True is an int by inheritance, and an amount of True is a mistake.
        if type(value) is not expected:
            _refuse_type(name, value, expected)
        elif expected is int and value not in _RANGES[name]:
            bits = 64 if _RANGES[name] is _INT64 else 32
            raise InvalidEvent(f"does not fit in {bits} bits; wanted {FIELD[name].wanted}", field=name)
    try:
        return ScoreRequest(**fields).SerializeToString()
    except UnicodeEncodeError:
        # JSON's \ud800 alone: half a character. Found only here, so look for the field here.
        raise InvalidEvent("is not valid Unicode text", field=_field_of_surrogate(fields)) from None


def _refuse_type(name: str, value: object, expected: type | None) -> None:
    if expected is None:
        raise InvalidEvent("is not a field of a request", field=_nameable(name))
    if value is None:
        return  # JSON's usual way of saying absent, and protobuf's constructor takes None as just that.
    raise InvalidEvent(f"is {_JSON_NAMES[type(value)]}; wanted {FIELD[name].wanted}", field=name)


def _field_of_surrogate(fields: dict[str, Any]) -> str:
    for name, value in fields.items():
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return name
    return ""


def _take_json(body: bytes) -> bytes:
    return _request_from(_load_object(body))


def _take_json_batch(body: bytes, size_max: int) -> Sequence[bytes]:
    batch = _load_object(body)
    for name in batch:
        if name != "requests":
            raise InvalidEvent("is not a field of a batch", field=_nameable(name))
    elements = batch.get("requests")
    if type(elements) is not list:
        raise InvalidEvent("must be an array", field="requests")
    _check_batch_size(len(elements), size_max)
    return [_element(element, index) for index, element in enumerate(elements)]


def _element(element: object, index: int) -> bytes:
    if type(element) is not dict:
        raise InvalidEvent("must be an object", field=f"requests[{index}]")
    try:
        return _request_from(element)
    except InvalidEvent as error:
        raise _in_batch(error, index) from None


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

_FORMATS: Mapping[bytes, Format] = {b"application/x-protobuf": PROTOBUF, b"application/json": JSON}


def format_of(content_type: bytes) -> Format | None:
    """The format of a Content-Type header's value, or None when it is neither of ours."""
    exact = _FORMATS.get(content_type)
    if exact is not None:
        return exact
    essence, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    charsets = [p.partition(b"=")[2].strip(b'" ') for p in parameters if p.startswith(b"charset")]
    if any(charset != b"utf-8" for charset in charsets):
        return None
    return _FORMATS.get(essence)


def render_error(code: str, message: str, field: str = "") -> bytes:
    """The body of every answer that is not a 200, JSON whatever the request was; `field` may be empty."""
    return _ENCODER.encode({"error": {"code": code, "field": field, "message": message}}).encode("ascii")
