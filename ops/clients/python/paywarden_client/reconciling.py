"""Stand-ins that wait to be asked about again. Pure: the caller brings the time.

    stand-in ── 1 s ─► ask ── 2 s ─► ask ── 4 s ─► … ── 30 s ─► ask … until 540 s have passed

The service remembers a decision for ten minutes. Beyond that a repeated payment would be decided again, so the client
gives up a minute earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from .answers import Decision
from .payments import Payment

FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 1000.0, 30_000.0
GIVE_UP_MS = 540_000.0
# The deadline of a payment that is asked about again.
DEADLINE_MS = 1000.0
# The pause between two such calls: at most 50 a second.
APART_S = 0.02

ANSWERED, REFUSED, EXPIRED, FULL, CLOSED = "answered", "refused", "expired", "full", "closed"


def next_due_ms(asked: int, since_ms: float) -> float | None:
    """Returns when to ask next, in milliseconds since the stand-in; None to give up.

    `asked` is how often the payment was asked about since, and `since_ms` when the last answer failed (0 at first).
    """
    due_ms = since_ms + min(FIRST_PAUSE_MS * 2.0 ** min(asked, 10), LONGEST_PAUSE_MS)
    return None if due_ms > GIVE_UP_MS else due_ms


@dataclass
class Waiting:
    """A stand-in that waits. `pinned` is the place of the host that the payment may have been sent to, or None."""

    payment: Payment
    stand_in: Decision
    pinned: int | None
    begun_s: float
    asked: int = 0
    due_s: float = 0.0


class ReconcileQueue:
    """The waiting stand-ins by payment id. Not safe for threads: the client holds a lock."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[str, Waiting] = {}
        # Due times with payment ids. An entry whose time is not the payment's any more is skipped.
        self._due: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def pinned(self, payment_id: str) -> int | None:
        """Returns the host that a waiting payment may have been sent to."""
        waiting = self._waiting.get(payment_id)
        return None if waiting is None else waiting.pinned

    def put(self, payment: Payment, stand_in: Decision, pinned: int | None, now_s: float) -> bool:
        """Let a stand-in wait, in the place of an earlier one of the payment. Returns False if there is no room."""
        waiting = self._waiting.get(payment.payment_id)
        if waiting is not None:
            waiting.stand_in, waiting.pinned = stand_in, waiting.pinned if pinned is None else pinned
            return True
        if len(self._waiting) >= self._waiting_max:
            return False
        waiting = Waiting(payment, stand_in, pinned, now_s)
        self._waiting[payment.payment_id] = waiting
        self._plan(waiting, 0.0)
        return True

    def end(self, payment_id: str) -> Waiting | None:
        """Take a payment out of the queue. Returns it, or None if it was not there."""
        return self._waiting.pop(payment_id, None)

    def next_due_s(self) -> float | None:
        """Returns when the next payment is due; None if none waits."""
        while self._due:
            due_s, payment_id = self._due[0]
            waiting = self._waiting.get(payment_id)
            if waiting is not None and waiting.due_s == due_s:
                return due_s
            heapq.heappop(self._due)
        return None

    def take_due(self, now_s: float) -> Waiting | None:
        """Returns the payment that is due, which stays in the queue; None if none is."""
        due_s = self.next_due_s()
        if due_s is None or due_s > now_s:
            return None
        waiting = self._waiting[heapq.heappop(self._due)[1]]
        waiting.asked += 1
        return waiting

    def failed(self, waiting: Waiting, sent_to: int | None, now_s: float) -> bool:
        """Plan to ask again. Returns False if it is too late for that: the payment is out of the queue."""
        if waiting.pinned is None:
            waiting.pinned = sent_to
        if self._plan(waiting, (now_s - waiting.begun_s) * 1000.0):
            return True
        self._waiting.pop(waiting.payment.payment_id, None)
        return False

    def drain(self) -> Iterator[Waiting]:
        """Yields the stand-ins that wait, and empties the queue."""
        waiting, self._waiting = list(self._waiting.values()), {}
        self._due.clear()
        yield from waiting

    def _plan(self, waiting: Waiting, since_ms: float) -> bool:
        due_ms = next_due_ms(waiting.asked, since_ms)
        if due_ms is None:
            return False
        waiting.due_s = waiting.begun_s + due_ms / 1000.0
        heapq.heappush(self._due, (waiting.due_s, waiting.payment.payment_id))
        return True
