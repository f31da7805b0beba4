"""The append-only log in which a scoring worker leaves its decisions for the companion to ship.

Each worker has one directory. A *position* counts bytes since the outbox was first opened:

    <outbox>/<worker>/00000000000000000000.log     records from position 0 on           finished, shipped or not
                      00000000000067108839.log     records from that position on        active: the worker appends here
                      cursor                       the position up to which the companion has shipped
                      lock                         held by the one writer

    record = u32 payload size │ u32 crc32 of the payload │ payload          little endian, size 1 … 256 KiB

1. The writer appends records to the end of the last segment with one `write`, and starts a new segment when that one
   is full. When `append` has returned, the record has left the process: `kill -9` cannot take it back.
2. A crash can leave part of a record, or zeros, at the end. A reader stops before them and waits. The next writer
   leaves them and continues in a new segment behind them: a position is never used twice, since a reader may have read
   a whole record there before its bytes were damaged. No caller was answered for part of a record.
3. Anything else that is not a record is damage: a wrong checksum or size with more bytes after it, a segment that ends
   early, a gap between segments. The reader raises OutboxDamaged instead of skipping it, and says on request where the
   next whole record begins (`after_damage`). Zeros behind the last record of a finished segment are passed: they hold
   nothing.
4. The reader deletes segments that are shipped whole and so old that no repeated payment can ask for their decisions.
   The writer's `total_bytes_max` bounds the unshipped bytes; shipped segments that are kept come on top.

Room for the next megabytes is reserved on disk (scoring/state/disk_room.py). On most file systems a full disk therefore
refuses a write before any of it is there. To reserve takes microseconds, or as long as the file system writes its
journal: tens of milliseconds, in which the worker answers nobody. A writer therefore reserves seldom. It begins with a
megabyte and doubles that each time, up to sixteen.

What a writer does after a failure. Each append tries again, and so does `look`, which the worker calls twice a second:

    a write fails or is cut short     The writer cuts the file back to the last whole record. If the write had whole
                                      records, a reader may have passed them already: zeros take their place, and the
                                      writer begins a segment behind them.
    the file cannot be cut back       Nothing may follow half a record: appends are refused until the cut works.
    a segment cannot be begun         The new segment may exist already, so the old one must not grow any more: appends
                                      are refused until the new segment can be opened, at the same position.
    a sync fails                      The record stays, since the reader may have shipped it. The kernel takes pages
                                      for clean that are not on disk, so the writer writes everything since the last
                                      good sync once more, and refuses appends until that is synced. Records that it
                                      cannot read back whole are lost to a loss of power: it refuses appends until it
                                      is started again.
    the files were deleted            The worker ends, and the next one begins a new outbox.

The setting `fsync` decides what survives a loss of power, see OutboxSettings.

The folder of the outboxes may hold other folders. Only those with the name of a worker, and RETRIED, are outboxes: a
copy such as `worker-0.bak` must not be shipped.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import re
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.private_files import make_private_folder
from paywarden.scoring.metrics.shared import Counter, Gauge, Registry
from paywarden.scoring.state.disk_room import reserve

_log = logging.getLogger(__name__)

_RECORD = struct.Struct("<II")
_SUFFIX = ".log"
_SEGMENT = re.compile(r"[0-9]{20}\.log")
_POSITION = re.compile(r"[0-9]{1,19}", re.ASCII)
_WORKER = re.compile(r"worker-(0|[1-9][0-9]{0,3})")
# The outbox into which `paywarden outbox retry` puts decisions that were set aside. It is shipped like a worker's.
RETRIED = "retried"
# A decision has about 500 bytes. A larger size than this is damage, and not a record that is still being written.
PAYLOAD_BYTES_MAX = 256 * 1024
# Bytes per read. At least one record of the largest size must fit.
_READ_BYTES = 1024 * 1024
# The first read for a single record.
_USUAL_BYTES = 4096
_FSYNC_POLICIES = ("never", "interval", "always")
# With less room than this an outbox counts as full: a batch may not fit any more.
_ROOM_BYTES = 1024 * 1024
# A block of a file system. Zeros are no record.
_PROBE = bytes(4096)
# A folder's time of change may be so much older than a later change of it that has the same time.
_STEP_S = 1.0
# How much room is reserved ahead: some 2,000 decisions at first, a second of a busy worker's at most.
_AHEAD_BYTES = 1024 * 1024
_AHEAD_BYTES_MAX = 16 * _AHEAD_BYTES


class OutboxFull(TemporaryFailure):
    """The unshipped bytes have reached `total_bytes_max`: the companion is down or too slow. Nothing was written."""


class OutboxUnavailable(TemporaryFailure):
    """The disk under the outbox failed. The record was not acknowledged."""


class OutboxUnsynced(OutboxUnavailable):
    """The records are in the log, where the companion finds them, but they may not be on disk."""


class OutboxDamaged(Misconfigured):
    """The log holds damage that a crash of a process cannot cause: no record begins at the position asked for."""


@dataclass(frozen=True)
class OutboxSettings:
    """How much an outbox holds, and what a record survives. The values of `fsync`:

    - "never": a record survives the death of the process, but not of the machine. The kernel writes it to disk within
      about 30 s.
    - "interval": it also survives the death of the machine once it is `fsync_interval_ms` old. A thread of the writer
      calls fsync; callers do not wait.
    - "always": it is on disk before `append` returns, which then takes as long as the disk does.
    """

    directory: str = "outbox"
    segment_bytes: int = 64 * 1024 * 1024
    # The limit of unshipped bytes: two million decisions, or half an hour of 1,000 a second without a broker. Decisions
    # answered within `[answered] window_s` are kept on top of it.
    total_bytes_max: int = 1024 * 1024 * 1024
    fsync: str = "never"
    fsync_interval_ms: int = 200
    # The most bytes, for each worker, of what its outbox holds and nobody can read. Beyond it the companion stops
    # shipping this worker's decisions. A damaged segment may be set aside whole, so it is four of them.
    set_aside_bytes_max: int = 256 * 1024 * 1024


@dataclass(frozen=True)
class OutboxMetrics:
    """A worker's metrics of its outbox. The worker exports them, so they exist without a companion."""

    unshipped_bytes: Gauge
    refused: Counter

    @classmethod
    def declare(cls, registry: Registry) -> OutboxMetrics:
        return cls(
            registry.gauge(
                "paywarden_outbox_unshipped_bytes",
                "Bytes not shipped yet, in the fullest outbox.",
                scale=1,
            ),
            registry.counter(
                "paywarden_outbox_refused_total", "Appends refused: the outbox is full or its disk fails."
            ),
        )


