from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from prometheus_client import CollectorRegistry

from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.profiles.guards.broker_clock import CLOCKS_MS_MAX, BrokerClock
from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics

DAY_MS, BOOT_MS = 1_800_000_000_000, 5_000_000
HOUR_MS = 3_600_000


class Host:
    """A host and a broker, whose clocks a test sets."""

    def __init__(self) -> None:
        self.passed_ms = self.wrong_ms = self.broker_wrong_ms = 0
        metrics = stream_metrics(StreamSettings(), ("card",), CollectorRegistry())
        self.clock = BrokerClock(metrics, lambda: self.day_ms + self.wrong_ms, lambda: BOOT_MS + self.passed_ms)

    @property
    def day_ms(self) -> int:
        return DAY_MS + self.passed_ms

    def exchange(self, way_ms: int = 0, back_ms: int = 0) -> None:
        """Send a frame that takes so long to the broker, and its acknowledgement so long back."""
        sent_ms = self.clock.clock_ms()
        self.passed_ms += way_ms
        stamp_ms = self.day_ms + self.broker_wrong_ms
        self.passed_ms += back_ms
        self.clock.heard(stamp_ms, sent_ms)


times = st.integers(0, HOUR_MS)


@given(way_ms=times, back_ms=times, later_ms=times)
def test_right_clocks_agree_however_late_an_acknowledgement_comes(way_ms: int, back_ms: int, later_ms: int) -> None:
    host = Host()
    host.exchange(way_ms, back_ms)
    host.passed_ms += later_ms
    assert not host.clock.is_doubtful(host.day_ms)
    assert not host.clock.disagrees()
    assert host.clock.now_ms() == host.day_ms


@given(wrong_ms=st.integers(-(10**12), 10**12), way_ms=st.integers(0, 500), later_ms=times)
def test_a_leap_moves_the_time_by_no_more_than_the_bound(wrong_ms: int, way_ms: int, later_ms: int) -> None:
    host = Host()
    host.exchange(way_ms, way_ms)
    host.passed_ms += later_ms
    host.wrong_ms = wrong_ms
    assert abs(host.clock.now_ms() - host.day_ms) <= min(abs(wrong_ms), CLOCKS_MS_MAX + way_ms)
    assert host.clock.disagrees() or abs(wrong_ms) <= CLOCKS_MS_MAX + way_ms
    assert not host.clock.disagrees() or abs(wrong_ms) > CLOCKS_MS_MAX


def test_the_newest_acknowledgement_counts() -> None:
    host = Host()
    host.broker_wrong_ms = HOUR_MS
    host.exchange(5, 5)
    assert host.clock.disagrees()
    assert "3600 s behind" in host.clock.trouble
    host.broker_wrong_ms = 0
    assert host.clock.disagrees()
    host.exchange(5, 5)
    assert not host.clock.disagrees()
    assert host.clock.trouble == ""


def test_the_bound_is_less_than_payments_and_decisions_may_be_ahead() -> None:
    """A clock at the bound refuses none of now."""
    assert min(StreamSettings().future_ms_max, DriftSettings().future_ms_max) > 2 * CLOCKS_MS_MAX


def test_before_the_first_acknowledgement_the_time_of_day_holds() -> None:
    host = Host()
    host.wrong_ms = HOUR_MS
    assert not host.clock.disagrees()
    assert host.clock.now_ms() == host.day_ms + HOUR_MS
    # As the embedded broker stamps.
    host.clock.heard(1234, host.clock.clock_ms())
    assert not host.clock.disagrees()
