"""Break one part of the live demonstration on purpose: the demonstration fails, and its one line names that part.

The tests use a small past, because the demonstration's own takes long to make. Parts that are broken are forks, which
start soon (tests/services/product/template.py); the whole demonstration starts its parts itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.ops.demo import live_run as demo_live
from paywarden.ops.demo import processes as demo_processes
from paywarden.ops.demo.live_run import LIVE_PREFIX, DemoWorld, LiveLoad, run_live
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.maintenance.backfill import backfill
from tests.checkout import CHECKOUT
from tests.services.product import template
from tests.worlds.small import small_world

SECONDS, RATE = 3, 100


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and a store. Do not change its files."""
    folder = tmp_path_factory.mktemp("past")
    shutil.copytree(small_world.trained_bundle(), folder / "bundle")
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(folder / "store")))) as store:
        backfill(small_world.history(), store, engine=small_world.engine(), rates=small_world.rates(), outcome_days=30)
    return folder


def world() -> DemoWorld:
    """The first payments of the small world, sent again as live ones. Each has an outcome."""
    requests = requests_of(small_world.tables()[0].slice(0, 2 * SECONDS * RATE), id_prefix=LIVE_PREFIX)
    for request in requests:
        request.event_time_ms = now_ms()
    labels = {request.payment_id: "genuine" for request in requests}
    return DemoWorld(requests, [], labels, native_model=True, profiles=1)


def demonstrate(past: Path, folder: Path, *, when_sending: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Returns the summary. `when_sending` is called a moment after the first payment."""

    def say(line: str) -> None:
        if line.startswith("sending"):
            threading.Timer(1.0, when_sending).start()

    shutil.copytree(past, folder / "demo")
    (folder / "memory").mkdir()
    console = Console(stderr=True)
    arguments = world(), folder / "demo", folder / "memory"
    return run_live(*arguments, load=LiveLoad(RATE, SECONDS), console=console, say=say)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> dict[str, template.ForkedProcess]:
    """The running parts by their commands, each started as a fork."""
    running: dict[str, template.ForkedProcess] = {}

    def started(name: str, config: Path, log_file: Path) -> demo_processes.DemoPart:
        with log_file.open("w", encoding="utf-8") as log:
            running[name] = template.start(
                ["--config", str(config), name],
                cwd=CHECKOUT,
                environment=os.environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        process: Any = running[name]
        return demo_processes.DemoPart(name, process, log_file)

    monkeypatch.setattr(demo_processes, "_started", started)
    return running


def test_every_part_does_its_work_and_reports_it(past: Path, tmp_path: Path) -> None:
    summary = demonstrate(past, tmp_path)
    answers = summary["answers"]
    assert answers > SECONDS * RATE / 2
    for name in ("decisions_on_topic", "decisions_shipped", "stream_payments", "drift_decisions"):
        assert summary[name] == answers, name
    assert summary["outcomes_joined"] == summary["outcomes_sent"] == answers // 10
    assert summary["profiles_applied"] > 0
    # The broker of other tests may be a child of this process, too.
    assert [child for child in psutil.Process().children() if "paywarden" in child.cmdline()] == []


@pytest.mark.parametrize("command", ["stream", "companion", "serve"])
def test_a_part_that_is_killed_during_the_run_is_named(
    past: Path, tmp_path: Path, forks: dict[str, template.ForkedProcess], command: str
) -> None:
    with pytest.raises(TemporaryFailure, match=f"^demo: `paywarden {command}` has ended with signal 9; its last log"):
        demonstrate(past, tmp_path, when_sending=lambda: forks[command].kill())


def test_a_part_that_does_not_answer_at_the_end_is_named(
    past: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: dict[str, template.ForkedProcess]
) -> None:
    monkeypatch.setattr(demo_live, "_SETTLE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(demo_processes, "_STOP_TIMEOUT_S", 1.0)
    with pytest.raises(TemporaryFailure, match=r"^demo: `paywarden companion` is not ready"):
        demonstrate(past, tmp_path, when_sending=lambda: forks["companion"].send_signal(signal.SIGSTOP))
