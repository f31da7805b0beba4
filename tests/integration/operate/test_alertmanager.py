"""One incident, one notification: ops/alerts.yml and ops/alertmanager.yml in a real Prometheus and a real Alertmanager.

The page that Prometheus scrapes is that of a quiet day, and the test changes its numbers. Each `for` is divided by 60,
and Alertmanager waits 200 ms for what belongs together; nothing else differs from the files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.services.missing_tools import ALERTMANAGER, PROMETHEUS
from tests.services.product.processes import wait_until
from tests.services.servers.prometheus import (
    OPS,
    Prometheus,
    alertmanager_program,
    ask,
    running_alertmanager,
    running_prometheus,
    served,
)
from tests.worlds.operate.alert_faults import QUIET, Gauge, Stamp, companion, serve, stream

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason=PROMETHEUS.reason),
    pytest.mark.skipif(alertmanager_program() is None, reason=ALERTMANAGER.reason),
]


class Site:
    """A page of metrics, and the notifications that came of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._changed: dict[str, float | None] = {}
        self._scrapes = 0
        self.notifications: list[tuple[str, dict[str, Any]]] = []
        page = stack.enter_context(served(page=self._page))
        receivers = {name: stack.enter_context(served(take=self._taker(name))) for name in ("page", "ticket")}
        text = (OPS / "alertmanager.yml").read_text(encoding="utf-8")
        text = re.sub(r"http://127.0.0.1:9094/(\w+)", lambda match: f"http://{receivers[match[1]]}/", text)
        text = text.replace("group_wait: 30s", "group_wait: 200ms").replace(
            "group_interval: 5m", "group_interval: 500ms"
        )
        manager = stack.enter_context(running_alertmanager(folder / "alertmanager", text))
        self._manager = f"http://{manager}"
        empty = {"alerts.yml": "groups: []\n"}
        self.prometheus: Prometheus = stack.enter_context(
            running_prometheus(folder / "prometheus", {"site": [page]}, rules=empty, alertmanager=manager)
        )
        # Before the first scrape there is no stream worker, which is an alert.
        wait_until(lambda: bool(self.prometheus.query("paywarden_stream_store_up")), "the page is scraped")
        rules = (OPS / "alerts.yml").read_text(encoding="utf-8")
        self.prometheus.take_rules("alerts.yml", re.sub(r"( for: \d+)m", r"\1s", rules))

    def _taker(self, name: str) -> Any:
        return lambda notification: self.notifications.append((name, notification))

    def _page(self) -> str:
        self._scrapes += 1
        shown = {series.series: _value(series) for series in QUIET} | self._changed
        return "".join(f"{name} {value}\n" for name, value in shown.items() if value is not None)

    def show(self, series: str, value: float | None) -> None:
        """From the next scrape on the page has this value; None leaves the series out."""
        self.show_at_once({series: value})

    def show_at_once(self, values: Mapping[str, float | None]) -> None:
        """Show several values: every scrape has all of them or none."""
        self._changed = {**self._changed, **values}

    def alerts(self) -> dict[str, str]:
        """Returns the state that Alertmanager has of each alert that fires: active or suppressed."""
        found = ask(self._manager, "/api/v2/alerts")
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in found}

    def told(self, status: str, alert: str = "") -> list[tuple[str, set[tuple[str, str]]]]:
        """Returns the notifications so far: the receiver, and each alert with its host.

        With `alert`, only that one of each: the end of an earlier test's alert may come late.
        """
        every = [
            (name, {(a["labels"]["alertname"], a["labels"].get("host", "")) for a in sent["alerts"]})
            for name, sent in list(self.notifications)
            if sent["status"] == status
        ]
        if not alert:
            return every
        named = [(name, {one for one in alerts if one[0] == alert}) for name, alerts in every]
        return [(name, alerts) for name, alerts in named if alerts]


def _value(series: Any) -> float | None:
    if isinstance(series, Stamp):
        # A moment ago, by a clock that no alert looks at: those of this kind are tested by promtool.
        return None
    return series.quiet if isinstance(series, Gauge) else 0.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), stack)


