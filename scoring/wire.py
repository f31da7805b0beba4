"""Request bytes in, response bytes out, and what is refused in between.

A body holds requests in one of two formats, `PROTOBUF` or `JSON`; `validate` checks their values, whatever the
format was. The two are strict in the same way: a field that is wrong is named, and nothing a caller sent is ever
repeated in a message, because it may be a card number. Answers are serialised protobuf until JSON is asked for.

JSON is read by a table of field checks over `json`'s C scanner: protobuf's own json_format takes ten times
as long, and would accept `"12"` and `12.0` as amounts. JSON is stricter than protobuf in one more respect:
an unknown field is refused, because in JSON it is a typing mistake far more often than a newer client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from features.attributes import UTC_OFFSET_MINUTES_MAX
from features.money import AMOUNT_MINOR_MAX
from schemas.errors import InvalidEvent, TemporaryFailure
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from schemas.split_pb2 import SplitBatchRequest, SplitBatchResponse

# Of a payment card's number, ISO/IEC 7812-1.
CARD_DIGITS_MIN, CARD_DIGITS_MAX = 13, 19


class Overloaded(TemporaryFailure):
    """The worker has more to do than it can do in time: refused at once (429 / resource_exhausted)."""


class DeadlineExceeded(TemporaryFailure):
    """The answer would come too late to be of use (504 / deadline_exceeded)."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may hold. Sizes of text are in bytes of UTF-8."""

    # An LMDB key is at most 511 bytes, and the mirror's keys are an entity's name and its id.
    id_bytes_max: int = 256
    # ip and channel: the longest IPv6 address with a zone, and any word one could want.
    text_bytes_max: int = 64
    # What the conversion to the reference currency can take.
    amount_minor_max: int = AMOUNT_MINOR_MAX
    # Clocks of payment systems are seconds apart; features "as of" a later time would see too much.
    future_ms_max: int = 60_000
    # A batch is scored in one go while other callers wait: this bounds the wait to a few milliseconds.
    batch_size_max: int = 256


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


def validate(request: ScoreRequest, *, now_ms: int, limits: RequestLimits, currencies: frozenset[str]) -> None:
    """Raise InvalidEvent, naming the field, unless `request` can be scored.

    `currencies` are the codes that can be converted to the reference currency.
    """
    _check_text("payment_id", request.payment_id, limits.id_bytes_max)
    _check_event_time(request.event_time_ms, now_ms, limits)
    card_id = request.card_id
    _check_text("card_id", card_id, limits.id_bytes_max)
    if looks_like_card_number(card_id):
        raise InvalidEvent("must be a token, but looks like a real card number", field="card_id")
    _check_text("merchant_id", request.merchant_id, limits.id_bytes_max)
    amount_minor = request.amount_minor
    if not 0 <= amount_minor <= limits.amount_minor_max:
        raise InvalidEvent(f"must be from 0 to {limits.amount_minor_max}", field="amount_minor")
    _check_currency(request.currency, currencies)
    _check_optional(request, limits)


def looks_like_card_number(text: str) -> bool:
    """Whether `text` is 13 to 19 digits, grouped or not, with a right check digit (Luhn, ISO/IEC 7812-1)."""
    digits = text.replace(" ", "").replace("-", "")
    return CARD_DIGITS_MIN <= len(digits) <= CARD_DIGITS_MAX and digits.isdecimal() and _passes_luhn(digits)


def message_of(error: InvalidEvent) -> str:
    """The error's message without the field that `str()` puts before it."""
    return str(error).removeprefix(f"{error.field}: ") if error.field else str(error)


def _check_text(field: str, value: str, bytes_max: int) -> None:
    if not value:
        raise InvalidEvent("is missing or empty", field=field)
    size_bytes = len(value) if value.isascii() else len(value.encode())
    if size_bytes > bytes_max:
        raise InvalidEvent(f"must be at most {bytes_max} bytes, is {size_bytes}", field=field)
    if not value.isprintable():
        # Ids end up in keys, logs and terminals.
        raise InvalidEvent("holds a control character", field=field)


def _check_event_time(event_time_ms: int, now_ms: int, limits: RequestLimits) -> None:
    if event_time_ms <= 0:
        raise InvalidEvent("is missing or not positive; wanted epoch milliseconds UTC", field="event_time_ms")
    if event_time_ms > now_ms + limits.future_ms_max:
        raise InvalidEvent(f"is more than {limits.future_ms_max} ms in the future", field="event_time_ms")


def _check_currency(currency: str, currencies: frozenset[str]) -> None:
    if currency in currencies:
        return
    if not currency:
        raise InvalidEvent("is missing or empty", field="currency")
    if not (len(currency) == 3 and _is_capitals(currency)):
        raise InvalidEvent("must be three capital letters (ISO 4217)", field="currency")
    raise InvalidEvent("is not a known currency code", field="currency")


def _check_optional(request: ScoreRequest, limits: RequestLimits) -> None:
    """An optional field may be absent, but an empty one would put all who send it under one entity."""
    if (device_id := request.device_id) or request.HasField("device_id"):
        _check_text("device_id", device_id, limits.id_bytes_max)
    if (ip := request.ip) or request.HasField("ip"):
        _check_text("ip", ip, limits.text_bytes_max)
    if not -UTC_OFFSET_MINUTES_MAX <= request.utc_offset_minutes <= UTC_OFFSET_MINUTES_MAX:
        raise InvalidEvent(
            f"must be from -{UTC_OFFSET_MINUTES_MAX} to {UTC_OFFSET_MINUTES_MAX}", field="utc_offset_minutes"
        )
    if (channel := request.channel) or request.HasField("channel"):
        _check_text("channel", channel, limits.text_bytes_max)
    if ((mcc := request.mcc) or request.HasField("mcc")) and not (len(mcc) == 4 and mcc.isascii() and mcc.isdecimal()):
        raise InvalidEvent("must be four digits (ISO 18245)", field="mcc")
    if ((country := request.country) or request.HasField("country")) and not (
        len(country) == 2 and _is_capitals(country)
    ):
        raise InvalidEvent("must be two capital letters (ISO 3166-1 alpha-2)", field="country")


def _is_capitals(text: str) -> bool:
    return text.isascii() and text.isalpha() and text.isupper()


def _passes_luhn(digits: str) -> bool:
    """Every second digit from the right counts double, digits of the double added up."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = sum(2 * value - 9 if value > 4 else 2 * value for value in values[1::2])
    return (sum(values[::2]) + doubled) % 10 == 0


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

_FIELD_TYPES: Mapping[str, type] = {
    field.name: str if field.type == field.TYPE_STRING else int for field in ScoreRequest.DESCRIPTOR.fields
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
            raise InvalidEvent(f"does not fit in {bits} bits", field=name)
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
    wanted = "a whole number" if expected is int else "text"
    raise InvalidEvent(f"must be {wanted}", field=name)


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
