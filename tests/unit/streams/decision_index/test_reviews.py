"""The review queue: nobody holds what another holds, and a verdict that was given is never lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent
from paywarden.streams.decision_index.database import Database, DuckDbDatabase, IndexUnavailable, PostgresDatabase
from paywarden.streams.decision_index.filler import VerdictSender
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.reviews import (
    ClaimLost,
    ReviewQueue,
    ReviewSettings,
    agreement_of,
)
from paywarden.streams.decision_index.routing import VERDICTS
from tests.fakes.kafka import FakeBroker, clients_of
from tests.services.servers.postgres import PostgresServer
from tests.unit.streams.decision_index.test_index import made

NOW_MS = 1_704_200_000_000
HOUR_MS = 3_600_000
SETTINGS = ReviewSettings(claim_ms=1000, second_share=0.0)


def queue_of(database: Database, worths: dict[str, int], settings: ReviewSettings = SETTINGS) -> ReviewQueue:
    """A queue with payments of these amounts, each an hour old."""
    queue = ReviewQueue(database, settings)
    asked = [
        made(0, payment_id=name, decision_id=f"d-{name}", action="review", decided_time_ms=NOW_MS - HOUR_MS, score=0.05)
        for name in worths
    ]
    with database.transaction() as transaction:
        queue.add_decisions(transaction, [*asked, made(1, action="approve")], [*worths.values(), 9])
        queue.add_decisions(transaction, asked, list(worths.values()))
    return queue


def test_the_look_that_gains_most_comes_first_and_age_counts(database: Database) -> None:
    queue = queue_of(database, {"small": 100, "large": 900, "middle": 500})
    old = made(5, payment_id="old", decision_id="d-old", action="review", score=0.05)
    sure = made(6, payment_id="sure", decision_id="d-sure", action="review", score=0.8)
    with database.transaction() as transaction:
        queue.add_decisions(transaction, [old | {"decided_time_ms": NOW_MS - 80 * HOUR_MS}], [260])
        queue.add_decisions(transaction, [sure | {"decided_time_ms": NOW_MS - HOUR_MS}], [10_000])
    first, total = queue.waiting(NOW_MS)
    # Gains are 0.033 of the amounts; no verdict about the sure one would change what happens to it.
    assert [(each.payment_id, each.gain_minor) for each in first] == [
        ("old", 9), ("large", 30), ("middle", 16), ("small", 3), ("sure", 0)
    ]  # fmt: skip
    assert (first[-1].stake_minor, total) == (8_000, 5)
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    assert claim.waiting.payment_id == "old"


def test_analysts_are_measured_by_outcomes_that_are_not_their_own(database: Database) -> None:
    queue, index = queue_of(database, {f"p{number}": 900 - number for number in range(30)}), DecisionIndex(database)
    verdicts = []
    while (claim := queue.claim("ann", NOW_MS)) is not None:
        verdicts.append(queue.decide("ann", claim.token, "genuine", "other", "", NOW_MS + 1).payment_id)
    assert queue.measured(NOW_MS).share("fraud", "genuine") == 0.1
    outcomes = [
        {"payment_id": payment_id, "outcome_time_ms": NOW_MS + time, "label": label, "source": source}
        for number, payment_id in enumerate(verdicts)
        for time, label, source in (
            # Ten of an analyst, ten that were corrected, and ten chargebacks.
            [(0, "fraud", "analyst")], [(0, "genuine", "issuer"), (1, "fraud", "chargeback")], [(0, "fraud", None)]
        )[number % 3]
    ]  # fmt: skip
    with database.transaction() as transaction:
        index.add_outcomes(transaction, outcomes)
    assert queue.measured(NOW_MS + 599_999).share("fraud", "genuine") == 0.1
    later = queue.measured(NOW_MS + 600_000)
    assert later.share("fraud", "genuine") == (2 + 20) / (20 + 20)
    assert later.share("genuine", "genuine") == 16 / 20
    # Verdicts that say little make a look worth little.
    assert queue.gain_sql(NOW_MS + 600_000) != queue_of(database, {}).gain_sql(0)


def test_two_analysts_never_hold_one_payment(database: Database) -> None:
    # Four analysts at each payment.
    count = 250 if database.name == "PostgreSQL" else 50
    queue = queue_of(database, {f"p{number}": 1000 - number for number in range(count)})
    start = threading.Barrier(4)

    def race(analyst: str) -> list[str]:
        start.wait()
        held = []
        for number in range(count):
            claim = queue.claim(analyst, NOW_MS)
            if claim is None:
                break
            held.append(claim.waiting.payment_id)
            queue.decide(analyst, claim.token, VERDICTS[number % 3], "other", "", NOW_MS + 1)
        return held

    with ThreadPoolExecutor(4) as pool:
        held = [each for of_one in pool.map(race, ("ann", "ben", "cem", "dee")) for each in of_one]
    assert sorted(held) == sorted(f"p{number}" for number in range(count))
    assert queue.waiting(NOW_MS)[1] == 0
    assert sum(each.verdicts for each in queue.throughput(0)) == count


def test_a_claim_expires_and_its_verdict_is_refused_then(database: Database) -> None:
    queue = queue_of(database, {"p": 1})
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    assert queue.claim("ben", NOW_MS + 999) is None
    again = queue.claim("ann", NOW_MS + 500)
    assert again is not None
    assert (again.token, again.until_ms) == (claim.token, NOW_MS + 1500)
    taken = queue.claim("ben", NOW_MS + 1500)
    assert taken is not None
    with pytest.raises(ClaimLost):
        queue.decide("ann", claim.token, "fraud", "other", "", NOW_MS + 1501)
    with pytest.raises(ClaimLost):
        queue.decide("ann", taken.token, "fraud", "other", "", NOW_MS + 1501)
    queue.release("ben", taken.token)
    assert queue.claim("cem", NOW_MS + 1502) is not None


def test_a_form_sent_twice_is_one_verdict(database: Database) -> None:
    queue = queue_of(database, {"p": 1})
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    wrong = {"verdict": ("no", "other", ""), "reason": ("fraud", "no", ""), "note": ("fraud", "other", "x" * 2001)}
    for field, (verdict, reason, note) in wrong.items():
        with pytest.raises(InvalidEvent, match=field):
            queue.decide("ann", claim.token, verdict, reason, note, NOW_MS + 1)
    first = queue.decide("ann", claim.token, "fraud", "other", "n\0te", NOW_MS + 1)
    assert queue.decide("ann", claim.token, "fraud", "other", "", NOW_MS + 2).verdict_id == first.verdict_id
    with pytest.raises(ClaimLost):
        queue.decide("ann", claim.token, "genuine", "other", "", NOW_MS + 2)
    assert len(queue.verdicts_of("d-p")) == 1


def test_a_second_review_is_somebody_elses_and_gives_agreement(database: Database) -> None:
    queue = queue_of(database, {"p": 1}, ReviewSettings(claim_ms=1000, second_share=1.0))
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    queue.decide("ann", claim.token, "fraud", "other", "", NOW_MS + 1)
    assert queue.claim("ann", NOW_MS + 2) is None
    second = queue.claim("ben", NOW_MS + 2)
    assert second is not None
    assert second.waiting.turn == 2
    assert queue.verdicts_for("d-p", "ben") == []
    assert len(queue.verdicts_for("d-p", "ann")) == 1
    queue.decide("ben", second.token, "genuine", "other", "", NOW_MS + 3)
    assert queue.claim("cem", NOW_MS + 4) is None
    assert len(queue.verdicts_for("d-p", "cem")) == 2
    agreement = queue.agreement(0)
    assert (agreement.pairs, agreement.equal) == (1, 0)


def test_an_outcome_and_a_verdict_from_elsewhere_take_a_payment_out(database: Database) -> None:
    queue = queue_of(database, {"p": 1, "q": 1, "r": 1})
    claim = queue.claim("ann", NOW_MS, decision_id="d-p")
    assert claim is not None
    said = queue.decide("ann", claim.token, "fraud", "other", "", NOW_MS + 1)
    elsewhere = said.record() | {"verdict_id": "x", "decision_id": "d-q", "payment_id": "q"}
    later = elsewhere | {"verdict_id": "y", "decision_id": "d-late", "payment_id": "late"}
    with database.transaction() as transaction:
        queue.add_verdicts(transaction, [said.record(), elsewhere, elsewhere, later])
        queue.add_outcomes(transaction, [{"payment_id": "r"}])
        # The verdict of another console comes before the decision it is about.
        late = made(7, payment_id="late", decision_id="d-late", action="review", decided_time_ms=NOW_MS)
        queue.add_decisions(transaction, [late], [5])
    assert queue.waiting(NOW_MS) == ([], 0)
    # The verdicts that this database sends, without those of others.
    assert [each.verdict_id for each in queue.unsent(10)] == [said.verdict_id]


def test_kappa_is_agreement_beyond_chance() -> None:
    pairs = {("fraud", "fraud"): 40, ("genuine", "genuine"): 40, ("fraud", "genuine"): 10, ("genuine", "fraud"): 10}
    told = agreement_of(pairs)
    assert (told.pairs, told.equal) == (100, 80)
    assert told.kappa == pytest.approx(0.6)
    assert agreement_of({("fraud", "fraud"): 9}).kappa is None


def test_a_verdict_is_no_outcome(database: Database) -> None:
    queue, index = queue_of(database, {"p1": 1}), DecisionIndex(database)
    with database.transaction() as transaction:
        index.add_decisions(transaction, [Stored(made(1), b"")])
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    queue.decide("ann", claim.token, "fraud", "other", "", NOW_MS + 1)
    assert [row.outcome for row in index.about("p1")] == [None]


# Nothing is lost


class FakeSender:
    """Takes records, and, set to fail, loses records that are not flushed."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.fails = False

    def send(self, topic: str, value: bytes, *, key: bytes) -> None:
        assert topic == "verdicts"
        assert key
        self.sent.append(value)

    def flush(self, timeout_s: float) -> None:
        del timeout_s
        if self.fails:
            raise BrokerUnavailable("gone")


