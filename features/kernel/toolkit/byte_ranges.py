"""Copies and checks ranges of bytes in compiled code.

For example, `capital_letters(b"DE", 0, 2)` is 26 * 3 + 4 = 82.
"""

from __future__ import annotations

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import inlined
from paywarden.features.kernel.toolkit.machine_words import load_word, store_word

# The same values as in schemas/payment_fields.py, which holds no compiled code.
CARD_DIGITS_MIN, CARD_DIGITS_MAX = 13, 19


@inlined
def copy_bytes(source: U8, start: int, size: int, out: U8, at: int) -> int:
    """Copy `size` bytes; returns the end position in `out`. The ranges do not overlap.

    Eight at a time: byte by byte, profiles of 600 bytes took longer to copy than to find.
    """
    offset = 0
    while offset + 8 <= size:
        store_word(out, at + offset, load_word(source, start + offset))
        offset += 8
    while offset < size:
        out[at + offset] = source[start + offset]
        offset += 1
    return at + size


@inlined
def is_same(one: U8, one_at: int, other: U8, other_at: int, size: int) -> bool:
    """Returns whether two ranges of `size` bytes are equal."""
    offset = 0
    while offset + 8 <= size:
        if load_word(one, one_at + offset) != load_word(other, other_at + offset):
            return False
        offset += 8
    while offset < size:
        if one[one_at + offset] != other[other_at + offset]:
            return False
        offset += 1
    return True


@inlined
def is_ascii(data: U8, at: int, end: int) -> bool:
    """Returns whether no byte is above 127."""
    good = True
    for place in range(at, end):
        good &= data[place] < 128
    return good


@inlined
def is_printable(data: U8, at: int, end: int) -> bool:
    """Returns whether all bytes are ASCII without control characters."""
    good = True
    for place in range(at, end):
        good &= 32 <= data[place] < 127
    return good


@inlined
def card_digits(data: U8, at: int, end: int) -> int:
    """Returns how many digits a text has that is made of digits, spaces and hyphens; 0 for any other text.

    Most ids have a letter at their beginning, where this stops.
    """
    digits = 0
    for place in range(at, end):
        byte = data[place]
        if 48 <= byte < 58:
            digits += 1
        elif byte not in (32, 45):
            return 0
    return digits


@inlined
def passes_luhn(data: U8, at: int, end: int) -> bool:
    """Returns whether the digits among these bytes end in the right check digit (Luhn, ISO/IEC 7812-1)."""
    total, doubles = 0, False
    for back in range(end - at):
        digit = int(data[end - 1 - back]) - 48
        if 0 <= digit < 10:
            value = 2 * digit if doubles else digit
            total += value - 9 if value > 9 else value
            doubles = not doubles
    return total % 10 == 0


@inlined
def may_be_card_number(data: U8, at: int, end: int) -> bool:
    """Returns whether a text is as long as a card number and has a right check digit. `PaymentField` then decides."""
    return CARD_DIGITS_MIN <= card_digits(data, at, end) <= CARD_DIGITS_MAX and passes_luhn(data, at, end)


@inlined
def capital_letters(data: U8, at: int, count: int) -> int:
    """Returns `count` capital letters as a number in base 26, where A is 0; -1 if any byte is no capital letter."""
    code = 0
    for place in range(at, at + count):
        letter = int(data[place]) - 65
        if not 0 <= letter < 26:
            return -1
        code = 26 * code + letter
    return code
