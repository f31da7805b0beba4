import ctypes
import errno
import os
from pathlib import Path

import pytest

from paywarden.scoring.state import disk_room


def test_reserved_room_is_taken_from_the_disk_and_leaves_the_size_of_the_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        if not disk_room.reserve(file.fileno(), 7, 1 << 20):
            pytest.skip("this file system cannot reserve")
        found = os.fstat(file.fileno())
        assert found.st_size == 7
        assert found.st_blocks * 512 >= 1 << 20
        file.truncate(7)
        assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(("code", "is_told"), [(errno.EOPNOTSUPP, False), (errno.EPERM, False), (errno.ENOSPC, True)])
def test_only_a_lack_of_room_is_an_error(monkeypatch: pytest.MonkeyPatch, code: int, is_told: bool) -> None:
    answers = [errno.EINTR, code]

    def refuse(*_: int) -> int:
        ctypes.set_errno(answers.pop(0))
        return -1

    monkeypatch.setattr(disk_room, "_fallocate", refuse)
    if is_told:
        with pytest.raises(OSError, match="No space left"):
            disk_room.reserve(3, 0, 4096)
    else:
        assert not disk_room.reserve(3, 0, 4096)
    assert answers == []
