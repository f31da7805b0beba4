"""Texts in files with a checksum in the last line, for files that a process writes and another one trusts.

    {"active": "b-41"}
    8c736521

One flipped bit could turn a number into another number, and the text would still be JSON.
"""

from __future__ import annotations

import re
from zlib import crc32

_LAST_LINE = re.compile(r"\n([0-9a-f]{8})\n?\Z")


def with_checksum(text: str) -> str:
    """Returns the text with its checksum in a last line. It must not end with such a line itself."""
    return f"{text}\n{crc32(text.encode()):08x}\n"


def without_checksum(content: str) -> str:
    """Returns the text without the line of `with_checksum`. Raises ValueError if it is damaged."""
    found = _LAST_LINE.search(content)
    if found is None:
        raise ValueError("its checksum is missing")
    text = content[: found.start()]
    if int(found[1], 16) != crc32(text.encode()):
        raise ValueError("its checksum is wrong")
    return text
