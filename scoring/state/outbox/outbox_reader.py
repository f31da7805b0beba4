"""Readers of outboxes in other processes than their writers: records, cursors, and which outboxes there are."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.durability import write_synced
from paywarden.schemas.file_state import read_regular
from paywarden.scoring.state.outbox.files import (
    PAYLOAD_BYTES_MAX,
    RECORD,
    find_record,
    is_damaged,
    read_at,
    record_at,
    segment_path,
    segments_in,
)
from paywarden.scoring.state.outbox.frame_loop import HEAD_BYTES, fill_ends
from paywarden.scoring.state.outbox.outbox_settings import OutboxDamaged, OutboxSettings, OutboxUnavailable

_log = logging.getLogger(__name__)

# The outbox into which `paywarden admin outbox --retry` puts decisions. It is shipped like a worker's.
RETRIED = "retried"
_WORKER = re.compile(r"worker-(0|[1-9][0-9]{0,3})")
# A cursor: the position and the CRC-32 of its digits.
_POSITION = re.compile(r"([0-9]{1,19}),([0-9a-f]{8})", re.ASCII)
# The first read for a single record.
_USUAL_BYTES = 4096
# A file that seems to come from further in the future than this was written before the clock was set back.
_FUTURE_S = 60.0
# A folder's time of change may be this much older than a later change that has the same time.
_STEP_S = 1.0


@dataclass(frozen=True)
class Frames:
    """Whole records of an outbox, as they stand there: each with its head."""

    data: bytes
    """The records, one after the other."""
    ends: NDArray[np.int64]
    """The offset after each record in `data`."""
    position: int
    """The position after the last record."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def payloads(self) -> list[bytes]:
        """The records without their heads."""
        ends = self.ends.tolist()
        return [self.data[start + HEAD_BYTES : end] for start, end in zip([0, *ends], ends, strict=False)]


