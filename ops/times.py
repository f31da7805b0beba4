"""Moments as people type them."""

from __future__ import annotations

from datetime import UTC, datetime


def time_ms_of(text: str) -> int:
    """Epoch milliseconds of an ISO 8601 time, in UTC where it names no offset. Raises ValueError when it is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
