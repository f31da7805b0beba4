"""How long an LMDB file has to be: a process that reads behind the end of a mapped file is killed (SIGBUS).

LMDB maps its file and does not look at its length. A file that was copied in part, or cut short, has pages behind its
end, and the first one that is read ends the process, at each start again. `missing_bytes` finds such a file.

LMDB counts pages that it has taken and given back within one transaction, and may not write the last of them. A writer
that calls `fill_up` after each commit leaves a file that is never shorter than its pages.

The layout is that of lmdb.c, version 0.9: MDB_page, MDB_meta.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import lmdb

from paywarden.schemas.file_state import open_regular

# A meta page: magic, version, the size of a page, the number of the last page, the number of the transaction.
_META = struct.Struct("<16xII16xI92xQQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1


def missing_bytes(path: Path) -> int:
    """Returns how much shorter the file is than its newest pages; 0 for a whole one, an empty one, and none of LMDB.

    Raises OSError.
    """
    with open_regular(path) as file:
        first = _meta(file.read(_META.size))
        if first is None:
            return 0
        page_bytes, last, transaction = first
        file.seek(page_bytes)
        second = _meta(file.read(_META.size))
        if second is not None and second[2] > transaction:
            last = second[1]
        # After the pages: a writer makes the file longer before it counts them.
        return max(0, (last + 1) * page_bytes - os.fstat(file.fileno()).st_size)


def used_bytes(environment: lmdb.Environment) -> int:
    """Returns how many bytes the pages take. Free pages count as used; LMDB reuses them first. Raises lmdb.Error."""
    return (int(environment.info()["last_pgno"]) + 1) * int(environment.stat()["psize"])


def fill_up(path: Path, size: int) -> int:
    """Make a file at least `size` bytes long, whatever others write to it meanwhile; returns how long it is now.

    Raises OSError.
    """
    found = path.stat().st_size
    if found >= size:
        return found
    with path.open("r+b") as file:
        # Truncating could cut off what another process has just written.
        os.posix_fallocate(file.fileno(), found, size - found)
    return size


def _meta(head: bytes) -> tuple[int, int, int] | None:
    """Returns the size of a page, the number of the last page, and of the transaction; None if it is no meta page."""
    if len(head) < _META.size:
        return None
    magic, version, page_bytes, last, transaction = _META.unpack(head)
    return (page_bytes, last, transaction) if (magic, version) == (_MAGIC, _VERSION) else None
