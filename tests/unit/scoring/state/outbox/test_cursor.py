"""The cursor: how far the companion has shipped, after any fault."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.scoring.state.outbox import Cursor, OutboxReader, OutboxSettings, OutboxUnavailable, OutboxWriter
from tests.unit.scoring.state.outboxes import failing, fill, numbered


def test_the_cursor_is_what_was_stored_last(small: OutboxSettings) -> None:
    fill(small, [b"a"])
    cursor = Cursor(small, "w0")
    assert cursor.load() is None
    for position in (9, 2**40):
        cursor.store(position)
        assert Cursor(small, "w0").load() == position
    assert OutboxReader(small, "w0").start(cursor) == 2**40


def test_a_crash_while_the_cursor_is_stored_leaves_the_earlier_one(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(small, [b"a"])
    cursor = Cursor(small, "w0")
    cursor.store(1)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutboxUnavailable):
        cursor.store(2)
    assert cursor.load() == 1


@pytest.mark.parametrize(
    "content", [b"", b"-1", b"12 13", b"\xff\xfe", "٣".encode(), b"9" * 30, b"12,00000000", b"12,", b"12,1"]
)
def test_a_cursor_that_holds_no_position_is_told_once_and_mended_by_the_next(
    small: OutboxSettings, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    positions = fill(small, numbered(3))
    (Path(small.directory) / "w0" / "cursor").write_bytes(content)
    cursor = Cursor(small, "w0")
    assert (cursor.load(), cursor.load()) == (None, None)
    assert caplog.text.count("holds no position") == 1
    # The writer starts and counts everything as not shipped.
    assert fill(small, [b"more"]) == [positions[-1] + 12]
    cursor.store(positions[0])
    assert cursor.load() == positions[0]


def test_no_flipped_bit_makes_a_cursor_another_position(small: OutboxSettings) -> None:
    fill(small, [b"a"])
    path, cursor = Path(small.directory) / "w0" / "cursor", Cursor(small, "w0")
    cursor.store(4_981)
    content = path.read_bytes()
    for place, bit in itertools.product(range(len(content)), range(8)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        # Position and checksum may still be whole: the end of the line is not part of them.
        assert cursor.load() in (None, 4_981), f"bit {bit} of byte {place}"


def test_without_a_cursor_reading_starts_at_the_oldest_segment(small: OutboxSettings) -> None:
    positions = fill(small, numbered(20))
    reader = OutboxReader(small, "w0")
    reader.release(positions[9])
    assert 0 < reader.start(Cursor(small, "w0")) <= positions[9]


@given(st.lists(st.sampled_from(["append", "read", "release", "restart"]), max_size=40))
@settings(max_examples=60)
def test_in_any_order_of_events_every_record_is_shipped_once_and_in_order(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = OutboxSettings(directory, segment_bytes=60, total_bytes_max=100_000)
        writer, reader, cursor = OutboxWriter(where, "w0"), OutboxReader(where, "w0"), Cursor(where, "w0")
        appended: list[bytes] = []
        shipped: list[bytes] = []
        for event in [*events, "read", "read"]:
            if event == "append":
                appended.append(b"%d" % len(appended))
                writer.append(appended[-1])
            elif event == "restart":
                writer.close()
                writer = OutboxWriter(where, "w0")
            elif event == "release":
                reader.release(cursor.load() or 0)
            else:
                shipped += list(ship(reader, cursor))
        writer.close()
        assert shipped == appended


def ship(reader: OutboxReader, cursor: Cursor) -> Iterator[bytes]:
    for position, payload in reader.read(reader.start(cursor), 100):
        yield payload
        cursor.store(position)
