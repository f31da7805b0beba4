"""What a batch of the stream costs an embedded store: commits, and the pages that reach the disk."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from paywarden.features.stores.lmdb import LmdbStore
from paywarden.streams.profiles.updater import Updater
from tests.unit.streams.profiles.test_router import NOW_MS, FakeSender, records, router
from tests.unit.streams.profiles.test_updater import ROUTES
from tests.worlds.small import small_world

PAGE = 4096


def commits(store: LmdbStore) -> int:
    return int(store._environment.info()["last_txnid"])


def written_bytes() -> int:
    """Returns the bytes that this process has passed to the kernel: all pages of a commit are written by calls."""
    return int(psutil.Process(os.getpid()).io_counters().write_chars)


def test_a_batch_is_one_commit_for_its_records_and_one_for_all_profiles(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store", map_size_bytes=64 << 20, fsync=False)
    store.write({b"card:filler-%06d" % number: bytes(400) for number in range(20_000)}, ttl_s=0)
    route = router(store, FakeSender())
    updater = Updater(store=store, engine=small_world.engine(), routes=ROUTES, changelog=None)
    for batch in (records(5), records(10)[5:]):
        commits_before, bytes_before = commits(store), written_bytes()
        joined = route.keep(route.decode(batch, [], NOW_MS))
        updates = updater.update(dict(enumerate(joined.of_entities())))
        pages = (written_bytes() - bytes_before) / PAGE
        assert commits(store) - commits_before == 2
        # These profiles are neighbours in the tree: 12 profiles took 11 and 12 pages, with all that commits add.
        assert sum(len(applied.profiles) for applied in updates.values()) == 12
        assert pages <= 16
    store.close()