def test_a_store_that_is_down_is_one_page_whatever_follows_from_it(site: Site) -> None:
    site.notifications.clear()
    site.show(stream("stream_store_up"), 0)
    wait_until(lambda: len(site.told("firing")) == 1, "the page is sent")
    followers = {
        "PaywardenMirrorStale": (serve("mirror_age_seconds"), 100, 1),
        "PaywardenStreamLags": (stream("stream_consumer_lag", topic="payments", partition="0"), 60_000, 40),
        "PaywardenDriftStoreDown": (stream("drift_store_up"), 0, 1),
        "PaywardenOutcomesStoreDown": (stream("outcomes_store_up"), 0, 1),
    }
    for series, bad, _ in followers.values():
        site.show(series, bad)
    suppressed = dict.fromkeys(followers, "suppressed") | {"PaywardenStoreDown": "active"}
    wait_until(lambda: site.alerts() == suppressed, "all that follow are held back")
    for series, _, good in followers.values():
        site.show(series, good)
    wait_until(lambda: site.alerts() == {"PaywardenStoreDown": "active"}, "all that follow have cleared")
    site.show(stream("stream_store_up"), 1)
    wait_until(lambda: len(site.told("resolved")) == 1, "the end is sent")
    one = ("page", {("PaywardenStoreDown", "10.0.0.2")})
    assert site.told("firing") == [one]
    # A cleared alert may still be in the group; its end is then sent with the end of the cause.
    ((receiver, ended),) = site.told("resolved")
    assert receiver == one[0]
    assert one[1] <= ended
    assert {name for name, _ in ended} <= {"PaywardenStoreDown", *followers}


def test_two_hosts_with_one_trouble_are_one_page(site: Site) -> None:
    site.notifications.clear()
    alert, hosts = "PaywardenOutboxFills", ("10.0.0.1", "10.0.0.7")
    series = [serve("outbox_unshipped_bytes").replace("10.0.0.1", host) for host in hosts]
    site.show_at_once(dict.fromkeys(series, 6e8))
    wait_until(lambda: bool(site.told("firing", alert)), "the page is sent")
    site.show_at_once(dict.fromkeys(series, 0))
    wait_until(lambda: bool(site.told("resolved", alert)), "the end is sent")
    assert site.told("firing", alert) == [("page", {(alert, host) for host in hosts})]


def test_a_companion_that_is_killed_holds_back_what_its_host_says_and_no_other_host(site: Site) -> None:
    site.notifications.clear()
    up = companion("ready").replace("paywarden_ready", "up")
    other = serve("mirror_age_seconds").replace("10.0.0.1", "10.0.0.7")
    site.show(up, 0)
    wait_until(lambda: len(site.told("firing")) == 1, "the page is sent")
    site.show(serve("mirror_age_seconds"), 100)
    wait_until(lambda: site.alerts().get("PaywardenMirrorStale") == "suppressed", "it is held back")
    site.show(other, 100)
    stale = ("PaywardenMirrorStale", "10.0.0.7")
    wait_until(lambda: any(stale in alerts for _, alerts in site.told("firing")), "another host's mirror is told")
    assert not any(("PaywardenMirrorStale", "10.0.0.1") in alerts for _, alerts in site.told("firing"))
    for series, good in ((serve("mirror_age_seconds"), 1.0), (other, 1.0), (up, 1.0)):
        site.show(series, good)
    wait_until(lambda: site.prometheus.firing() == set(), "all is well")


def test_a_dead_kafka_is_one_page_and_an_outbox_that_fills_is_told_all_the_same(site: Site) -> None:
    site.notifications.clear()
    site.show(companion("companion_kafka_up"), 0)
    wait_until(lambda: bool(site.told("firing", "PaywardenKafkaDown")), "the page is sent")
    followers = {
        "PaywardenStreamLags": (stream("stream_consumer_lag", topic="payments", partition="0"), 60_000, 40),
        "PaywardenCompanionNotReady": (companion("companion_ready"), 0, 1),
    }
    for series, bad, _ in followers.values():
        site.show(series, bad)
    suppressed = dict.fromkeys(followers, "suppressed") | {"PaywardenKafkaDown": "active"}
    wait_until(lambda: site.alerts() == suppressed, "all that follow are held back")
    site.show(serve("outbox_unshipped_bytes"), 6e8)
    wait_until(lambda: bool(site.told("firing", "PaywardenOutboxFills")), "the outbox is told")
    told = {name for _, alerts in site.told("firing") for name, _ in alerts}
    assert told.isdisjoint(followers)
    site.show(serve("outbox_unshipped_bytes"), 0)
    for series, _, good in followers.values():
        site.show(series, good)
    wait_until(lambda: site.alerts() == {"PaywardenKafkaDown": "active"}, "all that follow have cleared")
    site.show(companion("companion_kafka_up"), 1)
    wait_until(lambda: not site.alerts(), "it has cleared")
