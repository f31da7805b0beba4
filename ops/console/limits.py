"""How often somebody may do something: a bucket of tokens for each name or address."""

from __future__ import annotations

import threading
from collections import OrderedDict

# The limit remembers this many callers. Beyond, it forgets the caller that it has not seen for longest.
_KEYS_MAX = 10_000


class RateLimit:
    """`count` events in `per_s` seconds for each key, and then as many as the time brings. Thread-safe."""

    def __init__(self, count: int, per_s: float) -> None:
        self._count, self._per_s = float(count), per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, now_s: float) -> float:
        """Take one of the key; returns 0, or the seconds until there is one again."""
        with self._lock:
            left = self._left(key, now_s)
            if left < 1:
                return (1 - left) * self._per_s / self._count
            self._put(key, left - 1, now_s)
            return 0.0

    def wait_s(self, key: str, now_s: float) -> float:
        """Returns the seconds until the key has one; nothing is taken."""
        with self._lock:
            return max(0.0, 1 - self._left(key, now_s)) * self._per_s / self._count

    def _left(self, key: str, now_s: float) -> float:
        left, seen_s = self._buckets.get(key, (self._count, now_s))
        return min(self._count, left + max(0.0, now_s - seen_s) * self._count / self._per_s)

    def _put(self, key: str, left: float, now_s: float) -> None:
        self._buckets[key] = (left, now_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _KEYS_MAX:
            self._buckets.popitem(last=False)