def test_verdicts_are_sent_until_the_broker_has_them_and_not_again(database: Database) -> None:
    queue = queue_of(database, {"p": 1})
    claim = queue.claim("ann", NOW_MS)
    assert claim is not None
    said = queue.decide("ann", claim.token, "fraud", "cardholder_denied", "called", NOW_MS + 1)
    fake = FakeSender()
    ids = LocalSchemaIds()
    sender = VerdictSender(queue, clients_of(FakeBroker(), sender=fake), ids)
    fake.fails = True
    with pytest.raises(BrokerUnavailable):
        sender.step()
    fake.fails = False
    assert sender.step() == 1
    assert sender.step() == 0
    decoder = Decoder("verdicts", ids)
    assert [decoder.decode(value) for value in fake.sent] == [said.record()] * 2


_ANALYST = """
import sys
from pathlib import Path
from paywarden.streams.decision_index.database import DuckDbDatabase, PostgresDatabase
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewSettings
kind, where, schema = sys.argv[1:]
database = DuckDbDatabase(Path(where)) if kind == "DuckDB" else PostgresDatabase(where, schema=schema)
queue = ReviewQueue(database, ReviewSettings(second_share=0.0))
while claim := queue.claim("ann", {now}):
    said = queue.decide("ann", claim.token, "fraud", "other", "", {now} + 1)
    print(said.verdict_id, flush=True)
""".replace("{now}", str(NOW_MS))


