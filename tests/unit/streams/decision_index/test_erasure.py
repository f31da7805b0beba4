"""Erased records are gone from the index, stay gone over a rebuild, and take nothing else with them."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.streams.alerts.alert_events import EVENTS_TOPIC
from paywarden.streams.decision_index.database import Database, DuckDbDatabase
from paywarden.streams.decision_index.erasure import Erasure
from paywarden.streams.decision_index.filler import TOPICS, add_all
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewSettings
from paywarden.streams.decision_index.search import Search, key_hash
from tests.unit.streams.decision_index.test_index import DECISIONS, OPTIONAL, made

LAST_MS = max(each["decided_time_ms"] for each in DECISIONS)
Record = tuple[str, dict[str, Any]]


def erased(ids: dict[str, str], until_ms: int = LAST_MS) -> Record:
    erasure = Erasure.of(ids, until_ms)
    assert erasure is not None
    return EVENTS_TOPIC, erasure.event("forget").to_record()


def outcome(number: int) -> Record:
    return "outcomes", {"payment_id": f"p{number}", "outcome_time_ms": 9, "label": "fraud", "source": None}


def verdict(number: int) -> Record:
    said = {name: f"{name}{number}" for name in ("verdict_id", "note", "analyst")}
    times = {"turn": 1, "claimed_time_ms": 1, "verdict_time_ms": 2}
    about = {"decision_id": f"d-p{number}", "payment_id": f"p{number}", "verdict": "fraud", "reason": "other"}
    return "verdicts", {**said, **times, **about}


def take(database: Database, records: list[Record], batch: int = 7) -> DecisionIndex:
    """Gives records to an index in batches, as a filler does."""
    index = DecisionIndex(database, worth=lambda amount, _currency, _time: amount)
    queue = ReviewQueue(database, ReviewSettings())
    for start in range(0, len(records), batch):
        decoded: dict[str, list[tuple[dict[str, Any], bytes]]] = {topic: [] for topic in TOPICS}
        for topic, record in records[start : start + batch]:
            decoded[topic].append((record, b"body"))
        with database.transaction() as transaction:
            add_all(index, queue, transaction, decoded)
    return index


def rows_with(database: Database, payment_ids: set[str]) -> int:
    """Returns how many rows of any table are about these payments."""
    hashes = ", ".join(str(key_hash("payment_id", payment_id)) for payment_id in payment_ids)
    tables = [*database.tables_by_time(), "verdicts"]
    with database.reading() as transaction:
        return sum(
            transaction.execute(f"SELECT count(*) FROM {table} WHERE payment_hash IN ({hashes})")[0][0]
            for table in tables
        )


def test_a_forgotten_card_is_gone_with_all_that_is_about_it_and_a_rebuild_keeps_it_so(database: Database) -> None:
    about = [*(outcome(number) for number in (1, 2, 8)), *(verdict(number) for number in (1, 2, 8))]
    decisions: list[Record] = [("decisions", each) for each in DECISIONS[:120]]
    index = take(database, [*decisions[:60], *about, *decisions[40:]])
    database.tidy(at_least=1)
    gone = {each["payment_id"] for each in DECISIONS[:120] if each["card_id"] == "c1"}
    assert {"p1", "p8"} <= gone
    assert rows_with(database, gone) > 0
    others = {row.payment_id for row in index.search(Search(), count=200).rows} - gone
    take(database, [erased({"card_id": "c1"})])

    def is_gone() -> None:
        assert rows_with(database, gone) == 0
        assert index.search(Search(card_id="c1")).rows == []
        assert index.search(Search(payment_id="p8")).rows == []
        assert {row.payment_id for row in index.search(Search(), count=200).rows} == others
        assert rows_with(database, {"p2"}) > 0

    is_gone()
    index.empty()
    # The index itself remembers, before it has read the event again.
    take(database, [*decisions, *about])
    is_gone()
    index.empty()
    # A rebuild reads the topics in any order: outcomes and verdicts before their decisions, too.
    take(database, [*about, *decisions, erased({"card_id": "c1"}), *about])
    is_gone()
    # After the erasure the card may pay again.
    take(database, [("decisions", made(8, payment_id="new", decided_time_ms=LAST_MS + 1))])
    assert [row.payment_id for row in index.search(Search(card_id="c1")).rows] == ["new"]


def test_a_combination_erases_what_has_both_and_nothing_else(database: Database) -> None:
    index = take(database, [("decisions", each) for each in DECISIONS[:120]])
    take(database, [erased({"card_id": "c1", "merchant_id": "m2"}, DECISIONS[80]["decided_time_ms"])])
    left = {row.payment_id for row in index.search(Search(), count=200).rows}
    assert left == {
        each["payment_id"]
        for each in DECISIONS[:120]
        if (each["card_id"], each["merchant_id"]) != ("c1", "m2")
        or each["decided_time_ms"] > DECISIONS[80]["decided_time_ms"]
    }
    assert Erasure.of({"card_id": "c", "buyer": "b"}, 1) is None


def test_a_verdict_that_is_not_on_its_topic_goes_when_it_is(database: Database) -> None:
    reviewed = made(8, action="review", score=0.6)
    index = take(database, [("decisions", reviewed)])
    queue = ReviewQueue(database, ReviewSettings())
    claim = queue.claim("ann", reviewed["decided_time_ms"])
    assert claim is not None
    queue.decide("ann", claim.token, "fraud", "other", "", reviewed["decided_time_ms"])
    take(database, [erased({"card_id": "c1"})])
    unsent = queue.unsent(10)
    assert [said.payment_id for said in unsent] == ["p8"]
    queue.mark_sent(unsent)
    index.expire(0)
    assert queue.verdicts_of(reviewed["decision_id"]) == []


IDS = st.sampled_from(["a", "b"])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(IDS, IDS, st.integers(0, 5)), max_size=12),
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from(["card_id", "merchant_id"]), IDS, min_size=1), st.integers(0, 5))
    ),
    st.randoms(use_true_random=False),
)
def test_any_order_of_decisions_and_erasures_leaves_the_same(
    payments: list[tuple[str, str, int]], erasures: list[tuple[dict[str, str], int]], random: Any
) -> None:
    decisions = [
        {**made(0), **OPTIONAL, "payment_id": f"p{number}", "decision_id": f"d{number}"}
        | {"card_id": card, "merchant_id": merchant, "decided_time_ms": time_ms}
        for number, (card, merchant, time_ms) in enumerate(payments)
    ]
    records: list[Record] = [("decisions", each) for each in decisions]
    records += [erased(ids, until_ms) for ids, until_ms in erasures]
    random.shuffle(records)
    expected = {
        each["payment_id"]
        for each in decisions
        if not any(
            each["decided_time_ms"] <= until_ms and all(each[name] == value for name, value in ids.items())
            for ids, until_ms in erasures
        )
    }
    with tempfile.TemporaryDirectory() as folder, closing(DuckDbDatabase(Path(folder) / "index.duckdb")) as database:
        index = take(database, records, 3)
        assert {row.payment_id for row in index.search(Search(), count=100).rows} == expected


@pytest.mark.parametrize("changes", [{"kind": "commented"}, {"what": {"card_id": "not hex"}}, {"what": {"other": "1"}}])
def test_other_events_erase_nothing(changes: dict[str, Any]) -> None:
    _, record = erased({"card_id": "c1"})
    made_of = Erasure.of_event(record)
    assert made_of is not None
    assert made_of == replace(made_of, until_ms=LAST_MS)
    assert Erasure.of_event({**record, **changes}) is None
    assert "c1" not in str(record["what"])


@pytest.mark.parametrize("text", ["", "f" * 17, "-5", "5f0c", "0x5f0c5f0c5f0c5f", "5F0C5F0C5F0C5F0C", "card-1"])
def test_an_erasure_that_names_no_hash_erases_nothing(database: Database, text: str) -> None:
    record = {"kind": "erased", "what": {"card_id": text}, "time_ms": LAST_MS, "subject": "erased:1"}
    index = take(database, [("decisions", DECISIONS[0]), (EVENTS_TOPIC, record)])
    assert len(index.search(Search()).rows) == 1
