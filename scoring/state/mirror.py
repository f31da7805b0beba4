"""The host's copy of the profiles: LMDB on a memory file system, written by the companion, read by workers.

Many reader processes and one writer share it without a lock between them; it survives the death of either.
Keys are those of the store ("card:ID"), values packed profiles. Two kinds of records beside them, whose keys
begin with a zero byte so that no entity can have them:

    \\0complete_to        epoch ms, int64: every payment that reached Kafka before it is contained; 0 while the
                          mirror is still being filled
    \\0position:N         how far partition N of the changelog is contained (the next offset), int64

Positions are written in the same transaction as the profiles they cover, so a companion that dies at any
moment goes on exactly where its mirror stands.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel import ABSENT, KNOWN, UNKNOWN
from paywarden.schemas.errors import Misconfigured, TemporaryFailure

_COMPLETE_TO = b"\0complete_to"
_POSITION = b"\0position:"
_INT64 = struct.Struct("<q")
_ALL_KNOWN = bytes([KNOWN]) * 4096
# What is not there: no view into the mirror is ever this object.
_NOTHING = b""


@dataclass(frozen=True)
class MirrorSettings:
    """Where the mirror is. On Linux the default is in memory; it is bound to one companion."""

    path: str = "/dev/shm/paywarden/mirror" if Path("/dev/shm").is_dir() else ".paywarden/mirror"
    # An upper bound, not taken until it is used: 500 bytes a profile make this 8 million entities.
    size_mb: int = 4096
    # LMDB's reader table has a slot for each worker process.
    readers_max: int = 126


class MirrorAbsent(TemporaryFailure):
    """There is no mirror yet, or it cannot be read."""


class MirrorWriter:
    """The companion's side. One process at a time."""

    def __init__(self, settings: MirrorSettings) -> None:
        """Open or make the mirror. Raises Misconfigured when the place cannot be used."""
        path = Path(settings.path)
        self._settings = settings
        try:
            path.mkdir(parents=True, exist_ok=True)
            # No sync: on a memory file system there is nothing to wait for, and pages outlive the process.
            self._env = lmdb.open(
                str(path),
                map_size=settings.size_mb << 20,
                max_readers=settings.readers_max,
                sync=False,
                metasync=False,
                meminit=False,
                readahead=False,
            )
        except (OSError, lmdb.Error) as error:
            raise Misconfigured(f"mirror.path: cannot use {path}: {error}") from error

    def apply(
        self,
        profiles: Mapping[bytes, bytes | None],
        positions: Mapping[int, int],
        complete_to_ms: int | None = None,
    ) -> None:
        """Put profiles (None erases), changelog positions and completeness, all or nothing."""
        try:
            with self._env.begin(write=True) as transaction:
                for key, state in profiles.items():
                    if state is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, state)
                for partition, offset in positions.items():
                    transaction.put(_POSITION + str(partition).encode(), _INT64.pack(offset))
                if complete_to_ms is not None:
                    transaction.put(_COMPLETE_TO, _INT64.pack(complete_to_ms))
        except lmdb.MapFullError as error:
            raise Misconfigured(f"the mirror is full: mirror.size_mb is {self._settings.size_mb}") from error

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """The profiles of these keys as they are now, for looking at; workers have a reader of their own."""
        with self._env.begin() as transaction:
            return {key: transaction.get(key) for key in keys}

    def positions(self) -> dict[int, int]:
        """The next offset of each changelog partition; empty for a new mirror."""
        with self._env.begin() as transaction:
            cursor = transaction.cursor()
            found: dict[int, int] = {}
            more = cursor.set_range(_POSITION)
            while more and cursor.key().startswith(_POSITION):
                found[int(cursor.key()[len(_POSITION) :])] = _INT64.unpack(cursor.value())[0]
                more = cursor.next()
            return found

    def profile_count(self) -> int:
        """How many profiles there are."""
        with self._env.begin() as transaction:
            entries = int(transaction.stat()["entries"])
        return entries - len(self.positions()) - (1 if self.complete_to_ms() is not None else 0)

    def used_bytes(self) -> int:
        """How much of `size_mb` has been used so far: pages that are free again are counted, and used first."""
        return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    def complete_to_ms(self) -> int | None:
        """The completeness on record, None for a new mirror."""
        with self._env.begin() as transaction:
            value = transaction.get(_COMPLETE_TO)
        return None if value is None else int(_INT64.unpack(value)[0])

    def clear(self) -> None:
        """Forget everything; readers see the empty mirror at once."""
        with self._env.begin(write=True) as transaction:
            transaction.drop(self._env.open_db(None, txn=transaction), delete=False)

    def close(self) -> None:
        self._env.close()


