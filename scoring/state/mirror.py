"""The host's copy of the profiles, in shared memory: the companion writes it, the workers read it.

    changelog ─► companion ─ MirrorWriter ─► LMDB on a memory file system ─ MirrorReader ─► worker 0, worker 1, …

    card:c-1              a packed profile; the keys are those of the store
    \\0complete_to        epoch ms, int64: the mirror contains every payment that reached Kafka before this moment;
                          0 while the mirror is still being filled
    \\0position:N         int64: the next offset of the changelog's partition N
    \\0changelog          the id of the topic that the positions belong to; a mirror of an earlier release has none
    \\0profile_set        the profile set that the mirror was filled from
    \\0identity           the digest of the key that the profiles are made with (features/catalogue/identity.py)
    \\0shards             the shards of cards that are complete (scoring/state/shards.py); absent: all
    \\0indexed, \\0index: profiles by identity, where features need them (scoring/state/identity_index.py)

1. LMDB lets one writer and many reader processes share the file without a lock between them. The mirror survives the
   death of any of them.
2. The writer commits profiles and the positions they cover in one transaction. A companion that dies at any moment
   continues exactly where its mirror stands.
3. A reader looks up all keys of a chunk in one transaction, so all profiles are of one moment.
4. Keys that begin with a zero byte belong to the mirror: no entity can have one.
5. A reader that is killed in a look-up keeps its place in LMDB's table of readers. The writer may then reuse no page
   that it could see, and the file grows with every change. `check_readers` frees the places of dead readers.
6. A worker's look-up is one compiled call, which calls LMDB itself and reads its pages
   (scoring/state/mirror_look_up.py). Where the package `lmdb` does not export LMDB's functions, the look-up goes
   through Python, with the same results.
7. The mirror is a copy. The companion discards one that is damaged, and fills a new one. Nothing is synced before it is
   closed, so a mirror on a disk that was not closed before the machine started again is discarded, too.
8. The kernel kills a process that reads behind the end of a mapped file. Writer and readers refuse a mirror that was
   cut short when they open it, and look at its length while they use it (features/stores/lmdb_file.py).
"""

from __future__ import annotations

import itertools
import logging
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import ABSENT, KNOWN, UNKNOWN
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.features.stores.lmdb_file import fill_up, missing_bytes, used_bytes
from paywarden.schemas.durability import boot_id, write_synced
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import file_at, open_regular, read_regular
from paywarden.schemas.private_files import make_private_folder, require_not_planted
from paywarden.schemas.settings import internal
from paywarden.scoring.state import lmdb_calls, lmdb_pages
from paywarden.scoring.state import mirror_look_up as loop
from paywarden.scoring.state.identity_index import INDEX, INDEXED, IdentityIndex, IndexNote
from paywarden.scoring.state.lmdb_calls import LmdbError, ReadEnvironment
from paywarden.scoring.state.shards import HeldShards

_log = logging.getLogger(__name__)

_COMPLETE_TO = b"\0complete_to"
_POSITION = b"\0position:"
_CHANGELOG = b"\0changelog"
_IDENTITY = b"\0identity"
_PROFILE_SET = b"\0profile_set"
_SHARDS = b"\0shards"
_INT64 = struct.Struct("<q")
_ALL_KNOWN = bytes([KNOWN]) * 4096
# Stands for a missing profile. No view into the mirror is ever this object.
_NOTHING = b""


@dataclass(frozen=True)
class MirrorSettings:
    """The mirror's path and size. On Linux the default is in memory. One companion writes it."""

    path: str = "/dev/shm/paywarden/mirror" if Path("/dev/shm").is_dir() else ".paywarden/mirror"
    # An upper bound; memory is taken as it is used. With 500 bytes per profile it holds 8 million entities.
    size_mb: int = 4096
    # LMDB's reader table has a slot for each worker process.
    readers_max: int = internal(126)

    @property
    def data_file(self) -> Path:
        """The file that readers map."""
        return Path(self.path) / "data.mdb"


