"""The register in a file: what only a file has to get right, between processes and across their deaths."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.stores.base import ABSENT, RegisterUnreadable, StoreConflict
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.profile_sets import ProfileSets, decode_register
from paywarden.features.stores.register_file import FileRegister
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.patience import PATIENCE_S

_CREATE = """
import sys
from paywarden.features.stores.profile_sets import ProfileSets
from paywarden.features.stores.register_file import FileRegister

sets = ProfileSets(FileRegister(sys.argv[1]))
for number in range(int(sys.argv[3])):
    sets.create(f"{sys.argv[2]}{number}", now_ms=number)
"""


def creating(folder: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _CREATE, str(folder), name, str(count)])


def names(folder: Path) -> list[str]:
    return [one.name for one in ProfileSets(FileRegister(folder)).register().sets]


def test_concurrent_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    processes = [creating(tmp_path / "sets", name, 5) for name in ("a", "b")]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    assert sorted(names(tmp_path / "sets")) == sorted(["", *(f"{name}{n}" for name in "ab" for n in range(5))])


def test_kill_9_leaves_the_old_or_new_record_and_no_lock(tmp_path: Path) -> None:
    found = 0
    for number in range(5):
        killed = creating(tmp_path / "sets", f"n{number}x", 100_000)
        deadline = time.monotonic() + 60
        while len(names(tmp_path / "sets")) < found + 3:
            assert time.monotonic() < deadline
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        found = len(names(tmp_path / "sets"))
    ProfileSets(FileRegister(tmp_path / "sets", lock_timeout_s=1)).create("after", now_ms=1)
    assert len(names(tmp_path / "sets")) == found + 1


def test_a_half_written_file_of_a_killed_process_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "live.json.new").write_bytes(b'{"format": 1, "chan')
    register = FileRegister(tmp_path)
    assert register.read() == (None, ABSENT)
    register.replace(b"whole", ABSENT)
    assert register.read().value == b"whole"


def test_reading_makes_no_file_and_takes_no_lock(tmp_path: Path) -> None:
    assert FileRegister(tmp_path / "absent").read() == (None, ABSENT)
    assert not (tmp_path / "absent").exists()
    FileRegister(tmp_path).replace(b"value", ABSENT)
    with (tmp_path / "live.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert FileRegister(tmp_path).read().value == b"value"


def test_a_lock_that_is_held_too_long_is_an_error(tmp_path: Path) -> None:
    register = FileRegister(tmp_path, lock_timeout_s=0.05)
    register.replace(b"old", ABSENT)
    version = register.read().version
    with (tmp_path / "live.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match=r"for 0\.05 s"):
            register.replace(b"new", version)
    assert register.read().value == b"old"
    register.replace(b"new", version)


def test_a_conflict_changes_nothing(tmp_path: Path) -> None:
    register = FileRegister(tmp_path)
    register.replace(b"old", ABSENT)
    before = (tmp_path / "live.json").stat()
    with pytest.raises(StoreConflict):
        register.replace(b"new", ABSENT)
    assert (tmp_path / "live.json").stat().st_ino == before.st_ino


def test_a_path_that_is_no_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    register = FileRegister(tmp_path / "file")
    for call in (register.read, lambda: register.replace(b"new", ABSENT)):
        with pytest.raises(Misconfigured, match="the register of profile sets in") as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(Misconfigured, match="Permission denied"):
        FileRegister(tmp_path / "sets").replace(b"new", ABSENT)
    tmp_path.chmod(0o755)


def test_without_a_record_the_first_set_is_live() -> None:
    assert decode_register(None).live.name == ""


def test_a_register_that_is_gone_beside_sets_is_refused_and_no_other_set_goes_live(tmp_path: Path) -> None:
    """The first set was live again, even after a rebuild had replaced it, and all workers changed to it."""
    settings = LmdbSettings(path=str(tmp_path / "store"), map_size_bytes=16 << 20, fsync=False)
    stores = LmdbSets(settings)
    with closing(ProfileSets(stores.open_register())) as sets:
        assert sets.read().name == ""
        sets.create("b1", now_ms=0)
        stores.open("b1").close()
        sets.finish_swap(sets.begin_swap(sets.read(), "b1"))
        register = tmp_path / "store.sets" / "live.json"
        kept = register.rename(register.with_name("kept"))
        for _ in range(2):
            with pytest.raises(RegisterUnreadable, match="is gone, and the sets b1 are there: put it back"):
                sets.read()
            with pytest.raises(RegisterUnreadable, match="is gone"):
                sets.create("b2", now_ms=0)
        kept.rename(register)
        assert sets.read().name == "b1"
