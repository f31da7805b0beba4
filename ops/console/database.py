"""The console's database: one SQLite file.

Topics can rebuild everything in it but sessions, whose loss means that people log in again, drafts of the policy and
saved searches. A writer that is killed leaves the last whole transaction (WAL).

If the file is removed or replaced while the console runs, each page says so: SQLite would go on in a file without a
name, and new threads in an empty one.

Each thread has a connection of its own. `DATABASE_VERSION` names the form of the tables: a file of another form is
emptied and filled again from the topics, without drafts.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.file_state import file_at
from paywarden.schemas.private_files import make_private_folder, open_private

DATABASE_VERSION = 1
_BUSY_TIMEOUT_S = 5.0


class DatabaseUnavailable(TemporaryFailure):
    """The console's database cannot be read or written."""


class ConsoleDatabase:
    """The SQLite file at a path. Thread-safe. `close` it."""

    def __init__(self, path: Path, tables: Sequence[str]) -> None:
        """`tables`: the statements that make missing tables. Raises DatabaseUnavailable, Misconfigured."""
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            make_private_folder(path.parent)
            # SQLite gives its further files the mode of this one.
            os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise DatabaseUnavailable(f"cannot make {path}: {error.strerror}") from error
        self._file = file_at(path)
        with self.write() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != DATABASE_VERSION:
                _empty(connection)
                connection.execute(f"PRAGMA user_version = {DATABASE_VERSION}")
            for statement in tables:
                connection.execute(statement)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is there as a whole or not at all. Raises DatabaseUnavailable."""
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def read(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[sqlite3.Row]:
        """Return the rows of a query. Raises DatabaseUnavailable."""
        try:
            return self._connection().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                with suppress(sqlite3.Error):
                    connection.close()
            self._connections.clear()

    def _connection(self) -> sqlite3.Connection:
        if file_at(self.path) != self._file:
            raise DatabaseUnavailable(
                f"the console's database {self.path} was removed or replaced while it was open: put it back, or "
                "restart the console, which makes it again from the topics"
            )
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = sqlite3.connect(
                    self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                connection.row_factory = sqlite3.Row
                # `lower` knows no other letters than those of ASCII.
                connection.create_function("casefold", 1, str.casefold, deterministic=True)
                connection.execute("PRAGMA journal_mode = WAL")
                # With WAL a killed process loses nothing; a machine that loses power may lose the last rows, which the
                # topics have.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA foreign_keys = ON")
                # Erased notes leave no bytes in the file.
                connection.execute("PRAGMA secure_delete = ON")
            except sqlite3.Error as error:
                raise self._unavailable(error) from error
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _unavailable(self, error: sqlite3.Error) -> DatabaseUnavailable:
        why = f"the console's database {self.path} does not answer: {error}"
        if type(error) is sqlite3.DatabaseError:
            # The file is damaged, or is no SQLite file. SQLite's message names no remedy.
            why += (
                ". Move it and the files beside it (-wal, -shm) away and start the console again: it makes them again "
                "from the topics, and people log in again"
            )
        return DatabaseUnavailable(why)


def _empty(connection: sqlite3.Connection) -> None:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (name,) in names.fetchall():
        connection.execute(f'DROP TABLE "{name}"')
