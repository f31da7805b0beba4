"""A case, built from its events. Each event is checked against the case so far; one that breaks a rule changes nothing.

    opened      title
    linked      item: payment:ID or alert:ID          unlinked   item
    noted       note                                  attached   file (sha256), name, size
    changed     field (title, assigned_to, money_minor), before, after
    proposed    verdict, note: somebody wants it closed
    closed      verdict, note                         reopened   note

A case with much money takes two people to close: one proposes, another one closes. The largest amount that the case
ever had counts: nobody closes a large case by making it small first. Every reader folds the events in the order of the
topic, so two consoles agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from paywarden.streams.alerts.alert_events import ConsoleEvent

PREFIX: Final = "case:"
OPENED: Final = "opened"
LINKED: Final = "linked"
UNLINKED: Final = "unlinked"
NOTED: Final = "noted"
ATTACHED: Final = "attached"
CHANGED: Final = "changed"
PROPOSED: Final = "proposed"
CLOSED: Final = "closed"
REOPENED: Final = "reopened"

VERDICTS: Final = ("fraud", "genuine", "data_fault", "model_fault", "nothing")
FIELDS: Final = ("title", "assigned_to", "money_minor")
ITEMS_MAX: Final = 500
MENTION: Final = re.compile(r"(?<![\w.@-])@([A-Za-z0-9](?:[\w.@-]{0,62}\w)?)(?![\w@-])", re.ASCII)
"""A person's name in a note: `@anna`. The full stop of a sentence is no part of it, and an e-mail address is none."""
_MENTIONS_MAX = 20
# Fields that an event must have. Everyone who may write to the topic can write an event without them.
_WANTED: Final = {LINKED: ("item",), UNLINKED: ("item",), ATTACHED: ("file", "name", "size")}


@dataclass(frozen=True)
class Attachment:
    """A file of a case. `digest` is its sha256."""

    digest: str
    name: str
    size: int
    by: str
    time_ms: int


@dataclass(frozen=True)
class CaseChange:
    """One line of a case's history. `is_refused`: it broke a rule and changed nothing."""

    time_ms: int
    by: str
    kind: str
    field: str
    before: str
    after: str
    note: str
    is_refused: bool = False


@dataclass(frozen=True)
class Case:
    """The state of a case after its events."""

    case_id: str
    title: str
    opened_by: str
    opened_ms: int
    assigned_to: str = ""
    money_minor: int = 0
    money_minor_max: int = 0
    items: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    proposed_by: str = ""
    proposed_verdict: str = ""
    verdict: str = ""
    is_open: bool = True
    changed_ms: int = 0
    history: tuple[CaseChange, ...] = ()

    def needs_two(self, large_minor: int) -> bool:
        """Return whether the case takes two people to close."""
        return self.money_minor_max >= large_minor


def case_subject(case_id: str) -> str:
    """Return the subject of a case's events."""
    return PREFIX + case_id


def mentioned(note: str) -> tuple[str, ...]:
    """Return the names that a note mentions, the first 20, each once."""
    return tuple(dict.fromkeys(MENTION.findall(note)))[:_MENTIONS_MAX]


def case_of(events: Iterable[ConsoleEvent], large_minor: int) -> Case | None:
    """Return a case after its events, in the order of their topic; None without an event that opens it."""
    case = None
    for event in events:
        case = after(case, event, large_minor)
    return case


def after(case: Case | None, event: ConsoleEvent, large_minor: int) -> Case | None:
    """Return the case after an event; a breach of a rule is noted in the history. None: there is no such case."""
    case_id, what = event.subject.partition(":")[2], event.what
    if case is None:
        if event.kind != OPENED:
            return None
        made = Case(case_id, what.get("title", ""), event.by, event.time_ms, changed_ms=event.time_ms)
        return replace(made, history=(CaseChange(event.time_ms, event.by, OPENED, "title", "", made.title, ""),))
    problem = problem_of(case, event, large_minor)
    before = _before(case, event)
    changed = case if problem else _changed(case, event)
    line = CaseChange(
        event.time_ms,
        event.by,
        event.kind,
        what.get("field", ""),
        before,
        what.get("after", what.get("item", what.get("verdict", what.get("name", "")))),
        problem or what.get("note", ""),
        bool(problem),
    )
    return replace(changed, changed_ms=event.time_ms, history=(*case.history, line))


