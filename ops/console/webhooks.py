"""Tell other systems of new and changed alerts and cases: signed, at least once, again and again until they answer.

    POST https://hooks.example/fraud
    paywarden-delivery: 41
    paywarden-signature: t=1760000000,v1=5257a869e7…          HMAC-SHA256 of "1760000000.BODY" with the key
    {"kind":"alert","alert_id":"00ffee","state":"raised","severity":"critical",…,"link":"https://console…/inbox/00ffee"}

    {"kind":"case","case_id":"5f0c","change":"closed","by":"anna","verdict":"fraud",…,"link":"https://console…/cases/5f0c"}

1. A message is queued in the transaction that takes the alert's record or the case's event, so that none is lost and a
   restart repeats none that was answered. An event that breaks a rule of cases changes nothing, and is not sent. Notes
   and files stay in the console.
2. Any answer of 200 to 299 ends it. After another answer, or without one, it is sent again: after a second, two, four,
   at most an hour. After a day it is given up. From the third try on, every page shows the receiver's last answer.
3. A receiver that does not answer at all is asked once in a turn, so that the others wait for it at most once.
4. The receiver checks the signature and that the time is near, and drops a delivery number that it has seen.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from paywarden.ops.console.case import Case
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.page_rows import Missing, Section
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import read_regular

_log = logging.getLogger(__name__)

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS webhooks (
        delivery INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL, body TEXT NOT NULL, queued_ms INTEGER NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0, next_ms INTEGER NOT NULL
    )
    """,
)
_KEY_BYTES_MIN = 32
_TIMEOUT_S, _EVERY_S = 5.0, 0.5
_GIVE_UP_MS, _WAIT_MS_MAX = 86_400_000, 3_600_000
_BATCH = 20
_ALERT = ("alert_id", "state", "severity", "subject", "signal", "segment", "cause", "model_version", "time_ms")
_CASE = ("case_id", "title", "is_open", "assigned_to", "money_minor", "proposed_verdict", "verdict")
_CHANGE = ("by", "time_ms", "field", "before", "after")

Post = Callable[[str, bytes, Mapping[str, str]], int]
"""Sends a body with headers to an address, and returns the status. Raises OSError."""


