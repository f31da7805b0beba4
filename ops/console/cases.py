"""The pages of cases."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from paywarden.ops.console import case as cases
from paywarden.ops.console.case import Case, CaseChange, case_subject
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.inbox.alert import ACT_ROLES
from paywarden.ops.console.inbox.alert_reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.limits import RateLimit
from paywarden.ops.console.page_rows import (
    PAGE_FIELD,
    PAGE_SIZE,
    Done,
    Field,
    Page,
    PageRefused,
    Section,
    Sent,
    Shown,
    Visit,
    not_found,
    paged,
)
from paywarden.ops.console.people import Person
from paywarden.ops.console.rendering import NO_CURRENCIES, Currencies
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.streams.alerts.alert_events import ConsoleEvent

FILE_BYTES_MAX = 5 * 1024 * 1024
_BODY_BYTES_MAX = FILE_BYTES_MAX + 64 * 1024
# One person alone must not fill the disk that the audit log needs.
_FILES_A_DAY, _DAY_S = 200, 86_400.0
_ITEM = re.compile(r"(payment|alert):[^\s:]{1,150}")
PATH = "/cases"
_ACTS = {
    "note": cases.NOTED,
    "link": cases.LINKED,
    "unlink": cases.UNLINKED,
    "propose": cases.PROPOSED,
    "close": cases.CLOSED,
    "reopen": cases.REOPENED,
}
_NEW_ITEM = Field("item", "The first item of a new case: payment:ID or alert:ID")
_LIST_FIELDS = (
    Field("state", "Only open or only closed ones", choices=("open", "closed", "all")),
    # A text may be anything: a title often names a card or a customer.
    Field("q", "Only cases whose title, id or person has this text", is_personal=True),
    PAGE_FIELD,
    _NEW_ITEM,
)
_OPEN_FIELDS = (Field("title", "What it is about", is_required=True), Field("item", "payment:ID or alert:ID"))
_ACT_FIELDS = (
    Field("act", "What to do", is_required=True, choices=tuple(_ACTS)),
    Field("note", "A note", kind="lines", chars_max=4_000),
    Field("item", "payment:ID or alert:ID"),
    Field("verdict", "What it was", choices=cases.VERDICTS),
)
_CHANGE_FIELDS = (
    Field("field", "What to change", is_required=True, choices=cases.FIELDS),
    Field("before", "What it is now"),
    Field("after", "What it is to be"),
    Field("amount", "For money_minor, in place of `after`: in units, such as 1234.50", chars_max=24),
)
_FILE = (Field("file", "A file, at most 5 MB", kind="file", is_required=True),)


class Cases:
    """The section `Cases`. Files are in `folder`, by their sha256; the topic has their digests."""

    def __init__(
        self,
        store: AlertStore,
        reader: AlertReader,
        folder: Path,
        currencies: Currencies = NO_CURRENCIES,
        people: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`people`: gives the names of the people that the console knows."""
        self._store, self._reader, self._folder, self._currencies = store, reader, folder, currencies
        self._people = people
        self._uploads = RateLimit(_FILES_A_DAY, _DAY_S)

    def section(self) -> Section:
        """Return the section."""
        one = "/cases/{case_id}"
        cases = Page(PATH, self.show_all, "The cases, open ones first", fields=_LIST_FIELDS)
        pages = (
            cases,
            export_of(cases, "cases"),
            Page("/cases/open", self.open, "Open a case", "POST", ACT_ROLES, _OPEN_FIELDS),
            Page(one, self.show, "A case and its history", fields=(_NEW_ITEM,)),
            Page(f"{one}/act", self.act, "Do something", "POST", ACT_ROLES, _ACT_FIELDS),
            Page(f"{one}/change", self.change, "Change a field", "POST", ACT_ROLES, _CHANGE_FIELDS),
            Page(f"{one}/attach", self.attach, "Attach a file", "POST", ACT_ROLES, _FILE, _BODY_BYTES_MAX),
            Page(f"{one}/files/{{digest}}", self.download, "A file of a case", roles=ACT_ROLES),
        )
        return Section("cases", "Cases", PATH, pages, badge=self._badge)

    def show_all(self, visit: Visit) -> Shown:
        """Show a page of cases."""
        asked = visit.text("state", "all"), visit.text("q")
        _, total = self._store.cases(*asked, limit=0)
        place = paged(PATH, visit, total, ("q",))
        rows, _ = self._store.cases(*asked, limit=visit.rows_max or PAGE_SIZE, offset=(place["page"] - 1) * PAGE_SIZE)
        place["filters"].pop("item", None)
        view = {
            **place,
            "cases": rows,
            "missing": self._reader.missing(),
            "may_act": visit.person.may(ACT_ROLES),
            "item": visit.text("item"),
        }
        return Shown("cases/list.html", view, "Cases")

    def show(self, visit: Visit) -> Shown:
        """Show a case."""
        case = self._find(visit)
        visit.saw(case_subject(case.case_id))
        self._store.end_mention(visit.person.name, case.case_id)
        known = frozenset(self._people())
        view = {
            "case": case,
            "needs_two": case.needs_two(self._store.large_case_minor),
            "may_act": visit.person.may(ACT_ROLES),
            "item": visit.text("item"),
            "verdicts": cases.VERDICTS,
            "mentioned": sorted(known & {name for one in case.history for name in cases.mentioned(one.note)}),
        }
        return Shown("cases/case.html", view, case.title)

    def open(self, visit: Visit) -> Done:
        """Open a case, with a first payment or alert if one is named."""
        return self.put(visit, [visit.text("item")] if visit.text("item") else [])

    def put(self, visit: Visit, items: Sequence[str], case_id: str = "") -> Done:
        """Put payments and alerts into an open case, or without an id into a new one with the title of the form."""
        by, now, made_id = visit.person.name, visit.now_ms, case_id or secrets.token_hex(6)
        subject = case_subject(made_id)
        events = [ConsoleEvent(subject, cases.LINKED, by, now, {"item": _checked(item)}) for item in items]
        if case_id:
            found = self._store.case(case_id)
            if found is None:
                raise not_found(f"case {case_id}")
            # Each one more, as all of them would be linked.
            filled = replace(found, items=(*found.items, *items[1:]))
            if problem := cases.problem_of(filled, events[0], self._store.large_case_minor):
                raise PageRefused(409, f"{problem[0].upper()}{problem[1:]}.")
        elif not visit.text("title"):
            raise PageRefused(400, "title: wanted what the case is about.")
        else:
            events.insert(0, ConsoleEvent(subject, cases.OPENED, by, now, {"title": visit.text("title")}))
        is_seen = self._reader.write(events)
        visit.did("opened" if not case_id else cases.LINKED, subject, **({"items": str(len(items))} if items else {}))
        # The page of a case that is not in the database yet would say that there is none.
        location, later = (f"/cases/{made_id}", "") if is_seen else (PATH, NOT_SEEN)
        done = f"Put {len(items)} into" if case_id else "Opened"
        return Done(location, f"{done} the case {made_id}.{later}", {"case_id": made_id})

    def act(self, visit: Visit) -> Done:
        """Note, link, unlink, propose to close, close or reopen."""
        act, note = visit.text("act"), visit.text("note")
        what: dict[str, str] = {"note": note} if note else {}
        if act == "note" and not note:
            raise PageRefused(400, "note: wanted a text, got none.")
        if act in ("link", "unlink"):
            what = {"item": _checked(visit.text("item"))}
        if act in ("propose", "close"):
            what["verdict"] = visit.text("verdict")
        return self._write(visit, _ACTS[act], what)

    def change(self, visit: Visit) -> Done:
        """Change a field, if it still has the value that the person saw."""
        field = visit.text("field")
        before = visit.text("before", "0" if field == "money_minor" else "")
        after = visit.text("after")
        if visit.text("amount"):
            minor = self._currencies.minor(visit.text("amount")) if field == "money_minor" else None
            if minor is None:
                raise PageRefused(400, "amount: wanted money in units, such as 1234.50.")
            after = str(minor)
        return self._write(visit, cases.CHANGED, {"field": field, "before": before, "after": after})

    def attach(self, visit: Visit) -> Done:
        """Attach a file."""
        upload = visit.uploads.get("file")
        if upload is None:
            raise PageRefused(400, "file: wanted a file.")
        name = Path(upload.name.replace("\\", "/")).name
        if len(upload.content) > FILE_BYTES_MAX or not name.isprintable() or not 0 < len(name) <= 120:
            raise PageRefused(400, "file: wanted at most 5 MB, and a printable name of at most 120 characters.")
        if wait_s := self._uploads.take(visit.person.name, time.monotonic()):
            raise PageRefused(
                429, f"You have attached {_FILES_A_DAY} files in a day. Try again in {wait_s / 60:.0f} min."
            )
        digest = hashlib.sha256(upload.content).hexdigest()
        self._keep(digest, upload.content)
        return self._write(visit, cases.ATTACHED, {"file": digest, "name": name, "size": str(len(upload.content))})

    def download(self, visit: Visit) -> Sent:
        """Send a file of a case, checked against its digest."""
        case, digest = self._find(visit), visit.path["digest"]
        names = [one.name for one in case.attachments if one.digest == digest]
        if not names:
            raise not_found("file with this digest in the case")
        try:
            content = read_regular(self._folder / digest, FILE_BYTES_MAX)
        except OSError as error:
            raise not_found("such file on this console: it was attached on another one, or it is lost") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise PageRefused(409, "The file was changed since it was attached.")
        visit.saw(case_subject(case.case_id), file=digest[:16])
        return Sent(content, file_name=names[0])

    def _write(self, visit: Visit, kind: str, what: dict[str, str]) -> Done:
        case = self._find(visit)
        event = ConsoleEvent(case_subject(case.case_id), kind, visit.person.name, visit.now_ms, what)
        if problem := cases.problem_of(case, event, self._store.large_case_minor):
            raise PageRefused(409, f"{problem[0].upper()}{problem[1:]}.")
        is_seen = self._reader.write([event])
        visit.did(kind, event.subject, **{name: what[name] for name in ("item", "verdict", "field") if name in what})
        line = _line_of(self._store.case(case.case_id) or case, event)
        if line is not None and line.is_refused:
            raise PageRefused(409, f"Somebody was faster: {line.note}.")
        return Done(f"/cases/{case.case_id}", f"{kind.capitalize()}.{'' if is_seen else NOT_SEEN}")

    def _badge(self, person: Person) -> int:
        return len(self._store.mentions(person.name, now_ms()))

    def _find(self, visit: Visit) -> Case:
        case = self._store.case(visit.path["case_id"])
        if case is None:
            raise not_found(f"case {visit.path['case_id']}")
        return case

    def _keep(self, digest: str, content: bytes) -> None:
        try:
            make_private_folder(self._folder)
            new = self._folder / f"{digest}.{secrets.token_hex(4)}.new"
            new.write_bytes(content)
            new.chmod(0o600)
            new.replace(self._folder / digest)
        except OSError as error:
            raise Misconfigured(f"the file cannot be kept in {self._folder}: {error.strerror}") from error


def _line_of(case: Case, event: ConsoleEvent) -> CaseChange | None:
    """Return an event's line in the history of its case; others' events may stand behind it. None: not read yet.

    The last one of several: a caller who sends an act twice learns how the second one ended.
    """
    of_event = (event.time_ms, event.by, event.kind)
    return next((one for one in reversed(case.history) if (one.time_ms, one.by, one.kind) == of_event), None)


def _checked(item: str) -> str:
    if not _ITEM.fullmatch(item):
        raise PageRefused(400, "item: wanted payment:ID or alert:ID.")
    return item
