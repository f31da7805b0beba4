"""When records are synced, and what a failed sync means."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnavailable, OutboxUnsynced, OutboxWriter, framed
from tests.unit.scoring.state.outboxes import append_until_refused, failing, numbered, read_all


def rewritten(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Returns a list that gets what is written again from now on, with its offsets."""
    written: list[tuple[bytes, int]] = []
    pwrite = os.pwrite

    def note(fd: int, data: bytes, offset: int) -> int:
        written.append((data, offset))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", note)
    return written


def test_a_failed_sync_ends_the_writer_and_the_next_one_syncs_its_records(
    small: OutboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The companion may have shipped them by then, so their positions must not be used for other records."""
    small = replace(small, fsync="always")
    writer = OutboxWriter(small, "w0")
    writer.append(b"before")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OutboxUnsynced, match="Input/output error"):
        writer.append(b"unsure")
    assert "sync failed" in writer.trouble()
    assert "sync failed" in writer.must_end()
    with pytest.raises(OutboxUnavailable, match="Input/output error"):
        writer.append(b"refused")
    writer.close()
    monkeypatch.undo()
    # The kernel takes the page for clean, so a sync alone would do nothing: the record must be written again.
    written = rewritten(monkeypatch)
    following = OutboxWriter(small, "w0")
    assert written == [(framed(b"before") + framed(b"unsure"), 0)]
    following.append(b"after")
    following.close()
    assert read_all(small) == [b"before", b"unsure", b"after"]


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


def test_interval_syncs_in_the_background_and_a_failure_ends_the_writer(
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
    assert "sync failed" in writer.must_end()
    monkeypatch.undo()
    writer.close()
    following = OutboxWriter(often, "w0")
    following.append(b"after")
    following.close()
    assert read_all(often) == [*accepted, b"after"]
