"""Which folder holds the profile store: the settings decide, and a store that exists already."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.stores.lmdb import LmdbStore
from paywarden.ops.wiring import stores
from paywarden.schemas.settings import Source


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    stores._tell_former_path.cache_clear()
    return tmp_path


def store_at(path: str) -> None:
    """A store with one profile, whose value is the path."""
    with closing(LmdbStore(path, map_size_bytes=1 << 20)) as store:
        store.write({b"card:1": path.encode()}, ttl_s=0)


def value_in(settings: Source) -> bytes | None:
    with closing(stores.open_live_store(settings, readonly=True)) as store:
        return store.read([b"card:1"])[0]


def test_a_new_store_lies_outside_the_folder_of_histories(empty_folder: Path) -> None:
    stores.open_store(Source({}, {})).close()
    assert (empty_folder / ".paywarden" / "store" / "data.mdb").exists()
    assert not (empty_folder / "data").exists()


def test_a_store_at_the_former_default_is_used_and_logged_once(
    empty_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_at("data/profiles")
    assert value_in(Source({}, {})) == value_in(Source({}, {})) == b"data/profiles"
    (line,) = [record.getMessage() for record in caplog.records]
    assert 'set [lmdb] path = "data/profiles" to keep it there' in line
    assert not (empty_folder / ".paywarden").exists()


def test_the_former_default_is_used_for_further_profile_sets_too(empty_folder: Path) -> None:
    (empty_folder / "data" / "profiles.sets").mkdir(parents=True)
    stores.open_store(Source({}, {})).close()
    assert (empty_folder / "data" / "profiles" / "data.mdb").exists()


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Source({}, {}), b".paywarden/store"),
        (Source({"lmdb": {"path": "elsewhere"}}, {}), b"elsewhere"),
        (Source({}, {"PAYWARDEN_LMDB_PATH": "elsewhere"}), b"elsewhere"),
    ],
)
def test_the_former_default_is_ignored_if_a_store_is_elsewhere(
    caplog: pytest.LogCaptureFixture, settings: Source, wanted: bytes
) -> None:
    for path in ("data/profiles", wanted.decode()):
        store_at(path)
    assert value_in(settings) == wanted
    assert not caplog.records


def test_a_path_that_is_set_wins_over_the_former_default(empty_folder: Path) -> None:
    store_at("data/profiles")
    stores.open_store(Source({"lmdb": {"path": ".paywarden/store"}}, {})).close()
    assert (empty_folder / ".paywarden" / "store" / "data.mdb").exists()
