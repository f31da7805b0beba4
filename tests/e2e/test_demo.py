"""`paywarden demo` as a new user runs it, for a short while."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from paywarden.ops.demo.verdict import FRESH_MS_MAX
from tests.services.processes import ROOT, run_paywarden


def test_the_demo_ends_with_a_summary_of_the_work_of_every_process(tmp_path: Path) -> None:
    """The demo fails if a process has not done its work: tests/e2e/test_demo_broken.py."""
    summary_file = tmp_path / "summary.json"
    done = run_paywarden("demo", "--seconds", "5", "--rate", "100", "--json", str(summary_file), timeout_s=280)
    assert done.returncode == 0, done.stderr
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    answers = summary["answers"]
    assert answers == summary["payments_sent"] > 300
    assert summary["lost"] == 0
    for name in ("decisions_on_topic", "decisions_shipped", "stream_payments", "drift_decisions"):
        assert summary[name] == answers, name
    assert summary["outcomes_joined"] >= answers // 10
    assert summary["profiles_applied"] > 0
    assert summary["native_model"] is True
    assert summary["mirror_hit_ratio"] > 0.9
    assert 0 <= summary["profile_age_p99_ms"] <= FRESH_MS_MAX
    for name in ("p50_ms", "p99_ms", "p999_ms"):
        assert summary[name] > 0
    assert f"Drift detection counted {answers} decisions." in done.stdout.splitlines()


def test_a_demo_that_is_stopped_leaves_no_folder_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "paywarden", "demo"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as demo:
        assert demo.stderr is not None
        assert "simulating" in demo.stderr.readline()
        assert len(list(tmp_path.iterdir())) == 1
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=60) == 130
    assert list(tmp_path.iterdir()) == []
