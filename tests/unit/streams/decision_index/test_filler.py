"""An index is filled from topics and archives: nothing twice, nothing lost, and missing records are reported."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, TemporaryFailure
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.decision_index import filler as filler_module
from paywarden.streams.decision_index.database import Database, IndexUnavailable, Transaction
from paywarden.streams.decision_index.filler import (
    ASK_EVERY_MS,
    FRESH_MS,
    UPKEEP_EVERY_MS,
    IndexFiller,
    fill_from_archive,
)
from paywarden.streams.decision_index.index import HOUR_MS, DecisionIndex, SourcePlace
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.decision_index.search import Search
from paywarden.streams.kafka.reading import Consumed
from paywarden.streams.kafka.topic_identity import IdentityWatch
from tests.fakes.kafka import FakeAdmin, FakeBroker, FakeConsumer, clients_of
from tests.fakes.topic_memory import MemoryTopic
from tests.unit.streams.decision_index.test_index import made

IDS = LocalSchemaIds()
ENCODERS = {name: Encoder(name, IDS.id_of(name)) for name in ("decisions", "outcomes", "verdicts")}


def put(broker: FakeBroker, topic: str, record: dict[str, Any], time_ms: int = 5) -> None:
    broker.append((topic, 0), ENCODERS[topic].encode(record), time_ms)


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    for number in range(20):
        put(broker, "decisions", made(number), 100 + number)
    broker.append(("decisions", 0), b"no decision", 130)
    put(broker, "outcomes", {"payment_id": "p3", "outcome_time_ms": 9, "label": "fraud"})
    return broker


def parts(database: Database) -> tuple[DecisionIndex, ReviewQueue]:
    return DecisionIndex(database, worth=lambda amount, _c, _t: amount), ReviewQueue(database, ReviewRules())


def filler_of(database: Database, broker: FakeBroker, consumers: int = 3) -> IndexFiller:
    clients = clients_of(broker, consumers=[FakeConsumer(broker) for _ in range(consumers)], admin=FakeAdmin(broker))
    return IndexFiller(*parts(database), clients, IDS, now_ms=lambda: 1_000)


def test_decisions_outcomes_and_reviews_come_in_and_the_index_says_so(database: Database, broker: FakeBroker) -> None:
    filler = filler_of(database, broker)
    assert filler.state.line()
    while filler.step():
        pass
    index, queue = parts(database)
    rows = index.search(Search(), count=100).rows
    assert {row.payment_id for row in rows} == {f"p{number}" for number in range(20)}
    assert [row.outcome.label for row in rows if row.outcome] == ["fraud"]
    asked = {row.decision_id for row in rows if row.action == "review" and row.outcome is None}
    assert {each.decision_id for each in queue.waiting(rows[0].decided_time_ms)[0]} == asked
    assert (filler.state.line(), filler.state.undecoded, filler.state.read_ms) == ("", 1, 1_000)
    assert index.sources("decisions")[0] == SourcePlace("decisions", 0, 21, "id-of-decisions", 0, 130)


def test_an_index_that_is_seconds_behind_is_not_told_to_be_filled(database: Database) -> None:
    """Where payments never pause a reader is hardly ever at the end, and pages said so all the time."""
    broker, now_ms = FakeBroker(), 100_000
    filler = filler_of(database, broker)
    filler._now_ms = lambda: now_ms
    for number, (age_ms, is_told) in enumerate(((FRESH_MS + 1, True), (FRESH_MS, False))):
        put(broker, "decisions", made(number), now_ms - age_ms)
        while filler.step():
            pass
        # More has come, and is not read yet.
        filler._unread = {("decisions", 0)}
        filler.step()
        assert (filler.state.is_caught_up, bool(filler.state.line())) == (False, is_told)


def test_upkeep_waits_for_a_fresh_index_and_holds_nothing_up(
    database: Database, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise TemporaryFailure("Kafka is away")

    filler, now_ms = filler_of(database, broker), 10_000
    filler._now_ms, filler._upkeep = lambda: now_ms, (fail, partial(done.append, "ledger"))
    filler.keep_up()
    assert done == []
    while filler.step():
        pass
    for _ in range(3):
        filler.keep_up()
    now_ms += UPKEEP_EVERY_MS
    filler.keep_up()
    assert done == ["ledger", "ledger"]
    assert [record.message for record in caplog.records if "upkeep" in record.message] == [
        "upkeep of the index: Kafka is away"
    ]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_fresh_index_purges_erased_rows_at_most_once_an_hour(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    purged: list[int] = []
    filler, now_ms = filler_of(database, broker), 10_000
    filler._now_ms = lambda: now_ms

    def purge() -> bool:
        purged.append(now_ms)
        if is_full:
            raise TemporaryFailure("the disk is full")
        return len(purged) > 1

    monkeypatch.setattr(database, "purge", purge)
    while filler.step():
        pass
    for _ in range(2 * HOUR_MS // UPKEEP_EVERY_MS):
        filler.keep_up()
        now_ms += UPKEEP_EVERY_MS
    # Without erased rows it asks again soon; after a purge or an error an hour later.
    first = [10_000] if is_full else [10_000, 10_000 + UPKEEP_EVERY_MS]
    assert purged == [*first, first[-1] + HOUR_MS]


def test_kafka_that_goes_away_behind_the_last_record_is_told(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader at the ends of its topics read nothing more, and pages said for as long that nothing was missing."""
    filler, now_ms = filler_of(database, broker), 100_000
    filler._now_ms = lambda: now_ms
    while filler.step():
        pass
    filler.step()
    assert (filler.state.line(), filler.state.read_ms) == ("", 100_000)

    def gone(*_: object) -> tuple[int, int]:
        raise BrokerUnavailable("no Kafka broker answers")

    monkeypatch.setattr("paywarden.streams.decision_index.filler.watermarks", gone)
    monkeypatch.setattr(
        "paywarden.streams.decision_index.filler.consume_when_there", lambda *_: Consumed([], {}, is_all=True)
    )
    now_ms += ASK_EVERY_MS - 1
    filler.step()
    assert filler.state.line() == ""
    now_ms += 1
    with pytest.raises(BrokerUnavailable):
        filler.step()
    assert "no Kafka broker answers" in filler.state.line()
    assert (filler.state.trouble_since_ms, filler.state.read_ms) == (now_ms, 100_000)


