"""The companion's side of the mirror: the one process that writes its file (docs/internals/mirror-form.md).

    apply(profiles, positions) ─► room for all of it ─► begin 813 ─► records, slots ─► commit 813

1. A transaction is collected in memory (`Changes`) and written in one go. Nothing of it can be seen before the commit.
   A companion that dies before it leaves the transaction before; the next one takes back what it finds half done.
2. There is room for every transaction before it begins: free segments, or more of the file, or segments that were
   emptied for it. Emptying one is a transaction of its own, in which profiles move and none changes.
3. One writer at a time has the mirror's folder locked.
4. The mirror is a copy. The companion discards one that is damaged, and fills a new one. Nothing is synced before it is
   closed, so a mirror on a disk that was not closed before the machine started again is discarded, too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.durability import boot_id, write_synced
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_at, read_regular
from paywarden.schemas.private_files import make_private_folder, open_private
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state.identity_index import INDEXED, IdentityIndex, IndexNote
from paywarden.scoring.state.mirror_file import (
    CHANGELOG,
    IDENTITY,
    POSITION,
    POSITIONS,
    PROFILE_SET,
    SHARDS,
    MirrorDamaged,
    MirrorFile,
    MirrorFull,
    MirrorSettings,
    MirrorUnavailable,
    bounds_of,
    joined,
)
from paywarden.scoring.state.shards import HeldShards
from paywarden.streams.companion import mirror_write as loop

_log = logging.getLogger(__name__)

# The file beside the mirror that says in which boot of the machine it is written, and whether it was closed since.
_BOOT_FILE, _CLOSED = "boot", "closed"
_NEW_SUFFIX = ".new"
# A full mirror keeps these free: to empty a segment, and to begin with an index of nothing. One more is written to.
_RESERVED = 2
_NOT_FOR_PROFILES = _RESERVED + 1
# The file grows while this share of its segments' bytes is live. Below it, segments are emptied: at 0.7 a profile that
# is written makes one other move.
_LIVE_SHARE = 0.7
# The rest is for the ends of segments, which no record fits into, and so that emptying one is worth while.
_USABLE_SHARE, _EMPTIED_SHARE_MAX = 15 / 16, 31 / 32
# An index grows when this share of its slots was used, so that at most about eight are read to find that a key is not
# there. Where there is no room for a larger one it is filled up to the second share.
_USED_SHARE, _USED_SHARE_MAX = 3 / 4, 15 / 16
# A larger index is made so large that at most this share of it is filled.
_FILLED_SHARE = 0.6
# The slots that `check` looks at: 2 ms a second, and some minutes for a mirror of ten million profiles.
_CHECKED_SLOTS = 20_000
# As long in digits as any transaction.
_NUMBER_MAX = 10**19


class Changes:
    """The values that one transaction writes, by key; None deletes a key."""

    def __init__(self, mirror: MirrorFile) -> None:
        self._mirror = mirror
        self.values: dict[bytes, bytes | None] = {}
        self.numbered: dict[bytes, Callable[[int], bytes]] = {}
        """Values that are made from the transaction's number."""

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        self.values[key] = None

    def valued(self, transaction: int) -> dict[bytes, bytes | None]:
        """Returns all values of a transaction with this number."""
        return self.values | {key: value_of(transaction) for key, value_of in self.numbered.items()}

    def missing(self, keys: list[bytes]) -> list[bytes]:
        """Returns those of the keys that the mirror lacks before this transaction."""
        return self._mirror.missing(keys)

    def before(self, key: bytes) -> bytes | None:
        """Returns the value that a key has before this transaction."""
        return self._mirror.read([key])[key]


def discard(settings: MirrorSettings) -> None:
    """Delete a mirror. Its readers open the next one when it is there. Raises OSError."""
    settings.data_file.unlink(missing_ok=True)


