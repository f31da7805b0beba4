"""Reads texts of declared fields in compiled code: IPv4 addresses with their networks, and e-mail addresses.

    198.51.100.7        the number 0xC6336407; its network of 24 bits is 198.51.100.0/24
    Ann@Example.com     the @ stands at 3; in small letters it is ann@example.com

The results equal those of schemas/payment_fields.py, which also reads IPv6 addresses.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.siphash import identity_of_text

# The most bytes that a function of this module writes to a buffer.
BUFFER_BYTES = 256
_LOCAL_BYTES_MAX, _DOMAIN_BYTES_MAX = 64, 190
assert BUFFER_BYTES > _LOCAL_BYTES_MAX + _DOMAIN_BYTES_MAX


@compiled()
def ipv4_address(data: U8, at: int, end: int) -> int:
    """Returns the IPv4 address in a text of four numbers from 0 to 255 without leading zeros; -1 for another text."""
    address, number, digits, dots = 0, 0, 0, 0
    for place in range(at, end):
        byte = int(data[place])
        if 48 <= byte < 58:
            if digits == 3 or (digits > 0 and number == 0):
                return -1
            number, digits = 10 * number + byte - 48, digits + 1
        elif byte == 46 and digits > 0 and number < 256 and dots < 3:
            address, number, digits, dots = 256 * address + number, 0, 0, dots + 1
        else:
            return -1
    return 256 * address + number if dots == 3 and digits > 0 and number < 256 else -1


@inlined
def _write_number(out: U8, at: int, number: int) -> int:
    """Write the digits of a number from 0 to 999; returns the end position."""
    if number > 99:
        out[at] = 48 + number // 100
        at += 1
    if number > 9:
        out[at] = 48 + number // 10 % 10
        at += 1
    out[at] = 48 + number % 10
    return at + 1


@compiled()
def network_identity(address: int, bits: int, key_low: int, key_high: int, buffer: U8) -> int:
    """Returns the identity of the text of an IPv4 address's network, such as 198.51.100.0/24."""
    network = address >> (32 - bits) << (32 - bits)
    at = 0
    for shift in range(24, -8, -8):
        at = _write_number(buffer, at, network >> shift & 255)
        buffer[at] = 46 if shift else 47
        at += 1
    at = _write_number(buffer, at, bits)
    return identity_of_text(buffer, 0, at, key_low, key_high)


@compiled()
def sign_of_email(data: U8, at: int, end: int) -> int:
    """Returns where the @ of an e-mail address stands; -1 for a text that is none."""
    sign = -1
    for place in range(at, end):
        byte = int(data[place])
        if byte == 64:
            if sign >= 0:
                return -1
            sign = place
        elif sign < 0:
            if not 33 <= byte < 127:
                return -1
        elif not (97 <= (byte | 32) < 123 or 48 <= byte < 58 or byte in (45, 46)):
            return -1
    is_right = sign > at and sign - at <= _LOCAL_BYTES_MAX and 0 < end - sign - 1 <= _DOMAIN_BYTES_MAX
    return sign if is_right else -1


@compiled()
def identity_in_small_letters(data: U8, at: int, end: int, key_low: int, key_high: int, buffer: U8) -> int:
    """Returns the identity of an ASCII text of at most BUFFER_BYTES bytes, in small letters."""
    for place in range(at, end):
        byte = data[place]
        buffer[place - at] = byte | 32 if 65 <= byte < 91 else byte
    return identity_of_text(buffer, 0, end - at, key_low, key_high)


def new_buffer() -> U8:
    """Returns the buffer that the functions above write to."""
    return np.empty(BUFFER_BYTES, dtype=np.uint8)
