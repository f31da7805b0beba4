"""Analysts' notes about a card, a device or a merchant, shown with its search and its payments.

    "travels until May" about card c7  ──►  console-events   subject note:5f0c…, kind noted, what {"note": …}
    paywarden admin forget card:c7     ──►  console-events   subject erased:5f0c…: the console deletes these notes

The subject has the hash that an erasure has, and no event has the id. Only people who see cards see notes: a note may
name anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from paywarden.ops.console.case import NOTED
from paywarden.ops.console.inbox.alert_reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.alert_store import NOTE_PREFIX, AlertStore
from paywarden.ops.console.page_rows import Done, Field, Page, PageRefused, Visit
from paywarden.ops.console.people import CARD_ROLES
from paywarden.streams.alerts.alert_events import ConsoleEvent
from paywarden.streams.decision_index.erasure import hash_text
from paywarden.streams.decision_index.search import key_hash

KINDS: Final = ("card_id", "device_id", "merchant_id")
NOTE_CHARS_MAX, NOTES_MAX = 1_000, 50
_FIELDS = (
    Field("of", "card_id:ID, device_id:ID or merchant_id:ID", is_required=True, chars_max=600),
    Field("note", "The note", kind="lines", is_required=True, chars_max=NOTE_CHARS_MAX),
    Field("back", "The page to go back to", chars_max=2000),
)
NotesOf = Callable[[Mapping[str, Any], Visit], list[dict[str, Any]]]
"""Gives the entities among the fields of a payment or a search, each with its notes."""


class EntityNotes:
    """The notes, and the page that keeps one."""

    def __init__(self, store: AlertStore, reader: AlertReader) -> None:
        self._store, self._reader = store, reader

    def page(self) -> Page:
        """Return the page, for the section of decisions."""
        return Page(
            "/decisions/note", self.keep, "Keep a note about a card or other entity", "POST", CARD_ROLES, _FIELDS
        )

    def of(self, fields: Mapping[str, Any], visit: Visit) -> list[dict[str, Any]]:
        """Return the entities among these fields, each with its notes, the newest first: see NotesOf."""
        if not visit.person.sees_cards:
            return []
        return [
            {
                "kind": kind,
                "value": fields[kind],
                "notes": [
                    {"time_ms": one.time_ms, "by": one.by, "note": one.what.get("note", "")[:NOTE_CHARS_MAX]}
                    for one in reversed(self._store.events(_subject(kind, fields[kind]))[-NOTES_MAX:])
                ],
            }
            for kind in KINDS
            if fields.get(kind)
        ]

    def keep(self, visit: Visit) -> Done:
        """Write a note to the topic."""
        kind, _, value = visit.text("of").partition(":")
        note = visit.text("note").strip()
        if kind not in KINDS or not value:
            raise PageRefused(400, f"of: wanted {', '.join(f'{one}:ID' for one in KINDS)}.")
        if not note:
            raise PageRefused(400, "note: wanted a text, got none.")
        subject = _subject(kind, value)
        if len(self._store.events(subject)) >= NOTES_MAX:
            raise PageRefused(409, f"It has {NOTES_MAX} notes, and no room for more. Open a case for it.")
        is_seen = self._reader.write([ConsoleEvent(subject, NOTED, visit.person.name, visit.now_ms, {"note": note})])
        visit.did(NOTED, subject, kind=kind)
        return Done(visit.text("back", "/decisions"), f"Noted.{'' if is_seen else NOT_SEEN}")


def _subject(kind: str, value: str) -> str:
    return NOTE_PREFIX + hash_text(key_hash(kind, value))
