"""A circuit breaker: after enough failures in a row, fail at once for a while instead of asking and waiting.

    closed ──failure_count_max failures in a row──► open ──cooldown_ms later──► half-open
      ▲  ▲                                            ▲                            │  │
      │  └─ a success sets the count back to 0        └──────────── failure ───────┘  │
      └───────────────────────────────── success ─────────────────────────────────────┘

Half-open lets a single operation through, the trial; the others are refused until it has ended. An operation
let through in an earlier state may still end then: it tells of a time that is over, so it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from threading import Lock


class BreakerState(Enum):
    """Where a circuit breaker stands; the value is for metrics and messages."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Decides which operations are worth trying. Safe to use from several threads.

    Ask `admit` before each operation and tell `succeeded`, `failed` or `abandoned` after it, with the ticket
    that `admit` gave. Times are milliseconds of any clock that does not go back. `on_change` is called with
    each new state, under the breaker's lock: it must be quick and must not call the breaker.
    """

    def __init__(
        self,
        *,
        failure_count_max: int,
        cooldown_ms: int,
        on_change: Callable[[BreakerState], object] = lambda _: None,
    ) -> None:
        assert failure_count_max >= 1
        assert cooldown_ms >= 0
        self._failure_count_max = failure_count_max
        self._cooldown_ms = cooldown_ms
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._failure_count = 0
        self._opened_ms = 0
        # Counts changes of state. A ticket is the count at the time, so one of an earlier state is known as such.
        self._epoch = 0
        self._lock = Lock()

    @property
    def state(self) -> BreakerState:
        """Where it stands. Open until the next operation is asked for, even when the cool-down is over."""
        return self._state

    def admit(self, now_ms: int) -> int | None:
        """A ticket for one operation, or None: don't try, the operation would most likely fail."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN or self._is_cooling(now_ms):
                return None
            if self._state is BreakerState.OPEN:
                self._change(BreakerState.HALF_OPEN)
            return self._epoch

    def succeeded(self, ticket: int) -> None:
        """The operation reached what it asked, whatever the answer was."""
        with self._lock:
            if ticket != self._epoch:
                return
            self._failure_count = 0
            if self._state is BreakerState.HALF_OPEN:
                self._change(BreakerState.CLOSED)

    def failed(self, ticket: int, now_ms: int) -> None:
        """The operation failed for a reason that others would meet too."""
        with self._lock:
            if ticket != self._epoch:
                return
            self._failure_count += 1
            if self._state is BreakerState.HALF_OPEN or self._failure_count >= self._failure_count_max:
                self._opened_ms = now_ms
                self._change(BreakerState.OPEN)

    def abandoned(self, ticket: int) -> None:
        """The operation ended without an answer to learn from; if it was the trial, the next one is."""
        with self._lock:
            if ticket == self._epoch and self._state is BreakerState.HALF_OPEN:
                # Opened as long ago as before: the cool-down stays over.
                self._change(BreakerState.OPEN)

    def wait_ms(self, now_ms: int) -> int:
        """How long nothing is let through yet; 0 as soon as an operation is being tried or would be."""
        with self._lock:
            return self._opened_ms + self._cooldown_ms - now_ms if self._is_cooling(now_ms) else 0

    def _is_cooling(self, now_ms: int) -> bool:
        return self._state is BreakerState.OPEN and now_ms < self._opened_ms + self._cooldown_ms

    def _change(self, state: BreakerState) -> None:
        self._state = state
        self._failure_count = 0
        self._epoch += 1
        self._on_change(state)