class OutboxWriter:
    """The one writer of a worker's outbox. Not thread-safe.

    Raises Misconfigured when there is another writer, or the directory or the settings cannot be used.
    """

    def __init__(self, settings: OutboxSettings, worker: str, metrics: OutboxMetrics | None = None) -> None:
        _check(settings)
        self._settings = settings
        self._metrics = metrics or OutboxMetrics.declare(Registry())
        self._directory = Path(settings.directory) / worker
        self._cursor = Cursor(settings, worker)
        try:
            make_private_folder(self._directory)
            self._lock = _lock(self._directory / "lock")
            self._base, self._end = _recover(self._directory, self._cursor.load() or 0)
            self._fd = _open_segment(self._directory, self._base)
        except OSError as error:
            raise Misconfigured(f"outbox: cannot use {self._directory}: {error.strerror}") from error
        # The companion's cursor when it was last read. Before there is a cursor: the beginning of the oldest segment.
        self._shipped = self._look_shipped()
        # Why the last append failed; empty after one that worked. The fields below say what has to be mended.
        self._failure = ""
        self._begins_segment = self._is_unsynced = False
        # The position from which on something stands in the active segment that must be cut off.
        self._torn_at: int | None = None
        # By segment, where its records end if zeros follow them, as far as they are not synced.
        self._record_ends: dict[int, int] = {}
        # The position up to which room is reserved, and how much is reserved ahead of the next write.
        self._reserved, self._ahead_bytes = self._base, _AHEAD_BYTES
        # How many zeros to try first after a failed write, so that no part of the next one can be read.
        self._probe_bytes = len(_PROBE)
        # The position up to which records were synced, with fsync "always".
        self._synced = self._looked_at = self._end
        self._syncer: _Syncer | None = None
        if settings.fsync != "never":
            sync_folder(self._directory)
        if settings.fsync == "interval":
            self._syncer = _Syncer(self._directory, self._fd, settings.fsync_interval_ms, lambda: self._end)

    @property
    def position(self) -> int:
        """The position at which the next record will begin."""
        return self._end

    def append(self, payload: bytes) -> int:
        """Append one record; returns the position after it. Raises OutboxFull or OutboxUnavailable."""
        return self.append_frames(framed(payload))

    def append_frames(self, frames: bytes) -> int:
        """Append framed records (see `framed`), concatenated, in one write: all, or none if it raises.

        After a crash the first few may be there. Returns the position after them. Raises OutboxFull or
        OutboxUnavailable.
        """
        try:
            return self._try_write(frames)
        except TemporaryFailure:
            self._metrics.refused.add(1)
            raise

    def close(self) -> None:
        """Close the outbox. Records stay; with fsync "interval" or "always" they are on disk afterwards."""
        if self._syncer is not None:
            self._syncer.stop()
        if self._settings.fsync != "never":
            os.fdatasync(self._fd)
        os.close(self._fd)
        os.close(self._lock)

    def note_unshipped(self) -> None:
        """Update the metric of unshipped bytes. Reads a directory and a file, so not for every payment."""
        self._shipped = self._look_shipped()
        self._metrics.unshipped_bytes.set(self._end - self._shipped)

    def trouble(self) -> str:
        """Returns why no decision can be recorded now; empty if one can. Asks no disk: see `look`."""
        if self._failure:
            return self._failure
        if self._syncer is not None and self._syncer.failure:
            return self._syncer.failure
        unshipped, limit = self._end - self._shipped, self._settings.total_bytes_max
        if limit - unshipped < min(_ROOM_BYTES, limit // 8):
            return f"outbox: full: {unshipped} bytes not shipped, the limit is {limit}"
        return ""

    def look(self, *, tries_disk: bool = True) -> None:
        """Mend what has failed. Without an append since the last look, try whether the disk would take one.

        Writes a few kilobytes, so not for every payment. Without `tries_disk` it writes nothing unless the last append
        has failed. Raises OutboxUnavailable.
        """
        self._mend()
        if self._failure or (tries_disk and self._end == self._looked_at):
            self._probe()
        self._reserve(len(_PROBE))
        self._looked_at = self._end

    def is_deleted(self) -> bool:
        """Whether someone has deleted the segment that records are appended to. Nobody would ever read them."""
        return os.fstat(self._fd).st_nlink == 0

    def _try_write(self, records: bytes) -> int:
        if self._failure or (self._syncer is not None and self._syncer.failure):
            self._mend()
            self._probe()
        self._make_room(len(records))
        if self._end + len(records) > self._reserved:
            self._reserve(len(records))
        try:
            written = os.write(self._fd, records)
        except OSError as error:
            self._take_back(str(error.strerror))
        if written != len(records):
            self._probe_bytes = max(self._probe_bytes, len(records))
            self._take_back("no space left", _parse(records[:written], written)[1])
        self._end += written
        if self._settings.fsync == "always":
            self._sync()
        self._failure = ""
        return self._end

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._is_unsynced = True
            self._failure = f"outbox: sync failed: {error.strerror}"
            raise OutboxUnsynced(self._failure) from error
        self._synced = self._end
        self._record_ends.clear()

    def _make_room(self, size: int) -> None:
        limit = self._settings.total_bytes_max
        if self._end + size - self._shipped > limit:
            # The cursor may be unreadable for a moment; then the last one that was read holds.
            with suppress(OSError):
                self._shipped = self._look_shipped()
            if self._end + size - self._shipped > limit:
                raise OutboxFull(f"outbox: {self._end - self._shipped} bytes not shipped, the limit is {limit}")
        if self._end > self._base and self._end + size - self._base > self._settings.segment_bytes:
            self._rotate()

    def _reserve(self, size: int) -> None:
        """Reserve room on disk for the next `size` bytes and, if there is some, for more. Raises OutboxUnavailable."""
        ahead = max(size, min(self._ahead_bytes, self._base + self._settings.segment_bytes - self._end))
        if self._reserved >= self._end + max(size, ahead // 2):
            return
        if self._reserved > self._end:
            # What was reserved last is used up by half.
            self._ahead_bytes = min(2 * self._ahead_bytes, _AHEAD_BYTES_MAX)
        try:
            try:
                can_reserve = reserve(self._fd, self._end - self._base, ahead)
            except OSError:
                ahead = size
                can_reserve = reserve(self._fd, self._end - self._base, ahead)
        except OSError as error:
            self._failure = f"outbox: cannot append: {error.strerror}"
            raise OutboxUnavailable(self._failure) from error
        # A segment is on one file system: asking again would say the same.
        self._reserved = self._end + ahead if can_reserve else sys.maxsize

    def _look_shipped(self) -> int:
        """Returns the companion's cursor, as far as it can be true. Raises OutboxUnavailable."""
        try:
            oldest = min(_segments(self._directory), default=self._base)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read {self._directory}: {error.strerror}") from error
        return max(oldest, min(self._cursor.load() or 0, self._end))

    def _rotate(self) -> None:
        """Start a new segment; the old one is never written to again."""
        fd = -1
        try:
            fd = _open_segment(self._directory, self._end)
            if self._settings.fsync == "always":
                sync_folder(self._directory)
            if self._syncer is not None:
                self._syncer.follow(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            # The new segment may exist, so the old one must not grow beyond the position where the new one begins.
            self._begins_segment = True
            self._failure = f"outbox: cannot begin a segment: {error.strerror}"
            raise OutboxUnavailable(self._failure) from error
        finished, self._fd, self._base = self._fd, fd, self._end
        self._reserved = self._base
        self._begins_segment = False
        # Whatever closing reports, the descriptor is closed.
        with suppress(OSError):
            os.close(finished)

    def _take_back(self, reason: str, whole: int = 0) -> NoReturn:
        """Truncate a write that failed or was cut short, so that later records follow the last whole one.

        `whole`: how many of the bytes that were written are whole records. Their positions are not used again.
        """
        self._failure = f"outbox: cannot append: {reason}"
        self._torn_at = self._end
        if whole:
            self._record_ends[self._base] = self._end
            self._end += whole
            self._begins_segment = True
        self._cut(self._torn_at)
        raise OutboxUnavailable(self._failure)

    def _cut(self, position: int) -> None:
        """Cut off what follows `position`. Zeros, which need no room, stand from there to the end of the outbox."""
        self._torn_at = position
        self._reserved, self._ahead_bytes = self._base, _AHEAD_BYTES
        try:
            os.ftruncate(self._fd, position - self._base)
            if position < self._end:
                os.ftruncate(self._fd, self._end - self._base)
        except OSError as error:
            # Nothing may follow half a record.
            self._failure = f"outbox: a failed write could not be taken back: {error.strerror}"
            raise OutboxUnavailable(self._failure) from error
        self._torn_at = None

    def _mend(self) -> None:
        """Undo what earlier failures left. Raises OutboxUnavailable when that fails."""
        if self._torn_at is not None:
            self._cut(self._torn_at)
        if self._is_unsynced:
            self._sync_again(self._synced)
            self._is_unsynced, self._synced = False, self._end
        if self._syncer is not None and self._syncer.failure:
            self._sync_again(self._syncer.synced)
            self._syncer.begin_again(self._end)
        if self._begins_segment:
            self._rotate()

    def _sync_again(self, position: int) -> None:
        """Write all records from `position` on once more, in place, and sync them."""
        try:
            for base in _segments(self._directory):
                end = self._record_ends.get(base)
                _rewrite(_segment_path(self._directory, base), max(0, position - base), end and end - base)
            sync_folder(self._directory)
            self._record_ends.clear()
        except OSError as error:
            self._failure = f"outbox: sync failed: {error.strerror}"
            raise OutboxUnavailable(self._failure) from error

    def _probe(self) -> None:
        """Append zeros, at least as many as a failed write had bytes, and cut them off.

        To readers they are no record, also if a crash leaves them.
        """
        try:
            written = os.write(self._fd, _PROBE.ljust(self._probe_bytes, b"\0"))
        except OSError as error:
            self._take_back(str(error.strerror))
        if written != self._probe_bytes:
            self._take_back("no space left")
        self._cut(self._end)
        self._failure = ""


class _Syncer:
    """A thread that calls fdatasync on the segments at intervals. It has file descriptors of its own."""

    def __init__(self, directory: Path, fd: int, interval_ms: int, end: Callable[[], int]) -> None:
        """`end` returns the position up to which records are written now."""
        self.failure = ""
        """Why a sync failed. Nothing is synced until `begin_again`."""
        self.synced = end()
        """The position up to which records are on disk."""
        self._directory, self._end = directory, end
        self._interval_seconds = interval_ms / 1000
        self._lock = threading.Lock()
        self._fds = [os.dup(fd)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-sync", daemon=True)
        self._thread.start()

    def follow(self, fd: int) -> None:
        """Sync `fd` from now on, and the earlier segments once more, to their end. Raises OSError."""
        own = os.dup(fd)
        with self._lock:
            self._fds.append(own)

    def begin_again(self, synced: int) -> None:
        """Go on after a failure: the writer has synced everything up to the position `synced` itself."""
        self.synced, self.failure = synced, ""

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            if not self.failure:
                self._sync()

    def _sync(self) -> None:
        with self._lock:
            reached = self._end()
            finished, active = self._fds[:-1], self._fds[-1:]
            self._fds = list(active)
        try:
            for fd in finished + active:
                os.fdatasync(fd)
            if finished:
                sync_folder(self._directory)
            self.synced = reached
        except OSError as error:
            # The kernel drops a page it could not write, so from here on it is unknown what is on disk.
            self.failure = f"outbox: sync failed: {error.strerror}"
        for fd in finished:
            with suppress(OSError):
                os.close(fd)


class OutboxReader:
    """Reads a worker's outbox from another process while the worker writes it."""

    def __init__(self, settings: OutboxSettings, worker: str) -> None:
        self._directory = Path(settings.directory) / worker
        # Where the newest segment begins, and when its folder had last changed before it was listed.
        self._newest, self._listed_s = 0, -1.0

    def has_after(self, position: int) -> bool:
        """Returns whether any byte is at `position` or behind it: two looks at the disk, where `end` lists a folder.

        Raises OutboxUnavailable.
        """
        try:
            changed_s = self._directory.stat().st_mtime
            # A folder's time has steps of some milliseconds: another segment may have come within the step of the list.
            if changed_s != self._listed_s or time.time() - changed_s < _STEP_S:
                self._newest, self._listed_s = max(_segments(self._directory), default=0), changed_s
            return self._newest + _segment_path(self._directory, self._newest).stat().st_size > position
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
        while len(result) < max_records:
            try:
                records = self._read_once(position, max_records - len(result))
            except OutboxDamaged:
                if result:
                    break
                raise
            except OSError as error:
                raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
            if not records:
                break
            result += records
            position = records[-1][0]
        return result

    def at(self, position: int) -> bytes | None:
        """Returns the record that begins at `position`, or None. Raises OutboxUnavailable."""
        try:
            base = max((base for base in _segments(self._directory) if base <= position), default=None)
            if base is None:
                return None
            data = _read_at(_segment_path(self._directory, base), position - base, _RECORD.size + _USUAL_BYTES)
            (size, _) = _RECORD.unpack_from(data) if len(data) >= _RECORD.size else (0, 0)
            if _USUAL_BYTES < size <= PAYLOAD_BYTES_MAX:
                data = _read_at(_segment_path(self._directory, base), position - base, _RECORD.size + size)
        except FileNotFoundError:
            # Another process has deleted the segment since the directory was listed.
            return None
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
        return _record_at(data, 0)

    def start(self, cursor: Cursor) -> int:
        """Returns the position to read from: the stored cursor, or the oldest record if there is no cursor.

        Raises OutboxUnavailable.
        """
        stored = cursor.load()
        return self.oldest() if stored is None else stored

    def oldest(self) -> int:
        """Returns the position at which the oldest segment begins; 0 if there is none. Raises OutboxUnavailable."""
        try:
            return min(_segments(self._directory), default=0)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def newest(self) -> int:
        """Returns the position at which the newest segment begins; 0 if there is none. Raises OutboxUnavailable."""
        try:
            return max(_segments(self._directory), default=0)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def end(self) -> int:
        """Returns the position after the last byte, half a record included; 0 if new. Raises OutboxUnavailable."""
        try:
            segments = _segments(self._directory)
            if not segments:
                return 0
            return segments[-1] + _segment_path(self._directory, segments[-1]).stat().st_size
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
            segments = _segments(self._directory)
            base = max((base for base in segments if base <= position), default=None)
            following = min((base for base in segments if base > position), default=None)
            found = None if base is None else _find_record(_segment_path(self._directory, base), position - base)
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
        segments = _segments(self._directory)
        base = max((base for base in segments if base <= position), default=position)
        following = min((base for base in segments if base > position), default=None)
        # A segment that is all zeros has lost its records.
        if following is None or base == position:
            return position
        reached = position
        while reached < following:
            data = _read_at(_segment_path(self._directory, base), reached - base)
            if not data or any(data):
                return position
            reached += len(data)
        return following if reached == following else position

    def raw(self, position: int, end: int) -> bytes:
        """Returns the bytes of one segment from `position` on, at most up to `end`; empty where none are there.

        Raises OutboxUnavailable.
        """
        try:
            base = max((base for base in _segments(self._directory) if base <= position), default=None)
            if base is None:
                return b""
            return _read_at(_segment_path(self._directory, base), position - base, end - position)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def release(self, position: int, *, keep_s: float = 0.0) -> None:
        """Delete the segments that lie wholly before `position` and were last written more than `keep_s` seconds ago.

        The active segment always stays. Raises OutboxUnavailable.
        """
        # File times are of the wall clock.
        kept_since = time.time() - keep_s
        try:
            segments = _segments(self._directory)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot release: {error.strerror}") from error
        for base, following in itertools.pairwise(segments):
            path = _segment_path(self._directory, base)
            try:
                if following > position or (keep_s > 0 and path.stat().st_mtime > kept_since):
                    break
                path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutboxUnavailable(f"outbox: cannot release: {error.strerror}") from error

    def _read_once(self, position: int, max_records: int) -> list[tuple[int, bytes]]:
        """Read once from the segment that holds `position`. Returns an empty list when nothing is there yet."""
        # List the segments before reading: if a next one exists now, this one is finished and will not grow.
        segments = _segments(self._directory)
        base = max((base for base in segments if base <= position), default=None)
        following = min((base for base in segments if base > position), default=None)
        if base is None:
            if following is None:
                return []
            raise OutboxDamaged(f"outbox: {self._directory} begins at {following}, wanted {position}")
        data = _read_at(_segment_path(self._directory, base), position - base)
        records, _, is_torn = _parse(data, max_records)
        if records:
            return [(position + end, payload) for end, payload in records]
        if is_torn and following is not None and (reached := self._behind_zeros(position)) > position:
            return self._read_once(reached, max_records)
        if is_torn and (following is not None or _is_damaged(data)):
            raise OutboxDamaged(f"outbox: {self._directory} is damaged at position {position}")
        if following is not None:
            # This is the end of a finished segment, and the next segment begins somewhere else.
            raise OutboxDamaged(f"outbox: {self._directory} lacks positions {position} to {following}")
        return []


class Cursor:
    """The position up to which a worker's outbox is shipped, or read by another reader, in a file beside it."""

    def __init__(self, settings: OutboxSettings, worker: str, name: str = "cursor") -> None:
        self._path = Path(settings.directory) / worker / name
        self._is_told = False

    def load(self) -> int | None:
        """Returns the stored position, or None if there is none. A damaged file counts as none: a log line says so.

        Kafka has the cursor, too, and the next `store` mends the file. Raises OutboxUnavailable.
        """
        try:
            text = self._path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read the cursor: {error.strerror}") from error
        if _POSITION.fullmatch(text) is None:
            if not self._is_told:
                _log.error("outbox: %s holds no position and counts as missing", self._path)
            self._is_told = True
            return None
        return int(text)

    def store(self, position: int) -> None:
        """Store `position` on disk. A crash during the call leaves the earlier position.

        Raises OutboxUnavailable.
        """
        new = self._path.with_name(self._path.name + ".new")
        try:
            with new.open("w", encoding="ascii") as file:
                file.write(f"{position}\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot store the cursor: {error.strerror}") from error


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


def _check(settings: OutboxSettings) -> None:
    if settings.fsync not in _FSYNC_POLICIES:
        raise Misconfigured(f"outbox: fsync must be one of {', '.join(_FSYNC_POLICIES)}, is {settings.fsync}")
    if settings.total_bytes_max < 2 * settings.segment_bytes:
        # Before there is a cursor, only whole segments that were deleted count as shipped.
        raise Misconfigured("outbox: total_bytes_max must be at least twice segment_bytes")


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Misconfigured(f"outbox: {path.parent} has another writer") from None
    return lock


def framed(payload: bytes) -> bytes:
    # Size 0 is excluded because a hole in a file reads as zeros, which would be an empty record.
    assert 0 < len(payload) <= PAYLOAD_BYTES_MAX, "payload size"
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def _segment_path(directory: Path, base: int) -> Path:
    return directory / f"{base:020d}{_SUFFIX}"


def _segments(directory: Path) -> list[int]:
    """Returns the positions at which the segments begin, ascending."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(_SUFFIX)) for name in names if _SEGMENT.fullmatch(name))


def _open_segment(directory: Path, base: int) -> int:
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    return os.open(_segment_path(directory, base), flags, 0o600)


def _rewrite(path: Path, offset: int, end: int | None = None) -> None:
    """Write the records from `offset` on once more, and sync them. Raises OSError, also if they are not whole.

    `end`: where the records end, if that is not the file's end.
    """
    size = path.stat().st_size if end is None else end
    if size <= offset:
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = os.pread(fd, size - offset, offset)
        if _parse(data, len(data))[2]:
            raise OSError(errno.EIO, "records cannot be read back")
        if os.pwrite(fd, data, offset) != len(data):
            raise OSError(errno.ENOSPC, "no space left")
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _read_at(path: Path, offset: int, size_max: int = _READ_BYTES) -> bytes:
    """Returns at most `size_max` bytes from `offset` on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size_max, offset)
    finally:
        os.close(fd)


def _parse(data: bytes, max_records: int) -> tuple[list[tuple[int, bytes]], int, bool]:
    """Returns records with the offset after each, the offset reached, and whether no record begins there."""
    records: list[tuple[int, bytes]] = []
    offset = 0
    while len(records) < max_records and offset < len(data):
        payload = _record_at(data, offset)
        if payload is None:
            return records, offset, True
        offset += _RECORD.size + len(payload)
        records.append((offset, payload))
    return records, offset, False


def records_in(data: bytes) -> tuple[list[bytes], int]:
    """Returns the payloads of the records at the beginning of `data`, and the offset up to which there are any."""
    records, end, _ = _parse(data, max_records=len(data))
    return [payload for _, payload in records], end


def _find_record(path: Path, start: int) -> int | None:
    """Returns the offset of the first whole record that begins at `start` or later, or None."""
    size = path.stat().st_size
    for begin in range(start, size, _READ_BYTES):
        data = _read_at(path, begin, _READ_BYTES + _RECORD.size + PAYLOAD_BYTES_MAX)
        # Few offsets have a size that fits, and only their checksums are computed.
        view = np.frombuffer(data, dtype=np.uint8).astype(np.int32)
        sizes = view[:-3] | view[1:-2] << 8 | view[2:-1] << 16 | view[3:] << 24
        fits = (sizes > 0) & (sizes <= PAYLOAD_BYTES_MAX) & (np.arange(len(sizes)) + sizes + _RECORD.size <= len(data))
        for offset in np.flatnonzero(fits[:_READ_BYTES]).tolist():
            if _record_at(data, offset) is not None:
                return begin + offset
    return None


def _record_at(data: bytes, offset: int) -> bytes | None:
    start = offset + _RECORD.size
    if start > len(data):
        return None
    size, checksum = _RECORD.unpack_from(data, offset)
    if not 0 < size <= PAYLOAD_BYTES_MAX or start + size > len(data):
        return None
    payload = data[start : start + size]
    return payload if zlib.crc32(payload) == checksum else None


def _is_damaged(rest: bytes) -> bool:
    """Whether `rest`, which begins with no whole record, is damage and not the part of a record being written."""
    if len(rest) < _RECORD.size:
        return False
    (size, _) = _RECORD.unpack_from(rest)
    if not any(rest):
        return False  # the file grew, but its bytes were not written: the machine lost power
    return not 0 < size <= PAYLOAD_BYTES_MAX or _RECORD.size + size < len(rest)


def _recover(directory: Path, shipped: int) -> tuple[int, int]:
    """Returns base and end of the segment to append to; they are equal for a new segment.

    `shipped`: the companion's cursor. The last segment is continued only if it ends with a whole record.
    """
    segments = _segments(directory)
    if not segments:
        return shipped, shipped
    base = segments[-1]
    data = _segment_path(directory, base).read_bytes()
    end = base + len(data)
    _, whole, is_torn = _parse(data, max_records=len(data))
    if is_torn and any(data[whole:]):
        _log.error("outbox: %s is damaged at position %d; going on in a new segment", directory, base + whole)
    if is_torn or shipped > end:
        # After a loss of power the companion may be ahead of the log, and would never ship a record at a position that
        # it has passed.
        base = end = max(end, shipped)
    return base, end
