"""The tallies equal a recount of the decisions after anything that happens to an index, on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.tallies import DAY_MS, SUMS
from tests.unit.streams.decision_index.test_episodes import START_MS, made
from tests.unit.streams.decision_index.test_erasure import Record, erased, take

Tallies = dict[tuple[Any, ...], list[int]]
PAYMENTS, DAYS, STEPS = 40, 5, 50


def tallies(database: Database) -> Tallies:
    with database.reading() as transaction:
        assert transaction.execute("SELECT * FROM tally_changes") == []
        rows = transaction.execute("SELECT * FROM tallies")
    found = {tuple(row[:5]): list(row[5:]) for row in rows}
    assert len(found) == len(rows)
    return found


def recounted(database: Database) -> Tallies:
    """Returns what the tallies should be, from the rows of decisions and outcomes, one after the other."""
    with database.reading() as transaction:
        outcomes = transaction.execute("SELECT payment_hash, outcome_time_ms, label FROM outcomes")
        decisions = transaction.execute(
            "SELECT decided_time_ms, payment_hash, merchant_id, country, currency, channel, worth_minor, action "
            "FROM decisions"
        )
    labels = {payment: label for payment, _, label in sorted(outcomes, key=lambda row: row[1:])}
    payments: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    for time_ms, payment, *row in decisions:
        payments.setdefault((time_ms // DAY_MS * DAY_MS, payment), []).append(tuple(row))
    counted: Tallies = {}
    for (begin_ms, payment), rows in payments.items():
        merchant, country, currency, channel = (min(row[place] for row in rows) for place in range(4))
        worth, is_declined = max(row[4] or 0 for row in rows), min(row[5] for row in rows) == 2
        label = labels.get(payment)
        taken = 0 if is_declined else worth
        one = [1, is_declined, taken, label == "fraud", taken * (label == "fraud")]
        one += [is_declined and label is not None, is_declined and label == "genuine"]
        for name in (merchant, ""):
            total = counted.setdefault((begin_ms, name, country, currency, channel), [0] * len(SUMS))
            total[:] = (old + int(new) for old, new in zip(total, one, strict=True))
    return counted


def some_decision(chance: random.Random) -> Record:
    """Returns a decision about one of PAYMENTS. Its ids have few values, so decisions repeat and contradict others."""
    number, day = chance.randrange(PAYMENTS), chance.randrange(DAYS)
    changes = {
        "decision_id": f"d{chance.randrange(3 * PAYMENTS)}",
        "decided_time_ms": START_MS + day * DAY_MS + number * 1_000 + chance.randrange(2) * 7_200_000,
        "card_id": f"c{number % 7}",
        "merchant_id": f"m{chance.choice((number, number, number + 1)) % 5}",
        "country": chance.choice(("BR", None)),
        "amount_minor": 100 + number,
        "action": chance.choice(("approve", "review", "decline")),
    }
    return "decisions", made(number, 0, **changes)


def some_outcome(chance: random.Random) -> Record:
    """Returns an outcome, also of payments without a decision so far."""
    told = {"payment_id": f"p{chance.randrange(PAYMENTS)}", "label": chance.choice(("fraud", "genuine"))}
    time_ms = START_MS + 9 * DAY_MS + chance.randrange(4)
    return "outcomes", told | {"outcome_time_ms": time_ms, "source": "chargeback"}


def killed(database: Database, records: list[Record]) -> None:
    """Adds records in a transaction that does not reach its end."""
    with suppress(ZeroDivisionError), database.transaction() as transaction:
        index = DecisionIndex(database)
        index.add_outcomes(transaction, [record for topic, record in records if topic == "outcomes"])
        raise ZeroDivisionError


class World:
    """An index that is opened again and again."""

    def __init__(self, database: Database, again: Any) -> None:
        self.database, self._again = database, again

    def restart(self) -> None:
        self.database.close()
        self.database = self._again()


@pytest.fixture
def world(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[World]:
    def again() -> Database:
        if isinstance(database, PostgresDatabase):
            return PostgresDatabase(request.getfixturevalue("postgres").address, schema=database._schema)
        return DuckDbDatabase(tmp_path / "index.duckdb")

    opened = World(database, again)
    yield opened
    with closing(opened.database):
        pass


@pytest.mark.parametrize("seed", range(3))
def test_tallies_equal_a_recount_whatever_happens(world: World, seed: int) -> None:
    chance = random.Random(seed)
    sent: list[Record] = []
    for _ in range(STEPS):
        act = chance.choice(("add", "add", "add", "again", "kill", "restart", "erase", "tidy", "purge", "expire"))
        fresh = [chance.choice((some_decision, some_outcome))(chance) for _ in range(chance.randrange(1, 12))]
        if act == "add":
            take(world.database, fresh)
            sent += fresh
        elif act == "again" and sent:
            take(world.database, chance.sample(sent, min(len(sent), 10)))
        elif act == "kill":
            killed(world.database, fresh)
        elif act == "restart":
            world.restart()
        elif act == "erase" and chance.random() < 0.4:
            ids = chance.choice(({"card_id": f"c{chance.randrange(7)}"}, {"merchant_id": f"m{chance.randrange(5)}"}))
            take(world.database, [erased(ids, START_MS + chance.randrange(DAYS * DAY_MS))])
        elif act == "tidy":
            world.database.tidy(at_least=1)
        elif act == "purge":
            world.database.purge()
        elif act == "expire" and chance.random() < 0.2:
            DecisionIndex(world.database).expire(START_MS + chance.randrange(2 * DAY_MS))
        assert tallies(world.database) == recounted(world.database), act
    assert sent


def test_an_erased_merchant_leaves_no_row_and_a_rebuild_gives_the_same_tallies(database: Database) -> None:
    chance = random.Random(9)
    records = [some_decision(chance) for _ in range(80)] + [some_outcome(chance) for _ in range(40)]
    take(database, records)
    index = take(database, [erased({"merchant_id": "m1"}, START_MS + 9 * DAY_MS)])
    before = tallies(database)
    assert before
    assert "m1" not in {key[1] for key in before}
    index.empty()
    assert tallies(database) == {}
    take(database, records[::-1])
    assert tallies(database) == before == recounted(database)
