"""A PostgreSQL that is killed in the middle of verdicts has all that it confirmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from paywarden.streams.decision_index.database import IndexUnavailable, PostgresDatabase
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from tests.patience import PATIENCE_S
from tests.services.servers.postgres import POSTGRES, PostgresServer, postgres_server, programs
from tests.unit.streams.decision_index.test_index import made

_REVIEWS, _CONFIRMED_MIN = 400, 20
# A day after the first decision.
_NOW_MS = 1_704_067_200_000 + 86_400_000


@pytest.fixture
def lax_server() -> Iterator[PostgresServer]:
    """A server whose own settings would let a commit be lost: it answers first, and writes within ten seconds."""
    if programs() is None:
        pytest.skip(POSTGRES.reason)
    with postgres_server() as server:
        with psycopg.connect(server.address, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            connection.execute("ALTER SYSTEM SET wal_writer_flush_after = '1GB'")
            connection.execute("SELECT pg_reload_conf()")
        yield server


def test_kill_9_of_postgresql_loses_no_verdict_that_it_confirmed(lax_server: PostgresServer) -> None:
    confirmed: list[str] = []
    enough = threading.Event()
    with closing(PostgresDatabase(lax_server.address)) as database:
        queue = ReviewQueue(database, ReviewRules(second_share=0.0))
        waiting = [made(number, action="review") for number in range(_REVIEWS)]
        with database.transaction() as transaction:
            queue.add_decisions(transaction, waiting, [100] * _REVIEWS)

        def reviews(analyst: str) -> None:
            while True:
                claim = queue.claim(analyst, _NOW_MS)
                assert claim is not None
                said = queue.decide(analyst, claim.token, "fraud", "other", "", _NOW_MS)
                confirmed.append(said.verdict_id)
                if len(confirmed) >= _CONFIRMED_MIN:
                    enough.set()

        with ThreadPoolExecutor(3) as pool:
            works = [pool.submit(reviews, name) for name in ("ann", "ben", "cid")]
            assert enough.wait(PATIENCE_S), [work.exception(1) for work in works if work.done()]
            lax_server.kill()
            ends = [work.exception(PATIENCE_S) for work in works]
        assert all(isinstance(end, IndexUnavailable) for end in ends), ends
    lax_server.start()
    with closing(PostgresDatabase(lax_server.address)) as database:
        kept = {said.verdict_id for said in ReviewQueue(database, ReviewRules()).unsent(_REVIEWS)}
    assert set(confirmed) <= kept
    # Each thread may have had one under way that was kept without its answer.
    assert len(kept) <= len(confirmed) + 3
