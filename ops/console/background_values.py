"""Values that take longer to compute than a page may take: computed in the background while somebody looks.

    page ──► known(now)   the last value, and its time; if it is old, the thread is woken
    thread ► run          computes the value again, after the page was sent

The first page waits a moment, so that a small index answers at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from paywarden.ops.times import now_ms
from paywarden.schemas.errors import PaywardenError

Value = TypeVar("Value")

FAULT = "the console has made a fault: its log says more"
"""The text on a page about a bug in background work."""
# Well below the 300 ms that a page may take.
_FIRST_WAIT_S = 0.15
_LOOK_S = 2.0


class Kept(Generic[Value]):
    """A value that `find` gives for a time, at most `old_ms` old while somebody asks. Thread-safe.

    `found_ms`: when it was found, 0 for never. `trouble`: why it is not newer; "" if nothing is wrong.
    """

    def __init__(self, find: Callable[[int], Value], *, empty: Value, old_ms: int) -> None:
        self._find, self._old_ms = find, old_ms
        self.value, self.found_ms, self.trouble = empty, 0, ""
        self._wake, self._found = threading.Event(), threading.Event()

    def known(self, now: int) -> Value:
        """Returns the last value, and has it computed again if it is old."""
        if now - self.found_ms >= self._old_ms:
            self._wake.set()
            if not self.found_ms:
                self._found.wait(_FIRST_WAIT_S)
        return self.value

    def run(self, stop: threading.Event) -> None:
        """Compute values that are asked for, until `stop` is set."""
        while not stop.is_set():
            if self._wake.wait(_LOOK_S):
                self._wake.clear()
                self.step(now_ms())

    def step(self, now: int) -> None:
        """Find out once. An error is kept in `trouble`, and the value stays."""
        try:
            self.value, self.found_ms, self.trouble = self._find(now), now, ""
        except PaywardenError as error:
            self.trouble = str(error)
        except Exception:
            # The top of the thread logs it. Without a word here pages would say that it is being found out.
            self.trouble = FAULT
            raise
        finally:
            self._found.set()
