"""The dashboards: they are what Grafana reads, and speak of metrics, recording rules and alerts that there are."""

from __future__ import annotations

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from paywarden.ops.reference.metrics import families
from tests.worlds.operate.metric_uses import boards, family_of, metrics_in, panels, recorded_in, rules_in, shown_on

# Metrics of Prometheus and of its Python client.
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "ALERTS", "up"}
# The boards link to each other by this tag.
TAG = "paywarden"


@pytest.mark.parametrize("name", sorted(boards()))
def test_grafanas_own_schema_takes_every_dashboard_whole(name: str) -> None:
    document = boards()[name]
    read = Dashboard.from_json(document)
    assert (read.uid, read.tags, read.schema_version) == (f"paywarden-{name}", [TAG], document["schemaVersion"])
    assert read.panels is not None
    assert len(read.panels) == len(document["panels"])


def test_every_metric_rule_and_alert_that_a_panel_names_is_there() -> None:
    known = {family[0] for those in families().values() for family in those} | OTHERS
    rules, alerts = rules_in("recording.yml"), rules_in("alerts.yml")
    linked: set[str] = set()
    for panel in panels():
        linked |= set(panel.alerts)
        for query in panel.queries:
            assert set(map(family_of, metrics_in(query))) <= known, panel.title
            assert recorded_in(query) <= rules.keys(), panel.title
    # Each alert is one step from the picture of its cause. A process that is down is on the fleet's "Ready".
    assert linked == alerts.keys()
    for name, expr in rules.items():
        assert set(map(family_of, metrics_in(expr))) <= known, name


def test_every_metric_is_on_a_dashboard() -> None:
    """A metric that nobody looks at is dead weight: show it, or leave it out."""
    shown = shown_on()
    assert [family[0] for those in families().values() for family in those if family[0] not in shown] == []
