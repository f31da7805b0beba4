"""Metrics of the counted decisions have bounded labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from paywarden.streams.drift.drift_metrics import OTHER_VERSIONS, VERSIONS_MAX, DriftMetrics


def test_scores_and_actions_are_shown_by_version() -> None:
    registry = CollectorRegistry()
    metrics = DriftMetrics(registry)
    metrics.counted("m1", [0.0005, 0.3, 0.30001], {"approve": 2, "decline": 1})
    metrics.counted("m1", [0.3], {"approve": 1})
    name = "paywarden_drift_score"
    assert registry.get_sample_value(f"{name}_bucket", {"version": "m1", "le": "0.3"}) == 3
    assert registry.get_sample_value(f"{name}_count", {"version": "m1"}) == 4
    labels = {"version": "m1", "action": "approve"}
    assert registry.get_sample_value("paywarden_drift_actions_total", labels) == 3


def test_the_number_of_version_labels_is_bounded() -> None:
    registry = CollectorRegistry()
    metrics = DriftMetrics(registry)
    for number in range(VERSIONS_MAX + 5):
        metrics.counted(f"m{number}", [0.5], {"approve": 1})
    versions = {
        sample.labels["version"]
        for family in registry.collect()
        for sample in family.samples
        if "version" in sample.labels
    }
    assert len(versions) == VERSIONS_MAX + 1
    assert registry.get_sample_value("paywarden_drift_score_count", {"version": OTHER_VERSIONS}) == 5


def test_revoked_partitions_have_no_lag_metric() -> None:
    registry = CollectorRegistry()
    metrics = DriftMetrics(registry)
    metrics.behind({0: 1.0, 1: 2.0})
    metrics.behind({1: 3.0})
    name = "paywarden_drift_partition_behind_seconds"
    assert registry.get_sample_value(name, {"partition": "0"}) is None
    assert registry.get_sample_value(name, {"partition": "1"}) == 3