@dataclass(frozen=True)
class Webhooks:
    """The queue of messages to `urls`. `link` is the console's address. Thread-safe."""

    database: ConsoleDatabase
    urls: Sequence[str]
    key: bytes
    link: Callable[[], str]
    clock: Callable[[], int] = now_ms
    post: Post | None = None
    # The last error of each address that has not answered well since.
    _why: dict[str, str] = field(default_factory=dict)

    def section(self) -> Section:
        """Return a section without pages, which sends the messages."""
        return Section("webhooks", "", "", (), background=(self.run,), missing=self.missing)

    def queue(self, connection: sqlite3.Connection, record: Mapping[str, Any]) -> None:
        """Queue messages about an alert's record, in the transaction of `connection`."""
        shown = {name: record[name] for name in (*_ALERT, "first_seen_time_ms")}
        self._queue(connection, {"kind": "alert", **shown, "link": f"{self.link()}/inbox/{record['alert_id']}"})

    def queue_case(self, connection: sqlite3.Connection, case: Case) -> None:
        """Queue messages about a case after an event, in the transaction of `connection`."""
        change = case.history[-1]
        if change.is_refused:
            return
        shown = {name: getattr(case, name) for name in _CASE} | {name: getattr(change, name) for name in _CHANGE}
        more = {"change": change.kind, "items": len(case.items), "link": f"{self.link()}/cases/{case.case_id}"}
        self._queue(connection, {"kind": "case", **shown, **more})

    def _queue(self, connection: sqlite3.Connection, body: Mapping[str, Any]) -> None:
        text, now = json.dumps(body), self.clock()
        statement = "INSERT INTO webhooks (url, body, queued_ms, next_ms) VALUES (?, ?, ?, ?)"
        connection.executemany(statement, [(url, text, now, now) for url in self.urls])

    def run(self, stop: threading.Event) -> None:
        """Send queued messages until `stop` is set."""
        while not stop.is_set():
            try:
                has_sent = self.send_due()
            except TemporaryFailure as error:
                _log.warning("webhooks wait: %s", error)
                has_sent = False
            if not has_sent:
                stop.wait(_EVERY_S)

    def send_due(self) -> bool:
        """Send messages that are due; return whether there were any. Raises DatabaseUnavailable."""
        now = self.clock()
        urls = self.database.read("SELECT DISTINCT url FROM webhooks WHERE next_ms <= ?", (now,))
        for row in urls:
            self._send_due_to(row["url"], now)
        return bool(urls)

    def _send_due_to(self, url: str, now: int) -> None:
        """Send the due messages of one address, until it does not answer at all."""
        rows = self.database.read(
            "SELECT * FROM webhooks WHERE url = ? AND next_ms <= ? ORDER BY next_ms, delivery LIMIT ?",
            (url, now, _BATCH),
        )
        for row in rows:
            status, why = self._send(url, row["delivery"], row["body"].encode(), now)
            is_over = now - row["queued_ms"] >= _GIVE_UP_MS
            if is_over and why:
                _log.error("webhook %d is given up after a day: %s %s", row["delivery"], url, why)
            with self.database.write() as connection:
                if is_over or not why:
                    connection.execute("DELETE FROM webhooks WHERE delivery = ?", (row["delivery"],))
                else:
                    wait_ms = min(_WAIT_MS_MAX, 1000 * 2 ** min(row["tries"], 20))
                    connection.execute(
                        "UPDATE webhooks SET tries = tries + 1, next_ms = ? WHERE delivery = ?",
                        (now + wait_ms, row["delivery"]),
                    )
            if why != self._why.get(url, ""):
                _log.warning("webhook %s %s", url, f"{why}: it is sent again" if why else "answers again")
            self._why[url] = why
            if status is None:
                break

    def missing(self) -> list[Missing]:
        """Return the receivers that have not answered for several tries."""
        rows = self.database.read(
            "SELECT url, min(queued_ms) AS since_ms, count(*) AS n FROM webhooks WHERE tries >= 3 GROUP BY url"
        )
        return [
            Missing(
                f"The webhook {row['url']}",
                row["since_ms"],
                f"it {self._why.get(row['url']) or 'did not take them'}; "
                + ("one message waits" if row["n"] == 1 else f"{row['n']:,} messages wait"),
                "Its receiver gets them later.",
            )
            for row in rows
        ]

    def _send(self, url: str, delivery: int, body: bytes, now: int) -> tuple[int | None, str]:
        """Return the status, None without an answer, and the trouble; empty for success."""
        headers = {
            "content-type": "application/json",
            "paywarden-delivery": str(delivery),
            "paywarden-signature": signature(self.key, body, now // 1000),
        }
        try:
            status = (self.post or _posted)(url, body, headers)
        except OSError as error:
            return None, f"did not answer ({error})"
        return status, "" if 200 <= status < 300 else f"answered {status}"


def signature(key: bytes, body: bytes, time_s: int) -> str:
    """Return the header that signs a body at a time."""
    digest = hmac.new(key, f"{time_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={time_s},v1={digest}"


def read_key(path: str) -> bytes:
    """Return the key in a file. Raises Misconfigured if it is too short or cannot be read."""
    try:
        key = read_regular(path).strip()
    except OSError as error:
        raise Misconfigured(f"[console] webhook_key_file: cannot read {path}: {error.strerror}") from error
    if len(key) < _KEY_BYTES_MIN:
        raise Misconfigured(f"[console] webhook_key_file: wanted at least {_KEY_BYTES_MIN} bytes, got {len(key)}")
    return key


def _posted(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    try:
        # Redirects are not followed: the message goes where the settings say.
        return httpx2.post(url, content=body, headers=dict(headers), timeout=_TIMEOUT_S).status_code
    except httpx2.HTTPError as error:
        raise OSError(str(error) or type(error).__name__) from error
