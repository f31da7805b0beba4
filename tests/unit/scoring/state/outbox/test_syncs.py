"""When records are synced, and what a failed sync means."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxUnsynced, OutboxWriter, framed
from tests.unit.scoring.state.outboxes import append_until_refused, failing, flip, numbered, read_all, segments


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