class MirrorWriter(MirrorFile):
    """The companion's side of the mirror. Only one process at a time may have it."""

    failure = MirrorDamaged

    def __init__(self, settings: MirrorSettings, before_commit: Callable[[int], object] = lambda _: None) -> None:
        """Open or create the mirror. Raises Misconfigured when the path cannot be used, and MirrorDamaged.

        `before_commit` gets the number of each transaction before it writes anything.
        """
        self._settings, self._before_commit = settings, before_commit
        self._index: IdentityIndex | None = None
        folder = Path(settings.path)
        self._lock = -1
        self._file = -1
        try:
            make_private_folder(folder)
            self._lock = _locked(folder)
            self._discard_half_written(folder / _BOOT_FILE)
            if not settings.data_file.exists():
                _create(settings.data_file)
            self._file = open_private(settings.data_file, os.O_RDWR)
            super().__init__(settings.data_file, is_writer=True)
            # Memory is taken as it is used. A longer file is never made shorter: readers have all of it mapped.
            if self.file_bytes < settings.size_mb * form.SEGMENT_BYTES:
                os.ftruncate(self._file, settings.size_mb * form.SEGMENT_BYTES)
                self.follow_growth()
            self._read_state()
        except OSError as error:
            self._release()
            raise Misconfigured(f"mirror.path: cannot use {folder}: {error.strerror or error}") from error
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _discard_half_written(self, note: Path) -> None:
        """Discard a mirror on a disk that an earlier boot has not closed.

        Without syncs a loss of power leaves newer pages beside older ones, and nothing tells them apart. Raises
        OSError.
        """
        said, now = read_regular(note).decode("ascii", errors="replace").split() if note.exists() else [], boot_id()
        if said and now and said[0] != now and _CLOSED not in said:
            _log.warning(
                "mirror: %s was not closed before the machine started again: it is filled again", self._settings.path
            )
            discard(self._settings)
        write_synced(note, f"{now}\n".encode())

    # The writer's own knowledge of the file, in memory

    def _read_state(self) -> None:
        """Find out what is in use, and take back what a transaction that was never committed has left.

        Raises MirrorDamaged.
        """
        self._transaction, self._complete_to_ms = self.newest_transaction(), self.complete_to_ms() or 0
        self._state: NDArray[np.int64] = np.zeros(loop.STATE_COUNT, dtype=np.int64)
        allocated = int(self.numbers[form.LIMIT]) // form.SEGMENT_BYTES
        # A row has a place for each segment: of the size in the settings, or of a file that is larger already.
        self._segments: NDArray[np.int64] = np.zeros((3, max(self._settings.size_mb, allocated)), dtype=np.int64)
        self._segments[loop.KIND, :allocated] = loop.FREE
        self._segments[loop.KIND, 0] = loop.HEADER
        # Readers may still look at what the newest transaction has replaced.
        self._segments[loop.FREED] = self._transaction
        self._allocated, self._checked = allocated, 0
        if not loop.read_state(self.numbers, self._state, self._segments, self._transaction):
            raise MirrorDamaged("the mirror is damaged: its index names records that are not there")
        self._note_header()

    def _note_header(self) -> None:
        assert self._mapping is not None
        self._header = self._mapping[: form.HEADER_WORDS * form.WORD_BYTES]

    def _require_file(self) -> None:
        """Raises MirrorDamaged if the file is shorter than this writer has left it, gone, another one, or changed.

        Readers open the file that is there. With another one they would never see a change.
        """
        path = self._settings.data_file
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        except OSError as error:
            raise MirrorUnavailable(f"the mirror's file cannot be looked at: {error.strerror}") from error
        if size < self.file_bytes:
            raise MirrorDamaged(
                f"the mirror is damaged: its file was cut short, and lacks {self.file_bytes - size} bytes"
            )
        if file_at(path) != self.file_at:
            raise MirrorDamaged("the mirror is damaged: its file was replaced")
        assert self._mapping is not None
        if self._mapping[: len(self._header)] != self._header:
            raise MirrorDamaged("the mirror is damaged: another process has changed its header")

    def check(self) -> None:
        """Check the file, and a part of its records. Call it about once a second. Raises MirrorDamaged.

        Writing meets damage only where it writes. Raises MirrorUnavailable if the file cannot be looked at.
        """
        self._require_file()
        if not loop.check_slots(self.numbers, self._checked, _CHECKED_SLOTS):
            raise MirrorDamaged("the mirror is damaged: not all of it can be read")
        self._checked += _CHECKED_SLOTS
        if self._checked >= 1 << int(self.numbers[form.INDEX_BITS]):
            self._checked = 0

    # Transactions

    @contextmanager
    def _changing(self, complete_to_ms: int | None = None) -> Iterator[Changes]:
        """Collect a transaction, and commit it at the end of the block."""
        self._require_file()
        changes = Changes(self)
        yield changes
        self._write(changes, complete_to_ms)

    def _write(self, changes: Changes, complete_to_ms: int | None) -> None:
        """Commit changes. Raises MirrorFull, MirrorUnavailable, MirrorDamaged."""
        if self._index is not None:
            self._index.sign(changes)
        sizes = _record_sizes(changes.valued(_NUMBER_MAX))
        largest = int(sizes.max(initial=0))
        if largest > form.SEGMENT_BYTES:
            raise MirrorUnavailable(f"a profile has {largest} bytes: a mirror holds at most {form.SEGMENT_BYTES}")
        if b"" in changes.values or max(map(len, changes.values), default=0) > KEY_BYTES_MAX:
            raise MirrorUnavailable(f"a profile's key has more than {KEY_BYTES_MAX} bytes, or none")
        self._make_slots(len(sizes))
        self._make_room(int(sizes.sum()), largest)
        self._commit(changes, complete_to_ms=complete_to_ms)

    def _commit(
        self,
        changes: Changes,
        before: Callable[[int], None] = lambda _: None,
        *,
        complete_to_ms: int | None = None,
        victim: int | None = None,
    ) -> None:
        """Write a transaction for which there is room. `before` does what comes before the changes.

        `victim`: a segment whose records move.
        """
        transaction = self._transaction + 1
        arrays = _arrays(changes, transaction)
        self._before_commit(transaction)
        loop.begin_write(self.numbers, transaction)
        try:
            before(transaction)
            self._put(transaction, arrays, victim)
        except Exception:
            # Nothing was committed, and memory no longer tells what is in the file.
            self._read_state()
            raise
        if complete_to_ms is not None:
            self._complete_to_ms = complete_to_ms
        loop.commit_write(self.numbers, self._state, transaction, self._complete_to_ms)
        self._transaction = transaction
        self._note_header()

    def _put(self, transaction: int, arrays: tuple[NDArray[Any], ...], victim: int | None) -> None:
        # The changes come first: a record that one of them replaces does not move.
        is_written = loop.put_all(self.numbers, self._state, self._segments, transaction, *arrays)
        if is_written and victim is not None:
            is_written = loop.move_segment(self.numbers, self._state, self._segments, transaction, victim)
        if not is_written:
            raise MirrorDamaged("the mirror is damaged: not all of it can be read")

    def _signed(self) -> Changes:
        """Returns the changes of a transaction that changes no profile."""
        changes = Changes(self)
        if self._index is not None:
            self._index.sign(changes)
        return changes

    # Room

    def _make_room(self, size: int, largest: int) -> None:
        """Have room for records of `size` bytes together, the largest of which has `largest`.

        Raises MirrorFull, MirrorUnavailable, MirrorDamaged.
        """
        # A segment takes at least this share. After two very large records in a row, one may be less than half full.
        share, is_large = form.SEGMENT_BYTES - min(largest, form.SEGMENT_BYTES // 2), 2 * largest > form.SEGMENT_BYTES
        # Each turn gains a segment or a part of one.
        for _ in range(2 * self._segments.shape[1]):
            wanted = 0 if size <= self._room_in_open() else -(-size // share) + is_large
            lacking = wanted + _RESERVED - len(self._free())
            if lacking <= 0:
                return
            room, live = self._segments.shape[1] - self._allocated, int(self._segments[loop.LIVE].sum())
            if live + size > self._usable_bytes():
                break
            victim = self._emptiest()
            filled = 1.0 if victim is None else self._segments[loop.LIVE, victim] / form.SEGMENT_BYTES
            is_dense = live + size > self._heap_bytes() * _LIVE_SHARE or filled > _LIVE_SHARE
            if room > 0 and is_dense:
                self._extend(self._allocated + min(lacking, room))
            elif filled <= _EMPTIED_SHARE_MAX:
                self._commit(self._signed(), victim=victim)
            else:
                break
        raise self._full()

    def _make_slots(self, count: int) -> None:
        """Have slots for `count` more records, if need be in a larger index, which is a transaction of its own.

        Raises MirrorFull, MirrorUnavailable.
        """
        used, entries = int(self._state[loop.USED]) + count, int(self._state[loop.ENTRIES]) + count
        slots = 1 << int(self.numbers[form.INDEX_BITS])
        if used <= slots * _USED_SHARE:
            return
        bits = max(form.INDEX_BITS_MIN, int(entries / _FILLED_SHARE).bit_length())
        first = self._run_of_free(_index_bytes(bits) // form.SEGMENT_BYTES)
        if first is None:
            if used > slots * _USED_SHARE_MAX:
                raise self._full()
            return
        self._commit(self._signed(), lambda transaction: self._begin_index(first, bits, transaction))

    def _begin_index(self, first: int, bits: int, transaction: int, *, is_emptied: bool = False) -> None:
        """Put an index into the segments from `first` on, with all records or, if `is_emptied`, none."""
        segments = self._segments
        gone = segments[loop.KIND] == loop.INDEX
        if is_emptied:
            gone |= segments[loop.KIND] == loop.RECORDS
            segments[loop.LIVE] = 0
        loop.grow_index(self.numbers, self._state, first * form.SEGMENT_BYTES, bits, is_emptied)
        segments[loop.KIND, gone], segments[loop.FREED, gone] = loop.FREE, transaction
        segments[loop.KIND, first : first + _index_bytes(bits) // form.SEGMENT_BYTES] = loop.INDEX
        self._checked = 0

    def _run_of_free(self, count: int) -> int | None:
        """Returns the first of `count` free segments in a row, made free if need be; None if there are none.

        Raises MirrorUnavailable.
        """
        is_free = self._segments[loop.KIND] == loop.NO_ROOM
        if np.count_nonzero(is_free) + len(self._free()) < count + _RESERVED:
            return None
        is_free[self._free()] = True
        ends = np.cumsum(is_free)
        runs = np.flatnonzero(ends[count - 1 :] - np.concatenate(([0], ends[:-count])) == count)
        if not len(runs):
            return None
        first = int(runs[0])
        if first + count > self._allocated:
            self._extend(first + count)
        return first

    def _extend(self, allocated: int) -> None:
        """Have memory for the file's first `allocated` segments. Raises MirrorUnavailable."""
        at = self._allocated * form.SEGMENT_BYTES
        try:
            # Allocate now: if the file system had no room for a page later, touching it would kill the process.
            os.posix_fallocate(self._file, at, allocated * form.SEGMENT_BYTES - at)
        except OSError as error:
            raise MirrorUnavailable(f"the mirror cannot be written: {error.strerror}") from error
        loop.note_allocated(self.numbers, allocated * form.SEGMENT_BYTES)
        self._segments[loop.KIND, self._allocated : allocated] = loop.FREE
        self._segments[loop.FREED, self._allocated : allocated] = -1
        self._allocated = allocated
        self._note_header()

    def _free(self) -> NDArray[np.int64]:
        """Returns the segments that the next transaction may write to."""
        kinds, freed = self._segments[loop.KIND], self._segments[loop.FREED]
        return np.flatnonzero((kinds == loop.FREE) & (freed <= self._transaction))

    def _room_in_open(self) -> int:
        opened = int(self._state[loop.OPEN])
        return 0 if opened < 0 else (opened + 1) * form.SEGMENT_BYTES - int(self._state[loop.OPEN_AT])

    def _emptiest(self) -> int | None:
        """Returns the segment of records that has the fewest live bytes, but for the open one."""
        is_one = self._segments[loop.KIND] == loop.RECORDS
        if self._state[loop.OPEN] >= 0:
            is_one[self._state[loop.OPEN]] = False
        found = np.flatnonzero(is_one)
        return int(found[np.argmin(self._segments[loop.LIVE, found])]) if len(found) else None

    def _heap_bytes(self) -> int:
        """Returns the size of all segments that records are in, or may be put into."""
        kinds = self._segments[loop.KIND]
        count = np.count_nonzero((kinds == loop.RECORDS) | (kinds == loop.FREE))
        return (int(count) - _RESERVED) * form.SEGMENT_BYTES

    def _usable_bytes(self) -> int:
        """Returns how many live bytes the mirror can have."""
        segments = self._segments.shape[1] - 1 - _NOT_FOR_PROFILES - _index_segments(self.numbers)
        return int(segments * form.SEGMENT_BYTES * _USABLE_SHARE)

    def _full(self) -> MirrorFull:
        return MirrorFull(f"the mirror is full: mirror.size_mb is {self._settings.size_mb}")

    def used_bytes(self) -> int:
        """Returns how many bytes of `size_mb` are in use; when all of them are, the mirror is full."""
        live = int(self._segments[loop.LIVE].sum() / _USABLE_SHARE)
        return (1 + _NOT_FOR_PROFILES + _index_segments(self.numbers)) * form.SEGMENT_BYTES + live

    # What the companion writes

    def claim_identity(self, digest: str) -> None:
        """Note the digest of the key that the profiles are made with. Raises Misconfigured if it was another one."""
        found = self.note(IDENTITY)
        if found not in ("", digest):
            raise Misconfigured(
                f"the mirror at {self._settings.path} was filled for the identity key of digest {found}, and this "
                f"companion has the one of {digest}: set [features] identity_key_file to the stream's key, or "
                "delete the mirror if the stream has a new one"
            )
        if not found:
            # Only then: a change that the index by identity does not note makes it look old.
            self._write_note(IDENTITY, digest.encode())

    def apply(
        self,
        profiles: Mapping[bytes, bytes | None],
        positions: Mapping[int, int],
        complete_to_ms: int | None = None,
    ) -> None:
        """Write profiles (None erases one), changelog positions and completeness in one transaction, all or nothing.

        Raises MirrorFull, MirrorUnavailable, MirrorDamaged.
        """
        with self._changing(complete_to_ms) as changes:
            if self._index is not None:
                self._index.follow(changes, profiles)
            changes.values |= profiles
            if positions:
                reached = sorted((self.positions() | dict(positions)).items())
                changes.put(POSITIONS, b"".join(POSITION.pack(*pair) for pair in reached))

    def keep_index(self, index: IdentityIndex) -> Iterator[None]:
        """Keep an index of profiles by identity from now on. Yields between the transactions that make it.

        No step is needed if the mirror has this index already, or has and needs none. No profile may be written before
        the last step is done. Raises MirrorFull, MirrorUnavailable, MirrorDamaged.
        """
        value = self.read([INDEXED])[INDEXED]
        note = IndexNote.of_bytes(value)
        if note is not None and note.transaction != self._transaction:
            note = None
        self._index = index if index.entities else None
        return index.steps(note, self._changing, self.walk, has_records=value is not None)

    def note_changelog(self, topic_id: str) -> None:
        """Note which topic the positions belong to. "" changes nothing. Raises MirrorUnavailable."""
        if topic_id and topic_id != self.changelog_id():
            self._write_note(CHANGELOG, topic_id.encode())

    def note_profile_set(self, name: str) -> None:
        """Note which profile set the mirror is filled from. Raises MirrorUnavailable."""
        self._write_note(PROFILE_SET, name.encode())

    def shards(self) -> HeldShards | None:
        """Returns which shards of cards the mirror holds; None if it holds every profile. Raises MirrorDamaged."""
        try:
            return self.held_shards()
        except ValueError as error:
            raise MirrorDamaged(f"the mirror does not say which cards it holds: {error}") from error

    def note_shards(self, held: HeldShards) -> None:
        """Note which shards of cards the mirror holds. Workers see it in half a second. Raises MirrorUnavailable."""
        self._write_note(SHARDS, held.to_bytes())

    def _write_note(self, key: bytes, value: bytes) -> None:
        with self._changing() as changes:
            changes.put(key, value)

    def clear(self) -> None:
        """Delete everything but the digest of the key. Readers see the empty mirror at once."""
        self._require_file()
        changes = Changes(self)
        if digest := self.note(IDENTITY):
            changes.put(IDENTITY, digest.encode())
        if self._index is not None:
            self._index.begin_anew(changes)
        # One for an index, one for records.
        if (lacking := _RESERVED - len(self._free())) > 0:
            self._extend(self._allocated + lacking)
        first = int(self._free()[0])

        def empty(transaction: int) -> None:
            self._begin_index(first, form.INDEX_BITS_MIN, transaction, is_emptied=True)

        self._commit(changes, empty, complete_to_ms=0)

    def close(self) -> None:
        """Close the mirror. It stays, and survives a loss of power from now on."""
        if self._mapping is not None:
            with suppress(OSError):
                self._mapping.flush()
                write_synced(Path(self._settings.path) / _BOOT_FILE, f"{boot_id()} {_CLOSED}\n".encode())
        self.unmap()
        self._release()


def _locked(folder: Path) -> int:
    """Returns a descriptor of a folder that this process alone has locked. Raises Misconfigured, OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Misconfigured(f"mirror.path: another process writes the mirror at {folder}") from error
    return descriptor


def _create(path: Path) -> None:
    """Make a file that holds nothing. Raises OSError, Misconfigured."""
    words = [0] * form.HEADER_WORDS
    words[form.MAGIC_AT] = form.MAGIC
    words[form.SEED_LOW_AT], words[form.SEED_HIGH_AT] = struct.unpack("<qq", os.urandom(16))
    size = form.SEGMENT_BYTES + _index_bytes(form.INDEX_BITS_MIN)
    words[form.ALLOCATED_AT] = size
    words[form.META_AT + form.META_INDEX_AT] = form.SEGMENT_BYTES
    words[form.META_AT + form.META_INDEX_BITS] = form.INDEX_BITS_MIN
    new = path.with_name(path.name + _NEW_SUFFIX)
    with os.fdopen(open_private(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        file.write(struct.pack(f"<{form.HEADER_WORDS}q", *words))
    # Readers see the whole file or none.
    new.replace(path)


def _index_bytes(bits: int) -> int:
    return (form.SLOT_WORDS * form.WORD_BYTES) << bits


def _index_segments(numbers: NDArray[np.int64]) -> int:
    return _index_bytes(int(numbers[form.INDEX_BITS])) // form.SEGMENT_BYTES


def _record_sizes(values: Mapping[bytes, bytes | None]) -> NDArray[np.int64]:
    """Returns how many bytes each record takes, as `record_bytes` of mirror_write.py; none to delete one."""
    keys = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    found = np.array([-1 if value is None else len(value) for value in values.values()], dtype=np.int64)
    sizes = (keys + found + (form.RECORD_HEAD_BYTES + form.UNIT_BYTES - 1)) & -form.UNIT_BYTES
    return np.where(found < 0, 0, sizes)


def _arrays(changes: Changes, transaction: int) -> tuple[NDArray[Any], ...]:
    """Returns what `put_all` takes from its argument `keys` on."""
    values = changes.valued(transaction)
    found = list(values.values())
    return (
        joined(values),
        bounds_of(values),
        joined(value or b"" for value in found),
        bounds_of(value or b"" for value in found),
        np.array([value is None for value in found], dtype=np.uint8),
        np.zeros(len(found), dtype=np.int64),
    )


def warm_up() -> None:
    """Load or compile all that the companion calls."""
    loop.warm_up()
