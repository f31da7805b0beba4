"""The records that a reader finds in an outbox, and the cases in which it waits."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.idempotency.claim_table import WORKERS_MAX
from paywarden.scoring.idempotency.decision_cache import worker_name
from paywarden.scoring.state import outbox
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter, framed
from tests.services.product.processes import PaywardenProcess
from tests.unit.scoring.state.outboxes import APPENDING, append_all, fill, numbered, read_all, segments, starts

payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=20)


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
    monkeypatch.setattr(outbox.outbox_reader, "segments_in", lambda _: pytest.fail("the folder has not changed"))
    assert not reader.has_after(position)
    assert reader.has_after(position - 1)


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


def test_at_finds_a_record_of_a_new_segment_in_the_same_step_of_the_folders_time(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is not found is decided again, so `at` must not trust a list that may lack it."""
    reader, folder, now_s = OutboxReader(small, "w0"), Path(small.directory) / "w0", 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    writer, position = OutboxWriter(small, "w0"), 0
    for number in range(20):
        end = writer.append(b"%020d" % number)
        # Each segment comes while the folder's time stands still, and the clock is a little further at each look.
        os.utime(folder, (1_000_000.0, 1_000_000.0))
        assert reader.at(position) == b"%020d" % number
        position, now_s = end, now_s + 0.04
    assert len(list(folder.glob("*.log"))) > 5
    now_s += 1
    assert reader.at(position) is None
    monkeypatch.setattr(outbox.outbox_reader, "segments_in", lambda _: pytest.fail("the folder has not changed"))
    assert reader.at(position) is None
    assert reader.at(position - 28) == b"%020d" % 19
    writer.close()


def test_at_reads_an_outbox_that_was_made_anew(small: OutboxSettings) -> None:
    reader, folder = OutboxReader(small, "w0"), Path(small.directory) / "w0"
    fill(small, numbered(9))
    os.utime(folder, (1, 1))
    assert reader.at(0) is not None
    shutil.rmtree(folder)
    assert reader.at(0) is None
    fill(small, [b"anew"])
    os.utime(folder, (1, 1))
    assert reader.at(0) == b"anew"


@given(payloads, st.integers(16, 200), st.integers(1, 30), st.data())
def test_frames_are_the_records_of_a_read_with_their_heads(
    records: list[bytes], segment_bytes: int, count: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        where = OutboxSettings(directory, segment_bytes, total_bytes_max=100_000)
        position = data.draw(st.sampled_from([0, *fill(where, records)]))
        reader = OutboxReader(where, "w0")
        read, frames = reader.read(position, count), reader.frames(position, count)
        assert [(position + end, payload) for end, payload in zip(frames.ends, frames.payloads, strict=True)] == read
        assert frames.data == b"".join(map(framed, frames.payloads))
        assert frames.position == (read[-1][0] if read else position)


def test_frames_end_before_zeros_that_a_read_passes(small: OutboxSettings) -> None:
    """The positions of frames are counted from one of them, so nothing may lie between them."""
    end = fill(small, [b"a" * 30, b"b" * 30])[-1]
    (segment,) = segments(small)
    with segment.open("ab") as file:
        file.write(bytes(24))
    segment.with_name(f"{end + 24:020d}.log").write_bytes(framed(b"behind"))
    reader = OutboxReader(small, "w0")
    assert [payload for _, payload in reader.read(0, 10)] == [b"a" * 30, b"b" * 30, b"behind"]
    frames = reader.frames(0, 10)
    assert (frames.payloads, frames.position) == ([b"a" * 30, b"b" * 30], end)
    behind = reader.frames(end, 10)
    assert (behind.payloads, behind.position) == ([b"behind"], end + 24 + 8 + len(b"behind"))
