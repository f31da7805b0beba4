"""The steps of a claim that a worker's compiled call makes itself, each as a call of its own."""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.scoring.idempotency import claim_table as claims
from paywarden.scoring.idempotency import decision_cache as answers
from paywarden.scoring.idempotency.decision_cache import Claim, DecisionCache, key_of
from paywarden.scoring.requests.payments import CheckedPayments


def claim_all(cache: DecisionCache, payments: CheckedPayments) -> Sequence[Claim]:
    """Returns for each payment, in order, the slot that was won, or the result of an earlier claim."""
    count = len(payments)
    cache.make_room(count)
    cache.arrays["tags"][:count] = list(map(answers.tag_of, map(key_of, payments.callers, payments.ids)))
    now_s = cache.now_s()
    won = claims.claim_bound(cache.frame_at, count, cache.owner | now_s, now_s, cache.window_s)
    return cache.slots_of(count) if won == count else cache.claimed(payments)


def place_all(cache: DecisionCache, slots: Sequence[int], positions: Sequence[int]) -> None:
    """Note in the slots where in this worker's outbox their records will begin. Call it before the append."""
    cache.put_slots(slots)
    cache.arrays["positions"][: len(slots)] = positions
    claims.place_bound(cache.frame_at, len(slots))
