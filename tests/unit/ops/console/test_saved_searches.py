"""A person keeps searches of a page; one of them opens the section. Nobody else sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.unit.ops.console.test_decisions import CARD, World

DECLINED = {"path": "/decisions", "called": "declined <b>", "query": "action=decline&score_min=0.5&page=3&after=x"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def save(browser: TestClient, status: int = 303, **fields: str) -> str:
    answer = browser.post("/searches/save", data={**DECLINED, **fields})
    assert answer.status_code == status
    return str(answer.headers.get("location", ""))


def test_a_saved_search_is_a_link_on_its_page_for_its_owner_alone(world: World) -> None:
    browser = world.browser("demo-analyst")
    assert save(browser) == "/decisions?action=decline&score_min=0.5"
    page = browser.get("/decisions").text
    assert '<a href="/decisions?action=decline&amp;score_min=0.5">declined &lt;b&gt;</a>' in page
    assert "Everything" in page
    assert "declined" not in world.browser("demo-lead").get("/decisions").text.partition("<form")[0]
    assert "Everything" not in world.browser("demo-lead").get("/decisions").text
    (entry,) = (one for one in world.console.audit.newest(20) if one.act == "saved_search")
    assert (entry.by, entry.subject) == ("demo-analyst", "page:/decisions")


def test_one_search_opens_the_section(world: World) -> None:
    browser = world.browser("demo-analyst")
    navigation = '<li><a href="/decisions?action=decline&amp;score_min=0.5"'
    save(browser)
    assert navigation not in browser.get("/decisions").text
    save(browser, opens_first="yes")
    assert navigation in browser.get("/decisions").text
    save(browser, called="reviews", query="action=review", opens_first="yes")
    page = browser.get("/decisions").text
    assert '<li><a href="/decisions?action=review"' in page
    assert navigation not in page
    assert browser.post("/searches/remove", data={"path": "/decisions", "called": "reviews"}).status_code == 303
    assert '<li><a href="/decisions" ' in browser.get("/decisions").text
    assert browser.post("/searches/remove", data={"path": "/decisions", "called": "reviews"}).status_code == 404


def test_a_search_by_card_is_kept_without_the_card(world: World) -> None:
    browser = world.browser("demo-analyst")
    found = browser.post("/decisions", data={"card_id": CARD, "action": "review"}).headers["location"]
    page = browser.get(found).text
    query = page.split('name="query" value="')[1].split('"')[0].replace("&amp;", "&")
    assert "search=" in query
    assert save(browser, query=query) == "/decisions?action=review"


def test_other_pages_and_too_many_searches_are_refused(world: World) -> None:
    browser = world.browser("demo-analyst")
    for path in ("/decisions/csv", "/nothing", "//elsewhere.example", "https://elsewhere.example"):
        save(browser, 404, path=path)
    for number in range(20):
        save(browser, called=f"s{number}")
    save(browser, 409, called="one too many")
    # The same name takes the place of the one before.
    save(browser, called="s0", query="action=approve")
    page = browser.get("/decisions").text
    assert "one too many" not in page
    assert "/decisions?action=approve" in page
