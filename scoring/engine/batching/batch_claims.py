"""Applies claims on payment ids to batches: a batch is decided whole or not at all, a known payment answered again."""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.batching.batcher import IN_PROGRESS, NOT_DECIDED, Refusal, refusal_of
from paywarden.scoring.idempotency.decision_cache import Claim, ClaimConflict, PaymentIdReused, Repeat


def whole_batches(
    claims: Sequence[Claim | Refusal], batches: Sequence[range]
) -> tuple[list[Claim | Refusal], list[int]]:
    """Put refusals in place of the claims of every batch that holds a conflict. Also returns the replaced claims.

    A payment that repeats one of such a batch is in progress: that batch may come again in a moment.
    """
    kept = [*claims]
    given_back: list[int] = []

    def refusal_at(place: int) -> Refusal | None:
        claim = kept[place]
        if isinstance(claim, Repeat):
            return IN_PROGRESS if isinstance(kept[claim.index], Refusal) else None
        return _conflict(claim) if isinstance(claim, ClaimConflict) else None

    for batch in batches:
        refusals = [(place, refusal) for place in batch if (refusal := refusal_at(place)) is not None]
        if refusals:
            # An id of another payment stays one: this caller need not wait for the payment in progress.
            named, why = next((each for each in refusals if each[1] is not IN_PROGRESS), refusals[0])
            given_back += [claim for claim in (kept[place] for place in batch) if isinstance(claim, int)]
            kept[batch.start : batch.stop] = [why if place == named else NOT_DECIDED for place in batch]
    for place, claim in enumerate(kept):
        if isinstance(claim, Repeat):
            kept[place] = refusal_at(place) or claim
    return kept, given_back


def known_answer(claim: OutboxEntry | ClaimConflict | Refusal) -> bytes | Refusal:
    """Returns the earlier response of a payment, or the refusal for a claim that conflicts."""
    if isinstance(claim, OutboxEntry):
        return claim.response.SerializeToString()
    return _conflict(claim) if isinstance(claim, ClaimConflict) else claim


def _conflict(conflict: ClaimConflict) -> Refusal:
    return refusal_of(PaymentIdReused()) if conflict is ClaimConflict.OTHER_PAYMENT else IN_PROGRESS
