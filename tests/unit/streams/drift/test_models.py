"""The models that decided of late, and those among them without a reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.memory import MemoryStore
from paywarden.models.drift.detectors import HOUR_MS
from paywarden.streams.drift.drift_counts import MINUTE_MS, Binnings
from paywarden.streams.drift.drift_metrics import DriftMetrics
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.drift_state import DriftCounting
from paywarden.streams.drift.models import SeenModel, models_seen
from tests.worlds.drift.drifting import FEATURES, NOON_MS, decision, small_binning

BINNINGS = Binnings({"m1": small_binning()})


def save(
    store: MemoryStore, decided: Sequence[tuple[str, int, int]], *, partition: int = 0, flush: bool = False
) -> None:
    """Count and save decisions given as (version, time, features). `flush` writes the tiles as well."""
    settings = DriftSettings(versions_max=3)
    state = DriftCounting(store, BINNINGS, settings, DriftMetrics(CollectorRegistry())).take_over(partition)
    for number, (version, decided_ms, features) in enumerate(decided):
        state.add(number, decision(number, decided_ms, version=version, features=features))
    state.hand_over(0)
    state.save(NOON_MS + 60 * MINUTE_MS, flush=flush)


@pytest.mark.parametrize("flush", [False, True])
def test_a_model_is_listed_with_its_newest_decision_and_reference(flush: bool) -> None:
    store = MemoryStore()
    save(store, [("m1", NOON_MS, FEATURES), ("m2", NOON_MS + 1, FEATURES)], flush=flush)
    save(store, [("m2", NOON_MS + MINUTE_MS, FEATURES)], partition=1, flush=flush)
    assert models_seen(store, range(3)) == [
        SeenModel("m1", NOON_MS, has_reference=True),
        SeenModel("m2", NOON_MS + MINUTE_MS, has_reference=False),
    ]


def test_vectors_of_another_catalogue_have_no_reference() -> None:
    store = MemoryStore()
    save(store, [("m1", NOON_MS, FEATURES + 1)])
    assert models_seen(store, [0]) == [SeenModel("m1", NOON_MS, has_reference=False)]


def test_versions_beyond_the_limit_are_listed_as_one() -> None:
    store = MemoryStore()
    save(store, [(f"m{number}", NOON_MS, FEATURES) for number in range(1, 6)])
    (others,) = [model for model in models_seen(store, [0]) if model.is_several]
    assert others == SeenModel("other", NOON_MS, has_reference=False)


def test_a_model_that_has_not_decided_for_two_days_is_left_out() -> None:
    store = MemoryStore()
    save(store, [("m1", NOON_MS - 49 * HOUR_MS, FEATURES), ("m2", NOON_MS - 47 * HOUR_MS, FEATURES)])
    save(store, [("m3", NOON_MS, FEATURES)], partition=1)
    assert [model.version for model in models_seen(store, range(2))] == ["m2", "m3"]


def test_before_the_first_decision_no_model_is_listed() -> None:
    assert models_seen(MemoryStore(), range(4)) == []
