"""Records of the topic decisions, as plain values."""

from __future__ import annotations

from typing import Any

_MONDAY_MS = 19_723 * 86_400_000


def decision(payment_id: str, **changes: Any) -> dict[str, Any]:
    """Returns a record of topic decisions about a payment of 2024-01-01."""
    return {
        "decision_id": "d-" + payment_id,
        "decided_time_ms": _MONDAY_MS + 50,
        "payment_id": payment_id,
        "event_time_ms": _MONDAY_MS,
        "card_id": "c",
        "merchant_id": "m",
        "amount_minor": 1,
        "currency": "EUR",
        "score": 0.1,
        "action": "approve",
        "reasons": [],
        "flags": [],
        "model_version": "a",
        "catalogue_digest": "x",
        "vector": b"",
    } | changes
