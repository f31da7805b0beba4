"""Sessions: who has logged in, until when.

A browser has a cookie with 256 random bits. The database has only its sha256: who reads the database cannot use a
session. A login makes a new session in any case, so a cookie that somebody planted before is worth nothing. A session
ends after a time without a page, after a day's work in any case, at a logout, and when the person's roles change.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.people.people import Person, Role

TABLES = (
    "CREATE TABLE IF NOT EXISTS sessions (digest TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, "
    "source TEXT NOT NULL, begun_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL, csrf TEXT NOT NULL)",
)
# The time of the last page is written this often at most.
_SEEN_EVERY_MS = 30_000
_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000


@dataclass(frozen=True)
class Session:
    """One login. `csrf` is the token that a form of this session must bring; `source` is where the person was known."""

    digest: str
    person: Person
    source: str
    begun_ms: int
    csrf: str

    def is_of_form(self, text: str) -> bool:
        """Returns whether a form's token is this session's."""
        return hmac.compare_digest(self.csrf.encode(), text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Sessions:
    """The sessions in the database. `idle_ms` and `whole_ms`: how long one lasts without a page, and at most."""

    database: ConsoleDatabase
    idle_ms: int
    whole_ms: int

    @classmethod
    def of(cls, database: ConsoleDatabase, *, idle_minutes: int, hours: int) -> Sessions:
        """Returns the sessions with these limits."""
        return cls(database, idle_minutes * _MINUTE_MS, hours * _HOUR_MS)

    def begin(self, person: Person, source: str, now_ms: int) -> tuple[str, Session]:
        """Returns a new session and the secret of its cookie; sessions that have ended are removed."""
        secret, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        session = Session(_digest(secret), person, source, now_ms, csrf)
        with self.database.write() as connection:
            connection.execute(
                "DELETE FROM sessions WHERE seen_ms < ? OR begun_ms < ?",
                (now_ms - self.idle_ms, now_ms - self.whole_ms),
            )
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (session.digest, person.name, ",".join(sorted(person.roles)), source, now_ms, now_ms, csrf),
            )
        return secret, session

    def of_cookie(self, secret: str, now_ms: int, *, is_person: bool = True) -> Session | None:
        """Returns the session of a cookie; None if there is none or it has ended.

        `is_person`: False for a request that an open page makes by itself. It does not keep a session alive.
        """
        if not secret:
            return None
        rows = self.database.read("SELECT * FROM sessions WHERE digest = ?", (_digest(secret),))
        if not rows:
            return None
        row = rows[0]
        if row["seen_ms"] < now_ms - self.idle_ms or row["begun_ms"] < now_ms - self.whole_ms:
            return None
        if is_person and now_ms - row["seen_ms"] > _SEEN_EVERY_MS:
            with self.database.write() as connection:
                connection.execute("UPDATE sessions SET seen_ms = ? WHERE digest = ?", (now_ms, row["digest"]))
        person = Person(row["name"], frozenset(map(Role, row["roles"].split(","))))
        return Session(row["digest"], person, row["source"], row["begun_ms"], row["csrf"])

    def of_person(self, name: str, now_ms: int) -> list[tuple[str, int, int, str]]:
        """Returns digest, begin, last page and source of a person's sessions that have not ended, the newest first."""
        rows = self.database.read(
            "SELECT digest, begun_ms, seen_ms, source FROM sessions WHERE name = ? AND seen_ms >= ? AND begun_ms >= ? "
            "ORDER BY begun_ms DESC, digest",
            (name, now_ms - self.idle_ms, now_ms - self.whole_ms),
        )
        return [(row["digest"], row["begun_ms"], row["seen_ms"], row["source"]) for row in rows]

    def end_all(self, name: str, *, but: str = "") -> int:
        """End the sessions of a person, except the one with the digest `but`; returns how many there were."""
        with self.database.write() as connection:
            done = connection.execute("DELETE FROM sessions WHERE name = ? AND digest != ?", (name, but))
            return done.rowcount

    def end(self, session: Session) -> None:
        """End a session."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE digest = ?", (session.digest,))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
