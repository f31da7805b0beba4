"""Damage is never passed over in silence, and every whole record behind it is found."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.scoring.state.outbox import OutboxDamaged, OutboxReader, OutboxSettings
from tests.unit.scoring.state.outboxes import fill, flip, numbered, read_all, segments


@pytest.mark.parametrize("offset", [0, 3, 4, 8, 12], ids=["size", "size-high", "crc", "payload", "payload-end"])
def test_damage_with_records_behind_it_is_not_passed_over(tmp_path: Path, offset: int) -> None:
    where = OutboxSettings(str(tmp_path))
    positions = fill(where, numbered(100))
    flip(segments(where)[0], positions[4] + offset)
    reader = OutboxReader(where, "w0")
    found = reader.read(0, 1000)
    assert [payload for _, payload in found] == numbered(5)
    with pytest.raises(OutboxDamaged, match=f"damaged at position {positions[4]}"):
        reader.read(positions[4], 1000)


def test_behind_damage_reading_goes_on_at_the_next_whole_record(tmp_path: Path) -> None:
    where = OutboxSettings(str(tmp_path))
    positions = fill(where, numbered(100))
    reader = OutboxReader(where, "w0")
    assert reader.after_damage(positions[-1]) is None
    flip(segments(where)[0], positions[4] + 9)
    assert reader.after_damage(positions[4]) == positions[5]
    assert reader.raw(positions[4], positions[5]) == segments(where)[0].read_bytes()[positions[4] : positions[5]]
    # The last record: nothing follows until the writer appends again.
    flip(segments(where)[0], positions[98] + 9)
    assert reader.after_damage(positions[98]) is None
    fill(where, [b"later"])
    assert reader.after_damage(positions[98]) == positions[99]
    assert read_all(where, positions[99]) == [b"later"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_bytes_are_damaged_every_whole_record_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = OutboxSettings(directory, segment_bytes=data.draw(st.sampled_from([150, 1 << 20])))
        records = [b"%04d " % number + data.draw(st.binary(max_size=30)) for number in range(12)]
        positions = [0, *fill(where, records)]
        damaged: set[int] = set()
        for _ in range(data.draw(st.integers(1, 4))):
            record = data.draw(st.integers(0, len(records) - 1))
            place = data.draw(st.integers(positions[record], positions[record + 1] - 1))
            path = max(path for path in segments(where) if int(path.stem) <= place)
            content = bytearray(path.read_bytes())
            content[place - int(path.stem)] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
            damaged.add(record)
        # A new segment, so that damage at the end has something behind it.
        fill(where, [b"the last"])
        reader, position, found = OutboxReader(where, "w0"), 0, list[bytes]()
        for _ in range(100):
            try:
                read = reader.read(position, 3)
            except OutboxDamaged:
                following = reader.after_damage(position)
                assert following is not None
                assert following > position
                position = following
                continue
            if not read:
                break
            found += [payload for _, payload in read]
            position = read[-1][0]
        whole = [record for number, record in enumerate(records) if number not in damaged]
        assert [record for record in found if record in whole] == whole
        assert found[-1] == b"the last"
        assert set(found) <= {*records, b"the last"}


def test_a_record_far_behind_damage_is_found_in_bounded_memory(tmp_path: Path) -> None:
    """The search goes in windows of 1 MiB, and a record may lie across two of them."""
    where = OutboxSettings(str(tmp_path))
    positions = fill(where, [b"a", bytes(200_000), *(b"\x01" * 250_000 for _ in range(9)), b"z" * 100])
    path = segments(where)[0]
    content = bytearray(path.read_bytes())
    for position in positions[:-2]:
        content[position + 7] ^= 1
    path.write_bytes(content)
    assert OutboxReader(where, "w0").after_damage(positions[0]) == positions[-2]


def test_a_finished_segment_that_ends_early_is_damage(small: OutboxSettings) -> None:
    fill(small, numbered(20))
    path = segments(small)[1]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OutboxDamaged, match="is damaged at position"):
        read_all(small)


def test_a_missing_segment_is_damage(small: OutboxSettings) -> None:
    fill(small, numbered(20))
    segments(small)[2].unlink()
    with pytest.raises(OutboxDamaged, match="lacks positions"):
        read_all(small)
    segments(small)[0].unlink()
    with pytest.raises(OutboxDamaged, match="begins at"):
        read_all(small)


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_a_writer_never_cuts_off_records_behind_damage(
    tmp_path: Path, offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    where = OutboxSettings(str(tmp_path))
    positions = fill(where, numbered(10))
    flip(segments(where)[0], positions[7] + offset)
    before = segments(where)[0].read_bytes()
    fill(where, [b"later"])
    assert segments(where)[0].read_bytes() == before
    assert "is damaged" in caplog.text
    assert read_all(where, positions[-1]) == [b"later"]


def test_zeros_at_the_end_from_a_loss_of_power_are_no_record(small: OutboxSettings) -> None:
    fill(small, [b"whole"])
    with segments(small)[0].open("ab") as file:
        file.write(bytes(64))
    assert read_all(small) == [b"whole"]
    fill(small, [b"next"])
    assert read_all(small) == [b"whole", b"next"]


@pytest.mark.parametrize("tail", [b"", bytes(100), b"\x20\0\0\0\1\1\1\1half a reco"])
def test_a_reader_that_holds_a_record_finds_all_later_ones_when_its_bytes_are_damaged(
    tmp_path: Path, tail: bytes
) -> None:
    """It has read the record and not stored its cursor when the bytes on disk change and the writer starts again."""
    where = OutboxSettings(str(tmp_path))
    position = fill(where, [b"held by the reader"])[0]
    path = segments(where)[0]
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content + tail)
    fill(where, [b"a", b"longer than the damaged one"])
    reader, found = OutboxReader(where, "w0"), list[bytes]()
    try:
        found += [payload for _, payload in reader.read(position, 10)]
    except OutboxDamaged:
        following = reader.after_damage(position)
        assert following is not None
        found += [payload for _, payload in reader.read(following, 10)]
    assert found == [b"a", b"longer than the damaged one"]
