"""The pages of cases."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from paywarden.ops.console.cases import case as cases
from paywarden.ops.console.cases.case import Case, CaseChange, case_subject, cases_of
from paywarden.ops.console.cases.case_list import KnownCases
from paywarden.ops.console.inbox.alert import ACT_ROLES
from paywarden.ops.console.inbox.reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.store import AlertStore
from paywarden.ops.console.limits import RateLimit
from paywarden.ops.console.pages import (
    Done,
    Field,
    Missing,
    Page,
    PageRefused,
    Section,
    Sent,
    Shown,
    Visit,
    filtered,
    not_found,
)
from paywarden.ops.console.rendering.templates import NO_CURRENCIES, Currencies
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.streams.alerts.events import ConsoleEvent

FILE_BYTES_MAX = 5 * 1024 * 1024
_BODY_BYTES_MAX = FILE_BYTES_MAX + 64 * 1024
# One person alone must not fill the disk that the audit log needs.
_FILES_A_DAY, _DAY_S = 200, 86_400.0
_ITEM = re.compile(r"(payment|alert):[^\s:]{1,150}")
_NOTE_CHARS_MAX = 4_000
PAGE_SIZE = 50
PATH = "/cases"
LIST_FIELDS = (
    Field("state", "Only open or only closed ones", choices=("open", "closed", "all")),
    # A text may be anything: a title often names a card or a customer.
    Field("q", "Only cases whose title, id or person has this text", is_personal=True),
    Field("page", "Which page, from 1", kind="whole", low=1, high=1_000_000),
)
PERSONAL = tuple(one.name for one in LIST_FIELDS if one.is_personal)
_ITEM_FIELD = Field("item", "The first item of a new case: payment:ID or alert:ID")
_ACTS = ("note", "link", "unlink", "propose", "close", "reopen")


@dataclass(frozen=True)
class CaseRow:
    """A case in the list."""

    case_id: str
    title: str
    assigned_to: str
    money_minor: int
    items: int
    is_open: bool
    verdict: str
    changed_ms: int


@dataclass(frozen=True)
class CasesView:
    """A page of cases, open ones first, the newest change first. `total`: of those that meet the filters.

    `parameters`: the filters as addresses have them. `item`: the item in the form for a new case.
    """

    cases: tuple[CaseRow, ...]
    total: int
    page: int
    pages: int
    filters: Mapping[str, str]
    parameters: Mapping[str, str]
    missing: tuple[Missing, ...]
    may_act: bool
    item: str

    def link(self, **changed: str) -> str:
        """Returns the address of this page with other filters."""
        return filtered(PATH, {**self.parameters, "item": self.item, **changed})

    def link_to(self, case_id: str) -> str:
        """Returns the address of a case, where the item waits in a form."""
        return filtered(f"{PATH}/{quote(case_id, safe='')}", {"item": self.item})


@dataclass(frozen=True)
class CaseView:
    """One case. `needs_two`: it takes two people to close it. `item`: the text in the form for one more item."""

    case: Case
    needs_two: bool
    may_act: bool
    item: str
    verdicts: tuple[str, ...] = cases.VERDICTS


class Cases:
    """The section `Cases`. Files are in `folder`, by their sha256; the topic has their digests."""

    def __init__(
        self,
        store: AlertStore,
        reader: AlertReader,
        folder: Path,
        large_minor: int,
        currencies: Currencies = NO_CURRENCIES,
    ) -> None:
        self._currencies = currencies
        self._store, self._reader, self._folder, self._large = store, reader, folder, large_minor
        self._known = KnownCases(store, large_minor)
        self._uploads = RateLimit(_FILES_A_DAY, _DAY_S)

    def section(self) -> Section:
        """Returns the section."""
        note = Field("note", "A note", kind="lines", chars_max=_NOTE_CHARS_MAX)
        item = Field("item", "payment:ID or alert:ID")
        title = Field("title", "What it is about", is_required=True)
        verdict = Field("verdict", "What it was", choices=cases.VERDICTS)
        act = Field("act", "What to do", is_required=True, choices=_ACTS)
        change = (
            Field("field", "What to change", is_required=True, choices=cases.FIELDS),
            Field("before", "What it is now"),
            Field("after", "What it is to be"),
            Field("amount", "For money_minor, in place of `after`: in units, such as 1234.50", chars_max=24),
        )
        upload = (Field("file", "A file, at most 5 MB", kind="file", is_required=True),)
        pages = (
            Page(
                PATH,
                self.show_all,
                "The cases, open ones first",
                fields=(*LIST_FIELDS, _ITEM_FIELD),
                view=CasesView,
            ),
            Page("/cases/open", self.open, "Open a case", "POST", ACT_ROLES, (title, item)),
            Page("/cases/{case_id}", self.show, "A case and its history", fields=(_ITEM_FIELD,), view=CaseView),
            Page("/cases/{case_id}/act", self.act, "Do something", "POST", ACT_ROLES, (act, note, item, verdict)),
            Page("/cases/{case_id}/change", self.change, "Change a field", "POST", ACT_ROLES, change),
            Page(
                "/cases/{case_id}/attach",
                self.attach,
                "Attach a file",
                "POST",
                ACT_ROLES,
                upload,
                _BODY_BYTES_MAX,
            ),
            Page("/cases/{case_id}/files/{digest}", self.download, "A file of a case", roles=ACT_ROLES),
        )
        return Section("cases", "Cases", PATH, pages)

    def show_all(self, visit: Visit) -> Shown:
        """Show a page of cases."""
        state, text = visit.text("state", "all"), visit.text("q").casefold()
        rows = [
            CaseRow(
                one.case_id,
                one.title,
                one.assigned_to,
                one.money_minor,
                len(one.items),
                one.is_open,
                one.verdict,
                one.changed_ms,
            )
            for one in self._known.all().values()
            if (state == "all" or one.is_open == (state == "open"))
            and (not text or any(text in value.casefold() for value in (one.title, one.case_id, one.assigned_to)))
        ]
        rows.sort(key=lambda row: (not row.is_open, -row.changed_ms, row.case_id))
        pages = max(1, -(-len(rows) // PAGE_SIZE))
        page = min(visit.whole("page", 1), pages)
        filters = {field.name: visit.text(field.name) for field in LIST_FIELDS if visit.text(field.name)}
        view = CasesView(
            tuple(rows[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]),
            len(rows),
            page,
            pages,
            filters,
            visit.seal.parameters(PATH, filters, PERSONAL),
            tuple(self._reader.missing()),
            visit.person.may(ACT_ROLES),
            visit.text("item"),
        )
        return Shown("cases/list.html", view, "Cases")

    def show(self, visit: Visit) -> Shown:
        """Show a case."""
        case = self._find(visit)
        visit.saw(case_subject(case.case_id))
        view = CaseView(case, case.needs_two(self._large), visit.person.may(ACT_ROLES), visit.text("item"))
        return Shown("cases/case.html", view, case.title)

    def open(self, visit: Visit) -> Done:
        """Open a case, with a first payment or alert if one is named."""
        # A form that is sent again, because nobody could say whether it was done, names the same case again.
        case_id = visit.sending[:12] or secrets.token_hex(6)
        if self._case(case_id) is not None:
            return Done(f"/cases/{case_id}", f"Opened the case {case_id}.", {"case_id": case_id})
        subject, by, now = case_subject(case_id), visit.person.name, visit.now_ms
        events = [ConsoleEvent(subject, cases.OPENED, by, now, {"title": visit.text("title")})]
        if visit.text("item"):
            events.append(ConsoleEvent(subject, cases.LINKED, by, now, {"item": _item(visit)}))
        is_seen = self._reader.write(events)
        visit.did("opened", subject)
        # The page of a case that is not in the database yet would say that there is none.
        location, later = (f"/cases/{case_id}", "") if is_seen else (PATH, NOT_SEEN)
        return Done(location, f"Opened the case {case_id}.{later}", {"case_id": case_id})

    def act(self, visit: Visit) -> Done:
        """Note, link, unlink, propose to close, close or reopen."""
        act, note = visit.text("act"), visit.text("note")
        what: dict[str, str] = {"note": note} if note else {}
        if act == "note" and not note:
            raise PageRefused(400, "note: wanted a text, got none.")
        if act in ("link", "unlink"):
            what = {"item": _item(visit)}
        if act in ("propose", "close"):
            what["verdict"] = visit.text("verdict")
        kinds = (cases.NOTED, cases.LINKED, cases.UNLINKED, cases.PROPOSED, cases.CLOSED, cases.REOPENED)
        return self._write(visit, dict(zip(_ACTS, kinds, strict=True))[act], what)

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
        if problem := cases.problem_of(case, event, self._large):
            raise PageRefused(409, f"{problem[0].upper()}{problem[1:]}.")
        is_seen = self._reader.write([event])
        visit.did(kind, event.subject, **{name: what[name] for name in ("item", "verdict", "field") if name in what})
        line = _line_of(self._case(case.case_id) or case, event)
        if line is not None and line.is_refused:
            raise PageRefused(409, f"Somebody was faster: {line.note}.")
        return Done(f"/cases/{case.case_id}", f"{kind.capitalize()}.{'' if is_seen else NOT_SEEN}")

    def _case(self, case_id: str) -> Case | None:
        return cases_of(self._store.events(case_subject(case_id)), self._large).get(case_id)

    def _find(self, visit: Visit) -> Case:
        case = self._case(visit.path["case_id"])
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
    """Returns an event's line in the history of its case; others' events may stand behind it. None: not read yet.

    The last one of several: a caller who sends an act twice learns how the second one ended.
    """
    of_event = (event.time_ms, event.by, event.kind)
    return next((one for one in reversed(case.history) if (one.time_ms, one.by, one.kind) == of_event), None)


def _item(visit: Visit) -> str:
    item = visit.text("item")
    if not _ITEM.fullmatch(item):
        raise PageRefused(400, "item: wanted payment:ID or alert:ID.")
    return item
