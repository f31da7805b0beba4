"""The inbox: the list of alerts, and people's acts on them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence

from paywarden.ops.console.exports import export_of
from paywarden.ops.console.inbox.alert import ACT_ROLES, DURATIONS, AlertPage
from paywarden.ops.console.inbox.alert_reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.alert_store import SEVERITIES, SORTS, STATES, AlertStore
from paywarden.ops.console.page_rows import (
    PAGE_FIELD,
    PAGE_SIZE,
    Done,
    Field,
    Missing,
    Page,
    PageRefused,
    Section,
    Shown,
    Visit,
    not_found,
    paged,
    picked,
)
from paywarden.ops.console.people import Person
from paywarden.ops.times import now_ms
from paywarden.schemas.durations import duration_ms_of
from paywarden.streams.alerts.alert_events import ASSIGNED, COMMENTED, ConsoleEvent, alert_subject
from paywarden.streams.alerts.alert_records import Acknowledgement
from paywarden.streams.alerts.journal import CLEARED_MS

PATH = "/inbox"
CAUSES = ("profiles", "input", "traffic", "score", "outcome")
NOTE_CHARS_MAX = 200
_DONE = {
    "acknowledge": "Acknowledged",
    "snooze": "Snoozed",
    "assign": "Assigned",
    "take": "Assigned to you",
    "comment": "Noted",
}

LIST_FIELDS = (
    Field("state", "open (and not snoozed), snoozed, cleared or all; open without it", choices=tuple(STATES)),
    Field("severity", "Only this severity", choices=SEVERITIES),
    Field("cause", "Only this cause", choices=CAUSES),
    Field("assigned", "Only alerts assigned to this person; nobody, or me"),
    Field("seen", "Only alerts that somebody has acknowledged (yes), or nobody (no)", choices=("yes", "no")),
    # A text may be anything: somebody looks for a card, or for a colleague.
    Field("q", "Only alerts whose subject, segment, id, model or person has this text", is_personal=True),
    Field("sort", "The order", choices=tuple(SORTS)),
    PAGE_FIELD,
)
_ACT_FIELDS = (
    Field("alert", "The id of an alert; may be given several times", is_required=True, is_many=True),
    Field("act", "What to do", is_required=True, choices=tuple(_DONE)),
    Field("note", "A note for the others", chars_max=NOTE_CHARS_MAX),
    Field("for", "How long to snooze", choices=DURATIONS),
    Field("to", "Whom to assign it to", chars_max=64),
    Field("back", "The page to go back to", chars_max=2000),
)


class Inbox:
    """The pages of the inbox."""

    def __init__(
        self,
        store: AlertStore,
        reader: AlertReader,
        alert: AlertPage,
        *more: Callable[[threading.Event], None],
        missing: Callable[[], Sequence[Missing]] | None = None,
    ) -> None:
        """`more`: further background work, such as `Stakes.run`. `missing`: services that the console cannot reach."""
        self.store, self.reader, self._alert, self._more = store, reader, alert, more
        self._missing = missing or reader.missing

    def section(self) -> Section:
        """Return the section `Inbox`."""
        alerts = Page(PATH, self.show, "The alerts, the worst first", fields=LIST_FIELDS)
        pages = (
            alerts,
            export_of(alerts, "alerts"),
            Page("/inbox/version", self.show_version, "A number that changes with the inbox"),
            Page("/inbox/act", self.act, "Do something about alerts", "POST", ACT_ROLES, _ACT_FIELDS),
            self._alert.page(),
        )
        work = (self.reader.run, *self._more)
        return Section("inbox", "Inbox", PATH, pages, background=work, missing=self.reader.missing, badge=self._badge)

    def show(self, visit: Visit) -> Shown:
        """Show a page of alerts. `version` changes when anything in it may have changed."""
        filters = visit.texts()
        if "assigned" in filters:
            filters["assigned"] = {"nobody": "", "me": visit.person.name}.get(filters["assigned"], filters["assigned"])
        version = self._version()
        place = paged(PATH, visit, self.store.count(filters, visit.now_ms), ("q",))
        offset = (place["page"] - 1) * PAGE_SIZE
        view = {
            **place,
            "alerts": self.store.page(filters, visit.now_ms, limit=visit.rows_max or PAGE_SIZE, offset=offset),
            "open_count": self.store.count({}, visit.now_ms),
            "cleared": [] if visit.texts() else self.store.cleared(visit.now_ms - CLEARED_MS),
            "mentions": self.store.mentions(visit.person.name, visit.now_ms),
            "version": version,
            "unreadable": self.store.unreadable,
            "missing": self.reader.missing(),
            "may_act": visit.person.may(ACT_ROLES),
        }
        return Shown("inbox/list.html", view, "Inbox")

    def show_version(self, _: Visit) -> Shown:
        """Say whether anything has changed, for a page that is open. `said`: how live the page is."""
        is_lost = any(not one.is_lasting for one in self.reader.missing())
        said = "Not live: the topics of alerts cannot be read." if is_lost else "Live"
        return Shown("", {"version": self._version(), "said": said}, "Version")

    def _version(self) -> int:
        """Return the number of changes, or another number while something is missing: an open page must say it."""
        missing = [(one.what, one.why) for one in self._missing()]
        return self.store.version + (zlib.crc32(repr(missing).encode()) if missing else 0)

    def act(self, visit: Visit) -> Done:
        """Write a person's acts on alerts to the topics."""
        alert_ids, act = picked(visit, "alert"), visit.text("act")
        for alert_id in alert_ids:
            found = self.store.find(alert_id)
            if found is None:
                raise not_found(f"alert {alert_id}")
            if not found[0].is_open and act in ("acknowledge", "snooze"):
                raise PageRefused(409, f"Alert {alert_id} has cleared: there is nothing to {act}.")
        later = "" if self.reader.write([_event(visit, alert_id) for alert_id in alert_ids]) else NOT_SEEN
        # A browser sends all fields of the form, whichever button was pressed.
        names = ("note", *({"snooze": ("for",), "assign": ("to",)}.get(act, ())))
        noted = {name: visit.text(name) for name in names if visit.text(name)}
        for alert_id in alert_ids:
            visit.did(act, alert_subject(alert_id), **noted)
        count = f"{len(alert_ids)} alerts" if len(alert_ids) > 1 else f"alert {alert_ids[0]}"
        return Done(visit.text("back", PATH), f"{_DONE[act]}: {count}.{later}")

    def _badge(self, _: Person) -> int:
        return self.store.count({}, now_ms())


def _event(visit: Visit, alert_id: str) -> ConsoleEvent | Acknowledgement:
    act, note, by, now = visit.text("act"), visit.text("note"), visit.person.name, visit.now_ms
    if len(note.encode()) > NOTE_CHARS_MAX:
        raise PageRefused(400, f"note: wanted at most {NOTE_CHARS_MAX} bytes.")
    if act == "acknowledge":
        return Acknowledgement(alert_id, now, by, 0, note)
    if act == "snooze":
        length_ms = duration_ms_of(visit.text("for"))
        if length_ms is None:
            raise PageRefused(400, f"for: wanted one of {', '.join(DURATIONS)}.")
        return Acknowledgement(alert_id, now, by, now + length_ms, note)
    what = {"note": note} if note else {}
    if act == "comment":
        if not note:
            raise PageRefused(400, "note: wanted a text, got none.")
        return ConsoleEvent(alert_subject(alert_id), COMMENTED, by, now, what)
    to = by if act == "take" else visit.text("to")
    if not to:
        raise PageRefused(400, "to: wanted a person's name.")
    return ConsoleEvent(alert_subject(alert_id), ASSIGNED, by, now, {**what, "to": to})
