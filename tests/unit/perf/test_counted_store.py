"""The counts of a benchmark's store are those of what was asked."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.stores.aerospike.client import AerospikeSettings
from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.features.stores.base import ProfileStore
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.schemas.settings import read_source
from perf.tools.counted_store import KINDS, counted_store
from tests.standin.aerospike_server import StandIn


def opened(kind: str, config: Path) -> ProfileStore:
    source = read_source(str(config), {})
    if kind == "lmdb":
        return LmdbStore(source.section("lmdb", LmdbSettings).path)
    return AerospikeStore(source.section("aerospike", AerospikeSettings))


@pytest.mark.parametrize("kind", KINDS)
def test_each_write_is_a_request_and_its_bytes_are_counted(kind: str, tmp_path: Path) -> None:
    with counted_store(kind, tmp_path) as counted:
        config = tmp_path / "paywarden.toml"
        config.write_text(counted.config, encoding="utf-8")
        found = [counted.counts(os.getpid())]
        for writes in (3, 3, 6):
            # LMDB may be open once in a process. The first time makes the file, and each may ask the server something.
            store = opened(kind, config)
            for number in range(writes):
                store.write({b"card:%d" % number: b"x" * 50_000}, ttl_s=0)
            store.close()
            found.append(counted.counts(os.getpid()))
    _, first, second, last = found
    assert last.requests - second.requests == second.requests - first.requests + 3
    # Whole pages of LMDB; a few pages of its tree go with each write.
    bytes_max = 160_000 if kind == "aerospike" else 250_000
    assert 150_000 <= last.moved_bytes - 2 * second.moved_bytes + first.moved_bytes < bytes_max


def test_a_real_aerospike_is_emptied_and_counts_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandIn() as server:
        settings = AerospikeSettings(hosts=(server.address,))
        for prefix in ("", "$", "other$"):
            with closing(AerospikeStore(settings, set_prefix=prefix)) as store:
                store.write({b"card:1": b"of an earlier run"}, ttl_s=0)
        monkeypatch.setenv("PAYWARDEN_TEST_AEROSPIKE", server.address)
        with counted_store("aerospike", tmp_path) as counted:
            assert server.records.set_counts() == {"other$card": 1}
            config = tmp_path / "paywarden.toml"
            config.write_text(counted.config, encoding="utf-8")
            with closing(opened("aerospike", config)) as store:
                before = counted.counts(0).requests
                store.write({b"card:1": b"x"}, ttl_s=0)
                store.write({b"card:1": b"x", b"card:2": b"x"}, ttl_s=0)
                assert counted.counts(0).requests - before == 2


def test_commits_beside_the_first_profile_set_count(tmp_path: Path) -> None:
    with counted_store("lmdb", tmp_path) as counted:
        config = tmp_path / "paywarden.toml"
        config.write_text(counted.config, encoding="utf-8")
        sets = LmdbSets(read_source(str(config), {}).section("lmdb", LmdbSettings))
        before = counted.counts(os.getpid())
        for store in (sets.open(""), sets.open("second"), sets.open_beside()):
            store.write({b"card:1": b"x"}, ttl_s=0)
            store.close()
        assert counted.counts(os.getpid()).requests - before.requests == 3
