"""Cases: what the events say, two people for a large one, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.ops.console.cases import case as cases
from paywarden.ops.console.cases.case import Case, cases_of
from paywarden.ops.console.cases.pages import Cases
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.pages import Inbox
from paywarden.ops.console.inbox.reader import AlertReader
from paywarden.ops.console.inbox.store import TABLES, AlertStore
from paywarden.ops.console.pages import Section
from paywarden.streams.alerts.events import ConsoleEvent
from tests.services.console import console_under_test, csrf_of
from tests.unit.ops.console.test_inbox import World, _Echo
from tests.worlds.alerts_on_topics import TopicsInMemory

LARGE = 100_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[World, Section]]:
    console = console_under_test(tmp_path)
    with console.database.write() as connection:
        for table in TABLES:
            connection.execute(table)
    topics, store = TopicsInMemory(), AlertStore(console.database)
    reader = AlertReader(store, lambda: topics, lambda: topics, console.clock)
    made = World(console, topics, store, reader, Inbox(store, reader, AlertPage(store, lambda: "")))
    reader._make_writer = lambda: _Echo(made)
    yield made, Cases(store, reader, tmp_path / "files", LARGE).section()
    console.database.close()


def test_a_large_case_takes_two_people_to_close(world: tuple[World, Section]) -> None:
    console, section = world[0].console, world[1]
    analyst, lead = (console.browser([section], f"demo-{name}") for name in ("analyst", "lead"))
    opened = analyst.post(
        "/cases/open", data={"csrf": csrf_of(analyst.get("/cases").text), "title": "A ring", "item": "payment:p1"}
    )
    place = opened.headers["location"]

    def post(browser: object, page: str, **fields: str) -> int:
        form = {"csrf": csrf_of(browser.get(place).text), **fields}  # type: ignore[attr-defined]
        return int(browser.post(f"{place}/{page}", data=form).status_code)  # type: ignore[attr-defined]

    assert post(analyst, "change", field="money_minor", before="0", after="250000") == 303
    assert post(analyst, "change", field="money_minor", before="0", after="1") == 409
    assert post(analyst, "act", act="close", verdict="fraud") == 409
    assert post(analyst, "act", act="propose", verdict="fraud") == 303
    assert post(analyst, "act", act="close", verdict="fraud") == 409
    assert post(lead, "act", act="close", verdict="genuine") == 409
    assert post(lead, "act", act="close", verdict="fraud") == 303
    text = analyst.get(place).text
    assert "closed: fraud" in text
    assert "250000" in text
    assert post(analyst, "act", act="link", item="alert:a1") == 409
    assert post(lead, "act", act="reopen", note="more <i>came</i>") == 303
    assert "<i>came</i>" not in analyst.get(place).text


def test_a_file_is_kept_checked_and_never_runs_as_a_page(world: tuple[World, Section], tmp_path: Path) -> None:
    browser = world[0].console.browser([world[1]], "demo-analyst")
    opened = browser.post("/cases/open", data={"csrf": csrf_of(browser.get("/cases").text), "title": "x"})
    place = opened.headers["location"]
    csrf = csrf_of(browser.get(place).text)
    content = b"<script>alert(1)</script>"
    answer = browser.post(f"{place}/attach", data={"csrf": csrf}, files={"file": ("../../a b.html", content)})
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
    assert (
        browser.post(f"{place}/attach", data={"csrf": csrf}, files={"file": ("a", b"x" * 6_000_000)}).status_code == 413
    )


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
        case = cases_of(events, LARGE)["c"]
        what = {"verdict": verdict, "item": f"payment:{number}"}
        if kind == cases.CHANGED:
            what = {"field": "money_minor", "before": str(case.money_minor), "after": money}
        events.append(ConsoleEvent("case:c", kind, by, number, what))
        after = cases_of(events, LARGE)["c"]
        amounts = [int(one.after) for one in case.history if one.field == "money_minor" and not one.is_refused]
        if case.is_open and not after.is_open and max(amounts, default=0) >= LARGE:
            assert case.proposed_by not in ("", by)
            assert any(one.kind == cases.PROPOSED and one.by == case.proposed_by for one in after.history)
    assert isinstance(cases_of(events, LARGE)["c"], Case)
