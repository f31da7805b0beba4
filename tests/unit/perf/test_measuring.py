"""The benchmarks' report about the core of a worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from perf.tools.measuring import Witness, has_fair_server
from perf.tools.servers import Server
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says how long a thread waits for a core")


@pytest.mark.parametrize(
    ("release", "has_one"),
    [("6.18.44-cloud", True), ("6.12", True), ("7.0.1", True), ("6.11.9", False), ("5.15.0", False), ("odd", False)],
)
def test_ordinary_threads_come_before_real_time_ones_since_6_12(release: str, has_one: bool) -> None:
    assert has_fair_server(release) == has_one


def test_a_worker_whose_core_others_have_waits_for_it() -> None:
    core = min(os.sched_getaffinity(0))

    def stay() -> None:
        os.sched_setaffinity(0, {core})

    def give_way() -> None:
        stay()
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    command = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(command, preexec_fn=stay)
    worker = subprocess.Popen(command, text=True, preexec_fn=give_way)
    try:
        server, until = Server({"http": "http://127.0.0.1:1"}, worker), time.monotonic() + PATIENCE_S
        before_s, before_cpu_s = server.core_wait_seconds(), server.cpu_seconds()
        while (waited_s := server.core_wait_seconds() - before_s) < 0.5 and time.monotonic() < until:
            time.sleep(0.05)
        assert waited_s >= 0.5
        assert server.cpu_seconds() - before_cpu_s < waited_s / 2
    finally:
        for process in (other, worker):
            process.kill()
            process.wait()


def test_a_witness_tells_how_late_the_machine_has_woken_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real machine cannot be made to stall: a sleep that takes longer stands for one that does."""
    sleep, count = time.sleep, iter(range(10**9))

    def sleep_late(seconds: float) -> None:
        sleep(seconds + (0.03 if next(count) == 5 else 0.0))

    monkeypatch.setattr("perf.tools.measuring.time.sleep", sleep_late)
    with Witness() as witness:
        until = time.monotonic() + PATIENCE_S
        while witness.longest_ms < 30 and time.monotonic() < until:
            sleep(0.01)
    assert witness.longest_ms >= 30
    sleeps = next(count)
    sleep(0.05)
    assert next(count) == sleeps + 1, "its threads have ended"
