"""Learns the cost of a payment in a worker, and limits the worker's queue."""

from __future__ import annotations

# The assumed time per payment, in seconds, until the first chunk has been measured.
_FIRST_COST_S = 100e-6
# The weight of the last chunk in the moving average of the time per payment.
_COST_WEIGHT = 0.1
# A chunk counts at most as this many times the average. A worker that has lost its core for 20 ms has not become slow:
# taken for the cost of a payment, one such moment had the calls refused that had gathered meanwhile. If payments have
# become ten times as dear, five chunks tell.
_COST_JUMP_MAX = 8.0
# A payment costs at most this many times more in a small chunk than in a large one, whose fixed part more payments
# share. (Measured: 52 µs alone, 16 µs in a chunk of 32.)
_SMALL_CHUNK_FACTOR_MAX = 4.0
# Calls that gather in a moment may wait this many times `wait_ms_max`, but at most this share of the deadline.
_BURST_FACTOR, _BURST_DEADLINE_SHARE = 3.0, 0.75
# A queue stands when it has become no shorter in this many of these times of work in a row. In the first one
# it has become longer in any case: that is how it came to be.
_LOOK_S, _LOOKS = 0.01, 2
# It also stands when the worker has worked for this long without having emptied it. At half load, the payments that
# gather in a stop of 100 ms are answered in about as much work.
_STANDING_S = 0.05
# A queue still counts as standing for this long after it stood last. Callers who send too much pause, too: a queue of
# 10 ms is empty after a pause of 10 ms, and the payments that follow are no burst.
_CALM_S = 0.1


class QueueLimit:
    """Learns the cost of a payment, and the number of payments that may wait.

        half load   1 2 1 1 · stop of 40 ms · 800 gather       ─► all are answered within 30 ms: none is refused
        overload    32 32 32 32 32 32 … no shorter after 20 ms ─► a queue that stands: 10 ms at most

    1. *The cost of a payment* is an average over chunks, and one of large chunks alone. At half load most chunks have
       one to three payments, and each payment costs two to three times as much as in a chunk of 32. A long queue is
       answered in large chunks, so their cost tells how long it takes. Before the first large chunk the cost of small
       ones counts.
    2. *A queue that stands* has become no shorter, or calls were refused, in `_LOOKS` times of `_LOOK_S` of work; or it
       has not been empty in `_STANDING_S` of work. Then more payments come than can be answered, waiting helps nobody,
       and the limit is `wait_ms_max`. This ends when a queue begins `_CALM_S` after the last standing one; an empty
       queue alone does not end it. Any other queue gathered in a stop, or is a burst: it will be empty soon, and the
       limit is the number of payments that can be answered in time. The time in which the worker had no core is not
       work: a stop does not make a queue stand.
    """

    __slots__ = (
        *("_burst_s", "_full_s", "_has_refused", "_large", "_looked_at_s", "_longer", "_payment_s", "_stand_s"),
        *("_stood_at", "_waited", "_working_s", "stands", "wait_s_max"),
    )

    def __init__(self, *, wait_s_max: float, deadline_s: float, chunk_payments: int) -> None:
        """`wait_s_max`: the longest wait in a queue that stands. A chunk has at most `chunk_payments`."""
        self._payment_s = self._full_s = _FIRST_COST_S
        self._large = (chunk_payments + 1) // 2
        self._stand_s = wait_s_max
        burst_s = min(_BURST_FACTOR * wait_s_max, _BURST_DEADLINE_SHARE * deadline_s)
        self._burst_s = max(self._stand_s, burst_s)
        # Seconds of work since the queue was empty, and up to the last look; the queue's length at that look, and the
        # number of looks in a row that found it no shorter; and whether a call was refused since.
        self._working_s = self._looked_at_s = 0.0
        self._waited = self._longer = 0
        self._has_refused = False
        # When the queue stood last, by the clock of `note_chunk`.
        self._stood_at = 0.0
        self.wait_s_max = self._burst_s
        """The longest wait that is allowed now."""
        self.stands = False
        """Whether the queue stands: more is asked than can be answered."""

    def cost_s(self, payments: int) -> float:
        """Returns the time per payment of this many payments that wait."""
        return self._full_s if payments >= self._large else self._payment_s

    def payments_in(self, seconds: float) -> int:
        """Returns how many payments the worker scores in this time, in a large chunk: at least what makes one."""
        return max(self._large, int(seconds / self._full_s))

    def note_refused(self) -> None:
        """Note that a call was refused because of the waiting calls."""
        self._has_refused = True

    def note_chunk(self, payments: int, seconds: float, waiting: int, now: float) -> None:
        """Note that the worker took this long from chunk to chunk, without a pause before it, until `now`.

        `waiting`: payments.
        """
        seconds_each, average_s = seconds / payments, self._payment_s
        self._payment_s += _COST_WEIGHT * (min(seconds_each, _COST_JUMP_MAX * average_s) - average_s)
        full_s = self._full_s
        if payments >= self._large:
            worked_each = min(seconds_each, _COST_JUMP_MAX * full_s)
            full_s += _COST_WEIGHT * (worked_each - full_s)
        else:
            worked_each = min(seconds_each, _COST_JUMP_MAX * average_s)
            # All payments have become cheaper or dearer, and no large chunk has shown it yet.
            full_s = min(full_s, self._payment_s)
        self._full_s = max(full_s, self._payment_s / _SMALL_CHUNK_FACTOR_MAX)
        self._working_s += worked_each * payments
        if self._working_s - self._looked_at_s > _LOOK_S:
            self._longer = self._longer + 1 if self._has_refused or waiting >= self._waited else 0
            self._looked_at_s, self._waited, self._has_refused = self._working_s, waiting, False
        if self._longer >= _LOOKS or self._working_s > _STANDING_S or (self.stands and self._has_refused):
            self.wait_s_max, self.stands, self._stood_at = self._stand_s, True, now

    def note_empty(self) -> None:
        """Note that nothing waits."""
        self._working_s = self._looked_at_s = 0.0
        self._waited, self._longer, self._has_refused = 0, 0, False

    def note_begun(self, now: float) -> None:
        """Note that something waits again after `note_empty`."""
        if now - self._stood_at >= _CALM_S:
            self.wait_s_max, self.stands = self._burst_s, False
