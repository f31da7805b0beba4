"""Bounds the time that a worker spends on refusing calls, so that scoring keeps most of it.

    asked 9,000/s, capacity 15,000/s    no call is refused
    asked 20,000/s                      15,000 answered, 5,000 refused
    asked 200,000/s                     about 13,000 answered, 8,000 refused; the others wait unread in sockets

A refusal is cheap, but callers can send more than a worker can refuse. The budget is a bucket of seconds, which time
fills. While the bucket is empty, the worker *holds* the connection of each call that it refuses: it reads nothing more
from it for half a second to a second, less than the refusal's Retry-After asks for. A caller that comes back later
never notices. The hold ends early if the worker waits for work (scoring/net/connections.py).

An impatient caller closes a held connection and opens another one. So an overloaded worker takes new connections from
the same bucket. While it is empty, they wait in the kernel's queue, where they cost the worker nothing.

What a refusal and a connection cost is a constant of each front. A measured cost of a refusal also contained the new
connections: the worker then took its refusals for dear, held more connections, and callers opened still more.

If a call waits in the socket at the end of the hold and the worker is still overloaded, the caller has asked again too
early, and its call could not be answered in time any more. The front then holds the connection for twice as long
(`longer`), and at last drops the call: HTTP closes the connection unread, gRPC resets the call. Most of an overload's
callers are held, because a connection that is closed and opened again costs as much as several refusals.
"""

from __future__ import annotations

# Scoring keeps four fifths of a worker's time. The costs are rounded up, so that it mostly has more.
REFUSING_SHARE = 0.2
# The bucket holds this much: the calls of a burst, or of a pause of the host, are refused without holding anybody.
_BUCKET_S = 0.025


class RefusalBudget:
    """The seconds that a worker may still spend on refusals. See the module."""

    __slots__ = ("_at", "_left_s")

    def __init__(self, now: float) -> None:
        """`now` is in seconds, as in every method."""
        self._left_s, self._at = _BUCKET_S, now

    def spend(self, now: float, cost_s: float) -> bool:
        """Take the cost of one refusal. Returns False when the bucket does not hold it."""
        self._left_s = min(_BUCKET_S, self._left_s + (now - self._at) * REFUSING_SHARE)
        self._at = now
        if self._left_s < cost_s:
            return False
        self._left_s -= cost_s
        return True
