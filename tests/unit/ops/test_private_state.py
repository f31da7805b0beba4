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
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.policy.exploration import FileLedger
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings
from paywarden.scoring.metrics.exposition import MetricsRenderer
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.state import overlay
from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter
from paywarden.scoring.state.outbox import Cursor, OutboxSettings, OutboxWriter
from paywarden.scoring.state.overlay import OverlaySettings
from paywarden.streams.companion.set_aside_entries import RECORD, SetAsideEntries


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
    overlay.prepare(OverlaySettings(enabled=True, path=str(folder / "overlay")), FeatureEngine(CATALOGUE).plan)


def _metrics(folder: Path) -> None:
    registry = MetricsRegistry()
    registry.counter("paywarden_test_total", "For this test.")
    registry.open(folder / "metrics", "worker-0")
    MetricsRenderer(folder / "metrics").publish()
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
