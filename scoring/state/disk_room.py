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
# The system, or the file system under the file, cannot reserve: NFS before 4.2, ZFS, any system but Linux.
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV})
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(descriptor: int, start: int, size: int) -> bool:
    """Reserve room for `size` bytes of a file from byte `start` on. Returns False if nothing can be reserved here.

    Truncating the file gives up what is reserved behind its end. Raises OSError: ENOSPC if there is no such room.
    """
    if _fallocate is None:
        return False
    while _fallocate(descriptor, _KEEP_SIZE, start, size):
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
