"""One log line a minute about things that somebody else can make happen at any rate."""

from __future__ import annotations

import math

EVERY_S = 60.0


class RareLine:
    """Counts events, and says when the log may have a line about them. Not thread-safe."""

    def __init__(self) -> None:
        self._count, self._next_s = 0, -math.inf

    def due(self, now_s: float, count: int = 1) -> int:
        """Count events; returns how many there were since the last line if it is time for the next one, else 0."""
        self._count += count
        if not self._count or now_s < self._next_s:
            return 0
        counted, self._count, self._next_s = self._count, 0, now_s + EVERY_S
        return counted
