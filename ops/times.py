"""Times and durations as people type and read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from paywarden.schemas.errors import Misconfigured


def now_ms() -> int:
    """Returns the current time in epoch milliseconds, as payments have it."""
    return time.time_ns() // 1_000_000


def time_ms_of(text: str) -> int:
    """Returns the epoch milliseconds of an ISO 8601 time, in UTC if it names no offset. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def spoken(time_ms: int) -> str:
    """Returns a time in UTC to the second. A number that no clock can show is returned as it is."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def time_ms_option(option: str, text: str | None) -> int | None:
    """Returns an option's time in epoch milliseconds; None without a text. Raises Misconfigured."""
    try:
        return None if text is None else time_ms_of(text)
    except ValueError:
        raise Misconfigured(f"{option}: wanted a time such as 2026-05-01T12:00:00Z, got {text!r}") from None
