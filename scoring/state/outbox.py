"""The local log between a scoring worker and the companion that ships its decisions.

One directory per worker. A *position* counts bytes since the outbox was first opened:

    <outbox>/<worker>/00000000000000000000.log     records of positions 0 …          whole, shipped or not
                      00000000000067108839.log     … from that position on           active: appended to
                      cursor                       how far the companion has shipped
                      lock                         held by the one writer

    record = u32 payload size │ u32 crc32 of the payload │ payload          little endian, size 1 … 256 KiB

1. The writer appends each record by one `write` to the end of the last segment and starts a new segment when
   that one is full. What `append` returned for has left the process: `kill -9` cannot take it back.
2. A crash can leave part of a record at the end. A reader stops in front of it and waits; the next writer
   cuts it off. It was never acknowledged, since `append` had not returned.
3. Anything else that does not read as a record is damage, and the reader says so instead of going on: a
   wrong checksum or size with more behind it, a segment that ends early, a hole between segments. A writer
   that finds damage leaves it for the operator to see and goes on in a new segment.
4. The reader deletes segments that are shipped whole and old enough that nobody asks for their decisions again. The
   writer's `total_bytes_max` bounds what is not shipped; what is shipped and kept comes on top of it.

What survives a loss of power is the `fsync` setting's choice, see OutboxSettings.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.scoring.metrics.shared import Counter, Gauge, Registry

_log = logging.getLogger(__name__)

_RECORD = struct.Struct("<II")
_SUFFIX = ".log"
# A decision is about 500 bytes. The bound tells a damaged size from a record that is still being written.
PAYLOAD_BYTES_MAX = 256 * 1024
# What a reader takes from the file at once; at least one record of the largest size must fit.
_READ_BYTES = 1024 * 1024
# What is read at first for a single record.
_USUAL_BYTES = 4096
_FSYNC_POLICIES = ("never", "interval", "always")


class OutboxFull(TemporaryFailure):
    """`total_bytes_max` is reached: the companion does not ship, or not fast enough. Nothing was written."""


class OutboxUnavailable(TemporaryFailure):
    """The disk under the outbox refused. The record was not acknowledged."""


class OutboxDamaged(Misconfigured):
    """The log holds something no crash of a process leaves behind. Needs an operator."""


@dataclass(frozen=True)
class OutboxSettings:
    """How much an outbox holds, and when it is safe from what.

    fsync = "never": a record survives the death of the process, not of the machine: the kernel writes it to
    disk within about 30 s. "interval": of the machine too, once it is `fsync_interval_ms` old (a thread of the
    writer sees to it, callers do not wait). "always": before `append` returns, which then takes as long as
    the disk does.
    """

    directory: str = "outbox"
    segment_bytes: int = 64 * 1024 * 1024
    # Of what is not shipped. Two million decisions: half an hour of 1,000 a second without a broker. What was answered
    # within `[answered] window_s` is kept on top of it.
    total_bytes_max: int = 1024 * 1024 * 1024
    fsync: str = "never"
    fsync_interval_ms: int = 200


@dataclass(frozen=True)
class OutboxMetrics:
    """What a worker tells of its outbox, whether or not a companion is there to tell it."""

    unshipped_bytes: Gauge
    refused: Counter

    @classmethod
    def declare(cls, registry: Registry) -> OutboxMetrics:
        return cls(
            registry.gauge(
                "paywarden_outbox_unshipped_bytes", "Decisions in the fullest outbox that are not shipped.", scale=1
            ),
            registry.counter(
                "paywarden_outbox_refused_total", "Appends refused: the outbox is full or its disk fails."
            ),
        )


class OutboxWriter:
    """The one writer of a worker's outbox. Not for use from two threads at once.

    Raises Misconfigured when there is another writer, the directory cannot be used or the settings cannot be.
    """

    def __init__(self, settings: OutboxSettings, worker: str, metrics: OutboxMetrics | None = None) -> None:
        _check(settings)
        self._settings = settings
        self._metrics = metrics or OutboxMetrics.declare(Registry())
        self._directory = Path(settings.directory) / worker
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(self._directory / "lock")
            self._base, self._end = _recover(self._directory)
            self._fd = _open_segment(self._directory, self._base)
        except OSError as error:
            raise Misconfigured(f"outbox: cannot use {self._directory}: {error.strerror}") from error
        # How far the companion had shipped when that was last looked at; before it has said so, the oldest segment.
        self._shipped = self._look_shipped()
        self._failure = ""
        self._syncer: _Syncer | None = None
        if settings.fsync != "never":
            _fsync_directory(self._directory)
        if settings.fsync == "interval":
            self._syncer = _Syncer(self._directory, self._fd, settings.fsync_interval_ms)

    @property
    def position(self) -> int:
        """Where the next record will begin."""
        return self._end

    def append(self, payload: bytes) -> int:
        """Append one record; returns the position after it. Raises OutboxFull or OutboxUnavailable."""
        return self.append_frames(framed(payload))

    def append_frames(self, frames: bytes) -> int:
        """Append records that have been framed (see `framed`), one behind the other: all, or none if it raises.

        In one write; after a crash, the first few may be there. Returns and raises as `append` does.
        """
        try:
            return self._try_write(frames)
        except TemporaryFailure:
            self._metrics.refused.add(1)
            raise

    def close(self) -> None:
        """Give up the outbox. Records stay; with fsync "interval" or "always" they are on disk afterwards."""
        if self._syncer is not None:
            self._syncer.stop()
        if self._settings.fsync != "never":
            os.fdatasync(self._fd)
        os.close(self._fd)
        os.close(self._lock)

    def note_unshipped(self) -> None:
        """Tell how much is not shipped. Reads a directory and a file: now and then, not per payment."""
        self._shipped = self._look_shipped()
        self._metrics.unshipped_bytes.set(self._end - self._shipped)

    def _try_write(self, records: bytes) -> int:
        failure = self._failure or (self._syncer.failure if self._syncer is not None else "")
        if failure:
            raise OutboxUnavailable(failure)
        self._make_room(len(records))
        try:
            written = os.write(self._fd, records)
            if written == len(records) and self._settings.fsync == "always":
                os.fdatasync(self._fd)
        except OSError as error:
            self._take_back(str(error.strerror))
        if written != len(records):
            self._take_back("no space left")
        self._end += written
        return self._end

    def _make_room(self, size: int) -> None:
        limit = self._settings.total_bytes_max
        if self._end + size - self._shipped > limit:
            self._shipped = self._look_shipped()
            if self._end + size - self._shipped > limit:
                raise OutboxFull(f"outbox: {self._end - self._shipped} bytes not shipped, the limit is {limit}")
        if self._end > self._base and self._end + size - self._base > self._settings.segment_bytes:
            self._rotate()

    def _look_shipped(self) -> int:
        return max(_segments(self._directory)[0], min(_shipped(self._directory), self._end))

    def _rotate(self) -> None:
        """Start a new segment; the old one is never written to again."""
        try:
            fd = _open_segment(self._directory, self._end)
            if self._settings.fsync == "always":
                _fsync_directory(self._directory)
        except OSError as error:
            # The new segment may exist, so the old one must not grow past its beginning.
            self._failure = f"outbox: cannot begin a segment: {error.strerror}"
            raise OutboxUnavailable(self._failure) from error
        if self._syncer is not None:
            self._syncer.follow(fd)
        os.close(self._fd)
        self._fd, self._base = fd, self._end

    def _take_back(self, reason: str) -> NoReturn:
        """A write failed or was cut short: remove what there is of it, so that later records follow the earlier."""
        try:
            os.ftruncate(self._fd, self._end - self._base)
        except OSError as error:
            # Nothing may follow half a record: this writer has ended.
            self._failure = f"outbox: a failed write could not be taken back: {error.strerror}"
        raise OutboxUnavailable(f"outbox: cannot append: {reason}")


class _Syncer:
    """A thread that brings the segments it follows to disk at intervals. Has descriptors of its own."""

    def __init__(self, directory: Path, fd: int, interval_ms: int) -> None:
        self.failure = ""
        self._directory = directory
        self._interval_seconds = interval_ms / 1000
        self._lock = threading.Lock()
        self._fds = [os.dup(fd)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-sync", daemon=True)
        self._thread.start()

    def follow(self, fd: int) -> None:
        """Also sync `fd` from now on; those followed earlier once more, to their end."""
        with self._lock:
            self._fds.append(os.dup(fd))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            with self._lock:
                finished, active = self._fds[:-1], self._fds[-1:]
                self._fds = list(active)
            try:
                for fd in finished + active:
                    os.fdatasync(fd)
                if finished:
                    _fsync_directory(self._directory)
            except OSError as error:
                # The kernel forgets a page it could not write: what is on disk is not known from here on.
                self.failure = f"outbox: sync failed: {error.strerror}"
            for fd in finished:
                os.close(fd)


class OutboxReader:
    """Reads a worker's outbox, in another process and while it is written."""

    def __init__(self, settings: OutboxSettings, worker: str) -> None:
        self._directory = Path(settings.directory) / worker

    def read(self, position: int, max_records: int) -> list[tuple[int, bytes]]:
        """Up to `max_records` records from `position` on, each with the position after it.

        Fewer when no more are there yet, none when there is nothing new: ask again later. Raises
        OutboxDamaged (once all records before the damage are given) and OutboxUnavailable.
        """
        found: list[tuple[int, bytes]] = []
        while len(found) < max_records:
            try:
                records = self._read_once(position, max_records - len(found))
            except OutboxDamaged:
                if found:
                    break
                raise
            except OSError as error:
                raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
            if not records:
                break
            found += records
            position = records[-1][0]
        return found

    def at(self, position: int) -> bytes | None:
        """The record that begins at `position`; None where none does. Raises OutboxUnavailable."""
        base = max((base for base in _segments(self._directory) if base <= position), default=None)
        if base is None:
            return None
        try:
            data = _read_at(_segment_path(self._directory, base), position - base, _RECORD.size + _USUAL_BYTES)
            (size, _) = _RECORD.unpack_from(data) if len(data) >= _RECORD.size else (0, 0)
            if _USUAL_BYTES < size <= PAYLOAD_BYTES_MAX:
                data = _read_at(_segment_path(self._directory, base), position - base, _RECORD.size + size)
        except FileNotFoundError:
            # Released since it was listed.
            return None
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error
        return _record_at(data, 0)

    def start(self, cursor: Cursor) -> int:
        """Where to begin reading: where `cursor` was stored or, if it never was, with the oldest record."""
        stored = cursor.load()
        if stored is not None:
            return stored
        return min(_segments(self._directory), default=0)

    def end(self) -> int:
        """How far the outbox is written, half a record included; 0 for a new one. Raises OutboxUnavailable."""
        segments = _segments(self._directory)
        if not segments:
            return 0
        try:
            return segments[-1] + _segment_path(self._directory, segments[-1]).stat().st_size
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot read: {error.strerror}") from error

    def release(self, position: int, *, keep_s: float = 0.0) -> None:
        """Delete the segments that lie wholly before `position` and were last written to over `keep_s` ago.

        Never the one that is written to.
        """
        # A file's times are those of the wall clock.
        kept_since = time.time() - keep_s
        for base, following in itertools.pairwise(_segments(self._directory)):
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
        """What one read of the segment that holds `position` gives; empty when there is nothing yet."""
        # Listed before it is read: if there is a next segment now, what is read of this one is final.
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
        if is_torn and (following is not None or _is_damaged(data)):
            raise OutboxDamaged(f"outbox: {self._directory} is damaged at position {position}")
        if following is not None:
            # At the end of a finished segment, and the next one does not begin here.
            raise OutboxDamaged(f"outbox: {self._directory} lacks positions {position} to {following}")
        return []


