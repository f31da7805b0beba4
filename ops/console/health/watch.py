"""Remember when processes were not well, for the time line on an alert's page.

Every 15 seconds the console asks the processes of `[console] processes`, as the page Health does. Each change since the
last time becomes a line in the database:

    stream   ready          08:31:15  bad   it does not answer
    host-1   mirror age     08:31:30  bad   mirror is behind the payments by 14.0 s
    host-1   mirror age     08:36:00  good  mirror is behind the payments by 0.3 s     good for a minute by then
    stream   dead letters   08:30:00        212 more dead letters        counted in steps of five minutes
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.health.health import ProcessView
from paywarden.ops.console.inbox.store import Happened
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import TemporaryFailure

_log = logging.getLogger(__name__)

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS health_events (
        process TEXT NOT NULL, what TEXT NOT NULL, time_ms INTEGER NOT NULL, is_bad INTEGER NOT NULL,
        count INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (process, what, time_ms)
    )
    """,
    "CREATE INDEX IF NOT EXISTS health_events_by_time ON health_events (time_ms)",
)
_EVERY_S = 15.0
_STEP_MS = 300_000
_KEPT_MS = 90 * 86_400_000
_READY = "ready"
# A number that swings about its limit would fill the time line. It counts as usual again after this many usual looks in
# a row.
_GOOD_LOOKS = 4
_SHOWN_MAX = 100


@dataclass
class HealthWatch:
    """Writes changes of health. `read`: the present state of the processes (`Health.read`)."""

    database: ConsoleDatabase
    read: Callable[[], Sequence[ProcessView]]
    clock: Callable[[], int] = now_ms
    _errors: dict[tuple[str, str], float] = field(default_factory=dict)
    # How many good looks in turn each number has that was bad.
    _good: dict[tuple[str, str], int] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.wait(_EVERY_S):
            try:
                self.step()
            except TemporaryFailure as error:
                _log.warning("changes of processes' health are not written: %s", error)

    def step(self) -> None:
        """Look once. Raises DatabaseUnavailable."""
        now, processes = self.clock(), self.read()
        known = {(row["process"], row["what"]): bool(row["is_bad"]) for row in self.database.read(_NEWEST)}
        with self.database.write() as connection:
            # One that has not answered this console yet, which may have begun a moment ago, says nothing.
            for process in (one for one in processes if one.asked_ms):
                states = {_READY: (not process.is_ready, process.why or "it is ready")}
                states |= {one.name: (one.is_bad, f"{one.name} {one.text}") for one in process.readings}
                for what, (is_bad, text) in states.items():
                    # The first good reading is no event.
                    if self._is_event((process.name, what), is_bad, known.get((process.name, what), False)):
                        connection.execute(_ADD, (process.name, what, now, int(is_bad), 0, text))
                for what, more in self._more_errors(process.name, process.errors):
                    connection.execute(_ADD, (process.name, what, now // _STEP_MS * _STEP_MS, 1, more, what))
            connection.execute("DELETE FROM health_events WHERE time_ms < ?", (now - _KEPT_MS,))

    def _is_event(self, of: tuple[str, str], is_bad: bool, was_bad: bool) -> bool:
        """Returns whether a state has changed. A number has to be good for a while to be as usual again."""
        self._good[of] = 0 if is_bad else self._good.get(of, 0) + 1
        if is_bad or of[1] == _READY:
            return is_bad != was_bad
        return was_bad and self._good[of] >= _GOOD_LOOKS

    def _more_errors(self, process: str, errors: Mapping[str, float]) -> list[tuple[str, int]]:
        """Returns by how much each count of errors has grown since the last look."""
        found = []
        for what, total in errors.items():
            # A count that has fallen is that of a process that started again.
            before = self._errors.get((process, what), total)
            more = round(total - before if total >= before else total)
            if more > 0:
                found.append((what, more))
            self._errors[process, what] = total
        return found

    def happenings(self, first_ms: int, last_ms: int) -> Sequence[Happened]:
        """Returns the changes of processes' health between two times, for the time line of an alert."""
        rows = self.database.read(
            "SELECT * FROM health_events WHERE time_ms BETWEEN ? AND ? ORDER BY time_ms, rowid LIMIT ?",
            (first_ms, last_ms, _SHOWN_MAX),
        )
        return [
            Happened(row["time_ms"], f"{row['process']} errors", "", f"{row['count']:,} more: {row['text']}")
            if row["count"]
            else Happened(row["time_ms"], f"{row['process']} {_kind(row['what'], row['is_bad'])}", "", row["text"])
            for row in rows
        ]


_NEWEST = "SELECT process, what, is_bad, max(time_ms) FROM health_events WHERE count = 0 GROUP BY process, what"
_ADD = """
    INSERT INTO health_events VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (process, what, time_ms) DO UPDATE SET
        is_bad = excluded.is_bad, count = count + excluded.count, text = excluded.text
"""


def _kind(what: str, is_bad: int) -> str:
    if what == _READY:
        return "not ready" if is_bad else "ready again"
    return "beyond the usual" if is_bad else "as usual again"
