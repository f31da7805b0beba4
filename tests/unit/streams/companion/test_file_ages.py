from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings
from paywarden.scoring.state.outbox import outbox_reader as reader
from paywarden.streams.companion import file_ages
from paywarden.streams.companion.file_ages import FileAges
from tests.unit.scoring.state.outboxes import fill, numbered, segments

KEEP_S = 660
DAY_S = 1_700_000_000


class Host:
    """A host whose clocks a test sets. `leap_s` is added to the time of day alone."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot_s, self.leap_s, self.boot = 1000, 0, "one"
        self.settings = OutboxSettings(directory=str(folder), segment_bytes=100)
        (folder / "w0").mkdir()
        clock = SimpleNamespace(time=self.time_s, time_ns=lambda: self.time_s() * 10**9)
        monkeypatch.setattr(file_ages, "time", clock)
        monkeypatch.setattr(reader, "time", clock)
        monkeypatch.setattr(file_ages, "boot_ms", lambda: 1000 * self.boot_s)
        monkeypatch.setattr(file_ages, "boot_id", lambda: self.boot)

    def time_s(self) -> int:
        return DAY_S + self.boot_s + self.leap_s

    def ages(self) -> FileAges:
        """Returns what a companion that starts now has."""
        return FileAges(self.settings, "w0", KEEP_S)

    def steady(self) -> FileAges:
        """Returns the same on a host whose clock nobody has set for long."""
        ages = self.ages()
        assert not ages.are_right()
        self.boot_s += KEEP_S
        assert ages.are_right()
        return ages


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.mark.parametrize("leap_s", [3600, -3600, 10 * 365 * 86_400])
@pytest.mark.parametrize("is_away", [False, True])
def test_after_a_leap_ages_count_for_nothing_until_a_window_is_over(host: Host, leap_s: int, is_away: bool) -> None:
    ages = host.steady()
    host.leap_s += leap_s
    ages = host.ages() if is_away else ages
    assert not ages.are_right()
    host.boot_s += KEEP_S - 1
    assert not ages.are_right()
    # A companion that starts again goes on with the note, so one that ends every minute still deletes.
    assert not host.ages().are_right()
    host.boot_s += 1
    assert ages.are_right()
    assert host.ages().are_right()


def test_a_clock_that_is_set_a_little_again_and_again_is_no_leap(host: Host) -> None:
    ages = host.steady()
    for _ in range(5):
        host.leap_s += 1
        assert ages.are_right()
    host.leap_s += 1
    assert not ages.are_right()


def test_another_boot_and_a_damaged_note_count_as_a_leap(host: Host) -> None:
    host.steady()
    note = Path(host.settings.directory) / "w0" / "clock"
    kept = note.read_bytes()
    for damage in (b"", b"no note", kept.replace(b" ", b" 9"), b"one 1 999999999999999\n"):
        note.write_bytes(damage)
        assert not host.ages().are_right()
    note.write_bytes(kept)
    assert host.ages().are_right()
    host.boot = "another"
    ages = host.ages()
    assert not ages.are_right()
    host.boot_s += KEEP_S
    assert ages.are_right()


def test_a_disk_that_takes_no_note_holds_up_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = host.ages()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_ages, "write_synced", full)
        assert not ages.are_right()
        host.boot_s += KEEP_S
        assert ages.are_right()
    assert ages.are_right()
    assert host.ages().are_right()


def test_files_of_before_the_clock_was_set_back_are_old(host: Host) -> None:
    """They seem to come from the future, and would otherwise stay until that time."""
    positions = fill(host.settings, numbered(20))
    old, *_ = segments(host.settings)
    for path in segments(host.settings):
        os.utime(path, (host.time_s(), host.time_s()))
    os.utime(old, (host.time_s() + 3600, host.time_s() + 3600))
    OutboxReader(host.settings, "w0").release(positions[-1], keep_s=KEEP_S)
    assert not old.exists()
    assert len(segments(host.settings)) > 2
