"""An index in a file whose disk is full says so, loses nothing that was committed, and goes on when there is room."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.decision_index.database import DuckDbDatabase, IndexUnavailable
from paywarden.streams.decision_index.erasure import Erasure
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from tests.unit.streams.decision_index.test_index import made

ENCODER = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
BATCH = 500


@contextmanager
def no_room(path: Path, share: float = 1.0) -> Iterator[None]:
    """Let no file of this process become longer than this share of the one at `path`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(path.stat().st_size * share), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def add(index: DecisionIndex, first: int) -> None:
    decisions = [made(number) for number in range(first, first + BATCH)]
    with index.database.transaction() as transaction:
        index.add_decisions(transaction, [Stored(one, ENCODER.encode(one)) for one in decisions])


def count(database: DuckDbDatabase) -> int:
    with database.reading() as transaction:
        ((found,),) = transaction.execute("SELECT count(*) FROM decisions")
    return int(found)


def test_a_checkpoint_that_finds_no_room_does_not_end_the_index(tmp_path: Path) -> None:
    """DuckDB then refused everything until the console was started again: no page showed a decision."""
    path = tmp_path / "index.duckdb"
    with closing(DuckDbDatabase(path)) as database:
        index = DecisionIndex(database, worth=lambda amount, *_: amount)
        add(index, 0)
        with database.transaction() as transaction:
            # Each commit writes the log into the file.
            transaction.execute("SET GLOBAL wal_autocheckpoint = '1KB'")
        with no_room(path):
            told = []
            for _ in range(3):
                with pytest.raises(IndexUnavailable) as caught:
                    add(index, BATCH)
                told.append(str(caught.value))
        assert any("FATAL" in line for line in told), told
        # Records of the refused batches may be there or not, as after a kill: their offsets are with them.
        assert count(database) in range(BATCH, 5 * BATCH, BATCH)
        before = count(database)
        add(index, 2 * BATCH)
        assert count(database) == before + BATCH
    with closing(DuckDbDatabase(path)) as database:
        assert count(database) == before + BATCH


def test_a_purge_that_finds_no_room_leaves_the_index_as_it_is_and_is_done_later(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    with closing(DuckDbDatabase(path)) as database:
        index = DecisionIndex(database, worth=lambda amount, *_: amount)
        for number in range(4):
            add(index, number * BATCH)
        erasure = Erasure.of({"card_id": "c1"}, made(4 * BATCH)["decided_time_ms"])
        assert erasure is not None
        with database.transaction() as transaction:
            taken = index.erase(transaction, erasure)
            transaction.execute("SET GLOBAL wal_autocheckpoint = '1GB'")
        with no_room(path, 0.25), pytest.raises(IndexUnavailable, match="cannot be written again without erased rows"):
            database.purge()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["index.duckdb", "index.duckdb.wal"]
        assert count(database) == 4 * BATCH - taken
        assert database.purge()
        assert not database.purge()
        assert count(database) == 4 * BATCH - taken
