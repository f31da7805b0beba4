from __future__ import annotations

import multiprocessing
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from paywarden.features.stores.lmdb import LmdbStore
from paywarden.features.stores.lmdb_file import missing_bytes
from paywarden.schemas.errors import Misconfigured, StoreUnavailable

MAP_SIZE_BYTES = 16 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "profiles", map_size_bytes=MAP_SIZE_BYTES, clock=clock)
    yield opened
    opened.close()


def stored_count(path: Path) -> int:
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        return int(environment.stat()["entries"])


def read_in_another_process(path: str, keys: list[bytes]) -> list[bytes | None]:
    store = LmdbStore(path, map_size_bytes=MAP_SIZE_BYTES, readonly=True)
    values = store.read(keys)
    store.close()
    return values


def test_reader_processes_see_what_the_writer_has_acknowledged(store: LmdbStore, tmp_path: Path) -> None:
    path = str(tmp_path / "profiles")
    with multiprocessing.get_context("spawn").Pool(2) as readers:
        for number in range(3):
            store.write({b"card:1": b"value %d" % number}, ttl_s=0)
            arguments = [(path, [b"card:1", b"card:absent"])] * 2
            assert readers.starmap(read_in_another_process, arguments) == [[b"value %d" % number, None]] * 2


def die_while_reading(path: str) -> None:
    store = LmdbStore(path, map_size_bytes=MAP_SIZE_BYTES, reader_count_max=1, readonly=True)
    with store._begin(write=False):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_reader_keeps_its_slot_until_the_next_write(tmp_path: Path) -> None:
    path = str(tmp_path / "profiles")
    # Stays open: the last one to close it would clear the slots by that.
    writer = LmdbStore(path, map_size_bytes=MAP_SIZE_BYTES, reader_count_max=1)
    writer.write({b"card:1": b"one"}, ttl_s=0)
    spawn = multiprocessing.get_context("spawn")
    killed = spawn.Process(target=die_while_reading, args=(path,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    with spawn.Pool(1) as next_one:
        # Opening for reading takes a slot, too.
        with pytest.raises(StoreUnavailable, match="reader_count_max"):
            next_one.apply(read_in_another_process, (path, [b"card:1"]))
        writer.write({b"card:2": b"two"}, ttl_s=0)
        assert next_one.apply(read_in_another_process, (path, [b"card:1"])) == [b"one"]
    writer.close()


def test_a_record_is_its_expiry_and_the_profile(store: LmdbStore, tmp_path: Path, clock: Clock) -> None:
    store.write({b"card:1": b"one"}, ttl_s=10)
    store.write({b"card:2": b"two"}, ttl_s=0)
    store.close()
    with (
        lmdb.open(str(tmp_path / "profiles"), readonly=True) as environment,
        environment.begin() as transaction,
    ):
        assert transaction.get(b"card:1") == struct.pack("<I", int(clock.now) + 11) + b"one"
        assert transaction.get(b"card:2") == bytes(4) + b"two"


def test_a_sweep_removes_expired_records_within_its_limit(store: LmdbStore, tmp_path: Path, clock: Clock) -> None:
    store.write({b"card:%02d" % number: b"dead" for number in range(30)}, ttl_s=1)
    store.write({b"merchant:%02d" % number: b"alive" for number in range(10)}, ttl_s=0)
    clock.now += 5
    removed = [store.sweep(record_count_max=12) for _ in range(5)]
    assert max(removed) == 12
    assert sum(removed) == 30
    assert len(list(store.scan("merchant"))) == 10
    store.close()
    assert stored_count(tmp_path / "profiles") == 10


def test_writes_remove_expired_records(store: LmdbStore, tmp_path: Path, clock: Clock) -> None:
    # Live records come first in key order, so that a sweep that does not continue would stop there.
    alive = {b"card:%02d" % number: b"alive" for number in range(30)}
    store.write(alive, ttl_s=0)
    store.write({b"merchant:%03d" % number: b"dead" for number in range(200)}, ttl_s=1)
    clock.now += 5
    for _ in range(30):
        store.write({key: alive[key] for key in list(alive)[:10]}, ttl_s=0)
    store.close()
    assert stored_count(tmp_path / "profiles") == len(alive)


def test_a_sweep_never_removes_a_record_that_was_written_again(store: LmdbStore, clock: Clock) -> None:
    store.write({b"card:1": b"old", b"card:2": b"old"}, ttl_s=1)
    clock.now += 5
    store.write({b"card:1": b"new"}, ttl_s=60)
    assert store.sweep(record_count_max=100) <= 1
    assert store.read([b"card:1", b"card:2"]) == [b"new", None]


def test_a_scan_over_several_pages_goes_on_when_the_rest_is_removed(store: LmdbStore) -> None:
    keys = [b"card:%05d" % number for number in range(2_500)]
    store.write(dict.fromkeys(keys, b"value"), ttl_s=0)
    assert [key for key, _ in store.scan("card")] == keys
    scan = store.scan("card")
    next(scan)
    # Nothing is left at or after the place where the second page starts.
    store.delete(keys[900:])
    assert sum(1 for _ in scan) == 999


def test_a_scan_held_open_does_not_make_the_file_grow(store: LmdbStore, tmp_path: Path) -> None:
    store.write({b"card:%05d" % number: bytes(500) for number in range(1_500)}, ttl_s=0)
    scan = store.scan("card")
    next(scan)
    data = tmp_path / "profiles" / "data.mdb"
    for _ in range(3):
        store.write({b"card:%05d" % number: bytes(500) for number in range(1_500)}, ttl_s=0)
    size = data.stat().st_size
    for _ in range(10):
        store.write({b"card:%05d" % number: bytes(500) for number in range(1_500)}, ttl_s=0)
    # Ten rewrites with nothing reused would be ten times as much.
    assert data.stat().st_size < 2 * size
    scan.close()  # type: ignore[attr-defined]


def test_a_full_map_is_temporary_names_the_setting_and_writes_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "profiles", map_size_bytes=1 << 20)
    store.write({b"card:0": b"kept"}, ttl_s=0)
    values = {b"card:%d" % number: bytes(10_000) for number in range(200)}
    with pytest.raises(StoreUnavailable, match="map_size_bytes") as full:
        store.write(values, ttl_s=0)
    assert isinstance(full.value.__cause__, lmdb.MapFullError)
    assert list(store.scan("card")) == [(b"card:0", b"kept")]
    store.write({b"card:1": b"small"}, ttl_s=0)
    store.close()


def test_more_readers_than_slots_is_temporary_and_names_the_setting(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "profiles", map_size_bytes=MAP_SIZE_BYTES, reader_count_max=1)
    with store._begin(write=False), pytest.raises(StoreUnavailable, match="reader_count_max"):
        store.read([b"card:1"])
    store.close()


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Misconfigured, match="cannot open the LMDB store at") as refused:
            LmdbStore(path)
        assert "\n" not in str(refused.value)


