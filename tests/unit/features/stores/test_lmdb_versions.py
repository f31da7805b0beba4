"""Versions and health of the LMDB store: what only it has to get right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from paywarden.features.stores.base import StoreConflict
from paywarden.features.stores.lmdb import LmdbStore
from tests.patience import PATIENCE_S

_WRITE_FROM_ANOTHER_PROCESS = """
import sys
from paywarden.features.stores.lmdb import LmdbStore

store = LmdbStore(sys.argv[1], fsync=False)
store.write({b"card:1": b"by another process"}, ttl_s=0)
store.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profiles"


@pytest.fixture
def store(path: Path) -> Iterator[LmdbStore]:
    opened = LmdbStore(path, map_size_bytes=16 << 20, reader_count_max=1, fsync=False)
    yield opened
    opened.close()


def test_the_file_holds_no_versions_so_older_files_have_them_too(path: Path, store: LmdbStore) -> None:
    store.write({b"card:1": b"profile"}, ttl_s=0)
    ((_, version),) = store.read_versioned([b"card:1"])
    store.write({b"card:1": b"profile of the next batch"}, ttl_s=0, versions={b"card:1": version})
    store.close()
    with lmdb.open(str(path), readonly=True) as environment, environment.begin() as transaction:
        assert transaction.get(b"card:1") == b"\0\0\0\0profile of the next batch"


def test_a_write_of_another_process_meanwhile_is_a_conflict(path: Path) -> None:
    store = LmdbStore(path, fsync=False)
    store.write({b"card:1": b"old", b"card:2": b"old"}, ttl_s=0)
    versions = {key: store.read_versioned([key])[0].version for key in (b"card:1", b"card:2")}
    subprocess.run([sys.executable, "-c", _WRITE_FROM_ANOTHER_PROCESS, str(path)], check=True, timeout=PATIENCE_S)
    with pytest.raises(StoreConflict, match="1 of 2 records"):
        store.write({b"card:1": b"mine", b"card:2": b"mine"}, ttl_s=0, versions=versions)
    # One transaction: the record that nobody else has touched is as it was, too.
    assert store.read([b"card:1", b"card:2"]) == [b"by another process", b"old"]
    store.close()


def test_a_store_that_cannot_be_read_is_unwell_and_says_why_in_one_line(store: LmdbStore) -> None:
    with store._begin(write=False):
        health = store.health()
    assert not health
    assert "reader_count_max" in health.reason
    assert "\n" not in health.reason
    assert store.health()


def test_a_closed_store_is_unwell(store: LmdbStore) -> None:
    store.close()
    assert not store.health()
