"""The page of health says what a process says, and that it says nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from paywarden.ops.console.health.health import Health, quantile, readings_of
from paywarden.schemas.errors import Misconfigured
from tests.services.console import console_under_test

METRICS = """\
# TYPE paywarden_mirror_age_seconds gauge
paywarden_mirror_age_seconds 0.25
# TYPE paywarden_stream_consumer_lag gauge
paywarden_stream_consumer_lag{topic="payments",partition="0"} 1200
paywarden_stream_consumer_lag{topic="payments",partition="1"} 300000
# TYPE paywarden_request_seconds histogram
paywarden_request_seconds_bucket{route="score",le="0.01"} 98
paywarden_request_seconds_bucket{route="score",le="0.05"} 99
paywarden_request_seconds_bucket{route="score",le="+Inf"} 100
paywarden_request_seconds_count{route="score"} 100
paywarden_request_seconds_sum{route="score"} 1
"""


def test_readings_are_in_words_and_say_what_is_bad() -> None:
    readings = {reading.name: (reading.text, reading.is_bad) for reading in readings_of(METRICS)}
    assert readings["mirror is behind the payments by"] == ("250 ms", False)
    assert readings["records that the stream has not taken"] == ("301,200", True)
    assert readings["latency p99 since its start"] == ("at most 50 ms", True)
    assert readings_of("nonsense {")[0].is_bad
    assert quantile([({"le": "1"}, 0.0), ({"le": "+Inf"}, 1.0)], 0.99) == math.inf


def test_a_process_that_does_not_answer_is_shown_since_when(tmp_path: Path) -> None:
    def fetch(url: str) -> tuple[int, str]:
        if url.startswith("http://gone"):
            raise OSError
        return (200, METRICS) if url.endswith("/metrics") else (503, '{"store": "away <b>"}')

    console = console_under_test(tmp_path)
    health = Health(["stream=http://s:1", "http://gone:2"], fetch, console.clock)
    text = console.browser([health.section()], "demo-operator").get("/health").text
    assert "it does not answer, since 2025-10-09" in text
    assert "store: away &lt;b&gt;" in text
    nothing = console.browser([Health([]).section()], "demo-operator").get("/health").text
    assert "nothing is known" in nothing
    console.database.close()


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(Misconfigured, match="processes"):
        Health(["stream=10.0.0.7"])