def test_another_file_in_the_stores_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no LMDB file at all" * 1_000)
    with pytest.raises(Misconfigured, match="cannot open"):
        LmdbStore(tmp_path)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("size", [8192, 20_000])
def test_a_store_that_was_cut_short_is_refused_with_what_to_do(tmp_path: Path, size: int, readonly: bool) -> None:
    """A read behind the end of a mapped file killed the stream, at each start again."""
    store = LmdbStore(tmp_path, map_size_bytes=MAP_SIZE_BYTES)
    store.write({b"card:%04d" % number: bytes(200) for number in range(500)}, ttl_s=0)
    store.close()
    os.truncate(tmp_path / "data.mdb", size)
    with pytest.raises(Misconfigured, match=r"lacks the last \d+ bytes of its file data.mdb.*admin store restore"):
        LmdbStore(tmp_path, map_size_bytes=MAP_SIZE_BYTES, readonly=readonly)


def test_a_write_leaves_a_file_as_long_as_its_pages(tmp_path: Path) -> None:
    """LMDB does not write pages that a transaction has taken and given back: the last ones were missing here."""
    drawn = random.Random(3)
    store = LmdbStore(tmp_path, map_size_bytes=MAP_SIZE_BYTES)
    for _ in range(40):
        with store._begin(write=True) as transaction:
            for _ in range(drawn.choice((1, 10, 200))):
                key = b"%04d" % drawn.randrange(300)
                if drawn.random() < 0.45:
                    transaction.delete(key)
                else:
                    transaction.put(key, bytes(drawn.choice((50, 300, 1500, 3000, 9000))))
        assert missing_bytes(tmp_path / "data.mdb") == 0
    store.close()


def test_a_store_that_no_writer_has_made_is_unavailable_to_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"no LMDB store at \S+absent yet \(\[lmdb\] path\): `paywarden stream`"):
        LmdbStore(tmp_path / "absent", readonly=True)
    assert not (tmp_path / "absent").exists()


def test_a_store_whose_file_is_still_empty_is_unavailable_to_a_reader(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    with pytest.raises(StoreUnavailable, match="no LMDB store"):
        LmdbStore(tmp_path, readonly=True)


def test_a_reader_is_refused_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="cannot open"):
        LmdbStore(tmp_path / "file", readonly=True)


def test_writing_to_a_store_opened_for_reading_is_refused(tmp_path: Path) -> None:
    LmdbStore(tmp_path, map_size_bytes=MAP_SIZE_BYTES).close()
    store = LmdbStore(tmp_path, map_size_bytes=MAP_SIZE_BYTES, readonly=True)
    with pytest.raises(Misconfigured, match="for reading only"):
        store.write({b"card:1": b"one"}, ttl_s=0)
    store.close()
