"""Files that workers map: watched, and mapped before the first payment.

A worker that touches a page behind the end of its file is killed (SIGBUS), and so is the one that is started in its
place. Workers with a deleted file and workers with the next one would not see each other's writes. If somebody deletes
a file or cuts it short, the host therefore ends. The next start makes the file.

A worker that begins has none of the pages mapped, and each payment touches several. At half load payments came faster
than a new worker took these page faults: for its first half second they waited up to 60 ms (`map_pages`).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

# Linux 5.14. Earlier ones refuse it.
_MADV_POPULATE_READ = 22
# The unit of st_blocks.
_BLOCK_BYTES = 512
# A gigabyte takes some 80 ms. A worker that is started again is wanted soon.
_MAPPED_AHEAD_MAX = 1 << 30


class MappedFile:
    """A file that workers map. `prepare` makes it, unless it is there as it has to be."""

    def __init__(self, path: str, prepare: Callable[[], object]) -> None:
        """Prepares the file. Raises the errors of `prepare`."""
        self._path = Path(path)
        prepare()
        self._inode, self._size = self._look()

    def trouble(self) -> str:
        """Returns why workers cannot use the file any more: it is gone, or shorter than it was. Empty if they can.

        A file of another size that somebody put in its place is no trouble: another host takes this one over.
        """
        try:
            inode, size = self._look()
        except FileNotFoundError:
            return f"{self._path} was deleted"
        except OSError:
            # Nobody knows. Workers that run have it mapped.
            return ""
        return f"{self._path} was cut short" if inode == self._inode and size < self._size else ""

    def _look(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_ino, status.st_size


def map_pages(path: Path) -> int:
    """Have the kernel map the pages of a file that this process has mapped, as far as the file is in memory.

    Takes at most 1 GiB of each mapping. Returns the number of bytes; 0 where the system cannot do it.
    """
    if sys.platform != "linux":
        return 0
    taken = 0
    try:
        status = path.stat()
        # A file may be longer than what it has memory for, and to read the rest would take memory.
        in_memory = min(status.st_size, status.st_blocks * _BLOCK_BYTES)
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        if not _is_memory(device):
            return 0
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        for begin, end, offset in _mappings_of(device, status.st_ino):
            size = min(end - begin, in_memory - offset, _MAPPED_AHEAD_MAX) // page_bytes * page_bytes
            if size > 0 and madvise(begin, size, _MADV_POPULATE_READ) == 0:
                taken += size
    except (OSError, ValueError):
        # It only makes the first payments quicker.
        _log.debug("the pages of %s are not mapped ahead", path, exc_info=True)
    return taken


def _is_memory(device: str) -> bool:
    """Whether a device, as MAJOR:MINOR, is a memory file system. Another one might have to read the file first."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[2] == device:
            return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def _mappings_of(device: str, inode: int) -> Iterator[tuple[int, int, int]]:
    """Yields begin, end and offset in the file of each mapping that this process has of it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, offset, found_device, found_inode = line.split(maxsplit=5)[:5]
        major, minor = (int(part, 16) for part in found_device.split(":"))
        if int(found_inode) == inode and f"{major}:{minor}" == device:
            begin, end = (int(part, 16) for part in addresses.split("-"))
            yield begin, end, int(offset, 16)