class Cursor:
    """How far a worker's outbox is shipped, kept beside it."""

    def __init__(self, settings: OutboxSettings, worker: str) -> None:
        self._path = Path(settings.directory) / worker / "cursor"

    def load(self) -> int | None:
        """The position last stored, None if none ever was. Raises OutboxDamaged."""
        try:
            text = self._path.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        if not text.strip().isdecimal():
            raise OutboxDamaged(f"outbox: {self._path} holds no position")
        return int(text)

    def store(self, position: int) -> None:
        """Store `position`; when this returns it is on disk, and a crash on the way leaves the earlier one.

        Raises OutboxUnavailable.
        """
        new = self._path.with_suffix(".new")
        try:
            with new.open("w", encoding="ascii") as file:
                file.write(f"{position}\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            _fsync_directory(self._path.parent)
        except OSError as error:
            raise OutboxUnavailable(f"outbox: cannot store the cursor: {error.strerror}") from error


def workers(settings: OutboxSettings) -> list[str]:
    """The names of all workers that have an outbox, living or not: each may hold decisions to be shipped."""
    root = Path(settings.directory)
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def _check(settings: OutboxSettings) -> None:
    if settings.fsync not in _FSYNC_POLICIES:
        raise Misconfigured(f"outbox: fsync must be one of {', '.join(_FSYNC_POLICIES)}, is {settings.fsync}")
    if settings.total_bytes_max < 2 * settings.segment_bytes:
        # Before there is a cursor only whole segments count as shipped.
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
    """Positions at which the segments begin, ascending."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))


def _open_segment(directory: Path, base: int) -> int:
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    return os.open(_segment_path(directory, base), flags, 0o600)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_at(path: Path, offset: int, size_max: int = _READ_BYTES) -> bytes:
    """Up to `size_max` bytes from `offset` on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size_max, offset)
    finally:
        os.close(fd)


