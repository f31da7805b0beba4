"""Drafts of the policy that people work on together, in the console's database, with all their versions.

Who saves names the version that they saw. If somebody has saved meanwhile, nothing is written (`DraftChanged`), and the
page shows both texts.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from paywarden.ops.console.database import ConsoleDatabase

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS policy_drafts (
        draft_id TEXT NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL, by TEXT NOT NULL,
        time_ms INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (draft_id, version)
    )
    """,
)
DRAFTS_MAX = 50
"""Drafts that are kept; one that nobody has saved for longest leaves."""
VERSIONS_MAX = 50
"""The newest versions of a draft that are kept."""
_COLUMNS = "draft_id, version, text, by, time_ms, note"


@dataclass(frozen=True)
class SavedDraft:
    """A version of a draft. `note`: what changed, and why."""

    draft_id: str
    version: int
    text: str = field(repr=False)
    by: str
    time_ms: int
    note: str


class DraftChanged(Exception):
    """Somebody has saved the draft meanwhile."""


class SavedDrafts:
    """The drafts of this console. Thread-safe. Raises DatabaseUnavailable."""

    def __init__(self, database: ConsoleDatabase) -> None:
        self._database = database

    def open(self, text: str, by: str, note: str, now_ms: int) -> SavedDraft:
        """Begin a draft."""
        made = SavedDraft(secrets.token_hex(6), 1, text, by, now_ms, note)
        with self._database.write() as connection:
            connection.execute(f"INSERT INTO policy_drafts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", _values(made))
            connection.execute(
                "DELETE FROM policy_drafts WHERE draft_id NOT IN (SELECT draft_id FROM policy_drafts GROUP BY draft_id "
                f"ORDER BY max(time_ms) DESC, max(rowid) DESC LIMIT {DRAFTS_MAX})"
            )
        return made

    def find(self, draft_id: str, version: int = 0) -> SavedDraft | None:
        """Return a version of a draft, the newest for 0; None if there is none."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM policy_drafts WHERE draft_id = ? AND ? IN (0, version) "
            "ORDER BY version DESC LIMIT 1",
            (draft_id, version),
        )
        return SavedDraft(*rows[0]) if rows else None

    def versions(self, draft_id: str) -> list[SavedDraft]:
        """Return the versions of a draft, the newest first, without their texts."""
        rows = self._database.read(
            f"SELECT {_COLUMNS.replace('text', repr(''))} FROM policy_drafts WHERE draft_id = ? ORDER BY version DESC",
            (draft_id,),
        )
        return [SavedDraft(*row) for row in rows]

    def all(self) -> list[SavedDraft]:
        """Return the newest version of each draft, the newest first, without its text."""
        rows = self._database.read(
            f"SELECT {_COLUMNS.replace('text', repr(''))}, max(version) FROM policy_drafts GROUP BY draft_id "
            "ORDER BY time_ms DESC"
        )
        return [SavedDraft(*tuple(row)[:6]) for row in rows]

    def save(self, seen: SavedDraft, text: str, by: str, note: str, now_ms: int) -> SavedDraft:
        """Save the next version of a draft. Raises DraftChanged if there is a newer one than `seen`."""
        made = SavedDraft(seen.draft_id, seen.version + 1, text, by, now_ms, note)
        with self._database.write() as connection:
            found = connection.execute("SELECT max(version) FROM policy_drafts WHERE draft_id = ?", (seen.draft_id,))
            if found.fetchone()[0] != seen.version:
                raise DraftChanged
            connection.execute(f"INSERT INTO policy_drafts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", _values(made))
            connection.execute(
                "DELETE FROM policy_drafts WHERE draft_id = ? AND version <= ?",
                (made.draft_id, made.version - VERSIONS_MAX),
            )
        return made


def _values(draft: SavedDraft) -> tuple[object, ...]:
    return draft.draft_id, draft.version, draft.text, draft.by, draft.time_ms, draft.note
