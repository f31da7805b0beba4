"""Outcomes that wait for their payments.

After a pause both topics have a backlog, and an outcome could be read before the payment it is about. So it waits
until the payments are complete up to the moment it arrived itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from streams.kafka import Record


class WaitingOutcomes:
    """In order of reading. Of one partition, an outcome never overtakes another: offsets are committed in order."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Record]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, outcomes: Iterable[Record], now_ms: int) -> None:
        """Take what was read at `now_ms`."""
        # A producer's clock that runs ahead must not hold an outcome longer than from now on.
        self._waiting += [(min(record.timestamp_ms, now_ms), record) for record in outcomes]

    def take_due(self, complete_to_ms: int) -> list[Record]:
        """Those that arrived before `complete_to_ms`, and have none before them that did not."""
        due: list[Record] = []
        still: list[tuple[int, Record]] = []
        blocked: set[int] = set()
        for arrived_ms, record in self._waiting:
            if record.partition in blocked or arrived_ms >= complete_to_ms:
                blocked.add(record.partition)
                still.append((arrived_ms, record))
            else:
                due.append(record)
        self._waiting = still
        return due

    def drop(self, partitions: Collection[int]) -> None:
        """Forget those of partitions that have gone to another worker: they were not committed."""
        self._waiting = [
            (arrived_ms, record) for arrived_ms, record in self._waiting if record.partition not in partitions
        ]