class MirrorAbsent(TemporaryFailure):
    """There is no mirror yet, or the mirror cannot be read."""


class MirrorUnavailable(TemporaryFailure):
    """The mirror takes no changes. It is as it was before; the same call may succeed later."""


class MirrorFull(MirrorUnavailable):
    """The mirror has no room: too many profiles, or a reader that stands in a look-up."""


class MirrorDamaged(TemporaryFailure):
    """The mirror's file cannot be used any more. It is a copy: `discard` it, and fill a new one."""


# Errors of LMDB for a file of another format, for damaged pages, and after a write that it could not finish.
_DAMAGE = (
    *(lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageFullError),
    *(lmdb.PageNotFoundError, lmdb.PanicError, lmdb.VersionMismatchError),
)
# The file beside the mirror that says in which boot of the machine it is written, and whether it was closed since.
_BOOT_FILE, _CLOSED = "boot", "closed"
_LOCKS = "lock.mdb"


def discard(settings: MirrorSettings) -> None:
    """Delete a mirror. Its readers open the next one when it is there. Raises OSError."""
    for name in ("data.mdb", _LOCKS):
        (Path(settings.path) / name).unlink(missing_ok=True)


class MirrorWriter:
    """The companion's side of the mirror. Only one process at a time may have it."""

    def __init__(self, settings: MirrorSettings, before_commit: Callable[[int], object] = lambda _: None) -> None:
        """Open or create the mirror. Raises Misconfigured when the path cannot be used, and MirrorDamaged.

        `before_commit` gets the number of each transaction that writes, when it begins.
        """
        self._before_commit = before_commit
        path = Path(settings.path)
        self._settings, self._data = settings, settings.data_file
        self._index: IdentityIndex | None = None
        # The length of the file after the last commit.
        self._file_bytes = 0
        try:
            make_private_folder(path)
            self._discard_half_written(path / _BOOT_FILE)
            if self._data.exists():
                _require_whole(self._data)
            try:
                self._env = self._opened()
            except lmdb.ReadersFullError:
                self._free_dead_readers()
                self._env = self._opened()
            self._note_length()
            self._files = self._files_now()
        except _DAMAGE as error:
            raise _damaged(error) from error
        except (OSError, lmdb.Error) as error:
            raise Misconfigured(f"mirror.path: cannot use {path}: {error}") from error

    def _opened(self) -> lmdb.Environment:
        # No sync: a memory file system has no disk to wait for, and its pages outlive the process.
        return lmdb.open(
            self._settings.path,
            map_size=self._settings.size_mb << 20,
            max_readers=self._settings.readers_max,
            sync=False,
            metasync=False,
            meminit=False,
            readahead=False,
            mode=0o600,
        )

    def _free_dead_readers(self) -> None:
        """Free the places of readers that died: `lmdb.open` takes a place, and only an open mirror could be asked to.

        A companion that is killed leaves dead readers, too.
        """
        if lmdb_calls.functions() is None:
            return
        size_bytes, readers_max = self._settings.size_mb << 20, self._settings.readers_max
        with suppress(LmdbError):
            ReadEnvironment(self._settings.path, size_bytes=size_bytes, readers_max=readers_max).close()

    def _discard_half_written(self, note: Path) -> None:
        """Discard a mirror on a disk that an earlier boot has not closed.

        Without syncs a loss of power leaves newer pages beside older ones, and LMDB cannot tell. Raises OSError.
        """
        said, now = read_regular(note).decode("ascii", errors="replace").split() if note.exists() else [], boot_id()
        if said and now and said[0] != now and _CLOSED not in said:
            _log.warning(
                "mirror: %s was not closed before the machine started again: it is filled anew", self._settings.path
            )
            discard(self._settings)
        write_synced(note, f"{now}\n".encode())

    def newest_transaction(self) -> int:
        """Returns the number of the newest transaction that changed the mirror."""
        return int(self._env.info()["last_txnid"])

    def _note_length(self) -> None:
        """Make the file as long as its pages, and note how long it is. Raises OSError."""
        self._file_bytes = fill_up(self._data, self.used_bytes())

    def _require_files(self) -> None:
        """Raises MirrorDamaged if the file is shorter than this writer has left it, gone, or another one.

        Readers open the files that are there. With another file of data they would never see a change; with another
        file of locks the writer would not know of them, and write over pages that they read.
        """
        try:
            size = self._data.stat().st_size
        except FileNotFoundError:
            size = 0
        except OSError as error:
            raise MirrorUnavailable(f"the mirror's file cannot be looked at: {error.strerror}") from error
        if size < self._file_bytes:
            raise _cut_short(self._file_bytes - size)
        if self._files_now() != self._files:
            raise MirrorDamaged("the mirror is damaged: its file, or that of its locks, was replaced")

    def _files_now(self) -> list[tuple[int, int] | None]:
        """Returns which files the mirror has."""
        return [file_at(path) for path in (self._data, self._data.with_name(_LOCKS))]

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        self._require_files()
        try:
            with self._env.begin(write=True) as transaction:
                self._before_commit(transaction.id())
                yield transaction
                if self._index is not None:
                    self._index.sign(transaction)
        except _DAMAGE as error:
            raise _damaged(error) from error
        # The transaction is written, and holds. Where the file cannot be looked at, the next one looks again.
        with suppress(OSError):
            self._note_length()

    @contextmanager
    def _changing(self) -> Iterator[lmdb.Transaction]:
        try:
            with self._writing() as transaction:
                yield transaction
        except lmdb.MapFullError as error:
            raise MirrorFull(f"the mirror is full: mirror.size_mb is {self._settings.size_mb}") from error
        except lmdb.Error as error:
            raise MirrorUnavailable(f"the mirror cannot be written: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self._env.begin() as transaction:
                yield transaction
        except _DAMAGE as error:
            raise _damaged(error) from error

    def claim_identity(self, digest: str) -> None:
        """Note the digest of the key that the profiles are made with. Raises Misconfigured if it was another one."""
        with self._reading() as transaction:
            found = bytes(transaction.get(_IDENTITY, b"")).decode()
        if found not in ("", digest):
            raise Misconfigured(
                f"the mirror at {self._settings.path} was filled for the identity key of digest {found}, and this "
                f"companion has the one of {digest}: set [features] identity_key_file to the stream's key, or "
                "delete the mirror if the stream has a new one"
            )
        if not found:
            # Only then: a change that the index by identity does not note makes it look old.
            with self._writing() as transaction:
                transaction.put(_IDENTITY, digest.encode())

    def apply(
        self,
        profiles: Mapping[bytes, bytes | None],
        positions: Mapping[int, int],
        complete_to_ms: int | None = None,
    ) -> None:
        """Write profiles (None erases one), changelog positions and completeness in one transaction, all or nothing.

        Raises MirrorFull, MirrorUnavailable, MirrorDamaged.
        """
        with self._changing() as transaction:
            if self._index is not None:
                self._index.follow(transaction, profiles)
            for key, state in profiles.items():
                if state is None:
                    transaction.delete(key)
                else:
                    transaction.put(key, state)
            for partition, offset in positions.items():
                transaction.put(_POSITION + str(partition).encode(), _INT64.pack(offset))
            if complete_to_ms is not None:
                transaction.put(_COMPLETE_TO, _INT64.pack(complete_to_ms))

    def keep_index(self, index: IdentityIndex) -> Iterator[None]:
        """Keep an index of profiles by identity from now on. Yields between the transactions that make it.

        No step is needed if the mirror has this index already, or has and needs none. No profile may be written before
        the last step is done. Raises MirrorFull, MirrorUnavailable, MirrorDamaged.
        """
        with self._reading() as transaction:
            note = IndexNote.of_bytes(transaction.get(INDEXED))
        if note is not None and note.transaction != self.newest_transaction():
            note = None
        self._index = index if index.entities else None
        return index.steps(note, self._changing, self.keys_from)

    def check_readers(self) -> int:
        """Free the places of readers that died in a look-up; returns how many. Call it about once a second.

        It looks at `readers_max` places and takes microseconds. Raises MirrorUnavailable, MirrorDamaged.
        """
        self._require_files()
        try:
            return int(self._env.reader_check())
        except lmdb.Error as error:
            raise MirrorUnavailable(f"the mirror's readers cannot be looked at: {error}") from error

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Returns the current profiles of these keys, for inspection. Workers use MirrorReader."""
        with self._reading() as transaction:
            return {key: transaction.get(key) for key in keys}

    def positions(self) -> dict[int, int]:
        """Returns the next offset of each changelog partition; empty for a new mirror."""
        with self._reading() as transaction:
            cursor = transaction.cursor()
            offsets: dict[int, int] = {}
            more = cursor.set_range(_POSITION)
            while more and cursor.key().startswith(_POSITION):
                offsets[int(cursor.key()[len(_POSITION) :])] = _INT64.unpack(cursor.value())[0]
                more = cursor.next()
            return offsets

    def profile_count(self) -> int:
        """Returns the number of profiles."""
        with self._reading() as transaction:
            entries = int(transaction.stat()["entries"])
            notes = sum(transaction.get(key) is not None for key in (_IDENTITY, _PROFILE_SET, _SHARDS, INDEXED))
            cursor = transaction.cursor()
            if cursor.set_range(INDEX):
                keys = cursor.iternext(keys=True, values=False)
                notes += sum(1 for _ in itertools.takewhile(lambda key: key.startswith(INDEX), keys))
        others = len(self.positions()) + (self.complete_to_ms() is not None) + bool(self.changelog_id())
        return entries - others - notes

    def used_bytes(self) -> int:
        """Returns how many bytes of `size_mb` are in use. Free pages count as used; LMDB reuses them first."""
        return used_bytes(self._env)

    def changelog_id(self) -> str:
        """Returns the id of the topic that the positions belong to; "" if it is not known."""
        with self._reading() as transaction:
            return (transaction.get(_CHANGELOG) or b"").decode()

    def note_changelog(self, topic_id: str) -> None:
        """Note which topic the positions belong to. "" changes nothing. Raises MirrorUnavailable."""
        if not topic_id or topic_id == self.changelog_id():
            return
        self._write_note(_CHANGELOG, topic_id.encode())

    def note_profile_set(self, name: str) -> None:
        """Note which profile set the mirror is filled from. Raises MirrorUnavailable."""
        self._write_note(_PROFILE_SET, name.encode())

    def shards(self) -> HeldShards | None:
        """Returns which shards of cards the mirror holds; None if it holds every profile. Raises MirrorDamaged."""
        with self._reading() as transaction:
            value = transaction.get(_SHARDS)
        try:
            return None if value is None else HeldShards.from_bytes(value)
        except ValueError as error:
            raise MirrorDamaged(f"the mirror does not say which cards it holds: {error}") from error

    def note_shards(self, held: HeldShards) -> None:
        """Note which shards of cards the mirror holds. Workers see it in half a second. Raises MirrorUnavailable."""
        self._write_note(_SHARDS, held.to_bytes())

    def _write_note(self, key: bytes, value: bytes) -> None:
        with self._changing() as transaction:
            transaction.put(key, value)

    def keys_from(self, begin: bytes, count_max: int) -> list[bytes]:
        """Returns at most `count_max` keys in order, from the first that is not before `begin`. Empty at the end."""
        with self._reading() as transaction:
            cursor = transaction.cursor()
            if not cursor.set_range(begin):
                return []
            return list(itertools.islice(cursor.iternext(keys=True, values=False), count_max))

    def complete_to_ms(self) -> int | None:
        """Returns the stored completeness in epoch ms, or None for a new mirror."""
        with self._reading() as transaction:
            value = transaction.get(_COMPLETE_TO)
        return None if value is None else int(_INT64.unpack(value)[0])

    def clear(self) -> None:
        """Delete everything but the digest of the key. Readers see the empty mirror at once."""
        with self._writing() as transaction:
            digest = bytes(transaction.get(_IDENTITY, b""))
            transaction.drop(self._env.open_db(None, txn=transaction), delete=False)
            if digest:
                transaction.put(_IDENTITY, digest)
            if self._index is not None:
                self._index.begin_anew(transaction)

    def close(self) -> None:
        """Close the mirror. It stays, and survives a loss of power from now on."""
        with suppress(OSError, lmdb.Error):
            self._env.sync(True)
            write_synced(Path(self._settings.path) / _BOOT_FILE, f"{boot_id()} {_CLOSED}\n".encode())
        self._env.close()


def _damaged(error: lmdb.Error) -> MirrorDamaged:
    return MirrorDamaged(f"the mirror is damaged: {error}")


def _require_whole(path: Path) -> None:
    """Raises MirrorDamaged for a file without pages, or with fewer than it says; OSError."""
    if missing := missing_bytes(path):
        raise _cut_short(missing)
    if path.stat().st_size == 0:
        # Readers may still have the file open that it was.
        raise MirrorDamaged("the mirror is damaged: its file is empty")


def _cut_short(missing: int) -> MirrorDamaged:
    return MirrorDamaged(f"the mirror is damaged: its file was cut short, and lacks {missing} bytes")


class MirrorReader:
    """A worker's side of the mirror: looks up profiles into buffers allocated at start. Not thread-safe."""

    def __init__(self, settings: MirrorSettings, *, item_max: int, profile_bytes_max: int) -> None:
        """`item_max`: the most keys of one look-up. `profile_bytes_max`: the size of the largest profile.

        Raises MirrorAbsent.
        """
        assert item_max <= len(_ALL_KNOWN)
        self._data = settings.data_file
        self._profile_bytes_max = profile_bytes_max
        self._open: ReadEnvironment | None = None
        self._env: Any = None
        try:
            require_not_planted(self._data)
            self._identity = _identity_of(self._data)
            if missing := missing_bytes(self._data):
                raise MirrorAbsent(f"the mirror at {settings.path} was cut short, and lacks {missing} bytes")
            self._file_bytes = self._data.stat().st_size
            # The default size is 10 MB, and a reader cannot read a mirror that grows beyond its map.
            if lmdb_calls.functions() is not None:
                self._open = ReadEnvironment(
                    settings.path, size_bytes=settings.size_mb << 20, readers_max=settings.readers_max
                )
            else:
                self._env = lmdb.open(
                    settings.path,
                    map_size=settings.size_mb << 20,
                    readonly=True,
                    create=False,
                    max_readers=settings.readers_max,
                    readahead=False,
                )
        except Misconfigured as error:
            raise MirrorAbsent(f"the mirror is not this user's: {error}") from error
        except (OSError, lmdb.Error, LmdbError) as error:
            raise MirrorAbsent(f"there is no mirror at {settings.path}") from error
        self.states: NDArray[np.uint8] = np.zeros(item_max * profile_bytes_max, dtype=np.uint8)
        self.bounds: NDArray[np.int64] = np.zeros(item_max + 1, dtype=np.int64)
        self.presence: NDArray[np.uint8] = np.zeros(item_max, dtype=np.uint8)
        self.found = b""
        """For each key of the last look-up: ABSENT, UNKNOWN or KNOWN, as in `presence`."""
        self.notes_snapshot = False
        self.snapshot = 0
        """The mirror's transaction that the last look-up has seen; noted if `notes_snapshot`."""
        self._states = self.states.data
        self._bounds = self.bounds.data.cast("B")
        self._presence = self.presence.data
        # Packers, indexed by the number of keys.
        self._int64s = [struct.Struct(f"={count}q") for count in range(item_max + 1)]
        if self._open is not None:
            self._keys = LookUpKeys(item_max)
            self._numbers = _numbers_of(self._open, profile_bytes_max, _page_bytes_of(self._data))
            self._number_view = self._numbers.data
            self._frame = self.frame_for(self._keys)

    @property
    def is_compiled(self) -> bool:
        """Whether look-ups call LMDB from compiled code, so that `frame_for` may be called."""
        return self._open is not None

    def frame_for(self, keys: LookUpKeys) -> Frame:
        """Returns a frame of `mirror_look_up.look_up_bound` for compiled callers that put their keys into `keys`.

        It fills `states`, `bounds` and `presence`, and holds until `close`.
        """
        return Frame(
            loop.SLOT,
            self.transaction_arrays()
            | {
                "keys": keys.texts,
                "key_starts": keys.starts,
                "key_sizes": keys.sizes,
                "found": np.zeros((3, len(self.presence)), dtype=np.int64),
                "states": self.states,
                "bounds": self.bounds,
                "presence": self.presence,
            },
        )

    def transaction_arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the first arrays of a compiled look-up's frame: with them it reads in this reader's transaction."""
        assert self._open is not None
        calls = self._open.functions
        names = ("txn_begin", "txn_renew", "txn_reset", "txn_abort", "get", "txn_id")
        return {
            "functions": np.array([calls[name] for name in names], dtype=np.int64),
            "numbers": self._numbers,
            "values": np.zeros(loop.VALUE_WORDS, dtype=np.int64),
            "complete_key": np.frombuffer(bytearray(_COMPLETE_TO), dtype=np.uint8),
        }

    def run(self, look_up: Callable[[], int]) -> None:
        """Run another compiled look-up of this mirror, which returns 0 or LMDB's error. Raises MirrorAbsent."""
        if (status := look_up()) != 0:
            assert self._open is not None
            self._call_again(self._open, status, look_up)

    def profiles_at(self, records: Sequence[bytes], prefixes: Sequence[bytes]) -> list[bytes | None]:
        """Returns for each record the profile whose key it holds, for a mirror that is read through Python.

        None for an empty record's key, and for a record that holds no key which begins with its prefix. Raises
        MirrorAbsent.
        """
        try:
            return self._profiles_at(records, prefixes)
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)
            return self._profiles_at(records, prefixes)

    def _profiles_at(self, records: Sequence[bytes], prefixes: Sequence[bytes]) -> list[bytes | None]:
        try:
            with self._env.begin() as transaction:
                keys = [transaction.get(record, _NOTHING) if record else _NOTHING for record in records]
                return [
                    transaction.get(key) if len(prefix) < len(key) <= KEY_BYTES_MAX and key.startswith(prefix) else None
                    for key, prefix in zip(keys, prefixes, strict=True)
                ]
        except lmdb.MapResizedError:
            raise
        except lmdb.Error as error:
            raise MirrorAbsent("the mirror cannot be read") from error

    def look_up(self, keys: Sequence[bytes]) -> int:
        """Fill `states`, `bounds` and `presence` with the profiles of these keys, all of one moment.

        An empty key stands for an entity that the payment does not have. Returns the moment up to which the mirror is
        complete, in epoch ms; 0 while it is being filled. Raises MirrorAbsent.
        """
        if self._open is not None:
            return self._look_up_compiled(self._open, keys)
        try:
            return self._look_up(keys)
        except lmdb.MapResizedError:
            # The companion was restarted with a larger size_mb, and the mirror has grown beyond our map.
            return self._look_up_resized(keys)
        except lmdb.Error as error:
            raise MirrorAbsent("the mirror cannot be read") from error

    def identity_digest(self) -> str:
        """Returns the digest of the key that the profiles are made with; empty if the mirror has none."""
        return self._note(_IDENTITY)

    def profile_set(self) -> str:
        """Returns the profile set that the mirror was filled from; empty if the mirror does not say."""
        return self._note(_PROFILE_SET)

    def shards(self) -> HeldShards | None:
        """Returns which shards of cards the mirror holds; None if it holds every profile, or cannot be read.

        Where the note about it is damaged, the mirror counts as one that holds no card.
        """
        try:
            note = self._note(_SHARDS)
            return HeldShards.from_bytes(note.encode()) if note else None
        except ValueError:
            return HeldShards("", frozenset(), is_clean=False)

    def index_note(self) -> IndexNote | None:
        """Returns the note about the index by identity; None if there is none, or it lacks the newest changes."""
        value, transaction = self._read(INDEXED)
        note = IndexNote.of_bytes(value)
        return note if note is not None and note.transaction == transaction else None

    def _note(self, key: bytes) -> str:
        return self._read(key)[0].decode()

    def _read(self, key: bytes) -> tuple[bytes, int]:
        """Returns a value, empty if there is none or the mirror cannot be read, and the mirror's transaction."""
        if self._open is not None:
            try:
                try:
                    return self._open.read(key)
                except LmdbError as error:
                    if error.code != lmdb_calls.MAP_RESIZED:
                        raise
                    self._end_transaction(self._open)
                    self._open.grow()
                    return self._open.read(key)
            except LmdbError:
                return b"", 0
        try:
            with self._env.begin() as transaction:
                return bytes(transaction.get(key, b"")), transaction.id()
        except lmdb.Error:
            return b"", 0

    def is_replaced(self) -> bool:
        """Whether another mirror is at the path now, or this one was cut short. Then this one must not be read."""
        try:
            status = self._data.stat()
        except OSError:
            return False
        before, self._file_bytes = self._file_bytes, status.st_size
        return (status.st_dev, status.st_ino) != self._identity or status.st_size < before

    def close(self) -> None:
        if self._open is None:
            self._env.close()
        elif self._number_view[loop.ENVIRONMENT] != 0:
            self._end_transaction(self._open)
            # A look-up gets an error from now on.
            self._number_view[loop.ENVIRONMENT] = 0
            self._open.close()

    def _look_up_compiled(self, environment: ReadEnvironment, keys: Sequence[bytes]) -> int:
        count = len(keys)
        self._keys.put(keys)
        frame_at = self._frame.address
        status = loop.look_up_bound(frame_at, count)
        if status != 0:
            self._call_again(environment, status, lambda: loop.look_up_bound(frame_at, count))
        self.found = self._presence[:count].tobytes()
        self.snapshot = self._number_view[loop.SNAPSHOT]
        return int(self._number_view[loop.COMPLETE_TO_MS])

    def _call_again(self, environment: ReadEnvironment, status: int, call: Callable[[], int]) -> None:
        """Call a look-up again that has failed, if it may succeed now. Raises MirrorAbsent."""
        if status == lmdb_calls.MAP_RESIZED:
            try:
                # The companion was restarted with a larger size_mb, and the mirror has grown beyond our map.
                self._end_transaction(environment)
                environment.grow()
                status = call()
            except LmdbError as error:
                raise MirrorAbsent("the mirror cannot be read") from error
        if status != 0:
            raise MirrorAbsent("the mirror cannot be read") from LmdbError(status)

    def _end_transaction(self, environment: ReadEnvironment) -> None:
        """End the transaction that look-ups keep, before the environment changes."""
        environment.abort(self._number_view[loop.TRANSACTION])
        self._number_view[loop.TRANSACTION] = 0

    def _look_up_resized(self, keys: Sequence[bytes]) -> int:
        try:
            self._env.set_mapsize(0)  # 0: as large as the writer's map
            return self._look_up(keys)
        except lmdb.Error as error:
            raise MirrorAbsent("the mirror cannot be read") from error

    def _look_up(self, keys: Sequence[bytes]) -> int:
        # LMDB reuses the transaction of the last call, so this costs a fraction of a microsecond.
        transaction = self._env.begin(buffers=True)
        get, count, size_max = transaction.get, len(keys), self._profile_bytes_max
        views: list[Any] = [get(key, _NOTHING) if key else _NOTHING for key in keys]
        sizes = list(map(len, views))
        presence = _ALL_KNOWN[:count]
        if 0 in sizes:
            presence = bytes(
                KNOWN if state is not _NOTHING else UNKNOWN if key else ABSENT
                for key, state in zip(keys, views, strict=True)
            )
        if max(sizes, default=0) > size_max:
            # The profile is of another catalogue. The bytes that fit are enough for the kernel to see that.
            views = [state[:size_max] for state in views]
            sizes = list(map(len, views))
        # Views into the mirror are valid until the end of the transaction, so copy them before it ends.
        states = b"".join(views)
        complete_to = get(_COMPLETE_TO)
        complete_to_ms = 0 if complete_to is None else int(_INT64.unpack(complete_to)[0])
        if self.notes_snapshot:
            self.snapshot = transaction.id()
        transaction.abort()
        self._states[: len(states)] = states
        self._presence[:count] = self.found = presence
        self._int64s[count].pack_into(self._bounds, _INT64.size, *itertools.accumulate(sizes))
        return complete_to_ms


