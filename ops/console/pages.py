"""Pages of the console. A section declares its pages, and the shell does the rest:

    Section("inbox", "Inbox", "/inbox", (
        Page("/inbox", self.list, fields=(Field("severity", "Show these only", choices=("info", "critical")),)),
        Page("/inbox/{alert_id}/acknowledge", self.acknowledge, method="POST", roles=frozenset({Role.ANALYST})),
    ))

A page returns its content as a dataclass (`Shown`), or the act that is done (`Done`). The shell renders a template for
a browser, and the same dataclass as JSON below /api/v1 for a token. A page therefore never sees a person without a role
it wants, a form without its CSRF token, or a field that it did not declare.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

from paywarden.ops.console.people.people import EVERYBODY, Person, Role, masked
from paywarden.ops.console.sealed_searches import SEALED_FIELD, Seal
from paywarden.schemas.errors import TemporaryFailure

if TYPE_CHECKING:
    from paywarden.ops.console.audit import Audit

TEXT_CHARS_MAX = 200


class PageRefused(Exception):
    """The page refuses a request. `message` is for the person; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class NothingDone(TemporaryFailure):
    """A system outside does not answer, and it is certain that nothing was done."""


def not_found(what: str) -> PageRefused:
    """Returns the refusal of something that is not there."""
    return PageRefused(404, f"There is no {what}.")


@dataclass(frozen=True)
class Field:
    """A parameter of a page's address or form.

    `kind`: text (one line), lines, whole (number), number, time (UTC, such as 2026-10-01T08:30), or file. With
    `choices` the value is one of them. `is_many`: it may come more than once. `is_personal`: it comes in forms alone,
    and stands in no address but sealed (sealed_searches.py).
    """

    name: str
    meaning: str
    kind: Literal["text", "lines", "whole", "number", "time", "file"] = "text"
    is_required: bool = False
    is_many: bool = False
    chars_max: int = TEXT_CHARS_MAX
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    is_personal: bool = False


@dataclass(frozen=True)
class Upload:
    """A file that a form brought."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Visit:
    """One checked request: person, fields, time. `values` has the fields that were given, as text."""

    person: Person
    now_ms: int
    audit: Audit
    path: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    is_api: bool = False
    # The same for a form that is sent twice (sent_forms.py); "" for a program, and for a form that changes nothing.
    sending: str = ""
    # The digest of the session; "" for a program.
    session: str = ""
    # Keeps personal fields out of the addresses of this browser or program.
    seal: Seal = field(default_factory=lambda: Seal(secrets.token_urlsafe(32), 0, 0))

    def text(self, name: str, default: str = "") -> str:
        """Returns a field's text, the last one if there are several."""
        return self.values[name][-1] if name in self.values else default

    def all(self, name: str) -> tuple[str, ...]:
        """Returns all texts of a field."""
        return self.values.get(name, ())

    def whole(self, name: str, default: int = 0) -> int:
        """Returns a field of the kind whole."""
        return int(self.values[name][-1]) if name in self.values else default

    def number(self, name: str, default: float = 0.0) -> float:
        """Returns a field of the kind number."""
        return float(self.values[name][-1]) if name in self.values else default

    def time_ms(self, name: str) -> int | None:
        """Returns a field of the kind time as epoch milliseconds; None if it was not given."""
        from paywarden.ops.times import time_ms_of

        return time_ms_of(self.values[name][-1]) if name in self.values else None

    def masked(self, value: str) -> str:
        """Returns a sensitive value as this person may see it."""
        return masked(value, self.person)

    def saw(self, subject: str, **what: str) -> None:
        """Note in the audit log that the person has seen sensitive fields of the subject, such as `payment:p1`."""
        self.audit.record(self.person.name, "viewed", subject, what, self.now_ms)

    def did(self, act: str, subject: str, **what: str) -> None:
        """Note an act of the person in the audit log."""
        self.audit.record(self.person.name, act, subject, what, self.now_ms)


@dataclass(frozen=True)
class Shown:
    """The content of a page: a dataclass, and the template that renders it as HTML (`view` in the template).

    Without a template the browser gets JSON, too: the page is for a script of ours.
    """

    template: str
    view: object
    title: str
    status: int = 200


@dataclass(frozen=True)
class Done:
    """An act is done. A browser goes on to `location`, where `message` is shown once; JSON has `message` and `view`."""

    location: str
    message: str
    view: object | None = None


@dataclass(frozen=True)
class Sent:
    """A file to download."""

    content: bytes = field(repr=False)
    media_type: str = "application/octet-stream"
    file_name: str = "download"


Answer = Shown | Done | Sent


_SEALED = Field(SEALED_FIELD, "Personal fields, as the address of a next page has them", chars_max=8_000)


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
    # The dataclass of its content, for the documents of the API.
    view: type | None = None
    # It has its fields by POST, and only shows something.
    is_search: bool = False

    @property
    def personal(self) -> tuple[str, ...]:
        """The names of the fields that may stand in no address."""
        return tuple(one.name for one in self.fields if one.is_personal)

    @property
    def is_act(self) -> bool:
        """Whether it changes something."""
        return self.method == "POST" and not self.is_search

    def by_methods(self) -> tuple[Page, ...]:
        """Returns the page by each method that it has. One with personal fields has them by POST, and sealed by GET."""
        if self.method == "POST" or not self.personal:
            return (self,)
        plain = tuple(one for one in self.fields if not one.is_personal)
        return replace(self, fields=(*plain, _SEALED)), replace(self, method="POST", is_search=True)


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


def nothing_missing() -> list[Missing]:
    """Returns the empty list, for a section without outside services."""
    return []


@dataclass(frozen=True)
class Section:
    """A part of the console. `path` is its first page, in the navigation for people who may see it.

    `background` runs in a thread each from the start until the event is set. `close` is called last.
    """

    name: str
    title: str
    path: str
    pages: tuple[Page, ...]
    roles: frozenset[Role] = EVERYBODY
    background: tuple[Callable[[threading.Event], None], ...] = ()
    missing: Callable[[], list[Missing]] = nothing_missing
    close: Callable[[], None] = lambda: None
    # A number in the navigation, such as that of open alerts; None for no number.
    badge: Callable[[Person], int | None] = lambda _: None


def filtered(path: str, filters: Mapping[str, str]) -> str:
    """Returns the address of a list with filters; empty ones are left out."""
    kept = {name: value for name, value in filters.items() if value}
    return f"{path}?{urlencode(kept)}" if kept else path