class MirrorReader:
    """A worker's side: looks up a payment's profiles into buffers made at start. Not thread-safe."""

    def __init__(self, settings: MirrorSettings, *, item_max: int, profile_bytes_max: int) -> None:
        """`item_max`: the most keys one look-up asks for. Raises MirrorAbsent."""
        assert item_max <= len(_ALL_KNOWN)
        self._data = _data_file(settings)
        self._profile_bytes_max = profile_bytes_max
        try:
            self._identity = _identity_of(self._data)
            self._env = lmdb.open(
                settings.path,
                # Left out it is 10 MB, and a mirror that grows beyond what its reader maps is lost to it.
                map_size=settings.size_mb << 20,
                readonly=True,
                create=False,
                max_readers=settings.readers_max,
                readahead=False,
            )
        except (OSError, lmdb.Error) as error:
            raise MirrorAbsent(f"there is no mirror at {settings.path}") from error
        self.states: NDArray[np.uint8] = np.zeros(item_max * profile_bytes_max, dtype=np.uint8)
        self.bounds: NDArray[np.int64] = np.zeros(item_max + 1, dtype=np.int64)
        self.presence: NDArray[np.uint8] = np.zeros(item_max, dtype=np.uint8)
        self.found = b""
        """Whether each of the keys asked for last was there: ABSENT, UNKNOWN or KNOWN, as in `presence`."""
        self._states = self.states.data
        self._bounds = self.bounds.data.cast("B")
        self._presence = self.presence.data
        # By the number of keys.
        self._int64s = [struct.Struct(f"={count}q") for count in range(item_max + 1)]

    def look_up(self, keys: Sequence[bytes]) -> int:
        """Fill `states`, `bounds` and `presence` for these keys (empty: no such entity), as of one moment.

        Returns complete_to_ms: up to when the mirror is complete, 0 while it is not. Raises MirrorAbsent.
        """
        try:
            return self._look_up(keys)
        except lmdb.MapResizedError:
            # The companion has been started again with a larger size_mb, and has used it.
            return self._look_up_resized(keys)
        except lmdb.Error as error:
            raise MirrorAbsent("the mirror cannot be read") from error

    def is_replaced(self) -> bool:
        """Whether there is another mirror at the path by now: nothing is written to this one any more."""
        try:
            return _identity_of(self._data) != self._identity
        except OSError:
            return False

    def close(self) -> None:
        self._env.close()

    def _look_up_resized(self, keys: Sequence[bytes]) -> int:
        try:
            self._env.set_mapsize(0)  # as large as the writer's
            return self._look_up(keys)
        except lmdb.Error as error:
            raise MirrorAbsent("the mirror cannot be read") from error

    def _look_up(self, keys: Sequence[bytes]) -> int:
        # LMDB keeps the spare transaction of the call before: this costs a fraction of a microsecond.
        transaction = self._env.begin(buffers=True)
        get, count, size_max = transaction.get, len(keys), self._profile_bytes_max
        found: list[Any] = [get(key, _NOTHING) if key else _NOTHING for key in keys]
        sizes = list(map(len, found))
        presence = _ALL_KNOWN[:count]
        if 0 in sizes:
            presence = bytes(
                KNOWN if state is not _NOTHING else UNKNOWN if key else ABSENT
                for key, state in zip(keys, found, strict=True)
            )
        if max(sizes, default=0) > size_max:
            # Of another catalogue: what fits is enough to see that it cannot be read.
            found = [state[:size_max] for state in found]
            sizes = list(map(len, found))
        # Views into the mirror are good until the end of the transaction.
        states = b"".join(found)
        complete_to = get(_COMPLETE_TO)
        complete_to_ms = 0 if complete_to is None else int(_INT64.unpack(complete_to)[0])
        transaction.abort()
        self._states[: len(states)] = states
        self._presence[:count] = self.found = presence
        self._int64s[count].pack_into(self._bounds, _INT64.size, *itertools.accumulate(sizes))
        return complete_to_ms


def has_mirror(settings: MirrorSettings) -> bool:
    """Whether a companion has made one at the path."""
    return _data_file(settings).exists()


def _data_file(settings: MirrorSettings) -> Path:
    return Path(settings.path) / "data.mdb"


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
