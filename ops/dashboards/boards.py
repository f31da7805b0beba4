"""The six dashboards, and the files that Grafana imports."""

from __future__ import annotations

from paywarden.ops.dashboards.drift_dashboard import DRIFT
from paywarden.ops.dashboards.fleet import FLEET
from paywarden.ops.dashboards.grafana import Dashboard, to_json
from paywarden.ops.dashboards.host_dashboard import HOST
from paywarden.ops.dashboards.money import MONEY
from paywarden.ops.dashboards.rollout_dashboard import ROLLOUT
from paywarden.ops.dashboards.stream_dashboard import STREAM

BOARDS: tuple[Dashboard, ...] = (FLEET, HOST, STREAM, DRIFT, ROLLOUT, MONEY)


def files() -> dict[str, str]:
    """Returns every file by its name in ops/dashboards."""
    return {f"{board.name}.json": to_json(board) for board in BOARDS}