class LookUpKeys:
    """The keys of a look-up, where compiled code reads them: bytes, and where in them each key begins and how long."""

    def __init__(self, item_max: int, texts: NDArray[np.uint8] | None = None) -> None:
        """`texts`: bytes in which all keys stand; without them `put` has an array of its own."""
        self.texts = np.zeros(item_max * KEY_BYTES_MAX, dtype=np.uint8) if texts is None else texts
        self.starts: NDArray[np.int64] = np.zeros(item_max + 1, dtype=np.int64)
        self.sizes: NDArray[np.int64] = np.zeros(item_max, dtype=np.int64)
        self._texts = self.texts.data
        self._starts, self._sizes = self.starts.data.cast("B"), self.sizes.data.cast("B")
        # Packers, indexed by the number of keys.
        self._int64s = [struct.Struct(f"={count}q") for count in range(item_max + 2)]

    def put(self, keys: Sequence[bytes]) -> None:
        """Put these keys, none above KEY_BYTES_MAX; an empty key for an entity that a payment does not have."""
        joined = b"".join([key or b"" for key in keys])
        sizes = [len(key) if key else 0 for key in keys]
        self._texts[: len(joined)] = joined
        self._int64s[len(sizes)].pack_into(self._sizes, 0, *sizes)
        self._int64s[len(sizes) + 1].pack_into(self._starts, 0, *itertools.accumulate(sizes, initial=0))


def _numbers_of(environment: ReadEnvironment, profile_bytes_max: int, page_bytes: int) -> NDArray[np.int64]:
    numbers = np.zeros(loop.NUMBER_COUNT, dtype=np.int64)
    numbers[loop.ENVIRONMENT], numbers[loop.DATABASE] = environment.address, environment.database
    numbers[loop.PROFILE_BYTES_MAX] = profile_bytes_max
    numbers[loop.PAGE_BYTES] = page_bytes
    return numbers


def _page_bytes_of(path: Path) -> int:
    """Returns the size of a mirror's pages; 0 if compiled code must not read them, but ask LMDB."""
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return 0
    try:
        with open_regular(path) as file:
            return lmdb_pages.page_bytes_of(file.read(lmdb_pages.META_BYTES))
    except OSError:
        return 0


def warm_up() -> None:
    """Load or compile the look-up, so that no payment waits for it."""
    loop.look_up_bound.compile("int64(int64, int64)")  # type: ignore[attr-defined]


def has_mirror(settings: MirrorSettings) -> bool:
    """Whether a companion has created a mirror at the path."""
    return settings.data_file.exists()


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
