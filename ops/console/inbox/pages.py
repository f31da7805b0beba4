"""The inbox: the list of alerts, and people's acts on them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from paywarden.ops.console.inbox.alert import ACT_ROLES, DURATIONS, AlertPage
from paywarden.ops.console.inbox.reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.store import SEVERITIES, SORTS, AlertRow, AlertStore, Wanted
from paywarden.ops.console.pages import (
    Done,
    Field,
    Missing,
    Page,
    PageRefused,
    Section,
    Shown,
    Visit,
    filtered,
    not_found,
)
from paywarden.ops.console.people.people import Person
from paywarden.schemas.durations import duration_ms_of
from paywarden.streams.alerts.events import ASSIGNED, COMMENTED, ConsoleEvent, alert_subject
from paywarden.streams.alerts.records import Acknowledgement

PAGE_SIZE = 50
PATH = "/inbox"
CAUSES = ("profiles", "input", "traffic", "score", "outcome")
_STATES = ("open", "snoozed", "cleared", "all")
_ACTS = ("acknowledge", "snooze", "assign", "take", "comment")
_ALERTS_MAX = 100
NOTE_CHARS_MAX = 200

LIST_FIELDS = (
    Field("state", "open (and not snoozed), snoozed, cleared or all; open without it", choices=_STATES),
    Field("severity", "Only this severity", choices=SEVERITIES),
    Field("cause", "Only this cause", choices=CAUSES),
    Field("assigned", "Only alerts assigned to this person; nobody, or me"),
    Field("seen", "Only alerts that somebody has acknowledged (yes), or nobody (no)", choices=("yes", "no")),
    # A text may be anything: somebody looks for a card, or for a colleague.
    Field("q", "Only alerts whose subject, segment, id, model or person has this text", is_personal=True),
    Field("sort", "The order", choices=tuple(SORTS)),
    Field("page", "Which page, from 1", kind="whole", low=1, high=1_000_000),
)
PERSONAL = tuple(one.name for one in LIST_FIELDS if one.is_personal)


@dataclass(frozen=True)
class InboxView:
    """A page of the inbox. `version` changes when anything in it may have changed; `filters` are those that are set.

    `parameters` are the filters as addresses have them.
    """

    alerts: tuple[AlertRow, ...]
    total: int
    open_count: int
    page: int
    pages: int
    filters: Mapping[str, str]
    parameters: Mapping[str, str]
    version: int
    unreadable: int
    missing: tuple[Missing, ...]
    may_act: bool

    def link(self, **changed: str) -> str:
        """Returns the address of this page with other filters."""
        return filtered(PATH, {**self.parameters, **changed})


@dataclass(frozen=True)
class AlertVersionView:
    """A number that changes with the inbox, and with services that are away. `said`: how live the page is."""

    version: int
    said: str = ""


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
        """Returns the section `Inbox`."""
        act_fields = (
            Field("alert", "The id of an alert; may be given several times", is_required=True, is_many=True),
            Field("act", "What to do", is_required=True, choices=_ACTS),
            Field("note", "A note for other people", chars_max=NOTE_CHARS_MAX),
            Field("for", "How long to snooze", choices=DURATIONS),
            Field("to", "Whom to assign it to", chars_max=64),
            Field("back", "The page to go back to", chars_max=2000),
        )
        pages = (
            Page(PATH, self.show, "The alerts, the worst first", fields=LIST_FIELDS, view=InboxView),
            Page("/inbox/version", self.show_version, "A number that changes with the inbox", view=AlertVersionView),
            Page("/inbox/act", self.act, "Do something about alerts", "POST", ACT_ROLES, act_fields),
            self._alert.page(),
        )
        return Section(
            "inbox",
            "Inbox",
            PATH,
            pages,
            background=(self.reader.run, *self._more),
            missing=self.reader.missing,
            badge=self._badge,
        )

    def show(self, visit: Visit) -> Shown:
        """Show a page of alerts."""
        wanted = _wanted(visit)
        total = self.store.count(wanted, visit.now_ms)
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(visit.whole("page", 1), pages)
        version = self._version()
        rows = self.store.page(wanted, visit.now_ms, limit=PAGE_SIZE, offset=(page - 1) * PAGE_SIZE)
        filters = {field.name: visit.text(field.name) for field in LIST_FIELDS if visit.text(field.name)}
        view = InboxView(
            tuple(rows),
            total,
            self.store.count(Wanted(), visit.now_ms),
            page,
            pages,
            filters,
            visit.seal.parameters(PATH, filters, PERSONAL),
            version,
            self.store.unreadable,
            tuple(self.reader.missing()),
            visit.person.may(ACT_ROLES),
        )
        return Shown("inbox/list.html", view, "Inbox")

    def show_version(self, _: Visit) -> Shown:
        """Say whether anything has changed, for a page that is open."""
        is_lost = any(not one.is_lasting for one in self.reader.missing())
        said = "Not live: the topics of alerts cannot be read." if is_lost else "Live"
        return Shown("", AlertVersionView(self._version(), said), "Version")

    def _version(self) -> int:
        """Returns the number of changes, or another number while something is missing: an open page must say it."""
        missing = [(one.what, one.why) for one in self._missing()]
        return self.store.version + (zlib.crc32(repr(missing).encode()) if missing else 0)

    def act(self, visit: Visit) -> Done:
        """Write a person's acts on alerts to the topics."""
        alert_ids = list(dict.fromkeys(visit.all("alert")))
        if len(alert_ids) > _ALERTS_MAX:
            raise PageRefused(400, f"alert: wanted at most {_ALERTS_MAX} at once, got {len(alert_ids)}.")
        for alert_id in alert_ids:
            found = self.store.find(alert_id)
            if found is None:
                raise not_found(f"alert {alert_id}")
            if not found[0].is_open and visit.text("act") in ("acknowledge", "snooze"):
                raise PageRefused(409, f"Alert {alert_id} has cleared: there is nothing to {visit.text('act')}.")
        events = [_event(visit, alert_id) for alert_id in alert_ids]
        later = "" if self.reader.write(events) else NOT_SEEN
        for alert_id in alert_ids:
            visit.did(visit.text("act"), alert_subject(alert_id), **_noted(visit))
        count = f"{len(alert_ids)} alerts" if len(alert_ids) > 1 else f"alert {alert_ids[0]}"
        return Done(visit.text("back", PATH), f"{_DONE[visit.text('act')]}: {count}.{later}")

    def _badge(self, person: Person) -> int:
        from paywarden.ops.times import now_ms

        del person
        return self.store.count(Wanted(is_snoozed=False), now_ms())


_DONE = {
    "acknowledge": "Acknowledged",
    "snooze": "Snoozed",
    "assign": "Assigned",
    "take": "Assigned to you",
    "comment": "Noted",
}


def _wanted(visit: Visit) -> Wanted:
    state, assigned = visit.text("state", "open"), visit.text("assigned")
    wanted = {
        "open": Wanted(is_snoozed=False),
        "snoozed": Wanted(is_snoozed=True),
        "cleared": Wanted(is_open=False),
        "all": Wanted(is_open=None),
    }[state]
    names = {"": None, "nobody": "", "me": visit.person.name}
    return replace(
        wanted,
        severity=visit.text("severity"),
        cause=visit.text("cause"),
        assigned_to=names.get(assigned, assigned),
        is_acknowledged={"": None, "yes": True, "no": False}[visit.text("seen")],
        text=visit.text("q"),
        sort=visit.text("sort", "worst"),
    )


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


def _noted(visit: Visit) -> dict[str, str]:
    # A browser sends all fields of the form, whichever button was pressed.
    names = ("note", *({"snooze": ("for",), "assign": ("to",)}.get(visit.text("act"), ())))
    return {name: visit.text(name) for name in names if visit.text(name)}
