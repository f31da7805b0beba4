"""The estimate of a training's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paywarden.models.training.memory import require_memory, training_bytes
from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

PLAIN = TrainingSettings()


def test_memory_is_that_of_rows_features_and_what_trees_grow_on() -> None:
    assert training_bytes(10_000_000, 80, PLAIN) == 16_500_000_000
    assert training_bytes(10_000_000, 80, replace(PLAIN, genuine_sample_share=0.1)) == 6_420_000_000
    assert training_bytes(10_000_000, 80, replace(PLAIN, seeds=3)) > training_bytes(10_000_000, 80, PLAIN)


def test_a_training_that_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (16_500_000_000, None):
        monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda free=free: free)
        require_memory(10_000_000, 80, PLAIN)
    monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: 16_400_000_000)
    with pytest.raises(Misconfigured, match=r"about 16.5 GB of memory, and 16.4 GB are free"):
        require_memory(10_000_000, 80, PLAIN)
