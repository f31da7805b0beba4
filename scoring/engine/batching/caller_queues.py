"""The calls that wait in a worker, in a queue for each caller. The queues take turns: a noisy caller delays himself.

    checkout   ■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■   offered ten times what the worker can take
    wallet     ■                                  one payment: taken after at most QUANTUM of checkout's
    kiosk      ■■■

1. `take` goes around the callers that have calls waiting. Each gets QUANTUM payments a round (deficit round robin). A
   batch that is larger than what its caller has left is taken whole, and its caller then sits out the rounds he is in
   debt for.
2. A caller has a share of each limit: the whole if he is alone, half of it if there are two. A caller who fills his
   share is refused; the others do not notice.
3. With a single caller this is one queue with the whole of every limit. That is also the case without tokens and
   certificates: all callers then have the same, empty name.

Not thread-safe: everything happens in the event loop.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

# Payments of one caller in a round: a quarter of a chunk, so that four callers share a chunk.
QUANTUM = 8
# The most payments in a chunk while there are several callers. Everyone's payment waits for the chunk that is being
# scored and for the rest of its own: half a chunk halves both. It costs a full worker a few per cent.
SHARED_CHUNK = 2 * QUANTUM
# The most callers whose queues and rates are kept while they are empty or unused.
_KEPT_MAX = 4096


class Waiting(Protocol):
    """A call that can wait."""

    caller: bytes


_Call = TypeVar("_Call", bound=Waiting)


class CallerQueue(Generic[_Call]):
    """The waiting calls of one caller, each with its payments."""

    __slots__ = ("calls", "credit", "payments")

    def __init__(self) -> None:
        self.calls: deque[tuple[_Call, int]] = deque()
        self.payments = 0
        # Payments that may still be taken in this round; below 0 after a large batch.
        self.credit = QUANTUM


class CallerQueues(Generic[_Call]):
    """The waiting calls of all callers. See the module."""

    def __init__(self) -> None:
        self.known: dict[bytes, CallerQueue[_Call]] = {}
        """Queues by caller, empty ones too. `of` makes those that are missing."""
        self.turn: deque[CallerQueue[_Call]] = deque()
        """The queues that are not empty; the first one is at its turn."""

    def __bool__(self) -> bool:
        return bool(self.turn)

    @property
    def payments(self) -> int:
        """Payments that wait, of all callers. Those of batches are estimates."""
        return sum(queue.payments for queue in self.turn)

    def of(self, caller: bytes) -> CallerQueue[_Call]:
        """Returns the queue of a caller, which may be empty."""
        queue = self.known.get(caller)
        if queue is None:
            if len(self.known) >= _KEPT_MAX:
                # The batcher may still hold one that is dropped here. If it is used again, `turn` has it.
                self.known = {name: kept for name, kept in self.known.items() if kept.calls}
            queue = self.known[caller] = CallerQueue()
        return queue

    def callers_with(self, queue: CallerQueue[_Call]) -> int:
        """Returns how many callers share the worker, the one of this queue included."""
        return len(self.turn) if queue.calls else len(self.turn) + 1

    def ahead_of(self, queue: CallerQueue[_Call]) -> int:
        """Returns how many payments would be taken before the next call of this queue."""
        others = self.callers_with(queue) - 1
        if others == 0:
            return queue.payments
        return min(self.payments, queue.payments + others * (queue.payments + QUANTUM))

    def begin(self, queue: CallerQueue[_Call]) -> None:
        """Give a queue its turns. Call it before a call is added to an empty one."""
        queue.credit = QUANTUM
        self.turn.append(queue)

    def append(self, queue: CallerQueue[_Call], call: _Call, payments: int) -> None:
        """Let a call wait in the queue of its caller."""
        if not queue.calls:
            self.begin(queue)
        queue.calls.append((call, payments))
        queue.payments += payments

    def take(self, payments: int) -> list[_Call]:
        """Returns the next calls, of about this many payments, and removes them. There must be one."""
        turn, taken = self.turn, []
        if len(turn) == 1:
            queue = turn[0]
            calls, left = queue.calls, payments
            while calls and left > 0:
                call, weight = calls.popleft()
                left -= weight
                taken.append(call)
            queue.payments += left - payments
            if not calls:
                turn.popleft()
            return taken
        while turn and payments > 0:
            queue = turn[0]
            if queue.credit <= 0 and len(turn) > 1:
                queue.credit += QUANTUM
                turn.rotate(-1)
                continue
            call, weight = queue.calls.popleft()
            taken.append(call)
            queue.payments -= weight
            queue.credit -= weight
            payments -= weight
            if not queue.calls:
                turn.popleft()
        return taken


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
        if caller not in self._buckets and len(self._buckets) >= _KEPT_MAX:
            self._buckets.clear()
        self._buckets[caller] = left - payments if may else left, now
        return may

    def give_back(self, caller: bytes, payments: int) -> None:
        """Put payments back that a call turned out not to have."""
        if caller in self._buckets:
            left, since = self._buckets[caller]
            self._buckets[caller] = left + payments, since
