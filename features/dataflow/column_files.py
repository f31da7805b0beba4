"""Allocates long columns in files that the system reads and forgets as it needs.

The columns of a window take memory only for the parts in use: the file is mapped, the system reads a page when it is
touched, and `release` frees the pages. The bytes stay in the file, and in the system's cache while there is room.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from paywarden.schemas.errors import Misconfigured


class MmapAllocator:
    """Columns in memory-mapped files without a name. A file ends with the last array over it, even after a crash."""

    def __init__(self, folder: Path) -> None:
        """The files lie in `folder`. If it does not exist yet, they lie in its nearest existing parent."""
        whole = folder.absolute()
        self._folder = next((path for path in (whole, *whole.parents) if path.is_dir()), whole)
        # Weak references, so that the disk space of a column is freed when its last user ends.
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def new(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns a column of zeros. Raises Misconfigured if the disk has no room for it."""
        size = count * np.dtype(dtype).itemsize
        if size == 0:
            return np.zeros(0, dtype=dtype)
        with self.new_file() as file:
            try:
                # Reserve the room now. A later write through the mapping to a full disk would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise self._no_room(error) from error
            return self.mapped(file, dtype)

    def new_file(self) -> BinaryIO:
        """Returns a file to append to and then to map. Raises Misconfigured if it cannot be made."""
        try:
            file: BinaryIO = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise self._no_room(error) from error
        return file

    def append(self, file: BinaryIO, values: npt.NDArray[Any]) -> None:
        """Append an array to such a file. Raises Misconfigured if the disk has no room for it."""
        try:
            file.write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise self._no_room(error) from error

    def mapped(self, file: BinaryIO, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns a whole file as a column. The file may be closed afterwards."""
        file.flush()
        if os.fstat(file.fileno()).st_size == 0:
            return np.zeros(0, dtype=dtype)
        whole = mmap.mmap(file.fileno(), 0)
        self._mapped.add(whole)
        return np.frombuffer(whole, dtype=dtype)

    def release(self) -> None:
        """Free the memory that parts of the columns take. Their content stays."""
        for whole in self._mapped:
            whole.madvise(mmap.MADV_DONTNEED)

    def _no_room(self, error: OSError) -> Misconfigured:
        return Misconfigured(f"cannot write columns to {self._folder}: {error.strerror or error}")
