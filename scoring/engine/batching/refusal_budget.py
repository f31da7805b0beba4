"""Bounds the time that a worker spends on refusing calls, so that scoring keeps most of it.

    asked 9,000/s, capacity 15,000/s    no call is refused
    asked 20,000/s                      15,000 answered, 5,000 refused: 0.1 s of each second
    asked 200,000/s                     about 12,000 answered, 8,000 refused: 0.15 s; the others wait unread in sockets

A refusal is cheap, but callers can send more than a worker can refuse. The budget is a bucket of seconds: time fills it
with REFUSING_SHARE of what passes, and each refusal takes its cost from it. While the bucket is empty, the worker
*holds* the connection of each call that it refuses: it reads nothing more from it for half a second to a second, less
than the refusal's Retry-After asks for. A caller that comes back later never notices. The hold ends early if the worker
waits for work (scoring/net/connections.py).

If a call waits in the socket at the end of the hold and the worker is still overloaded, the caller has asked again too
early, and its call could not be answered in time any more. The front then holds the connection for twice as long
(`longer`), and at last drops the call: HTTP closes the connection unread, gRPC resets the call. Most of an overload's
callers are held, because a connection that is closed and opened again costs as much as several refusals.
"""

from __future__ import annotations

# Scoring keeps six sevenths of a worker's time.
REFUSING_SHARE = 0.1
# The bucket holds this much: the calls of a burst, or of a pause of the host, are refused without holding anybody.
_BUCKET_S = 0.01
# The assumed cost of a refusal until some were measured, and the bounds of what a measurement may say. A worker that
# loses its core while it refuses would otherwise take its refusals for dear.
_FIRST_COST_S, _COST_MIN_S, _COST_MAX_S = 10e-6, 2e-6, 50e-6
_COST_WEIGHT = 0.1
# The fewest calls of a turn that tell the cost of one.
_MEASURED_CALLS = 16


class RefusalBudget:
    """The seconds that a worker may still spend on refusals. See the module."""

    __slots__ = ("_at", "_cost_s", "_left_s")

    def __init__(self, now: float) -> None:
        """`now` is in seconds, as in every method."""
        self._left_s, self._at, self._cost_s = _BUCKET_S, now, _FIRST_COST_S

    def spend(self, now: float) -> bool:
        """Take the cost of one refusal. Returns False when the bucket does not hold it."""
        self._left_s = min(_BUCKET_S, self._left_s + (now - self._at) * REFUSING_SHARE)
        self._at = now
        if self._left_s < self._cost_s:
            return False
        self._left_s -= self._cost_s
        return True

    def note_turn(self, calls: int, seconds: float) -> None:
        """Note that the worker has read, and admitted or refused, this many calls within these seconds."""
        if calls >= _MEASURED_CALLS:
            cost_s = min(max(seconds / calls, _COST_MIN_S), _COST_MAX_S)
            self._cost_s += _COST_WEIGHT * (cost_s - self._cost_s)
