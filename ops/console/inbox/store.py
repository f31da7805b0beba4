"""Alerts and people's acts on them, in the console's database, filled from the topics.

Each batch of records and the offsets behind it are one transaction: a killed console goes on where it was, and no
record counts twice. A topic that was created again empties the tables that it filled. Without its file the console
reads all topics again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paywarden.ops.alert_text import finite
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.rendering.words import what_moved
from paywarden.streams.alerts.events import ASSIGNED, COMMENTED, EVENTS_TOPIC, ConsoleEvent, alert_subject
from paywarden.streams.alerts.feed import FeedBatch, FeedPosition, FeedRecord
from paywarden.streams.alerts.records import ALERTS_TOPIC, Acknowledgement

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS alerts (
        alert_id TEXT PRIMARY KEY, state TEXT NOT NULL, is_open INTEGER NOT NULL,
        rank INTEGER NOT NULL, severity TEXT NOT NULL, time_ms INTEGER NOT NULL, first_seen_ms INTEGER NOT NULL,
        raised_ms INTEGER NOT NULL, subject TEXT NOT NULL, signal TEXT NOT NULL, segment TEXT NOT NULL,
        cause TEXT NOT NULL, model_version TEXT NOT NULL, evidence REAL NOT NULL, payments INTEGER NOT NULL,
        affected INTEGER NOT NULL, money_minor INTEGER, acknowledged_by TEXT NOT NULL DEFAULT '',
        snoozed_until_ms INTEGER NOT NULL DEFAULT 0, assigned_to TEXT NOT NULL DEFAULT '',
        comments INTEGER NOT NULL DEFAULT 0
    )
    """,
    # The records are kilobytes each: a list must not read past them.
    "CREATE TABLE IF NOT EXISTS alert_records (alert_id TEXT PRIMARY KEY, record TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS alerts_worst ON alerts (is_open, rank DESC, raised_ms, alert_id)",
    "CREATE INDEX IF NOT EXISTS alerts_newest ON alerts (is_open, raised_ms DESC)",
    "CREATE INDEX IF NOT EXISTS alerts_raised ON alerts (raised_ms)",
    # Every page counts the alerts that are open and not snoozed.
    "CREATE INDEX IF NOT EXISTS alerts_counted ON alerts (is_open, snoozed_until_ms)",
    """
    CREATE TABLE IF NOT EXISTS alert_states (
        offset INTEGER PRIMARY KEY, alert_id TEXT NOT NULL, time_ms INTEGER NOT NULL, state TEXT NOT NULL,
        severity TEXT NOT NULL, subject TEXT NOT NULL, value REAL,
        UNIQUE (alert_id, time_ms, state, severity, subject)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS events (
        event_id TEXT PRIMARY KEY, topic TEXT NOT NULL, subject TEXT NOT NULL, time_ms INTEGER NOT NULL,
        by TEXT NOT NULL, kind TEXT NOT NULL, what TEXT NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS events_of ON events (subject, time_ms)",
    """
    CREATE TABLE IF NOT EXISTS positions (
        topic TEXT PRIMARY KEY, identity TEXT NOT NULL, next_offset INTEGER NOT NULL
    )
    """,
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    # Counts of topics before they were created again.
    """
    CREATE TABLE IF NOT EXISTS gone (
        topic TEXT PRIMARY KEY, time_ms INTEGER NOT NULL, count INTEGER NOT NULL, open INTEGER NOT NULL
    )
    """,
)
SEVERITIES = ("info", "warning", "critical")
ACKNOWLEDGED, SNOOZED = "acknowledged", "snoozed"
SORTS = {
    "worst": "rank DESC, raised_ms, alert_id",
    "newest": "raised_ms DESC, alert_id",
    "oldest": "first_seen_ms, alert_id",
    "affected": "affected DESC, rank DESC, alert_id",
    "money": "money_minor IS NULL, money_minor DESC, affected DESC, alert_id",
    "evidence": "evidence DESC, alert_id",
}
_VERSION, _UNREADABLE, _HEARD = "version", "unreadable", "heard_ms"
# The end of a snooze in a condition. A count looks it up in `alerts_counted`. A page wants the index that has its order
# instead: SQLite looks up no index for an expression, and with a plus a column is one.
_SNOOZED_BY_INDEX, _SNOOZED_BY_ROW = "snoozed_until_ms", "+snoozed_until_ms"
# The year 9999 ends.
_TIME_MS_END, _TIME_DIGITS_MAX = 253_402_300_800_000, 16
# JSON has no infinity: evidence beyond it is as good as this.
_EVIDENCE_MAX = 1e9


@dataclass(frozen=True)
class AlertRow:
    """An alert in the inbox. `affected`: payments of the newest window that are other than expected."""

    alert_id: str
    severity: str
    state: str
    is_open: bool
    subject: str
    signal: str
    segment: str
    cause: str
    model_version: str
    first_seen_ms: int
    raised_ms: int
    time_ms: int
    evidence: float
    payments: int
    affected: int
    money_minor: int | None
    acknowledged_by: str
    snoozed_until_ms: int
    assigned_to: str
    comments: int


@dataclass(frozen=True)
class Happened:
    """An entry of an alert's time line: a state of the alert, or a person's act."""

    time_ms: int
    kind: str
    by: str
    text: str


@dataclass(frozen=True)
class Gone:
    """The alerts or events that were lost when a topic was created again, noticed at `time_ms`.

    `count`: alerts, or people's acts on alerts and cases. `open`: how many of the alerts were open.
    """

    topic: str
    time_ms: int
    count: int
    open: int


@dataclass(frozen=True)
class Wanted:
    """Conditions and order of alerts. Empty texts and None do not restrict. `is_snoozed`: False leaves those out."""

    is_open: bool | None = True
    severity: str = ""
    cause: str = ""
    assigned_to: str | None = None
    is_acknowledged: bool | None = None
    is_snoozed: bool | None = None
    text: str = ""
    sort: str = "worst"


Queue = Callable[[sqlite3.Connection, Mapping[str, Any]], None]
"""Takes a record of drift-alerts within a transaction: the webhooks' queue."""

