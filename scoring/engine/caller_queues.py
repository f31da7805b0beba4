"""The calls that wait in a worker, in a queue for each caller. The queues take turns: a noisy caller delays himself.

    checkout   ■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■   offered ten times what the worker can take
    wallet     ■                                  one payment: taken after at most QUANTUM of checkout's
    kiosk      ■■■

1. `take` goes around the callers that have calls waiting. Each gets QUANTUM payments a round (deficit round robin). A
   batch that is larger than what its caller has left is taken whole, and its caller then sits out the rounds he is in
   debt for.
2. `room_for` is the caller's share of each limit: the whole for one caller, half of it for each of two. A caller who
   fills his share is refused; the others do not notice.
3. With a single caller this is one queue with the whole of every limit. That is also the case without tokens and
   certificates: all callers then have the same, empty name.

Not thread-safe: everything happens in the event loop.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, Protocol, TypeVar

# Payments of one caller in a round: a quarter of a chunk, so that four callers share a chunk.
QUANTUM = 8
# The most callers whose rate is remembered. Beyond it the memory begins anew, and with it everyone's second.
_RATES_MAX = 4096


class Waiting(Protocol):
    """A call that can wait: who sent it, and its bytes."""

    caller: bytes
    payload: bytes


_Call = TypeVar("_Call", bound=Waiting)


class Ahead(NamedTuple):
    """What stands before the next call of a caller, and what he has in the queue."""

    payments: int
    """Payments that will be taken before it."""
    own_payments: int
    own_bytes: int
    callers: int
    """Callers who share the worker, the caller himself included."""


class _CallerQueue(Generic[_Call]):
    __slots__ = ("byte_count", "calls", "credit", "payments")

    def __init__(self) -> None:
        self.calls: deque[tuple[_Call, int]] = deque()
        self.payments = self.byte_count = 0
        # Payments that may still be taken in this round; below 0 after a large batch.
        self.credit = QUANTUM


class CallerQueues(Generic[_Call]):
    """The waiting calls of all callers. See the module."""

    def __init__(self) -> None:
        self.payments = 0
        """Payments that wait, of all callers. Those of batches are estimates."""
        self._queues: dict[bytes, _CallerQueue[_Call]] = {}
        # The queues that are not empty; the first one is at its turn.
        self._turn: deque[_CallerQueue[_Call]] = deque()

    def __bool__(self) -> bool:
        return bool(self._turn)

    def ahead_of(self, caller: bytes) -> Ahead:
        """Returns what the next call of a caller would wait for."""
        queue = self._queues.get(caller)
        callers = len(self._turn)
        if queue is None:
            return Ahead(min(self.payments, callers * QUANTUM), 0, 0, callers + 1)
        own = queue.payments
        if callers == 1:
            return Ahead(own, own, queue.byte_count, 1)
        return Ahead(min(self.payments, own + (callers - 1) * (own + QUANTUM)), own, queue.byte_count, callers)

    def append(self, call: _Call, weight: int) -> None:
        """Let a call of this many payments wait."""
        queue = self._queues.get(call.caller)
        if queue is None:
            queue = self._queues[call.caller] = _CallerQueue()
            self._turn.append(queue)
        queue.calls.append((call, weight))
        queue.payments += weight
        queue.byte_count += len(call.payload)
        self.payments += weight

    def take(self) -> _Call:
        """Returns the next call, and removes it. There must be one."""
        turn = self._turn
        if len(turn) > 1:
            while turn[0].credit <= 0:
                turn[0].credit += QUANTUM
                turn.rotate(-1)
        queue = turn[0]
        call, weight = queue.calls.popleft()
        queue.payments -= weight
        queue.byte_count -= len(call.payload)
        self.payments -= weight
        if not queue.calls:
            turn.popleft()
            del self._queues[call.caller]
        elif len(turn) > 1:
            queue.credit -= weight
        return call


class CallerRates:
    """A limit of payments a second for each caller: a token bucket that holds one second's payments."""

    def __init__(self, per_second: int) -> None:
        """0 is no limit."""
        self._per_second = per_second
        # What each caller may still send, and as of when.
        self._buckets: dict[bytes, tuple[float, float]] = {}

    def spend(self, caller: bytes, payments: int, now: float) -> bool:
        """Take the payments of a call from its caller's bucket. Returns False when it holds too few.

        A batch of more payments than a second allows is taken from a full bucket, and leaves a debt.
        """
        if self._per_second == 0:
            return True
        left, since = self._buckets.get(caller, (float(self._per_second), now))
        left = min(left + (now - since) * self._per_second, float(self._per_second))
        may = left >= min(payments, self._per_second)
        if caller not in self._buckets and len(self._buckets) >= _RATES_MAX:
            self._buckets.clear()
        self._buckets[caller] = left - payments if may else left, now
        return may