def _parse(data: bytes, max_records: int) -> tuple[list[tuple[int, bytes]], int, bool]:
    """Records of `data` with the offsets after them, the offset reached, and whether no record begins there."""
    records: list[tuple[int, bytes]] = []
    offset = 0
    while len(records) < max_records and offset < len(data):
        payload = _record_at(data, offset)
        if payload is None:
            return records, offset, True
        offset += _RECORD.size + len(payload)
        records.append((offset, payload))
    return records, offset, False


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
    """Whether `rest`, which begins with no whole record, is more than part of one that is being written."""
    if len(rest) < _RECORD.size:
        return False
    (size, _) = _RECORD.unpack_from(rest)
    if not any(rest):
        return False  # a file that grew before its bytes came: the machine lost power
    return not 0 < size <= PAYLOAD_BYTES_MAX or _RECORD.size + size < len(rest)


def _recover(directory: Path) -> tuple[int, int]:
    """(base, end) of the segment to append to, its torn end cut off. Base and end are equal for a new one."""
    segments = _segments(directory)
    base = segments[-1] if segments else 0
    end, damaged = _scan(_segment_path(directory, base), base) if segments else (0, False)
    shipped = _shipped(directory)
    if damaged:
        _log.error("outbox: %s is damaged before position %d; going on in a new segment", directory, end)
    if damaged or shipped > end:
        # Damage stays where it is. And after a loss of power the companion may be further than the log: a
        # record written at a position it has passed would never be shipped.
        end = base = max(end, shipped)
    return base, end


def _shipped(directory: Path) -> int:
    return Cursor(OutboxSettings(directory=str(directory.parent)), directory.name).load() or 0


def _scan(path: Path, base: int) -> tuple[int, bool]:
    """The position the segment ends at, after its torn end was cut off, and whether there is damage in it."""
    data = path.read_bytes()
    _, used, is_torn = _parse(data, max_records=len(data))
    if is_torn and _is_more_than_torn(data[used:]):
        return base + len(data), True
    if is_torn:
        os.truncate(path, used)
    return base + used, False


def _is_more_than_torn(rest: bytes) -> bool:
    """Whether a cut at the beginning of `rest` would lose a record: it is too long for one, or one follows."""
    if not any(rest):
        return False
    if len(rest) > _RECORD.size + PAYLOAD_BYTES_MAX:
        return True
    return any(_record_at(rest, offset) is not None for offset in range(1, len(rest) - _RECORD.size))
