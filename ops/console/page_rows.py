"""Pages of the console, one row of a table each. Adding a page or an act is one function and one row:

    Section("inbox", "Inbox", "/inbox", (
        Page("/inbox", self.show, "The alerts", fields=(Field("severity", "Only this", choices=("info", "critical")),)),
        Page("/inbox/act", self.act, "Do something about alerts", "POST", frozenset({Role.ANALYST}), ACT_FIELDS),
    ))

The row is the page for a browser, the address for programs below /api/v1, the check of role, form and fields, and the
entry in /openapi.json. A page returns its content (`Shown`), or the act that is done (`Done`). The shell renders a
template for a browser, and the same content as JSON for a program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from paywarden.ops.console.people import EVERYBODY, Person, Role, masked
from paywarden.ops.console.searches import SEARCH_FIELD, Searches
from paywarden.ops.times import time_ms_of
from paywarden.schemas.errors import TemporaryFailure

if TYPE_CHECKING:
    from paywarden.ops.console.audit_log import Audit

PAGE_SIZE = 50
PICKED_MAX = 100
"""At most this many things take one act."""
EXPORT_ROLES = frozenset({Role.ANALYST, Role.LEAD, Role.AUDITOR})
"""The roles that may take a list away as a file (exports.py)."""


class PageRefused(Exception):
    """The page refuses a request. `message` is for the person; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class NothingDone(TemporaryFailure):
    """A system outside does not answer, and it is certain that nothing was done."""


def not_found(what: str) -> PageRefused:
    """Return the refusal of something that is not there."""
    return PageRefused(404, f"There is no {what}.")


@dataclass(frozen=True)
class Field:
    """A parameter of a page's address or form.

    `kind`: text (one line), lines, whole (number), number, time (UTC, such as 2026-10-01T08:30), or file. With
    `choices` the value is one of them. `is_many`: it may come more than once. `is_personal`: it comes by POST alone,
    and stands in no address (searches.py).
    """

    name: str
    meaning: str
    kind: Literal["text", "lines", "whole", "number", "time", "file"] = "text"
    is_required: bool = False
    is_many: bool = False
    chars_max: int = 200
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    is_personal: bool = False


PAGE_FIELD = Field("page", "Which page, from 1", kind="whole", low=1, high=1_000_000)


@dataclass(frozen=True)
class Upload:
    """A file that a form brought."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Visit:
    """One checked request: person, fields, time. `values` has the fields that came, as text."""

    person: Person
    now_ms: int
    audit: Audit
    path: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    is_api: bool = False
    # The digest of the session; "" for a program.
    session: str = ""
    searches: Searches = field(default_factory=Searches)
    # How many rows of a list a file wants; 0 for a page.
    rows_max: int = 0

    def text(self, name: str, default: str = "") -> str:
        """Return a field's text, the last one if there are several."""
        return self.values[name][-1] if name in self.values else default

    def all(self, name: str) -> tuple[str, ...]:
        """Return all texts of a field."""
        return self.values.get(name, ())

    def texts(self) -> dict[str, str]:
        """Return the text of each field that came."""
        return {name: values[-1] for name, values in self.values.items()}

    def whole(self, name: str, default: int = 0) -> int:
        """Return a field of the kind whole."""
        return int(self.text(name, str(default)))

    def number(self, name: str, default: float = 0.0) -> float:
        """Return a field of the kind number."""
        return float(self.text(name, str(default)))

    def time_ms(self, name: str) -> int | None:
        """Return a field of the kind time as epoch milliseconds; None if it did not come."""
        return time_ms_of(self.text(name)) if name in self.values else None

    @property
    def owner(self) -> str:
        """The session or the token: nobody else can use the searches that it has made."""
        return self.session or f"token {self.person.name}"

    def address(self, path: str, values: Mapping[str, str], personal: Collection[str]) -> str:
        """Return the address of a page with these values; those in `personal` do not stand in it."""
        return address(path, self.parameters(path, values, personal))

    def csv_address(self, path: str, values: Mapping[str, str], personal: Collection[str] = ()) -> str:
        """Return the address of a list as CSV; "" for a person who may not have it."""
        return self.address(f"{path}/csv", values, personal) if self.person.may(EXPORT_ROLES) else ""

    def parameters(self, path: str, values: Mapping[str, str], personal: Collection[str]) -> dict[str, str]:
        """Return the parameters of the address."""
        given = {name: value for name, value in values.items() if value}
        hidden = {name: given.pop(name) for name in personal if name in given}
        return {**given, SEARCH_FIELD: self.searches.keep(self.owner, path, hidden)} if hidden else given

    def masked(self, value: str) -> str:
        """Return a sensitive value as this person may see it."""
        return masked(value, self.person)

    def saw(self, subject: str, /, **what: str) -> None:
        """Note in the audit log that the person has seen sensitive fields of the subject, such as `payment:p1`."""
        self.did("viewed", subject, **what)

    def did(self, act: str, subject: str, /, **what: str) -> None:
        """Note an act of the person in the audit log."""
        self.audit.record(self.person.name, act, subject, what, self.now_ms)


