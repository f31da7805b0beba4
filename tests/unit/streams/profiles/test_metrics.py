from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from paywarden.streams.profiles.profile_metrics import (
    AGE_BUCKETS_S,
    GATHER_MS_MAX,
    AgeHistogram,
    StreamMetrics,
    gather_ms_of,
    objectives_ms,
)


@given(st.lists(st.lists(st.one_of(st.sampled_from(AGE_BUCKETS_S), st.floats(0, 2000)), max_size=20), max_size=5))
def test_ages_are_counted_like_in_prometheus_own_histogram(batches: list[list[float]]) -> None:
    registry, reference_registry = CollectorRegistry(), CollectorRegistry()
    ages = AgeHistogram("age_seconds", "Ages.", "entity", ["card"])
    registry.register(ages)
    reference = Histogram("age_seconds", "Ages.", ["entity"], buckets=AGE_BUCKETS_S, registry=reference_registry)
    reference.labels("card")
    for batch in batches:
        ages.observe("card", np.array(batch))
        for age in batch:
            reference.labels("card").observe(age)
    for bound in [*map(str, AGE_BUCKETS_S), "+Inf"]:
        labels = {"entity": "card", "le": bound}
        assert registry.get_sample_value("age_seconds_bucket", labels) == reference_registry.get_sample_value(
            "age_seconds_bucket", labels
        )
    wanted = reference_registry.get_sample_value("age_seconds_sum", {"entity": "card"})
    assert registry.get_sample_value("age_seconds_sum", {"entity": "card"}) == pytest.approx(wanted)


def test_a_negative_age_counts_as_zero() -> None:
    registry = CollectorRegistry()
    ages = AgeHistogram("age_seconds", "Ages.", "entity", ["card"])
    registry.register(ages)
    ages.observe("card", np.array([-5.0]))
    assert registry.get_sample_value("age_seconds_bucket", {"entity": "card", "le": "0.01"}) == 1
    assert registry.get_sample_value("age_seconds_sum", {"entity": "card"}) == 0


def test_payments_later_than_the_objective_of_their_entity_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, {"card": 1000, "merchant": 5000})
    for entity in ("card", "merchant"):
        metrics.applied(entity, events=3, profiles=2, replayed=1, late=0, ages_ms=np.array([1000, 1001, 6000]))
    over = "paywarden_stream_over_objective_total"
    assert registry.get_sample_value(over, {"entity": "card"}) == 2
    assert registry.get_sample_value(over, {"entity": "merchant"}) == 1
    assert registry.get_sample_value("paywarden_stream_freshness_objective_seconds", {"entity": "merchant"}) == 5


def test_the_lag_of_a_revoked_partition_is_not_reported() -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, {"card": 1000})
    metrics.lag({("payments", 0): 5, ("payments", 1): 7})
    metrics.lag({("payments", 1): 0})
    assert registry.get_sample_value("paywarden_stream_consumer_lag", {"topic": "payments", "partition": "0"}) is None
    assert registry.get_sample_value("paywarden_stream_consumer_lag", {"topic": "payments", "partition": "1"}) == 0
    assert b'partition="0"' not in generate_latest(registry)


def test_objectives_have_exceptions_by_entity() -> None:
    assert objectives_ms(["card", "merchant"], 1000, ["merchant=5000"]) == {"card": 1000, "merchant": 5000}


@given(st.dictionaries(st.sampled_from(["card", "merchant", "device"]), st.integers(1, 100_000), min_size=1))
def test_waits_for_more_records_leave_a_third_of_every_objective(objectives: dict[str, int]) -> None:
    """A payment waits twice on its way to the store, and its profile once more on its way to a mirror."""
    wait_ms = gather_ms_of(objectives)
    assert 1 <= wait_ms <= GATHER_MS_MAX
    assert wait_ms == 1 or 3 * 2 * wait_ms <= 2 * min(objectives.values())
