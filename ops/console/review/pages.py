"""The pages of the review queue: waiting payments, one payment to decide about, and counts of the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paywarden.ops.console.background_values import Kept
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.rows import RowView, row_view
from paywarden.ops.console.pages import Done, Field, Page, PageRefused, Section, Shown, Visit
from paywarden.ops.console.people.people import Person, Role
from paywarden.ops.console.review.capacity import DAYS, AnalystWorth, worth_of_one_more
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.decision_index.reviews import (
    NOTE_MAX,
    REASONS,
    VERDICTS,
    ClaimLost,
    ReviewAgreement,
    ReviewClaim,
    Throughput,
    WaitingReview,
)
from paywarden.streams.decision_index.search import Place

if TYPE_CHECKING:
    from paywarden.models.metrics.costs import CostSettings

ROLES = frozenset({Role.ANALYST, Role.LEAD})
SEE_ROLES = ROLES | {Role.AUDITOR}
_SHOWN = 50
_DAY_MS = 86_400_000
_WORTH_OLD_MS = 600_000

_CLAIM = Field("claim", "The claim, as the queue gave it", is_required=True, chars_max=64)
DECIDE_FIELDS = (
    _CLAIM,
    Field("verdict", "What the payment is", is_required=True, choices=VERDICTS),
    Field("reason", "Why", is_required=True, choices=REASONS),
    Field("note", "A note", kind="lines", chars_max=NOTE_MAX),
)


@dataclass(frozen=True)
class WaitingView:
    """A payment in the queue. `holder` is empty where nobody holds it now."""

    place: str
    decision_id: str
    payment_id: str
    decided_ms: int
    score: float
    stake_minor: int
    turn: int
    holder: str


@dataclass(frozen=True)
class QueueView:
    """The queue, and the work of the last week. `currency`: of the stakes. `may_act`: whether the person reviews."""

    waiting: tuple[WaitingView, ...]
    total: int
    unsent: int
    may_act: bool
    throughput: tuple[Throughput, ...]
    agreement: ReviewAgreement
    worth: AnalystWorth | None
    days: int
    state: str


@dataclass(frozen=True)
class ClaimView:
    """A payment that the person holds."""

    claim: str
    until_ms: int
    turn: int
    waiting: WaitingView
    row: RowView | None
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]


class ReviewPages:
    """The section `Review`."""

    def __init__(self, opened: OpenedIndex, costs: CostSettings) -> None:
        self._opened, self._costs = opened, costs
        # It looks at all decisions of a week.
        self.worth: Kept[AnalystWorth | None] = Kept(self._worth, empty=None, old_ms=_WORTH_OLD_MS)

    def section(self) -> Section:
        """Returns the section."""
        one = (Field("decision", "The decision to review; without it the first of the queue", chars_max=200),)
        pages = (
            Page("/review", self.show, "The review queue, the most urgent first", roles=SEE_ROLES, view=QueueView),
            Page("/review/claim", self.claim, "Take a payment from the queue", "POST", ROLES, one, view=ClaimView),
            Page("/review/mine", self.mine, "The payment that you hold", roles=ROLES, view=ClaimView),
            Page("/review/decide", self.decide, "Give a verdict about your payment", "POST", ROLES, DECIDE_FIELDS),
            Page("/review/release", self.release, "Give a payment back to the queue", "POST", ROLES, (_CLAIM,)),
        )
        return Section("review", "Review", "/review", pages, SEE_ROLES, (self.worth.run,), badge=self._badge)

    def show(self, visit: Visit) -> Shown:
        """Show the queue."""
        since_ms = visit.now_ms - DAYS * _DAY_MS
        with self._opened.used() as (_, queue):
            waiting, total = queue.waiting(visit.now_ms, _SHOWN)
            throughput = queue.throughput(since_ms)
            view = QueueView(
                tuple(_waiting(one, visit.now_ms) for one in waiting),
                total,
                len(queue.unsent(1_000)),
                visit.person.may(ROLES),
                tuple(throughput),
                queue.agreement(since_ms),
                self.worth.known(visit.now_ms),
                DAYS,
                "" if self._opened.state is None else self._opened.state.line(),
            )
        return Shown("review/queue.html", view, "Review")

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
                sure_share=queue.sure_share(since_ms),
            )

    def _reviews_a_day(self, throughput: list[Throughput]) -> int:
        """Returns how many reviews an analyst makes a day: as measured, or by [costs] where nobody has reviewed."""
        if not throughput:
            return max(1, self._costs.reviews_a_day)
        return max(1, round(sum(one.verdicts for one in throughput) / len(throughput) / DAYS))

    def claim(self, visit: Visit) -> Done:
        """Take the first payment that nobody holds, or that of a decision."""
        with self._opened.used() as (_, queue):
            claim = queue.claim(visit.person.name, visit.now_ms, decision_id=visit.text("decision"))
        if claim is None:
            return Done("/review", "There is nothing to take: others hold it, or you have reviewed it already.")
        visit.did("claimed", f"payment:{claim.waiting.payment_id}")
        return Done("/review/mine", "The payment is yours.", self._view(claim, visit))

    def mine(self, visit: Visit) -> Shown:
        """Show the payment that the person holds."""
        with self._opened.used() as (_, queue):
            claim = queue.held(visit.person.name, visit.now_ms)
        if claim is None:
            raise PageRefused(404, "You hold no payment. Take one from the queue.")
        visit.saw(f"payment:{claim.waiting.payment_id}")
        return Shown("review/one.html", self._view(claim, visit), f"Review {claim.waiting.payment_id}")

    def _view(self, claim: ReviewClaim, visit: Visit) -> ClaimView:
        waiting = claim.waiting
        with self._opened.used() as (index, _):
            rows = index.at(Place(waiting.decided_time_ms, waiting.payment_hash))
        rows = [row for row in rows if row.decision_id == waiting.decision_id]
        row = row_view(rows[0], visit) if rows else None
        shown = _waiting(waiting, visit.now_ms)
        return ClaimView(claim.token, claim.until_ms, waiting.turn, shown, row, VERDICTS, REASONS)

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
        if not person.may(ROLES):
            return None
        try:
            return self._opened.waiting_count()
        except TemporaryFailure:
            return None


def _waiting(one: WaitingReview, now_ms: int) -> WaitingView:
    return WaitingView(
        Place(one.decided_time_ms, one.payment_hash).to_text(),
        one.decision_id,
        one.payment_id,
        one.decided_time_ms,
        one.score,
        one.stake_minor,
        one.turn,
        one.holder if one.held_until_ms > now_ms else "",
    )
