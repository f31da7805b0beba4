"""A client that gives nothing of a partition although the broker has more, noticed from outside it.

librdkafka can lose a partition without an error: when a broker was fenced for a moment, as after a long pause of its
machine, what the broker tells clients about new leaders may leave a client without one for good.
Neither records nor ends come then, and what the client takes for the end does not move either, so it seems to be up to
date. Only the broker can tell, asked through another client. What helps is a new client.
"""

from __future__ import annotations

from collections.abc import Mapping

from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.end_offsets import ASK_EVERY_S

# The position of a partition of which nothing has been heard: behind every end, since an end is told, too.
NOTHING_HEARD = -1


class StallWatch:
    """Compares how far a client has come with where its partitions end. Not thread-safe."""

    def __init__(self, timeout_s: float) -> None:
        """A partition is stalled when it was behind and did not move over so many looks, one each `ASK_EVERY_S`.

        Looks are counted instead of seconds: a process that was stopped for a while has not stalled.
        """
        self._looks_max = max(1, round(timeout_s / ASK_EVERY_S))
        self._stood: dict[PartitionId, tuple[int, int]] = {}
        self._gave_all = False

    def gave(self, is_all: bool) -> None:
        """The client was asked for what it has, and gave all of it or had more."""
        self._gave_all = self._gave_all or is_all

    def look(self, ends: Mapping[PartitionId, int], positions: Mapping[PartitionId, int]) -> list[PartitionId]:
        """The stalled among `positions`, the offsets that come next.

        None of a client that has not given all it had since the last look, which then counts for nothing: what waits in
        the client has not stalled. `ends` were asked for before `positions` were noted. A partition that is not to be
        read is not in `positions`.
        """
        if not self._gave_all:
            return []
        self._gave_all = False
        stood: dict[PartitionId, tuple[int, int]] = {}
        for place, position in positions.items():
            if place in ends and position < ends[place]:
                before, looks = self._stood.get(place, (position, 0))
                stood[place] = (position, looks + 1 if position == before else 1)
        self._stood = stood
        return sorted(place for place, (_, looks) in stood.items() if looks > self._looks_max)

    def clear(self) -> None:
        """Begin anew, as for a new client."""
        self._stood.clear()


def named(places: list[PartitionId]) -> str:
    """Partitions for a line of a log, the first few by name."""
    first = ", ".join(f"{topic}/{partition}" for topic, partition in places[:3])
    return first if len(places) <= 3 else f"{first} and {len(places) - 3} more"
