"""The page of health says what a process says, and that it says nothing."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.health.health import (
    Health,
    ProcessView,
    Reading,
    Samples,
    errors_of,
    quantile,
    readings_of,
    samples_of,
)
from paywarden.ops.console.health.health_watch import TABLES, HealthWatch
from paywarden.ops.console.page_rows import Missing
from paywarden.schemas.errors import Misconfigured
from tests.patience import PATIENCE_S
from tests.services.product.console import NOW_MS, Clock, console_under_test

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


def samples(metrics: str) -> Samples:
    found = samples_of(metrics)
    assert found is not None
    return found


def test_readings_are_in_words_and_say_what_is_bad() -> None:
    readings = {reading.name: (reading.text, reading.is_bad) for reading in readings_of(samples(METRICS))}
    assert readings["mirror is behind the payments by"] == ("250 ms", False)
    assert readings["payments and outcomes that wait"] == ("301,200", True)
    assert readings["99th percentile of answers since its start"] == ("at most 50 ms", True)
    assert samples_of("nonsense {") is None
    assert quantile([({"le": "1"}, 0.0), ({"le": "+Inf"}, 1.0)], 0.99) == math.inf


def test_why_a_process_is_not_ready_is_told_in_its_own_words(tmp_path: Path) -> None:
    """The page had the form of the answer as well: `ready: False, missing: ['the mirror is …']`."""

    def fetch(url: str) -> tuple[int, str]:
        if url.endswith("/metrics"):
            return (
                200,
                METRICS + "# TYPE paywarden_stream_dead_letters counter\npaywarden_stream_dead_letters_total 4\n",
            )
        return 503, '{"ready": false, "missing": ["the mirror is 32 s old, 30 s are allowed", "no topic"]}'

    console = console_under_test(tmp_path)
    text = (
        console.browser([Health(["http://s:1"], fetch, console.clock).section()], "demo-operator").get("/health").text
    )
    assert "The mirror is 32 s old, 30 s are allowed; no topic, since" in text
    for form in ("False", "[", "missing"):
        assert form not in text.partition("<main")[2], form
    # Its counts stand beside.
    assert '<strong class="warning">4</strong> records set aside as dead letters' in text
    console.database.close()


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(Misconfigured, match="processes"):
        Health(["stream=10.0.0.7"])


def test_errors_are_counted_over_labels_and_refusals_are_none() -> None:
    metrics = (
        METRICS
        + """\
