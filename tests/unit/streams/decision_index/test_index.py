"""A search finds what a plain look at all decisions finds, page by page, on every database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.decision_index import index as index_module
from paywarden.streams.decision_index import queries
from paywarden.streams.decision_index.database import Database, DuckDbDatabase
from paywarden.streams.decision_index.index import HOUR_MS, DecisionIndex, Stored
from paywarden.streams.decision_index.search import ACTIONS, FoundRow, Place, Search, key_hash
from tests.worlds.stream.decision_records import decision

_START_MS = 1_704_067_200_000
OPTIONAL = {"device_id": None, "ip": None, "mcc": None, "country": None, "channel": None}


def made(number: int, **changes: Any) -> dict[str, Any]:
    """Returns a decision, five minutes after that of the number before."""
    score = (number * 37 % 101) / 100
    action = ACTIONS[(score > 0.5) + (score > 0.9)]
    reasons = [f"rule:r{number % 3}"] if action != "approve" else []
    reasons += ["score_at_or_above_review_threshold:online"] if action == "review" and number % 2 else []
    return decision(
        changes.pop("payment_id", f"p{number}"),
        **OPTIONAL
        | {
            "decided_time_ms": _START_MS + number // 2 * 300_000,
            "card_id": f"c{number % 7}",
            "merchant_id": f"m{number % 3}",
            "device_id": f"d{number % 5}" if number % 4 else None,
            "ip": f"10.0.0.{number % 6}" if number % 3 else None,
            "score": score,
            "action": action,
            "reasons": reasons,
            "flags": ["unknown_card"] if number % 11 == 0 else [],
            "amount_minor": 100 * number,
        }
        | changes,
    )


DECISIONS = [made(number) for number in range(300)]


def add(index: DecisionIndex, decisions: Iterable[dict[str, Any]]) -> None:
    with index.database.transaction() as transaction:
        index.add_decisions(transaction, [Stored(each, each["decision_id"].encode()) for each in decisions])


@pytest.fixture
def index(database: Database) -> DecisionIndex:
    """300 decisions: 50 of them came twice, and some keys are still unsorted."""
    # Small, so that searches need several.
    database.window_rows = (20, 90)
    index = DecisionIndex(database, worth=lambda amount, _currency, _time: amount)
    add(index, DECISIONS[:200])
    database.tidy(at_least=1)
    add(index, DECISIONS[150:])
    return index


def pages(index: DecisionIndex, search: Search, count: int) -> list[FoundRow]:
    rows, after = [], None
    while True:
        page = index.search(search, after=after, count=count)
        rows += page.rows
        if page.next is None:
            return rows
        assert after is None or page.next < after
        after = page.next


def plainly(search: Search) -> list[str]:
    """Returns the ids of what a search should find, the newest first."""
    found = [
        each
        for each in DECISIONS
        if all(
            getattr(search, name) in ("", each[name])
            for name in ("payment_id", "card_id", "merchant_id", "device_id", "ip", "action")
        )
        and search.score_min <= each["score"] <= search.score_max
        and (search.first_ms or 0) <= each["decided_time_ms"] <= (search.last_ms or 1 << 60)
        and (not search.rule or f"rule:{search.rule}" in each["reasons"])
        and (not search.flag or search.flag in each["flags"])
        and (not search.segment or any(reason.endswith(f":{search.segment}") for reason in each["reasons"]))
    ]
    found.sort(key=lambda each: (each["decided_time_ms"], key_hash("payment_id", each["payment_id"])), reverse=True)
    return [each["decision_id"] for each in found]


def one_of(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(("", "", *values))


def between(first_ms: int | None, last_ms: int | None) -> dict[str, Any]:
    """Returns the times of a search, the earlier one first."""
    if first_ms is not None and last_ms is not None:
        first_ms, last_ms = min(first_ms, last_ms), max(first_ms, last_ms)
    return {"first_ms": first_ms, "last_ms": last_ms}


SCORES = st.sampled_from((0.0, 0.01, 0.3, 0.55, 0.93, 1.0))
TIMES = st.none() | st.integers(0, 150).map(lambda number: _START_MS + number * 300_000)
SEARCHES = st.builds(
    lambda scores, times, **more: Search(score_min=min(scores), score_max=max(scores), **between(*times), **more),
    st.tuples(SCORES, SCORES),
    st.tuples(TIMES, TIMES),
    payment_id=one_of("p3", "p170", "none"),
    card_id=one_of("c1", "c6"),
    merchant_id=one_of("m0", "m2"),
    device_id=one_of("d2"),
    ip=one_of("10.0.0.1", "10.0.0.10"),
    action=one_of(*ACTIONS),
    rule=one_of("r1"),
    segment=one_of("online"),
    flag=one_of("unknown_card"),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(search=SEARCHES, count=st.sampled_from((7, 40, 200)), few=st.sampled_from((2, 1000)))
def test_pages_of_a_search_are_what_a_look_at_all_finds(
    index: DecisionIndex, search: Search, count: int, few: int
) -> None:
    with patch.object(queries, "_FEW_MAX", few):
        assert [row.decision_id for row in pages(index, search, count)] == plainly(search)


def test_a_search_without_a_key_looks_at_a_bounded_number(
    index: DecisionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.database, "scan_rows_max", 60)
    search = Search(action="approve", score_max=0.0)
    first = index.search(search)
    assert first.next is not None
    assert first.looked_from_ms is not None
    assert first.looked_from_ms % HOUR_MS == 0
    assert [row.decision_id for row in pages(index, search, 25)] == plainly(search)


def test_a_search_looks_no_further_back_than_it_must(index: DecisionIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int | None] = []
    conditions = queries.conditions_of

    def noting(search: Search, after: Place | None, from_ms: int | None, values: list[Any]) -> str:
        looked.append(from_ms)
        return conditions(search, after, from_ms, values)

    monkeypatch.setattr(index_module, "conditions_of", noting)
    newest = max(each["decided_time_ms"] for each in DECISIONS)
    for search in (Search(), Search(merchant_id="m1"), Search(first_ms=_START_MS)):
        looked.clear()
        assert len(index.search(search, count=3).rows) == 3
        assert len(looked) == 1
        assert looked[0] is not None
        assert looked[0] > newest - 4 * HOUR_MS
    # A card has few decisions: all at once. A rare value is searched further and further back.
    looked.clear()
    index.search(Search(card_id="c1"), count=3)
    assert looked == [None]
    looked.clear()
    index.search(Search(merchant_id="m1", flag="unknown_card"), count=200)
    assert len(looked) == 3
    assert looked[0] is not None
    assert looked[1] is not None
    assert looked[0] > looked[1]
    assert looked[2] is None


def test_a_decision_of_the_same_hash_is_not_taken_for_the_one_asked_for(index: DecisionIndex) -> None:
    with index.database.transaction() as transaction:
        ((time_ms, hash_),) = transaction.execute(
            "SELECT decided_time_ms, payment_hash FROM decisions WHERE payment_id = ? LIMIT 1", ("p3",)
        )
        columns = {"hash": [key_hash("card_id", "another")], "decided_time_ms": [time_ms], "payment_hash": [hash_]}
        transaction.append("keys", columns | {"score": [0.5], "action": [0]})
    assert index.search(Search(card_id="another")).rows == []


def test_the_page_of_one_has_body_neighbours_and_the_newest_outcome(index: DecisionIndex) -> None:
    (row,) = index.about("p100")
    told = [("p100", 5, "fraud", "chargeback"), ("p100", 3, "genuine", None), ("p93", 5, "fraud", None)]
    told += [("p86", 5, "fraud", None), ("p86", 6, "genuine", None)]
    names = ("payment_id", "outcome_time_ms", "label", "source")
    with index.database.transaction() as transaction:
        index.add_outcomes(transaction, [dict(zip(names, values, strict=True)) for values in told])
    (row,) = index.at(row.place)
    assert row.outcome is not None
    assert (row.outcome.label, row.outcome.time_ms, row.outcome.source) == ("fraud", 5, "chargeback")
    assert index.bodies([row.place]) == {"d-p100": b"d-p100"}
    before, after = index.neighbours(row, 3, 3)
    assert [each.payment_id for each in before] == ["p93", "p86", "p79"]
    assert [each.payment_id for each in after] == ["p107", "p114", "p121"]
    shared = {entity.kind: entity for entity in index.shared_with_frauds(row)}
    assert [each.payment_id for each in shared["card_id"].frauds] == ["p93"]
    assert shared["merchant_id"].fraud_count == 0
    assert shared["card_id"].decisions == len(plainly(Search(card_id=row.card_id)))
    newest = [each.decision_id for each in shared["merchant_id"].newest]
    assert newest == plainly(Search(merchant_id=row.merchant_id))[:8]


def test_a_busy_merchants_newest_decisions_are_looked_at(index: DecisionIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = index.about("p100")
    of_all = {entity.kind: entity for entity in index.shared_with_frauds(row)}["merchant_id"]
    assert of_all.is_all
    assert of_all.decisions > 20
    monkeypatch.setattr(index_module, "SHARED_DECISIONS_MAX", 20)
    for window in (25, 200):
        # In the first window there are too few.
        monkeypatch.setattr(index.database, "window_rows", (10, window, 250))
        (_, *_, of_newest) = index.shared_with_frauds(row)
        assert (of_newest.decisions, of_newest.is_all) == (20, False)
        assert of_newest.newest == of_all.newest


def test_many_runs_of_sorted_keys_are_merged_into_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paywarden.streams.decision_index.database._RUNS_MAX", 2)
    database = DuckDbDatabase(tmp_path / "index.duckdb")
    index = DecisionIndex(database)
    for first in range(0, 300, 60):
        add(index, DECISIONS[first : first + 60])
        database.tidy(at_least=1)
    database.merge()
    with database.reading() as transaction:
        assert transaction.execute("SELECT count(*) FROM runs") == [(0,)]
        hashes = [hash_ for (hash_,) in transaction.execute("SELECT hash FROM keys_sorted")]
    assert hashes == sorted(hashes)
    assert [row.decision_id for row in pages(index, Search(card_id="c1"), 7)] == plainly(Search(card_id="c1"))
    database.close()


def test_old_decisions_leave_the_index_by_whole_days(index: DecisionIndex) -> None:
    old = made(1, payment_id="old", decided_time_ms=_START_MS - 1)
    add(index, [old])
    assert len(pages(index, Search(card_id=old["card_id"], last_ms=_START_MS - 1), 100)) == 1
    index.expire(DECISIONS[150]["decided_time_ms"])
    rows = pages(index, Search(), 100)
    assert {row.decided_time_ms for row in rows} == {each["decided_time_ms"] for each in DECISIONS}
    assert pages(index, Search(card_id=old["card_id"], last_ms=_START_MS - 1), 100) == []


def test_emptying_takes_decisions_and_keeps_verdicts(index: DecisionIndex) -> None:
    index.empty()
    assert index.search(Search()).rows == []
    assert index.count() == 0
    add(index, DECISIONS[:3])
    assert len(index.search(Search()).rows) == 3


def test_a_time_has_its_records_once_and_a_rule_what_became_of_its_payments(index: DecisionIndex) -> None:
    first, last = _START_MS + 3 * HOUR_MS, _START_MS + 5 * HOUR_MS
    within = [each for each in DECISIONS if first <= each["decided_time_ms"] <= last]
    found = index.bodies_between(first, last, 1000)
    assert sorted(body.decode() for _, body in found) == sorted(each["decision_id"] for each in within)
    assert [place for place, _ in found] == sorted(place for place, _ in found)
    assert len(index.bodies_between(first, last, 7)) <= 7
    # Repetitions came, too: an hour's count is at least what it has.
    counts = dict(index.hours_between(first, last))
    assert list(counts) == list(range(first // HOUR_MS, last // HOUR_MS + 1))
    of_rule = [each for each in DECISIONS if "rule:r1" in each["reasons"] and each["decided_time_ms"] >= first]
    frauds, genuine = of_rule[0], of_rule[1:3]
    told = [(frauds, "fraud", 5), (frauds, "genuine", 4), *((each, "genuine", 1) for each in genuine)]
    with index.database.transaction() as transaction:
        index.add_outcomes(
            transaction,
            [
                {"payment_id": each["payment_id"], "outcome_time_ms": time_ms, "label": label, "source": None}
                for each, label, time_ms in told
            ],
        )
    caught = index.rule_catch("r1", first)
    assert (caught.frauds, caught.genuine, caught.fired) == (1, 2, len(of_rule))
    assert (caught.fraud_minor, caught.genuine_minor) == (
        frauds["amount_minor"],
        sum(each["amount_minor"] for each in genuine),
    )
    assert index.outcomes_of({key_hash("payment_id", frauds["payment_id"])}).popitem()[1].label == "fraud"


@given(st.integers(0, 1 << 52), st.integers(-(1 << 63), (1 << 63) - 1), st.text("abcXYZ019-_=/ é", max_size=30))
def test_a_place_is_read_back_and_any_other_text_is_refused(time_ms: int, payment_hash: int, text: str) -> None:
    place = Place(time_ms, payment_hash)
    assert Place.from_text(place.to_text()) == place
    if len(text) != len(place.to_text()):
        with pytest.raises(InvalidEvent, match="after"):
            Place.from_text(text)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action": "refuse"}, "action"),
        ({"score_min": 0.9, "score_max": 0.1}, "score_min"),
        ({"score_max": float("nan")}, "score_max"),
        ({"card_id": "c" * 600}, "card_id"),
        ({"first_ms": -1}, "first_ms"),
        ({"first_ms": 5, "last_ms": 4}, "first_ms"),
    ],
)
def test_a_search_that_makes_no_sense_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        replace(Search(), **changes)
    assert caught.value.field == field


def test_one_process_has_a_duckdb_file_and_another_format_is_refused(tmp_path: Any) -> None:
    database = DuckDbDatabase(tmp_path / "index.duckdb")
    with database.transaction() as transaction:
        transaction.execute("UPDATE facts SET value = '0'")
    database.close()
    with pytest.raises(Misconfigured, match=r"format 0, wanted 3: .* move the file"):
        DuckDbDatabase(tmp_path / "index.duckdb")
    (tmp_path / "text.duckdb").write_text("no database")
    with pytest.raises(Misconfigured, match=r"cannot be opened: .* move the file and its \.wal away"):
        DuckDbDatabase(tmp_path / "text.duckdb")
    # DuckDB waited for ever for a writer.
    os.mkfifo(tmp_path / "pipe.duckdb")
    with pytest.raises(Misconfigured, match="wanted a regular file, or none"):
        DuckDbDatabase(tmp_path / "pipe.duckdb")


def test_a_file_that_another_process_has_names_it_and_what_is_for_several(tmp_path: Any) -> None:
    path = tmp_path / "index.duckdb"
    DuckDbDatabase(path).close()
    script = "import sys, duckdb; held = duckdb.connect(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(
            Misconfigured, match=rf"Conflicting lock .*PID {other.pid}.* for several there is PostgreSQL"
        ):
            DuckDbDatabase(path)
        other.communicate()
    DuckDbDatabase(path).close()
