"""The format that a Content-Type header names."""

from __future__ import annotations

from collections.abc import Mapping

from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import PROTOBUF

_FORMATS: Mapping[bytes, Format] = {b"application/x-protobuf": PROTOBUF, b"application/json": JSON}


def format_of(content_type: bytes) -> Format | None:
    """Returns the format that a Content-Type header's value names, or None when it names neither."""
    exact = _FORMATS.get(content_type)
    if exact is not None:
        return exact
    essence, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    charsets = [p.partition(b"=")[2].strip(b'" ') for p in parameters if p.startswith(b"charset")]
    if any(charset != b"utf-8" for charset in charsets):
        return None
    return _FORMATS.get(essence)
