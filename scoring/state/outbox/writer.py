"""The one writer of a worker's outbox. The package's docstring says what follows a failure."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricsRegistry
from paywarden.scoring.state.disk_room import reserve
from paywarden.scoring.state.outbox.files import framed, parse, segment_path, segments_in
from paywarden.scoring.state.outbox.outbox_reader import Cursor
from paywarden.scoring.state.outbox.outbox_settings import OutboxFull, OutboxSettings, OutboxUnavailable, OutboxUnsynced

_log = logging.getLogger(__name__)

_FSYNC_POLICIES = ("never", "interval", "always")
# With less room than this an outbox counts as full: a batch may not fit any more.
_ROOM_BYTES = 1024 * 1024
# A block of a file system. Zeros are no record.
_PROBE = bytes(4096)
# How much room is reserved ahead: some 2,000 decisions at first, a second of a busy worker's at most.
_AHEAD_BYTES = 1024 * 1024
_AHEAD_BYTES_MAX = 16 * _AHEAD_BYTES


@dataclass(frozen=True)
class OutboxMetrics:
    """A worker's metrics of its outbox. The worker exports them, so they exist without a companion."""

    unshipped_bytes: Gauge
    refused: Counter

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> OutboxMetrics:
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
        self._metrics = metrics or OutboxMetrics.declare(MetricsRegistry())
        self._directory = Path(settings.directory) / worker
        self._cursor = Cursor(settings, worker)
        try:
            make_private_folder(self._directory)
            self._lock = _lock(self._directory / "lock")
            shipped = self._cursor.load() or 0
            self._base, self._end = _recover(self._directory, shipped)
            if settings.fsync != "never":
                _sync_unshipped(self._directory, shipped)
            self._fd = _open_segment(self._directory, self._base)
            if settings.fsync != "never":
                sync_folder(self._directory)
        except OSError as error:
            raise Misconfigured(f"outbox: cannot use {self._directory}: {error.strerror}") from error
        # The companion's cursor when it was last read. Before there is a cursor: the beginning of the oldest segment.
        self._shipped = self._look_shipped()
        # Why the last append failed; empty after one that worked. And why no append of this process can work any more.
        self._failure = self._end_reason = ""
        # Whether a segment could not be begun, for which it is time.
        self._begins_segment = False
        # The position up to which room is reserved, and how much is reserved ahead of the next write.
        self._reserved, self._ahead_bytes = self._base, _AHEAD_BYTES
        self._looked_at = self._end
        self._syncer: _Syncer | None = None
        if settings.fsync == "interval":
            self._syncer = _Syncer(self._directory, self._fd, settings.fsync_interval_ms)

    @property
    def position(self) -> int:
        """The position at which the next record will begin."""
        return self._end

    def append(self, payload: bytes) -> int:
        """Append one record; returns the position after it. Raises OutboxFull or OutboxUnavailable."""
        return self.append_frames(framed(payload))

    def append_frames(self, frames: bytes) -> int:
        """Append framed records (see `framed`), concatenated, in one write: all, or none if it raises.

        After a crash, or OutboxUnsynced, the first few may be there, or all. Returns the position after them. Raises
        OutboxFull or OutboxUnavailable.
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
        if self._settings.fsync != "never" and not self._lasting_failure():
            os.fdatasync(self._fd)
        os.close(self._fd)
        os.close(self._lock)

    def note_unshipped(self) -> None:
        """Update the metric of unshipped bytes. Reads a directory and a file, so not for every payment."""
        self._shipped = self._look_shipped()
        self._metrics.unshipped_bytes.set(self._end - self._shipped)

    def trouble(self) -> str:
        """Returns why no decision can be recorded now; empty if one can. Asks no disk: see `look`."""
        if why := self.must_end() or self._failure:
            return why
        unshipped, limit = self._end - self._shipped, self._settings.total_bytes_max
        if limit - unshipped < min(_ROOM_BYTES, limit // 8):
            return f"outbox: full: {unshipped} bytes not shipped, the limit is {limit}"
        return ""

    def look(self, *, tries_disk: bool = True) -> None:
        """After a failure, or without an append since the last look, try whether the disk would take one.

        Writes a few kilobytes, so not for every payment. Without `tries_disk` it writes nothing unless the last append
        has failed. Raises OutboxUnavailable.
        """
        if self._begins_segment:
            self._rotate()
        if self._failure or (tries_disk and self._end == self._looked_at):
            self._probe()
        self._reserve(len(_PROBE))
        self._looked_at = self._end

    def must_end(self) -> str:
        """Returns why only the writer of another process can append; empty if this one can.

        Nobody would read what is appended to a segment that someone has deleted. Nothing may follow half a record. And
        after a failed sync the kernel takes pages for clean that are not on disk.
        """
        if lasting := self._lasting_failure():
            return lasting
        return "outbox: its files were deleted" if os.fstat(self._fd).st_nlink == 0 else ""

    def _lasting_failure(self) -> str:
        return self._end_reason or ("" if self._syncer is None else self._syncer.failure)

    def _try_write(self, records: bytes) -> int:
        if lasting := self._lasting_failure():
            raise OutboxUnavailable(lasting)
        self._make_room(len(records))
        if self._end + len(records) > self._reserved:
            self._reserve(len(records))
        try:
            written = os.write(self._fd, records)
        except OSError as error:
            raise self._refused(f"outbox: cannot append: {error.strerror}") from error
        if written != len(records):
            # A reader may have passed the first records by now. A part of one behind them would be taken for damage.
            with suppress(OSError):
                os.ftruncate(self._fd, self._end - self._base + parse(records[:written], written)[1])
            raise self._ended("outbox: cannot append: no space left for all of it")
        self._end += written
        if self._settings.fsync == "always":
            self._sync()
        self._failure = ""
        return self._end

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._ended(f"outbox: sync failed: {error.strerror}") from error

    def _refused(self, why: str) -> OutboxUnavailable:
        """Returns the error of an append of which nothing is there. The next one may work."""
        self._failure = why
        return OutboxUnavailable(why)

    def _ended(self, why: str) -> OutboxUnsynced:
        """Returns the error of an append that only the next process can follow: what it has written may be read."""
        self._end_reason = why
        return OutboxUnsynced(why)

    def _make_room(self, size: int) -> None:
        limit = self._settings.total_bytes_max
        if self._end + size - self._shipped > limit:
            # The cursor may be unreadable for a moment; then the last one that was read holds.
            with suppress(OSError):
                self._shipped = self._look_shipped()
            if self._end + size - self._shipped > limit:
                raise OutboxFull(f"outbox: {self._end - self._shipped} bytes not shipped, the limit is {limit}")
        is_full = self._end > self._base and self._end + size - self._base > self._settings.segment_bytes
        if is_full or self._begins_segment:
            self._rotate()

    def _reserve(self, size: int) -> None:
        """Reserve room on disk for the next `size` bytes and, if there is some, for more. Raises OutboxUnavailable."""
        ahead = max(size, min(self._ahead_bytes, self._base + self._settings.segment_bytes - self._end))
        if self._reserved >= self._end + max(size, ahead // 2):
            return
        if self._reserved > self._end:
            # Half of the part that was reserved last is used up.
            self._ahead_bytes = min(2 * self._ahead_bytes, _AHEAD_BYTES_MAX)
        try:
            try:
                can_reserve = reserve(self._fd, self._end - self._base, ahead)
            except OSError:
                ahead = size
                can_reserve = reserve(self._fd, self._end - self._base, ahead)
        except OSError as error:
            raise self._refused(f"outbox: cannot append: {error.strerror}") from error
        # A segment is on one file system: asking again would say the same.
        self._reserved = self._end + ahead if can_reserve else sys.maxsize

    def _look_shipped(self) -> int:
        """Returns the companion's cursor, as far as it can be true. Raises OutboxUnavailable."""
        try:
            oldest = min(segments_in(self._directory), default=self._base)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read {self._directory}: {error.strerror}") from error
        return max(oldest, min(self._cursor.load() or 0, self._end))

    def _rotate(self) -> None:
        """Start a new segment; the old one is never written to again."""
        self._begins_segment = True
        try:
            fd = _open_segment(self._directory, self._end)
        except OSError as error:
            raise self._refused(f"outbox: cannot begin a segment: {error.strerror}") from error
        try:
            if self._settings.fsync == "always":
                sync_folder(self._directory)
            if self._syncer is not None:
                self._syncer.follow(fd)
        except OSError as error:
            os.close(fd)
            # The new segment exists, so the old one must not grow.
            raise self._ended(f"outbox: cannot begin a segment: {error.strerror}") from error
        finished, self._fd, self._base = self._fd, fd, self._end
        self._reserved, self._begins_segment = self._base, False
        # The descriptor is closed even if `close` reports an error.
        with suppress(OSError):
            os.close(finished)

    def _probe(self) -> None:
        """Try whether the disk takes a write: zeros, which are no record, and are cut off again."""
        try:
            written = os.write(self._fd, _PROBE)
        except OSError as error:
            raise self._refused(f"outbox: cannot append: {error.strerror}") from error
        try:
            # It gives up the room that is reserved, too.
            os.ftruncate(self._fd, self._end - self._base)
        except OSError as error:
            raise self._ended(f"outbox: zeros cannot be cut off: {error.strerror}") from error
        self._reserved, self._ahead_bytes = self._base, _AHEAD_BYTES
        if written != len(_PROBE):
            raise self._refused("outbox: cannot append: no space left")
        self._failure = ""