@dataclass(frozen=True)
class Shown:
    """The content of a page, and the template that renders it as HTML (`view` in the template).

    Without a template the browser gets JSON, too: the page is for a script of ours.
    """

    template: str
    view: Any
    title: str
    status: int = 200


@dataclass(frozen=True)
class Done:
    """An act is done. A browser goes on to `location`, where `message` is shown once; JSON has `message` and `view`."""

    location: str
    message: str
    view: Any = None


@dataclass(frozen=True)
class Sent:
    """A file to download."""

    content: bytes = field(repr=False)
    media_type: str = "application/octet-stream"
    file_name: str = "download"


Answer = Shown | Done | Sent


@dataclass(frozen=True)
class Page:
    """One address. `roles`: one of them is needed. `meaning`: one line for the documents of the API."""

    path: str
    handler: Callable[[Visit], Answer]
    meaning: str = ""
    method: Literal["GET", "POST"] = "GET"
    roles: frozenset[Role] = EVERYBODY
    fields: tuple[Field, ...] = ()
    body_bytes_max: int = 64 * 1024

    @property
    def personal(self) -> tuple[str, ...]:
        """The names of the fields that may stand in no address."""
        return tuple(one.name for one in self.fields if one.is_personal)

    @property
    def is_act(self) -> bool:
        """Whether it changes something. A page with personal fields takes them by POST, and only shows something."""
        return self.method == "POST"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its address."""
        return (self.method, "POST") if self.personal and not self.is_act else (self.method,)


@dataclass(frozen=True)
class Missing:
    """A service that the console cannot reach: since when, why, and with which effect. Every page shows it at its top.

    `is_lasting`: it does not come back by itself, and the console is ready nevertheless.
    """

    what: str
    since_ms: int
    why: str
    effect: str = "The pages show the state of that time."
    is_lasting: bool = False


HELD_EFFECT = "Later records are shown when it ends."
"""The effect of an open transaction that holds a topic up."""


@dataclass(frozen=True)
class Section:
    """A part of the console. `path` is its first page, in the navigation for people who may see it.

    `background` runs in a thread each from the start until the event is set. `close` is called last. `badge`: a number
    in the navigation, such as that of open alerts; None for no number.
    """

    name: str
    title: str
    path: str
    pages: tuple[Page, ...]
    roles: frozenset[Role] = EVERYBODY
    background: tuple[Callable[[threading.Event], None], ...] = ()
    missing: Callable[[], list[Missing]] = list
    close: Callable[[], None] = lambda: None
    badge: Callable[[Person], int | None] = lambda _: None


def picked(visit: Visit, name: str) -> list[str]:
    """Return the things that the tick boxes of a list name, each once. Raises PageRefused for too many."""
    found = list(dict.fromkeys(visit.all(name)))
    if len(found) > PICKED_MAX:
        raise PageRefused(400, f"{name}: wanted at most {PICKED_MAX} at once, got {len(found)}.")
    return found


def paged(path: str, visit: Visit, total: int, personal: Collection[str] = ()) -> dict[str, Any]:
    """Return the part of a list's view that says which page it is. `parameters`: the filters as addresses have them."""
    pages = max(1, -(-total // PAGE_SIZE))
    filters = {name: text for name, text in visit.texts().items() if name != "page"}
    return {
        "path": path,
        "total": total,
        "page": min(visit.whole("page", 1), pages),
        "pages": pages,
        "filters": filters,
        "parameters": visit.parameters(path, filters, personal),
        "csv_path": visit.csv_address(path, filters, personal),
    }


def address(path: str, filters: Mapping[str, Any]) -> str:
    """Return the address of a list with filters; empty ones are left out."""
    kept = {name: value for name, value in filters.items() if value}
    return f"{path}?{urlencode(kept)}" if kept else path
