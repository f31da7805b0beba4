"""State that processes keep on a host is readable by one user only, with any umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.policy.exploration import FileLedger
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server.takeover import take_over
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import Cursor, OutboxSettings, OutboxWriter
from paywarden.scoring.state.overlay.overlay_files import prepare
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.set_aside_entries import RECORD, SetAsideEntries
from paywarden.streams.decision_index.database import DuckDbDatabase


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _outbox(folder: Path) -> None:
    settings = OutboxSettings(directory=str(folder / "outbox"), segment_bytes=64, fsync="always")
    with closing(OutboxWriter(settings, "worker-0")) as writer:
        for _ in range(3):
            writer.append(b"a decision of some 40 bytes, so that segments follow")
        Cursor(settings, "worker-0").store(writer.position)
    SetAsideEntries(settings, "worker-0").put(0, 9, RECORD, b"a decision")


def _mirror(folder: Path) -> None:
    writer = MirrorWriter(MirrorSettings(path=str(folder / "mirror"), size_mb=16))
    writer.apply({b"card:1": b"a profile"}, {0: 1}, 1)
    writer.close()


def _store(folder: Path) -> None:
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(folder / "store")))) as store:
        store.write({b"card:1": b"a profile"}, ttl_s=60)


def _answered(folder: Path) -> None:
    settings = DecisionCacheSettings(path=str(folder / "answered"), payments_max=100)
    decision_cache.prepare(settings)
    DecisionCache(settings, OutboxSettings(directory=str(folder / "outbox")), 0).close()


def _overlay(folder: Path) -> None:
    prepare(OverlaySettings(enabled=True, path=str(folder / "overlay")), FeatureEngine(CATALOGUE).plan)


def _metrics(folder: Path) -> None:
    registry = MetricsRegistry()
    registry.counter("paywarden_test_total", "For this test.")
    registry.open(folder / "metrics", "worker-0")
    registry.close()


STATE: dict[str, Callable[[Path], None]] = {
    "outbox": _outbox,
    "mirror": _mirror,
    "store": _store,
    "table of answered payments": _answered,
    "table of pending payments": _overlay,
    "metrics": _metrics,
    "ledger of exploration": lambda folder: FileLedger(folder / "exploration" / "spent").close(),
}


@pytest.mark.parametrize("what", STATE)
def test_state_on_a_host_is_for_one_user(what: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    STATE[what](tmp_path)
    made = sorted(tmp_path.rglob("*"))
    assert any(path.is_file() for path in made)
    modes = {path.relative_to(tmp_path): stat.filemode(path.stat().st_mode) for path in made}
    assert {path: mode for path, mode in modes.items() if mode[4:] != "------"} == {}


def _index(folder: Path) -> None:
    DuckDbDatabase(folder / "index", memory_mb=64, threads=1).close()


ANOTHER_USER = 65534
# What each part makes or opens in a folder that every user can write to.
NAMES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "outbox": (_outbox, ("outbox",)),
    "mirror": (_mirror, ("mirror",)),
    "store": (_store, ("store",)),
    "table of answered payments": (_answered, ("answered", "answered.new")),
    "table of pending payments": (_overlay, ("overlay", "overlay.new")),
    "metrics": (_metrics, ("metrics",)),
    "index of decisions": (_index, ("index", "index.wal")),
    "host to take over": (lambda folder: take_over(folder / "serve"), ("serve",)),
}
PLANTS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda path, theirs: path.symlink_to(theirs / "file"),
    "link to a folder": lambda path, theirs: path.symlink_to(theirs),
    "link to nothing": lambda path, theirs: path.symlink_to(theirs / "new"),
    "named pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(0o777),
    "hard link": lambda path, theirs: path.hardlink_to(theirs / "file"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("what", NAMES)
def test_what_another_user_planted_is_refused_and_leads_nowhere(what: str, tmp_path: Path) -> None:
    make, names = NAMES[what]
    for number, (name, kind) in enumerate((name, kind) for name in names for kind in PLANTS):
        shared, outside = tmp_path / f"{number}" / "shm", tmp_path / f"{number}" / "outside"
        for folder in (shared, outside):
            folder.mkdir(parents=True)
        shared.chmod(0o1777)
        (outside / "file").write_bytes(b"something else")
        (outside / "file").chmod(0o644)
        PLANTS[kind](shared / name, outside)
        if kind != "hard link":
            os.chown(shared / name, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)
        before = _state_of(outside)
        with pytest.raises(Misconfigured, match="in a folder that every user can write to"):
            make(shared)
        assert _state_of(outside) == before, (name, kind)


def _state_of(folder: Path) -> list[tuple[str, str, bytes]]:
    return [
        (str(path), stat.filemode(path.stat().st_mode), path.read_bytes() if path.is_file() else b"")
        for path in sorted((folder, *folder.rglob("*")))
    ]
