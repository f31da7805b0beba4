"""One act about many picked payments: it is done once, by those who may, and says how many it is about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from paywarden.ops.console.page_rows import PICKED_MAX
from paywarden.streams.alerts.alert_events import ASSIGNED, EVENTS_TOPIC
from paywarden.streams.decision_index.reviews import ReviewQueue
from tests.services.product.console import NOW_MS, TOKEN
from tests.unit.ops.console.test_decisions import decisions
from tests.unit.ops.console.test_notes import Noted


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Noted]:
    made = Noted(tmp_path)
    usual = {**decisions()[3], "decided_time_ms": NOW_MS - 1_000}
    made.put([{**usual, "payment_id": f"more{number}", "decision_id": f"d-more-{number}"} for number in range(6)])
    yield made
    made.database.close()
    made.console.database.close()


def _places(page: str) -> dict[str, str]:
    found = re.findall(r'name="payment" value="([^"]+)" form="picked" aria-label="Pick payment ([^"]+)"', page)
    return {payment: place for place, payment in found}


def _act(browser: TestClient, payments: list[str], act: str, **fields: str) -> Any:
    return browser.post("/review/picked", data={"payment": payments, "act": act, **fields})


def test_one_verdict_about_many_says_how_many_and_counts_once(world: Noted) -> None:
    analyst, lead = world.browser("demo-analyst"), world.browser("demo-lead")
    queue = analyst.get("/review").text
    places = _places(queue)
    assert len(places) == 8, "six, and the two of the world"
    assert _places(analyst.get("/decisions").text).keys() >= places.keys()
    # Another one holds the first. One that was approved waits for nobody.
    lead.post("/review/claim", data={"decision": "d-more-0"})
    (approved,) = (world.address("pay1").rpartition("/")[2],)
    chosen = [*(places[f"more{number}"] for number in range(4)), approved]
    once = re.findall(r'id="picked"><input type="hidden" name="once" value="([^"]+)"', queue)[0]
    said = {"verdict": "fraud", "reason": "known_pattern"}
    page = _act(analyst, chosen, "verdict", **said, once=once, back="javascript:attacked()")
    assert page.status_code == 200
    assert "3 payments get the verdict <strong>fraud</strong>" in page.text
    assert "2 of the picked do not" in page.text
    assert "javascript:" not in page.text
    assert not world.queue.verdicts_of("d-more-1")
    form = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
    given = re.findall(r'type="hidden" name="payment" value="([^"]+)"', page.text)
    assert [form["agreed"], len(given), form["back"]] == ["3", 3, "/"]
    # One of them is decided meanwhile: the page is shown again, with the number of now.
    claim = world.queue.claim("anna", NOW_MS, decision_id="d-more-3")
    assert claim is not None
    again = _act(analyst, given, "verdict", **said, agreed="3")
    assert (again.status_code, "2 payments get the verdict" in again.text) == (200, True)
    for _ in range(2):
        answer = _act(analyst, given, "verdict", **said, agreed="2", once=form["once"], back="/review")
        assert answer.headers["location"] == "/review"
    assert "The form was sent twice, and counts once. Kept: 2 payments, fraud." in analyst.get("/review").text
    verdicts = {name: [one.analyst for one in world.queue.verdicts_of(f"d-more-{name}")] for name in range(6)}
    assert verdicts == {0: [], 1: ["demo-analyst"], 2: ["demo-analyst"], 3: [], 4: [], 5: []}
    reviewed = [one.subject for one in world.console.audit.newest(50) if one.act == "reviewed"]
    assert sorted(reviewed) == ["payment:more1", "payment:more2"]
    assert _act(analyst, given, "verdict", **said).status_code == 409


def test_many_payments_go_into_one_case_new_or_open(world: Noted) -> None:
    analyst = world.browser("demo-analyst")
    places = _places(analyst.get("/review").text)
    first, last = ([places[f"more{number}"] for number in numbers] for numbers in ((0, 1, 2), (2, 3)))
    assert _act(analyst, first, "case").status_code == 400
    assert _act(analyst, first, "case", case="no-case").status_code == 404
    place = _act(analyst, first, "case", title="A <ring>").headers["location"]
    case_id = place.rpartition("/")[2]
    assert f'<option value="{case_id}">A &lt;ring&gt;</option>' in analyst.get("/review").text
    assert _act(analyst, last, "case", case=case_id).headers["location"] == place
    case = world.topics.store.case(case_id)
    assert case is not None
    assert case.items == ("payment:more0", "payment:more1", "payment:more2", "payment:more3")
    analyst.post(f"{place}/act", data={"act": "close", "verdict": "fraud"})
    assert _act(analyst, last, "case", case=case_id).status_code == 409


def test_what_is_assigned_comes_first_for_that_person(world: Noted) -> None:
    analyst, lead = world.browser("demo-analyst"), world.browser("demo-lead")
    places = _places(analyst.get("/review").text)
    chosen = [places[f"more{number}"] for number in (4, 5)]
    assert _act(analyst, chosen, "assign").status_code == 400
    assert _act(analyst, chosen, "assign", to="demo-lead").status_code == 303
    page = unescape(lead.get("/review").text)
    assert page.count("<small>for demo-lead</small>") == 2
    assert "Assigned to demo-lead: 2 payments." in analyst.get("/review").text
    first = set[str]()
    for _ in range(2):
        lead.post("/review/claim", data={})
        mine = lead.get("/review/mine").text
        first |= set(re.findall(r"(more[0-9])</small></h1>", mine))
        claim = mine.split('name="claim" value="')[1].split('"')[0]
        lead.post("/review/decide", data={"claim": claim, "verdict": "genuine", "reason": "other"})
    assert first == {"more4", "more5"}
    lead.post("/review/claim", data={})
    assert "pay3" in lead.get("/review/mine").text, "then the queue's own order"


def test_the_queue_is_asked_about_few_assignments_however_many_a_person_has(
    world: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database takes a bounded number of values in one statement, and years of assignments are read by nobody."""
    asked: list[Sequence[str]] = []
    free = ReviewQueue.free

    def noted(queue: ReviewQueue, analyst: str, decision_ids: Sequence[str], now_ms: int) -> list[str]:
        asked.append(decision_ids)
        return free(queue, analyst, decision_ids, now_ms)

    monkeypatch.setattr(ReviewQueue, "free", noted)
    week_ago = NOW_MS - 8 * 86_400_000
    rows = [
        *((f"old{number}", week_ago, "demo-lead", f"d-old-{number}") for number in range(2_000)),
        *((f"done{number}", NOW_MS - 10, "demo-lead", f"d-done-{number}") for number in range(1_200)),
        ("more4", NOW_MS - 9, "demo-lead", "d-more-4"),
        ("more4", NOW_MS - 8, "somebody", "d-more-4"),
        ("more5", NOW_MS - 7, "demo-lead", "d-more-5"),
    ]
    with world.console.database.write() as connection:
        connection.executemany(
            "INSERT INTO events (event_id, topic, subject, time_ms, by, kind, what) VALUES (?, '', ?, ?, '', ?, ?)",
            [
                (str(number), f"payment:{one}", time_ms, ASSIGNED, json.dumps({"to": to, "decision": decision}))
                for number, (one, time_ms, to, decision) in enumerate(rows)
            ],
        )
    lead = world.browser("demo-lead")
    lead.post("/review/claim", data={})
    assert "more5</small></h1>" in lead.get("/review/mine").text
    assert max(map(len, asked)) <= 500
    assert [one for some in asked for one in some] == [*(f"d-done-{number}" for number in range(1_200)), "d-more-5"]


