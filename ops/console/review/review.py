"""The pages of the review queue: waiting payments, one payment to decide about, and counts of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paywarden.models.metrics.costs import CostSettings
from paywarden.ops.console.background import Kept
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.notes import NotesOf
from paywarden.ops.console.decisions.search import row_view
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.page_rows import PAGE_SIZE, Done, Field, Page, PageRefused, Section, Shown, Visit
from paywarden.ops.console.people import CARD_ROLES as ROLES
from paywarden.ops.console.people import Person, Role
from paywarden.ops.console.reasons import Reason
from paywarden.ops.console.review.picked import Picked
from paywarden.ops.console.review.review_capacity import DAYS, AnalystWorth, worth_of_one_more
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.reviews import (
    NOTE_MAX,
    REASONS,
    ClaimLost,
    ReviewClaim,
    Throughput,
    WaitingReview,
)
from paywarden.streams.decision_index.routing import VERDICTS
from paywarden.streams.decision_index.search import Place

SEE_ROLES = ROLES | {Role.AUDITOR}
InWords = Callable[[Iterable[bytes]], Mapping[str, list[Reason]]]
_DAY_MS = 86_400_000
_WORTH_OLD_MS = 600_000

_CLAIM = Field("claim", "The claim, as the queue gave it", is_required=True, chars_max=64)
_DECISION = Field("decision", "The decision to review; without it the first of the queue")
_DECIDE_FIELDS = (
    _CLAIM,
    Field("verdict", "What the payment is", is_required=True, choices=VERDICTS),
    Field("reason", "Why", is_required=True, choices=REASONS),
    Field("note", "A note", kind="lines", chars_max=NOTE_MAX),
)


class Review:
    """The section `Review`."""

    def __init__(
        self,
        opened: OpenedIndex,
        costs: CostSettings,
        in_words: InWords = lambda _: {},
        notes: NotesOf = lambda *_: [],
        picked: Picked | None = None,
    ) -> None:
        """`in_words`: gives the reasons of decisions, by their ids, from their records."""
        self._opened, self._costs, self._in_words, self._notes = opened, costs, in_words, notes
        self._picked = picked
        # It looks at all decisions of a week.
        self.worth: Kept[AnalystWorth | None] = Kept(self._worth, empty=None, old_ms=_WORTH_OLD_MS)

    def section(self) -> Section:
        """Return the section."""
        queue = Page("/review", self.show, "The review queue, the most urgent first", roles=SEE_ROLES)
        pages = (
            queue,
            export_of(queue, "waiting"),
            Page("/review/claim", self.claim, "Take a payment from the queue", "POST", ROLES, (_DECISION,)),
            Page("/review/mine", self.mine, "The payment that you hold", roles=ROLES),
            Page("/review/decide", self.decide, "Give a verdict about your payment", "POST", ROLES, _DECIDE_FIELDS),
            Page("/review/release", self.release, "Give a payment back to the queue", "POST", ROLES, (_CLAIM,)),
            *([] if self._picked is None else [self._picked.page()]),
        )
        return Section("review", "Review", "/review", pages, SEE_ROLES, badge=self._badge)

    def show(self, visit: Visit) -> Shown:
        """Show the queue, and the work of the last week."""
        since_ms = visit.now_ms - DAYS * _DAY_MS
        with self._opened.used() as (index, queue):
            waiting, total = queue.waiting(visit.now_ms, visit.rows_max or PAGE_SIZE)
            view = {
                "waiting": self._rows(index, waiting, visit),
                "total": total,
                "csv_path": visit.csv_address("/review", {}),
                "unsent": len(queue.unsent(1_000)),
                "may_act": visit.person.may(ROLES),
                "picks": None if self._picked is None else self._picked.form(visit),
                "throughput": queue.throughput(since_ms),
                "agreement": queue.agreement(since_ms),
                "worth": self.worth.known(visit.now_ms),
                "days": DAYS,
                "state": self._opened.state_line,
            }
        if waiting and visit.person.sees_cards:
            visit.saw("reviews", shown=str(len(waiting)), first=waiting[0].payment_id, last=waiting[-1].payment_id)
        return Shown("review/queue.html", view, "Review")

    def _rows(self, index: DecisionIndex, waiting: Sequence[WaitingReview], visit: Visit) -> list[dict[str, Any]]:
        """Return payments of the queue with their decisions and reasons: two reads for all of them."""
        places = [Place(one.decided_time_ms, one.payment_hash) for one in waiting]
        rows = {row.decision_id: row_view(row, visit) for row in index.at(*places)}
        reasons = self._in_words(index.bodies(places).values())
        to = {} if self._picked is None else self._picked.assigned(one.payment_id for one in waiting)
        return [
            _waiting(one, visit.now_ms)
            | {"row": rows.get(one.decision_id), "reasons": reasons.get(one.decision_id, [])}
            | {"assigned_to": to.get(one.payment_id, "")}
            for one in waiting
        ]

    def _worth(self, now_ms: int) -> AnalystWorth:
        since_ms = now_ms - DAYS * _DAY_MS
        with self._opened.used() as (index, queue):
            throughput = queue.throughput(since_ms)
            return worth_of_one_more(
                index,
                now_ms,
                analysts=max(1, len(throughput)),
                reviews_a_day=self._reviews_a_day(throughput),
                review_cost_minor=self._costs.review_cost_minor,
                gain=queue.gain_sql(now_ms),
            )

    def _reviews_a_day(self, throughput: list[Throughput]) -> int:
        """Return how many reviews an analyst makes a day: as measured, or by [costs] where nobody has reviewed."""
        if not throughput:
            return max(1, self._costs.reviews_a_day)
        return max(1, round(sum(one.verdicts for one in throughput) / len(throughput) / DAYS))

    def claim(self, visit: Visit) -> Done:
        """Take that of a decision, or the first payment that nobody holds, one that is assigned to the person first."""
        name, wanted = visit.person.name, visit.text("decision")
        with self._opened.used() as (_, queue):
            if self._picked is not None and not wanted and queue.held(name, visit.now_ms) is None:
                wanted = self._picked.next_of(name, queue, visit.now_ms)
            claim = queue.claim(name, visit.now_ms, decision_id=wanted)
        if claim is None:
            return Done("/review", "There is nothing to take: others hold it, or you have reviewed it already.")
        visit.did("claimed", f"payment:{claim.waiting.payment_id}")
        return Done("/review/mine", "The payment is yours.", _claim(claim, visit))

    def mine(self, visit: Visit) -> Shown:
        """Show the payment that the person holds."""
        with self._opened.used() as (index, queue):
            claim = queue.held(visit.person.name, visit.now_ms)
            if claim is None:
                raise PageRefused(404, "You hold no payment. Take one from the queue.")
            (waiting,) = self._rows(index, [claim.waiting], visit)
        visit.saw(f"payment:{waiting['payment_id']}")
        view = {**_claim(claim, visit), "waiting": waiting, "verdicts": VERDICTS, "reasons": REASONS}
        view["notes"] = self._notes(waiting["row"] or {}, visit)
        return Shown("review/one.html", view, f"Review {waiting['payment_id']}")

    def decide(self, visit: Visit) -> Done:
        """Keep a verdict."""
        claim, verdict, reason = visit.text("claim"), visit.text("verdict"), visit.text("reason")
        with self._opened.used() as (_, queue):
            try:
                said = queue.decide(visit.person.name, claim, verdict, reason, visit.text("note"), visit.now_ms)
            except ClaimLost as error:
                raise PageRefused(409, f"Not kept: {error}.") from error
        visit.did("reviewed", f"payment:{said.payment_id}", verdict=said.verdict, reason=said.reason)
        return Done("/review", f"Kept: {said.payment_id} is {said.verdict}.", said)

    def release(self, visit: Visit) -> Done:
        """Give a payment back."""
        with self._opened.used() as (_, queue):
            try:
                queue.release(visit.person.name, visit.text("claim"))
            except ClaimLost as error:
                raise PageRefused(409, f"Not given back: {error}.") from error
        visit.did("released", f"claim:{visit.text('claim')[:8]}")
        return Done("/review", "The payment is back in the queue.")

    def _badge(self, person: Person) -> int | None:
        return self._opened.waiting_count() if person.may(ROLES) else None


def _claim(claim: ReviewClaim, visit: Visit) -> dict[str, Any]:
    """Return a payment that the person holds."""
    waiting = _waiting(claim.waiting, visit.now_ms)
    return {"claim": claim.token, "until_ms": claim.until_ms, "turn": claim.waiting.turn, "waiting": waiting}


def _waiting(one: WaitingReview, now_ms: int) -> dict[str, Any]:
    """Return a payment in the queue. `holder` is empty where nobody holds it now."""
    names = ("decision_id", "payment_id", "score", "stake_minor", "gain_minor", "turn")
    return {
        "place": Place(one.decided_time_ms, one.payment_hash).to_text(),
        "decided_ms": one.decided_time_ms,
        **{name: getattr(one, name) for name in names},
        # By how much the waiting raises the gain in the order of the queue.
        "raised": 1 + max(0, now_ms - one.decided_time_ms) / _DAY_MS,
        "holder": one.holder if one.held_until_ms > now_ms else "",
    }
