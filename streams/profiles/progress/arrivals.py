"""The times at which payments reached Kafka, also when the clocks of their producers are wrong.

A topic with `message.timestamp.type=LogAppendTime` has the broker's time in every record. In any other topic the time
is the producer's: a clock an hour ahead would make old profiles look fresh, one behind would make fresh ones look old.
The worker therefore notes every two seconds where each partition ends, by its own clock (a *mark*):

    12:00:02   payments/3 ends at 100       a record at offset 120 reached Kafka
    12:00:04   payments/3 ends at 150       between 12:00:02 and 12:00:04

A producer's time outside of these bounds is moved to the nearer one.

Without marks, as for records from before the worker's start, only the upper bound is known: a record that is there has
arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.reading import Record

# A worker that is an hour behind has about 2,000 marks. The oldest go first: their bounds are then wider.
_MARKS_MAX = 2_000


@dataclass(slots=True)
class _Mark:
    """A partition ended at `end`: it did so already at `since_ms`, and still at `until_ms`."""

    end: int
    since_ms: int
    until_ms: int


class Arrivals:
    """Marks of the partitions of a topic. A worker reads each partition in order. Not thread-safe."""

    def __init__(self) -> None:
        self._marks: dict[PartitionId, deque[_Mark]] = {}

    def ended(self, ends: Mapping[PartitionId, int], *, asked_ms: int, answered_ms: int) -> None:
        """Note where partitions ended, by an answer to a question that was asked at `asked_ms`."""
        for place, end in ends.items():
            marks = self._marks.setdefault(place, deque(maxlen=_MARKS_MAX))
            if marks and marks[-1].end >= end:
                marks[-1].until_ms = asked_ms
            else:
                marks.append(_Mark(end, answered_ms, asked_ms))

    def forget(self, place: PartitionId) -> None:
        """Forget a partition that another worker reads now."""
        self._marks.pop(place, None)

    def bounds(self, record: Record, now_ms: int) -> tuple[int, int]:
        """Returns the earliest and the latest time at which a record that was read now can have reached Kafka."""
        marks = self._marks.get((record.topic, record.partition))
        if not marks:
            return 0, now_ms
        while len(marks) > 1 and marks[1].end <= record.offset:
            marks.popleft()
        first = marks[0]
        if first.end > record.offset:
            return 0, min(first.since_ms, now_ms)
        return first.until_ms, min(marks[1].since_ms, now_ms) if len(marks) > 1 else now_ms

    def arrived_ms(self, record: Record, now_ms: int) -> int:
        """Returns the best estimate of a record's arrival; 0 if the record has no time."""
        if record.is_broker_time or record.timestamp_ms == 0:
            return min(record.timestamp_ms, now_ms)
        earliest_ms, latest_ms = self.bounds(record, now_ms)
        return min(max(record.timestamp_ms, earliest_ms), latest_ms)
