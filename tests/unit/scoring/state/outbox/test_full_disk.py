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
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxUnsynced, OutboxWriter, framed
from tests.patience import PATIENCE_S
from tests.unit.scoring.state.outboxes import failing, read_all, segments


def test_a_write_cut_short_ends_the_writer_and_the_next_one_goes_on_behind_it(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may have passed the first records by then: they are decisions, as after `kill -9`."""
    writer = OutboxWriter(small, "w0")
    writer.append(b"before")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) - 3]))
    with pytest.raises(OutboxUnsynced, match="no space left"):
        writer.append_frames(b"".join(map(framed, [b"first", b"second", b"third"])))
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutboxUnavailable, match="no space left"):
        writer.append(b"refused")
    assert writer.must_end() == writer.trouble() == "outbox: cannot append: no space left for all of it"
    assert read_all(small) == [b"before", b"first", b"second"]
    writer.close()
    following = OutboxWriter(small, "w0")
    following.append(b"after")
    following.close()
    assert read_all(small) == [b"before", b"first", b"second", b"after"]


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
    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OutboxUnavailable, match="Input/output error"):
        writer.append(b"refused")
    with pytest.raises(OutboxUnavailable, match="Input/output error"):
        writer.look(tries_disk=False)
    monkeypatch.setattr(os, "write", write)
    writer.look(tries_disk=False)
    assert writer.trouble() == ""


FULL_DISK = """
import errno, resource, sys
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxUnsynced, OutboxWriter, framed
def begun():
    return OutboxWriter(OutboxSettings(sys.argv[1], segment_bytes=1 << 20), "w0")
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
writer, taken, first = begun(), [], 0
limit(10_000)
for number in range(40):
    # Batches of different sizes, so that some reach the limit within a record.
    batch = [b"%06d" % (first + place) + bytes(90) for place in range(1 + number % 5)]
    try:
        writer.append_frames(b"".join(map(framed, batch)))
        taken += batch
    except OutboxUnsynced as error:
        assert writer.must_end() == writer.trouble() == str(error)
        writer.close()
        # The next worker has room.
        limit(resource.RLIM_INFINITY)
        writer = begun()
    except OutboxUnavailable as error:
        assert writer.trouble() == str(error)
    first += len(batch)
# Nothing is appended any more: the disk is full again, and room is made.
writer.look()
limit(1)
try:
    writer.look()
    sys.exit("not told")
except OutboxUnavailable:
    assert "cannot append" in writer.trouble()
limit(resource.RLIM_INFINITY)
writer.look()
assert writer.trouble() == ""
taken.append(b"%06d" % first + bytes(90))
writer.append(taken[-1])
sys.stdout.buffer.write(b"".join(record[:6] for record in taken))
"""


def test_a_full_disk_refuses_whole_batches_says_so_and_loses_no_record(tmp_path: Path) -> None:
    # A limit on a file's size cuts a write short as a full disk does.
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, check=True, timeout=60)
    taken = [done.stdout[at : at + 6] for at in range(0, len(done.stdout), 6)]
    found = [record[:6] for record in read_all(OutboxSettings(str(tmp_path), segment_bytes=1 << 20), at_once=100)]
    assert len(taken) > 50
    assert set(taken) <= set(found)
    # The first records of the batch that was cut short are there, too.
    assert found == sorted(set(found))
    assert len(found) <= len(taken) + 4


def test_zeros_that_cannot_be_cut_off_end_the_writer(small: OutboxSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = OutboxWriter(small, "w0")
    writer.append(b"before")
    monkeypatch.setattr(os, "ftruncate", failing)
    writer.look()
    with pytest.raises(OutboxUnavailable, match="zeros cannot be cut off"):
        writer.look()
    assert "zeros cannot be cut off" in writer.must_end()
    monkeypatch.undo()
    writer.close()
    following = OutboxWriter(small, "w0")
    following.append(b"after")
    following.close()
    assert read_all(small) == [b"before", b"after"]


NO_DESCRIPTORS = """
import os, resource, sys
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxWriter
settings = OutboxSettings(sys.argv[1], 100, 1 << 20)
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
if sys.argv[2] == "look":
    writer.look()
    assert writer.trouble() == ""
writer.append(b"d")
assert writer.trouble() == ""
writer.close()
"""


@pytest.mark.parametrize("healed_by", ["look", "append"])
def test_a_segment_that_cannot_be_begun_is_tried_again(tmp_path: Path, healed_by: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path), healed_by],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert read_all(OutboxSettings(str(tmp_path))) == [b"a" * 60, b"d"]
    assert len(segments(OutboxSettings(str(tmp_path)))) == 2


def test_a_segment_that_is_half_begun_ends_the_writer(small: OutboxSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new segment exists, so the old one must not grow."""
    small = replace(small, segment_bytes=100, fsync="always")
    writer = OutboxWriter(small, "w0")
    writer.append(b"a" * 60)
    monkeypatch.setattr(outbox.writer, "sync_folder", failing)
    with pytest.raises(OutboxUnavailable, match="cannot begin a segment: Input/output error"):
        writer.append(b"b" * 60)
    monkeypatch.undo()
    with pytest.raises(OutboxUnavailable, match="cannot begin a segment"):
        writer.append(b"c")
    assert writer.must_end()
    writer.close()
    following = OutboxWriter(small, "w0")
    following.append(b"d")
    following.close()
    assert read_all(small) == [b"a" * 60, b"d"]
