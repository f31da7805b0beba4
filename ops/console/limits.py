"""Rate limits: a token bucket for each name or address."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Network, ip_address

# The limit remembers this many callers. Beyond, it forgets the caller that it has not seen for longest.
_KEYS_MAX = 10_000


def network_of(address: str) -> str:
    """Returns the network by which a limit of strangers counts. A person with one address of IPv6 has its whole /64."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return address
    return str(found.ipv4_mapped or IPv6Network((int(found), 64), strict=False))


class RateLimit:
    """`count` events in `per_s` seconds for each key; after that, one each `per_s / count` seconds. Thread-safe."""

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

    def take_all(self, keys: Sequence[str], now_s: float) -> float:
        """Take one of each key; returns 0, or the seconds until all have one, and then nothing is taken."""
        with self._lock:
            left = [self._left(key, now_s) for key in keys]
            if min(left) < 1:
                return (1 - min(left)) * self._per_s / self._count
            for key, of_key in zip(keys, left, strict=True):
                self._put(key, of_key - 1, now_s)
            return 0.0

    def give_back(self, keys: Sequence[str]) -> None:
        """Give back the tries that `take_all` took."""
        with self._lock:
            for key in keys:
                if key in self._buckets:
                    left, seen_s = self._buckets[key]
                    self._put(key, min(self._count, left + 1), seen_s)

    def _left(self, key: str, now_s: float) -> float:
        left, seen_s = self._buckets.get(key, (self._count, now_s))
        return min(self._count, left + max(0.0, now_s - seen_s) * self._count / self._per_s)

    def _put(self, key: str, left: float, now_s: float) -> None:
        self._buckets[key] = (left, now_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _KEYS_MAX:
            self._buckets.popitem(last=False)
