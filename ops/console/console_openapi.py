"""Describe the API as OpenAPI 3.1, made from the pages' own rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from paywarden.ops.console.idempotency import KEPT_MS
from paywarden.ops.console.page_rows import Field, Page, Section, Sent, Visit

_REFUSALS = {
    "400": "A field is wrong: `error` names it.",
    "401": "The token is missing or unknown.",
    "403": "The token's roles do not allow it.",
    "404": "There is no such thing.",
    "409": "A rule does not allow it now, or nobody knows how the request with this key ended.",
    "422": "This Idempotency-Key came with another request before.",
    "503": "Kafka or a database does not answer, and nothing was done.",
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A random text of 16 to 200 characters, such as a UUID, new for each act. The same request with "
    f"the same key acts once in {KEPT_MS // 3_600_000} hours: a repetition gets the first answer, with the header "
    "Idempotency-Replayed. A refusal frees the key.",
    "schema": {"type": "string", "minLength": 16, "maxLength": 200},
}
_ANSWER = {
    "type": "object",
    "properties": {"view": {}, "message": {"type": "string"}, "missing": {"type": "array"}},
}


def api_section(sections: Callable[[], Sequence[Section]], base: str) -> Section:
    """Return the section of the document. `sections` are asked when somebody looks; `base` is before each path."""

    def document(_: Visit) -> Sent:
        return Sent(json.dumps(openapi(sections(), base), indent=1).encode(), "application/json", "openapi.json")

    return Section("api", "", "", (Page("/openapi.json", document, "Every address of the API as OpenAPI 3.1"),))


def openapi(sections: Sequence[Section], base: str) -> dict[str, Any]:
    """Return the OpenAPI document of all pages."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Paywarden console", "version": "1"},
        "paths": {
            base + page.path: {method.lower(): _operation(section, page, method) for method in page.methods}
            for section in sections
            for page in section.pages
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _operation(section: Section, page: Page, method: str) -> dict[str, Any]:
    named = [part[1:-1] for part in page.path.split("/") if part.startswith("{")]
    operation: dict[str, Any] = {
        "tags": [section.name],
        "summary": page.meaning,
        "description": f"Roles: {', '.join(sorted(page.roles))}.",
        "operationId": f"{method.lower()}{page.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": _ANSWER}}},
            **{status: {"description": text} for status, text in _REFUSALS.items()},
        },
    }
    if method == "GET":
        operation["parameters"] += [
            {"name": one.name, "in": "query", "required": one.is_required, "schema": _schema(one)}
            for one in page.fields
            if not one.is_personal
        ]
        return operation
    if page.is_act:
        operation["parameters"].append(_KEY)
    body = {
        "type": "object",
        "properties": {one.name: _schema(one) for one in page.fields},
        "required": [one.name for one in page.fields if one.is_required],
        "additionalProperties": False,
    }
    is_upload = any(one.kind == "file" for one in page.fields)
    content = {"multipart/form-data" if is_upload else "application/json": {"schema": body}}
    return operation | {"requestBody": {"required": True, "content": content}}


def _schema(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": {"whole": "integer", "number": "number"}.get(field.kind, "string")}
    if field.kind == "file":
        schema["format"] = "binary"
    elif field.choices:
        schema["enum"] = list(field.choices)
    elif schema["type"] == "string":
        schema["maxLength"] = field.chars_max
    bounds = {"minimum": field.low, "maximum": field.high}
    schema |= {name: value for name, value in bounds.items() if value is not None}
    return ({"type": "array", "items": schema} if field.is_many else schema) | {"description": field.meaning}