@pytest.mark.parametrize("kind", ["DuckDB", "PostgreSQL"])
def test_kill_9_of_console_and_database_loses_no_verdict(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file, schema = tmp_path / "index.duckdb", "killed"
    server: PostgresServer | None = request.getfixturevalue("postgres") if kind == "PostgreSQL" else None

    def opened() -> Database:
        return DuckDbDatabase(file) if server is None else PostgresDatabase(server.address, schema=schema)

    database = opened()
    queue_of(database, {f"p{number}": 1 for number in range(500)})
    database.close()
    where = str(file) if server is None else server.address
    analyst = subprocess.Popen(
        [sys.executable, "-c", _ANALYST, kind, where, schema], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert analyst.stdout is not None
    told = [analyst.stdout.readline() for _ in range(8)]
    if server is not None:
        server.kill()
        # The client of a dead server ends by itself, with an error.
        told += analyst.stdout.readlines()
        analyst.wait()
        server.start()
    else:
        analyst.kill()
        told += analyst.stdout.readlines()
        analyst.wait()
    analyst.stdout.close()
    assert all(told)
    database = opened()
    unsent: list[Any] = ReviewQueue(database, SETTINGS).unsent(500)
    database.close()
    assert {line.decode().strip() for line in told} <= {said.verdict_id for said in unsent}
    assert len(unsent) <= len(told) + 1


def test_an_index_whose_file_is_gone_takes_no_verdict_and_sends_what_it_has_once(tmp_path: Path) -> None:
    """DuckDB went on in the file without a name: verdicts that analysts saw kept were gone with the process."""
    path = tmp_path / "index.duckdb"
    database = DuckDbDatabase(path)
    queue = queue_of(database, {"p1": 900, "p2": 800})
    first, second = queue.claim("ann", NOW_MS), queue.claim("ben", NOW_MS)
    assert first is not None
    assert second is not None
    queue.decide("ann", first.token, "fraud", "known_pattern", "", NOW_MS)
    moved = path.rename(tmp_path / "elsewhere.duckdb")
    with pytest.raises(IndexUnavailable, match="was removed or replaced while it was open"):
        queue.decide("ben", second.token, "fraud", "known_pattern", "", NOW_MS)
    fake = FakeSender()
    sender = VerdictSender(queue, clients_of(FakeBroker(), sender=fake), LocalSchemaIds())
    for _ in range(3):
        with pytest.raises(IndexUnavailable):
            sender.step()
    assert len(fake.sent) == 1
    moved.rename(path)
    queue.decide("ben", second.token, "fraud", "known_pattern", "", NOW_MS)
    sender.step()
    assert len(fake.sent) == 2
    assert queue.unsent(10) == []
    database.close()
