"""How much may go to the dead letters before something is wrong with more than single records."""

from __future__ import annotations

from collections import deque

from paywarden.schemas.errors import Misconfigured

# Fewer than these are single records, whatever share of a quiet hour they are.
COUNT_MIN = 50


class RefusalLimit:
    """Counts records and those of them that were refused, over a sliding window of at least so many records."""

    def __init__(self, window: int, share_max: float) -> None:
        self._window, self._share_max = window, share_max
        self._batches: deque[tuple[int, int]] = deque()
        self._records = self._refused = 0

    def note(self, records: int, refused: int) -> None:
        """A batch was decoded, and nothing of it committed yet.

        Raises Misconfigured when more than the allowed share is refused: the topic must not drain into the dead
        letters because its writers changed their form, or this release is too old to read it.
        """
        self._batches.append((records, refused))
        self._records += records
        self._refused += refused
        while self._records - self._batches[0][0] >= self._window:
            oldest_records, oldest_refused = self._batches.popleft()
            self._records -= oldest_records
            self._refused -= oldest_refused
        if self._refused >= COUNT_MIN and self._refused > self._share_max * self._records:
            raise Misconfigured(
                f"{self._refused} of the last {self._records} records cannot be used, more than the share of "
                f"{self._share_max:g} that [stream] dead_letter_share_max allows: nothing of this batch is committed"
            )
