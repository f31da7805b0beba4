"""Durations as people type them: 150ms, 90s, 10m, 1.5h, 2d."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)")
# 31,700 years. A time as long ago as that is still a number of 64 bits.
_MS_MAX = 10**15


def duration_ms_of(text: object) -> int | None:
    """Returns the milliseconds of a duration such as 150ms, 90s, 10m, 1.5h or 2d; None for anything else."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    length_ms = round(Decimal(match[1]) * _UNITS_MS[match[2]])
    return length_ms if length_ms <= _MS_MAX else None
