"""Lists are sent as CSV that a spreadsheet reads as text, by those who may, and the audit log knows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paywarden.ops.console.audit_page import audit_section
from paywarden.ops.console.exports import csv_of
from tests.unit.ops.console.test_decisions import CARD, World, decisions, more


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def rows_of(browser: TestClient, address: str) -> list[dict[str, str]]:
    answer = browser.get(address)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text)))


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_a_text_that_looks_like_a_formula_is_quoted(begin: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_of([{"id": f"{begin}1+1", "amount": -5}]).decode(), newline=""))
    assert row == {"id": f"'{begin}1+1", "amount": "-5"}


def test_a_list_is_exported_with_its_filters_masks_and_audit_entry(world: World) -> None:
    formula = {**decisions()[0], "payment_id": "=cmd|' /C calc'!A0", "decision_id": "d-formula", "merchant_id": "@m"}
    world.put([*more(60), formula])
    analyst = world.browser("demo-analyst")
    rows = rows_of(analyst, "/decisions/csv")
    # More than the page has, each once.
    assert len(rows) == len({row["decision_id"] for row in rows}) == 71
    (odd,) = (row for row in rows if row["decision_id"] == "d-formula")
    assert (odd["payment_id"], odd["merchant_id"]) == ("'=cmd|' /C calc'!A0", "'@m")
    assert odd["decided_utc"].endswith("Z")
    review = rows_of(analyst, "/decisions/csv?action=review")
    assert {row["payment_id"] for row in review} == {"pay3", "pay4"}
    assert {row["card_id"] for row in review} == {CARD}
    exported = [one for one in world.console.audit.newest(20) if one.act == "exported"]
    assert [dict(one.what) for one in exported] == [{"action": "review", "rows": "2"}, {"rows": "71"}]
    assert CARD not in world.browser("demo-auditor").get("/decisions/csv").text


def test_a_search_by_card_is_exported_without_the_card_in_its_address(world: World) -> None:
    browser = world.browser("demo-analyst")
    page = browser.get(browser.post("/decisions", data={"card_id": CARD}).headers["location"]).text
    address = page.split('href="/decisions/csv')[1].split('"')[0]
    assert CARD not in address
    assert len(rows_of(browser, f"/decisions/csv{address}")) == 10
    (entry,) = (one for one in world.console.audit.newest(20) if one.act == "exported")
    assert CARD not in str(entry.what)


def test_roles_that_may_not_export_get_neither_link_nor_file(world: World) -> None:
    sections = [*world.sections, audit_section(world.console.audit, lambda _: None)]
    for person, path in (("demo-operator", "/decisions"), ("demo-model-owner", "/decisions")):
        browser = world.console.browser(sections, person)
        assert "/csv" not in browser.get(path).text
        assert browser.get(f"{path}/csv").status_code == 403
    assert world.console.browser(sections, "demo-analyst").get("/audit/csv").status_code == 403
    assert rows_of(world.console.browser(sections, "demo-auditor"), "/audit/csv")[0]["by"]


def test_the_review_queue_is_exported_with_its_reasons(world: World) -> None:
    rows = rows_of(world.browser("demo-analyst"), "/review/csv")
    assert [row["payment_id"] for row in rows] == ["pay3", "pay4"]
    assert {row["merchant_id"] for row in rows} == {decisions()[3]["merchant_id"], decisions()[4]["merchant_id"]}
    assert "reasons" in rows[0]
