"""`paywarden demo` as a new user runs it, for a short while. tests/e2e/test_wheel.py runs one that ends by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from paywarden.ops.demo.verdict import FRESH_MS_MAX
from tests.patience import PATIENCE_S
from tests.services.product.console import BY_A_BROWSER
from tests.services.product.processes import ROOT, run_paywarden, wait_until


def test_a_demo_that_is_kept_shows_every_address_until_it_is_ended(tmp_path: Path) -> None:
    """The demo fails if a process has not done its work: tests/unit/ops/demo/test_verdict.py."""
    summary_file, log_file = tmp_path / "summary.json", tmp_path / "log"
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    arguments = ["--keep", "--seconds", "5", "--rate", "100", "--json", str(summary_file)]
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-m", "paywarden", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=here,
            env={**os.environ, "TMPDIR": str(temporary)},
        ) as demo,
    ):
        try:
            kept = _first_object(demo)
            assert kept, log_file.read_text(encoding="utf-8")
            numbers = count()
            running = [psutil.Process(pid) for pid in kept["pids"].values()]
            _ask_every_address(kept)
            _look_at_the_product(kept)
            sent = _metric(kept["metrics"]["stream"], "paywarden_stream_payments_total")
            wait_until(
                lambda: _metric(kept["metrics"]["stream"], "paywarden_stream_payments_total") > sent,
                "payments go on after the summary",
            )
            # Payments see those that their host answered a moment ago. It first doubts for twenty seconds what profiles
            # contain.
            wait_until(lambda: _metric(kept["metrics"]["serve"], "paywarden_overlay_used") > 0, "the overlay is used")
            wait_until(lambda: _folded_after_two_payments(kept, next(numbers)) > 0, "a payment sees the last one")
        finally:
            demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=PATIENCE_S) == 0, log_file.read_text(encoding="utf-8")
    _, alive = psutil.wait_procs(running, timeout=0)
    assert alive == []
    assert list(temporary.iterdir()) == []
    assert list(here.iterdir()) == [], "the demo writes nothing where it is called"
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    assert summary == kept["summary"]
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
    assert f"Drift detection counted {answers} decisions." in log_file.read_text(encoding="utf-8")


def _first_object(demo: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns the JSON object that a demo prints once everything runs; an empty one if it has ended before."""
    assert demo.stdout is not None
    text = ""
    for line in demo.stdout:
        text += line
        if line == "}\n":
            kept: dict[str, Any] = json.loads(text)
            return kept
    return {}


def _ask_every_address(kept: Mapping[str, Any]) -> None:
    for url in (*kept["readyz"].values(), *kept["metrics"].values(), f"{kept['endpoint']}/livez"):
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            assert answer.status == 200, url
    if kept["console"]:
        with urllib.request.urlopen(kept["console"], timeout=PATIENCE_S) as answer:
            assert answer.status == 200
    for url in (kept["grpc"], f"kafka://{kept['kafka']}"):
        parts = urlsplit(url)
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE_S).close()
    targets = {urlsplit(url).netloc for url in kept["metrics"].values()}
    prometheus = Path(kept["prometheus"]).read_text(encoding="utf-8")
    assert {target for target in targets if f'["{target}"]' in prometheus} == targets
    assert run_paywarden("--config", kept["config"], "drift", "status").returncode == 0


def _look_at_the_product(kept: Mapping[str, Any]) -> None:
    """Ben logs in, finds rules, a list and a case, and approves what Anna has proposed."""
    with httpx2.Client(
        base_url=kept["console"], timeout=PATIENCE_S, follow_redirects=True, headers=BY_A_BROWSER
    ) as ben:
        word = kept["people"]["ben"]
        ben.post("/login", data={"name": "ben", "password": word})
        wait_until(lambda: "Payments stopped in the first minute" in ben.get("/cases").text, "the case is there")
        wait_until(lambda: "newest decision" in ben.get("/inbox").text, "the console has the decisions")
        policy = ben.get("/policy").text
        for name in ("watched_merchant", "much_cash", "large_online", "List watched"):
            assert name in policy
        models = ben.get("/models").text
        assert "review large payments by telephone, too" in models
        proposal = re.search(r'name="proposal" value="([^"]+)"', models)
        assert proposal is not None, models
        act = {"proposal": proposal[1], "why": "read", "passphrase": word}
        assert "pproved by ben" in ben.post("/models/approve", data=act).text


def _folded_after_two_payments(kept: Mapping[str, Any], number: int) -> float:
    for which in ("first", "second"):
        payment = {
            "payment_id": f"{which}-{number}",
            "event_time_ms": time.time_ns() // 1_000_000,
            "card_id": "card-000001",
            "merchant_id": "merchant-00001",
            "amount_minor": 1050,
            "currency": "EUR",
        }
        httpx2.post(f"{kept['endpoint']}/v1/score", json=payment, timeout=PATIENCE_S)
    return _metric(kept["metrics"]["serve"], "paywarden_overlay_folded_total")


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


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
        assert demo.wait(timeout=PATIENCE_S) == 130
    assert list(tmp_path.iterdir()) == []
