"""Keeps bytes of an outbox that nobody can ship, so that shipping goes on behind them.

    <outbox>/worker-0/set-aside/00000000000000004312-00000000000000004981.record    its payload is no decision
                                00000000000000067200-00000000000000071008.damage    no record begins in these bytes
                                00000000000000090112-00000000000000094208.gap       an empty file: the bytes are gone

The names are the positions in the outbox where the bytes begin and end. A file is on disk before the companion's cursor
passes the bytes; if the companion dies in between, it finds the file there and counts nothing twice.

`set_aside_bytes_max` and ENTRIES_MAX limit the entries of an outbox. Beyond them the companion stops at the next bytes
that it cannot ship, with this outbox alone: that many are no accident, and giving them up would lose decisions.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import private_opener
from paywarden.scoring.state.outbox import OutboxSettings

RECORD, DAMAGE, GAP = "record", "damage", "gap"
KINDS = (RECORD, DAMAGE, GAP)
"""The kinds of entries: a record that is no decision, bytes without records, or the place of bytes that are missing."""
# A fault of one disk block damages one or two records. A thousand are a fault of the release, or of the whole disk.
ENTRIES_MAX = 1000
_FOLDER = "set-aside"
_NAME = re.compile(rf"([0-9]{{20}})-([0-9]{{20}})\.({'|'.join(KINDS)})")


class SetAsideFull(TemporaryFailure):
    """An outbox has set aside as much as it may. An operator must look at it."""


class Unreadable(InvalidEvent):
    """The bytes are no decision that can be shipped."""


@dataclass(frozen=True)
class SetAsideEntry:
    """Something that an outbox has set aside."""

    worker: str
    begin: int
    end: int
    kind: str
    path: Path

    @property
    def entry_id(self) -> str:
        """The worker and the position, as in `worker-0/4312`."""
        return f"{self.worker}/{self.begin}"

    def read(self) -> bytes:
        """Returns the bytes. Raises Unreadable when the file cannot be read."""
        try:
            return read_regular(self.path, None)
        except OSError as error:
            raise Unreadable(f"its file cannot be read: {error.strerror}") from error

    def remove(self) -> None:
        """Delete the file: it is shipped, or given up."""
        self.path.unlink(missing_ok=True)


class SetAsideEntries:
    """The entries that the outbox of one worker has set aside."""

    def __init__(self, settings: OutboxSettings, worker: str) -> None:
        self._folder = Path(settings.directory) / worker / _FOLDER
        self._worker, self._bytes_max = worker, settings.set_aside_bytes_max

    def put(self, begin: int, end: int, kind: str, data: bytes) -> bool:
        """Set aside the outbox's bytes from `begin` to `end`. Returns False if they were set aside before.

        It is on disk afterwards. Raises SetAsideFull, or OSError when the disk fails.
        """
        path = self._folder / f"{begin:020d}-{end:020d}.{kind}"
        if path.exists():
            return False
        entries, size = self.size()
        if entries >= ENTRIES_MAX or size + len(data) > self._bytes_max:
            raise SetAsideFull(
                f"the outbox of {self._worker} has set aside {entries} entries of {size} bytes, and takes no more"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        new = path.with_suffix(".new")
        with open(new, "wb", opener=private_opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        return True

    def entries(self) -> list[SetAsideEntry]:
        """Returns everything that is set aside, in the order of the outbox. Raises OSError."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        matches = (_NAME.fullmatch(name) for name in sorted(names))
        return [
            SetAsideEntry(self._worker, int(match[1]), int(match[2]), match[3], self._folder / match[0])
            for match in matches
            if match is not None
        ]

    def size(self) -> tuple[int, int]:
        """Returns the number of entries, and of bytes in their files. Raises OSError."""
        sizes = [entry.path.stat().st_size for entry in self.entries() if entry.path.exists()]
        return len(sizes), sum(sizes)
