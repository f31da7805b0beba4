"""Chooses the host that a call asks, and whether it asks once more. Pure: the caller brings times and results.

    plan = CallPlan(order=[1, 0], avoided={}, pinned=None)
    attempt 1   at plan.host            refused                  ─► retry at the next host, at once
                                        broken after it was sent ─► retry at the same host, at once
                                        503                      ─► retry at the same host, after 5 ms
    attempt 2   whatever happens is the end

A request that was sent may have been decided, so its retry meets the same host, which knows the payment's id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .answers import UNREACHABLE

# A host that could not be reached, or answered that it cannot, is asked again after this pause.
RETRY_PAUSE_MS = 5.0
# A retry begins only if this much of the deadline is left after the pause.
RETRY_LEFT_MS_MIN = 5.0
ATTEMPTS_MAX = 2
# How long new payments avoid a host that refused a connection or said that it closes one.
AVOID_MS = 1000.0
DEADLINE_MS_MAX = 600_000

# Results of an attempt, besides an HTTP status.
REFUSED, BROKEN = "refused", "broken"


def deadline_header(left_ms: float) -> int:
    """Returns the value of `x-deadline-ms`: the time left, in whole milliseconds."""
    return min(max(int(left_ms + 0.5), 1), DEADLINE_MS_MAX)


class CallPlan:
    """The attempts of one call. `host` is the place of the host to ask now."""

    __slots__ = ("_order", "attempts", "host", "sent_to")

    def __init__(self, order: Sequence[int], avoided: Collection[int] = (), pinned: int | None = None) -> None:
        """`pinned` is the host that this payment was sent to before."""
        self._order, self.attempts = order, 1
        # Where the request was sent: the place of a host, or None.
        self.sent_to = pinned
        if pinned is not None:
            self.host = pinned
        else:
            self.host = next((place for place in order if place not in avoided), order[0])

    def sent(self) -> None:
        """Note that bytes of the request may have reached the host."""
        self.sent_to = self.host

    def retry_pause_ms(self, met: str | int, left_ms: float) -> float | None:
        """Returns the pause before a second attempt at `host`, or None if there is none.

        `met` is REFUSED, BROKEN, or the status of an answer; `left_ms` is the time left of the deadline.
        """
        if self.attempts >= ATTEMPTS_MAX or met not in (REFUSED, BROKEN, 503):
            return None
        host, pause_ms = self.host, 0.0 if met == BROKEN else RETRY_PAUSE_MS
        if met == REFUSED and self.sent_to is None and len(self._order) > 1:
            at = self._order.index(host)
            host, pause_ms = self._order[(at + 1) % len(self._order)], 0.0
        if left_ms - pause_ms < RETRY_LEFT_MS_MIN:
            return None
        self.attempts += 1
        self.host = host
        return pause_ms


def cause_of(met: str) -> str:
    """Returns the cause of a stand-in by the result of the last attempt, other than a status."""
    return UNREACHABLE if met == REFUSED else met
