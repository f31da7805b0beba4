"""How stale the profiles are that a history is replayed with.

A live profile lacks the last payments of its card: they are still on their way through the stream. A replay without a
lag gives each payment the profile of all payments before it, which serving cannot.

    lag 1s       payment at 10:00:05.0 sees what happened until 10:00:04.0
    a trace      time_ms,lag_ms        measured: at 10:00 the profiles were 350 ms old, at 10:01 900 ms
                 1767866400000,350
                 1767866460000,900

The *frontier* of a moment is the moment up to which profiles are complete: the moment less the lag. It never goes back,
since a profile does not lose what it has seen. A lag of a trace holds until the next line; the first line's also before
it, the last line's also after it. If the next line is further away than GAP_MS, nobody has measured what happened in
between: GAP_MS after the line the frontier stands still, until the next line.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.durations import duration_ms_of
from paywarden.schemas.errors import Misconfigured

GAP_MS = 5 * 60_000
_LAG_MS_MAX = 366 * 86_400_000
_HEADER = ["time_ms", "lag_ms"]


@dataclass(frozen=True)
class Staleness:
    """Lags as of times. `time_ms` and `lag_ms` have shape (lines,), times ascending; the first lag holds before it."""

    name: str
    """The name of the lag in results: `150ms`, or a trace's file name."""
    time_ms: NDArray[np.int64]
    lag_ms: NDArray[np.int64]

    @classmethod
    def read(cls, text: str) -> Staleness | None:
        """Returns the lag that a text asks for: a duration such as `150ms`, or a trace's file. None for `0`.

        Raises Misconfigured.
        """
        if text == "0":
            return None
        lag_ms = duration_ms_of(text)
        if lag_ms is None:
            return cls._of_trace(Path(text))
        if lag_ms > _LAG_MS_MAX:
            raise Misconfigured(f"lag: wanted at most 366d, got {text}")
        return None if lag_ms == 0 else cls(text, np.zeros(1, dtype=np.int64), np.array([lag_ms]))

    @classmethod
    def _of_trace(cls, path: Path) -> Staleness:
        try:
            with path.open(encoding="ascii", newline="") as file:
                lines = list(csv.reader(file))
        except (OSError, UnicodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text of lines"
            raise Misconfigured(
                f"lag: wanted 0, a duration such as 150ms or 1s, or a trace's file; cannot read {path}: {reason}"
            ) from error
        if not lines or lines[0] != _HEADER:
            raise Misconfigured(f"{path}:1: wanted the header {','.join(_HEADER)}")
        times: list[int] = []
        lags: list[int] = []
        for number, line in enumerate(lines[1:], start=2):
            if len(line) != 2 or not all(re.fullmatch(r"\d{1,15}", cell, re.ASCII) for cell in line):
                raise Misconfigured(f"{path}:{number}: wanted two whole numbers of milliseconds, time_ms and lag_ms")
            if times and int(line[0]) <= times[-1]:
                raise Misconfigured(f"{path}:{number}: time_ms must be later than in the line before")
            if int(line[1]) > _LAG_MS_MAX:
                raise Misconfigured(f"{path}:{number}: lag_ms: wanted at most {_LAG_MS_MAX}, got {line[1]}")
            times.append(int(line[0]))
            lags.append(int(line[1]))
        if not times:
            raise Misconfigured(f"{path}: the trace has no line after its header")
        return cls(path.name, np.array(times, dtype=np.int64), np.array(lags, dtype=np.int64))

    def frontier_ms(self, time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the moment up to which profiles are complete at each of these times, (times,). Times ascend."""
        line = np.maximum(np.searchsorted(self.time_ms, time_ms, side="right") - 1, 0)
        is_gap = np.append(np.diff(self.time_ms) > GAP_MS, np.False_)[line]
        known_until = np.where(is_gap, np.minimum(time_ms, self.time_ms[line] + GAP_MS), time_ms)
        frontier: NDArray[np.int64] = np.maximum.accumulate(known_until - self.lag_ms[line])
        return frontier
