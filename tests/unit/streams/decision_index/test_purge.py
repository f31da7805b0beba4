"""After a purge the index's file has no byte of forgotten cards, and everything else is as before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paywarden.streams.decision_index import database as module
from paywarden.streams.decision_index.database import Database, DuckDbDatabase, IndexUnavailable
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from tests.patience import PATIENCE_S
from tests.unit.streams.decision_index.test_erasure import erased, take
from tests.unit.streams.decision_index.test_index import made

CARDS, PAYMENTS = 300, 600
# An erasure takes some 30 ms: one test forgets many cards, the others a few.
MANY, FEW = 100, 10
UNTIL_MS = made(PAYMENTS)["decided_time_ms"]
MARKS = (b"card-number-0", b"payment-id-0", b"device-of-0")
"""How ids of cards to be forgotten, of their payments and devices begin. Other cards have a 1."""


@pytest.fixture(autouse=True)
def _plain_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for ids would not find those that are packed."""
    monkeypatch.setattr(module, "_PACKED", "")


def decisions(forgotten: int) -> list[dict[str, Any]]:
    """Returns two decisions of each card, half of them with a review."""
    found = []
    for number in range(PAYMENTS):
        card = number % CARDS
        of_card = f"{int(card >= forgotten)}{card:05d}-{number}"
        ids = {"payment_id": f"payment-id-{of_card}", "device_id": f"device-of-{of_card}"}
        ids["card_id"] = f"card-number-{int(card >= forgotten)}{card:05d}"
        found.append(made(number, **ids, action="review" if number % 2 else "approve"))
    return found


def fill(database: Database, forgotten: int = FEW) -> tuple[dict[str, bytes], DecisionIndex]:
    """Fills an index; returns the random body of each payment."""
    index = DecisionIndex(database, worth=lambda amount, *_: amount)
    queue = ReviewQueue(database, ReviewRules())
    bodies: dict[str, bytes] = {}
    for start in range(0, PAYMENTS, 100):
        some = decisions(forgotten)[start : start + 100]
        bodies |= {each["payment_id"]: os.urandom(32) for each in some}
        with database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, bodies[each["payment_id"]]) for each in some])
            queue.add_decisions(transaction, some, [100] * len(some))
        database.tidy(at_least=200)
    return bodies, index


def forget_all(database: Database, forgotten: int = FEW) -> None:
    cards = [f"card-number-0{card:05d}" for card in range(forgotten)]
    take(database, [erased({"card_id": card}, UNTIL_MS) for card in cards], batch=100)


def contents(database: Database) -> dict[str, Any]:
    """Returns the rows of all tables, without the facts."""
    tables = [*database.tables_by_time(), "hours", "verdicts", "forgotten", "forgotten_payments", "runs"]
    with database.reading() as transaction:
        return {table: transaction.execute(f"SELECT * FROM {table}") for table in tables}


def on_disk(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_no_byte_of_forgotten_cards_is_in_the_file(tmp_path: Path) -> None:
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        bodies, index = fill(database, MANY)
        gone = {body for payment, body in bodies.items() if payment.startswith("payment-id-0")}
        assert len(gone) == 2 * MANY
        forget_all(database, MANY)
    disk = on_disk(tmp_path)
    # What this test looks for is found in a file whose rows are deleted and nothing more.
    assert all(body in disk for body in gone)
    assert all(mark in disk for mark in MARKS)

    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        before = contents(database)
        assert database.purge()
        # The file has its bytes when the call returns, and not only when the process ends.
        disk = on_disk(tmp_path)
        assert not any(body in disk for body in gone)
        assert not any(mark in disk for mark in MARKS)
        assert all(body in disk for body in set(bodies.values()) - gone)
        assert contents(database) == before
        assert not database.purge()
        index = take(database, [("decisions", made(PAYMENTS + 9, payment_id="new"))])
        index.empty()
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        assert contents(database)["forgotten"] == before["forgotten"]
    assert os.listdir(tmp_path) == ["index.duckdb"]
    assert not any(mark in on_disk(tmp_path) for mark in MARKS)


def test_rows_that_were_deleted_for_their_age_leave_the_file_too(tmp_path: Path) -> None:
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        _, index = fill(database)
        index.expire(UNTIL_MS)
        forget_all(database)
        assert database.purge()
        assert not any(mark in on_disk(tmp_path) for mark in MARKS)


def test_a_purge_waits_for_readers_and_gives_up_behind_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(DuckDbDatabase(tmp_path / "it's.duckdb")) as database:
        fill(database)
        forget_all(database)
        monkeypatch.setattr(module, "_READERS_WAIT_S", 0.1)
        with database.reading() as transaction:
            with pytest.raises(IndexUnavailable, match="is being read"):
                database.purge()
            assert transaction.execute("SELECT count(*) FROM decisions") == [(PAYMENTS - 2 * FEW,)]
        monkeypatch.setattr(module, "_READERS_WAIT_S", PATIENCE_S)
        is_stopped, errors = threading.Event(), []

        def read() -> None:
            while not is_stopped.is_set():
                with database.reading() as transaction:
                    if transaction.execute("SELECT count(*) FROM decisions") != [(PAYMENTS - 2 * FEW,)]:
                        errors.append("another count")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            assert database.purge()
        finally:
            is_stopped.set()
            for reader in readers:
                reader.join(PATIENCE_S)
        assert errors == []
        assert not any(mark in on_disk(tmp_path) for mark in MARKS)


_KILLED = """
import os, signal, sys
from pathlib import Path
from paywarden.streams.decision_index.database import DuckDbDatabase
replace = Path.replace
def killed(*paths):
    if sys.argv[2] == "after": replace(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = killed
DuckDbDatabase(Path(sys.argv[1])).purge()
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_purge_loses_nothing_and_is_done_by_the_next_one(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "index.duckdb"
    with closing(DuckDbDatabase(path)) as database:
        fill(database)
        forget_all(database)
        before = contents(database)
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), moment], check=False, timeout=PATIENCE_S)
    assert done.returncode == -9
    with closing(DuckDbDatabase(path)) as database:
        assert [file.name for file in tmp_path.iterdir() if file.suffix == ".new"] == []
        assert contents(database) == before
        assert database.purge()
        assert contents(database) == before
        assert not any(mark in on_disk(tmp_path) for mark in MARKS)


def test_an_index_without_an_erasure_is_not_written_again(database: Database) -> None:
    take(database, [("decisions", made(1))])
    assert not database.purge()
