"""Rate limits: a token bucket for each name or address, and those of logins."""

from __future__ import annotations

import threading
from collections import OrderedDict
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

    def give_back(self, key: str) -> None:
        """Give back what `take` took."""
        with self._lock:
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


class LoginLimit:
    """Wrong passwords: `count` in `per_s` seconds for a name at a network, ten times as many for a name in all.

    Nobody locks another person out: other names at the same network have tries of their own, behind a NAT or a proxy
    too, and a network from which the person has logged in needs none of the name's. So a name has at most ten times
    `count` wrong tries from everywhere else, however many addresses somebody has. Thread-safe.
    """

    def __init__(self, count: int, per_s: float) -> None:
        # Names of nobody have limits of their own: a flood of them makes the limits forget no person.
        self._at_network = {is_known: RateLimit(count, per_s) for is_known in (True, False)}
        self._of_name = {is_known: RateLimit(10 * count, per_s) for is_known in (True, False)}
        self._strangers = RateLimit(10 * count, per_s)
        self._came_from: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str, network: str, now_s: float, *, is_known: bool) -> float:
        """Take a try; returns 0, or the seconds until there is one again. `is_known`: a person has this name."""
        key = f"{name} {network}"
        if wait_s := self._at_network[is_known].take(key, now_s):
            return wait_s
        wait_s = 0.0 if (name, network) in self._came_from else self._of_name[is_known].take(name, now_s)
        if wait_s:
            self._at_network[is_known].give_back(key)
        return wait_s

    def has_many_strangers(self, network: str, now_s: float) -> bool:
        """Count a try of an unknown name; returns whether the network had too many."""
        return self._strangers.take(network, now_s) > 0

    def note_login(self, name: str, network: str) -> None:
        """Give back a try that was right, and remember where the person is."""
        self._at_network[True].give_back(f"{name} {network}")
        with self._lock:
            if (name, network) not in self._came_from:
                self._of_name[True].give_back(name)
            self._came_from[name, network] = None
            self._came_from.move_to_end((name, network))
            if len(self._came_from) > _KEYS_MAX:
                self._came_from.popitem(last=False)
