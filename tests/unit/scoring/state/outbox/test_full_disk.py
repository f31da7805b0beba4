"""A disk without room, and files that cannot be opened: appends are refused whole, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.scoring.state import disk_room, outbox
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxUnavailable, OutboxWriter, framed
from tests.patience import PATIENCE_S
from tests.unit.scoring.state.outboxes import failing, read_all, segments


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
    writer.look()  # a look that finds nothing new starts again
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
