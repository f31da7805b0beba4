"""The OpenAPI 3.1 description of the HTTP endpoint, for clients, gateways and testers of other teams.

    schemas/payment_fields.py ─► ScoreRequest: a property for each field, with its bounds
    schemas/proto/scoring.proto ─► ScoreResponse: the same names, each with its meaning
    scoring/http/refusals.py ─► the answers: each status with its code, its messages and its headers

    paywarden admin schemas --openapi          with the fields, limits and deadline of a configuration
    docs/reference/openapi.json        the same with the defaults (ops/reference)

A JSON schema cannot say everything that the endpoint checks: sizes in bytes, card numbers, times near now and
currencies with a rate. A property's `description` says these in words, so the endpoint may refuse a request that the
schema allows. It never takes one that the schema forbids, apart from decimals that are rounded into their bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from paywarden.schemas.payment_fields import PATTERNS, TABLE_ALONE, Form, PaymentField, PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.schemas.request_proto import described
from paywarden.scoring.engine.batching import batcher
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.http import refusals
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.http.refusals import DEADLINE_MS_MAX, STATUS_HEADERS, HttpRefusal, status_of
from paywarden.scoring.metrics.shared_metrics import CONTENT_TYPE as METRICS_TEXT
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import PROTOBUF
from paywarden.scoring.requests.validation import REQUEST_BYTES_MAX, RequestLimits, fields_of

Schema = dict[str, Any]

# The version of the contract, as in the paths: it changes when an answer or a request means something else.
_CONTRACT = "v1"
_EXAMPLES: Mapping[str, Any] = {
    "payment_id": "p-1",
    "event_time_ms": 1_704_067_200_000,
    "card_id": "card-000001",
    "merchant_id": "merchant-0001",
    "device_id": "device-0001",
    "ip": "192.0.2.7",
    "amount_minor": 4999,
    "currency": "EUR",
    "mcc": "5411",
    "country": "DE",
    "channel": "ecom",
    "utc_offset_minutes": 60,
}
_ANSWER: Mapping[str, Any] = {
    "payment_id": "p-1",
    "decision_id": "69c4f3d72332924a-1",
    "score": 0.016212636562103123,
    "action": "approve",
    "reasons": [],
    "model_version": "m-a223efa542d7",
    "flags": ["unknown_merchant"],
    "profile_age_ms": 284,
}
_TEXTS = {"type": "array", "items": {"type": "string"}}
# By the name of the field in scoring.proto.
_RESPONSE: Mapping[str, Schema] = {
    "payment_id": {"type": "string", "description": "The payment's id, as it was sent."},
    "decision_id": {
        "type": "string",
        "description": "Names the decision on the topic `decisions`. A retry within the window gets the same one.",
    },
    "score": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Calibrated probability of fraud. Also 0 if no model gave a score (flag `model_absent`).",
    },
    "action": {"type": "string", "enum": ["approve", "review", "decline"], "description": "The action to take."},
    "reasons": {
        **_TEXTS,
        "description": "Why the action is not `approve`, the strongest first. Skip a form that you do not know.",
    },
    "model_version": {"type": "string", "description": "The bundle that scored the payment; empty if none did."},
    "flags": {**_TEXTS, "description": "Oddities, such as `unknown_card`. Skip a flag that you do not know."},
    "profile_age_ms": {
        "type": "integer",
        "minimum": 0,
        "description": "How far the profiles lag behind the payments stream; absent if that is not known.",
    },
}
_TOKEN: Schema = {"bearerToken": []}
# `security: [{}, …]` says that a host without tokens asks for none.
_MAYBE_TOKEN = [{}, _TOKEN]
_IDS = (Form.ID, Form.CARD_TOKEN, Form.WORD)
# Control characters and the line and paragraph separators; the endpoint refuses a few more that no id has.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u00a0\u2028\u2029]+$"
_EXAMPLES_MAX = 10
# Refusals whose message is made when they are given: (code, field, an example of the message).
_MADE = (
    ("field", batcher.INVALID_ARGUMENT, "currency", "is missing or empty; wanted three capital letters"),
    ("body", batcher.INVALID_ARGUMENT, "", "body is not valid JSON in UTF-8"),
    (
        "of_a_batch",
        batcher.INVALID_ARGUMENT,
        "requests[3].currency",
        "is missing or empty; wanted three capital letters",
    ),
    ("other_payment", batcher.ALREADY_EXISTS, "payment_id", "was used for another payment"),
    ("no_record", batcher.UNAVAILABLE, "", "the outbox cannot take the decision"),
)
_MEANINGS: Mapping[int, str] = {
    400: "A field, the body or a header is wrong, and `field` names it. The same request fails again.",
    401: "The host has tokens (`[auth] tokens_file`), and the request shows none of them.",
    408: "The request took too long to arrive. The connection closes.",
    409: "The caller has used the `payment_id` for another payment. Nothing was decided.",
    413: "The body is too large. The connection closes unless it is a payment of a batch that is.",
    415: "`Content-Type` names no format of the endpoint, or the body is compressed.",
    417: "`Expect` has another value than `100-continue`. The connection closes.",
    429: "More is asked than can be answered in time, or than the caller's share. Decide without a score, or wait.",
    431: "Too many headers, or too large a head. The connection closes.",
    500: "A bug. Ask once more with the same `payment_id`.",
    503: "The host cannot take the request now. Ask again with the same `payment_id`, another host if there is one.",
    504: "The deadline has passed. Ask again with the same `payment_id`: a decision that was made comes back.",
    505: "The request is not HTTP/1.1. The connection closes.",
}
# Statuses of any request, on any path: the server refuses it before it looks for a route.
_OF_ANY_REQUEST = (400, 408, 413, 417, 431, 500, 503, 505)
_OF_SCORING = (401, 409, 415, 429, 504)
_INTRODUCTION = "\n\n".join(
    (
        "Decides about payments: approve, review or decline, within milliseconds.",
        "A body is JSON or protobuf (`schemas/proto/scoring.proto`, which `paywarden admin schemas --proto` prints), "
        "with the same names. An error is always JSON. A path that is not listed here is answered by 404 "
        "(`not_found`), another method by 405 (`unimplemented`, with `Allow`), both with the body of an error.",
        "Ask again after a time-out, a broken connection, a 503 or a 504, with the same `payment_id`: the decision "
        "that was made comes back. Keep connections open. Skip fields, reasons and flags that you do not know. The "
        "endpoint checks more than a JSON schema can say; see the descriptions.",
        "Through a gateway, send `x-paywarden-route` with each call, also with a retry: the first 32 hexadecimal "
        "digits of HMAC-SHA-256 of the card under the clients' key. A gateway refuses any other form. A host does not "
        "look at it.",
        "The same service is at gRPC `paywarden.scoring.v1.Scoring`, with reflection.",
    )
)


def openapi_text(
    fields: PaymentFields = TABLE_ALONE,
    *,
    limits: RequestLimits | None = None,
    http: HttpSettings | None = None,
    admission: AdmissionSettings | None = None,
) -> str:
    """Returns the description as JSON, with a line break at its end."""
    described_as = openapi_document(fields, limits=limits, http=http, admission=admission)
    return json.dumps(described_as, indent=2, ensure_ascii=False) + "\n"


def openapi_document(
    fields: PaymentFields = TABLE_ALONE,
    *,
    limits: RequestLimits | None = None,
    http: HttpSettings | None = None,
    admission: AdmissionSettings | None = None,
) -> Schema:
    """Returns the description of an endpoint with these fields and settings; the defaults where one is None."""
    limits, http, admission = limits or RequestLimits(), http or HttpSettings(), admission or AdmissionSettings()
    answers = _Answers(http)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Paywarden scoring",
            "version": _CONTRACT,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": f"http://localhost:{http.port or HttpSettings().port}"}],
        "paths": {
            "/v1/score": {"post": _score(admission, answers)},
            "/v1/score:batch": {"post": _score_batch(admission, limits, answers)},
            "/livez": _read("livez", "Is the process alive?", _json_answer("It is.", _flag("live")), answers),
            "/readyz": _readyz(answers),
            "/metrics": _metrics(answers),
        },
        "components": {
            "schemas": {
                "ScoreRequest": _request(fields, limits),
                "ScoreResponse": _response(),
                "ScoreBatchRequest": _batch("requests", "ScoreRequest", limits.batch_size_max),
                "ScoreBatchResponse": _batch("responses", "ScoreResponse", limits.batch_size_max),
                "Readiness": _readiness(),
                "Error": _error_schema(answers.codes()),
            },
            "responses": answers.components(),
            "securitySchemes": {
                "bearerToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed if the host has tokens. With `[tls] client_ca` a client certificate is "
                    "needed, too. Through a gateway the token is an API key or a JWT.",
                }
            },
        },
    }


def payment_schema(field: PaymentField) -> Schema:
    """Returns the JSON schema of a field of a request. A field that is not required may be null: null is absent."""
    schema = _of_value(field)
    if not field.is_required:
        schema["type"] = [schema["type"], "null"]
    return schema


class _Answers:
    """The answers with an error: the meaning of each status, its messages and its headers."""

    def __init__(self, http: HttpSettings) -> None:
        made = [(name, code, field, message) for name, code, field, message in _MADE]
        size = min(REQUEST_BYTES_MAX, http.body_bytes_max)
        # Limits make these two, so they are no constants.
        too_large = HttpRefusal(413, batcher.INVALID_ARGUMENT, f"body must be at most {size} bytes")
        head = f"at most {http.header_count_max} headers and {http.head_bytes_max} bytes of head"
        self._refusals: dict[int, list[tuple[str, str, str, str]]] = {status: [] for status in _MEANINGS}
        for name, code, field, message in made:
            self._refusals[status_of(code)].append((name, code, field, message))
        for name, refusal in (
            *((name.lower(), refusal) for name, refusal in vars(refusals).items() if isinstance(refusal, HttpRefusal)),
            ("too_large", too_large),
            ("head_too_large", HttpRefusal(431, batcher.INVALID_ARGUMENT, head)),
        ):
            # 404 and 405 are answers to no operation.
            if refusal.status in self._refusals:
                self._refusals[refusal.status].append((name, refusal.code, refusal.field, refusal.message))
        for name, fixed in vars(batcher).items():
            if isinstance(fixed, batcher.Refusal) and fixed is not batcher.NOT_DECIDED:
                shown = (name.strip("_").lower(), fixed.code, fixed.field, fixed.message)
                self._refusals[status_of(fixed.code)].append(shown)
        self._refusals[401] = self._refusals[401] or []

    def of(self, *statuses: int) -> Schema:
        """Returns references to the answers with these statuses, and to those that any request can get."""
        every = sorted({*statuses, *_OF_ANY_REQUEST})
        return {str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in every}

    def codes(self) -> list[str]:
        """Returns the codes of all errors, in order."""
        used = {code for shown in self._refusals.values() for _, code, _, _ in shown}
        return sorted(used | {refusals.NOT_FOUND.code, refusals.UNIMPLEMENTED})

    def components(self) -> Schema:
        """Returns the answers by their names."""
        return {_name(status): self._component(status, shown) for status, shown in self._refusals.items()}

    def _component(self, status: int, shown: Sequence[tuple[str, str, str, str]]) -> Schema:
        answer: Schema = {"description": _MEANINGS[status]}
        if headers := dict(_headers(status)):
            answer["headers"] = headers
        content: Schema = {"schema": {"$ref": "#/components/schemas/Error"}}
        content["examples"] = {
            name: {"value": {"error": {"code": code, "field": field, "message": message}}}
            for name, code, field, message in shown
        }
        return answer | {"content": {JSON.content_type: content}}


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _headers(status: int) -> Iterator[tuple[str, Schema]]:
    for line in STATUS_HEADERS.get(status, b"").decode().splitlines():
        name, _, value = line.partition(": ")
        kind = "integer" if value.isdecimal() else "string"
        described_as = "Seconds after which to ask again." if name == "Retry-After" else f"`{value}`."
        yield name, {"required": True, "description": described_as, "schema": {"type": kind}}


# Operations


def _score(admission: AdmissionSettings, answers: _Answers) -> Schema:
    size = f"At most {REQUEST_BYTES_MAX} bytes."
    return _scoring("score", "Decide about a payment", "Score", size, admission, answers)


def _score_batch(admission: AdmissionSettings, limits: RequestLimits, answers: _Answers) -> Schema:
    text = (
        f"1 to {limits.batch_size_max} payments, each at most {REQUEST_BYTES_MAX} bytes. A batch is decided whole or "
        "not at all, and answered in the order of the requests. The refusal of one payment names it: `requests[3]`."
    )
    return _scoring("score_batch", "Decide about several payments", "ScoreBatch", text, admission, answers)


def _scoring(
    operation: str, summary: str, message: str, text: str, admission: AdmissionSettings, answers: _Answers
) -> Schema:
    is_batch = message == "ScoreBatch"
    asked: Any = {"requests": [_EXAMPLES]} if is_batch else _EXAMPLES
    answered: Any = {"responses": [_ANSWER]} if is_batch else _ANSWER
    return {
        "operationId": operation,
        "summary": summary,
        "description": text,
        "security": _MAYBE_TOKEN,
        "parameters": [_deadline(admission)],
        "requestBody": {"required": True, "content": _content(f"{message}Request", asked)},
        "responses": {
            "200": {"description": "The decision.", "content": _content(f"{message}Response", answered)},
            **answers.of(*_OF_SCORING),
        },
    }


def _deadline(admission: AdmissionSettings) -> Schema:
    return {
        "name": "x-deadline-ms",
        "in": "header",
        "required": False,
        "description": "How many milliseconds the answer may take. The server's own deadline, "
        f"{admission.deadline_ms}, holds if it is shorter, or if the header is absent.",
        "schema": {"type": "integer", "minimum": 1, "maximum": DEADLINE_MS_MAX},
        "example": 25,
    }


def _content(message: str, example: Any) -> Schema:
    proto = f"paywarden.scoring.v1.{message}"
    return {
        JSON.content_type: {"schema": {"$ref": f"#/components/schemas/{message}"}, "example": example},
        PROTOBUF.content_type: {
            "schema": {"type": "string", "contentMediaType": PROTOBUF.content_type, "description": f"A `{proto}`."}
        },
    }


def _read(operation: str, summary: str, ok: Schema, answers: _Answers, *statuses: int) -> Schema:
    get = {"operationId": operation, "summary": summary, "responses": {"200": ok, **answers.of(*statuses)}}
    return {"get": get}


def _readyz(answers: _Answers) -> Schema:
    read = _read("readyz", "Can it score?", _json_answer("It can.", _ref("Readiness")), answers)
    unready: Schema = {"anyOf": [_ref("Readiness"), _ref("Error")]}
    read["get"]["responses"]["503"] = {
        **_json_answer("It cannot yet: `missing` says why.", unready),
        "headers": dict(_headers(503)),
    }
    read["get"]["description"] = "Ready only when the mirror is complete and decisions can be recorded."
    return read


def _metrics(answers: _Answers) -> Schema:
    text = {METRICS_TEXT: {"schema": {"type": "string"}}}
    read = _read("metrics", "Metrics for Prometheus", {"description": "As text.", "content": text}, answers, 401, 429)
    read["get"]["description"] = "At most a second old, and at most 50 answers a second for each worker."
    read["get"]["security"] = _MAYBE_TOKEN
    return read


def _json_answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {JSON.content_type: {"schema": schema}}}


# Schemas


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _flag(name: str) -> Schema:
    return {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}


def _readiness() -> Schema:
    ready = _flag("ready")
    ready["properties"]["missing"] = {**_TEXTS, "description": "The missing parts; empty if there are none."}
    return {**ready, "required": ["ready", "missing"]}


def _error_schema(codes: Sequence[str]) -> Schema:
    properties: Schema = {
        "code": {"type": "string", "enum": list(codes), "description": "The code, as gRPC names it."},
        "field": {"type": "string", "description": "The wrong field or header; empty if none is to blame."},
        "message": {"type": "string", "description": "Wanted and given value. Never an id, a secret or a payload."},
    }
    error = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _batch(name: str, element: str, size_max: int) -> Schema:
    items = {"type": "array", "items": _ref(element), "minItems": 1, "maxItems": size_max}
    schema: Schema = {"type": "object", "properties": {name: items}, "required": [name]}
    return schema | {"additionalProperties": False} if name == "requests" else schema


def _request(fields: PaymentFields, limits: RequestLimits) -> Schema:
    declared = sorted(fields.declared, key=lambda field: field.number)
    every = (*fields_of(limits), *declared)
    schema = {
        "type": "object",
        "properties": {field.name: _property(field, limits) for field in every},
        "required": [field.name for field in every if field.is_required],
    }
    return schema if limits.unknown_fields == "ignore" else schema | {"additionalProperties": False}


def _property(field: PaymentField, limits: RequestLimits) -> Schema:
    schema = payment_schema(field)
    text = described(field)
    if field.form is Form.TIME:
        past_ms, future_ms = limits.past_ms_max, limits.future_ms_max
        text += f", at most {past_ms} ms before and {future_ms} ms after the request's arrival"
    elif field.form is Form.CURRENCY:
        text += "; without an exchange rate at the host the answer has the flag unknown_rate"
    elif "integer" in schema["type"]:
        text += ", written without a fraction"
    elif field.form in _IDS:
        text += " in UTF-8, and no card number"
    if field.is_personal:
        text += "; personal: neither logged nor kept"
    schema["description"] = f"{text[0].upper()}{text[1:]}."
    if field.name in _EXAMPLES:
        schema["examples"] = [_EXAMPLES[field.name]]
    elif field.among:
        schema["examples"] = list(field.among[:_EXAMPLES_MAX])
    return schema


def _of_value(field: PaymentField) -> Schema:
    if field.form in PATTERNS:
        return {"type": "string", "pattern": f"^{PATTERNS[field.form]}$"}
    if field.form is Form.ADDRESS:
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
    if field.is_text:
        return {"type": "string", "minLength": 1, "maxLength": field.size_max, "pattern": _PRINTABLE}
    if field.is_decimal:
        scale = 10**field.decimals
        return {"type": "number", "minimum": field.minimum / scale, "maximum": field.maximum / scale}
    if field.form is Form.FLAG:
        return {"type": "boolean"}
    return {
        "type": "integer",
        "format": "int32" if field.form is Form.OFFSET else "int64",
        "minimum": field.minimum,
        "maximum": field.maximum,
    }


def _response() -> Schema:
    fields = ScoreResponse.DESCRIPTOR.fields
    return {
        "type": "object",
        "properties": {field.name: _RESPONSE[field.name] for field in fields},
        # A field that protobuf can leave out may be absent.
        "required": [field.name for field in fields if not field.has_presence],
    }
