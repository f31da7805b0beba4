"""Profile sets of an embedded store: where they lie, and two processes at work on two of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.schemas.errors import Misconfigured
from tests.patience import PATIENCE_S

_WRITE = """
import sys
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.lmdb import LmdbSettings

store = LmdbSets(LmdbSettings(path=sys.argv[1], map_size_bytes=16 << 20, fsync=False)).open(sys.argv[2])
for number in range(200):
    store.write({b"card:%d" % number: sys.argv[2].encode()}, ttl_s=0)
store.close()
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profiles"


@pytest.fixture
def sets(path: Path) -> LmdbSets:
    return LmdbSets(LmdbSettings(path=str(path), map_size_bytes=16 << 20, fsync=False))


def test_the_first_set_is_the_store_that_was_there_before(path: Path, sets: LmdbSets) -> None:
    with closing(LmdbStore(path, map_size_bytes=16 << 20, fsync=False)) as before:
        before.write({b"card:1": b"value"}, ttl_s=0)
    with closing(sets.open("", readonly=True)) as first:
        assert first.read([b"card:1"]) == [b"value"]
    assert not Path(f"{path}.sets").exists()


@pytest.mark.parametrize("written", ["{}", "{}/", "{}//"])
def test_a_further_set_lies_beside_it_however_the_path_is_written(path: Path, written: str) -> None:
    sets = LmdbSets(LmdbSettings(path=written.format(path), map_size_bytes=16 << 20))
    sets.open("b1").close()
    assert (path.parent / "profiles.sets" / "b1" / "data.mdb").exists()


def test_two_processes_write_two_sets_side_by_side(path: Path, sets: LmdbSets) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _WRITE, str(path), name]) for name in ("b1", "b2")]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0]
    for name in ("b1", "b2"):
        assert sets.counts(name) == {"card": 200}
        with closing(sets.open(name, readonly=True)) as store:
            assert {value for _, value in store.scan("card")} == {name.encode()}


def test_erasing_frees_the_room_and_touches_no_other_set(path: Path, sets: LmdbSets) -> None:
    sets.open("b1").close()
    sets.open("").close()
    (path / "notes.txt").write_text("the operator's", encoding="utf-8")
    sets.erase("b1")
    assert not Path(f"{path}.sets/b1").exists()
    sets.erase("")
    assert [file.name for file in path.iterdir()] == ["notes.txt"]


def test_a_damaged_or_full_set_can_be_erased(path: Path, sets: LmdbSets) -> None:
    folder = Path(f"{path}.sets/b1")
    folder.mkdir(parents=True)
    (folder / "data.mdb").write_bytes(b"no LMDB file at all" * 1_000)
    with pytest.raises(Misconfigured):
        sets.open("b1")
    sets.erase("b1")
    assert not folder.exists()


def test_a_process_that_has_the_set_open_keeps_its_view(sets: LmdbSets) -> None:
    with closing(sets.open("b1")) as reader:
        reader.write({b"card:1": b"value"}, ttl_s=0)
        sets.erase("b1")
        assert reader.read([b"card:1"]) == [b"value"]
    assert sets.counts("b1") == {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[LmdbStore, Clock]]:
    clock = Clock()
    opened = LmdbStore(tmp_path, map_size_bytes=64 << 20, fsync=False, clock=clock)
    yield opened, clock
    opened.close()
