"""Sessions: who has logged in, until when.

A browser has a cookie with 256 random bits. The database has only its sha256: who reads the database cannot use a
session. A login makes a new session in any case, so a cookie that somebody planted before is worth nothing. A session
ends after a time without a page, after a day's work in any case, at a logout, and when the person's roles change.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.people import Person, Role

TABLES = (
    "CREATE TABLE IF NOT EXISTS sessions (digest TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, "
    "source TEXT NOT NULL, begun_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL)",
)
# The time of the last page is written this often at most.
_SEEN_EVERY_MS = 30_000


@dataclass(frozen=True)
class Session:
    """One login. `source` is where the person was known."""

    digest: str
    person: Person
    source: str
    begun_ms: int
    seen_ms: int


@dataclass(frozen=True)
class Sessions:
    """The sessions in the database. `idle_ms` and `whole_ms`: how long one lasts without a page, and at most."""

    database: ConsoleDatabase
    idle_ms: int
    whole_ms: int

    def begin(self, person: Person, source: str, now_ms: int) -> str:
        """Return the secret of a new session's cookie; sessions that have ended are removed."""
        secret = secrets.token_urlsafe(32)
        roles = ",".join(sorted(person.roles))
        with self.database.write() as connection:
            connection.execute(
                "DELETE FROM sessions WHERE seen_ms < ? OR begun_ms < ?",
                (now_ms - self.idle_ms, now_ms - self.whole_ms),
            )
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
                (_digest(secret), person.name, roles, source, now_ms, now_ms),
            )
        return secret

    def names(self) -> frozenset[str]:
        """Return the names of the people who have logged in."""
        return frozenset(row["name"] for row in self.database.read("SELECT DISTINCT name FROM sessions"))

    def of_cookie(self, secret: str, now_ms: int, *, is_person: bool = True) -> Session | None:
        """Return the session of a cookie; None if there is none or it has ended.

        `is_person`: False for a request that an open page makes by itself. It does not keep a session alive.
        """
        found = self._found("digest", _digest(secret), now_ms)
        if not found:
            return None
        if is_person and now_ms - found[0].seen_ms > _SEEN_EVERY_MS:
            with self.database.write() as connection:
                connection.execute("UPDATE sessions SET seen_ms = ? WHERE digest = ?", (now_ms, found[0].digest))
        return found[0]

    def of_person(self, name: str, now_ms: int) -> list[Session]:
        """Return a person's sessions that have not ended, the newest first."""
        return self._found("name", name, now_ms)

    def _found(self, column: str, value: str, now_ms: int) -> list[Session]:
        rows = self.database.read(
            f"SELECT * FROM sessions WHERE {column} = ? AND seen_ms >= ? AND begun_ms >= ? "
            "ORDER BY begun_ms DESC, digest",
            (value, now_ms - self.idle_ms, now_ms - self.whole_ms),
        )
        return [
            Session(
                row["digest"],
                Person(row["name"], frozenset(map(Role, row["roles"].split(",")))),
                row["source"],
                row["begun_ms"],
                row["seen_ms"],
            )
            for row in rows
        ]

    def end_all(self, name: str, *, but: str = "") -> int:
        """End the sessions of a person, except the one with the digest `but`; return how many there were."""
        with self.database.write() as connection:
            return connection.execute("DELETE FROM sessions WHERE name = ? AND digest != ?", (name, but)).rowcount

    def end(self, session: Session) -> None:
        """End a session."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE digest = ?", (session.digest,))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
