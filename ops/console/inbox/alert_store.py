"""Alerts, people's acts on them, and cases, in the console's database, filled from the topics.

Each batch of records and the offsets behind it are one transaction: a killed console goes on where it was, and no
record counts twice. A topic that was created again empties the tables that it filled. Without its file the console
reads all topics again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from paywarden.ops.alert_text import finite
from paywarden.ops.console import case as cases
from paywarden.ops.console.case import Case
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.words import what_moved
from paywarden.streams.alerts.alert_events import ASSIGNED, COMMENTED, EVENTS_TOPIC, ConsoleEvent, alert_subject
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC, Acknowledgement
from paywarden.streams.alerts.feed import FeedBatch, FeedPosition, FeedRecord
from paywarden.streams.decision_index.erasure import ERASED

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS alerts (
        alert_id TEXT PRIMARY KEY, severity TEXT NOT NULL, state TEXT NOT NULL, is_open INTEGER NOT NULL,
        subject TEXT NOT NULL, signal TEXT NOT NULL, segment TEXT NOT NULL, cause TEXT NOT NULL,
        model_version TEXT NOT NULL, first_seen_ms INTEGER NOT NULL, raised_ms INTEGER NOT NULL,
        time_ms INTEGER NOT NULL, evidence REAL NOT NULL, payments INTEGER NOT NULL, affected INTEGER NOT NULL,
        money_minor INTEGER, acknowledged_by TEXT NOT NULL DEFAULT '', snoozed_until_ms INTEGER NOT NULL DEFAULT 0,
        assigned_to TEXT NOT NULL DEFAULT '', comments INTEGER NOT NULL DEFAULT 0, rank INTEGER NOT NULL
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
    "CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, time_ms)",
    """
    CREATE TABLE IF NOT EXISTS cases (
        case_id TEXT PRIMARY KEY, title TEXT NOT NULL, assigned_to TEXT NOT NULL, money_minor INTEGER NOT NULL,
        items INTEGER NOT NULL, is_open INTEGER NOT NULL, verdict TEXT NOT NULL, changed_ms INTEGER NOT NULL
    )
    """,
    # Notes in cases that mention a person who has not opened the case since.
    """
    CREATE TABLE IF NOT EXISTS mentions (
        person TEXT NOT NULL, case_id TEXT NOT NULL, by TEXT NOT NULL, time_ms INTEGER NOT NULL,
        PRIMARY KEY (person, case_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS positions (topic TEXT PRIMARY KEY, identity TEXT NOT NULL, next_offset INTEGER NOT NULL)
    """,
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    # Counts of topics before they were created again.
    """
    CREATE TABLE IF NOT EXISTS gone (
        topic TEXT PRIMARY KEY, time_ms INTEGER NOT NULL, count INTEGER NOT NULL, open INTEGER NOT NULL
    )
    """,
)
NOTE_PREFIX = "note:"
"""The beginning of the subject of a note about a card or other entity (notes.py)."""
MENTION_MS = 30 * 86_400_000
"""How long a mention waits for its person."""
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
# A count looks the end of a snooze up in `alerts_counted`. A page wants the index that has its order instead: SQLite
# looks up no index for an expression, and with a plus a column is one.
STATES = {
    "open": "is_open = 1 AND {plus}snoozed_until_ms <= :now",
    "snoozed": "is_open = 1 AND {plus}snoozed_until_ms > :now",
    "cleared": "is_open = 0",
    "all": "1",
}
# Whom an event of the kind ASSIGNED names.
_TO = "json_extract(what, '$.to')"
_ANY_TEXT = ("subject", "segment", "alert_id", "model_version", "assigned_to", "acknowledged_by")
_FILTERS = {
    "severity": "severity = :severity",
    "cause": "cause = :cause",
    "assigned": "assigned_to = :assigned",
    "seen": "(acknowledged_by <> '') = (:seen = 'yes')",
    "q": "(" + " OR ".join(f"instr(casefold({name}), casefold(:q))" for name in _ANY_TEXT) + ")",
}
_VERSION, _UNREADABLE, _HEARD, _LARGE = "version", "unreadable", "heard_ms", "large_case_minor"
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


_COLUMNS = ", ".join(one.name for one in fields(AlertRow))


@dataclass(frozen=True)
class Happened:
    """An entry of an alert's time line: a state of the alert, or a person's act."""

    time_ms: int
    kind: str
    by: str
    text: str


@dataclass(frozen=True)
class Gone:
    """The alerts or acts that were lost when a topic was created again, noticed at `time_ms`; `open` of them alerts."""

    topic: str
    time_ms: int
    count: int
    open: int


QueueAlert = Callable[[sqlite3.Connection, Mapping[str, Any]], None]
"""Takes a record of drift-alerts that is a new state, within the transaction that keeps it: the webhooks' queue."""

QueueCase = Callable[[sqlite3.Connection, Case], None]
"""Takes a case after an event that is new, within the transaction that keeps it."""


class AlertStore:
    """The tables. Thread-safe, as the database is."""

    def __init__(
        self,
        database: ConsoleDatabase,
        queue: QueueAlert | None = None,
        queue_case: QueueCase | None = None,
        *,
        large_case_minor: int = 1_000_000,
    ) -> None:
        """`large_case_minor`: from this money on a case takes two people to close."""
        self._database, self._queue, self._queue_case = database, queue, queue_case
        self.large_case_minor = large_case_minor
        if self._counter(_LARGE) != large_case_minor:
            self._fold_cases()

    # Records of the topics

    def positions(self) -> dict[str, FeedPosition]:
        """Return where each topic goes on."""
        rows = self._database.read("SELECT topic, identity, next_offset FROM positions")
        return {row["topic"]: FeedPosition(row["identity"], row["next_offset"]) for row in rows}

    def begin_again(self, topics: Iterable[str], now_ms: int) -> None:
        """Delete the records that came from these topics, and remember how many there were."""
        with self._database.write() as connection:
            for topic in topics:
                _note_gone(connection, topic, now_ms)
                for table in {
                    ALERTS_TOPIC: ("alerts", "alert_records", "alert_states"),
                    EVENTS_TOPIC: ("cases", "mentions"),
                }.get(topic, ()):
                    connection.execute(f"DELETE FROM {table}")
                connection.execute("DELETE FROM events WHERE topic = ?", (topic,))
                connection.execute("DELETE FROM positions WHERE topic = ?", (topic,))
            for (alert_id,) in connection.execute("SELECT alert_id FROM alerts").fetchall():
                _follow_up(connection, alert_id)
            _count(connection, _VERSION, 1)

    def take(self, batch: FeedBatch, *, tells: bool = True) -> None:
        """Keep a batch of records and the offsets behind it. With `tells`, the queues get what is new."""
        touched: set[str] = set()
        erased = False
        with self._database.write() as connection:
            for record in batch.records:
                if record.value is None:
                    _count(connection, _UNREADABLE, 1)
                elif record.topic == ALERTS_TOPIC:
                    touched.add(str(record.value["alert_id"]))
                    if _take_alert(connection, record) and tells and self._queue is not None:
                        self._queue(connection, record.value)
                else:
                    event = event_of_record(record)
                    kind, _, name = event.subject.partition(":")
                    touched |= {name} if kind == "alert" else set()
                    is_new = _take_event(connection, record.topic, event)
                    erased |= is_new and _erase_notes(connection, event)
                    if is_new and event.subject.startswith(cases.PREFIX):
                        case = self._take_case(connection, event.subject)
                        _take_mentions(connection, event)
                        if case is not None and tells and self._queue_case is not None:
                            self._queue_case(connection, case)
            for alert_id in touched:
                _follow_up(connection, alert_id)
            connection.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                [(topic, one.identity, one.next_offset) for topic, one in batch.positions.items()],
            )
            if batch.records:
                _count(connection, _VERSION, 1)
        if erased:
            # Pages of before are in the log beside the file until then.
            self._database.read("PRAGMA wal_checkpoint(TRUNCATE)")

    def _take_case(self, connection: sqlite3.Connection, subject: str) -> Case | None:
        """Put a case in the list as all of its events make it, and return it."""
        rows = connection.execute(_EVENTS_OF, (subject,)).fetchall()
        case = cases.case_of(map(_event, rows), self.large_case_minor)
        if case is not None:
            values = [getattr(case, name) for name in ("case_id", "title", "assigned_to", "money_minor")]
            values += [len(case.items), case.is_open, case.verdict, case.changed_ms]
            connection.execute("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return case

    def _fold_cases(self) -> None:
        """Put all cases in the list again: by another amount other acts break a rule."""
        with self._database.write() as connection:
            subjects = connection.execute("SELECT DISTINCT subject FROM events WHERE subject GLOB 'case:*'").fetchall()
            for (subject,) in subjects:
                self._take_case(connection, subject)
            connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (_LARGE, self.large_case_minor))

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
            connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (_HEARD, now_ms))

    @property
    def unreadable(self) -> int:
        """The number of records that could not be read."""
        return self._counter(_UNREADABLE)

    def gone(self) -> list[Gone]:
        """Return the counts of topics before they were created again."""
        return [Gone(*row) for row in self._database.read("SELECT * FROM gone ORDER BY topic")]

    def count(self, filters: Mapping[str, str], now_ms: int) -> int:
        """Return how many alerts meet the filters: see `page`."""
        where, values = _where(filters, now_ms, plus="")
        return int(self._database.read(f"SELECT count(*) AS n FROM alerts WHERE {where}", values)[0]["n"])

    def page(self, filters: Mapping[str, str], now_ms: int, *, limit: int, offset: int = 0) -> list[AlertRow]:
        """Return alerts. `filters`: state (of STATES; open without it), severity, cause, assigned, seen, q, sort."""
        where, values = _where(filters, now_ms, plus="+")
        order = SORTS[filters.get("sort", "worst")]
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM alerts WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset",
            {**values, "limit": limit, "offset": offset},
        )
        return [_row(row) for row in rows]

    def find(self, alert_id: str) -> tuple[AlertRow, dict[str, Any]] | None:
        """Return an alert and its newest record, the last open one if it has cleared; None if there is none."""
        rows = self._database.read(
            f"SELECT {_COLUMNS}, record FROM alerts JOIN alert_records USING (alert_id) WHERE alert_id = ?", (alert_id,)
        )
        return (_row(rows[0][:-1]), json.loads(rows[0]["record"])) if rows else None

    def cleared(self, since_ms: int) -> list[AlertRow]:
        """Return the alerts that have cleared since a time, the latest first, at most 20."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM alerts WHERE is_open = 0 AND time_ms >= ? "
            "ORDER BY time_ms DESC, alert_id LIMIT 20",
            (since_ms,),
        )
        return [_row(row) for row in rows]

    def near(self, first_ms: int, last_ms: int, *, but: str) -> list[AlertRow]:
        """Return other alerts that were raised in this time, at most 20."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM alerts WHERE raised_ms BETWEEN ? AND ? AND alert_id <> ? "
            "ORDER BY raised_ms LIMIT 20",
            (first_ms, last_ms, but),
        )
        return [_row(row) for row in rows]

    def ids_beginning(self, text: str) -> list[str]:
        """Return the ids of the first alerts whose ids begin so."""
        rows = self._database.read(
            "SELECT alert_id FROM alerts WHERE substr(alert_id, 1, ?) = ? LIMIT 3", (len(text), text)
        )
        return [row["alert_id"] for row in rows]

    def states(self, alert_id: str) -> Sequence[Happened]:
        """Return the states that an alert was in, the oldest first."""
        rows = self._database.read("SELECT * FROM alert_states WHERE alert_id = ? ORDER BY offset", (alert_id,))
        return [
            Happened(row["time_ms"], row["state"], "stream", f"{row['severity']}: {what_moved(row['subject'])}")
            for row in rows
        ]

    def values(self, alert_id: str) -> Sequence[tuple[int, float]]:
        """Return the time and the size of the change in each record of an alert."""
        rows = self._database.read(
            "SELECT time_ms, value FROM alert_states WHERE alert_id = ? AND value IS NOT NULL ORDER BY offset",
            (alert_id,),
        )
        return [(row["time_ms"], row["value"]) for row in rows]

    def events(self, subject: str) -> Sequence[ConsoleEvent]:
        """Return people's acts on a subject, in the order of the topic."""
        return [_event(row) for row in self._database.read(_EVENTS_OF, (subject,))]

    def has_event(self, event_id: str) -> bool:
        """Return whether an event has been read from its topic."""
        return bool(self._database.read("SELECT 1 FROM events WHERE event_id = ?", (event_id,)))

    def case(self, case_id: str) -> Case | None:
        """Return a case as its events make it; None if there is none."""
        return cases.case_of(self.events(cases.case_subject(case_id)), self.large_case_minor)

    def cases(self, state: str, text: str, *, limit: int, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return a page of cases, open ones first, the newest change first, and how many meet the filters."""
        where = {"open": "is_open", "closed": "NOT is_open"}.get(state, "1")
        if text:
            names = ("title", "case_id", "assigned_to")
            where += " AND (" + " OR ".join(f"instr(casefold({name}), casefold(:text))" for name in names) + ")"
        values = {"text": text, "limit": limit, "offset": offset}
        rows = self._database.read(
            f"SELECT * FROM cases WHERE {where} ORDER BY is_open DESC, changed_ms DESC, case_id "
            "LIMIT :limit OFFSET :offset",
            values,
        )
        total = self._database.read(f"SELECT count(*) AS n FROM cases WHERE {where}", values)[0]["n"]
        return [{**row, "is_open": bool(row["is_open"])} for row in map(dict, rows)], total

    def assignments(self, payment_ids: Iterable[str]) -> dict[str, str]:
        """Return by payment whom it is assigned to."""
        subjects = [f"payment:{one}" for one in payment_ids]
        rows = self._database.read(
            f"SELECT subject, {_TO} AS person FROM events WHERE subject IN ({', '.join('?' * len(subjects))}) "
            "AND kind = ? ORDER BY rowid",
            [*subjects, ASSIGNED],
        )
        return {row["subject"].partition(":")[2]: row["person"] for row in rows if row["person"]}

    def assigned_to(self, person: str, since_ms: int) -> list[str]:
        """Return the decisions about payments that are assigned to a person since a time, the first assigned first."""
        rows = self._database.read(
            "SELECT json_extract(what, '$.decision') AS decision FROM events e WHERE kind = ? AND time_ms >= ? "
            f"AND subject GLOB 'payment:*' AND {_TO} = ? AND NOT EXISTS (SELECT 1 FROM events later "
            "WHERE later.subject = e.subject AND later.kind = e.kind AND later.rowid > e.rowid) ORDER BY rowid",
            (ASSIGNED, since_ms, person),
        )
        return [row["decision"] for row in rows if row["decision"]]

    def mentions(self, person: str, now_ms: int) -> list[dict[str, Any]]:
        """Return the cases whose newer notes mention a person who has not opened them, the newest first."""
        rows = self._database.read(
            "SELECT case_id, title, by, time_ms FROM mentions JOIN cases USING (case_id) WHERE person = ? "
            "AND time_ms > ? ORDER BY time_ms DESC LIMIT 50",
            (person, now_ms - MENTION_MS),
        )
        return list(map(dict, rows))

    def end_mention(self, person: str, case_id: str) -> None:
        """Take a mention away: the person has opened the case."""
        if self._database.read("SELECT 1 FROM mentions WHERE person = ? AND case_id = ?", (person, case_id)):
            with self._database.write() as connection:
                connection.execute("DELETE FROM mentions WHERE person = ? AND case_id = ?", (person, case_id))

    def _counter(self, name: str) -> int:
        rows = self._database.read("SELECT value FROM counters WHERE name = ?", (name,))
        return int(rows[0]["value"]) if rows else 0


_EVENTS_OF = "SELECT * FROM events WHERE subject = ? ORDER BY rowid"


def _note_gone(connection: sqlite3.Connection, topic: str, now_ms: int) -> None:
    if topic == ALERTS_TOPIC:
        wanted, values = "SELECT count(*), coalesce(sum(is_open), 0) FROM alerts", list[str]()
    else:
        # The other events are the console's own, such as heads of the audit log.
        kinds = " OR ".join(f"subject GLOB '{kind}:*'" for kind in ("alert", "case", "note"))
        wanted = f"SELECT count(*), 0 FROM events WHERE topic = ? AND ({kinds})"
        values = [topic]
    count, open_count = connection.execute(wanted, values).fetchone()
    if count:
        connection.execute("INSERT OR REPLACE INTO gone VALUES (?, ?, ?, ?)", (topic, now_ms, count, open_count))


def affected_of(record: Mapping[str, Any]) -> int:
    """Return how many payments of the newest window are other than expected.

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
    """Return a record of the two topics of acts as an event."""
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
    """Keep a record of drift-alerts; return whether it is a new state and no repetition."""
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
    # An alert that has cleared stays as it was when it was open: the record of its end has a change that is over.
    is_open = alert["state"] != "cleared"
    connection.execute(
        f"INSERT OR {'REPLACE' if is_open else 'IGNORE'} INTO alert_records VALUES (?, ?)",
        (alert["alert_id"], json.dumps(alert)),
    )
    # The first record's time and model stay.
    values = {
        **{name: alert[name] for name in ("alert_id", "severity", "state", "subject", "signal", "segment", "cause")},
        **{name: alert[name] for name in ("time_ms", "model_version")},
        "is_open": int(is_open),
        "rank": SEVERITIES.index(alert["severity"]),
        "first_seen_ms": alert["first_seen_time_ms"],
        "raised_ms": alert["time_ms"],
        "evidence": min(_EVIDENCE_MAX, record.value["evidence"]),
        "payments": alert["current_count"],
        "affected": affected_of(record.value),
        "money_minor": None,
    }
    changed = [name for name in values if name not in ("alert_id", "raised_ms", "model_version")]
    changed = changed if is_open else ["state", "time_ms", "is_open"]
    connection.execute(
        f"INSERT INTO alerts ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)}) "
        f"ON CONFLICT (alert_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in changed)}",
        values,
    )
    return True


def _take_event(connection: sqlite3.Connection, topic: str, event: ConsoleEvent) -> bool:
    """Keep an act; return whether it is new."""
    done = connection.execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event.event_id, topic, event.subject, event.time_ms, event.by, event.kind, json.dumps(dict(event.what))),
    )
    return done.rowcount > 0


