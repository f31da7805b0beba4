"""Notice that a client delivers nothing from a partition although the broker has more records.

librdkafka can lose a partition without an error. This happens after a broker was fenced for a moment, for example after
a long pause of its machine: the broker's news about leaders may leave the client without a leader for good. The client
then delivers neither records nor ends, and its own idea of the end stands still, so it looks up to date.

1. Ask the broker for the ends through another client (streams/kafka/stalls/end_offsets.py).
2. Compare them with the client's positions. A partition that is behind and has not moved gets one look added.
3. After `timeout_s` worth of looks the partition is stalled. The remedy is a new process, with a new client.

    look        1     2     3     4            timeout_s = 6, a look every 2 s: 3 looks are allowed
    end       500   510   520   530
    position  480   480   480   480            stalled at look 4

A transaction that another producer leaves open looks like a stall: readers of committed records come to its first
record and no further. No new client helps, so the watch asks the broker before it calls a partition stalled. The
transaction ends when that producer goes on, or when the broker gives it up (`transaction.timeout.ms`, 60 s by default).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from confluent_kafka.admin import AdminClient

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.admin import end_offsets_of
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.stalls.end_offsets import ASK_EVERY_S

_log = logging.getLogger(__name__)

# The position of a partition that has delivered nothing, not even its end. It is behind every end.
NOTHING_HEARD = -1


class StallWatch:
    """Compares how far a client has come with where its partitions end. Not thread-safe."""

    def __init__(self, admin: AdminClient, timeout_s: float) -> None:
        """A partition is stalled if it was behind and did not move for `timeout_s`, at a look each `ASK_EVERY_S`.

        The watch counts looks and not seconds: a process that was stopped for a while has not stalled.
        """
        self._admin = admin
        self._looks_max = max(1, round(timeout_s / ASK_EVERY_S))
        self._stood: dict[PartitionId, tuple[int, int]] = {}
        self._gave_all = False

    def gave(self, is_all: bool) -> None:
        """Note a call to the client: `is_all` says that it handed out everything it had."""
        self._gave_all = self._gave_all or is_all

    def check(self, ends: Mapping[PartitionId, int], positions: Mapping[PartitionId, int]) -> None:
        """Raises BrokerUnavailable if a partition among `positions`, the next offsets to read, has stalled.

        A client that has not handed out everything since the last look has no stalled partition, and the look does not
        count: its records may wait inside the client. The caller asks for `ends` before it notes `positions`, and
        leaves paused partitions out of `positions`. Waits for the broker's answer where a partition seems to stall.
        """
        if not self._gave_all:
            return
        self._gave_all = False
        stood: dict[PartitionId, tuple[int, int]] = {}
        for place, position in positions.items():
            if place in ends and position < ends[place]:
                before, looks = self._stood.get(place, (position, 0))
                stood[place] = (position, looks + 1 if position == before else 1)
        self._stood = stood
        still = sorted(place for place, (_, looks) in stood.items() if looks > self._looks_max)
        if stalled := self._without_held(still, ends, positions):
            raise BrokerUnavailable(f"Kafka's client has stalled on {named(stalled)}: this process begins again")

    def _without_held(
        self, still: list[PartitionId], ends: Mapping[PartitionId, int], positions: Mapping[PartitionId, int]
    ) -> list[PartitionId]:
        """Returns these partitions without those that an open transaction holds up. These are logged and forgotten."""
        held = []
        for topic in sorted({topic for topic, _ in still}):
            stable = end_offsets_of(self._admin, topic, [number for name, number in still if name == topic]) or {}
            held += [(topic, number) for number, end in sorted(stable.items()) if end <= positions[topic, number]]
        for place in held:
            del self._stood[place]
        if held:
            waiting = sum(ends[place] - positions[place] for place in held)
            _log.warning(
                "an open transaction of a producer holds up %s: %d records wait for its end", named(held), waiting
            )
        return [place for place in still if place not in held]


def named(places: list[PartitionId]) -> str:
    """Returns partitions for a log line: the first three by name, then how many more there are."""
    first = ", ".join(f"{topic}/{partition}" for topic, partition in places[:3])
    return first if len(places) <= 3 else f"{first} and {len(places) - 3} more"
