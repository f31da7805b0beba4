"""A circuit breaker: after enough failures in a row, calls fail at once for a while, without asking the cluster.

    closed ──failure_count_max failures in a row──► open ──cooldown_ms later──► half-open
      ▲  ▲                                            ▲                            │  │
      │  └─ a success sets the count back to 0        └──────────── failure ───────┘  │
      └───────────────────────────────── success ─────────────────────────────────────┘

Half-open lets a single operation through, the trial, and refuses the others until it has ended. An operation that
began in an earlier state may end now; its result is out of date and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from threading import Lock


class BreakerState(Enum):
    """The state of a circuit breaker. The value is for metrics and messages."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Decides which operations are worth trying. Safe to use from several threads.

    Call `admit` before each operation, and `succeeded`, `failed` or `abandoned` after it, with the ticket that `admit`
    returned. Times are milliseconds of any clock that never goes back. `on_change` is called with
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
        # Counts changes of state. A ticket is the count at its time, which shows whether it is from an earlier state.
        self._epoch = 0
        self._lock = Lock()

    @property
    def state(self) -> BreakerState:
        """Where it stands. Open until the next operation is asked for, even when the cool-down is over."""
        return self._state

    @property
    def is_calm(self) -> bool:
        """Whether it is closed and the last operation got an answer: a new breaker would be no different."""
        with self._lock:
            return self._state is BreakerState.CLOSED and not self._failure_count

    def admit(self, now_ms: int) -> int | None:
        """Returns a ticket for one operation, or None if the operation should not be tried now."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN or self._is_cooling(now_ms):
                return None
            if self._state is BreakerState.OPEN:
                self._change(BreakerState.HALF_OPEN)
            return self._epoch

    def succeeded(self, ticket: int) -> None:
        """Report that the operation got an answer, whatever the answer was."""
        with self._lock:
            if ticket != self._epoch:
                return
            self._failure_count = 0
            if self._state is BreakerState.HALF_OPEN:
                self._change(BreakerState.CLOSED)

    def failed(self, ticket: int, now_ms: int) -> None:
        """Report that the operation failed for a reason that other operations would meet too."""
        with self._lock:
            if ticket != self._epoch:
                return
            self._failure_count += 1
            if self._state is BreakerState.HALF_OPEN or self._failure_count >= self._failure_count_max:
                self._opened_ms = now_ms
                self._change(BreakerState.OPEN)

    def abandoned(self, ticket: int) -> None:
        """Report that the operation says nothing about the cluster. If it was the trial, the next operation is one."""
        with self._lock:
            if ticket == self._epoch and self._state is BreakerState.HALF_OPEN:
                # The time of opening stays, so the cool-down is still over.
                self._change(BreakerState.OPEN)

    def wait_ms(self, now_ms: int) -> int:
        """Returns for how many ms `admit` refuses everything; 0 while an operation is being tried or would be tried."""
        with self._lock:
            return self._opened_ms + self._cooldown_ms - now_ms if self._is_cooling(now_ms) else 0

    def _is_cooling(self, now_ms: int) -> bool:
        return self._state is BreakerState.OPEN and now_ms < self._opened_ms + self._cooldown_ms

    def _change(self, state: BreakerState) -> None:
        self._state = state
        self._failure_count = 0
        self._epoch += 1
        self._on_change(state)
