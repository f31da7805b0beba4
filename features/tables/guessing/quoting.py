"""Texts of a mapping and of a payment.py: one line each, and no character that a file would not show."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(text: str) -> str:
    """Returns a text as TOML and Python both read it: one line, with no character that a file would not show."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else _code(ord(one)) for one in escaped) + '"'


def quoted_list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(quoted(text) for text in texts) + "]"


def _code(character: int) -> str:
    return f"\\u{character:04x}" if character < 0x10000 else f"\\U{character:08x}"