class _Syncer:
    """A thread that calls fdatasync on the segments at intervals. It has file descriptors of its own."""

    def __init__(self, directory: Path, fd: int, interval_ms: int) -> None:
        self.failure = ""
        """Why a sync failed. Nothing is synced after that."""
        self._directory = directory
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
            finished, active = self._fds[:-1], self._fds[-1:]
            self._fds = list(active)
        try:
            for fd in finished + active:
                os.fdatasync(fd)
            if finished:
                sync_folder(self._directory)
        except OSError as error:
            # The kernel drops a page that it could not write: from here on the content of the disk is unknown.
            self.failure = f"outbox: sync failed: {error.strerror}"
        for fd in finished:
            with suppress(OSError):
                os.close(fd)


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


def _open_segment(directory: Path, base: int) -> int:
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(segment_path(directory, base), flags, 0o600)


def _sync_unshipped(directory: Path, shipped: int) -> None:
    """Write the records behind `shipped` once more, in place, and sync them. Raises OSError.

    After a failed sync of an earlier process the kernel takes pages for clean that are not on disk.
    """
    for base in segments_in(directory):
        path, offset = segment_path(directory, base), max(0, shipped - base)
        if path.stat().st_size <= offset:
            continue
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            data = os.pread(fd, path.stat().st_size - offset, offset)
            whole = data[: parse(data, len(data))[1]]
            if os.pwrite(fd, whole, offset) != len(whole):
                raise OSError(errno.ENOSPC, "no space left")
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _recover(directory: Path, shipped: int) -> tuple[int, int]:
    """Returns base and end of the segment to append to; they are equal for a new segment.

    `shipped`: the companion's cursor. The last segment is continued only if it ends with a whole record.
    """
    segments = segments_in(directory)
    if not segments:
        return shipped, shipped
    base = segments[-1]
    data = read_regular(segment_path(directory, base), None)
    end = base + len(data)
    _, whole, is_torn = parse(data, max_records=len(data))
    if is_torn and any(data[whole:]):
        _log.error("outbox: %s is damaged at position %d; going on in a new segment", directory, base + whole)
    if is_torn or shipped > end:
        # After a loss of power the companion may be ahead of the log, and would never ship a record at a position that
        # it has passed.
        base = end = max(end, shipped)
    return base, end
