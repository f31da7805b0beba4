"""A mirror's file, opened: its settings and errors, and how Python reads it (scoring/state/mirror_form.py).

    card:c-1              a packed profile; the keys are those of the store
    \\0positions           the next offset of each partition of the changelog
    \\0changelog           the id of the topic that the positions belong to
    \\0profile_set         the profile set that the mirror was filled from
    \\0identity            the digest of the key that the profiles are made with (features/catalogue/identity.py)
    \\0shards              the shards of cards that are complete (scoring/state/shards.py); absent: all
    \\0indexed, \\0index:…  profiles by identity, where features need them (scoring/state/identity_index.py)

Keys that begin with a zero byte belong to the mirror: no entity can have one. The time to which the mirror is complete
stands in the file's header.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import Misconfigured, PaywardenError, TemporaryFailure
from paywarden.schemas.private_files import open_private
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state import mirror_look_up as loop
from paywarden.scoring.state.shards import HeldShards

POSITIONS, CHANGELOG = b"\0positions", b"\0changelog"
IDENTITY, PROFILE_SET, SHARDS = b"\0identity", b"\0profile_set", b"\0shards"
POSITION = struct.Struct("<iq")
"""A partition, and its next offset."""
FILE_NAME = f"profiles-{form.FORM_VERSION}"
_MB = 1 << 20
# Header, index, the segment that records are appended to, and those that a full mirror keeps to go on with.
_SIZE_MB_MIN, _SIZE_MB_MAX = 8, form.FILE_BYTES_MAX // _MB
# The homes of keys that one step of a walk over all keys takes, and room for the records of as many.
_WALK_HOMES, _WALK_ROOM = 1024, 8192
_HEADER = struct.Struct(f"<{form.HEADER_WORDS}q")

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class MirrorSettings:
    """The mirror's path and size. On Linux the default is in memory. One companion writes it."""

    path: str = "/dev/shm/paywarden/mirror" if Path("/dev/shm").is_dir() else ".paywarden/mirror"
    # An upper bound; memory is taken as it is used. With 500 bytes per profile it holds 6 million entities.
    size_mb: int = 4096

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not _SIZE_MB_MIN <= self.size_mb <= _SIZE_MB_MAX:
            raise Misconfigured(f"[mirror] size_mb: wanted {_SIZE_MB_MIN} to {_SIZE_MB_MAX}, got {self.size_mb}")

    @property
    def data_file(self) -> Path:
        """The file that readers map."""
        return Path(self.path) / FILE_NAME


class MirrorAbsent(TemporaryFailure):
    """There is no mirror yet, or the mirror cannot be read."""


class MirrorUnavailable(TemporaryFailure):
    """The mirror takes no changes. It is as it was before; the same call may succeed later."""


class MirrorFull(MirrorUnavailable):
    """The mirror has no room: too many profiles."""


class MirrorDamaged(TemporaryFailure):
    """The mirror's file cannot be used any more. It is a copy: `discard` it, and fill a new one."""


def has_mirror(settings: MirrorSettings) -> bool:
    """Whether a companion has created a mirror at the path."""
    return settings.data_file.exists()


