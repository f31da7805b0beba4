"""Every alert fires within its stated time on an injected fault, and clears; on a quiet day none fires."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.missing_tools import PROMTOOL
from tests.worlds.operate import alert_table
from tests.worlds.operate.alert_faults import FAULTS
from tests.worlds.operate.metric_uses import rules_in

OPS = CHECKOUT / "ops"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason=PROMTOOL.reason)


def test_every_alert_has_a_fault_and_a_row() -> None:
    alerts = list(rules_in("alerts.yml"))
    assert alerts == list(alert_table.rules())
    assert set(alerts) == set(FAULTS)
    rows = re.findall(
        r"^- \[(\w+)\]", "\n".join(alert_table.table_of(alert_table.PAGE.read_text(encoding="utf-8"))), re.M
    )
    assert [f"Paywarden{row}" for row in rows] == alerts


@needs_promtool
def test_each_alert_fires_and_clears_within_the_seconds_of_the_page() -> None:
    """Where a time changed: `python -m tests.worlds.operate.alert_table` writes the page."""
    assert alert_table.page() == alert_table.PAGE.read_text(encoding="utf-8")
    assert "never" not in "".join(alert_table.table_of(alert_table.PAGE.read_text(encoding="utf-8")))


@needs_promtool
def test_nothing_fires_on_a_quiet_day_with_an_empty_night() -> None:
    assert alert_table.firing_on_a_quiet_day() == set()


@needs_promtool
def test_recording_rules_compute_shares_and_quantiles(tmp_path: Path) -> None:
    bucket, count = "paywarden_request_seconds_bucket", "paywarden_request_seconds_count"
    over_grpc = {"bucket": "paywarden_grpc_request_seconds_bucket", "count": "paywarden_grpc_request_seconds_count"}
    counters = {
        f'{bucket}{{instance="a:1", route="score", le="0.042"}}': 90,
        f'{bucket}{{instance="a:1", route="score", le="+Inf"}}': 100,
        f'{count}{{instance="a:1", route="score"}}': 100,
        f'{over_grpc["bucket"]}{{instance="a:1", method="Score", le="0.042"}}': 100,
        f'{over_grpc["count"]}{{instance="a:1", method="Score"}}': 100,
        'paywarden_requests_total{instance="a:1", route="score", code="429"}': 30,
        'paywarden_requests_total{instance="a:1", route="score", code="200"}': 70,
        'paywarden_grpc_requests_total{instance="a:1", method="Score", code="unavailable"}': 15,
        'paywarden_mirror_lookups_total{instance="a:1", entity="card", result="hit"}': 80,
        'paywarden_mirror_lookups_total{instance="a:1", entity="card", result="miss"}': 20,
    }
    wanted = {
        # 190 of 200 answers in time.
        "fleet:paywarden_answers_in_time:ratio5m": ("", 0.95),
        "fleet:paywarden_answers_in_time:ratio1h": ("", 0.95),
        "instance:paywarden_requests_refused:rate5m": ('{instance="a:1"}', 45 / 60),
        "instance_entity:paywarden_mirror_lookups_hit:ratio5m": ('{instance="a:1", entity="card"}', 0.8),
        # Beyond the last bound, a quantile is that bound.
        "instance:paywarden_request_seconds:p99_5m": ('{instance="a:1"}', 0.042),
    }
    test = {
        "interval": "60s",
        "input_series": [{"series": name, "values": f"0+{growth}x30"} for name, growth in counters.items()],
        "promql_expr_test": [
            {
                "expr": f"abs({name} - {value}) < bool 1e-9",
                "eval_time": "20m",
                "exp_samples": [{"labels": labels, "value": 1}],
            }
            for name, (labels, value) in wanted.items()
        ],
    }
    file = tmp_path / "tests.yml"
    document = {"rule_files": [str(OPS / "recording.yml")], "evaluation_interval": "60s", "tests": [test]}
    file.write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
