import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.idempotency.claim_table import WORKERS_MAX
from paywarden.scoring.idempotency.decision_cache import worker_name
from paywarden.scoring.metrics.shared import Registry
from paywarden.scoring.state import disk_room, outbox
from paywarden.scoring.state.outbox import (
    Cursor,
    OutboxDamaged,
    OutboxFull,
    OutboxMetrics,
    OutboxReader,
    OutboxSettings,
    OutboxUnavailable,
    OutboxUnsynced,
    OutboxWriter,
    framed,
)
from tests.patience import PATIENCE_S
from tests.services.product.processes import PaywardenProcess
from tests.unit.scoring.state.outboxes import append_all, starts

payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=20)


@pytest.fixture
def small(tmp_path: Path) -> OutboxSettings:
    """Settings that give segments of two or three records."""
    return OutboxSettings(directory=str(tmp_path), segment_bytes=100, total_bytes_max=10_000)


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


@given(payloads, st.integers(16, 200), st.integers(1, 7))
def test_appended_records_are_read_back_in_order(records: list[bytes], segment_bytes: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = OutboxSettings(directory, segment_bytes, total_bytes_max=100_000)
        positions = fill(where, records)
        assert read_all(where, at_once=at_once) == records
        for index, position in enumerate(positions):
            assert read_all(where, position) == records[index + 1 :]


@given(payloads.filter(len), st.data())
def test_after_a_cut_at_any_byte_exactly_the_whole_records_are_there(records: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = OutboxSettings(directory)
        positions = fill(where, records)
        cut = data.draw(st.integers(0, positions[-1]))
        os.truncate(segments(where)[0], cut)
        whole = [r for r, end in zip(records, positions, strict=True) if end <= cut]
        assert read_all(where) == whole
        # The next writer leaves the part of a record, and uses no position twice.
        assert fill(where, [b"after"]) == [cut + 8 + len(b"after")]
        assert read_all(where, cut) == [b"after"]
        reader = OutboxReader(where, "w0")
        assert [payload for _, payload in reader.read(0, len(whole))] == whole
        if cut not in (0, *positions):
            assert reader.after_damage(([0, *positions])[len(whole)]) == cut


def test_a_reader_waits_at_half_a_record_and_has_it_when_it_is_whole(small: OutboxSettings) -> None:
    end = fill(small, [b"first", b"second"])[0]
    path = segments(small)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    reader = OutboxReader(small, "w0")
    assert reader.read(end, 10) == []
    path.write_bytes(content)
    assert [payload for _, payload in reader.read(end, 10)] == [b"second"]


def test_a_reader_of_an_outbox_that_does_not_exist_yet_waits(small: OutboxSettings) -> None:
    assert OutboxReader(small, "w0").read(0, 10) == []
    fill(small, [b"a"])
    assert read_all(small) == [b"a"]


def test_only_folders_with_the_name_of_a_worker_are_outboxes(tmp_path: Path) -> None:
    where = OutboxSettings(str(tmp_path / "outbox"))
    assert (outbox.workers(where), outbox.strangers(where)) == ([], [])
    for name in (
        "worker-0",
        "worker-255",
        "retried",
        "worker-0.bak",
        "worker-01",
        "worker-",
        "lost+found",
        ".snapshot",
    ):
        (tmp_path / "outbox" / name).mkdir(parents=True)
    (tmp_path / "outbox" / "worker-7").write_text("a file")
    assert outbox.workers(where) == ["retried", "worker-0", "worker-255"]
    assert outbox.strangers(where) == [".snapshot", "lost+found", "worker-", "worker-0.bak", "worker-01"]
    assert all(outbox.is_outbox(worker_name(number)) for number in range(WORKERS_MAX))


def test_files_beside_the_segments_are_none(small: OutboxSettings) -> None:
    fill(small, numbered(5))
    for name in ("notes.log", "1.log", "00000000000000000000.log.gz", "0000000000000000000x.log"):
        (Path(small.directory) / "w0" / name).write_bytes(b"something else")
    assert read_all(small) == numbered(5)
    fill(small, [b"more"])
    assert read_all(small) == [*numbered(5), b"more"]


def test_records_appended_together_are_records_of_their_own(small: OutboxSettings) -> None:
    writer = OutboxWriter(small, "w0")
    assert append_all(writer, [b"a", b"bb"]) == writer.position == 19
    writer.close()
    assert read_all(small) == [b"a", b"bb"]


def test_one_append_is_one_write(small: OutboxSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = OutboxWriter(small, "w0")
    written: list[bytes] = []
    write = os.write

    def counting(fd: int, data: bytes) -> int:
        written.append(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", counting)
    writer.append(b"payload")
    assert len(written) == 1
    writer.close()


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


def killed_while_appending(folder: Path, where: OutboxSettings, fsync: str, first: int, count: int) -> int:
    """Run a writer that reports each append, and kill it after `count` reports. Returns the last number reported."""
    running = PaywardenProcess.of_program(folder, APPENDING, where.directory, fsync, str(first))
    for _ in range(count):
        running.first_line()
    assert running.process.stdout is not None
    os.kill(running.pid, signal.SIGKILL)
    rest = running.process.stdout.read().split("\n")
    running.kill()
    # The bytes after the last newline are a report that was cut short.
    reported = [int(line) for line in rest[:-1]]
    return max([first + count - 1, *reported])


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_every_append_that_was_reported_before_a_kill_is_read_afterwards(tmp_path: Path, fsync: str) -> None:
    where = OutboxSettings(str(tmp_path / "outbox"), 4096, 1 << 30)
    first = 0
    for round_number in range(3):
        last = killed_while_appending(tmp_path, where, fsync, first, 200 + 37 * round_number)
        read = [int(payload.split()[0]) for payload in read_all(where, at_once=100)]
        # At most one record more than reported: the kill may fall between an append and its report.
        assert read[: last + 1] == list(range(last + 1))
        assert len(read) in (last + 1, last + 2)
        first = len(read)


def test_a_reader_follows_a_writer_of_another_process_through_its_segments(tmp_path: Path) -> None:
    where = OutboxSettings(str(tmp_path / "outbox"), 4096, 1 << 30)
    reader = OutboxReader(where, "w0")
    position, expected = 0, 0
    # The writer reports each append into a pipe, which holds some ten thousand reports: a reader that gets no
    # processor keeps the writer waiting, and has a few hundred segments to list at most.
    running = PaywardenProcess.of_program(tmp_path, APPENDING, where.directory, "never", "0")
    while expected < 5000:
        for following, payload in reader.read(position, 50):
            assert int(payload.split()[0]) == expected
            position, expected = following, expected + 1
            if expected > 1:
                # The newest record may be written and not reported yet.
                assert int(running.first_line()) == expected - 2
        reader.release(position)
        assert running.process.poll() is None
    running.kill()
    while records := reader.read(position, 1000):
        position = records[-1][0]
    reader.release(position)
    assert len(segments(where)) == 1


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


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


def test_a_writer_never_reuses_positions_that_were_shipped(small: OutboxSettings) -> None:
    positions = fill(small, [b"one", b"two"])
    Cursor(small, "w0").store(positions[1])
    # As after a loss of power: the companion has shipped records that the log has lost.
    os.truncate(segments(small)[0], positions[0])
    fill(small, [b"three"])
    assert read_all(small, positions[1]) == [b"three"]


def append_until_refused(writer: OutboxWriter, accepted: list[bytes]) -> None:
    while True:
        record = b"record %04d" % len(accepted)
        writer.append(record)
        accepted.append(record)


def test_an_outbox_that_is_full_refuses_and_takes_again_after_release(tmp_path: Path) -> None:
    where = OutboxSettings(str(tmp_path), segment_bytes=100, total_bytes_max=300)
    writer = OutboxWriter(where, "w0")
    accepted: list[bytes] = []
    assert writer.trouble() == ""
    with pytest.raises(OutboxFull, match="the limit is 300"):
        append_until_refused(writer, accepted)
    assert "the limit is 300" in writer.trouble()
    assert read_all(where) == accepted
    reader = OutboxReader(where, "w0")
    reader.release(writer.position)
    writer.note_unshipped()
    assert writer.trouble() == ""
    writer.append(b"again")
    writer.close()
    assert accepted[0] not in read_all(where, reader.start(Cursor(where, "w0")))
    assert read_all(where, reader.start(Cursor(where, "w0")))[-1] == b"again"


def test_release_keeps_what_is_not_shipped_whole_and_the_active_segment(small: OutboxSettings) -> None:
    positions = fill(small, numbered(20))
    reader = OutboxReader(small, "w0")
    reader.release(positions[9])
    assert read_all(small, positions[9]) == numbered(20)[10:]
    reader.release(positions[-1])
    assert len(segments(small)) == 1
    fill(small, [b"more"])
    assert read_all(small, positions[-1]) == [b"more"]


def test_the_end_of_an_outbox_is_where_its_writer_is(small: OutboxSettings) -> None:
    reader = OutboxReader(small, "w0")
    assert reader.end() == 0
    positions = fill(small, numbered(10))
    assert reader.end() == positions[-1]
    reader.release(positions[-1])
    assert reader.end() == positions[-1]


def test_a_reader_sees_whether_there_is_more_without_a_list(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the next segments come within the same step of the folder's time as the last look."""
    reader, folder = OutboxReader(small, "w0"), Path(small.directory) / "w0"
    assert not reader.has_after(0)
    writer, position = OutboxWriter(small, "w0"), 0
    step_s = folder.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: step_s + 0.5)
    for number in range(20):
        assert not reader.has_after(position)
        end = writer.append(b"%020d" % number)
        os.utime(folder, (step_s, step_s))
        assert reader.has_after(position)
        position = end
    writer.close()
    assert len(list(folder.glob("*.log"))) > 5
    os.utime(folder, (1, 1))
    assert not reader.has_after(position)
    monkeypatch.setattr(outbox.reader, "segments_in", lambda _: pytest.fail("the folder has not changed"))
    assert not reader.has_after(position)
    assert reader.has_after(position - 1)


def test_two_writers_on_one_directory_are_refused(small: OutboxSettings) -> None:
    writer = OutboxWriter(small, "w0")
    with pytest.raises(Misconfigured, match="has another writer"):
        OutboxWriter(small, "w0")
    OutboxWriter(small, "w1").close()
    writer.close()
    OutboxWriter(small, "w0").close()


def test_a_write_cut_short_by_a_full_disk_is_taken_back(small: OutboxSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = OutboxWriter(small, "w0")
    writer.append(b"before")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OutboxUnavailable, match="no space left"):
        writer.append(b"half")
    monkeypatch.setattr(os, "write", write)
    writer.append(b"after")
    writer.close()
    assert read_all(small) == [b"before", b"after"]


@pytest.mark.parametrize("is_room_for_one", [False, True])
def test_a_disk_without_room_refuses_a_batch_before_any_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_room_for_one: bool
) -> None:
    where = OutboxSettings(str(tmp_path))
    writer = OutboxWriter(where, "w0")
    (segment,) = tmp_path.glob("w0/*.log")

    def almost_full(descriptor: int, start: int, size: int) -> bool:
        if size > 100 * is_room_for_one:
            raise OSError(errno.ENOSPC, "No space left on device")
        return disk_room.reserve(descriptor, start, size)

    monkeypatch.setattr(outbox.writer, "reserve", almost_full)
    batch = b"".join(map(framed, [bytes(90), bytes(90)]))
    for _ in range(2):
        with pytest.raises(OutboxUnavailable, match="cannot append: No space left"):
            writer.append_frames(batch)
        assert segment.stat().st_size == 0
        assert writer.trouble()
    if is_room_for_one:
        writer.append(b"small")
    else:
        with pytest.raises(OutboxUnavailable):
            writer.look()
    monkeypatch.setattr(outbox.writer, "reserve", disk_room.reserve)
    writer.append_frames(batch)
    writer.close()
    assert read_all(where) == [b"small"] * is_room_for_one + [bytes(90)] * 2


def test_a_busy_writer_reserves_ever_more_at_once_and_writes_only_where_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OutboxWriter(OutboxSettings(str(tmp_path)), "w0")
    monkeypatch.setattr(outbox.writer, "_AHEAD_BYTES", 100_000)
    monkeypatch.setattr(outbox.writer, "_AHEAD_BYTES_MAX", 1_600_000)
    writer.look()  # a look that finds nothing new begins anew
    sizes: list[int] = []
    reserved = 0

    def reserve(_: int, start: int, size: int) -> bool:
        nonlocal reserved
        sizes.append(size)
        reserved = start + size
        return True

    monkeypatch.setattr(outbox.writer, "reserve", reserve)
    for number in range(1_000):
        end = writer.append(bytes(9_000))
        if number % 5 == 0:
            writer.look()
        assert not sizes or end <= reserved
    assert sizes[:5] == [100_000, 200_000, 400_000, 800_000, 1_600_000]
    assert set(sizes[4:]) == {1_600_000}
    assert len(sizes) < 16
    sizes.clear()
    writer.look(tries_disk=False)
    assert not sizes
    writer.look()
    assert sizes == [100_000]


def test_a_look_that_does_not_try_the_disk_writes_only_after_a_failure(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OutboxWriter(small, "w0")
    write, written = os.write, list[int]()

    def count_and_write(fd: int, data: bytes) -> int:
        written.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", count_and_write)
    writer.look(tries_disk=False)
    assert not written
    writer.look()
    assert written == [4096]
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OutboxUnavailable):
        writer.append(b"half")
    with pytest.raises(OutboxUnavailable):
        writer.look(tries_disk=False)
    monkeypatch.setattr(os, "write", write)
    writer.look(tries_disk=False)
    assert writer.trouble() == ""


def test_a_reader_that_has_passed_a_part_of_a_refused_write_finds_all_later_records(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its position must not be in the middle of a later record."""
    small = replace(small, segment_bytes=2_000)
    writer, reader = OutboxWriter(small, "w0"), OutboxReader(small, "w0")
    writer.append(b"before")
    batch = b"".join(map(framed, [b"first", b"second", b"third"]))
    write, ftruncate = os.write, os.ftruncate
    passed: list[tuple[int, bytes]] = []

    def cut_short(fd: int, data: bytes) -> int:
        return write(fd, data[: len(data) - 3])

    def read_and_truncate(fd: int, length: int) -> None:
        passed.extend(reader.read(0, 10) if not passed else [])
        ftruncate(fd, length)

    monkeypatch.setattr(os, "write", cut_short)
    monkeypatch.setattr(os, "ftruncate", read_and_truncate)
    with pytest.raises(OutboxUnavailable, match="no space left"):
        writer.append_frames(batch)
    assert [payload for _, payload in passed] == [b"before", b"first", b"second"]
    # While the disk stays full, no part of a write can be read any more.
    for _ in range(3):
        with pytest.raises(OutboxUnavailable, match="no space left"):
            writer.append_frames(batch)
    monkeypatch.setattr(os, "write", write)
    writer.append_frames(batch)
    writer.append(b"after")
    later = [b"first", b"second", b"third", b"after"]
    # A reader may stand behind each of the records that it has passed.
    for position in (0, *(position for position, _ in passed)):
        assert [payload for _, payload in reader.read(position, 10)][-4:] == later
    assert [payload for _, payload in reader.read(0, 10)] == [b"before", *later]
    writer.close()
    assert len(list(Path(small.directory, "w0").glob("*.log"))) == 2


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_records_before_a_refused_write_are_synced_again_after_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    """The zeros in the place of the refused records are no lost records."""
    where = OutboxSettings(str(tmp_path), fsync=fsync, fsync_interval_ms=3_600_000)
    writer = OutboxWriter(where, "w0")
    writer.append(b"before")
    write, fdatasync = os.write, os.fdatasync
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:-1]))
    with pytest.raises(OutboxUnavailable, match="no space left"):
        writer.append_frames(framed(b"first") + framed(b"second"))
    monkeypatch.setattr(os, "write", write)
    if fsync == "always":
        monkeypatch.setattr(os, "fdatasync", _failing)
        with pytest.raises(OutboxUnsynced):
            writer.append(b"after")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
    else:
        assert writer._syncer is not None
        writer._syncer.failure = "outbox: sync failed"
    writer.look()
    writer.append(b"last")
    writer.close()
    assert read_all(where) == [b"before", *([b"after"] if fsync == "always" else []), b"last"]


def _failing(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


FULL_DISK = """
import resource, sys
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxWriter, framed
writer = OutboxWriter(OutboxSettings(sys.argv[1], segment_bytes=1 << 20), "w0")
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
taken, refused = 0, 0
limit(10_000)
while refused < 3:
    # Batches of different sizes, so that some reach the limit within a record.
    batch = [b"%06d" % (taken + number) + bytes(90) for number in range(1 + refused * 7 + taken % 5)]
    try:
        writer.append_frames(b"".join(map(framed, batch)))
        taken += len(batch)
    except OutboxUnavailable as error:
        refused += 1
        assert writer.trouble() == str(error)
# The next segment would have room.
limit(1)
try:
    writer.look()
    sys.exit("not told")
except OutboxUnavailable as error:
    assert writer.trouble() == str(error)
limit(resource.RLIM_INFINITY)
writer.look()
assert writer.trouble() == ""
# Nothing is appended any more: the disk is full again, and room is made.
limit(1)
try:
    writer.look()
    sys.exit("not told")
except OutboxUnavailable:
    assert "cannot append" in writer.trouble()
limit(resource.RLIM_INFINITY)
writer.look()
assert writer.trouble() == ""
writer.append(b"%06d" % taken + bytes(90))
print(taken + 1)
"""


def test_a_full_disk_refuses_whole_batches_says_so_and_loses_no_record(tmp_path: Path) -> None:
    # A limit on a file's size cuts a write short as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    taken = int(done.stdout)
    found = read_all(OutboxSettings(str(tmp_path), segment_bytes=1 << 20), at_once=100)
    assert [int(record[:6]) for record in found] == list(range(taken))
    assert taken > 50


def test_unshipped_bytes_and_refused_appends_are_in_the_metrics(tmp_path: Path) -> None:
    metrics = OutboxMetrics.declare(Registry())
    where = OutboxSettings(str(tmp_path), segment_bytes=100, total_bytes_max=300)
    writer = OutboxWriter(where, "w0", metrics)
    accepted: list[bytes] = []
    with pytest.raises(OutboxFull):
        append_until_refused(writer, accepted)
    writer.note_unshipped()
    assert metrics.refused.value == 1
    assert metrics.unshipped_bytes._slots[0] == writer.position > 200
    Cursor(where, "w0").store(writer.position)
    writer.note_unshipped()
    assert metrics.unshipped_bytes._slots[0] == 0
    # The shipped records are still there, and do not count.
    writer.append(b"again")
    assert read_all(where) == [*accepted, b"again"]
    writer.close()


def test_at_reads_only_a_record_that_begins_at_the_position(small: OutboxSettings) -> None:
    small = replace(small, total_bytes_max=100_000)
    writer = OutboxWriter(small, "w0")
    records = [*numbered(9), b"x" * 10_000, b"last"]
    begins = []
    for record in records:
        begins.append(writer.position)
        writer.append(record)
    many = [b"a", b"bb", b"ccc"]
    begins += starts(writer, many)
    append_all(writer, many)
    reader = OutboxReader(small, "w0")
    assert [reader.at(start) for start in begins] == records + many
    assert [reader.at(position) for position in (begins[1] + 1, writer.position, 2**40)] == [None] * 3
    reader.release(writer.position)
    assert reader.at(0) is None
    writer.close()


def test_release_keeps_segments_that_were_written_to_of_late(small: OutboxSettings) -> None:
    positions = fill(small, numbered(20))
    old, *_ = segments(small)
    os.utime(old, (1, 1))
    OutboxReader(small, "w0").release(positions[-1], keep_s=60)
    assert not old.exists()
    assert len(segments(small)) > 2
    OutboxReader(small, "w0").release(positions[-1])
    assert len(segments(small)) == 1


def test_a_writer_whose_files_were_deleted_knows_it(small: OutboxSettings) -> None:
    writer = OutboxWriter(small, "w0")
    writer.append(b"one")
    assert not writer.is_deleted()
    shutil.rmtree(Path(small.directory) / "w0")
    assert writer.is_deleted()
    writer.close()


def failing(*_: object) -> int:
    raise OSError(5, "Input/output error")


def rewritten(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Returns a list that gets what is written again from now on, with its offsets."""
    written: list[tuple[bytes, int]] = []
    pwrite = os.pwrite

    def note(fd: int, data: bytes, offset: int) -> int:
        written.append((data, offset))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", note)
    return written


def test_a_record_whose_sync_failed_stays_and_is_synced_before_the_next(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The companion may have shipped it by then, so its position must not be used for another record."""
    writer = OutboxWriter(replace(small, fsync="always"), "w0")
    position = writer.append(b"before")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OutboxUnsynced, match="Input/output error"):
        writer.append(b"unsure")
    assert "sync failed" in writer.trouble()
    with pytest.raises(OutboxUnavailable, match="Input/output error"):
        writer.append(b"refused")
    monkeypatch.undo()
    # The kernel takes the page for clean, so a sync alone would do nothing: the record must be written again.
    written = rewritten(monkeypatch)
    writer.look()
    assert written == [(framed(b"unsure"), position)]
    assert writer.trouble() == ""
    writer.append(b"after")
    writer.close()
    assert read_all(small) == [b"before", b"unsure", b"after"]


def test_after_a_failed_sync_lost_records_are_never_taken_for_safe(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OutboxWriter(replace(small, fsync="always"), "w0")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OutboxUnsynced):
        writer.append(b"unsure")
    monkeypatch.undo()
    # The page was dropped and read again from the disk, which does not have the record.
    flip(segments(small)[0], 10)
    with pytest.raises(OutboxUnavailable, match="sync failed: records cannot be read back"):
        writer.look()
    with pytest.raises(OutboxUnavailable, match="sync failed"):
        writer.append(b"after")
    writer.close()


def test_nothing_follows_half_a_record_until_it_is_taken_back(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OutboxWriter(small, "w0")
    write = os.write
    monkeypatch.setattr(os, "ftruncate", failing)
    with monkeypatch.context() as cut_short:
        cut_short.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        with pytest.raises(OutboxUnavailable):
            writer.append(b"half")
    for refused in (lambda: writer.append(b"after"), writer.look):
        with pytest.raises(OutboxUnavailable, match="could not be taken back"):
            refused()
    assert "could not be taken back" in writer.trouble()
    assert read_all(small) == []
    monkeypatch.undo()
    writer.look()
    assert writer.trouble() == ""
    writer.append(b"after")
    writer.close()
    assert read_all(small) == [b"after"]


NO_DESCRIPTORS = """
import os, resource, sys
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxWriter
settings = OutboxSettings(sys.argv[1], 100, 1 << 20, fsync=sys.argv[2], fsync_interval_ms=100_000)
writer = OutboxWriter(settings, "w0")
taken = [b"a" * 60]
writer.append(taken[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(int(sys.argv[3])):
    os.close(held.pop())
# The second one would still fit into the old segment.
for record in (b"b" * 60, b"c"):
    try:
        writer.append(record)
        sys.exit("not refused")
    except OutboxUnavailable as error:
        assert "cannot begin a segment: Too many open files" in str(error), error
    assert "cannot begin a segment" in writer.trouble()
try:
    writer.look()
    sys.exit("not told")
except OutboxUnavailable:
    pass
for fd in held:
    os.close(fd)
if sys.argv[4] == "look":
    writer.look()
    assert writer.trouble() == ""
writer.append(b"d")
assert writer.trouble() == ""
writer.close()
"""


@pytest.mark.parametrize("healed_by", ["look", "append"])
@pytest.mark.parametrize(("fsync", "free"), [("never", 0), ("interval", 1), ("always", 1)])
def test_a_segment_that_cannot_be_begun_is_tried_again(tmp_path: Path, fsync: str, free: int, healed_by: str) -> None:
    """With one free descriptor the new segment is opened, and what follows fails: half-made, it must not be passed."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path), fsync, str(free), healed_by],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert read_all(OutboxSettings(str(tmp_path))) == [b"a" * 60, b"d"]
    assert len(segments(OutboxSettings(str(tmp_path)))) == 2


@pytest.mark.parametrize(("fsync", "synced"), [("never", False), ("always", True)])
def test_only_always_has_the_record_on_disk_when_append_returns(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch, fsync: str, *, synced: bool
) -> None:
    writer = OutboxWriter(replace(small, fsync=fsync), "w0")
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    writer.append(b"record")
    assert bool(calls) == synced
    monkeypatch.undo()
    writer.close()


def test_interval_syncs_in_the_background_and_after_a_failure_once_more(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = OutboxSettings(small.directory, 4096, 1 << 40, fsync="interval", fsync_interval_ms=1)
    writer = OutboxWriter(often, "w0")
    accepted = numbered(30)
    for record in accepted:
        writer.append(record)
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OutboxUnavailable, match="sync failed"):
        append_until_refused(writer, accepted)
    assert "sync failed" in writer.trouble()
    monkeypatch.undo()
    written = rewritten(monkeypatch)
    writer.look()
    assert framed(accepted[-1]) in b"".join(data for data, _ in written)
    assert writer.trouble() == ""
    writer.append(b"after")
    writer.close()
    assert read_all(often) == [*accepted, b"after"]


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


@pytest.mark.parametrize("content", [b"", b"-1", b"12 13", b"\xff\xfe", "٣".encode(), b"9" * 30])
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


def test_without_a_cursor_reading_starts_at_the_oldest_segment(small: OutboxSettings) -> None:
    positions = fill(small, numbered(20))
    reader = OutboxReader(small, "w0")
    reader.release(positions[9])
    assert 0 < reader.start(Cursor(small, "w0")) <= positions[9]


@pytest.mark.parametrize(
    "wrong",
    [OutboxSettings(fsync="sometimes"), OutboxSettings(segment_bytes=100, total_bytes_max=199)],
    ids=["fsync", "total"],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, wrong: OutboxSettings) -> None:
    with pytest.raises(Misconfigured):
        OutboxWriter(replace(wrong, directory=str(tmp_path)), "w0")


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="cannot use"):
        OutboxWriter(OutboxSettings(str(tmp_path / "file")), "w0")


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
