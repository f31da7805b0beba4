"""Reads texts of declared fields in compiled code: addresses with their networks, and e-mail addresses.

    198.51.100.7        the number 0xC6336407; its network of 24 bits is 198.51.100.0/24
    2001:DB8::7         eight groups of 16 bits; its network of 48 bits is 2001:db8::/48
    Ann@Example.com     the @ stands at 3; in small letters it is ann@example.com

The results equal those of schemas/payment_fields.py. Only that module reads IPv6 addresses that hold an IPv4 address.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import store_word
from paywarden.features.kernel.toolkit.siphash import identity_of_text

# The most bytes that a function of this module writes to a buffer.
BUFFER_BYTES = 256
_LOCAL_BYTES_MAX, _DOMAIN_BYTES_MAX = 64, 190
assert BUFFER_BYTES > _LOCAL_BYTES_MAX + _DOMAIN_BYTES_MAX
# Results of `ipv6_address` for a text that is no address, and for one that the slow way has to read.
NO_ADDRESS, UNUSUAL_ADDRESS = 0, -1
# The last bytes of a buffer hold the eight groups of an IPv6 address, the larger byte first.
_GROUPS, _GROUP_DIGITS_MAX = 8, 4
_GROUPS_AT = BUFFER_BYTES - 2 * _GROUPS
# The value of a byte that is a hex digit; 16 for another byte.
_HEX = np.array([int(chr(byte), 16) if chr(byte) in "0123456789abcdefABCDEF" else 16 for byte in range(256)], np.uint8)


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


@inlined
def _group(buffer: U8, number: int) -> int:
    at = _GROUPS_AT + 2 * number
    # int() of a byte is unsigned in compiled code, and mixes with signed numbers to a double.
    return int(np.int64(buffer[at]) << 8 | np.int64(buffer[at + 1]))


@inlined
def _set_group(buffer: U8, number: int, value: int) -> None:
    at = _GROUPS_AT + 2 * number
    buffer[at] = value >> 8
    buffer[at + 1] = value & 255


@compiled()
def ipv6_address(data: U8, at: int, end: int, buffer: U8) -> int:
    """Read an IPv6 address of hex groups into the buffer. Returns 1, NO_ADDRESS or UNUSUAL_ADDRESS.

    Unusual is an address that ends, or is written, with an IPv4 address: ::ffff:192.0.2.7.
    """
    count, gap, place = 0, -1, at
    if end - at >= 2 and data[at] == 58 and data[at + 1] == 58:
        gap, place = 0, at + 2
    while place < end:
        number, start, stop = 0, place, min(end, place + _GROUP_DIGITS_MAX)
        while place < stop:
            digit = int(np.int64(_HEX[data[place]]))
            if digit > 15:
                break
            number, place = number << 4 | digit, place + 1
        if place == start or (place < end and data[place] != 58):
            has_dot = place < end and data[place] == 46
            return UNUSUAL_ADDRESS if has_dot and (count > 0 or gap >= 0) else NO_ADDRESS
        if count == _GROUPS:
            return NO_ADDRESS
        _set_group(buffer, count, number)
        count += 1
        if place == end:
            break
        place += 1
        if place == end:
            return NO_ADDRESS
        if data[place] == 58:
            if gap >= 0:
                return NO_ADDRESS
            gap, place = count, place + 1
    if gap >= 0 and count < _GROUPS:
        # The gap stands for the groups of zeros that are missing. The groups behind it move to the end.
        missing = _GROUPS - count
        for group in range(count - 1, gap - 1, -1):
            _set_group(buffer, group + missing, _group(buffer, group))
        for group in range(gap, gap + missing):
            _set_group(buffer, group, 0)
    elif gap >= 0 or count < _GROUPS:
        return NO_ADDRESS
    for group in range(5):
        if _group(buffer, group) != 0:
            return 1
    return UNUSUAL_ADDRESS if _group(buffer, 5) == 0xFFFF else 1


@inlined
def _write_hex(out: U8, at: int, number: int) -> int:
    """Write the hex digits of a number below 2**16, without leading zeros; returns the end position.

    All at once, one in each byte of a word. It overwrites the eight bytes from `at`.
    """
    word = np.int64(number >> 12 | (number & 0xF00) | (number & 0xF0) << 12 | (number & 15) << 24)
    # A digit above 9 plus 6 is above 15: a letter, 39 places behind the character after 9.
    letters = (word + 0x06060606) >> 4 & 0x01010101
    word += 0x30303030 + 39 * letters
    digits = 1 + (number > 0xF) + (number > 0xFF) + (number > 0xFFF)
    store_word(out, at, word >> 8 * (4 - digits))
    return at + digits


@compiled()
def ipv6_network_identity(bits: int, key_low: int, key_high: int, buffer: U8) -> int:
    """Returns the identity of the text of the network of the address in the buffer, such as 2001:db8::/48."""
    longest_at, longest, zeros = -1, 1, 0
    for group in range(_GROUPS):
        kept = min(max(bits - 16 * group, 0), 16)
        value = _group(buffer, group) >> (16 - kept) << (16 - kept)
        _set_group(buffer, group, value)
        zeros = zeros + 1 if value == 0 else 0
        if zeros > longest:
            longest_at, longest = group + 1 - zeros, zeros
    at, group = 0, 0
    while group < _GROUPS:
        if group == longest_at:
            # Two colons stand for the longest row of zeros. The first is that behind the group before.
            if group == 0:
                buffer[at] = 58
                at += 1
            buffer[at] = 58
            group += longest
        else:
            at = _write_hex(buffer, at, _group(buffer, group))
            buffer[at] = 58
            group += 1
        at += 1
    # Behind the last group stands no colon, but for two at the end.
    if longest_at < 0 or longest_at + longest < _GROUPS:
        at -= 1
    buffer[at] = 47
    at = _write_number(buffer, at + 1, bits)
    return identity_of_text(buffer, 0, at, key_low, key_high)


@compiled()
def sign_of_email(data: U8, at: int, end: int) -> int:
    """Returns where the @ of an e-mail address stands; -1 for a text that is no address."""
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
