"""The compiled half of scoring/state/outbox/outbox_reader.py: finds the whole records among bytes of a segment."""

from __future__ import annotations

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.crc import crc32_of_record
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.features.kernel.toolkit.machine_words import load_word

# The size of a record's head (files.RECORD): its payload's size and CRC-32.
HEAD_BYTES = 8


@compiled()
def fill_ends(data: U8, ends: I64, payload_bytes_max: int) -> int:
    """Fill `ends` with the offset after each whole record, from the beginning of `data` on. Returns how many there are.

    It stops at the first offset where no whole record begins, and when `ends` is full.
    """
    at, count = 0, 0
    while count < len(ends) and at + HEAD_BYTES <= len(data):
        head = load_word(data, at)
        begin, size, checksum = at + HEAD_BYTES, head & 0xFFFFFFFF, head >> 32 & 0xFFFFFFFF
        if not 0 < size <= payload_bytes_max or begin + size > len(data):
            break
        if crc32_of_record(data, begin, begin + size) != checksum:
            break
        at = begin + size
        ends[count] = at
        count += 1
    return count
