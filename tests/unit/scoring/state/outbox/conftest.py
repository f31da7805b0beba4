"""Settings for tests of an outbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.scoring.state.outbox import OutboxSettings


@pytest.fixture
def small(tmp_path: Path) -> OutboxSettings:
    """Settings that give segments of two or three records."""
    return OutboxSettings(directory=str(tmp_path), segment_bytes=100, total_bytes_max=10_000)
