"""The dashboards: they are what Grafana reads, and speak of metrics, recording rules and alerts that there are."""

from __future__ import annotations

import json

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from paywarden.ops.dashboards.boards import BOARDS, files
from paywarden.ops.dashboards.grafana import Dashboard, metrics_in, recorded_in
from paywarden.ops.reference.metric_uses import family_of, rules_in, shown_on
from paywarden.ops.reference.metrics import families
from tests.checkout import CHECKOUT

each = pytest.mark.parametrize("board", BOARDS, ids=[board.name for board in BOARDS])
# Metrics of Prometheus and of its Python client.
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "ALERTS", "up"}


@pytest.mark.parametrize("name", sorted(files()))
def test_the_file_in_the_repository_is_what_the_code_gives(name: str) -> None:
    written = (CHECKOUT / "ops" / "dashboards" / name).read_text(encoding="utf-8")
    assert written == files()[name], "run `python -m paywarden.ops.reference`"


@each
def test_grafanas_own_schema_takes_the_file_and_loses_nothing_of_its_panels(board: Dashboard) -> None:
    document = json.loads(files()[f"{board.name}.json"])
    read = GrafanaDashboard.from_json(document)
    assert (read.uid, read.title, read.schema_version) == (board.uid, board.title, document["schemaVersion"])
    assert read.panels is not None
    assert len(read.panels) == len(document["panels"])


def test_every_metric_rule_and_alert_that_a_panel_names_is_there() -> None:
    known = {family[0] for those in families().values() for family in those} | OTHERS
    rules, alerts = rules_in("recording.yml"), rules_in("alerts.yml")
    linked: set[str] = set()
    for board in BOARDS:
        for panel in board.panels():
            linked |= set(panel.alerts)
            for query in panel.queries:
                assert set(map(family_of, metrics_in(query.expr))) <= known, panel.title
                assert recorded_in(query.expr) <= rules.keys(), panel.title
    assert linked <= alerts.keys()
    # Each alert is one step from the picture of its cause. A process that is down is on the fleet's "Ready".
    assert alerts.keys() - linked == set()
    for name, expr in rules.items():
        assert set(map(family_of, metrics_in(expr))) <= known, name


def test_every_metric_is_on_a_dashboard() -> None:
    """A metric that nobody looks at is dead weight: show it, or leave it out."""
    shown = shown_on()
    assert [family[0] for those in families().values() for family in those if family[0] not in shown] == []
