"""Helpers for tests of an outbox: fill it, read it, damage its files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter, framed


def starts(outbox: OutboxWriter, payloads: Sequence[bytes]) -> list[int]:
    """Returns where each of `payloads` will begin if they are appended next."""
    return list(itertools.accumulate((len(framed(each)) for each in payloads[:-1]), initial=outbox.position))


def append_all(outbox: OutboxWriter, payloads: Sequence[bytes]) -> int:
    """Append all in one write. Returns the position after them."""
    return outbox.append_frames(b"".join(map(framed, payloads)))


def fill(where: OutboxSettings, records: list[bytes]) -> list[int]:
    """Append with a new writer. Returns the positions after each record."""
    writer = OutboxWriter(where, "w0")
    positions = [writer.append(record) for record in records]
    writer.close()
    return positions


def read_all(where: OutboxSettings, position: int = 0, at_once: int = 3) -> list[bytes]:
    reader = OutboxReader(where, "w0")
    found: list[bytes] = []
    while records := reader.read(position, at_once):
        assert len(records) <= at_once
        found += [payload for _, payload in records]
        position = records[-1][0]
    return found


def segments(where: OutboxSettings) -> list[Path]:
    return sorted((Path(where.directory) / "w0").glob("*.log"))


def numbered(count: int) -> list[bytes]:
    return [b"record %04d" % index for index in range(count)]


APPENDING = """
import os, sys
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
writer = OutboxWriter(OutboxSettings(sys.argv[1], 4096, 1 << 30, sys.argv[2], 1), "w0")
number = int(sys.argv[3])
while True:
    writer.append(b"%d " % number + b"x" * (number % 300))
    os.write(1, b"%d\\n" % number)
    number += 1
"""
"""A program that appends, and prints each number once its record has left it: FOLDER FSYNC FIRST_NUMBER."""


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def append_until_refused(writer: OutboxWriter, accepted: list[bytes]) -> None:
    while True:
        record = b"record %04d" % len(accepted)
        writer.append(record)
        accepted.append(record)


def failing(*_: object) -> int:
    raise OSError(5, "Input/output error")
