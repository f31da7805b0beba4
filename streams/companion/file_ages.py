"""Says whether the ages of an outbox's files are right: a leap of the time of day makes every file look older.

    time of day   since the boot   difference
       12:00:00           5000 s     11:56:40      as noted: a file of 11:49 is 11 minutes old
       13:00:01           5001 s     12:56:40      a leap: files of a moment ago look an hour old

The difference is one number until somebody sets the clock. After a leap, ages count for nothing until a whole window
has passed by the clock of the boot: whatever was written before the leap is then older than the window. The note of the
last leap is beside the outbox, so a leap while no companion runs is noticed, too.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from paywarden.schemas.durability import boot_id, boot_ms, write_synced
from paywarden.schemas.file_state import read_regular
from paywarden.scoring.state.outbox.outbox_settings import OutboxSettings

# A note names the boot, the difference, and the second of the boot after which ages count.
_NOTE = re.compile(r"(\S*) (-?[0-9]{1,15}) ([0-9]{1,15})", re.ASCII)
# The outbox keeps its files for longer than claims by more than this.
_LEAP_S = 5


class FileAges:
    """Watches the time of day for one worker's outbox, whose files are kept for `keep_s` seconds."""

    def __init__(self, settings: OutboxSettings, worker: str, keep_s: float) -> None:
        self._path, self._keep_s = Path(settings.directory) / worker / "clock", int(keep_s)
        self._boot = boot_id()
        self._noted = self._load()
        self._is_stored = True

    def are_right(self) -> bool:
        """Returns whether no file is younger than its time says. Call it at least once a second."""
        now_s = boot_ms() // 1000
        difference_s = int(time.time()) - now_s
        boot, noted_s, right_at_s = self._noted
        # A later moment than this is of a damaged note.
        latest_s = now_s + self._keep_s
        if boot != self._boot or abs(difference_s - noted_s) > _LEAP_S or right_at_s > latest_s:
            self._noted, self._is_stored = (self._boot, difference_s, latest_s), False
        if not self._is_stored:
            # A disk that is full or fails holds up nobody: without a note the next companion waits for a window.
            with suppress(OSError):
                write_synced(self._path, "{} {} {}\n".format(*self._noted).encode())
                self._is_stored = True
        return now_s >= self._noted[2]

    def _load(self) -> tuple[str, int, int]:
        """Returns the last note; one of no boot if there is none that can be read."""
        match = None
        with suppress(OSError):
            match = _NOTE.fullmatch(read_regular(self._path).decode("ascii", errors="replace").strip())
        return ("none", 0, 0) if match is None else (match[1], int(match[2]), int(match[3]))
