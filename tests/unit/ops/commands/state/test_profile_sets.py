"""`paywarden admin profile-sets`, and which set the other commands take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.stores.base import ProfileStore
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.profile_sets import LiveSet, ProfileSets
from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.ops.wiring.stores import _memory_sets
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from tests.standin.aerospike_server import StandIn
from tests.unit.features.kernel.profiles import payment, profile

BEGUN_MS = 1_767_258_000_000
NEVER = LiveSet("", 0, None)


@pytest.fixture
def lmdb_sets(tmp_path: Path) -> LmdbSets:
    return LmdbSets(LmdbSettings(path=str(tmp_path / "profiles")))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source({"lmdb": {"path": str(tmp_path / "profiles"), "fsync": False}}, {})


@pytest.fixture
def sets(lmdb_sets: LmdbSets) -> ProfileSets:
    return ProfileSets(lmdb_sets.open_register())


@pytest.fixture
def two_sets(lmdb_sets: LmdbSets, sets: ProfileSets) -> ProfileSets:
    sets.create("b20260101t0900", now_ms=BEGUN_MS)
    for name, count in (("", 3), ("b20260101t0900", 2)):
        with closing(lmdb_sets.open(name)) as store:
            store.write({b"card:%d" % number: name.encode() for number in range(count)}, ttl_s=0)
            store.write({b"payment:1": b"value"}, ttl_s=0)
    return sets


@pytest.fixture
def _no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers, and nobody is waited for."""
    monkeypatch.setenv("PAYWARDEN_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr("paywarden.streams.kafka.topics.REACH_TIMEOUT_S", 0.1)


def run(tmp_path: Path, *arguments: str) -> Result:
    config = tmp_path / "paywarden.toml"
    config.write_text(f'[lmdb]\npath = "{tmp_path / "profiles"}"\n', encoding="utf-8")
    return CliRunner().invoke(cli, ["--config", str(config), *arguments])


def said(result: Result) -> str:
    assert result.exception is None, result.exception
    assert result.stderr == ""
    return result.stdout


def test_a_new_store_has_the_first_set_and_it_is_empty(tmp_path: Path) -> None:
    assert said(run(tmp_path, "admin", "profile-sets")).splitlines() == [
        "set    state  begun  records",
        "first  live   -      none",
    ]
    # Looking makes nothing.
    assert [file.name for file in tmp_path.iterdir()] == ["paywarden.toml"]


def test_list_shows_the_state_start_and_records_of_each_set(tmp_path: Path, two_sets: ProfileSets) -> None:
    begun = two_sets.begin_swap(NEVER, "b20260101t0900")
    assert said(run(tmp_path, "admin", "profile-sets")).splitlines() == [
        "set             state             begun                 records",
        "first           live              -                     3 card, 1 payment",
        "b20260101t0900  being swapped in  2026-01-01T09:00:00Z  2 card, 1 payment",
    ]
    two_sets.finish_swap(begun)
    assert json.loads(said(run(tmp_path, "admin", "profile-sets", "--json"))) == {
        "live": {"name": "b20260101t0900", "epoch": 1, "next": None},
        "sets": [
            {"name": "first", "state": "not live", "begun": None, "records": {"card": 3, "payment": 1}},
            {
                "name": "b20260101t0900",
                "state": "live",
                "begun": "2026-01-01T09:00:00Z",
                "records": {"card": 2, "payment": 1},
            },
        ],
    }


@pytest.mark.usefixtures("_no_kafka")
def test_drop_erases_a_set_and_names_topics_it_cannot_delete(
    tmp_path: Path, two_sets: ProfileSets, lmdb_sets: LmdbSets
) -> None:
    result = run(tmp_path, "admin", "profile-sets", "--drop", "b20260101t0900")
    assert result.exception is None
    assert result.stdout == "profile set b20260101t0900 is dropped\n"
    (line,) = result.stderr.splitlines()
    topics = ", ".join(f"repartition-{entity}.b20260101t0900" for entity in ("card", "device", "merchant"))
    assert line.startswith(f"left on Kafka, to be deleted there: {topics} (")
    assert [one.name for one in two_sets.register().sets] == [""]
    assert lmdb_sets.counts("b20260101t0900") == {}
    assert lmdb_sets.counts("") == {"card": 3, "payment": 1}


def test_drop_refuses_the_live_set_unknown_sets_and_bad_names(tmp_path: Path, two_sets: ProfileSets) -> None:
    for name, why in (
        ("first", "first is live"),
        ("b2", "there is no profile set b2; there are first, b20260101t0900"),
        ("", "1 to 16 lower-case letters and digits"),
        ("../profiles", "1 to 16 lower-case letters and digits"),
    ):
        result = run(tmp_path, "admin", "profile-sets", "--drop", name)
        assert isinstance(result.exception, Misconfigured)
        assert why in str(result.exception)
    two_sets.begin_swap(NEVER, "b20260101t0900")
    result = run(tmp_path, "admin", "profile-sets", "--drop", "b20260101t0900")
    assert "is being swapped in: it can't be dropped" in str(result.exception)


@pytest.mark.usefixtures("_no_kafka")
def test_dropping_the_first_set_needs_no_kafka(tmp_path: Path, swapped: ProfileSets) -> None:
    assert said(run(tmp_path, "admin", "profile-sets", "--drop", "first")) == "profile set first is dropped\n"
    assert [one.name for one in swapped.register().sets] == ["b20260101t0900"]


@pytest.mark.usefixtures("_no_kafka")
def test_a_drop_that_died_is_listed_and_goes_on(tmp_path: Path, two_sets: ProfileSets) -> None:
    two_sets.begin_drop("b20260101t0900")
    assert "being dropped" in said(run(tmp_path, "admin", "profile-sets")).splitlines()[2]
    assert run(tmp_path, "admin", "profile-sets", "--drop", "b20260101t0900").exit_code == 0
    assert "being dropped" not in said(run(tmp_path, "admin", "profile-sets"))


def test_commands_cannot_see_the_sets_of_a_store_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYWARDEN_STORE_KIND", "memory")
    for arguments in ([], ["--drop", "b1"]):
        assert "memory" in str(run(tmp_path, "admin", "profile-sets", *arguments).exception)


@pytest.fixture
def swapped(two_sets: ProfileSets) -> ProfileSets:
    two_sets.finish_swap(two_sets.begin_swap(NEVER, "b20260101t0900"))
    return two_sets


def first_card(store: ProfileStore) -> bytes | None:
    with closing(store):
        return store.read([b"card:0"])[0]


def test_features_show_shows_the_live_set(tmp_path: Path, swapped: ProfileSets, lmdb_sets: LmdbSets) -> None:
    with closing(lmdb_sets.open("b20260101t0900")) as store:
        store.write({b"card:C1": profile(FeatureEngine(), "card", [payment(BEGUN_MS, 100)])}, ttl_s=0)
    assert "first payment  2026-01-01" in said(run(tmp_path, "features", "card:C1"))
    swapped.finish_swap(swapped.begin_swap(swapped.read(), ""))
    assert "no profile of this card" in str(run(tmp_path, "features", "card:C1").exception)


@pytest.fixture
def aerospike_source() -> Iterator[Source]:
    with StandIn() as server:
        yield Source({"store": {"kind": "aerospike"}, "aerospike": {"hosts": [server.address]}}, {})


@pytest.fixture
def _new_process() -> Iterator[None]:
    """Sets in memory are those of the process: these are forgotten again."""
    _memory_sets.cache_clear()
    yield
    _memory_sets.cache_clear()


@pytest.mark.usefixtures("_new_process")
@pytest.mark.parametrize("kind", ["aerospike", "memory"])
def test_other_kinds_of_stores_have_profile_sets_too(kind: str, aerospike_source: Source) -> None:
    source = aerospike_source if kind == "aerospike" else Source({"store": {"kind": "memory"}}, {})
    stores = wiring.set_stores(source)
    with closing(ProfileSets(stores.open_register())) as sets:
        sets.create("b1", now_ms=1)
        with closing(wiring.open_store(source, profile_set="b1")) as store:
            store.write({b"card:0": b"b1", b"payment:0": b"b1", b"progress:0": b"b1"}, ttl_s=0)
        with closing(wiring.open_store(source)) as store:
            store.write({b"card:0": b"first", b"payment:0": b"first", b"progress:0": b"first"}, ttl_s=0)
        assert first_card(wiring.open_live_store(source)) == b"first"
        sets.finish_swap(sets.begin_swap(sets.read(), "b1"))
        assert first_card(wiring.open_live_store(source)) == b"b1"
        stores.erase("")
        assert stores.counts("") == {}
        assert stores.counts("b1") == {"card": 1, "payment": 1, "progress": 1}
