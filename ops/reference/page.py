"""Shared parts of the reference pages: paragraphs, lists, and the error for a fact without a description."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

MADE_FROM_CODE = "`python -m paywarden.ops.reference` makes this page."


class Undocumented(Exception):
    """A fact without a description: a field without a meaning, for example."""


def prose(text: str) -> list[str]:
    """Returns a paragraph in lines of at most 110 characters, and an empty line."""
    return [*textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False), ""]


def entry(name: str, notes: Iterable[str], meaning: str) -> str:
    """Returns a line of a list: "- `name` (note; note): meaning". Notes that are empty are left out."""
    noted = "; ".join(filter(None, notes))
    return f"- {code(name)}{f' ({noted})' if noted else ''}: {meaning}"


def code(text: str) -> str:
    """Returns the text as code; an empty text stays empty."""
    return f"`{text}`" if text else ""
