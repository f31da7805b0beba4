"""Cases: what the events say, two people for a large one, files."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from paywarden.ops.console import case as cases
from paywarden.ops.console.case import Case, case_of, case_subject
from paywarden.ops.console.cases import Cases
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.inbox import Inbox
from paywarden.ops.console.page_rows import Section
from paywarden.ops.console.rendering import with_mentions
from paywarden.ops.times import now_ms
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from tests.services.product.console import console_under_test, searched
from tests.unit.ops.console.test_inbox import World, _Echo
from tests.worlds.drift.alerts_on_topics import NOW_MS, TopicsInMemory

LARGE = 100_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[World, Section]]:
    console = console_under_test(tmp_path)
    topics, store = TopicsInMemory(), AlertStore(console.database, large_case_minor=LARGE)
    reader = AlertReader(store, lambda: topics, lambda: topics, console.clock)
    made = World(console, topics, store, reader, Inbox(store, reader, AlertPage(store, lambda: "")))
    reader._make_writer = lambda: _Echo(made)
    yield made, Cases(store, reader, tmp_path / "files").section()
    console.database.close()


def test_a_second_submit_of_the_form_opens_no_second_case(world: tuple[World, Section]) -> None:
    analyst = world[0].console.browser([world[1]], "demo-analyst")
    page = analyst.get("/cases").text
    once = re.search(r'name="once" value="([^"]+)"', page)
    assert once is not None
    form = {"once": once[1], "title": "A ring", "item": "payment:p1"}
    places = {analyst.post("/cases/open", data=form).headers["location"] for _ in range(2)}
    assert len(places) == 1
    assert once[1] not in analyst.get("/cases").text
    assert world[0].store.cases("all", "", limit=9)[1] == 1


def test_a_large_case_takes_two_people_to_close(world: tuple[World, Section]) -> None:
    console, section = world[0].console, world[1]
    analyst, lead = (console.browser([section], f"demo-{name}") for name in ("analyst", "lead"))
    opened = analyst.post("/cases/open", data={"title": "A ring", "item": "payment:p1"})
    place = opened.headers["location"]

    def post(browser: object, page: str, **fields: str) -> int:
        return int(browser.post(f"{place}/{page}", data=fields).status_code)  # type: ignore[attr-defined]

    assert post(analyst, "change", field="money_minor", before="0", after="250000") == 303
    assert post(analyst, "change", field="money_minor", before="0", after="1") == 409
    assert post(analyst, "change", field="money_minor", before="250000", amount="2.500,00") == 400
    assert post(analyst, "change", field="money_minor", before="250000", amount="2,600.50") == 303
    assert post(analyst, "change", field="money_minor", before="260050", amount="2500") == 303
    assert post(analyst, "change", field="title", before="A ring", amount="1") == 400
    assert post(analyst, "act", act="close", verdict="fraud") == 409
    assert post(analyst, "act", act="propose", verdict="fraud") == 303
    assert post(analyst, "act", act="close", verdict="fraud") == 409
    assert post(lead, "act", act="close", verdict="genuine") == 409
    assert post(lead, "act", act="close", verdict="fraud") == 303
    text = analyst.get(place).text
    assert "closed: fraud" in text
    assert "<dd>2,500.00: it takes two people" in text
    assert '"Before"><span dir="auto">0.00</span></td><td data-name="After"><span dir="auto">2,500.00<' in text
    assert post(analyst, "act", act="link", item="alert:a1") == 409
    assert post(lead, "act", act="reopen", note="more <i>came</i>") == 303
    assert "<i>came</i>" not in analyst.get(place).text


def test_a_person_who_was_faster_sees_that_it_is_done(world: tuple[World, Section]) -> None:
    """One person closes a case while another edits it: both saw the message about the late edit."""
    made, section = world
    analyst, lead = (made.console.browser([section], f"demo-{name}") for name in ("analyst", "lead"))
    opened = analyst.post("/cases/open", data={"title": "A ring"})
    place = opened.headers["location"]
    close = {"act": "close", "verdict": "fraud"}
    edit = {"field": "title", "before": "A ring", "after": "Two rings"}
    subject = case_subject(place.rpartition("/")[2])
    too_late = ConsoleEvent(subject, cases.CHANGED, "demo-analyst", made.console.clock.now_ms, edit)

    class EchoOfTwo(_Echo):
        def write(self, event: Any) -> None:
            made.topics.write(event)
            made.topics.write(too_late)
            made.read()

    made.reader._make_writer, made.reader._writer = lambda: EchoOfTwo(made), None
    assert lead.post(f"{place}/act", data=close).headers["location"] == place
    text = lead.get(place).text
    assert "closed: fraud" in text
    assert "the case is closed" in text, "the history has the edit that came too late"
    answer = analyst.post(f"{place}/change", data=edit)
    assert (answer.status_code, "The case is closed." in answer.text) == (409, True)


def test_a_file_is_kept_checked_and_never_runs_as_a_page(world: tuple[World, Section], tmp_path: Path) -> None:
    browser = world[0].console.browser([world[1]], "demo-analyst")
    opened = browser.post("/cases/open", data={"title": "x"})
    place = opened.headers["location"]
    content = b"<script>alert(1)</script>"
    answer = browser.post(f"{place}/attach", files={"file": ("../../a b.html", content)})
    assert answer.status_code == 303, answer.text
    (kept,) = (tmp_path / "files").iterdir()
    sent = browser.get(f"{place}/files/{kept.name}")
    assert sent.content == content
    assert sent.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in sent.headers["content-security-policy"]
    assert "attachment" in sent.headers["content-disposition"]
    kept.write_bytes(b"other")
    assert browser.get(f"{place}/files/{kept.name}").status_code == 409
    assert browser.get(f"{place}/files/{'0' * 64}").status_code == 404
    assert browser.post(f"{place}/attach", files={"file": ("a", b"x" * 6_000_000)}).status_code == 413


def test_one_person_alone_cannot_fill_the_disk(
    world: tuple[World, Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paywarden.ops.console.cases._FILES_A_DAY", 2)
    section = Cases(world[0].store, world[0].reader, tmp_path / "files").section()
    analyst, lead = (world[0].console.browser([section], name) for name in ("demo-analyst", "demo-lead"))
    form = {"title": "x"}
    place = analyst.post("/cases/open", data=form).headers["location"]

    def attach(browser: TestClient, content: bytes) -> int:
        return browser.post(f"{place}/attach", files={"file": ("a.txt", content)}).status_code

    assert [attach(analyst, bytes([number])) for number in range(4)] == [303, 303, 429, 429]
    assert attach(lead, b"another") == 303
    assert len(list((tmp_path / "files").iterdir())) == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["anna", "ben"]),
            st.sampled_from([cases.CHANGED, cases.PROPOSED, cases.CLOSED, cases.REOPENED, cases.NOTED, cases.LINKED]),
            st.sampled_from(["0", "5", "200000"]),
            st.sampled_from(["fraud", "genuine"]),
        ),
        max_size=14,
    )
)
def test_no_order_of_acts_lets_one_person_close_a_large_case(acts: list[tuple[str, str, str, str]]) -> None:
    """Each act is tried as it comes; money is what the case has then, so a change is never out of date."""
    events = [ConsoleEvent("case:c", cases.OPENED, "anna", 0, {"title": "t"})]
    for number, (by, kind, money, verdict) in enumerate(acts, 1):
        case = case_of(events, LARGE)
        assert case is not None
        what = {"verdict": verdict, "item": f"payment:{number}"}
        if kind == cases.CHANGED:
            what = {"field": "money_minor", "before": str(case.money_minor), "after": money}
        events.append(ConsoleEvent("case:c", kind, by, number, what))
        after = case_of(events, LARGE)
        assert after is not None
        amounts = [int(one.after) for one in case.history if one.field == "money_minor" and not one.is_refused]
        if case.is_open and not after.is_open and max(amounts, default=0) >= LARGE:
            assert case.proposed_by not in ("", by)
            assert any(one.kind == cases.PROPOSED and one.by == case.proposed_by for one in after.history)
    assert isinstance(case_of(events, LARGE), Case)


def _record(number: int, event: ConsoleEvent) -> FeedRecord:
    return FeedRecord(EVENTS_TOPIC, number, event.to_record())


def _events(count: int) -> list[ConsoleEvent]:
    """Returns cases that are opened, with a note each; some words go to cases that there are not."""
    made = []
    for number in range(count):
        subject = case_subject(f"c{number // 2}")
        kind, what = (cases.OPENED, {"title": f"Ring {number}"}) if number % 2 == 0 else (cases.NOTED, {"note": "x"})
        made.append(ConsoleEvent(subject if number % 7 else "case:nothing", kind, "anna", number, what))
    return made


def test_the_list_is_what_all_events_say_in_any_batches(world: tuple[World, Section]) -> None:
    store, events = world[0].store, _events(40)

    def listed() -> dict[str, Any]:
        return {one["case_id"]: one for one in store.cases("all", "", limit=100)[0]}

    def expected(events: list[ConsoleEvent]) -> dict[str, Any]:
        made = {}
        for subject in {event.subject for event in events}:
            case = case_of([event for event in events if event.subject == subject], LARGE)
            if case is not None:
                names = ("case_id", "title", "assigned_to", "money_minor", "is_open", "verdict", "changed_ms")
                made[case.case_id] = {name: getattr(case, name) for name in names} | {"items": len(case.items)}
        return made

    assert listed() == {}
    for start, stop in ((0, 1), (1, 9), (9, 9), (9, 40)):
        store.take(FeedBatch(tuple(_record(place, events[place]) for place in range(start, stop))))
        assert listed() == expected(events[:stop])
    # The topic was created again, with as many other events.
    others = [replace(event, by="ben", event_id=f"other-{place}") for place, event in enumerate(events)]
    store.begin_again([EVENTS_TOPIC], NOW_MS)
    assert listed() == {}
    store.take(FeedBatch(tuple(_record(place, event) for place, event in enumerate(others))))
    assert listed() == expected(others)


def test_another_limit_of_large_cases_counts_for_old_acts_too(world: tuple[World, Section]) -> None:
    """The list said that a case was closed, and its page that it is open."""
    money = {"field": "money_minor", "before": "0", "after": "5000"}
    acts = [(cases.OPENED, {"title": "t"}), (cases.CHANGED, money), (cases.CLOSED, {"verdict": "fraud"})]
    events = [ConsoleEvent("case:c", kind, "anna", number, what) for number, (kind, what) in enumerate(acts)]
    store, database = world[0].store, world[0].console.database
    store.take(FeedBatch(tuple(_record(place, event) for place, event in enumerate(events))))
    assert [one["is_open"] for one in store.cases("all", "", limit=9)[0]] == [False]
    stricter = AlertStore(database, large_case_minor=1_000)
    assert [one["is_open"] for one in stricter.cases("all", "", limit=9)[0]] == [True]
    case = stricter.case("c")
    assert case is not None
    assert case.is_open


def test_many_cases_come_in_pages_and_by_filters(world: tuple[World, Section]) -> None:
    store = world[0].store
    opened = [
        ConsoleEvent(case_subject(f"c{number:03d}"), cases.OPENED, "anna", number, {"title": f"Ring {number} שלום"})
        for number in range(120)
    ]
    closed = ConsoleEvent(case_subject("c007"), cases.CLOSED, "anna", 500, {"verdict": "fraud"})
    store.take(FeedBatch(tuple(_record(place, event) for place, event in enumerate([*opened, closed]))))
    browser = world[0].console.browser([world[1]], "demo-analyst")
    text = browser.get("/cases").text
    assert ("120 cases" in text, text.count('data-name="Case"')) == (True, 50)
    assert browser.get("/cases?page=3").text.count('data-name="Case"') == 20
    assert browser.get("/cases?state=closed").text.count('data-name="Case"') == 1
    assert searched(browser, "/cases", q="RING 117").text.count('data-name="Case"') == 1
    assert browser.get("/cases?q=RING+117").status_code == 400
    # The topics have not been read yet: an empty list says so, and is not taken for peace.
    assert "No case is known here" in searched(browser, "/cases", q="nothing").text
    world[0].reader._heard()
    assert "No case is like this" in searched(browser, "/cases", q="nothing").text
    # The item of a new case stays, whichever case is looked for, and is in the form of the chosen one.
    item = "payment:pay-1"
    found = browser.post("/cases", data={"q": "RING", "item": item})
    first = browser.get(found.headers["location"]).text
    (following,) = re.findall('href="([^"]+)" rel="next"', first)
    second = browser.get(html.unescape(following)).text
    for text in (first, second):
        assert ("put payment:pay-1 into it" in text, "RING" in found.headers["location"]) == (True, False)
    chosen = html.unescape(re.findall('href="(/cases/c[0-9][^"]+)"', second)[0])
    assert 'name="item" value="payment:pay-1"' in browser.get(chosen).text


@pytest.mark.parametrize("kind", ["linked", "unlinked", "attached", "changed", "proposed", "closed", "noted", "other"])
@pytest.mark.parametrize("what", [{}, {"size": "x", "file": "f", "name": "n"}, {"item": ""}, {"field": "title"}])
def test_an_event_without_what_its_kind_needs_changes_nothing(kind: str, what: dict[str, str]) -> None:
    """Anybody who may write to the topic can write one."""
    opened = ConsoleEvent("case:1", cases.OPENED, "ann", 1, {"title": "t"})
    case = case_of([opened, ConsoleEvent("case:1", kind, "ann", 2, what)], LARGE)
    assert case is not None
    assert (case.items, case.attachments, case.is_open, case.title) == ((), (), True, "t")


def test_a_note_finds_the_people_whom_it_mentions_and_no_others(world: tuple[World, Section]) -> None:
    made, _ = world
    made.console.clock.now_ms = now_ms()
    section = Cases(made.store, made.reader, Path("files"), people=made.console.shell.names).section()
    sections = [made.inbox.section(), section]
    analyst, lead, owner = (
        made.console.browser(sections, f"demo-{name}") for name in ("analyst", "lead", "model-owner")
    )
    place = analyst.post("/cases/open", data={"title": "A <b>ring</b>"}).headers["location"]
    note = "@demo-lead, look: <i>now</i>. @demo-analyst @nobody-here lead@demo-lead.example (@demo-lead)."
    assert analyst.post(f"{place}/act", data={"act": "note", "note": note}).status_code == 303
    text = lead.get("/inbox").text
    assert f'<a href="{place}" dir="auto">A &lt;b&gt;ring&lt;/b&gt;</a>' in text
    assert 'Cases <span class="badge">1</span>' in text
    assert all("You are mentioned" not in one.get("/inbox").text for one in (analyst, owner))
    shown = (
        "<strong>@demo-lead</strong>, look: &lt;i&gt;now&lt;/i&gt;. <strong>@demo-analyst</strong> @nobody-here "
        "lead@demo-lead.example (<strong>@demo-lead</strong>)."
    )
    assert shown in lead.get(place).text
    assert "You are mentioned" not in lead.get("/inbox").text, "the lead has opened the case"
    assert [one.what for one in made.console.audit.newest(20) if one.act == "noted"] == [{}]
    # A month later nobody waits for it; a topic that was created again takes it away.
    assert analyst.post(f"{place}/act", data={"act": "note", "note": "@demo-model-owner"}).status_code == 303
    assert made.store.mentions("demo-model-owner", now_ms())
    assert not made.store.mentions("demo-model-owner", now_ms() + 31 * 86_400_000)
    made.store.begin_again([EVENTS_TOPIC], now_ms())
    assert not made.store.mentions("demo-model-owner", now_ms())


@given(st.text(st.sampled_from("@ab.-_ <&\u202e"), max_size=40))
def test_a_note_keeps_every_letter_beside_its_mentions(note: str) -> None:
    shown = with_mentions(note, {"a", "ab", "a.b"})
    plain = html.unescape(re.sub("</?strong>", "", shown))
    assert plain == note.replace("\u202e", "[U+202E]")
