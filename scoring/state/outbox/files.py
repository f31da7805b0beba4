"""The form of an outbox on disk: records, and the segments that hold them. The package's docstring explains them."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

RECORD = struct.Struct("<II")
"""The head of a record: its payload's size and CRC-32."""
# A decision has about 500 bytes. A larger size than this is damage, and not a record that is still being written.
PAYLOAD_BYTES_MAX = 256 * 1024
# Bytes per read. At least one record of the largest size must fit.
_READ_BYTES = 1024 * 1024
_SUFFIX = ".log"
_SEGMENT = re.compile(r"[0-9]{20}\.log")


def framed(payload: bytes) -> bytes:
    # Size 0 is excluded because a hole in a file reads as zeros, which would be an empty record.
    assert 0 < len(payload) <= PAYLOAD_BYTES_MAX, "payload size"
    return RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def segment_path(directory: Path, base: int) -> Path:
    return directory / f"{base:020d}{_SUFFIX}"


def segments_in(directory: Path) -> list[int]:
    """Returns the positions at which the segments begin, ascending."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(_SUFFIX)) for name in names if _SEGMENT.fullmatch(name))


def read_at(path: Path, offset: int, size_max: int = _READ_BYTES) -> bytes:
    """Returns at most `size_max` bytes from `offset` on."""
    # Opening a named pipe waits for a writer, unless it is opened without blocking.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(fd, size_max, offset)
    finally:
        os.close(fd)


def parse(data: bytes, max_records: int) -> tuple[list[tuple[int, bytes]], int, bool]:
    """Returns records with the offset after each, the offset reached, and whether no record begins there."""
    records: list[tuple[int, bytes]] = []
    offset = 0
    while len(records) < max_records and offset < len(data):
        payload = record_at(data, offset)
        if payload is None:
            return records, offset, True
        offset += RECORD.size + len(payload)
        records.append((offset, payload))
    return records, offset, False


def records_in(data: bytes) -> tuple[list[bytes], int]:
    """Returns the payloads of the records at the beginning of `data`, and the offset up to which there are any."""
    records, end, _ = parse(data, max_records=len(data))
    return [payload for _, payload in records], end


def find_record(path: Path, start: int) -> int | None:
    """Returns the offset of the first whole record that begins at `start` or later, or None."""
    size = path.stat().st_size
    for begin in range(start, size, _READ_BYTES):
        data = read_at(path, begin, _READ_BYTES + RECORD.size + PAYLOAD_BYTES_MAX)
        # Few offsets have a size that fits, and only their checksums are computed.
        view = np.frombuffer(data, dtype=np.uint8).astype(np.int32)
        sizes = view[:-3] | view[1:-2] << 8 | view[2:-1] << 16 | view[3:] << 24
        fits = (sizes > 0) & (sizes <= PAYLOAD_BYTES_MAX) & (np.arange(len(sizes)) + sizes + RECORD.size <= len(data))
        for offset in np.flatnonzero(fits[:_READ_BYTES]).tolist():
            if record_at(data, offset) is not None:
                return begin + offset
    return None


def record_at(data: bytes, offset: int) -> bytes | None:
    start = offset + RECORD.size
    if start > len(data):
        return None
    size, checksum = RECORD.unpack_from(data, offset)
    if not 0 < size <= PAYLOAD_BYTES_MAX or start + size > len(data):
        return None
    payload = data[start : start + size]
    return payload if zlib.crc32(payload) == checksum else None


def is_damaged(rest: bytes) -> bool:
    """Whether `rest`, which begins with no whole record, is damage and not the part of a record being written."""
    if len(rest) < RECORD.size:
        return False
    (size, _) = RECORD.unpack_from(rest)
    if not any(rest):
        return False  # the file grew, but its bytes were not written: the machine lost power
    return not 0 < size <= PAYLOAD_BYTES_MAX or RECORD.size + size < len(rest)
