"""The profile store in LMDB, a directory, for one host without a server: one writer and many reader processes.

A record is 4 bytes and the profile. The bytes are the epoch second of expiry, unsigned, little endian, 0 for never.
A reader never gets an expired record. Each write also sweeps: in its own transaction it checks as many records as it
wrote, from where the last sweep ended, and removes the expired ones. Therefore the number of expired records stays in
proportion to the live ones, at a predictable cost of a write, and no separate job is needed.

A record's version is a digest of it, so the file holds none. The same bytes written again have the same version
unless they expire at another time; either way they are the state that was read.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lmdb

from paywarden.features.stores.base import (
    ABSENT,
    RECORD_BYTES_MAX,
    ScanProgress,
    StoreHealth,
    TtlS,
    Versioned,
    check_versions,
    check_write,
    different_ttls,
    entity_of,
)
from paywarden.features.stores.lmdb_file import fill_up, missing_bytes, used_bytes
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from paywarden.schemas.private_files import make_private_folder
from paywarden.schemas.settings import internal

DATA_FILE = "data.mdb"

_EXPIRY = struct.Struct("<I")
EXPIRY_BYTES = _EXPIRY.size
"""How many bytes a record has before its profile."""
_NEVER = 0

# A scan reads this many records in one transaction and yields them after it. A transaction that stays open for a slow
# caller would keep LMDB from reusing pages, and the file would grow.
_SCAN_PAGE_COUNT = 1_000

# Counting keeps no records, so its transactions are short even with this many.
_COUNT_PAGE_COUNT = 100_000

# 64 bits: a changed record has its old version by chance once in 10¹⁹ times.
_VERSION_BYTES = 8


@dataclass(frozen=True)
class LmdbSettings:
    """The place and the limits of an embedded store.

    `map_size_bytes` is address space and an upper limit, not used disk space. With `fsync` an acknowledged write
    survives a power cut and not only the death of the process. On a memory file system it costs time without effect.
    """

    path: str = ".paywarden/store"
    map_size_bytes: int = 4 << 30
    reader_count_max: int = internal(126)
    record_bytes_max: int = internal(RECORD_BYTES_MAX)
    fsync: bool = True


class LmdbStore:
    """A ProfileStore on LMDB. `clock` gives epoch seconds and decides what has expired.

    Opening raises Misconfigured if the directory cannot be used, or if this process already has it open. Open it after
    a fork, not before: LMDB's handles do not survive one. `readonly` opens a store that a writer has made, and raises
    StoreUnavailable if there is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        map_size_bytes: int = LmdbSettings.map_size_bytes,
        reader_count_max: int = LmdbSettings.reader_count_max,
        record_bytes_max: int = LmdbSettings.record_bytes_max,
        fsync: bool = LmdbSettings.fsync,
        readonly: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = LmdbSettings(os.fspath(path), map_size_bytes, reader_count_max, record_bytes_max, fsync)
        self._clock = clock
        self._swept_to = b""
        self._environment = _open(self._settings, readonly=readonly)

    @classmethod
    def from_settings(cls, settings: LmdbSettings, *, readonly: bool = False) -> LmdbStore:
        """Returns the store of the settings."""
        return cls(
            settings.path,
            map_size_bytes=settings.map_size_bytes,
            reader_count_max=settings.reader_count_max,
            record_bytes_max=settings.record_bytes_max,
            fsync=settings.fsync,
            readonly=readonly,
        )

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore. One read transaction, so all values are of one moment."""
        for key in keys:
            entity_of(key)
        now = self._clock()
        with self._begin(write=False) as transaction:
            return [_live_value(transaction.get(key), now) for key in keys]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """See ProfileStore. One read transaction, as `read`."""
        for key in keys:
            entity_of(key)
        now = self._clock()
        with self._begin(write=False) as transaction:
            return [_versioned(transaction.get(key), now) for key in keys]

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """See ProfileStore. One write transaction: it writes all records or none."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._settings.record_bytes_max)
        if not values:
            return
        now = self._clock()
        # Rounded up: a record may live up to a second longer than `ttl_s`, never shorter.
        prefixes = {s: _EXPIRY.pack(math.ceil(now + s) if s else _NEVER) for s in different_ttls(ttl_s)}
        with self._begin(write=True) as transaction:
            # A killed reader keeps its slot, and keeps old pages from being reused, until this check frees it.
            self._environment.reader_check()
            check_versions(values, versions or {}, lambda key: _versioned(transaction.get(key), now))
            for key, value in values.items():
                transaction.put(key, prefixes[ttl_s if isinstance(ttl_s, int) else ttl_s[key]] + value)
            swept_to, _ = _sweep(transaction, self._swept_to, len(values), now)
        self._swept_to = swept_to

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore. One write transaction."""
        for key in keys:
            entity_of(key)
        if not keys:
            return
        with self._begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore. In key order, in pages of one moment each; the expected total is unknown."""
        prefix = start = entity.encode() + b":"
        count = 0
        if progress is not None:
            progress(count, None)
        while start:
            page, start = self._scan_page(prefix, start)
            yield from page
            count += len(page)
            if progress is not None:
                progress(count, None)

    def counts(self) -> dict[str, int]:
        """Returns the number of live records of each kind (card, payment, …). Reads all keys, in pages."""
        counts: dict[str, int] = {}
        start = b""
        is_last = False
        while not is_last:
            found, start = self._count_page(start)
            for entity, count in found.items():
                counts[entity] = counts.get(entity, 0) + count
            is_last = not start
        return counts

    def health(self) -> StoreHealth:
        """See ProfileStore. Starts a read transaction, which needs the map and a reader's slot."""
        try:
            with self._begin(write=False):
                return StoreHealth()
        except StoreUnavailable as error:
            return StoreHealth(str(error))

    def sweep(self, *, record_count_max: int) -> int:
        """Check a limited number of records, in a circle, and remove the expired ones; returns the number removed.

        `write` does this by itself; this is for a store that is no longer written to.
        """
        with self._begin(write=True) as transaction:
            swept_to, removed_count = _sweep(transaction, self._swept_to, record_count_max, self._clock())
        self._swept_to = swept_to
        return removed_count

    def close(self) -> None:
        """See ProfileStore."""
        self._environment.close()

    def _scan_page(self, prefix: bytes, start: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Returns the live records from `start` on, and the start of the next page, empty without one."""
        now = self._clock()
        page: list[tuple[bytes, bytes]] = []
        with self._begin(write=False) as transaction:
            cursor = transaction.cursor()
            # A cursor without a position would iterate from the first record.
            found = cursor.set_range(start)
            for count, (view, stored) in enumerate(cursor if found else ()):
                key = bytes(view)
                if not key.startswith(prefix):
                    break
                if count == _SCAN_PAGE_COUNT:
                    return page, key
                value = _live_value(stored, now)
                if value is not None:
                    page.append((key, value))
        return page, b""

    def _count_page(self, start: bytes) -> tuple[dict[str, int], bytes]:
        """Returns the counts of live records from `start` on, and the start of the next page, empty without one."""
        now = self._clock()
        counts: dict[bytes, int] = {}
        next_start = b""
        with self._begin(write=False) as transaction:
            cursor = transaction.cursor()
            # A cursor without a position would iterate from the first record.
            found = cursor.set_range(start) if start else cursor.first()
            for count, (view, stored) in enumerate(cursor if found else ()):
                key = bytes(view)
                if count == _COUNT_PAGE_COUNT:
                    next_start = key
                    break
                if not _has_expired(stored, now):
                    entity = key.partition(b":")[0]
                    counts[entity] = counts.get(entity, 0) + 1
        return {entity.decode(): count for entity, count in counts.items()}, next_start

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[lmdb.Transaction]:
        """Open a transaction that commits at the end of the block, or changes nothing if the block raises."""
        settings = self._settings
        try:
            with self._environment.begin(write=write, buffers=True) as transaction:
                yield transaction
            if write:
                self._fill_up()
        except lmdb.MapFullError as error:
            raise StoreUnavailable(
                f"the LMDB store at {settings.path} has reached its {settings.map_size_bytes} bytes: "
                "raise map_size_bytes, or lower what is kept"
            ) from error
        except lmdb.ReadersFullError as error:
            raise StoreUnavailable(_readers_full(settings)) from error
        except lmdb.MapResizedError as error:
            raise StoreUnavailable(
                f"the LMDB store at {settings.path} was opened elsewhere with a larger map_size_bytes than "
                f"{settings.map_size_bytes}: use the same everywhere and open it again"
            ) from error
        except lmdb.ReadonlyError as error:
            raise Misconfigured(f"the LMDB store at {settings.path} was opened for reading only") from error
        except lmdb.Error as error:
            raise StoreUnavailable(f"the LMDB store at {settings.path} failed: {error}") from error

    def _fill_up(self) -> None:
        """Leave a file that is as long as its pages, so that a file that was cut short can be detected."""
        with suppress(OSError):
            fill_up(Path(self._settings.path) / DATA_FILE, used_bytes(self._environment))


def _open(settings: LmdbSettings, *, readonly: bool) -> lmdb.Environment:
    if readonly and not _has_data(settings.path):
        raise StoreUnavailable(
            f"there is no LMDB store at {os.path.abspath(settings.path)} yet ([lmdb] path): `paywarden stream` and "
            "`paywarden backfill` make it"
        )
    try:
        if not readonly:
            make_private_folder(Path(settings.path))
        _require_whole(settings)
        return lmdb.open(
            settings.path,
            map_size=settings.map_size_bytes,
            max_readers=settings.reader_count_max,
            readonly=readonly,
            create=not readonly,
            subdir=True,
            lock=True,
            max_dbs=0,
            sync=settings.fsync,
            metasync=settings.fsync,
            # The pages near a profile hold other profiles, which are not needed.
            readahead=False,
            # It needs more care after a crash, and on some file systems it takes the space of the whole map at once.
            writemap=False,
            meminit=False,
            mode=0o600,
        )
    except lmdb.ReadersFullError as error:
        raise StoreUnavailable(_readers_full(settings)) from error
    except (lmdb.Error, OSError) as error:
        raise Misconfigured(f"cannot open the LMDB store at {settings.path}: {error}") from error


def _require_whole(settings: LmdbSettings) -> None:
    """Raises Misconfigured for a file whose end is missing: a read there would kill the process. Raises OSError."""
    if _has_data(settings.path) and (missing := missing_bytes(Path(settings.path) / DATA_FILE)):
        raise Misconfigured(
            f"the LMDB store at {settings.path} lacks the last {missing} bytes of its file {DATA_FILE}, which was cut "
            "short or copied in part: restore a backup (`paywarden admin store restore`), or delete the store and "
            "rebuild it"
        )


def _has_data(path: str) -> bool:
    """Returns whether a writer has made the store. Its file is empty for a moment, before the first page."""
    try:
        return (Path(path) / DATA_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        # LMDB will report what is wrong with the path.
        return True


def _readers_full(settings: LmdbSettings) -> str:
    return (
        f"the LMDB store at {settings.path} has all of its {settings.reader_count_max} reader slots taken: "
        "raise reader_count_max"
    )


def _live_value(stored: bytes | memoryview | None, now: float) -> bytes | None:
    """Returns a copy of the profile: `stored` points into the map and is valid only in this transaction."""
    if stored is None or _has_expired(stored, now):
        return None
    return bytes(stored[_EXPIRY.size :])


def _versioned(stored: bytes | memoryview | None, now: float) -> Versioned:
    value = _live_value(stored, now)
    if stored is None or value is None:
        return Versioned(None, ABSENT)
    digest = hashlib.blake2b(stored, digest_size=_VERSION_BYTES).digest()
    # The one digest in 2⁶⁴ that equals ABSENT is replaced by another.
    return Versioned(value, int.from_bytes(digest, "little") or ABSENT + 1)


def _has_expired(stored: bytes | memoryview, now: float) -> bool:
    (expires,) = _EXPIRY.unpack_from(stored)
    return bool(expires != _NEVER and expires <= now)


def _sweep(transaction: lmdb.Transaction, swept_to: bytes, record_count_max: int, now: float) -> tuple[bytes, int]:
    """Where the next sweep continues (empty: from the start), and how many records this one removed."""
    expired = []
    cursor = transaction.cursor()
    cursor.set_range(swept_to)
    next_start = b""
    for count, (key, stored) in enumerate(cursor):
        if count == record_count_max:
            next_start = bytes(key)
            break
        if _has_expired(stored, now):
            expired.append(bytes(key))
    for key in expired:
        transaction.delete(key)
    return next_start, len(expired)
