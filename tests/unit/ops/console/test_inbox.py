"""The inbox shows what the topics say, and what people do goes to the topics."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops.console.assembly import feature_meanings
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore, affected_of
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.shell import API
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, ALERTS_TOPIC
from paywarden.streams.alerts.alerts import State
from paywarden.streams.alerts.feed import FEED_TOPICS, FeedBatch, FeedPosition, FeedRecord
from paywarden.streams.decision_index.episodes import Episode, alert_of
from tests.services.product.console import ConsoleUnderTest, console_under_test
from tests.unit.ops.console.test_shell import BEARER
from tests.worlds.drift.alerts_on_topics import NOW_MS, TopicsInMemory, alert_record, kinds


@dataclass
class World:
    """A console with an inbox over topics in memory; `read` takes in what is on them."""

    console: ConsoleUnderTest
    topics: TopicsInMemory
    store: AlertStore
    reader: AlertReader
    inbox: Inbox

    def read(self) -> None:
        stop = threading.Event()

        class Once:
            """The feed, which ends the reader after one read."""

            def start(_, known: Any) -> set[str]:  # noqa: N805
                return self.topics.start(known)

            def read(_) -> FeedBatch:  # noqa: N805
                stop.set()
                return self.topics.read()

            def close(_) -> None:  # noqa: N805
                pass

        self.reader.follow(Once(), stop)

    def browser(self, person: str = "demo-analyst") -> TestClient:
        return self.console.browser([self.inbox.section()], person)

    def act(self, browser: TestClient, **fields: Any) -> Any:
        return browser.post("/inbox/act", data=fields)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    console = console_under_test(tmp_path)
    topics = TopicsInMemory()
    store = AlertStore(console.database)
    reader = AlertReader(store, lambda: topics, lambda: topics, console.clock)
    made = World(console, topics, store, reader, Inbox(store, reader, AlertPage(store, lambda: "https://c.example")))
    # Acts are seen at once.
    reader._make_writer = lambda: _Echo(made)
    yield made
    console.database.close()


class _Echo:
    """A writer whose acts the reader takes in at once."""

    def __init__(self, world: World) -> None:
        self._world = world

    def write(self, event: Any) -> None:
        self._world.topics.write(event)
        self._world.read()


def test_meanings_come_when_a_broken_catalogue_is_mended_and_stay_when_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was read at the first page: one that was broken then gave no meaning before a restart of the console."""
    path = tmp_path / "catalogue.py"
    name = next(iter(CATALOGUE.features)).name
    meaning_of = None
    for content in ("CATALOGUE =", "raise SystemExit(3)"):
        path.write_text(content)
        meaning_of = feature_meanings(Source({"features": {"catalogue": str(path)}}, {}))
        assert (meaning_of(name), meaning_of(name)) == ("", "")
    assert len(caplog.records) == 2
    assert meaning_of is not None
    path.write_text("from paywarden.features.catalogue.catalogue import CATALOGUE\n")
    known = meaning_of(name)
    assert known
    path.write_text("while True: pass\n")
    assert meaning_of(name) == known


def test_a_text_that_is_searched_for_is_in_no_address(world: World) -> None:
    """A person searches for a card or a colleague: browsers' histories and proxies' logs keep addresses."""
    world.topics.put(*(alert_record(number) for number in range(120)))
    world.read()
    browser = world.browser()
    for path in ("/inbox?q=card-17", f"{API}/inbox?q=card-17"):
        refused = browser.get(path, headers=BEARER)
        assert (refused.status_code, "not taken from an address" in refused.text) == (400, True)
    form = {"q": "alert-000", "sort": "oldest"}
    address = browser.post("/inbox", data=form).headers["location"]
    text = browser.get(address).text
    assert ("100 alerts shown here" in text, "alert-000" in address) == (True, False)
    assert 'name="q" value="alert-000"' in text
    # The next page, and the way back from an act, are pages of the same search.
    (following,) = re.findall('href="([^"]+)" rel="next"', text)
    (back,) = re.findall('name="back" value="([^"]+)"', text)
    for path in (html.unescape(following), html.unescape(back)):
        assert ("alert-000" in path, "100 alerts shown here" in browser.get(path).text) == (False, True)
    assert "Page 2 of 2" in browser.get(html.unescape(following)).text
    acted = world.act(browser, alert="alert-00007", act="take", back=html.unescape(back))
    assert "Assigned to you: alert alert-00007." in browser.get(acted.headers["location"]).text
    # A token that was sealed for another page, or in another session, is not accepted.
    assert browser.get(address.replace("/inbox?", "/decisions?")).status_code == 404
    assert "This search has ended" in world.browser("demo-lead").get(address).text


