"""The databases that an index can live in: every test that asks for `database` runs on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
from tests.services.servers.postgres import POSTGRES, PostgresServer, postgres_server, programs

Opened = Callable[[], Database]
_numbers = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if programs() is None:
        pytest.skip(POSTGRES.reason)
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["duckdb", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    opened: Database
    if request.param == "duckdb":
        opened = DuckDbDatabase(tmp_path / "index.duckdb")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        opened = PostgresDatabase(server.address, schema=f"index_{next(_numbers)}")
    yield opened
    opened.close()
