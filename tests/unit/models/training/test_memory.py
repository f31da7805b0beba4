"""The estimate of a training's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paywarden.models.training.memory import fitting_share, require_memory, training_bytes
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

PLAIN = TrainingSettings()


def test_memory_is_that_of_rows_features_and_what_trees_grow_on() -> None:
    assert training_bytes(10_000_000, 80) == 14_100_000_000
    assert training_bytes(10_000_000, 80, is_on_disk=True) == 10_900_000_000


def test_a_training_that_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (14_100_000_000, None):
        monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda free=free: free)
        require_memory(10_000_000, 80)
    monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: 14_000_000_000)
    with pytest.raises(Misconfigured, match=r"about 14.1 GB of memory, and 14.0 GB are free"):
        require_memory(10_000_000, 80)


def test_a_share_halves_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, share in ((10_900_000_000, 1.0), (10_800_000_000, 0.5), (3_000_000_000, 0.125), (None, 1.0)):
        monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda free=free: free)
        assert fitting_share(1_000_000, 9_000_000, 80, PLAIN, may_sample=True) == share


@pytest.mark.parametrize(
    ("share", "may_sample", "hint"),
    [(1.0, True, "more memory"), (1.0, False, "more memory"), (0.5, True, "a lower training.genuine_sample_share")],
)
def test_a_share_that_is_stated_or_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, share: float, may_sample: bool, hint: str
) -> None:
    monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: 1_400_000_000)
    settings = replace(PLAIN, genuine_sample_share=share)
    with pytest.raises(Misconfigured, match=f"1.4 GB are free: wanted fewer days, or {hint}$"):
        fitting_share(1_000_000, 9_000_000, 80, settings, may_sample=may_sample)
