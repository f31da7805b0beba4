"""The section Decisions: the search, and rows of decisions as a person may see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from paywarden.models.policy.policy import MODEL_ABSENT
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.notes import NotesOf
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.page_rows import Field, Page, PageRefused, Section, Shown, Visit
from paywarden.streams.decision_index.search import ACTIONS, PAGE_ROWS_MAX, FoundRow, Place, Search
from paywarden.streams.decision_index.search import SearchPage as Found

PAGE_ROWS = 25
PATH = "/decisions"
_TEXTS = ("payment_id", "card_id", "merchant_id", "device_id", "ip", "rule", "segment", "flag", "action")
SEARCH_FIELDS = (
    Field("payment_id", "About this payment"),
    Field("card_id", "Of this card", is_personal=True),
    Field("merchant_id", "To this merchant"),
    Field("device_id", "From this device", is_personal=True),
    Field("ip", "From this IP address", is_personal=True),
    Field("from", "Decided at this time (UTC) or later", kind="time"),
    Field("to", "Decided before this time (UTC)", kind="time"),
    Field("action", "With this action", choices=ACTIONS),
    Field("rule", "With this rule among its reasons"),
    Field("segment", "With a threshold of this segment among its reasons"),
    Field("flag", "With this flag"),
    Field("score_min", "With this score or a higher one", kind="number", low=0, high=1),
    Field("score_max", "With this score or a lower one", kind="number", low=0, high=1),
    Field("after", "The place that the last page gave"),
)
PERSONAL = tuple(one.name for one in SEARCH_FIELDS if one.is_personal)
_SHOWN = (
    *("decision_id", "payment_id", "merchant_id", "amount_minor", "currency", "country", "channel", "action"),
    *("reasons", "flags", "model_version"),
)


def row_view(row: FoundRow, visit: Visit) -> dict[str, Any]:
    """Return a decision in a table. `place` is its address. `score`: None if no model gave one."""
    known = row.outcome
    return {
        "place": row.place.to_text(),
        "decided_ms": row.decided_time_ms,
        **{name: getattr(row, name) for name in _SHOWN},
        **{name: visit.masked(getattr(row, name)) for name in PERSONAL},
        "score": None if MODEL_ABSENT in row.flags else row.score,
        "outcome": "" if known is None else known.label,
        "outcome_source": "" if known is None else known.source,
        "outcome_ms": None if known is None else known.time_ms,
    }


class DecisionSearch:
    """The section `Decisions`. `more`: the page of one decision, and that of notes, which `notes` gives.

    `picks`: what the form of acts about several payments needs. `assigned`: whom payments are assigned to.
    """

    def __init__(
        self,
        opened: OpenedIndex,
        *more: Page,
        notes: NotesOf = lambda *_: [],
        picks: Callable[[Visit], dict[str, Any] | None] = lambda _: None,
        assigned: Callable[[Iterable[str]], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._opened, self._more, self._notes, self._picks, self._assigned = opened, more, notes, picks, assigned

    def section(self) -> Section:
        """Return the section, with the threads that follow the topics."""
        opened = self._opened
        found = Page(PATH, self.search, "Decisions, the newest first", fields=SEARCH_FIELDS)
        pages = (found, export_of(found, "rows"), *self._more)
        work = (opened.follow, opened.send, opened.ask)
        return Section(
            "decisions", "Decisions", PATH, pages, background=work, missing=opened.missing, close=opened.close
        )

    def search(self, visit: Visit) -> Shown:
        """Show a page of a search."""
        asked = visit.texts()
        after = asked.pop("after", "")
        if not visit.person.sees_cards and (hidden := [name for name in PERSONAL if name in asked]):
            # A person who may not see cards must not find out by guesses which payments are of one card.
            raise PageRefused(403, f"{hidden[0]}: this needs the role analyst or lead.")
        last_ms = visit.time_ms("to")
        search = Search(
            **{name: asked.get(name, "") for name in _TEXTS},
            first_ms=visit.time_ms("from"),
            last_ms=None if last_ms is None else last_ms - 1,
            score_min=visit.number("score_min", 0.0),
            score_max=visit.number("score_max", 1.0),
        )
        with self._opened.used() as (index, _):
            place = Place.from_text(after) if after else None
            page = index.search(search, after=place, count=min(visit.rows_max or PAGE_ROWS, PAGE_ROWS_MAX))
            while len(page.rows) < visit.rows_max and page.next is not None and page.looked_from_ms is None:
                further = index.search(search, after=page.next, count=PAGE_ROWS_MAX)
                page = replace(further, rows=[*page.rows, *further.rows])
            count = index.count()
            expired = sum(place.missing for place in index.sources("decisions").values())
        self._note(visit, asked, page)
        following = None if page.next is None else {**asked, "after": page.next.to_text()}
        to = self._assigned(row.payment_id for row in page.rows)
        view = {
            "rows": [row_view(row, visit) | {"assigned_to": to.get(row.payment_id, "")} for row in page.rows],
            "picks": self._picks(visit),
            "asked": asked,
            "notes": self._notes(asked, visit),
            # The address of this search.
            "own_path": visit.address(PATH, asked, PERSONAL),
            # The address of the next page; "" without one.
            "next_path": "" if following is None else visit.address(PATH, following, PERSONAL),
            # How far back a search without a key has looked; None if to the beginning.
            "looked_from_ms": page.looked_from_ms,
            "csv_path": visit.csv_address(PATH, asked, PERSONAL),
            "decisions": count,
            "state": self._opened.state_line,
            "expired": expired,
        }
        return Shown("decisions/search.html", view, "Decisions")

    def _note(self, visit: Visit, asked: Mapping[str, str], page: Found) -> None:
        """Note in the audit log which decisions the person sees with their cards, or has looked for by personal fields.

        The same search between the same times finds them again.
        """
        told = {name: visit.audit.blinded(text) if name in PERSONAL else text for name, text in asked.items()}
        if page.rows and visit.person.sees_cards:
            times = [row.decided_time_ms for row in page.rows]
            told |= {"shown": str(len(times)), "first_ms": str(min(times)), "last_ms": str(max(times))}
        elif not any(name in asked for name in PERSONAL):
            return
        visit.saw("decisions", **told)
