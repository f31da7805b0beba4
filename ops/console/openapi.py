"""The documents of the API, made from the pages themselves: OpenAPI 3.1, and a page that lists every address."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from paywarden.ops.console.idempotency.keyed_acts import KEPT_MS
from paywarden.ops.console.pages import Field, Page, Section, Sent, Shown, Visit

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class Address:
    """A page of the API."""

    method: str
    path: str
    meaning: str
    roles: tuple[str, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class ApiView:
    """Every address of the API."""

    addresses: tuple[Address, ...]


def api_section(sections: Callable[[], Sequence[Section]], base: str) -> Section:
    """Returns the section of the documents. `sections` are asked when somebody looks; `base` is before each path."""

    def show(_: Visit) -> Shown:
        addresses = tuple(
            Address(page.method, base + page.path, page.meaning, tuple(sorted(page.roles)), page.fields)
            for section in sections()
            for declared in section.pages
            for page in declared.by_methods()
        )
        return Shown("api.html", ApiView(addresses), "API")

    def document(_: Visit) -> Sent:
        content = json.dumps(openapi(sections(), base), indent=1)
        return Sent(content.encode(), "application/json", "openapi.json")

    pages = (
        Page("/api", show, "Every address of the API", view=ApiView),
        Page("/openapi.json", document, "The same as OpenAPI 3.1"),
    )
    return Section("api", "API", "/api", pages)


def openapi(sections: Sequence[Section], base: str) -> dict[str, Any]:
    """Returns the OpenAPI document of all pages."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for section in sections:
        for page in (each for declared in section.pages for each in declared.by_methods()):
            paths.setdefault(base + page.path, {})[page.method.lower()] = _operation(section, page, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Paywarden console", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(section: Section, page: Page, schemas: dict[str, Any]) -> dict[str, Any]:
    view = {} if page.view is None else _schema(page.view, schemas)
    content = {"type": "object", "properties": {"view": view, "message": {"type": "string"}}}
    operation: dict[str, Any] = {
        "tags": [section.name],
        "summary": page.meaning,
        "description": f"Roles: {', '.join(sorted(page.roles))}.",
        "operationId": f"{page.method.lower()}{page.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": [
            {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
            for part in page.path.split("/")
            if part.startswith("{")
        ],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": content}}},
            **{status: {"description": text} for status, text in _REFUSALS.items()},
        },
    }
    if page.method == "GET":
        operation["parameters"] += [
            {
                "name": field.name,
                "in": "query",
                "required": field.is_required,
                "description": field.meaning,
                "schema": _field(field),
            }
            for field in page.fields
        ]
        return operation
    if page.is_act:
        operation["parameters"].append(_KEY)
        operation["responses"] |= {status: {"description": text} for status, text in _KEY_REFUSALS.items()}
    is_upload = any(field.kind == "file" for field in page.fields)
    body = {
        "type": "object",
        "properties": {field.name: {**_field(field), "description": field.meaning} for field in page.fields},
        "required": [field.name for field in page.fields if field.is_required],
        "additionalProperties": False,
    }
    kind = "multipart/form-data" if is_upload else "application/json"
    operation["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    return operation


_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A random text of 16 to 200 characters, such as a UUID, new for each act. The same request with "
    f"the same key acts once in {KEPT_MS // 3_600_000} hours, on every console: a repetition gets the first answer, "
    "with the header Idempotency-Replayed. A refusal frees the key.",
    "schema": {"type": "string", "minLength": 16, "maxLength": 200},
}
_KEY_REFUSALS = {
    "409": "A rule does not allow it now. Or the request with this key is in progress, or nobody knows its end.",
    "422": "This Idempotency-Key came with another request before.",
}
_REFUSALS = {
    "400": "A field is wrong: `error` names it.",
    "401": "The token is missing or unknown.",
    "403": "The token's roles do not allow it.",
    "404": "There is no such thing.",
    "409": "A rule does not allow it now.",
    "429": "Too many requests.",
    "503": "Kafka or the database does not answer, and nothing was done.",
}


def _field(field: Field) -> dict[str, Any]:
    kinds = {"whole": "integer", "number": "number"}
    schema: dict[str, Any] = {"type": kinds.get(field.kind, "string")}
    if field.choices:
        schema["enum"] = list(field.choices)
    elif schema["type"] == "string" and field.kind != "file":
        schema["maxLength"] = field.chars_max
    bounds = {"minimum": field.low, "maximum": field.high}
    schema |= {name: value for name, value in bounds.items() if value is not None}
    if field.kind == "file":
        schema["format"] = "binary"
    return {"type": "array", "items": schema} if field.is_many else schema


def _schema(hint: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON schema of a type that views have; dataclasses go to `schemas` by name."""
    if is_dataclass(hint) and isinstance(hint, type):
        name = hint.__name__
        if name not in schemas:
            schemas[name] = {}
            hints = get_type_hints(hint)
            schemas[name] = {
                "type": "object",
                "description": (hint.__doc__ or "").split("\n")[0],
                "properties": {one.name: _schema(hints[one.name], schemas) for one in fields(hint)},
            }
        return {"$ref": f"#/components/schemas/{name}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, schemas) for argument in arguments]}
    if origin in (tuple, list, Sequence, frozenset):
        kinds = [argument for argument in arguments if argument is not Ellipsis]
        if len(kinds) == 1:
            return {"type": "array", "items": _schema(kinds[0], schemas)}
        return {"type": "array", "prefixItems": [_schema(kind, schemas) for kind in kinds]}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    if hint is type(None):
        return {"type": "null"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"type": "string", "enum": [one.value for one in hint]}
    return {"type": _JSON_TYPES[hint]} if hint in _JSON_TYPES else {}
