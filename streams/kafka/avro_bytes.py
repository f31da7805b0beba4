"""The bytes of single Avro values, for writers that know the order of a topic's fields (schemas/avsc).

A number is a zigzag varint. A text is its size in bytes and its UTF-8; a list is its length, its items, and a zero. A
value that may be null begins with the number of its branch, here 0 for null and 1 for the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from paywarden.features.kernel.toolkit.varint import encode_varint, encode_zigzag

# Sizes of one byte.
_SIZES = [bytes([2 * size]) for size in range(64)]
NULL, NOT_NULL = b"\0", b"\2"
EMPTY_LIST = b"\0"


def whole_bytes(number: int) -> bytes:
    """Returns the bytes of an int or a long."""
    coded = encode_zigzag(number)
    if 1 << 35 <= coded < 1 << 42:
        # Times in milliseconds, until the year 2039.
        return bytes(
            (
                coded & 127 | 128,
                coded >> 7 & 127 | 128,
                coded >> 14 & 127 | 128,
                coded >> 21 & 127 | 128,
                coded >> 28 & 127 | 128,
                coded >> 35,
            )
        )
    return encode_varint(coded)


def text_bytes(text: str) -> bytes:
    """Returns the bytes of a string."""
    data = text.encode()
    return (_SIZES[len(data)] if len(data) < len(_SIZES) else whole_bytes(len(data))) + data


def texts_bytes(texts: Iterable[str]) -> bytes:
    """Returns the bytes of an array of strings."""
    items = list(map(text_bytes, texts))
    return whole_bytes(len(items)) + b"".join(items) + EMPTY_LIST if items else EMPTY_LIST


def enum_bytes(place: int) -> bytes:
    """Returns the bytes of the enum's symbol at a place, from 0."""
    return _SIZES[place]
