"""Times in columns of text, by a regular expression that is made of their format.

    "%d/%m/%Y %H:%M"    day / month / year blank hour : minute
    "iso"               2026-05-01T12:00:00.250+02:00, 2026-05-01 12:00, 20260501T120000Z, 2026-05-01

Digits and names become numbers in whole columns, and dates that no calendar has are wrong.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.tables.columns.arrow_columns import Flags, Int64Array, flags_of

NO_OFFSET = -(2**31)
"""The offset of a time that names none."""

# English names, whatever the language of the machine.
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_SHORT_MONTHS = tuple(name[:3] for name in _MONTHS)
_OFFSET = "[Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?"
# Each letter of a format is a group of the expression, named after it.
_DIRECTIVES = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "f": "[0-9]{1,9}",
    "j": "[0-9]{1,3}",
    "b": f"(?i:{'|'.join(_SHORT_MONTHS)})",
    "B": f"(?i:{'|'.join(_MONTHS)})",
    "p": "(?i:[ap]m)",
    "z": _OFFSET,
}
_ISO = (
    "(?P<Y>[0-9]{4})-?(?P<m>[0-9]{2})-?(?P<d>[0-9]{2})"
    "(?:[Tt ](?P<H>[0-9]{2}):?(?P<M>[0-9]{2})(?::?(?P<S>[0-9]{2})(?:[.,](?P<f>[0-9]{1,18}))?)?"
    f" ?(?P<z>{_OFFSET})?)?"
)


class TextTimes(NamedTuple):
    """Times of texts, shape (rows,) each: milliseconds of their own clock since 1970, and the offset that they name."""

    local_ms: Int64Array
    offset_minutes: Int64Array
    is_wrong: Flags


def read_times(texts: pa.Array, form: str) -> TextTimes:
    """Return the times of texts in a format, with smaller units than milliseconds cut off.

    A missing text is 0 and not wrong, a wrong one is 0 too.
    """
    found = pc.extract_regex(texts, f"^(?:{_ISO if form == 'iso' else _expression(form)})$")
    parts = {field.name[0]: found.field(place).fill_null("") for place, field in enumerate(found.type)}

    def number(letter: str, default: int) -> Int64Array:
        return _numbers(parts[letter], default) if letter in parts else np.full(len(texts), default, dtype=np.int64)

    year = number("Y", 0)
    if "y" in parts:
        # As POSIX reads it.
        short = number("y", 0)
        year = short + np.where(short < 69, 2000, 1900)
    month, day, hour, minute, second = (number(letter, letter in "md") for letter in "mdHMS")
    for letter, names in (("b", _SHORT_MONTHS), ("B", _MONTHS)):
        if letter in parts:
            month = _places(pc.utf8_lower(parts[letter]), names) + 1
    is_right = (year >= 1900) & (month >= 1) & (month <= 12)
    if "I" in parts:
        hour = number("I", 0)
        is_right &= (hour >= 1) & (hour <= 12)
    if "p" in parts:
        hour = hour % 12 + 12 * _places(pc.utf8_lower(parts["p"]), ("am", "pm"))
    # A leap second is the second after it, as in POSIX.
    is_right &= (hour <= 23) & (minute <= 59) & (second <= 60)
    months = np.where(is_right, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    first, end = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]")
    if "j" in parts:
        years = months.astype("datetime64[Y]")
        first, end, day = years.astype("datetime64[D]"), (years + 1).astype("datetime64[D]"), number("j", 0)
    is_right &= (day >= 1) & (day <= (end - first).astype(np.int64))
    days = first.astype(np.int64) + day - 1
    ms = _numbers(pc.utf8_rpad(pc.utf8_slice_codeunits(parts["f"], 0, 3), 3, "0"), 0) if "f" in parts else 0
    local_ms = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms
    offset = _offsets(parts["z"]) if "z" in parts else np.full(len(texts), NO_OFFSET, dtype=np.int64)
    is_right &= (np.abs(offset) < 1440) | (offset == NO_OFFSET)
    is_right &= flags_of(pc.is_valid(found))
    return TextTimes(np.where(is_right, local_ms, 0), np.where(is_right, offset, NO_OFFSET),
                     ~is_right & flags_of(pc.is_valid(texts)))  # fmt: skip


def _expression(form: str) -> str:
    """Return a format as a regular expression. Numbers that touch each other have all their digits."""
    whole = re.sub("%(.)", lambda found: "%H:%M:%S" if found[1] == "T" else found[0], form)
    pieces = re.findall("%.|[^%]", whole, re.DOTALL)
    expression = ""
    for place, piece in enumerate(pieces):
        if piece[0] != "%" or piece == "%%":
            expression += re.escape(piece[-1])
            continue
        letter = piece[1]
        beside = (*pieces[place - 1 : place], *pieces[place + 1 : place + 2])
        touches = any(len(other) == 2 and other[1] in "YymdHIMSfj" for other in beside)
        digits = _DIRECTIVES.get(letter, "[0-9]{2}" if touches else "[0-9]{1,2}")
        # A letter may come twice: the last one counts.
        expression += f"(?P<{letter}{place}>{digits})"
    return expression


def _numbers(texts: pa.Array, default: int) -> Int64Array:
    present = pc.if_else(pc.equal(texts, ""), str(int(default)), texts)
    return np.asarray(present.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _places(texts: pa.Array, names: tuple[str, ...]) -> Int64Array:
    """Return which of the names each text is, -1 for none of them."""
    found = pc.index_in(texts, value_set=pa.array(names)).fill_null(-1)
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _offsets(texts: pa.Array) -> Int64Array:
    """Return the minutes of Z, +02, +0200 or +02:00; NO_OFFSET for an empty text."""
    encoded = texts.dictionary_encode()
    minutes = [_offset(text) for text in encoded.dictionary.to_pylist()]
    found: Int64Array = np.array(minutes, dtype=np.int64)[encoded.indices.to_numpy()]
    return found


def _offset(text: str) -> int:
    if text in ("", "Z", "z"):
        return 0 if text else NO_OFFSET
    digits = text[1:].replace(":", "").ljust(4, "0")
    return int(text[0] + "1") * (60 * int(digits[:2]) + int(digits[2:]))
