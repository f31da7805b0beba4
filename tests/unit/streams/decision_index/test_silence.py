"""A server that says nothing costs a bounded time, and a console asks it once for all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from paywarden.streams.decision_index.database import IndexSilent, IndexUnavailable, PostgresDatabase
from paywarden.streams.decision_index.silence import SilenceWatch, Silent
from tests.patience import PATIENCE_S
from tests.services.servers.postgres import PostgresServer


@contextmanager
def watched(limit_s: float) -> Iterator[SilenceWatch]:
    watch = SilenceWatch(limit_s)
    try:
        yield watch
    finally:
        watch.close()


def test_a_wait_that_lasts_too_long_fails_and_others_go_on() -> None:
    (mine, theirs), (quick, other) = socket.socketpair(), socket.socketpair()
    told = list[BaseException]()
    with watched(0.1) as watch, mine, theirs, quick, other:

        def wait() -> None:
            try:
                with watch.waiting(mine.fileno()):
                    # A socket that was shut down reads as ended.
                    assert mine.recv(1) == b""
                    raise ConnectionError("server closed the connection unexpectedly")
            except Silent as error:
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(PATIENCE_S)
        with watch.waiting(quick.fileno()):
            other.send(b"x")
            assert quick.recv(1) == b"x"
        # An error that came in time is that error.
        with pytest.raises(ConnectionError), watch.waiting(quick.fileno()):
            raise ConnectionError
        assert quick.send(b"x") == 1
    assert len(told) == 1


@pytest.mark.parametrize("moment", ["a statement", "the begin"])
def test_a_frozen_server_is_given_up_and_used_again(postgres: PostgresServer, moment: str) -> None:
    database = PostgresDatabase(postgres.address, schema="frozen", timeout_ms=100)

    def ask() -> Any:
        with database.transaction() as transaction:
            if moment == "a statement":
                postgres.freeze()
            return transaction.execute("SELECT 1")

    try:
        if moment == "the begin":
            postgres.freeze()
        with pytest.raises(IndexSilent, match="said nothing for 2 s"):
            ask()
    finally:
        postgres.thaw()
    with database.transaction() as transaction:
        assert transaction.execute("SELECT 1") == [(1,)]
    database.close()


def test_connections_of_a_server_that_began_anew_cost_one_page_at_most(postgres: PostgresServer) -> None:
    """Each of those that were kept failed once, so eight pages did."""
    database = PostgresDatabase(postgres.address, schema="anew")
    together = threading.Barrier(4)

    def use() -> None:
        with database.transaction() as transaction:
            transaction.execute("SELECT 1")
            together.wait(PATIENCE_S)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    postgres.stop()
    postgres.start()
    with pytest.raises(IndexUnavailable), database.transaction() as transaction:
        transaction.execute("SELECT 1")
    for _ in range(4):
        with database.transaction() as transaction:
            assert transaction.execute("SELECT 1") == [(1,)]
    database.close()
