"""One act about many payments that somebody has picked in the queue or in a search: assign, put into a case, verdict.

    12 picked, "fraud"  ──►  a page: "11 payments get the verdict fraud", with these 11  ──agreed=11──►  11 verdicts

A verdict is given about the payments that wait and that nobody else holds. If their number has changed meanwhile, the
page is shown again. An assignment reserves nothing: the payment comes first for that person, and others may take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

from paywarden.ops.console.cases import Cases
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.search import row_view
from paywarden.ops.console.inbox.alert_reader import NOT_SEEN, AlertReader
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.page_rows import Answer, Done, Field, Page, PageRefused, Shown, Visit, not_found, picked
from paywarden.ops.console.people import CARD_ROLES
from paywarden.ops.console.shell import local_path
from paywarden.streams.alerts.alert_events import ASSIGNED, ConsoleEvent
from paywarden.streams.decision_index.reviews import REASONS, ClaimLost, ReviewQueue
from paywarden.streams.decision_index.routing import VERDICTS
from paywarden.streams.decision_index.search import FoundRow, Place

_CASES_MAX = 50
# Decisions that the queue is asked about together.
_ASKED = 500
_FIELDS = (
    Field("payment", "The place of a decision; may be given several times", is_required=True, is_many=True),
    Field("act", "What to do", is_required=True, choices=("assign", "case", "verdict")),
    Field("to", "Whom to assign them to", chars_max=64),
    Field("case", "The id of an open case; without it a new one"),
    Field("title", "What a new case is about"),
    Field("verdict", "What the payments are", choices=VERDICTS),
    Field("reason", "Why", choices=REASONS),
    Field("agreed", "How many payments get the verdict, as the page said", kind="whole", low=1, high=1_000),
    Field("back", "The page to go back to", chars_max=2000),
)


class Picked:
    """The acts, their page, and who payments are assigned to."""

    def __init__(self, opened: OpenedIndex, store: AlertStore, reader: AlertReader, cases: Cases) -> None:
        self._opened, self._store, self._reader, self._cases = opened, store, reader, cases

    def page(self) -> Page:
        """Return the page, for the section of reviews."""
        return Page("/review/picked", self.act, "Do one thing about several payments", "POST", CARD_ROLES, _FIELDS)

    def form(self, visit: Visit) -> dict[str, Any] | None:
        """Return what the form beside a list needs; None for people who may not use it."""
        if not visit.person.may(CARD_ROLES):
            return None
        cases = self._store.cases("open", "", limit=_CASES_MAX)[0]
        return {"cases": [(one["case_id"], one["title"]) for one in cases], "verdicts": VERDICTS, "reasons": REASONS}

    def assigned(self, payment_ids: Iterable[str]) -> Mapping[str, str]:
        """Return by payment whom it is assigned to."""
        return self._store.assignments(payment_ids)

    def next_of(self, person: str, queue: ReviewQueue, now_ms: int) -> str:
        """Return the first decision that is assigned to a person and that the person can claim, or nothing.

        A payment is assigned after its decision, so no earlier assignment is of a payment in the queue.
        """
        assigned = self._store.assigned_to(person, queue.oldest_ms(now_ms))
        free = (queue.free(person, assigned[at : at + _ASKED], now_ms) for at in range(0, len(assigned), _ASKED))
        return next(chain.from_iterable(free), "")

    def act(self, visit: Visit) -> Answer:
        """Do it."""
        places = [Place.from_text(one) for one in picked(visit, "payment")]
        with self._opened.used() as (index, _):
            rows = index.at(*places)
        if len({row.place for row in rows}) < len(places):
            raise not_found("decision at one of these places")
        act, back = visit.text("act"), local_path(visit.text("back", "/review"))
        if act == "verdict":
            return self._verdicts(visit, rows, back)
        if act == "case":
            return self._cases.put(visit, [f"payment:{row.payment_id}" for row in rows], visit.text("case"))
        to = visit.text("to")
        if not to:
            raise PageRefused(400, "to: wanted a person's name.")
        by, now = visit.person.name, visit.now_ms
        events = [
            ConsoleEvent(f"payment:{row.payment_id}", ASSIGNED, by, now, {"to": to, "decision": row.decision_id})
            for row in rows
        ]
        later = "" if self._reader.write(events) else NOT_SEEN
        for event in events:
            visit.did("assign", event.subject, to=to)
        return Done(back, f"Assigned to {to}: {_count(len(rows))}.{later}")

    def _verdicts(self, visit: Visit, rows: list[FoundRow], back: str) -> Answer:
        verdict, reason, name = visit.text("verdict"), visit.text("reason"), visit.person.name
        if not (verdict and reason):
            raise PageRefused(400, "verdict and reason: choose both.")
        with self._opened.used() as (_, queue):
            free = set(queue.free(name, [row.decision_id for row in rows], visit.now_ms))
            given = [row for row in rows if row.decision_id in free]
            if not given:
                raise PageRefused(409, "None of these waits for your verdict: others hold them, or they have one.")
            if visit.whole("agreed") != len(given):
                view = {
                    "rows": [row_view(row, visit) for row in given],
                    "left_out": len(rows) - len(given),
                    "verdict": verdict,
                    "reason": reason,
                    "back": back,
                }
                return Shown("review/picked.html", view, f"{_count(len(given))}: {verdict}?")
            kept = 0
            for row in given:
                # Somebody else was faster.
                with suppress(ClaimLost):
                    if (claim := queue.claim(name, visit.now_ms, decision_id=row.decision_id)) is not None:
                        queue.decide(name, claim.token, verdict, reason, "", visit.now_ms)
                        visit.did("reviewed", f"payment:{row.payment_id}", verdict=verdict, reason=reason)
                        kept += 1
        return Done(back, f"Kept: {_count(kept)}, {verdict}.")


def _count(payments: int) -> str:
    return "1 payment" if payments == 1 else f"{payments} payments"