def _erase_notes(connection: sqlite3.Connection, event: ConsoleEvent) -> bool:
    """Delete the notes that an erasure names, and a note that comes after its erasure; return whether there were any.

    An erasure of a combination, such as a card at a merchant, erases no notes of either.
    """
    kind, _, entity = event.subject.partition(":")
    if kind == ERASED:
        until_ms = event.time_ms
    elif f"{kind}:" == NOTE_PREFIX:
        wanted = "SELECT coalesce(max(time_ms), -1) FROM events WHERE subject = ? AND kind = ?"
        (until_ms,) = connection.execute(wanted, (f"{ERASED}:{entity}", ERASED)).fetchone()
    else:
        return False
    done = connection.execute("DELETE FROM events WHERE subject = ? AND time_ms <= ?", (NOTE_PREFIX + entity, until_ms))
    return done.rowcount > 0


def _take_mentions(connection: sqlite3.Connection, event: ConsoleEvent) -> None:
    """Keep the newest note of a case for each person whom it mentions."""
    case_id = event.subject.removeprefix(cases.PREFIX)
    connection.executemany(
        "INSERT OR REPLACE INTO mentions VALUES (?, ?, ?, ?)",
        [
            (name, case_id, event.by, event.time_ms)
            for name in cases.mentioned(event.what.get("note", ""))
            if name != event.by
        ],
    )


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
    """Return when the snooze of an act ends; 0 if it does not say so in milliseconds of a year that can be shown."""
    text = what.get("until_ms", "0")
    until_ms = int(text) if text.isascii() and text.isdigit() and len(text) < _TIME_DIGITS_MAX else 0
    return until_ms if until_ms < _TIME_MS_END else 0


def _where(filters: Mapping[str, str], now_ms: int, *, plus: str) -> tuple[str, dict[str, Any]]:
    """Return the condition and its values. `plus`: before the end of a snooze, which chooses the index."""
    clauses = [STATES[filters.get("state", "open")].format(plus=plus)]
    clauses += [clause for name, clause in _FILTERS.items() if name in filters]
    return " AND ".join(clauses), {**filters, "now": now_ms}


def _row(row: Sequence[Any]) -> AlertRow:
    values = dict(zip([one.name for one in fields(AlertRow)], row, strict=True))
    return AlertRow(**{**values, "is_open": bool(values["is_open"])})


def _event(row: sqlite3.Row) -> ConsoleEvent:
    return ConsoleEvent(
        row["subject"], row["kind"], row["by"], row["time_ms"], json.loads(row["what"]), row["event_id"]
    )


def _count(connection: sqlite3.Connection, name: str, more: int) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, more),
    )
