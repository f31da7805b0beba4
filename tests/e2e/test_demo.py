"""`paywarden demo` as a new user runs it, for a short while."""

from __future__ import annotations

import json
from pathlib import Path

from tests.services.processes import run_paywarden


def test_demo_ends_with_a_summary_in_which_nothing_is_lost(tmp_path: Path) -> None:
    summary_file = tmp_path / "summary.json"
    done = run_paywarden("demo", "--seconds", "5", "--rate", "100", "--json", str(summary_file), timeout_s=280)
    assert done.returncode == 0, done.stderr
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    assert summary["payments_sent"] > 300
    assert summary["answers"] == summary["payments_sent"] == summary["decisions_on_topic"]
    assert summary["lost"] == 0
    assert summary["native_model"] is True
    assert summary["mirror_hit_ratio"] > 0.9
    assert 0 <= summary["profile_age_p99_ms"] < 10_000
    for name in ("p50_ms", "p99_ms", "p999_ms"):
        assert summary[name] > 0
