"""The databases that an index can live in: DuckDB in a file for one machine, PostgreSQL for a team.

Both understand the same SQL, with `?` for a value. A `Transaction` is atomic: when its `with` block ends, the database
has all of its changes or none.

    with database.transaction() as transaction:
        transaction.append("keys", {"hash": [...], "decided_time_ms": [...], ...})
        rows = transaction.execute("SELECT label FROM outcomes WHERE payment_hash = ?", (1,))

DuckDB has no index that stays small. A table of keys in order of their hashes takes its place, because DuckDB knows the
smallest and the largest value of each 122,880 rows. New keys gather in a table of their own (`keys_tail`) until they
are worth sorting. `tidy` sorts them into a run of their own, and `merge` makes one of many runs. PostgreSQL has
B-trees, and both do nothing.

DuckDB leaves the bytes of deleted rows in its file. `purge` therefore writes a new file after an erasure:

    DELETE, fact `erased`  ──►  index.duckdb.new: a copy of the rows  ──►  renamed to index.duckdb, fact deleted

A process that is killed before the renaming leaves the old file and the fact: the next `purge` begins again.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import file_at
from paywarden.schemas.private_files import make_parent, require_not_planted, take_from_others
from paywarden.streams.decision_index.search import Place, listed
from paywarden.streams.decision_index.silence import SilenceWatch, Silent

if TYPE_CHECKING:
    import duckdb
    import psycopg

_log = logging.getLogger(__name__)

Rows = list[tuple[Any, ...]]
# DuckDB looks up decisions together that are at most this far apart: as a rule they are in one group of rows.
_NEAR_MS = 3_600_000
# To look up this many groups one by one takes about as long as one pass over all decisions.
_GROUPS_MAX = 256
# A search reads one or two groups of rows of each run of sorted keys.
_RUNS_MAX = 32
# Advisory locks of PostgreSQL, by numbers that nobody else in the database should use.
_MAKING_LOCK, _FILLING_LOCK = 7_164_033, 7_164_034
# How much longer than `timeout_ms` a client waits for the server's own word about it.
_GRACE_S = 2.0
# Searches wait this long for earlier ones, most of which take a second. Behind a longer one the new file is thrown away
# and made again an hour later.
_READERS_WAIT_S = 5.0
ERASED_FACT = "erased"
"""The fact that rows were erased since the last `purge`."""
FORMAT = "3"
"""The format of the tables. Another one is rebuilt from the topics."""
_ANEW = "It is created again from the topics, verdicts included, where there is none: move"
_SEVERAL = "One process at a time has the file open; for several there is PostgreSQL: [decision_index] address"

_TIMES = {
    "decisions": "decided_time_ms",
    "bodies": "decided_time_ms",
    "keys": "decided_time_ms",
    "reviews": "decided_time_ms",
    "episode_payments": "decided_time_ms",
    "outcomes": "outcome_time_ms",
}
_PARTS = ("sorted", "tail")
# Tables that are made of decisions and outcomes while these come in.
_DERIVED = ("episodes", "episode_payments", "merchant_days", "tallies")
# In DuckDB: to read one row it unpacks a dictionary of tens of thousands of ids, but only few that zstd has packed.
_PACKED = " USING COMPRESSION zstd"
_DECISIONS = """
    decided_time_ms BIGINT NOT NULL, payment_hash BIGINT NOT NULL, decision_id TEXT NOT NULL{packed},
    payment_id TEXT NOT NULL{packed}, event_time_ms BIGINT NOT NULL, card_id TEXT NOT NULL{packed},
    merchant_id TEXT NOT NULL, device_id TEXT NOT NULL{packed}, ip TEXT NOT NULL, amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL, worth_minor BIGINT, country TEXT NOT NULL, channel TEXT NOT NULL,
    score DOUBLE PRECISION NOT NULL, action SMALLINT NOT NULL, reasons TEXT NOT NULL, flags TEXT NOT NULL,
    model_version TEXT NOT NULL"""
_KEYS = """
    hash BIGINT NOT NULL, decided_time_ms BIGINT NOT NULL, payment_hash BIGINT NOT NULL,
    score DOUBLE PRECISION NOT NULL, action SMALLINT NOT NULL"""
_BODIES = """
    decided_time_ms BIGINT NOT NULL, payment_hash BIGINT NOT NULL, decision_id TEXT NOT NULL, body {blob} NOT NULL"""
_TALLIES = """
    begin_ms BIGINT NOT NULL, merchant_id TEXT NOT NULL, country TEXT NOT NULL, currency TEXT NOT NULL,
    channel TEXT NOT NULL, payments BIGINT NOT NULL, declined BIGINT NOT NULL, taken_minor BIGINT NOT NULL,
    frauds BIGINT NOT NULL, lost_minor BIGINT NOT NULL, declined_known BIGINT NOT NULL,
    declined_genuine BIGINT NOT NULL"""
_OUTCOMES = "payment_hash BIGINT NOT NULL, outcome_time_ms BIGINT NOT NULL, label TEXT NOT NULL, source TEXT NOT NULL"
# Tables that both databases have. Some hold data that no topic can give back alone.
_COMMON = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS hours (hour BIGINT PRIMARY KEY, decisions BIGINT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS sources (
        topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL, next_offset BIGINT NOT NULL, topic_id TEXT NOT NULL,
        missing BIGINT NOT NULL, newest_ms BIGINT NOT NULL, PRIMARY KEY (topic, kafka_partition))""",
    """CREATE TABLE IF NOT EXISTS reviews (
        decision_id TEXT PRIMARY KEY, decided_time_ms BIGINT NOT NULL, payment_hash BIGINT NOT NULL,
        payment_id TEXT NOT NULL, merchant_id TEXT NOT NULL, country TEXT NOT NULL, currency TEXT NOT NULL,
        channel TEXT NOT NULL, score DOUBLE PRECISION NOT NULL, worth_minor BIGINT NOT NULL,
        status TEXT NOT NULL, turn SMALLINT NOT NULL, holder TEXT NOT NULL, claim TEXT NOT NULL,
        claimed_ms BIGINT NOT NULL, held_until_ms BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS verdicts (
        verdict_id TEXT PRIMARY KEY, decision_id TEXT NOT NULL, payment_id TEXT NOT NULL, payment_hash BIGINT NOT NULL,
        verdict TEXT NOT NULL, reason TEXT NOT NULL, note TEXT NOT NULL, analyst TEXT NOT NULL, turn SMALLINT NOT NULL,
        claimed_ms BIGINT NOT NULL, time_ms BIGINT NOT NULL, is_sent BOOLEAN NOT NULL)""",
    # Payments during an episode of enumeration (episodes.py), and the counts of merchants by day (ledger.py).
    """CREATE TABLE IF NOT EXISTS episodes (
        episode_id TEXT PRIMARY KEY, feature TEXT NOT NULL, entity TEXT NOT NULL, begin_ms BIGINT NOT NULL,
        end_ms BIGINT NOT NULL, told SMALLINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS episode_payments (
        episode_id TEXT NOT NULL, decision_id TEXT NOT NULL, decided_time_ms BIGINT NOT NULL,
        payment_hash BIGINT NOT NULL, merchant_id TEXT NOT NULL, model_version TEXT NOT NULL, worth_minor BIGINT,
        approved SMALLINT NOT NULL, value DOUBLE PRECISION NOT NULL, PRIMARY KEY (episode_id, decision_id))""",
    """CREATE TABLE IF NOT EXISTS merchant_days (
        day BIGINT NOT NULL, merchant_id TEXT NOT NULL, payments BIGINT NOT NULL, amount_minor BIGINT NOT NULL,
        approved BIGINT NOT NULL, approved_minor BIGINT NOT NULL, frauds BIGINT NOT NULL, fraud_minor BIGINT NOT NULL,
        disputes BIGINT NOT NULL, enumerated BIGINT NOT NULL, enumerated_minor BIGINT NOT NULL)""",
    # The counts of payments by day (tallies.py), and what a transaction adds to them.
    f"CREATE TABLE IF NOT EXISTS tallies ({_TALLIES})",
    f"CREATE TABLE IF NOT EXISTS tally_changes ({_TALLIES})",
    # Erasures, as hashes of ids (erasure.py). A rebuild keeps both tables.
    "CREATE TABLE IF NOT EXISTS forgotten (name TEXT PRIMARY KEY, until_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS forgotten_payments (payment_hash BIGINT PRIMARY KEY)",
)


