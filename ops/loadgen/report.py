"""The result of a load: counts, and latencies in buckets of a fixed relative width.

The bucket of a latency is the top of its floating-point number: the exponent and the eight bits after it. A bucket is
therefore at most 1/256 of its value wide, whatever the value. A million samples take no more memory than ten, and
sorting them in takes two operations on an array.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 1 / 256
# Bits of a float64's mantissa that a bucket leaves out.
_SHIFT = 52 - 8
_LOWEST_S, _HIGHEST_S = 2.0**-20, 2.0**12
# Samples sorted in together: a call of numpy costs as much as fifty samples.
_WAITING_MAX = 8192


def _bucket_of(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    buckets: NDArray[np.int64] = seconds.view(np.int64) >> _SHIFT
    return buckets


_FIRST, _LAST = (int(_bucket_of(np.array([bound]))[0]) for bound in (_LOWEST_S, _HIGHEST_S))


class LatencyHistogram:
    """Counts latencies from a microsecond to an hour; quantiles are exact or up to `RELATIVE_ERROR` too high."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_LAST - _FIRST + 1, dtype=np.int64)
        self._waiting = array("d")
        self._max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self._waiting.append(seconds)
        if len(self._waiting) >= _WAITING_MAX:
            self._sort_in()

    @property
    def count(self) -> int:
        """Returns how many latencies were counted."""
        self._sort_in()
        return int(self._counts.sum())

    def quantile_ms(self, share: float) -> float:
        """Returns the smallest bound in ms that `share` of all do not exceed; 1.0 gives the largest, no samples 0."""
        self._sort_in()
        total = int(self._counts.sum())
        if total == 0:
            return 0.0
        # Nearest rank.
        rank = max(1, int(np.ceil(share * total)))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        upper = float(np.array([(bucket + _FIRST + 1) << _SHIFT], dtype=np.int64).view(np.float64)[0])
        return min(upper, self._max_s) * 1000

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        seconds = np.array(self._waiting, dtype=np.float64)
        # Emptied in place: `add` may hold a reference to the list.
        del self._waiting[:]
        self._max_s = max(self._max_s, float(seconds.max()))
        buckets = _bucket_of(np.clip(seconds, _LOWEST_S, _HIGHEST_S)) - _FIRST
        self._counts += np.bincount(buckets, minlength=len(self._counts))


@dataclass(frozen=True)
class LoadReport:
    """The result of a load. `sent` = `ok` + `shed` + `errors`; a latency without samples is 0.

    A latency counts from when the request was due. `p50_ms` to `max_ms` are latencies of the `ok` answers.
    """

    sent: int
    ok: int
    # Refused because of overload: 429, RESOURCE_EXHAUSTED, or a refused stream.
    shed: int
    # Any other status, a broken connection, or no answer in time.
    errors: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    # Errors with 504 or DEADLINE_EXCEEDED; with 503 or UNAVAILABLE; and those without any answer, because none came in
    # time or the connection broke. The other errors are of other statuses.
    deadline_exceeded: int
    unavailable: int
    unanswered: int
    # Latency of refusals: of requests shed and of those past their deadline.
    shed_p50_ms: float
    shed_p99_ms: float
    shed_max_ms: float
    # From when a request is due to when this program sends it. If the lag is as large as the latencies, the load
    # generator was the bottleneck, and not the server.
    lag_p99_ms: float
    # From the due time of the first request to that of the last; in a closed loop the whole run.
    seconds: float
    ok_per_second: float


@dataclass
class RequestLog:
    """Every request of a load, in the order they were due: seconds from the start, status, latency, and wait.

    A status is an HTTP status (those of gRPC are translated), and 0 when no answer came. A latency counts from when the
    request was due. The wait is the part of it before the request was sent: until the load had a free connection.
    """

    due_s: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("h"))
    latency_ms: array[float] = field(default_factory=lambda: array("f"))
    wait_ms: array[float] = field(default_factory=lambda: array("f"))


class LoadTally:
    """Counts a load's answers while it runs."""

    def __init__(self, record: RequestLog | None) -> None:
        self.sent = self.ok = self.shed = self.errors = 0
        self.deadline_exceeded = self.unavailable = self.unanswered = 0
        self.lag = LatencyHistogram()
        self._ok_latency, self._shed_latency = LatencyHistogram(), LatencyHistogram()
        self._record = record

    def begin(self, due_s: float) -> None:
        """Count a request that is due, `due_s` seconds from the start."""
        self.sent += 1
        if self._record is not None:
            self._record.due_s.append(due_s)
            self._record.status.append(0)
            self._record.latency_ms.append(0.0)
            self._record.wait_ms.append(0.0)

    def left(self, index: int, due_s: float) -> None:
        """Note that a request is sent now that was due at `due_s`, in seconds of `time.perf_counter`."""
        if self._record is not None:
            self._record.wait_ms[index] = (time.perf_counter() - due_s) * 1000

    def answered(self, index: int, status: int, latency_s: float) -> None:
        """Count the answer to a request. `status` is an HTTP status, 0 without an answer."""
        if status == 200:
            self.ok += 1
            self._ok_latency.add(latency_s)
        elif status == 429:
            self.shed += 1
            self._shed_latency.add(latency_s)
        else:
            self.errors += 1
            if status == 504:
                self.deadline_exceeded += 1
                self._shed_latency.add(latency_s)
            elif status == 503:
                self.unavailable += 1
            elif status == 0:
                self.unanswered += 1
        if self._record is not None:
            self._record.status[index] = status
            self._record.latency_ms[index] = latency_s * 1000

    @property
    def is_complete(self) -> bool:
        """Returns whether every request has been answered or given up."""
        return self.ok + self.shed + self.errors >= self.sent

    def report(self, seconds: float, ok_in_time: int) -> LoadReport:
        """Returns the report. `ok_in_time` counts the good answers within `seconds`.

        Requests that were neither answered nor given up count as unanswered.
        """
        left = max(0, self.sent - self.ok - self.shed - self.errors)
        ok, shed = self._ok_latency.quantile_ms, self._shed_latency.quantile_ms
        return LoadReport(
            sent=self.sent,
            ok=self.ok,
            shed=self.shed,
            errors=self.errors + left,
            p50_ms=ok(0.5),
            p90_ms=ok(0.9),
            p95_ms=ok(0.95),
            p99_ms=ok(0.99),
            p999_ms=ok(0.999),
            max_ms=ok(1.0),
            deadline_exceeded=self.deadline_exceeded,
            unavailable=self.unavailable,
            unanswered=self.unanswered + left,
            shed_p50_ms=shed(0.5),
            shed_p99_ms=shed(0.99),
            shed_max_ms=shed(1.0),
            lag_p99_ms=self.lag.quantile_ms(0.99),
            seconds=seconds,
            ok_per_second=ok_in_time / seconds if seconds > 0 else 0.0,
        )