class MirrorFile:
    """A mapped mirror. All that one call reads is as of one transaction. Not thread-safe."""

    failure: type[PaywardenError] = MirrorAbsent
    """What a mirror raises that does not have its form."""

    def __init__(self, path: Path, *, is_writer: bool = False) -> None:
        """Map the file. Raises OSError, Misconfigured, and `failure`."""
        self._path, self._is_writer = path, is_writer
        self.numbers: NDArray[np.int64] = np.zeros(form.NUMBER_COUNT, dtype=np.int64)
        """What compiled code needs: MAPPED_AT to PROFILE_BYTES_MAX of mirror_form.py."""
        self._mapping: mmap.mmap | None = None
        self._map()

    def _map(self) -> None:
        """Map the file as long as it is now. If that fails, the mapping from before stays."""
        descriptor = open_private(self._path, os.O_RDWR if self._is_writer else os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            header = os.pread(descriptor, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                raise self.failure(f"the mirror is damaged: its file {'is empty' if not header else 'was cut short'}")
            words = _HEADER.unpack(header)
            if words[form.MAGIC_AT] != form.MAGIC:
                raise self.failure("the mirror is damaged: its file is not one of this release")
            if (missing := words[form.ALLOCATED_AT] - status.st_size) > 0:
                raise self.failure(f"the mirror is damaged: its file was cut short, and lacks {missing} bytes")
            access = mmap.ACCESS_WRITE if self._is_writer else mmap.ACCESS_READ
            mapping = mmap.mmap(descriptor, status.st_size, access=access)
        finally:
            os.close(descriptor)
        self.unmap()
        self._mapping = mapping
        self.file_at, self.file_bytes = (status.st_dev, status.st_ino), status.st_size
        self.numbers[form.MAPPED_AT] = np.frombuffer(self._mapping, dtype=np.uint8).ctypes.data
        self.numbers[form.MAPPED_BYTES] = status.st_size

    def unmap(self) -> None:
        """Close the file. A compiled look-up gets CLOSED from now on."""
        self.numbers[form.MAPPED_AT] = 0
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def follow_growth(self) -> None:
        """Map the file again, which has become longer. Raises `failure`."""
        if self._mapping is None:
            raise self.failure("the mirror cannot be read: it is closed")
        try:
            self._map()
        except (OSError, Misconfigured) as error:
            raise self.failure("the mirror cannot be read") from error

    def as_of_one_transaction(
        self, keys: Sequence[bytes], read: Callable[[mmap.mmap, NDArray[np.int64]], _Found]
    ) -> _Found:
        """Find keys, and return what `read` makes of the mapped file and of where the values begin, and their sizes.

        Raises `failure`.
        """
        texts, starts = joined(keys), bounds_of(keys)
        sizes = np.diff(starts)
        sizes[sizes > KEY_BYTES_MAX] = 0
        found = np.zeros((3, len(keys)), dtype=np.int64)
        for _ in range(form.TRIES_MAX):
            status = loop.find_values(self.numbers, texts, starts, sizes, found)
            if status == form.GREW:
                self.follow_growth()
                continue
            if status == form.CLOSED or self._mapping is None:
                raise self.failure("the mirror cannot be read: it is closed")
            result = read(self._mapping, found) if status == form.OK else None
            if not loop.is_still_current(self.numbers):
                continue
            if status == form.DAMAGED or result is None:
                raise self.failure("the mirror is damaged: its file does not have the form of a mirror")
            return result
        raise self.failure("the mirror cannot be read: it changes too quickly")

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Returns the current values of these keys. Raises `failure`."""
        wanted = list(keys)

        def values(mapping: mmap.mmap, found: NDArray[np.int64]) -> list[bytes | None]:
            places, sizes = found[:2].tolist()
            return [mapping[at : at + size] if size >= 0 else None for at, size in zip(places, sizes, strict=True)]

        return dict(zip(wanted, self.as_of_one_transaction(wanted, values), strict=True))

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns those of the keys that the mirror lacks. Raises `failure`."""
        sizes = self.as_of_one_transaction(keys, lambda _, found: found[1].tolist())
        return [key for key, size in zip(keys, sizes, strict=True) if size < 0]

    def walk(self) -> Iterator[list[bytes]]:
        """Yields all keys, in parts of about a thousand, in no order. Raises `failure`.

        A key that is there from the beginning to the end comes once, whatever changes between two parts.
        """
        places = np.zeros(_WALK_ROOM, dtype=np.int64)
        # The hash up to which keys were listed. It holds when the index grows: a hash begins with its home.
        reached = after = 0

        def part(mapping: mmap.mmap, _: NDArray[np.int64]) -> list[bytes]:
            nonlocal after
            bits = int(self.numbers[form.INDEX_BITS])
            home = reached >> (64 - bits)
            after = (home + _WALK_HOMES) << (64 - bits)
            count = loop.find_records(self.numbers, home, _WALK_HOMES, places)
            if count < 0:
                raise self.failure("the mirror is damaged: too many keys in one place")
            return [_key_at(mapping, place) for place in places[:count].tolist()]

        while reached < 1 << 64:
            keys = self.as_of_one_transaction((), part)
            reached = after
            if keys:
                yield keys

    def all_keys(self) -> list[bytes]:
        """Returns all keys, in no order. Raises `failure`."""
        return list(itertools.chain.from_iterable(self.walk()))

    def note(self, key: bytes) -> str:
        """Returns one of the mirror's notes as text; "" without it. Raises `failure`."""
        return (self.read([key])[key] or b"").decode()

    def positions(self) -> dict[int, int]:
        """Returns the next offset of each changelog partition; empty for a new mirror. Raises `failure`."""
        packed = self.read([POSITIONS])[POSITIONS] or b""
        return dict(POSITION.iter_unpack(packed))

    def changelog_id(self) -> str:
        """Returns the id of the topic that the positions belong to; "" if it is not known. Raises `failure`."""
        return self.note(CHANGELOG)

    def held_shards(self) -> HeldShards | None:
        """Returns which shards of cards the mirror holds; None if it holds every profile.

        Raises ValueError if its note about them is damaged, and `failure`.
        """
        value = self.read([SHARDS])[SHARDS]
        return None if value is None else HeldShards.from_bytes(value)

    def profile_count(self) -> int:
        """Returns the number of profiles. Raises `failure`."""
        return self._of_newest(form.META_PROFILES)

    def complete_to_ms(self) -> int | None:
        """Returns the time to which the mirror is complete, in epoch ms; None for a new mirror. Raises `failure`."""
        return self._of_newest(form.META_COMPLETE_TO_MS) or None

    def newest_transaction(self) -> int:
        """Returns the number of the newest transaction that changed the mirror. Raises `failure`."""
        return self._of_newest(form.META_TRANSACTION)

    def _of_newest(self, word: int) -> int:
        """Returns a word of the newest transaction's meta block."""

        def read(mapping: mmap.mmap, _: NDArray[np.int64]) -> int:
            at = form.META_AT + (int(self.numbers[form.SNAPSHOT]) & 1) * form.META_WORDS + word
            return int.from_bytes(mapping[at * form.WORD_BYTES : (at + 1) * form.WORD_BYTES], "little", signed=True)

        return self.as_of_one_transaction((), read)


def joined(parts: Iterable[bytes]) -> NDArray[np.uint8]:
    """Returns texts one behind the other, with a spare byte, since NumPy makes no array of nothing."""
    return np.frombuffer(bytearray(b"".join((*parts, b"\0"))), dtype=np.uint8)


def bounds_of(parts: Iterable[bytes]) -> NDArray[np.int64]:
    """Returns where each of the joined texts begins, and where the last one ends."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _key_at(mapping: mmap.mmap, place: int) -> bytes:
    """Returns the key of a record. If the record was overwritten, the result means nothing."""
    key_size = int.from_bytes(mapping[place + form.WORD_BYTES : place + form.WORD_BYTES + 2], "little")
    return mapping[place + form.RECORD_HEAD_BYTES : place + form.RECORD_HEAD_BYTES + key_size]


class MirrorView(MirrorFile):
    """A mirror for inspection, by any process, whoever writes it. Workers use MirrorReader."""

    def __init__(self, settings: MirrorSettings) -> None:
        """Raises MirrorAbsent."""
        try:
            super().__init__(settings.data_file)
        except Misconfigured as error:
            raise MirrorAbsent(f"the mirror is not this user's: {error}") from error
        except OSError as error:
            raise MirrorAbsent(f"there is no mirror at {settings.path}") from error

    def close(self) -> None:
        self.unmap()