class IndexUnavailable(TemporaryFailure):
    """The database of the index does not answer."""


class IndexSilent(IndexUnavailable):
    """The database's server takes calls, and says nothing: each one costs its time-out."""


class Transaction(Protocol):
    """A transaction under way."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Runs a statement, with a value for each `?`; returns its rows, none for a statement that gives none."""

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Adds rows to a table: lists, or arrays of numpy or Arrow, by column.

        A row that the table has already stays as it is, where its key is unique.
        """


class Database(Protocol):
    """The database of an index. Thread-safe. Raises IndexUnavailable when it does not answer."""

    name: str
    scan_rows_max: int
    """How many decisions a search without a key looks at."""
    window_rows: tuple[int, ...]
    """How many of the newest decisions a search looks at first, then, and so on, before it looks at all."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Opens a transaction: the end of the block commits, an exception takes everything back."""

    def reading(self) -> AbstractContextManager[Transaction]:
        """Opens a transaction that changes nothing, and waits for nobody."""

    def at_places(self, select: str, places: Sequence[Place]) -> str:
        """Returns `select` with conditions for the rows at these places, one at least.

        There may come rows of the same payments at other times.
        """

    def places_of(self, payment_hashes: Iterable[int], span: tuple[int, int] | None = None) -> str:
        """Returns the query of the times and payments' hashes of all decisions about payments.

        `span`: from which time to before which; without it, wherever they are.
        """

    def tidy(self, *, at_least: int) -> None:
        """Sorts the keys that came since the last call, if there are `at_least` this many."""

    def fill_alone(self, transaction: Transaction) -> None:
        """Waits until no other transaction fills the index, and keeps others waiting until this one ends."""

    def tables_by_time(self) -> dict[str, str]:
        """Returns the tables whose rows have an age, each with the column of its time."""

    def merge(self) -> None:
        """Puts everything in one order, if many calls of `tidy` have left many. Others wait for minutes meanwhile."""

    def purge(self) -> bool:
        """Takes the bytes of rows that were erased since the last call out of the file. Returns whether there were any.

        PostgreSQL: nothing, since its files are the server's.
        """

    def drop_decisions(self, transaction: Transaction) -> None:
        """Empties everything that comes from the topics `decisions` and `outcomes`."""

    def close(self) -> None:
        """Closes it."""


