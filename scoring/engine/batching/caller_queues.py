"""The calls that wait in a worker, in a queue for each caller: who was served least is taken first.

    checkout   ■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■   offered ten times what the worker can take
    wallet     ■                                  one payment: the next chunk is its own
    kiosk      ■■■

1. Each queue has a *due*: the payments of its caller that were taken, as a time. The queue with the earliest due is
   next; it gives at most QUANTUM payments, and its due moves on by as many. A queue that was empty begins at the
   other queues' time, so no caller saves up while it is away (start-time fair queueing; Goyal, Vin, Cheng 1996). A
   large batch moves the due far: its caller then waits until the other callers have had as much.
2. A chunk ends before a caller that has more payments waiting than the chunk holds: it would more than double the time
   that other callers wait. One payment beside a heap is therefore a chunk of one. This costs a chunk's fixed part, so
   an overloaded worker asks `take` to fill chunks.
3. A caller has a share of each limit: the whole if it is alone, half of it if there are two. A caller that fills its
   share is refused; other callers do not notice.
4. With a single caller this is one queue with the whole of every limit. That is also the case without tokens and
   certificates: all callers then have the same, empty name.

Not thread-safe: everything happens in the event loop.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

# Payments of one caller in a row: a quarter of a chunk. While there are several callers and time to spare, a chunk has
# no more. Everyone's payment waits for the chunk that is being scored: the smaller it is, the shorter.
QUANTUM = 8
# The most payments in a chunk of several callers if the worker cannot answer all that is asked. Half a chunk halves
# that wait, and costs a full worker a few per cent.
SHARED_CHUNK = 2 * QUANTUM
# The burst of a caller with a rate limit: the payments of a second divided by the first number, but at least the second
# number, which is a large batch, and at most the payments of a second.
_BUCKETS_PER_SECOND, _BUCKET_MIN = 20, 256
# The most callers whose queues and rates are kept while they are empty or unused.
_KEPT_MAX = 4096


class Waiting(Protocol):
    """A call that can wait."""

    caller: bytes


_Call = TypeVar("_Call", bound=Waiting)


class CallerQueue(Generic[_Call]):
    """The waiting calls of one caller, each with its payments."""

    __slots__ = ("calls", "due", "payments")

    def __init__(self) -> None:
        self.calls: deque[tuple[_Call, int]] = deque()
        self.payments = 0
        # When its next call is due. The time is that of CallerQueues, which counts payments.
        self.due = 0

    def __lt__(self, other: CallerQueue[_Call]) -> bool:
        """Whether this queue is before another one."""
        return self.due < other.due


class CallerQueues(Generic[_Call]):
    """The waiting calls of all callers. See the module."""

    def __init__(self) -> None:
        self.known: dict[bytes, CallerQueue[_Call]] = {}
        """Queues by caller, empty ones too. `of` makes those that are missing."""
        self.turn: list[CallerQueue[_Call]] = []
        """The queues that are not empty, as a heap: the first one is next."""
        # When the call was due that was taken last.
        self._now = 0

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
        """Returns how many payments would be taken before the next call of this queue, give or take a QUANTUM."""
        due = (queue.due if queue.calls else max(queue.due, self._now)) + queue.payments
        others = (other for other in self.turn if other is not queue)
        return queue.payments + sum(max(0, min(other.payments, due - other.due)) for other in others)

    def begin(self, queue: CallerQueue[_Call]) -> None:
        """Give a queue its turns. Call it before a call is added to an empty one."""
        queue.due = max(queue.due, self._now)
        heappush(self.turn, queue)

    def append(self, queue: CallerQueue[_Call], call: _Call, payments: int) -> None:
        """Let a call wait in the queue of its caller."""
        if not queue.calls:
            self.begin(queue)
        queue.calls.append((call, payments))
        queue.payments += payments

    def take(self, payments: int, *, fills: bool = True) -> list[_Call]:
        """Returns the next calls, of about this many payments, and removes them. There must be one.

        Without `fills` it may return fewer payments if several callers wait: callers with few payments then wait less.
        """
        turn, taken, count = self.turn, list[_Call](), 0
        while turn and count < payments:
            queue, is_alone = turn[0], len(turn) == 1
            if not fills and count and queue.payments > count:
                break
            left = payments - count
            count += self._take_of(queue, left if is_alone else min(left, QUANTUM), taken)
            if queue.calls:
                heapreplace(turn, queue)
            else:
                heappop(turn)
        return taken

    def _take_of(self, queue: CallerQueue[_Call], payments: int, taken: list[_Call]) -> int:
        """Take calls of about this many payments from a queue. Returns of how many they are."""
        calls, given, weight = queue.calls, 0, 0
        while calls and given < payments:
            call, weight = calls.popleft()
            given += weight
            taken.append(call)
        queue.payments -= given
        queue.due += given
        self._now = max(self._now, queue.due - weight)
        return given


class CallerRates:
    """A limit of payments a second for each caller: a token bucket that holds a twentieth of a second's payments.

    It holds a full batch at least, and a second's payments at most. A bucket that held a second's payments let a caller
    of a quarter of the capacity fill the worker for a third of a second whenever it came back.
    """

    def __init__(self, per_second: int) -> None:
        """0 is no limit."""
        self._per_second = per_second
        self._size = float(min(per_second, max(_BUCKET_MIN, per_second // _BUCKETS_PER_SECOND)))
        # The payments that each caller may still send, and when they were counted.
        self._buckets: dict[bytes, tuple[float, float]] = {}

    def spend(self, caller: bytes, payments: int, now: float) -> bool:
        """Take the payments of a call from its caller's bucket. Returns False when it holds too few.

        A batch of more payments than a bucket holds is taken from a full one, and leaves a debt.
        """
        if self._per_second == 0:
            return True
        left, since = self._buckets.get(caller, (self._size, now))
        left = min(left + (now - since) * self._per_second, self._size)
        may = left >= min(payments, self._size)
        if caller not in self._buckets and len(self._buckets) >= _KEPT_MAX:
            self._buckets.clear()
        self._buckets[caller] = left - payments if may else left, now
        return may

    def give_back(self, caller: bytes, payments: int) -> None:
        """Put payments back that a call turned out not to have."""
        if caller in self._buckets:
            left, since = self._buckets[caller]
            self._buckets[caller] = left + payments, since
