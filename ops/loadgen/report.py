"""The result of a load: counts, and quantiles of latencies."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

import numpy as np


def quantiles_ms(seconds: array[float], shares: tuple[float, ...]) -> list[float]:
    """Returns for each share the smallest latency in ms that this share does not exceed; 0 without samples."""
    if not seconds:
        return [0.0] * len(shares)
    found: list[float] = (np.quantile(np.array(seconds), shares, method="inverted_cdf") * 1000).tolist()
    return found


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
        # In seconds. A request takes 16 bytes of memory here.
        self.lag = array("d")
        self._ok_latency, self._shed_latency = array("d"), array("d")
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
            self._ok_latency.append(latency_s)
        elif status == 429:
            self.shed += 1
            self._shed_latency.append(latency_s)
        else:
            self.errors += 1
            if status == 504:
                self.deadline_exceeded += 1
                self._shed_latency.append(latency_s)
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
        p50_ms, p90_ms, p95_ms, p99_ms, p999_ms, max_ms = quantiles_ms(
            self._ok_latency, (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
        )
        shed_p50_ms, shed_p99_ms, shed_max_ms = quantiles_ms(self._shed_latency, (0.5, 0.99, 1.0))
        (lag_p99_ms,) = quantiles_ms(self.lag, (0.99,))
        return LoadReport(
            sent=self.sent,
            ok=self.ok,
            shed=self.shed,
            errors=self.errors + left,
            p50_ms=p50_ms,
            p90_ms=p90_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
            p999_ms=p999_ms,
            max_ms=max_ms,
            deadline_exceeded=self.deadline_exceeded,
            unavailable=self.unavailable,
            unanswered=self.unanswered + left,
            shed_p50_ms=shed_p50_ms,
            shed_p99_ms=shed_p99_ms,
            shed_max_ms=shed_max_ms,
            lag_p99_ms=lag_p99_ms,
            seconds=seconds,
            ok_per_second=ok_in_time / seconds if seconds > 0 else 0.0,
        )
