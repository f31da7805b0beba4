"""When to try again after a failure: after a first pause, then ever more rarely.

refused at 0 s, 5 s, 15 s        tried again at 5 s, 15 s, 35 s
"""

from __future__ import annotations

import math


class RetryTimes:
    """The time of the next try, by the caller's own clock. Each failure doubles the pause, up to `most_s`."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._pause_s = first_s
        self.at = math.inf
        """When to try again, in seconds; infinite if nothing has failed since the last try."""

    def note_failure(self, now_s: float) -> None:
        """Set the time of the next try, and double the pause after it."""
        self.at = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._most_s)

    def clear(self) -> None:
        """Forget the next try: it is made now, or is not needed. The pause stays as long as it is."""
        self.at = math.inf

    def shorten(self) -> None:
        """Begin with the first pause again: something has changed, so the next failure is another one."""
        self._pause_s = self._first_s
