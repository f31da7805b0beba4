"""A long list of a policy as bytes that are searched as they are: loaded in no time, in memory once for all workers.

    magic, entries, buckets │ where each bucket begins, and the last one ends │ buckets
                                                                                 └─ \\0 c-17 \\0 c-4711 \\0

1. An entry lies in the bucket that the CRC-32 of its UTF-8 bytes says. Buckets hold four entries on average.
2. To look a text up is to find `\\0 text \\0` in the bytes of its bucket: less than a microsecond, whatever the length
   of the list. A set of the same million entries would take a fifth of a second to read and 100 MB in each worker,
   and to free it again would take as long as 50 ms, in which a worker would answer nobody.
3. No entry has the byte 0 (`can_be_mapped`). A text that has one is in no list.
4. The file itself is never mapped. If somebody cut it short, each process that had it mapped would be killed (SIGBUS);
   if somebody wrote over it, cards would leave a list or come to it. It is copied. The supervisor of a host has the
   copy, and its workers inherit it.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from zlib import crc32

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular

MAPPED_FROM = 10_000
"""Shorter lists are quicker as sets, and read within a millisecond."""
_MAGIC = b"PWLIST\x01\n"
_HEAD = struct.Struct("=8sQQ")
_ENTRIES_A_BUCKET = 4
_STEP_BYTES = 1 << 18


def can_be_mapped(entries: Set[str]) -> bool:
    """Whether a list is long enough, and fit, to be mapped."""
    return len(entries) >= MAPPED_FROM and not any("\0" in entry for entry in entries)


def write_mapped_list(path: Path, entries: Iterable[str]) -> int:
    """Write a list, in the same bytes whatever the order of its entries. Returns their CRC-32. Raises OSError."""
    encoded = sorted(entry.encode("utf-8", "surrogatepass") for entry in entries)
    mask = (1 << max(1, len(encoded) // _ENTRIES_A_BUCKET).bit_length()) - 1
    buckets: list[list[bytes]] = [[] for _ in range(mask + 1)]
    for entry in encoded:
        buckets[crc32(entry) & mask].append(entry)
    starts, content = array("Q", [0]), bytearray()
    for bucket in buckets:
        if bucket:
            content += b"\0" + b"\0".join(bucket) + b"\0"
        starts.append(len(content))
    whole = _HEAD.pack(_MAGIC, len(encoded), len(buckets)) + starts.tobytes() + content
    path.write_bytes(whole)
    # Workers that still use it have it mapped, and would be killed if somebody wrote over it.
    path.chmod(0o400)
    return crc32(whole)


def _require_checksum(path: Path, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise Misconfigured(f"{path}: the list is damaged: wanted the checksum {wanted:08x}, got {found:08x}")


class MappedList(Set[str]):
    """The entries of a list as a set of texts. It never raises when it is asked for a text."""

    __slots__ = ("_buckets", "_count", "_map", "_mask", "_starts")

    def __init__(self, path: Path, checksum: int | None = None) -> None:
        """Copy a file that `write_mapped_list` wrote into memory of this process and of those that it forks.

        `checksum`: its CRC-32, if that is known. Raises OSError, and Misconfigured if it is damaged or something else.
        """
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            pages = mmap.mmap(-1, max(1, size))
            place, found = 0, 0
            while step := file.read(min(_STEP_BYTES, size - place)):
                pages[place : place + len(step)] = step
                found = crc32(step, found)
                place += len(step)
        _require_checksum(path, found, checksum)
        self._take(pages, place, str(path))

    def _take(self, pages: mmap.mmap, size: int, name: str) -> None:
        """Read from these pages. `size`: how many bytes of them are the list."""
        self._map = pages
        try:
            magic, count, buckets = _HEAD.unpack(pages[: min(size, _HEAD.size)])
        except struct.error as error:
            raise Misconfigured(f"{name}: wanted a mapped list: {error}") from error
        self._count = int(count)
        self._mask, self._buckets = buckets - 1, _HEAD.size + 8 * (buckets + 1)
        if magic != _MAGIC or buckets & self._mask or self._buckets > size:
            raise Misconfigured(f"{name}: wanted a mapped list, got something else or a part of one")
        self._starts = memoryview(pages)[_HEAD.size : self._buckets].cast("Q")
        if self._buckets + self._starts[buckets] != size:
            raise Misconfigured(f"{name}: wanted a mapped list of {self._buckets + self._starts[buckets]} bytes")

    def __contains__(self, text: object) -> bool:
        assert isinstance(text, str)
        data = text.encode("utf-8", "surrogatepass")
        number = crc32(data) & self._mask
        begin, starts = self._buckets, self._starts
        return b"\0%b\0" % data in self._map[begin + starts[number] : begin + starts[number + 1]] and b"\0" not in data

    def __iter__(self) -> Iterator[str]:
        for number in range(self._mask + 1):
            bucket = self._map[self._buckets + self._starts[number] : self._buckets + self._starts[number + 1]]
            yield from (entry.decode("utf-8", "surrogatepass") for entry in bucket.split(b"\0") if entry)

    def __len__(self) -> int:
        return self._count

    @classmethod
    def _from_iterable(cls, entries: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        """Returns the result of set operations, a frozenset."""
        return frozenset(entries)
