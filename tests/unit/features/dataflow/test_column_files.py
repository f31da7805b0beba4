"""Columns in files hold what is written to them, and take no memory that is not looked at."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.dataflow.column_files import MmapAllocator
from paywarden.schemas.errors import Misconfigured


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"^Rss(?:File|Shmem):\s+(\d+)", status, re.MULTILINE))


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.float64, np.bool_])
def test_a_column_begins_with_zeros_and_keeps_what_is_written(kind: type[np.generic], tmp_path: Path) -> None:
    room = MmapAllocator(tmp_path)
    column = room.new(10_000, kind)
    assert column.dtype == kind
    assert not column.any()
    column[5_000:] = 1
    room.release()
    assert int(column.sum()) == 5_000


def test_a_released_column_leaves_memory_and_stays_what_it_is(tmp_path: Path) -> None:
    room = MmapAllocator(tmp_path)
    column = room.new(4_000_000, np.int64)
    column[:] = np.arange(4_000_000)
    before = resident_bytes()
    room.release()
    assert before - resident_bytes() > 30_000_000
    assert int(column[3_999_999]) == 3_999_999


def test_a_column_outlives_its_allocator_and_has_no_file_name(tmp_path: Path) -> None:
    column = MmapAllocator(tmp_path).new(100, np.int64)
    column[:] = 7
    assert list(tmp_path.iterdir()) == []
    assert int(column.sum()) == 700


def test_a_column_without_users_frees_its_disk_space(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(
            1 for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines() if str(tmp_path) in line
        )

    room = MmapAllocator(tmp_path)
    column = room.new(1000, np.int64)
    assert open_files() == 1
    del column
    assert open_files() == 0
    room.release()


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=f"cannot write columns to {tmp_path}: "):
        MmapAllocator(tmp_path).new(2**59, np.int64)


def test_a_missing_folder_falls_back_to_its_parent(tmp_path: Path) -> None:
    MmapAllocator(tmp_path / "results" / "of today").new(10, np.int8)
    assert list(tmp_path.iterdir()) == []