QueueEvent = Callable[[sqlite3.Connection, ConsoleEvent], None]
"""Takes an event that is new, within the transaction that keeps it."""


class AlertStore:
    """The tables. Thread-safe, as the database is."""

    def __init__(
        self, database: ConsoleDatabase, queue: Queue | None = None, queue_event: QueueEvent | None = None
    ) -> None:
        """`queue` gets each new state of an alert within the transaction that takes it, `queue_event` each event."""
        self._database, self._queue, self._queue_event = database, queue, queue_event

    # Records of the topics

    def positions(self) -> dict[str, FeedPosition]:
        """Returns where each topic goes on."""
        rows = self._database.read("SELECT topic, identity, next_offset FROM positions")
        return {row["topic"]: FeedPosition(row["identity"], row["next_offset"]) for row in rows}

    def begin_anew(self, topics: Iterable[str], now_ms: int) -> None:
        """Delete the records that came from these topics, and remember how many there were."""
        with self._database.write() as connection:
            for topic in topics:
                _note_gone(connection, topic, now_ms)
                if topic == ALERTS_TOPIC:
                    connection.execute("DELETE FROM alerts")
                    connection.execute("DELETE FROM alert_records")
                    connection.execute("DELETE FROM alert_states")
                connection.execute("DELETE FROM events WHERE topic = ?", (topic,))
                connection.execute("DELETE FROM positions WHERE topic = ?", (topic,))
            for (alert_id,) in connection.execute("SELECT alert_id FROM alerts").fetchall():
                _follow_up(connection, alert_id)
            _count(connection, _VERSION, 1)

    def take(self, batch: FeedBatch, *, tells: bool = True) -> None:
        """Keep a batch of records and the offsets behind it. With `tells`, the queue gets new states of alerts."""
        touched: set[str] = set()
        with self._database.write() as connection:
            for record in batch.records:
                if record.value is None:
                    _count(connection, _UNREADABLE, 1)
                elif record.topic == ALERTS_TOPIC:
                    if _take_alert(connection, record) and tells and self._queue is not None:
                        self._queue(connection, record.value)
                    touched.add(str(record.value["alert_id"]))
                else:
                    event = event_of_record(record)
                    if _take_event(connection, record.topic, event) and tells and self._queue_event is not None:
                        self._queue_event(connection, event)
                    kind, _, name = event.subject.partition(":")
                    touched |= {name} if kind == "alert" else set()
            for alert_id in touched:
                _follow_up(connection, alert_id)
            for topic, position in batch.positions.items():
                connection.execute(
                    "INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (topic) DO UPDATE SET identity = "
                    "excluded.identity, next_offset = excluded.next_offset",
                    (topic, position.identity, position.next_offset),
                )
            if batch.records:
                _count(connection, _VERSION, 1)

    # Queries of the pages

    @property
    def version(self) -> int:
        """A number that another one follows when anything has changed."""
        return self._counter(_VERSION)

    @property
    def heard_ms(self) -> int:
        """The time at which the topics were last read to their ends; 0 for never."""
        return self._counter(_HEARD)

    def put_heard(self, now_ms: int) -> None:
        """Note that the topics have been read to their ends."""
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (_HEARD, now_ms),
            )

    def gone(self) -> list[Gone]:
        """Returns the counts of topics before they were created again."""
        rows = self._database.read("SELECT topic, time_ms, count, open FROM gone ORDER BY topic")
        return [Gone(row["topic"], row["time_ms"], row["count"], row["open"]) for row in rows]

    @property
    def unreadable(self) -> int:
        """The number of records that could not be read."""
        return self._counter(_UNREADABLE)

    def count(self, wanted: Wanted, now_ms: int) -> int:
        """Returns how many alerts there are."""
        where, values = _where(wanted, now_ms, snoozed=_SNOOZED_BY_INDEX)
        return int(self._database.read(f"SELECT count(*) AS n FROM alerts WHERE {where}", values)[0]["n"])

    def page(self, wanted: Wanted, now_ms: int, *, limit: int, offset: int = 0) -> list[AlertRow]:
        """Returns a page of alerts."""
        where, values = _where(wanted, now_ms, snoozed=_SNOOZED_BY_ROW)
        columns = ", ".join(AlertRow.__dataclass_fields__)
        rows = self._database.read(
            f"SELECT {columns} FROM alerts WHERE {where} ORDER BY {SORTS[wanted.sort]} LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return [_row(row) for row in rows]

    def find(self, alert_id: str) -> tuple[AlertRow, dict[str, Any]] | None:
        """Returns an alert and its newest record; None if there is none."""
        rows = self._database.read(
            "SELECT * FROM alerts JOIN alert_records USING (alert_id) WHERE alert_id = ?", (alert_id,)
        )
        if not rows:
            return None
        row = rows[0]
        columns = {name: row[name] for name in AlertRow.__dataclass_fields__}
        return _row(columns), json.loads(row["record"])

    def states(self, alert_id: str) -> Sequence[Happened]:
        """Returns the states that an alert was in, the oldest first."""
        rows = self._database.read("SELECT * FROM alert_states WHERE alert_id = ? ORDER BY offset", (alert_id,))
        return [
            Happened(row["time_ms"], row["state"], "stream", f"{row['severity']}: {what_moved(row['subject'])}")
            for row in rows
        ]

    def values(self, alert_id: str) -> Sequence[tuple[int, float]]:
        """Returns the time and the size of the change in each record of an alert."""
        rows = self._database.read(
            "SELECT time_ms, value FROM alert_states WHERE alert_id = ? AND value IS NOT NULL ORDER BY offset",
            (alert_id,),
        )
        return [(row["time_ms"], row["value"]) for row in rows]

    def events(self, subject: str) -> Sequence[ConsoleEvent]:
        """Returns people's acts on a subject, in the order of the topic."""
        rows = self._database.read("SELECT * FROM events WHERE subject = ? ORDER BY rowid", (subject,))
        return [_event(row) for row in rows]

    def events_of_kind(self, prefix: str, after: int = 0) -> Sequence[tuple[int, ConsoleEvent]]:
        """Returns events about subjects that begin with `prefix`, such as `case:`, the oldest first.

        Each has its number in the database; only those with a higher one than `after` come.
        """
        rows = self._database.read(
            "SELECT rowid AS number, * FROM events WHERE subject >= ? AND subject < ? AND rowid > ? ORDER BY rowid",
            (prefix, _end_of(prefix), after),
        )
        return [(row["number"], _event(row)) for row in rows]

    def mark_of_kind(self, prefix: str, number: int) -> tuple[int, str]:
        """Returns how many events of a kind have at most this number, and the id of the event with this number.

        Both stay the same unless the topic was read again.
        """
        rows = self._database.read(
            "SELECT (SELECT count(*) FROM events WHERE subject >= ? AND subject < ? AND rowid <= ?) AS n, "
            "coalesce((SELECT event_id FROM events WHERE rowid = ?), '') AS id",
            (prefix, _end_of(prefix), number, number),
        )
        return rows[0]["n"], rows[0]["id"]

    def has_event(self, event_id: str) -> bool:
        """Returns whether an event has been read from its topic."""
        return bool(self._database.read("SELECT 1 FROM events WHERE event_id = ?", (event_id,)))

    def drop_older(self, prefix: str, time_ms: int) -> None:
        """Drop events about subjects that begin with `prefix` and are from before a time."""
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM events WHERE subject >= ? AND subject < ? AND time_ms < ?",
                (prefix, _end_of(prefix), time_ms),
            )

    def near(self, first_ms: int, last_ms: int, *, but: str) -> list[AlertRow]:
        """Returns other alerts that were raised in this time, at most 20."""
        columns = ", ".join(AlertRow.__dataclass_fields__)
        rows = self._database.read(
            f"SELECT {columns} FROM alerts WHERE raised_ms BETWEEN ? AND ? AND alert_id <> ? "
            "ORDER BY raised_ms LIMIT 20",
            (first_ms, last_ms, but),
        )
        return [_row(row) for row in rows]

    def ids_beginning(self, text: str) -> list[str]:
        """Returns the ids of the first alerts whose ids begin so."""
        rows = self._database.read(
            "SELECT alert_id FROM alerts WHERE substr(alert_id, 1, ?) = ? LIMIT 3", (len(text), text)
        )
        return [row["alert_id"] for row in rows]

    def _counter(self, name: str) -> int:
        rows = self._database.read("SELECT value FROM counters WHERE name = ?", (name,))
        return int(rows[0]["value"]) if rows else 0