class OutboxReader:
    """Reads a worker's outbox from another process while the worker writes it."""

    def __init__(self, settings: OutboxSettings, worker: str) -> None:
        self._directory = Path(settings.directory) / worker
        # Where the segments begin, and the folder with the time of its last change. None: the list may be too old.
        self._segments: list[int] = []
        self._listed: tuple[int, float] | None = None

    def _known_segments(self) -> list[int]:
        """Returns where the segments begin, ascending. It lists the folder only if that has changed. Raises OSError."""
        folder = os.stat(self._directory)
        seen = folder.st_ino, folder.st_mtime
        if seen != self._listed:
            # A folder's time has steps: another segment may come within the step of the list, and not change it.
            is_past = time.time() - folder.st_mtime >= _STEP_S
            self._segments = segments_in(self._directory)
            self._listed = seen if is_past else None
        return self._segments

    def has_after(self, position: int) -> bool:
        """Returns whether any byte is at `position` or behind it: two looks at the disk, where `end` lists a folder.

        Raises OutboxUnavailable.
        """
        try:
            newest = (self._known_segments() or [0])[-1]
            return newest + segment_path(self._directory, newest).stat().st_size > position
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def read(self, position: int, max_records: int) -> list[tuple[int, bytes]]:
        """Returns up to `max_records` records from `position` on, each with the position after it.

        Returns fewer when no more are there yet, and an empty list when nothing is new. Raises OutboxDamaged, after
        all records before the damage were returned, and OutboxUnavailable.
        """
        result: list[tuple[int, bytes]] = []
        for part in self._parts(position, max_records):
            begun = part.position - len(part.data)
            result += zip((begun + part.ends).tolist(), part.payloads, strict=True)
        return result

    def frames(self, position: int, max_records: int) -> Frames:
        """Like `read`, without making an object of each record. The positions of the records have no gaps."""
        parts: list[Frames] = []
        for part in self._parts(position, max_records):
            if parts and part.position - len(part.data) != parts[-1].position:
                # Zeros that the reader has passed are between them.
                break
            parts.append(part)
        if len(parts) <= 1:
            return parts[0] if parts else _nothing_at(position)
        starts = itertools.accumulate((len(part.data) for part in parts[:-1]), initial=0)
        ends = np.concatenate([start + part.ends for start, part in zip(starts, parts, strict=True)])
        return Frames(b"".join(part.data for part in parts), ends, parts[-1].position)

    def _parts(self, position: int, max_records: int) -> Iterator[Frames]:
        """Yields the frames of `read`, one for each read of the disk."""
        has_any = False
        while max_records > 0:
            try:
                part = self._read_once(position, max_records)
            except OutboxDamaged:
                if has_any:
                    return
                raise
            except OSError as error:
                raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
            if not part:
                return
            yield part
            has_any, position, max_records = True, part.position, max_records - len(part)

    def at(self, position: int) -> bytes | None:
        """Returns the record that begins at `position`, or None. Raises OutboxUnavailable."""
        try:
            segments = self._known_segments()
            place = bisect_right(segments, position)
            if place == 0:
                return None
            base = segments[place - 1]
            data = read_at(segment_path(self._directory, base), position - base, RECORD.size + _USUAL_BYTES)
            (size, _) = RECORD.unpack_from(data) if len(data) >= RECORD.size else (0, 0)
            if _USUAL_BYTES < size <= PAYLOAD_BYTES_MAX:
                data = read_at(segment_path(self._directory, base), position - base, RECORD.size + size)
        except FileNotFoundError:
            # Another process has deleted the segment since the directory was listed, or there is no outbox.
            return None
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
        return record_at(data, 0)

    def start(self, cursor: Cursor) -> int:
        """Returns the position to read from: the stored cursor, or the oldest record if there is no cursor.

        Raises OutboxUnavailable.
        """
        stored = cursor.load()
        return self.oldest() if stored is None else stored

    def oldest(self) -> int:
        """Returns the position at which the oldest segment begins; 0 if there is none. Raises OutboxUnavailable."""
        try:
            return min(segments_in(self._directory), default=0)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def newest(self) -> int:
        """Returns the position at which the newest segment begins; 0 if there is none. Raises OutboxUnavailable."""
        try:
            return max(segments_in(self._directory), default=0)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def end(self) -> int:
        """Returns the position after the last byte, half a record included; 0 if new. Raises OutboxUnavailable."""
        try:
            segments = segments_in(self._directory)
            if not segments:
                return 0
            return segments[-1] + segment_path(self._directory, segments[-1]).stat().st_size
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def after_damage(self, position: int) -> int | None:
        """Returns where the next whole record behind damage at `position` begins, or else the next segment.

        None if there is neither yet: the damage is at the end of the segment that is written to. A whole record has a
        size that fits and the right checksum. If one begins at `position` by now, there is no damage, and `position` is
        returned. This reads the rest of the segment, a second for each 20 MiB.

        Raises OutboxUnavailable.
        """
        try:
            segments = segments_in(self._directory)
            base = max((base for base in segments if base <= position), default=None)
            following = min((base for base in segments if base > position), default=None)
            found = None if base is None else find_record(segment_path(self._directory, base), position - base)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
        if base is None or found is None or (following is not None and base + found > following):
            return following
        return base + found

    def behind_zeros(self, position: int) -> int:
        """Returns where the next segment begins if only zeros are before it, as a failed write leaves them.

        Otherwise returns `position`. Raises OutboxUnavailable.
        """
        try:
            return self._behind_zeros(position)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def _behind_zeros(self, position: int) -> int:
        segments = segments_in(self._directory)
        base = max((base for base in segments if base <= position), default=position)
        following = min((base for base in segments if base > position), default=None)
        # A segment that is all zeros has lost its records.
        if following is None or base == position:
            return position
        reached = position
        while reached < following:
            data = read_at(segment_path(self._directory, base), reached - base)
            if not data or any(data):
                return position
            reached += len(data)
        return following if reached == following else position

    def raw(self, position: int, end: int) -> bytes:
        """Returns the bytes of one segment from `position` on, at most up to `end`; empty where none are there.

        Raises OutboxUnavailable.
        """
        try:
            base = max((base for base in segments_in(self._directory) if base <= position), default=None)
            if base is None:
                return b""
            return read_at(segment_path(self._directory, base), position - base, end - position)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def release(self, position: int, *, keep_s: float = 0.0) -> None:
        """Delete the segments that lie wholly before `position` and were last written more than `keep_s` seconds ago.

        The active segment always stays. File times follow the time of day: with `keep_s`, ask `FileAges` before. Raises
        OutboxUnavailable.
        """
        now = time.time()
        try:
            segments = segments_in(self._directory)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot release: {error.strerror}") from error
        for base, following in itertools.pairwise(segments):
            path = segment_path(self._directory, base)
            try:
                if following > position or (keep_s > 0 and -_FUTURE_S < now - path.stat().st_mtime < keep_s):
                    break
                path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutboxUnavailable(f"outbox: cannot release: {error.strerror}") from error

    def _read_once(self, position: int, max_records: int) -> Frames:
        """Read once from the segment that holds `position`. There are no records when nothing is there yet."""
        # List the segments before reading: if a next one exists now, this one is finished and will not grow.
        segments = segments_in(self._directory)
        base = max((base for base in segments if base <= position), default=None)
        following = min((base for base in segments if base > position), default=None)
        if base is None:
            if following is None:
                return _nothing_at(position)
            raise OutboxDamaged(f"outbox: {self._directory} begins at {following}, wanted {position}")
        data = read_at(segment_path(self._directory, base), position - base)
        ends = np.empty(min(max_records, len(data) // (HEAD_BYTES + 1)), dtype=np.int64)
        if count := fill_ends(np.frombuffer(data, dtype=np.uint8), ends, PAYLOAD_BYTES_MAX):
            end = int(ends[count - 1])
            return Frames(data[:end], ends[:count], position + end)
        is_torn = len(data) > 0
        if is_torn and following is not None and (reached := self._behind_zeros(position)) > position:
            return self._read_once(reached, max_records)
        if is_torn and (following is not None or is_damaged(data)):
            raise OutboxDamaged(f"outbox: {self._directory} is damaged at position {position}")
        if following is not None:
            # This is the end of a finished segment, and the next segment begins somewhere else.
            raise OutboxDamaged(f"outbox: {self._directory} lacks positions {position} to {following}")
        return _nothing_at(position)


def _nothing_at(position: int) -> Frames:
    return Frames(b"", np.zeros(0, dtype=np.int64), position)


class Cursor:
    """The position up to which a worker's outbox is shipped, or read by another reader, in a file beside it."""

    def __init__(self, settings: OutboxSettings, worker: str, name: str = "cursor") -> None:
        self._path = Path(settings.directory) / worker / name
        self._is_told = False

    def load(self) -> int | None:
        """Returns the stored position, or None if there is none. A damaged file counts as none: a log line says so.

        Kafka has the cursor, too, and the next `store` repairs the file. Raises OutboxUnavailable.
        """
        try:
            text = read_regular(self._path).decode("ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read the cursor: {error.strerror}") from error
        match = _POSITION.fullmatch(text)
        if match is None or match[2] != _checksum_of(match[1]):
            if not self._is_told:
                _log.error("outbox: %s holds no position and counts as missing", self._path)
            self._is_told = True
            return None
        return int(match[1])

    def store(self, position: int) -> None:
        """Store `position` on disk. A crash during the call leaves the earlier position.

        Raises OutboxUnavailable.
        """
        try:
            write_synced(self._path, f"{position},{_checksum_of(str(position))}\n".encode())
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot store the cursor: {error.strerror}") from error


def _checksum_of(digits: str) -> str:
    return f"{zlib.crc32(digits.encode()):08x}"


def workers(settings: OutboxSettings) -> list[str]:
    """Returns the names of all outboxes, of workers alive or not: each may hold decisions to ship.

    Raises OutboxUnavailable.
    """
    return sorted(name for name in _folders(settings) if is_outbox(name))


def strangers(settings: OutboxSettings) -> list[str]:
    """Returns the names of folders beside the outboxes that are none. Raises OutboxUnavailable."""
    return sorted(name for name in _folders(settings) if not is_outbox(name))


def is_outbox(name: str) -> bool:
    """Returns whether a folder of this name is an outbox."""
    return name == RETRIED or _WORKER.fullmatch(name) is not None


def _folders(settings: OutboxSettings) -> list[str]:
    try:
        with os.scandir(settings.directory) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutboxUnavailable(f"outbox: cannot read {settings.directory}: {error.strerror}") from error