def problem_of(case: Case, event: ConsoleEvent, large_minor: int) -> str:
    """Return the rule that an event breaks; empty for none."""
    what = event.what
    if event.kind == OPENED:
        return "there is a case with this id"
    if not case.is_open and event.kind not in (REOPENED, NOTED):
        return "the case is closed"
    if event.kind == REOPENED and case.is_open:
        return "the case is open"
    for name in _WANTED.get(event.kind, ()):
        if not what.get(name):
            return f"{name}: wanted a text"
    if event.kind == ATTACHED and not _is_whole(what["size"]):
        return "size: wanted a whole number from 0"
    if event.kind == LINKED and len(case.items) >= ITEMS_MAX:
        return f"a case has at most {ITEMS_MAX} payments and alerts"
    if event.kind == CHANGED:
        return _change_problem(case, event)
    if event.kind in (PROPOSED, CLOSED) and what.get("verdict") not in VERDICTS:
        return f"verdict: wanted one of {', '.join(VERDICTS)}"
    if event.kind == CLOSED and case.needs_two(large_minor):
        if not case.proposed_by:
            return "a case with this much money takes two people: propose to close it first"
        if case.proposed_by == event.by:
            return "a case with this much money takes two people: another one closes what you propose"
        if case.proposed_verdict != what.get("verdict"):
            return f"another verdict is proposed: {case.proposed_verdict}"
    return ""


def _change_problem(case: Case, event: ConsoleEvent) -> str:
    field, value = event.what.get("field"), event.what.get("after", "")
    if field not in FIELDS:
        return f"field: wanted one of {', '.join(FIELDS)}"
    if field == "money_minor" and not _is_whole(value):
        return "money_minor: wanted a whole number from 0"
    if field == "title" and not value:
        return "title: wanted a text"
    if event.what.get("before", "") != str(getattr(case, field)):
        return f"{field} was changed meanwhile, to {getattr(case, field)}"
    return ""


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def _before(case: Case, event: ConsoleEvent) -> str:
    field = event.what.get("field", "")
    return str(getattr(case, field)) if event.kind == CHANGED and field in FIELDS else ""


def _changed(case: Case, event: ConsoleEvent) -> Case:
    what = event.what
    # A change after a proposal to close the case asks for another look.
    again = replace(case, proposed_by="", proposed_verdict="")
    if event.kind == LINKED:
        return case if what["item"] in case.items else replace(again, items=(*case.items, what["item"]))
    if event.kind == UNLINKED:
        return replace(again, items=tuple(item for item in case.items if item != what["item"]))
    if event.kind == ATTACHED:
        made = Attachment(what["file"], what["name"], int(what["size"]), event.by, event.time_ms)
        return replace(again, attachments=(*case.attachments, made))
    if event.kind == CHANGED and what["field"] == "money_minor":
        money = int(what["after"])
        return replace(again, money_minor=money, money_minor_max=max(money, case.money_minor_max))
    if event.kind == CHANGED and what["field"] == "title":
        return replace(again, title=what["after"])
    if event.kind == CHANGED:
        return replace(case, assigned_to=what["after"])
    if event.kind == PROPOSED:
        return replace(case, proposed_by=event.by, proposed_verdict=what["verdict"])
    if event.kind == CLOSED:
        return replace(case, is_open=False, verdict=what["verdict"])
    if event.kind == REOPENED:
        return replace(again, is_open=True, verdict="")
    return case
