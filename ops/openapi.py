"""The OpenAPI 3.1 description of the HTTP endpoint, for clients, gateways and testers of other teams.

    ops/openapi.json                           the description, with the table of fields and all defaults
    paywarden admin schemas --openapi          the same with the fields, limits and deadline of a configuration

A JSON schema cannot say everything that the endpoint checks: sizes in bytes, card numbers, times near now and
currencies with a rate. A property's `description` says these in words, so the endpoint may refuse a request that the
schema allows. It never takes one that the schema forbids, apart from decimals that are rounded into their bounds.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from paywarden.schemas.payment_fields import PATTERNS, TABLE_ALONE, Form, PaymentField, PaymentFields
from paywarden.schemas.request_proto import described
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.requests.validation import REQUEST_BYTES_MAX, RequestLimits, fields_of

Schema = dict[str, Any]

_EXAMPLES: Schema = {
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
_IDS = (Form.ID, Form.CARD_TOKEN, Form.WORD)
# Control characters and the line and paragraph separators; the endpoint refuses a few more that no id has.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u00a0\u2028\u2029]+$"
_EXAMPLES_MAX = 10


def openapi_document(
    fields: PaymentFields = TABLE_ALONE,
    *,
    limits: RequestLimits | None = None,
    http: HttpSettings | None = None,
    admission: AdmissionSettings | None = None,
) -> Schema:
    """Returns the description of an endpoint with these fields and settings; the defaults where one is None."""
    limits, http, admission = limits or RequestLimits(), http or HttpSettings(), admission or AdmissionSettings()
    text = resources.files("paywarden.ops").joinpath("openapi.json").read_text(encoding="utf-8")
    # The words that name a setting's value, with the default and with this one.
    for default, value in (
        (_of_a_body(HttpSettings()), _of_a_body(http)),
        (_of_a_head(HttpSettings()), _of_a_head(http)),
        (f"1 to {RequestLimits().batch_size_max} payments", f"1 to {limits.batch_size_max} payments"),
        (f"deadline, {AdmissionSettings().deadline_ms},", f"deadline, {admission.deadline_ms},"),
    ):
        text = text.replace(default, value)
    document: Schema = json.loads(text)
    document["servers"] = [{"url": f"http://localhost:{http.port or HttpSettings().port}"}]
    schemas = document["components"]["schemas"]
    schemas["ScoreRequest"] = _request(fields, limits)
    for batch, name in (("ScoreBatchRequest", "requests"), ("ScoreBatchResponse", "responses")):
        schemas[batch]["properties"][name]["maxItems"] = limits.batch_size_max
    return document


def _of_a_body(http: HttpSettings) -> str:
    return f"body must be at most {min(REQUEST_BYTES_MAX, http.body_bytes_max)} bytes"


def _of_a_head(http: HttpSettings) -> str:
    return f"at most {http.header_count_max} headers and {http.head_bytes_max} bytes of head"


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
    schema = _of_value(field)
    if not field.is_required:
        # null is absent.
        schema["type"] = [schema["type"], "null"]
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