@pytest.mark.parametrize(
    ("fields", "topic", "kind", "shown"),
    [
        ({"act": "acknowledge", "note": "looking"}, ACKNOWLEDGEMENTS_TOPIC, "acknowledged", "seen by demo-analyst"),
        ({"act": "snooze", "for": "4h"}, ACKNOWLEDGEMENTS_TOPIC, "snoozed", "snoozed until"),
        ({"act": "assign", "to": "ben"}, EVENTS_TOPIC, "assigned", "ben"),
        ({"act": "take"}, EVENTS_TOPIC, "assigned", "demo-analyst"),
        ({"act": "comment", "note": "a <b>release</b>"}, EVENTS_TOPIC, "commented", "1 notes"),
    ],
)
def test_an_act_is_an_event_on_a_topic(world: World, fields: dict[str, str], topic: str, kind: str, shown: str) -> None:
    world.topics.put(alert_record(1))
    world.read()
    browser = world.browser()
    assert world.act(browser, alert="alert-00001", **fields).status_code == 303
    assert kinds(world.topics.topics[topic]) == [kind]
    assert shown in browser.get("/inbox?state=all").text
    page = browser.get("/inbox/alert-00001").text
    assert kind in page
    assert "<b>release</b>" not in page
    acts = [entry for entry in world.console.audit.newest(10) if entry.subject == "alert:alert-00001"]
    assert [(entry.by, entry.act) for entry in acts] == [("demo-analyst", fields["act"])]


def test_an_act_that_cannot_be_is_refused_and_writes_nothing(world: World) -> None:
    world.topics.put(alert_record(1), alert_record(1, state=State.CLEARED, time_ms=NOW_MS + 1))
    world.read()
    browser = world.browser()
    assert world.act(browser, alert="alert-00001", act="acknowledge").status_code == 409
    assert world.act(browser, alert="other", act="acknowledge").status_code == 404
    assert world.act(browser, alert="alert-00001", act="comment").status_code == 400
    assert world.act(browser, alert="alert-00001", act="assign").status_code == 400
    assert world.act(browser, alert="alert-00001", act="burn").status_code == 400
    assert world.act(browser, act="take").status_code == 400
    assert world.act(world.browser("demo-auditor"), alert="alert-00001", act="take").status_code == 403
    assert not world.topics.topics[EVENTS_TOPIC]
    assert not world.topics.topics[ACKNOWLEDGEMENTS_TOPIC]


def test_lost_topics_are_never_an_empty_list_that_looks_like_peace(world: World) -> None:
    text = world.browser().get("/inbox").text
    assert "The topics of alerts cannot be reached" in text
    assert "some may be missing" in text
    world.topics.put(alert_record(1))
    world.read()
    assert "cannot be reached" not in world.browser().get("/inbox").text
    world.topics.is_away = True
    stop = threading.Event()
    thread = threading.Thread(target=world.reader.run, args=(stop,))
    thread.start()
    while not world.reader.missing()[:1]:
        pass
    stop.set()
    thread.join()
    world.console.clock.now_ms += 3_600_000
    text = world.browser().get("/inbox").text
    assert "no Kafka broker answers" in text
    assert "60 min" in text
    assert "alert-00001" in text
    world.reader._make_writer = lambda: world.topics
    refused = world.act(world.browser(), alert="alert-00001", act="take")
    assert refused.status_code == 503
    assert "Nothing was done" in refused.text


def test_an_episode_is_an_alert_with_a_sentence(world: World) -> None:
    episode = Episode("5f0c", "merchant_episode", "m17", "m17", "v1", NOW_MS - 60_000, NOW_MS, 47, 9, 4_700, 900, 3.5)
    _, record = alert_of(episode, State.RAISED, 20)
    world.topics.put(record)
    world.read()
    browser = world.browser()
    assert "merchant episode" in browser.get("/inbox?cause=traffic").text
    page = browser.get("/inbox/episode-5f0c").text
    assert "47 payments came during a burst of tries" in page
    assert "merchant_id m17" in page
    assert "very sure" in page


def test_an_alert_page_says_what_changed_why_and_what_happened(world: World) -> None:
    world.topics.put(alert_record(1, subject="feature:amount"), alert_record(2))
    world.topics.put(
        alert_record(1, subject="feature:amount", time_ms=NOW_MS + 300_000, value=0.8, state=State.ESCALATED)
    )
    world.read()
    browser = world.browser()
    text = browser.get("/inbox/alert-00001").text
    for words in (
        "Then and now",
        "Over time",
        "Probable cause: input",
        "amount to mean",
        "another alert",
        "To hand over",
    ):
        assert words in text, words
    assert "https://c.example/inbox/alert-00001" in text
    assert 'style="' not in text
    assert browser.get("/inbox/alert-00003").status_code == 404
    view = browser.get(f"{API}/inbox/alert-00001", headers=BEARER).json()["view"]
    assert view["alert"]["affected"] == affected_of(alert_record(1)) == 400


def test_an_alert_that_cleared_stays_on_the_page_with_what_it_was(world: World) -> None:
    world.topics.put(alert_record(1, subject="feature:amount"))
    world.topics.put(alert_record(1, subject="feature:amount", time_ms=NOW_MS + 1, value=0.0, state=State.CLEARED))
    world.read()
    browser = world.browser()
    inbox = browser.get("/inbox").text
    assert "No alert is open" in inbox
    assert "Cleared in the last seven days" in inbox
    assert "alert-00001" in inbox
    assert "Cleared in the last" not in browser.get("/inbox?cause=score").text
    page = browser.get("/inbox/alert-00001").text
    assert "What it was" in page
    view = browser.get(f"{API}/inbox/alert-00001", headers=BEARER).json()["view"]
    assert (view["alert"]["affected"], view["alert"]["state"]) == (affected_of(alert_record(1)), "cleared")
    _, record = world.store.find("alert-00001") or (None, {})
    assert record["value"] == alert_record(1)["value"]


