"""Waiting in tests: settings with few retries, a clock that a test moves, and waiting for real threads."""

from __future__ import annotations

import time
from collections.abc import Callable

from paywarden.features.stores.aerospike.store import AerospikeSettings
from tests.patience import PATIENCE_S


def quick_settings(*hosts: str, timeout_ms: int = 20_000) -> AerospikeSettings:
    """Returns settings with few and quick retries, without a scan's patience.

    The timeouts are long, so that a slow machine changes nothing. For a silent server, pass a short one.
    """
    return AerospikeSettings(
        hosts=hosts,
        tend_interval_ms=250,
        socket_timeout_ms=timeout_ms,
        total_timeout_ms=3 * timeout_ms,
        info_timeout_ms=timeout_ms,
        max_retries=2,
        sleep_between_retries_ms=1,
        # Tests make calls fail on purpose. The tests of a scan's patience set it themselves.
        scan_page_timeout_ms=3 * timeout_ms,
        scan_patience_ms=0,
    )


class FakeTime:
    """A clock whose time passes only in `sleep`. `slept_s` holds each sleep; `on_sleep` is called within each."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.slept_s: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(round(seconds, 6))
        self.now_s += seconds
        self.on_sleep()


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait until the condition holds. At the timeout, fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
