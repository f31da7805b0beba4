"""Check the values of a browser or a caller against the fields that a page declares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from unicodedata import category
from urllib.parse import parse_qsl

from paywarden.ops.console.page_rows import Field, PageRefused
from paywarden.ops.times import time_ms_of

# More parameters than any page has, the many boxes of a list included.
_COUNT_MAX = 1_000
# They join or part the letters of some scripts, and the parts of one emoji.
_JOINERS = "\u200c\u200d"


def pairs_of(text: bytes) -> list[tuple[str, str]]:
    """Return the names and values of a query or a form. Raises PageRefused."""
    try:
        return parse_qsl(
            text.decode("ascii"), keep_blank_values=True, max_num_fields=_COUNT_MAX, encoding="utf-8", errors="strict"
        )
    except ValueError as error:
        raise PageRefused(400, "The address or form is not in the form that browsers send.") from error


def json_pairs(content: object) -> list[tuple[str, str]]:
    """Return the fields of a JSON object: texts, numbers, true and false, and lists of them. Raises PageRefused."""
    if not isinstance(content, Mapping):
        raise PageRefused(400, "Wanted a JSON object of the page's fields.")
    pairs: list[tuple[str, str]] = []
    for name, value in content.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                pairs.append((str(name), "true" if item else "false"))
            elif isinstance(item, str | int | float):
                pairs.append((str(name), str(item)))
            elif item is not None:
                raise PageRefused(400, f"{_shown(str(name))}: wanted a text, a number or a list of them.")
    if len(pairs) > _COUNT_MAX:
        raise PageRefused(400, f"Wanted at most {_COUNT_MAX} fields.")
    return pairs


def checked(fields: Sequence[Field], pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the values by name; an empty value counts as not given. Raises PageRefused naming the field."""
    known = {field.name: field for field in fields if field.kind != "file"}
    values: dict[str, tuple[str, ...]] = {}
    for name, given in pairs:
        field = known.get(name)
        if field is None:
            there = ", ".join(known) or "none"
            raise PageRefused(400, f"This page has no field {_shown(name)}. Its fields: {there}.")
        value = given.replace("\r\n", "\n").strip()
        if not value:
            continue
        if name in values and not field.is_many:
            raise PageRefused(400, f"{name}: wanted one value, got several.")
        if wanted := _problem(field, value):
            raise PageRefused(400, f"{name}: wanted {wanted}.")
        values[name] = (*values.get(name, ()), value)
    for field in fields:
        if field.is_required and field.kind != "file" and field.name not in values:
            raise PageRefused(400, f"{field.name} is missing: {field.meaning}.")
    return values


def checked_path(values: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a path. Raises PageRefused for one that is too long or cannot be printed."""
    for name, value in values.items():
        if not value.isprintable() or len(value) > 200:
            raise PageRefused(400, f"{name}: wanted at most 200 printable characters.")
    return dict(values)


def _problem(field: Field, value: str) -> str:
    """Return the wanted form; empty if the value is right."""
    if len(value) > field.chars_max:
        return f"at most {field.chars_max} characters, got {len(value)}"
    printable = value.replace("\n", "").replace("\t", "") if field.kind == "lines" else value
    if not _is_readable(printable):
        return "printable text"
    if field.choices and value not in field.choices:
        return f"one of {', '.join(field.choices)}"
    if field.kind in ("whole", "number"):
        return _number_problem(field, value)
    if field.kind == "time":
        try:
            time_ms_of(value)
        except (ValueError, OverflowError):
            return "a time in UTC such as 2026-10-01T08:30"
    return ""


def _is_readable(text: str) -> bool:
    """Return whether a text has nothing that nobody sees. Spaces of any width are of every second text in French."""
    return text.isprintable() or all(one.isprintable() or one in _JOINERS or category(one) == "Zs" for one in text)


def _number_problem(field: Field, value: str) -> str:
    wanted = "a whole number" if field.kind == "whole" else "a number"
    try:
        # `int` would accept 1_000 and other scripts' digits.
        if not value.isascii() or "_" in value:
            return wanted
        number = float(int(value)) if field.kind == "whole" else float(value)
    except (ValueError, OverflowError):
        return wanted
    if not math.isfinite(number):
        return wanted
    if field.low is not None and number < field.low:
        return f"at least {field.low:g}"
    if field.high is not None and number > field.high:
        return f"at most {field.high:g}"
    return ""


def _shown(name: str) -> str:
    return repr(name[:40])
