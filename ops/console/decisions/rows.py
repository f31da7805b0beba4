"""The values of a decision that pages show. Cards, devices and addresses are masked as the person's roles say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paywarden.models.policy.policy import MODEL_ABSENT

if TYPE_CHECKING:
    from paywarden.ops.console.pages import Visit
    from paywarden.streams.decision_index.search import FoundRow


@dataclass(frozen=True)
class RowView:
    """A decision in a table. `place` is its address; ids of cards, devices and addresses may be masked.

    `score`: None if no model gave one.
    """

    place: str
    decision_id: str
    payment_id: str
    decided_ms: int
    card_id: str
    merchant_id: str
    device_id: str
    ip: str
    amount_minor: int
    currency: str
    country: str
    channel: str
    score: float | None
    action: str
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    model_version: str
    outcome: str
    outcome_source: str
    outcome_ms: int | None


def row_view(row: FoundRow, visit: Visit) -> RowView:
    """Returns a decision as the person may see it."""
    known = row.outcome
    return RowView(
        place=row.place.to_text(),
        decision_id=row.decision_id,
        payment_id=row.payment_id,
        decided_ms=row.decided_time_ms,
        card_id=visit.masked(row.card_id),
        merchant_id=row.merchant_id,
        device_id=visit.masked(row.device_id),
        ip=visit.masked(row.ip),
        amount_minor=row.amount_minor,
        currency=row.currency,
        country=row.country,
        channel=row.channel,
        score=None if MODEL_ABSENT in row.flags else row.score,
        action=row.action,
        reasons=row.reasons,
        flags=row.flags,
        model_version=row.model_version,
        outcome="" if known is None else known.label,
        outcome_source="" if known is None else known.source,
        outcome_ms=None if known is None else known.time_ms,
    )
