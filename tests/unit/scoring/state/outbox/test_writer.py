"""The records that an outbox's writer takes, keeps and releases."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.state.outbox import (
    Cursor,
    OutboxFull,
    OutboxMetrics,
    OutboxReader,
    OutboxSettings,
    OutboxWriter,
)
from tests.services.product.processes import PaywardenProcess
from tests.unit.scoring.state.outboxes import (
    APPENDING,
    append_all,
    append_until_refused,
    fill,
    numbered,
    read_all,
    segments,
)


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


def test_a_writer_never_reuses_positions_that_were_shipped(small: OutboxSettings) -> None:
    positions = fill(small, [b"one", b"two"])
    Cursor(small, "w0").store(positions[1])
    # As after a loss of power: the companion has shipped records that the log has lost.
    os.truncate(segments(small)[0], positions[0])
    fill(small, [b"three"])
    assert read_all(small, positions[1]) == [b"three"]


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


def test_two_writers_on_one_directory_are_refused(small: OutboxSettings) -> None:
    writer = OutboxWriter(small, "w0")
    with pytest.raises(Misconfigured, match="has another writer"):
        OutboxWriter(small, "w0")
    OutboxWriter(small, "w1").close()
    writer.close()
    OutboxWriter(small, "w0").close()


def test_unshipped_bytes_and_refused_appends_are_in_the_metrics(tmp_path: Path) -> None:
    metrics = OutboxMetrics.declare(MetricsRegistry())
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
    assert writer.must_end() == ""
    shutil.rmtree(Path(small.directory) / "w0")
    assert writer.must_end() == "outbox: its files were deleted"
    writer.close()


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
