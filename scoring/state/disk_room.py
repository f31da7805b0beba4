"""Reserve room on disk ahead of the end of a file, so that a full disk refuses a write whole or not at all.

Without it a write to a disk that is nearly full stores as many bytes as fit. Other processes can read them until the
writer cuts them off.
"""

from __future__ import annotations

import ctypes
import errno
import os

# From linux/falloc.h: the size of the file stays as it is.
_KEEP_SIZE = 1
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(descriptor: int, start: int, size: int) -> bool:
    """Reserve room for `size` bytes of a file from byte `start` on. Returns False if nothing can be reserved here.

    NFS before 4.2, ZFS and systems other than Linux cannot, and some sandboxes do not allow it. Truncating the file
    gives up the room that is reserved behind its end. Raises OSError if there is no such room: ENOSPC or EDQUOT. The
    next write meets any other failure.
    """
    if _fallocate is None:
        return False
    while _fallocate(descriptor, _KEEP_SIZE, start, size):
        code = ctypes.get_errno()
        if code in _NO_ROOM:
            raise OSError(code, os.strerror(code))
        if code != errno.EINTR:
            return False
    return True
