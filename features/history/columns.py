"""Where long columns lie: in memory, or in files that the system reads and forgets as it needs.

A history has some columns with a number for every payment. In a file they cost no memory but for what is being looked
at: the file is mapped, what is touched is read, and `release` lets go of it. The bytes stay in the file, and in the
system's cache while there is room for them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from paywarden.schemas.errors import Misconfigured


class ColumnAllocator(Protocol):
    """Makes columns."""

    def new(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A column of zeros, shape (count,)."""
        ...

    def release(self) -> None:
        """Let go of the memory that parts of columns are in; what stands in them stays."""
        ...


class MemoryAllocator:
    """Columns in memory, where they stay."""

    def new(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.zeros(count, dtype=dtype)

    def release(self) -> None:
        pass


class MmapAllocator:
    """Columns in files without a name: they are gone with the last array over them, however the process ends."""

    def __init__(self, folder: Path) -> None:
        """The files lie in `folder`, or while there is none yet, in the nearest one above it."""
        whole = folder.absolute()
        self._folder = next((one for one in (whole, *whole.parents) if one.is_dir()), whole)
        # Only for as long as somebody else holds them: what is done with goes from the disk.
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def new(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Raises Misconfigured when the disk has no room for it."""
        size = count * np.dtype(dtype).itemsize
        if size == 0:
            return np.zeros(0, dtype=dtype)
        with self.new_file() as file:
            try:
                # Taken now: a write through the mapping that finds no room ends the process.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise self._no_room(error) from error
            return self.mapped(file, dtype)

    def new_file(self) -> BinaryIO:
        """A file to append to, and then to map. Raises Misconfigured when there can be none."""
        try:
            file: BinaryIO = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise self._no_room(error) from error
        return file

    def append(self, file: BinaryIO, values: npt.NDArray[Any]) -> None:
        """Write an array to the end of such a file. Raises Misconfigured when the disk has no room for it."""
        try:
            file.write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise self._no_room(error) from error

    def mapped(self, file: BinaryIO, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """All of a file as a column, which it may be closed under."""
        file.flush()
        if os.fstat(file.fileno()).st_size == 0:
            return np.zeros(0, dtype=dtype)
        whole = mmap.mmap(file.fileno(), 0)
        self._mapped.add(whole)
        return np.frombuffer(whole, dtype=dtype)

    def release(self) -> None:
        for whole in self._mapped:
            whole.madvise(mmap.MADV_DONTNEED)

    def _no_room(self, error: OSError) -> Misconfigured:
        return Misconfigured(f"cannot write columns to {self._folder}: {error.strerror or error}")
