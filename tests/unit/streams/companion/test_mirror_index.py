"""The companion makes a mirror's index before it follows the changelog, and can be stopped meanwhile."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.scoring.state.identity_index import INDEX, IdentityIndex
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.companion.companion import make_index
from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.companion.mirror_writer import MirrorWriter

MERCHANTS = IdentityIndex({"merchant": False}, LAPTOP_KEY)


def records(mirror: MirrorWriter) -> int:
    return sum(key.startswith(INDEX) for key in mirror.all_keys())


def test_an_index_is_made_once_says_so_and_can_be_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    health, stop = CompanionHealth(30_000), Event()
    with closing(MirrorWriter(MirrorSettings(path=str(tmp_path / "mirror"), size_mb=64))) as mirror:
        mirror.apply({b"merchant:%d" % number: b"state" for number in range(12_000)}, {})
        stop.set()
        assert not make_index(mirror, MERCHANTS, health, stop)
        assert health.problems() == ["the mirror's index by identity is being made"]
        assert records(mirror) < 12_000
        stop.clear()
        assert make_index(mirror, MERCHANTS, health, stop)
        assert records(mirror) == 12_000
        caplog.clear()
        assert make_index(mirror, MERCHANTS, health, stop)
        assert not caplog.records
        assert make_index(mirror, IdentityIndex({}, LAPTOP_KEY), health, stop)
        assert [record.getMessage() for record in caplog.records] == [
            "companion: the mirror's index by identity is removed"
        ]
        assert records(mirror) == 0