def _note_gone(connection: sqlite3.Connection, topic: str, now_ms: int) -> None:
    if topic == ALERTS_TOPIC:
        wanted = "SELECT count(*), coalesce(sum(is_open), 0) FROM alerts"
        count, open_count = connection.execute(wanted).fetchone()
    else:
        # The other events are the console's own, such as those of keys of requests.
        wanted = "SELECT count(*), 0 FROM events WHERE topic = ? AND (subject GLOB 'alert:*' OR subject GLOB 'case:*')"
        count, open_count = connection.execute(wanted, (topic,)).fetchone()
    if count:
        connection.execute(
            "INSERT INTO gone VALUES (?, ?, ?, ?) ON CONFLICT (topic) DO UPDATE SET time_ms = excluded.time_ms, "
            "count = excluded.count, open = excluded.open",
            (topic, now_ms, count, open_count),
        )


def _end_of(prefix: str) -> str:
    """Returns the first text behind all that begin with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def affected_of(record: Mapping[str, Any]) -> int:
    """Returns how many payments of the newest window are other than expected.

    Histograms: the payments that would have to move for the expected shares. A share: how many more or fewer there are.
    """
    count = int(record["current_count"])
    was, now = record.get("reference_histogram"), record.get("current_histogram")
    if was is not None and now is not None and len(was["counts"]) == len(now["counts"]):
        before, after = ([*histogram["counts"], histogram["missing"]] for histogram in (was, now))
        if sum(before) and sum(after):
            shares = zip(before, after, strict=True)
            moved: float = sum(max(0.0, b / sum(after) - a / sum(before)) for a, b in shares)
            return round(count * moved)
    if record["statistic"] == "relative_change":
        return round(count * min(1.0, abs(float(record["current"]) - float(record["expected"]))))
    return count


def event_of_record(record: FeedRecord) -> ConsoleEvent:
    """Returns a record of the two topics of acts as an event."""
    assert record.value is not None
    if record.topic == EVENTS_TOPIC:
        return ConsoleEvent.of_record(record.value)
    said = Acknowledgement.of_record(record.value)
    what = {"note": said.note} if said.note else {}
    if said.until_ms:
        what["until_ms"] = str(said.until_ms)
    kind = SNOOZED if said.until_ms else ACKNOWLEDGED
    # The same act that was sent twice has one id.
    event_id = f"{said.alert_id}:{said.time_ms}:{said.by}:{kind}"
    return ConsoleEvent(alert_subject(said.alert_id), kind, said.by, said.time_ms, what, event_id)


def _take_alert(connection: sqlite3.Connection, record: FeedRecord) -> bool:
    """Keep a record of drift-alerts; returns whether it is a new state and no repetition."""
    assert record.value is not None
    alert = finite(dict(record.value))
    state = (alert["time_ms"], alert["state"], alert["severity"], alert["subject"])
    try:
        connection.execute(
            "INSERT INTO alert_states VALUES (?, ?, ?, ?, ?, ?, ?)",
            (record.offset, alert["alert_id"], *state, alert["value"]),
        )
    except sqlite3.IntegrityError:
        return False
    evidence = min(_EVIDENCE_MAX, record.value["evidence"])
    connection.execute(
        "INSERT INTO alert_records VALUES (?, ?) ON CONFLICT (alert_id) DO UPDATE SET record = excluded.record",
        (alert["alert_id"], json.dumps(alert)),
    )
    connection.execute(
        """
        INSERT INTO alerts (
            alert_id, state, is_open, rank, severity, time_ms, first_seen_ms, raised_ms, subject, signal,
            segment, cause, model_version, evidence, payments, affected
        ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (alert_id) DO UPDATE SET
            state = excluded.state, is_open = excluded.is_open, rank = excluded.rank,
            severity = excluded.severity, time_ms = excluded.time_ms, first_seen_ms = excluded.first_seen_ms,
            subject = excluded.subject, signal = excluded.signal, segment = excluded.segment,
            cause = excluded.cause, evidence = excluded.evidence, payments = excluded.payments,
            affected = excluded.affected, money_minor = NULL
        """,
        (
            *(alert["alert_id"], alert["state"], int(alert["state"] != "cleared")),
            *(SEVERITIES.index(alert["severity"]), alert["severity"], alert["time_ms"], alert["first_seen_time_ms"]),
            *(alert["time_ms"], alert["subject"], alert["signal"], alert["segment"], alert["cause"]),
            *(alert["model_version"], evidence, alert["current_count"], affected_of(record.value)),
        ),
    )
    return True


def _take_event(connection: sqlite3.Connection, topic: str, event: ConsoleEvent) -> bool:
    """Keep an act; returns whether it is new."""
    done = connection.execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event.event_id, topic, event.subject, event.time_ms, event.by, event.kind, json.dumps(dict(event.what))),
    )
    return done.rowcount > 0


def events_in(connection: sqlite3.Connection, subject: str) -> list[ConsoleEvent]:
    """Returns the events about a subject as a transaction sees them, in the order of the topic."""
    rows = connection.execute("SELECT * FROM events WHERE subject = ? ORDER BY rowid", (subject,)).fetchall()
    return [_event(row) for row in rows]


def _follow_up(connection: sqlite3.Connection, alert_id: str) -> None:
    """Set the columns of an alert from its acts."""
    rows = connection.execute(
        "SELECT * FROM events WHERE subject = ? ORDER BY time_ms, event_id", (alert_subject(alert_id),)
    ).fetchall()
    by, until_ms, to, comments = "", 0, "", 0
    for event in map(_event, rows):
        if event.kind in (ACKNOWLEDGED, SNOOZED):
            by, until_ms = event.by, max(until_ms, snoozed_until_ms(event.what))
        elif event.kind == ASSIGNED:
            to = event.what.get("to", "")
        comments += int(event.kind == COMMENTED or bool(event.what.get("note")))
    connection.execute(
        "UPDATE alerts SET acknowledged_by = ?, snoozed_until_ms = ?, assigned_to = ?, comments = ? WHERE alert_id = ?",
        (by, until_ms, to, comments, alert_id),
    )


def snoozed_until_ms(what: Mapping[str, str]) -> int:
    """Returns when the snooze of an act ends; 0 if it does not say so in milliseconds of a year that can be shown."""
    text = what.get("until_ms", "0")
    until_ms = int(text) if text.isascii() and text.isdigit() and len(text) < _TIME_DIGITS_MAX else 0
    return until_ms if until_ms < _TIME_MS_END else 0


def _where(wanted: Wanted, now_ms: int, *, snoozed: str) -> tuple[str, list[object]]:
    """Returns the condition and its values. `snoozed`: how the end of a snooze is named, which chooses the index."""
    clauses, values = ["1"], list[object]()
    for column, value in (
        ("is_open = ?", None if wanted.is_open is None else int(wanted.is_open)),
        ("severity = ?", wanted.severity or None),
        ("cause = ?", wanted.cause or None),
        ("assigned_to = ?", wanted.assigned_to),
    ):
        if value is not None:
            clauses.append(column)
            values.append(value)
    if wanted.is_acknowledged is not None:
        clauses.append("acknowledged_by <> ''" if wanted.is_acknowledged else "acknowledged_by = ''")
    if wanted.is_snoozed is not None:
        clauses.append(f"{snoozed} > ?" if wanted.is_snoozed else f"{snoozed} <= ?")
        values.append(now_ms)
    if wanted.text:
        pattern = "%" + wanted.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        names = ("subject", "segment", "alert_id", "model_version", "assigned_to", "acknowledged_by")
        clauses.append("(" + " OR ".join(f"{name} LIKE ? ESCAPE '\\'" for name in names) + ")")
        values += [pattern] * len(names)
    return " AND ".join(clauses), values


def _row(row: sqlite3.Row | Mapping[str, Any]) -> AlertRow:
    made = AlertRow(**{name: row[name] for name in AlertRow.__dataclass_fields__})
    return replace(made, is_open=bool(made.is_open))


def _event(row: sqlite3.Row) -> ConsoleEvent:
    return ConsoleEvent(
        row["subject"], row["kind"], row["by"], row["time_ms"], json.loads(row["what"]), row["event_id"]
    )


def _count(connection: sqlite3.Connection, name: str, more: int) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, more),
    )
