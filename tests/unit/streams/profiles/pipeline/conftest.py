"""A worker for each test."""

from __future__ import annotations

import pytest

from tests.unit.streams.profiles.pipeline.worker import Worker


@pytest.fixture
def worker() -> Worker:
    return Worker()
