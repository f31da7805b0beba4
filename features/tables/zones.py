"""Local times to UTC.

    Europe/Berlin, 2026-03-29 02:30     no such time: the clock went from 02:00 to 03:00
    Europe/Berlin, 2026-10-25 02:30     twice: at 00:30 UTC and at 01:30 UTC

A zone becomes a short list of its transitions, found once with Python's zoneinfo, so that a column is converted with
one search.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.payment_fields import TIME_MS_END, TIME_MS_MIN

_OFFSET = re.compile(r"([+-])([0-9]{2}):?([0-9]{2})|Z|UTC")
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000

Int64Array = NDArray[np.int64]


class LocalTimes(NamedTuple):
    """Local times in UTC, shape (rows,) each: the time, the offset, and whether it is in a gap or twice there."""

    time_ms: Int64Array
    offset_minutes: Int64Array
    is_in_gap: NDArray[np.bool_]
    is_ambiguous: NDArray[np.bool_]


class Zone(NamedTuple):
    """A zone: offset i of `offsets_ms` holds from `transitions_ms[i - 1]` (UTC) on."""

    transitions_ms: Int64Array
    offsets_ms: Int64Array

    def utc(self, local_ms: Int64Array, *, second: bool = False) -> LocalTimes:
        """Returns local times in UTC. An ambiguous one is the first of the two, or the second. A gap's is not used."""
        before, after = self.offsets_ms[:-1], self.offsets_ms[1:]
        # Between these two a local time is there twice, or not at all.
        low, high = self.transitions_ms + np.minimum(before, after), self.transitions_ms + np.maximum(before, after)
        passed = np.searchsorted(low, local_ms, side="right")
        last = np.maximum(passed - 1, 0)
        is_within = np.zeros(len(local_ms), dtype=np.bool_)
        forward = is_within
        if len(low):
            is_within = (passed > 0) & (local_ms < high[last])
            forward = after[last] > before[last]
        index = passed if second else passed - (is_within & ~forward)
        offset = self.offsets_ms[index]
        return LocalTimes(local_ms - offset, offset // _MINUTE_MS, is_within & forward, is_within & ~forward)

    @staticmethod
    def moment_ms(text: str) -> int | None:
        """Returns the epoch milliseconds of an ISO 8601 time, in UTC if it names no offset; None for another text."""
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def is_zone(name: str) -> bool:
    """Returns whether a text is the name of a zone, or an offset such as +02:00."""
    return zone_of(name) is not None


@cache
def zone_of(name: str) -> Zone | None:
    """Returns a zone by its name or offset; None for an unknown one."""
    match = _OFFSET.fullmatch(name)
    if match is not None:
        minutes = int(match[1] + "1") * (60 * int(match[2]) + int(match[3])) if match[1] else 0
        return Zone(np.zeros(0, np.int64), np.array([minutes * _MINUTE_MS])) if abs(minutes) < 1440 else None
    try:
        info = ZoneInfo(name)
    # zoneinfo opens a file by this name, and has many errors for a missing one.
    except (KeyError, ValueError, OSError):
        return None
    return _transitions(info)


def _transitions(info: ZoneInfo) -> Zone:
    """Returns the transitions from a day before 2000 to a day after 2100. No zone has two on one day."""
    moments = range(TIME_MS_MIN - _DAY_MS, TIME_MS_END + 2 * _DAY_MS, _DAY_MS)
    offset = _offset_ms(info, moments[0])
    transitions, offsets = [], [offset]
    for moment in moments[1:]:
        if (later := _offset_ms(info, moment)) != offset:
            low, high = moment - _DAY_MS, moment
            while high - low > 1000:
                middle = (low + high) // 2000 * 1000
                low, high = (middle, high) if _offset_ms(info, middle) == offset else (low, middle)
            transitions.append(high)
            offsets.append(later)
            offset = later
    return Zone(np.array(transitions, dtype=np.int64), np.array(offsets, dtype=np.int64))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _offset_ms(info: ZoneInfo, moment_ms: int) -> int:
    offset = (_EPOCH + timedelta(milliseconds=moment_ms)).astimezone(info).utcoffset()
    assert offset is not None
    return round(offset.total_seconds() * 1000)