# TYPE paywarden_requests counter
paywarden_requests_total{route="score",code="200"} 100
paywarden_requests_total{route="score",code="429"} 7
paywarden_requests_total{route="score",code="500"} 2
paywarden_requests_total{route="batch",code="503"} 1
paywarden_requests_total{route="readyz",code="503"} 110
# TYPE paywarden_stream_dead_letters counter
paywarden_stream_dead_letters_total{topic="payments"} 4
"""
    )
    assert errors_of(samples(metrics)) == {
        "requests answered with an error of ours": 3.0,
        "records set aside as dead letters": 4.0,
    }


def test_what_happens_to_processes_is_on_the_time_line(tmp_path: Path) -> None:
    """Each change once, errors in steps, also over a restart of the console and of the process."""
    clock, looks = Clock(), list[tuple[ProcessView, ...]]()

    def process(text: str, *, is_ready: bool = True, is_bad: bool = False, errors: float = 0.0) -> None:
        reading = Reading("mirror is behind the payments by", text, is_bad)
        counts = {"failed calls of the store": errors}
        why = "" if is_ready else "away"
        looks.append((ProcessView("host", "http://h", is_ready, why, 0, (reading,), counts, asked_ms=clock.now_ms),))

    database = ConsoleDatabase(tmp_path / "console.sqlite", TABLES)
    watch = HealthWatch(database, lambda: looks[-1], clock)

    def look() -> None:
        clock.now_ms += 15_000
        watch.step()

    # Each start of a console wrote that processes were not ready, which it had only just asked.
    looks.append((ProcessView("host", "http://h", False, "it was asked, and has not answered yet", 0, ()),))
    look()
    process("0.2 s", errors=50)
    look()
    assert watch.happenings(0, clock.now_ms) == []
    process("14 s", is_bad=True, errors=53)
    look()
    began_ms = clock.now_ms
    process("15 s", is_bad=True, errors=60)
    look()
    process("0.1 s", is_ready=False, errors=60)
    look()
    watch = HealthWatch(database, lambda: looks[-1], clock)
    look()
    process("0.1 s", errors=1)
    look()
    process("0.1 s", errors=3)
    look()
    # Numbers that swing about their limit filled the time line.
    for _ in range(5):
        process("2 s", is_bad=True, errors=3)
        look()
        process("0.3 s", errors=3)
        look()
    for _ in range(3):
        look()
    happened = watch.happenings(0, clock.now_ms)
    assert [(one.kind, one.text) for one in happened if one.kind != "host errors"] == [
        ("host beyond the usual", "mirror is behind the payments by 14 s"),
        ("host not ready", "away"),
        ("host ready again", "it is ready"),
        ("host as usual again", "mirror is behind the payments by 0.3 s"),
    ]
    errors = [one.text for one in happened if one.kind == "host errors"]
    # 3 and 7 of before the restart, 1 of a process that started again, 2 more.
    assert sum(int(text.split()[0]) for text in errors) == 13
    assert [one.kind for one in watch.happenings(began_ms, began_ms)] == ["host beyond the usual"]
    database.close()


@dataclass
class Processes:
    """Two processes, whose pages a test changes; what is in `hang` does not answer before it is released."""

    lag: int = 3
    held: int = 0
    away: set[str] = field(default_factory=set)
    hang: dict[str, threading.Event] = field(default_factory=dict)

    def __call__(self, address: str) -> tuple[int, str]:
        if (held := self.hang.get(address[:10])) is not None:
            self.held += 1
            held.wait(PATIENCE_S)
            raise OSError
        if address[:10] in self.away:
            raise OSError
        return (200, f"paywarden_stream_consumer_lag {self.lag}\n") if "metrics" in address else (200, "{}")


def test_an_open_page_is_told_what_changes_and_how_old_it_is(tmp_path: Path) -> None:
    console, processes = console_under_test(tmp_path), Processes()
    missing = list[Missing]()
    health = Health(
        ["one=http://a:1", "two=http://b:2"],
        processes,
        console.clock,
        kept_s=0,
        wait_s=PATIENCE_S,
        missing=lambda: missing,
    )
    browser = console.browser([health.section()], "demo-operator")

    def version() -> tuple[str, str]:
        view = browser.get("/health/version").json()
        return view["version"], view["said"]

    page = browser.get("/health").text
    first, said = version()
    assert f'data-live="/health/version" data-version="{first}"' in page
    assert said == "Live, as of 2025-10-09 08:53:20 UTC."
    console.clock.now_ms += 1_000
    assert version() == (first, "Live, as of 2025-10-09 08:53:21 UTC.")
    processes.lag = 400_000
    second, _ = version()
    assert second != first
    missing.append(Missing("Kafka", NOW_MS, "no broker answers"))
    third, _ = version()
    assert third != second
    # One that is gone is shown with its last numbers, and of when they are.
    processes.away.add("http://b:2")
    console.clock.now_ms += 10_000
    fourth, said = version()
    assert fourth != third
    assert said == "Live, as of 2025-10-09 08:53:31 UTC. Older than that: two."
    text = browser.get("/health").text
    assert "two is not ready." in text
    assert text.count("400,000 (usual: at most 100,000)") == 2
    assert (
        text.count('The numbers are those of <time datetime="2025-10-09T08:53:21Z">2025-10-09 08:53:21 UTC</time>.')
        == 1
    )
    console.database.close()


def test_the_page_says_first_which_processes_are_not_ready_and_what_each_is_for(tmp_path: Path) -> None:
    pages = {
        "http://s:1/readyz": (200, "{}"),
        "http://s:1/metrics": (200, "paywarden_stream_consumer_lag 3\n"),
        "http://c:2/readyz": (503, "{}"),
        "http://c:2/metrics": (200, "paywarden_companion_changelog_lag 3\n"),
    }
    away = set[str]()

    def fetch(address: str) -> tuple[int, str]:
        if address in away:
            raise OSError
        return pages[address]

    console = console_under_test(tmp_path)
    health = Health(["stream=http://s:1", "host=http://c:2"], fetch, kept_s=0, wait_s=PATIENCE_S)
    browser = console.browser([health.section()], "demo-analyst")
    text = browser.get("/health").text
    assert "host is not ready." in text
    assert "It works payments and outcomes into the profiles" in text
    pages["http://c:2/readyz"] = 200, "{}"
    assert "All 2 processes are ready." in browser.get("/health").text
    away.update(pages)
    text = browser.get("/health").text
    assert "stream, host are not ready." in text
    # One that does not answer is still what it was.
    assert "It works payments and outcomes into the profiles" in text
    console.database.close()