# DuckDB


class DuckDbDatabase:
    """An index in one file. One process has it open, with as many threads as it likes."""

    name = "DuckDB"
    # 10 million take two cores a third of a second.
    scan_rows_max = 4_000_000
    # A group has 122,880 rows, and a run of sorted keys those of some 400,000 or 4 million decisions.
    window_rows: tuple[int, ...] = (200_000, 4_000_000, 30_000_000)

    def __init__(self, path: Path, *, memory_mb: int = 1024, threads: int = 2) -> None:
        """Raises Misconfigured if the file cannot be used, or another process has it open."""
        import duckdb

        self._memory_mb, self._threads = memory_mb, threads
        self._path, self._errors, self._fatal = path, duckdb.Error, duckdb.FatalException
        try:
            make_parent(path)
            # They have ids of cards.
            for file in (path, path.with_name(f"{path.name}.wal")):
                require_not_planted(file)
                take_from_others(file)
        except OSError as error:
            raise Misconfigured(f"the index {path} cannot be opened: {error.strerror}") from error
        if path.exists() and not path.is_file():
            # DuckDB would wait without end for somebody to write to a named pipe.
            raise Misconfigured(f"the index {path} cannot be opened: wanted a regular file, or none")
        try:
            self._connection = self._connected()
        except duckdb.Error as error:
            why = _first_line(error)
            hint = _SEVERAL if "Conflicting lock" in why else f"{_ANEW} the file and its .wal away"
            raise Misconfigured(f"the index {path} cannot be opened: {why}. {hint}") from error
        # How many transactions are open, and whether DuckDB has given the file up.
        self._using, self._open_count, self._is_given_up = threading.Condition(), 0, False
        # Whether the file is being replaced: new transactions wait.
        self._is_replaced = False
        self._file = file_at(path)
        # Writers take turns: DuckDB refuses a transaction that changes a row which another one has changed.
        self._writing = threading.RLock()
        try:
            self._remove_copy()
            self._make_tables()
        except BaseException:
            # The next try must not find the file locked by this one.
            self._connection.close()
            raise

    def _make_tables(self) -> None:
        with self.transaction() as transaction:
            for statement in (*_COMMON, *_duckdb_tables()):
                transaction.execute(statement)
            _check_format(transaction, str(self._path), f"{_ANEW} the file and its .wal away")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """See Database."""
        with self._writing:
            self._require_file()
            with self._run() as transaction:
                yield transaction

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """See Database."""
        with self._run() as transaction:
            yield transaction

    def _require_file(self) -> None:
        """Raise IndexUnavailable if the open file is no longer the one of this name."""
        if file_at(self._path) != self._file:
            # DuckDB would go on in a deleted file, whose content ends with the process.
            raise IndexUnavailable(
                f"the index {self._path} was removed or replaced while it was open: put it back, or restart this "
                "process, which creates it again from the topics"
            )

    @contextmanager
    def _run(self) -> Iterator[Transaction]:
        try:
            with self._cursor() as cursor:
                cursor.begin()
                yield _DuckDbTransaction(cursor)
                cursor.commit()
        except self._errors as error:
            # A checkpoint that fails, on a full disk for example, makes DuckDB refuse everything from then on.
            self._is_given_up = self._is_given_up or isinstance(error, self._fatal)
            raise IndexUnavailable(f"the index {self._path} does not answer: {_first_line(error)}") from error

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one transaction. If that is not committed, it is taken back."""
        with self._using:
            self._using.wait_for(lambda: not self._is_replaced)
            if self._is_given_up:
                self._open_anew()
            cursor = self._connection.cursor()
            self._open_count += 1
        try:
            yield cursor
        finally:
            cursor.close()
            with self._using:
                self._open_count -= 1
                self._using.notify_all()

    def _open_anew(self) -> None:
        """Open the file again that DuckDB has given up: it reads the committed data from its log."""
        if self._open_count:
            # DuckDB lets the file go with the last of them. They fail within moments.
            raise IndexUnavailable(f"the index {self._path} is being opened again")
        self._require_file()
        self._connection.close()
        self._connection = self._connected()
        self._is_given_up = False
        _log.warning("the index %s is open again: DuckDB had given it up", self._path)

    def _connected(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        return duckdb.connect(
            str(self._path), config={"memory_limit": f"{self._memory_mb}MB", "threads": self._threads}
        )

    def at_places(self, select: str, places: Sequence[Place]) -> str:
        """See Database. Places near each other are looked up together, and only their groups of rows are read.

        The numbers stand in the statement, since parameters take DuckDB three times as long.
        """
        groups: list[list[Place]] = []
        for place in sorted(places):
            if not groups or place.time_ms - groups[-1][0].time_ms > _NEAR_MS:
                groups.append([])
            groups[-1].append(place)
        if len(groups) > _GROUPS_MAX:
            groups = [sorted(places)]
        return " UNION ALL ".join(f"{select} WHERE {_near(group)}" for group in groups)

    def places_of(self, payment_hashes: Iterable[int], span: tuple[int, int] | None = None) -> str:
        """See Database. Within a time, the decisions themselves are nearer together than their keys."""
        hashes = listed(payment_hashes)
        if span is None:
            return f"SELECT DISTINCT decided_time_ms, payment_hash FROM keys WHERE hash IN ({hashes})"
        return (
            "SELECT DISTINCT decided_time_ms, payment_hash FROM decisions WHERE decided_time_ms >= "
            f"{span[0]} AND decided_time_ms < {span[1]} AND payment_hash IN ({hashes})"
        )

    def fill_alone(self, transaction: Transaction) -> None:
        """See Database. Writers take turns in any case."""

    def tables_by_time(self) -> dict[str, str]:
        """See Database."""
        both = {f"{table}_{part}": column for table, column in _TIMES.items() if table in _TAILS for part in _PARTS}
        return both | {table: column for table, column in _TIMES.items() if table not in _TAILS}

    def merge(self) -> None:
        """See Database. The tables need room for a second copy meanwhile."""
        self.tidy(at_least=1)
        with self.transaction() as transaction:
            ((count,),) = transaction.execute("SELECT count(*) FROM runs")
            if count <= _RUNS_MAX:
                return
            for table, order in _SORTED.items():
                transaction.execute(
                    f"CREATE OR REPLACE TABLE {table}_sorted AS SELECT * FROM {table}_sorted ORDER BY {order}"
                )
            transaction.execute("DELETE FROM runs")

    def tidy(self, *, at_least: int) -> None:
        """See Database."""
        for table, order in _SORTED.items():
            with self.transaction() as transaction:
                ((count,),) = transaction.execute(f"SELECT count(*) FROM {table}_tail")
                if count < max(1, at_least):
                    continue
                transaction.execute(f"INSERT INTO {table}_sorted SELECT * FROM {table}_tail ORDER BY {order}")
                transaction.execute(f"DELETE FROM {table}_tail")
                transaction.execute("INSERT INTO runs VALUES (?, ?)", (table, count))

    def purge(self) -> bool:
        """See Database. Writers wait meanwhile. The disk needs room for a second file."""
        with self._writing:
            with self.transaction() as transaction:
                if not transaction.execute("SELECT value FROM facts WHERE name = ?", (ERASED_FACT,)):
                    return False
            try:
                self._remove_copy()
                self._make_copy()
                self._take_copy()
            except (self._errors, OSError) as error:
                self._is_given_up = self._is_given_up or isinstance(error, self._fatal)
                why = f"cannot be written again without erased rows: {_first_line(error)}"
                raise IndexUnavailable(f"the index {self._path} {why}") from error
            finally:
                self._remove_copy()
            with self.transaction() as transaction:
                transaction.execute("DELETE FROM facts WHERE name = ?", (ERASED_FACT,))
            return True

    @property
    def _copy(self) -> Path:
        return self._path.with_name(f"{self._path.name}.new")

    def _remove_copy(self) -> None:
        for file in (self._copy, self._copy.with_name(f"{self._copy.name}.wal")):
            file.unlink(missing_ok=True)

    def _make_copy(self) -> None:
        # A statement takes no value in this place.
        path = str(self._copy).replace("'", "''")
        with self._cursor() as cursor:
            ((name,),) = cursor.execute("SELECT current_database()").fetchall()
            # A failed call may have left it attached.
            cursor.execute("DETACH DATABASE IF EXISTS without_erased")
            cursor.execute(f"ATTACH '{path}' AS without_erased")
            cursor.execute(f'COPY FROM DATABASE "{name}" TO without_erased')
            cursor.execute("CHECKPOINT without_erased")
            cursor.execute("DETACH without_erased")
        take_from_others(self._copy)

    def _take_copy(self) -> None:
        """Put the copy in the place of the file while no transaction is open. New ones wait for moments."""
        with self._using:
            self._is_replaced = True
            try:
                if not self._using.wait_for(lambda: self._open_count == 0, _READERS_WAIT_S):
                    raise IndexUnavailable(
                        f"the index {self._path} is being read: its file keeps erased rows until later"
                    )
                self._replace_file()
            finally:
                self._is_replaced = False
                self._using.notify_all()

    def _replace_file(self) -> None:
        self._require_file()
        # If the file does not open again below, the next transaction tries.
        self._is_given_up = True
        self._connection.close()
        if self._path.with_name(f"{self._path.name}.wal").exists():
            # DuckDB would add its content to the new file, which has it already.
            raise IndexUnavailable(f"the index {self._path} was not closed: its file keeps erased rows until later")
        self._copy.replace(self._path)
        self._file = file_at(self._path)
        sync_folder(self._path.parent)
        # A killed process may have left rows there.
        shutil.rmtree(f"{self._path}.tmp", ignore_errors=True)
        self._connection = self._connected()
        self._is_given_up = False

    def drop_decisions(self, transaction: Transaction) -> None:
        """See Database."""
        for table in (
            "decisions",
            "bodies",
            "keys_tail",
            "keys_sorted",
            "outcomes_tail",
            "outcomes_sorted",
            "hours",
            "runs",
            *_DERIVED,
        ):
            transaction.execute(f"DELETE FROM {table}")

    def close(self) -> None:
        """See Database."""
        with self._writing:
            self._connection.close()


class _DuckDbTransaction:
    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        result = self._cursor.execute(sql, list(parameters))
        return result.fetchall() if result.description else []

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        if not len(next(iter(columns.values()))):
            return
        added = pa.table({name: _arrow(values) for name, values in columns.items()})
        self._cursor.register("added", added)
        names = ", ".join(columns)
        conflict = "" if table in _TAILS or table in _KEYLESS else " ON CONFLICT DO NOTHING"
        self._cursor.execute(f"INSERT INTO {_TAILS.get(table, table)} ({names}) SELECT {names} FROM added{conflict}")
        self._cursor.unregister("added")


def _near(places: Sequence[Place]) -> str:
    """Returns a condition for places in order of time. It may hold for another time of one of their payments."""
    first, last = places[0].time_ms, places[-1].time_ms
    times = f"= {first}" if first == last else f"BETWEEN {first} AND {last}"
    hashes = ", ".join(str(place.payment_hash) for place in places)
    return f"decided_time_ms {times} AND payment_hash IN ({hashes})"


# The few frauds stand together: pages join them with thousands of payments.
_SORTED = {"keys": "hash, decided_time_ms DESC", "outcomes": "label, payment_hash, outcome_time_ms"}
_TAILS = {"keys": "keys_tail", "outcomes": "outcomes_tail"}
_KEYLESS = ("decisions", "bodies", "tally_changes")


def _arrow(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def _duckdb_tables() -> Iterator[str]:
    # How many keys or outcomes were sorted together.
    yield "CREATE TABLE IF NOT EXISTS runs (table_name TEXT NOT NULL, count BIGINT NOT NULL)"
    yield f"CREATE TABLE IF NOT EXISTS decisions ({_DECISIONS.format(packed=_PACKED)})"
    yield f"CREATE TABLE IF NOT EXISTS bodies ({_BODIES.format(blob='BLOB')})"
    for table, columns in (("keys", _KEYS), ("outcomes", _OUTCOMES)):
        yield f"CREATE TABLE IF NOT EXISTS {table}_tail ({columns})"
        yield f"CREATE TABLE IF NOT EXISTS {table}_sorted ({columns})"
        both = f"SELECT * FROM {table}_sorted UNION ALL SELECT * FROM {table}_tail"
        yield f"CREATE VIEW IF NOT EXISTS {table} AS {both}"


# PostgreSQL


class PostgresDatabase:
    """An index in a PostgreSQL database, which several consoles may share."""

    name = "PostgreSQL"
    scan_rows_max = 200_000
    window_rows: tuple[int, ...] = (10_000, 200_000, 4_000_000)

    def __init__(
        self, address: str, *, schema: str = "paywarden", timeout_ms: int = 5_000, connections: int = 8
    ) -> None:
        """`address`: `postgresql://…`. Raises Misconfigured if it is none, IndexUnavailable if nobody answers."""
        import psycopg

        self._errors, self._schema, self._timeout_ms = psycopg.Error, schema, timeout_ms
        self._address, self._free, self._lock = address, list[Any](), threading.Lock()
        self._connections_max = connections
        # The server ends a statement in time, if it is there to do so.
        self._silence = SilenceWatch(timeout_ms / 1000 + _GRACE_S)
        if not schema.isidentifier():
            raise Misconfigured(f"the schema of the index: wanted a plain name, got {schema!r}")
        try:
            psycopg.conninfo.conninfo_to_dict(address)
        except psycopg.ProgrammingError:
            raise Misconfigured("the address of the index is no address of PostgreSQL: postgresql://…") from None
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    def _make_tables(self) -> None:
        with self.transaction() as transaction:
            # Consoles that start together make the tables one after the other.
            transaction.execute("SELECT pg_advisory_xact_lock(?)", (_MAKING_LOCK,))
            transaction.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
            for statement in (*_COMMON, *_postgres_tables()):
                transaction.execute(statement)
            _check_format(transaction, "the database", f"{_ANEW} its schema away")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """See Database."""
        connection = self._take()
        waiting = partial(self._silence.waiting, connection.fileno())
        whole = connection.transaction()
        try:
            with waiting():
                whole.__enter__()
            try:
                yield _PostgresTransaction(connection, waiting)
            except BaseException as error:
                with waiting():
                    whole.__exit__(type(error), error, error.__traceback__)
                raise
            with waiting():
                whole.__exit__(None, None, None)
        except (self._errors, Silent) as error:
            if connection.broken or connection.closed:
                # The others are as dead: each would cost somebody a page when the server is back.
                self._close_free()
            raise self._unavailable(error) from error
        finally:
            self._give_back(connection)

    def reading(self) -> AbstractContextManager[Transaction]:
        """See Database."""
        return self.transaction()

    def _take(self) -> psycopg.Connection[Any]:
        import psycopg

        with self._lock:
            while self._free:
                connection: psycopg.Connection[Any] = self._free.pop()
                if not connection.closed:
                    return connection
        # A confirmed verdict is on disk, also where the server's default does not wait for it.
        options = f"-c search_path={self._schema} -c statement_timeout={self._timeout_ms} -c synchronous_commit=on"
        try:
            return psycopg.connect(self._address, autocommit=True, connect_timeout=5, options=options)
        except self._errors as error:
            raise self._unavailable(error) from error

    @staticmethod
    def _unavailable(error: Exception) -> IndexUnavailable:
        from psycopg.errors import ConnectionTimeout

        is_silent = isinstance(error, Silent | ConnectionTimeout)
        kind = IndexSilent if is_silent else IndexUnavailable
        return kind(f"PostgreSQL does not answer: {_first_line(error)}")

    def _give_back(self, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            if not connection.closed and not connection.broken and len(self._free) < self._connections_max:
                self._free.append(connection)
                return
        connection.close()

    def at_places(self, select: str, places: Sequence[Place]) -> str:
        """See Database."""
        pairs = ", ".join(f"({place.time_ms}, {place.payment_hash})" for place in places)
        return f"{select} WHERE (decided_time_ms, payment_hash) IN ({pairs})"

    def places_of(self, payment_hashes: Iterable[int], span: tuple[int, int] | None = None) -> str:
        """See Database."""
        hashes = listed(payment_hashes)
        within = "" if span is None else f" AND decided_time_ms >= {span[0]} AND decided_time_ms < {span[1]}"
        return f"SELECT DISTINCT decided_time_ms, payment_hash FROM keys WHERE hash IN ({hashes}){within}"

    def fill_alone(self, transaction: Transaction) -> None:
        """See Database."""
        transaction.execute("SELECT pg_advisory_xact_lock(?)", (_FILLING_LOCK,))

    def tables_by_time(self) -> dict[str, str]:
        """See Database."""
        return dict(_TIMES)

    def merge(self) -> None:
        """See Database."""

    def tidy(self, *, at_least: int) -> None:
        """See Database."""

    def purge(self) -> bool:
        """See Database."""
        return False

    def drop_decisions(self, transaction: Transaction) -> None:
        """See Database."""
        transaction.execute(f"TRUNCATE decisions, bodies, keys, outcomes, hours, {', '.join(_DERIVED)}")

    def close(self) -> None:
        """See Database."""
        self._silence.close()
        self._close_free()

    def _close_free(self) -> None:
        with self._lock:
            for connection in self._free:
                connection.close()
            self._free.clear()


class _PostgresTransaction:
    def __init__(
        self, connection: psycopg.Connection[Any], waiting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """`waiting`: around each wait for the server, which ends it in time."""
        self._connection, self._waiting = connection, waiting

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        values = [value.replace("\0", "") if isinstance(value, str) else value for value in parameters]
        with self._waiting():
            cursor = self._connection.execute(sql.replace("%", "%%").replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        if not len(next(iter(columns.values()))):
            return
        names = ", ".join(columns)
        with self._connection.cursor() as cursor:
            with self._waiting():
                cursor.execute(
                    f"CREATE TEMPORARY TABLE IF NOT EXISTS added_{table} (LIKE {table}) ON COMMIT DELETE ROWS"
                )
                cursor.execute(f"DELETE FROM added_{table}")
            rows = list(zip(*(_listed(values) for values in columns.values()), strict=True))
            with self._waiting(), cursor.copy(f"COPY added_{table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            with self._waiting():
                cursor.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} FROM added_{table} ON CONFLICT DO NOTHING"
                )


def _listed(values: Any) -> list[Any]:
    """Returns values for PostgreSQL, whose texts cannot hold the character 0."""
    listed = values.to_pylist() if hasattr(values, "to_pylist") else values
    listed = listed.tolist() if hasattr(listed, "tolist") else listed
    return [value.replace("\0", "") if isinstance(value, str) else value for value in listed]


def _postgres_tables() -> Iterator[str]:
    unique = "PRIMARY KEY (decided_time_ms, payment_hash, decision_id)"
    yield f"CREATE TABLE IF NOT EXISTS decisions ({_DECISIONS.format(packed='')}, {unique})"
    bodies = _BODIES.format(blob="BYTEA")
    yield f"CREATE TABLE IF NOT EXISTS bodies ({bodies}, {unique})"
    yield f"CREATE TABLE IF NOT EXISTS keys ({_KEYS})"
    yield """CREATE UNIQUE INDEX IF NOT EXISTS keys_by_hash ON keys (hash, decided_time_ms DESC, payment_hash DESC)
        INCLUDE (score, action)"""
    yield f"CREATE TABLE IF NOT EXISTS outcomes ({_OUTCOMES}, PRIMARY KEY (payment_hash, outcome_time_ms, label))"
    yield "CREATE INDEX IF NOT EXISTS reviews_open ON reviews (decided_time_ms) WHERE status = 'open'"
    yield "CREATE INDEX IF NOT EXISTS verdicts_unsent ON verdicts (time_ms) WHERE NOT is_sent"
    yield "CREATE INDEX IF NOT EXISTS verdicts_of ON verdicts (decision_id)"
    columns = "merchant_id, begin_ms, country, currency, channel"
    yield f"CREATE UNIQUE INDEX IF NOT EXISTS tallies_of ON tallies ({columns})"
    yield "CREATE INDEX IF NOT EXISTS merchant_days_of ON merchant_days (day)"
    yield "CREATE INDEX IF NOT EXISTS episodes_of ON episodes (feature, entity, end_ms)"
    yield "CREATE INDEX IF NOT EXISTS episode_payments_by_time ON episode_payments (decided_time_ms, payment_hash)"


def _check_format(transaction: Transaction, where: str, what_to_do: str) -> None:
    transaction.append("facts", {"name": ["format"], "value": [FORMAT]})
    ((found,),) = transaction.execute("SELECT value FROM facts WHERE name = ?", ("format",))
    if found != FORMAT:
        made = f"the index in {where} has format {found}, wanted {FORMAT}: another release made it"
        raise Misconfigured(f"{made}. {what_to_do}")


def _first_line(error: Exception) -> str:
    """Returns the first line of a database's words. It may quote no row: statements hold values as parameters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