def test_a_batch_that_fails_halfway_is_read_again_and_counts_once(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = filler_of(database, broker)
    add = ReviewQueue.add_decisions

    def dies(self: ReviewQueue, transaction: Transaction, *rest: Any) -> None:
        add(self, transaction, *rest)
        monkeypatch.undo()
        raise TemporaryFailure("died before the end of the transaction")

    monkeypatch.setattr(ReviewQueue, "add_decisions", dies)
    with pytest.raises(TemporaryFailure):
        filler.step()
    assert "died" in filler.state.line()
    assert filler.state.trouble_since_ms == 1_000
    index, _ = parts(database)
    assert index.count() == 0
    while filler.step():
        pass
    assert (index.count(), filler.state.line()) == (20, "")
    # Another process goes on behind it.
    put(broker, "decisions", made(20))
    later = filler_of(database, broker)
    assert later.step() == 1
    assert index.count() == 21


def test_two_consoles_on_one_index_add_each_record_once(database: Database, broker: FakeBroker) -> None:
    index, _ = parts(database)
    both = [filler_of(database, broker, 20), filler_of(database, broker, 20)]
    for number in range(20, 26):
        for filler in both:
            filler.step()
        put(broker, "decisions", made(number))
    for filler in (*both, *both, *both):
        filler.step()
    assert index.count() == 26
    assert index.sources("decisions")[0].next_offset == 27


def test_expired_records_are_counted_for_ever(database: Database, broker: FakeBroker) -> None:
    filler = filler_of(database, broker)
    while filler.step():
        pass
    for number in range(20, 40):
        put(broker, "decisions", made(number))
    broker.begins["decisions", 0] = 30
    later = filler_of(database, broker)
    for _ in range(4):
        later.step()
    index, _ = parts(database)
    assert index.sources("decisions")[0].missing == 9
    assert index.count() == 20 + 11


def test_a_topic_that_was_made_anew_is_refused_until_a_rebuild(database: Database, broker: FakeBroker) -> None:
    filler_of(database, broker).step()
    broker.topic_ids["decisions"] = "another"
    with pytest.raises(Misconfigured, match="--rebuild"):
        filler_of(database, broker).step()
    parts(database)[0].empty()
    assert filler_of(database, broker).step() > 0


def test_a_topic_that_is_made_anew_while_it_is_read_is_refused_too(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index went on at its next offset in the new topic, and lacked the records before it without a word."""
    monkeypatch.setattr(filler_module, "IdentityWatch", partial(IdentityWatch, ask_every_s=0.0))
    filler = filler_of(database, broker)
    while filler.step():
        pass
    broker.topic_ids["decisions"] = "another"
    for number in range(40):
        put(broker, "decisions", made(100 + number), 200)
    # It asks, and looks at the answer when it has come.
    filler.step()
    with pytest.raises(Misconfigured, match="topic decisions was deleted and created again"):
        filler.step()
    assert "created again" in filler.state.trouble
    with pytest.raises(Misconfigured, match="--rebuild"):
        filler.step()


def test_an_archive_gives_the_same_index_as_the_topic(database: Database, tmp_path: Path) -> None:
    decisions = [made(number) for number in range(30)]
    topic = MemoryTopic("decisions", batch=10)
    for number, each in enumerate(decisions):
        topic.append(number % 2, each, 100 + number)
    archiver = Archiver(topic, IDS, "decisions", tmp_path)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    index, queue = parts(database)
    assert fill_from_archive(index, queue, tmp_path) == 30
    assert fill_from_archive(index, queue, tmp_path) == 0
    rows = index.search(Search(), count=100).rows
    assert {row.decision_id for row in rows} == {each["decision_id"] for each in decisions}
    bodies = index.bodies([row.place for row in rows[:3]])
    encoded = {each["decision_id"]: ENCODERS["decisions"].encode(each) for each in decisions}
    assert bodies == {name: encoded[name] for name in bodies}


def test_an_index_is_filled_from_a_sealed_archive_but_for_erased_cards(database: Database, tmp_path: Path) -> None:
    decisions = [made(number) for number in range(30)]
    decisions_topic, outcomes_topic = MemoryTopic("decisions", batch=10), MemoryTopic("outcomes")
    for number, each in enumerate(decisions):
        decisions_topic.append(0, each, 100 + number)
        outcome = {"payment_id": each["payment_id"], "outcome_time_ms": each["decided_time_ms"], "label": "fraud"}
        outcomes_topic.append(0, outcome, 200 + number)
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    for topic in (decisions_topic, outcomes_topic):
        archiver = Archiver(topic, IDS, topic.name, tmp_path / "archive", keys=keys)
        archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    erased = decisions[0]["card_id"]
    keys.destroy(erased, 1000)
    rest = [each for each in decisions if each["card_id"] != erased]
    index, queue = parts(database)
    assert fill_from_archive(index, queue, tmp_path / "archive") == 2 * len(rest)
    rows = index.search(Search(), count=100).rows
    assert {row.decision_id for row in rows} == {each["decision_id"] for each in rest}
    assert all(row.outcome is not None for row in rows)


def test_trouble_that_lasts_is_logged_once_and_so_is_its_end(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the console's log got a line every two seconds."""
    caplog.set_level(logging.INFO)
    filler, stop = filler_of(database, broker), Event()
    steps = 0

    def step(_: float = 0.0) -> int:
        nonlocal steps
        steps += 1
        if steps > 7:
            stop.set()
        if steps < 4 or steps == 6:
            raise TemporaryFailure("no space left on device" if steps < 4 else "away")
        return 0

    monkeypatch.setattr(filler, "step", step)
    filler.run(stop, retry_s=0.0)
    assert [record.message for record in caplog.records if "index of decisions" in record.message] == [
        "index of decisions: no space left on device",
        "index of decisions: it is filled again",
        "index of decisions: away",
        "index of decisions: it is filled again",
    ]


def test_a_database_that_takes_nothing_is_told_although_no_record_comes(
    database: Database, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB's file was removed under a console on a quiet topic: no page said so until the next write."""
    filler, told, stop = filler_of(database, broker, consumers=9), [], Event()
    while filler.step():
        pass
    is_away = True

    def tidy(*, at_least: int) -> None:
        del at_least
        told.append((filler.state.trouble, filler.state.is_index_away))
        if len(told) > 3:
            stop.set()
        if is_away:
            raise IndexUnavailable("the index was removed while it was open")

    monkeypatch.setattr(database, "tidy", tidy)
    filler.run(stop, retry_s=0.0)
    assert told[1:] == [("the index was removed while it was open", True)] * 3
    is_away = False
    stop.clear()
    filler.run(stop, retry_s=0.0)
    filler.step()
    assert (filler.state.trouble, filler.state.is_index_away) == ("", False)