def test_too_many_unknown_ones_and_wrong_roles_are_refused(world: Noted) -> None:
    analyst, auditor, owner = (world.browser(f"demo-{name}") for name in ("analyst", "auditor", "model-owner"))
    place = _places(analyst.get("/review").text)["more1"]
    strange = [place[:-4] + f"{number:04d}" for number in range(PICKED_MAX + 1)]
    told = [_act(analyst, [place, *odd], "assign", to="x") for odd in (strange, strange[:1], ["x"])]
    assert [one.status_code for one in told] == [400, 404, 400]
    for browser in (auditor, owner):
        assert _act(browser, [place], "assign", to="x").status_code == 403
        assert 'id="picked"' not in browser.get("/decisions").text
    assert (
        analyst.post("/review/picked", data={"payment": place}, headers={"sec-fetch-site": "cross-site"}).status_code
        == 403
    )
    assert not world.topics.topics.topics[EVENTS_TOPIC]
    body = {"payment": [place], "act": "assign", "to": "demo-lead"}
    bearer = {"authorization": f"Bearer {TOKEN}", "idempotency-key": "a-key-of-sixteen-signs"}
    for _ in range(2):
        assert analyst.post("/api/v1/review/picked", json=body, headers=bearer).status_code == 200
    assert len(world.topics.topics.topics[EVENTS_TOPIC]) == 1