def test_a_record_that_cannot_be_read_is_counted_and_told(world: World) -> None:
    world.topics.put(None, alert_record(1))
    world.read()
    assert "1 records of the topics could not be read" in world.browser().get("/inbox").text


def test_what_a_topic_had_before_it_was_made_anew_is_told_for_a_week(world: World) -> None:
    """The inbox said "No alert is open", and nothing said that there had been some a minute ago."""
    browser = world.browser()
    world.read()
    assert "earlier alert" not in browser.get("/inbox").text
    world.topics.put(alert_record(1), alert_record(2), alert_record(3, state=State.CLEARED))
    world.read()
    assert world.act(browser, alert="alert-00001", act="comment", note="a release").status_code == 303
    assert world.act(browser, alert="alert-00001", act="acknowledge").status_code == 303
    for records in world.topics.topics.values():
        records.clear()
    world.topics.identity = "made-again"
    world.read()
    # A restarted console knows it, too.
    world.reader = world.inbox.reader = AlertReader(
        world.store, lambda: world.topics, lambda: world.topics, world.console.clock
    )
    world.read()
    text = " ".join(re.sub("<[^>]+>", "", world.browser().get("/inbox").text).split())
    assert "3 earlier alerts (2 open) cannot be reached since 2025-10-09 08:53 UTC" in text
    assert "the topic drift-alerts is another one than before" in text
    assert text.count("One earlier act of people cannot be reached") == 2
    assert "No alert is known here, but some may be missing" in text
    assert "No alert is open" not in text
    # It is nothing that a load balancer could repair.
    ready = browser.get("/readyz")
    assert (ready.status_code, len(ready.json()["missing"])) == (200, 3)

    world.topics.put(alert_record(4))
    world.read()
    text = world.browser().get("/inbox").text
    assert "alert-00004" in text
    assert "3 earlier alerts" in text
    world.console.clock.now_ms += 7 * 86_400_000
    assert "earlier alert" not in world.browser().get("/inbox").text


_RECORDS = [
    FeedRecord(ALERTS_TOPIC, 0, alert_record(1)),
    FeedRecord(ALERTS_TOPIC, 1, alert_record(1, state=State.ESCALATED, time_ms=NOW_MS + 1)),
    FeedRecord(ALERTS_TOPIC, 2, alert_record(2)),
    FeedRecord(ALERTS_TOPIC, 3, alert_record(2)),
    FeedRecord(
        ACKNOWLEDGEMENTS_TOPIC, 0,
        {"alert_id": "alert-00001", "kind": "acknowledged", "time_ms": NOW_MS, "by": "anna", "until_time_ms": None,
         "note": "x"},
    ),
    FeedRecord(
        EVENTS_TOPIC, 0,
        {"event_id": "e1", "time_ms": NOW_MS, "by": "ben", "subject": "alert:alert-00002", "kind": "assigned",
         "what": {"to": "ben"}},
    ),
]  # fmt: skip


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40
)
@given(data=st.data())
def test_any_order_of_topics_and_any_restart_gives_the_same_alerts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A topic keeps its order; topics may come in any order, and a killed console reads its last batch again."""

    def contents(store: AlertStore) -> list[Any]:
        return [store.page({"state": "all"}, NOW_MS, limit=9), store.states("alert-00001")]

    plain = _store(tmp_path_factory)
    plain.take(FeedBatch(tuple(_RECORDS), {}))
    queues = {topic: [one for one in _RECORDS if one.topic == topic] for topic in FEED_TOPICS}
    store = _store(tmp_path_factory)
    while any(queues.values()):
        topic = data.draw(st.sampled_from([topic for topic, left in queues.items() if left]))
        count = data.draw(st.integers(1, len(queues[topic])))
        batch = FeedBatch(tuple(queues[topic][:count]), {topic: FeedPosition("t", queues[topic][count - 1].offset + 1)})
        for _ in range(data.draw(st.integers(1, 2))):
            store.take(batch)
        del queues[topic][:count]
    assert contents(store) == contents(plain)


def _store(factory: pytest.TempPathFactory) -> AlertStore:
    return AlertStore(ConsoleDatabase(factory.mktemp("store") / "console.sqlite", TABLES))


@pytest.mark.parametrize("until", ["soon", "", "9" * 40, "-1", "1e9", "\u00b2"])
def test_a_snooze_until_no_time_is_none_and_holds_nothing_up(world: World, until: str) -> None:
    world.topics.put(alert_record(1))
    world.topics.write(ConsoleEvent("alert:alert-00001", "snoozed", "ann", NOW_MS, {"until_ms": until}))
    world.read()
    assert "alert-00001" in world.browser().get("/inbox").text
    assert world.browser().get("/inbox/alert-00001").status_code == 200
