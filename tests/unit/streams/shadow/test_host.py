"""The processes of challengers: one that ends, hangs or writes nonsense hurts no other, and is started again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from paywarden.streams.shadow import host as host_module
from paywarden.streams.shadow.host import ShadowHealth, ShadowHost, ShadowMetrics
from tests.patience import PATIENCE_S

_STATUS = {"evaluated": 5, "left_out": {"shed": 2}, "gone_bytes": 0, "waiting_bytes": 9, "lag_s": 1.5, "cpu_s": 0.25}
_TELL = f"print({json.dumps({**_STATUS, 'trouble': ''})!r}, flush=True)"
_FOREVER = "import sys; sys.stdin = open('/dev/zero', 'rb'); import signal; signal.pause()"


class Host:
    def __init__(self, hang_timeout_s: float, scripts: dict[str, str]) -> None:
        self.followed: dict[str, list[str]] = {}
        self.registry, self.health = CollectorRegistry(), ShadowHealth()
        commands = {name: [sys.executable, "-S", "-c", script] for name, script in scripts.items()}
        self.host = ShadowHost(
            commands,
            metrics=ShadowMetrics(self.registry, list(commands)),
            health=self.health,
            hang_timeout_s=hang_timeout_s,
            follow=lambda: self.followed,
        )

    def value(self, metric: str, challenger: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"paywarden_shadow_{metric}", {"challenger": challenger, **labels}) or 0.0

    def turn_until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < deadline
            self.host.turn(0.05)


@contextmanager
def hosting(hang_timeout_s: float = 1000.0, **scripts: str) -> Iterator[Host]:
    made = Host(hang_timeout_s, scripts)
    try:
        yield made
    finally:
        made.host.end()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "PAUSE_S_MIN", 0.001)
    monkeypatch.setattr(host_module, "PAUSE_S_MAX", 0.001)


def test_a_challenger_that_crashes_is_started_again_and_the_other_goes_on() -> None:
    with hosting(good=f"{_TELL}; {_FOREVER}", bad=f"{_TELL}; import os; os.abort()") as host:
        host.turn_until(lambda: host.value("restarts_total", "bad") >= 2 and host.value("up", "good") == 1)
        assert host.value("restarts_total", "good") == 0
        assert host.value("evaluated_total", "good") == 5
        # The counts of both of its processes.
        assert host.value("evaluated_total", "bad") >= 10
        assert host.value("left_out_total", "bad", reason="shed") >= 4
        assert host.health.live()


def test_a_challenger_that_cannot_be_loaded_makes_the_host_not_ready_and_says_which() -> None:
    with hosting(good=f"{_TELL}; {_FOREVER}", bad="import sys; sys.exit(1)") as host:
        host.turn_until(lambda: host.value("restarts_total", "bad") >= 1 and host.value("up", "good") == 1)
        host.turn_until(lambda: "good" not in host.health.troubles)
        (problem,) = host.health.problems()
        assert problem == "challenger bad: its process ended with status 1: the log says why"
        assert host.value("up", "bad") == 0


def test_a_challenger_that_falls_silent_is_killed_and_started_again() -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with hosting(hang_timeout_s=0.2, mute=f"{deaf}; {_TELL}; {_FOREVER}", loads=_FOREVER) as host:
        host.turn_until(lambda: host.value("restarts_total", "mute") >= 1)
        # One that has not said anything yet may still load.
        assert host.value("restarts_total", "loads") == 0
        assert host.health.troubles["loads"] == "it has not started"


def test_nonsense_on_stdout_is_no_status_and_no_end() -> None:
    with hosting(odd=f"print('hello'); print('[1]', flush=True); {_TELL}; {_FOREVER}") as host:
        host.turn_until(lambda: host.value("up", "odd") == 1)
        assert host.value("waiting_bytes", "odd") == 9
        assert host.value("lag_seconds", "odd") == 1.5
        assert host.value("cpu_seconds_total", "odd") == 0.25


def test_a_challenger_that_is_followed_comes_and_goes_while_the_other_stays() -> None:
    with hosting(one=f"{_TELL}; {_FOREVER}") as host:
        command = [sys.executable, "-S", "-c", f"{_TELL}; {_FOREVER}"]
        # The settings' own challenger of a name counts.
        host.followed = {"r-7": command, "one": [sys.executable, "-S", "-c", "raise SystemExit(1)"]}
        host.turn_until(lambda: host.value("up", "one") == host.value("up", "r-7") == 1)
        child = next(child for child in host.host._children if child.name == "r-7")
        process = child._process
        assert process is not None
        host.followed = {}
        host.turn_until(lambda: not host.host._leaving and process.poll() is not None)
        assert [child.name for child in host.host._children] == ["one"]
        assert host.registry.get_sample_value("paywarden_shadow_up", {"challenger": "r-7"}) is None
        assert (host.value("evaluated_total", "r-7"), host.value("restarts_total", "one")) == (5, 0)
        assert host.health.problems() == []
        host.followed = {"r-7": command}
        host.turn_until(lambda: host.value("up", "r-7") == 1)
        assert host.value("evaluated_total", "r-7") == 10


def test_the_end_ends_every_process() -> None:
    with hosting(one=f"{_TELL}; {_FOREVER}") as host:
        host.turn_until(lambda: host.value("up", "one") == 1)
        (child,) = host.host._children
        process = child._process
        assert process is not None
        host.host.end()
        assert process.poll() is not None
        assert host.value("up", "one") == 0
